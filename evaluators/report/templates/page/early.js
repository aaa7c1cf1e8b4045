// Runs before anything is painted, so that neither the theme nor the view changes before the reader's eyes.
(() => {
  const root = document.documentElement, view = new URLSearchParams(location.hash.slice(1)).get("view");
  root.classList.add("scripted");
  root.dataset.view = view || "overview";
  try {
    root.dataset.theme = localStorage.getItem("compresskit-theme") || "system";
  } catch {
    root.dataset.theme = "system"; // storage is closed to this page
  }
})();
