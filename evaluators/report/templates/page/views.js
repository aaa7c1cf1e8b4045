"use strict";
// Which view is open: the overview, one arm, or two arms side by side; and the theme.
const root = document.documentElement, articles = [...document.querySelectorAll("article.arm")];
const title = document.title, themes = ["system", "light", "dark"];
let open = null, left = 0; // the view that is shown, and how far the overview was scrolled when it was left

function showView(state) {
  const arm = state.view === "arm" && data.arms[state.arm] ? state.arm : "", compared = state.view === "compare";
  const view = arm ? "arm" : compared ? "compare" : "overview", now = `${view} ${arm}`;
  if (now === open) return;
  if (open?.startsWith("overview")) left = scrollY;
  root.dataset.view = view;
  articles.forEach((article) => article.classList.toggle("open", article.dataset.id === arm));
  byId("compare").hidden = !compared;
  document.title = arm ? `${data.arms[arm].name} · ${title}` : compared ? `Side by side · ${title}` : title;
  if (state.view === "arm" && !arm) tell(`This report has no arm ${state.arm}.`);
  if (open !== null || view !== "overview") arrive(view, arm);
  open = now;
}

function arrive(view, arm) {
  if (view === "overview") return scrollTo({ top: left, behavior: "instant" });
  scrollTo({ top: 0, behavior: "instant" });
  (arm ? document.querySelector("article.open h2") : byId("compare-title")).focus({ preventScroll: true });
}

// Links inside the page: to an arm, to a state, or to a section of the overview, which is not part of the state.
function follow(event) {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const name = link.hash.slice(1), place = byId(decodeURIComponent(name));
  if (name.includes("=")) return goTo(name);
  if (place?.matches("article.arm")) return change({ view: "arm", arm: place.dataset.id }, true);
  if (link.closest(".crumb")) return change({ view: "", arm: "" }, true);
  place?.scrollIntoView();
  place?.querySelector("a, button, input, summary, [tabindex]")?.focus({ preventScroll: true, focusVisible: false });
}

function goTo(name) {
  const asked = new URLSearchParams(name);
  change({ view: asked.get("view"), arm: asked.get("arm") ?? "", pair: asked.getAll("pair") }, true);
}

// The address of an arm without scripts, "#arm-...", as it may stand in a link from outside.
function translate() {
  const place = location.hash.length > 1 && !location.hash.includes("=") && byId(decodeURIComponent(location.hash.slice(1)));
  if (place && place.matches("article.arm")) change({ view: "arm", arm: place.dataset.id });
  else render();
}

function showTheme() {
  byId("theme").textContent = `Theme: ${root.dataset.theme}`;
}

function nextTheme() {
  root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
  showTheme();
  try {
    localStorage.setItem("compresskit-theme", root.dataset.theme);
  } catch {
    // storage is closed to this page: the theme lasts as long as the page
  }
}

renderers.push(showView);
addEventListener("popstate", translate);
document.addEventListener("click", follow);
byId("theme").addEventListener("click", nextTheme);
showTheme();
