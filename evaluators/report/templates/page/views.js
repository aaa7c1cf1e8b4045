"use strict";
// Which view is open: the overview, one arm, or two arms side by side; and the theme.
const root = document.documentElement, title = document.title, themes = ["system", "light", "dark"];
let open = null, left = 0; // the view that is shown, and how far the overview was scrolled when it was left

async function showView(state) {
  const arm = state.view === "arm" && data.arms[state.arm] ? state.arm : "", compared = state.view === "compare";
  const view = arm ? "arm" : compared ? "compare" : "overview", now = `${view} ${arm}`, first = open === null;
  if (now === open) return;
  if (open?.startsWith("overview")) left = scrollY;
  open = now;
  root.dataset.view = view;
  byId("arm").hidden = !arm;
  byId("compare").hidden = !compared;
  document.title = arm ? `${data.arms[arm].name} · ${title}` : compared ? `Side by side · ${title}` : title;
  if (state.view === "arm" && !arm) tell(`This report has no arm ${state.arm}.`);
  if (arm) {
    const { pages } = await details;
    if (open !== now) return;
    byId("arm").innerHTML = pages[arm];
  }
  if (view !== "overview") arrive(byId(arm ? "arm-title" : "compare-title"));
  else if (!first) scrollTo({ top: left, behavior: "instant" });
}

function arrive(heading) {
  scrollTo({ top: 0, behavior: "instant" });
  heading.focus({ preventScroll: true });
}

// Links inside the page: to a state, of which they leave alone what they do not name, or to a section of the overview.
function follow(event) {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const name = link.hash.slice(1);
  if (name.includes("=")) return change(Object.fromEntries(Object.entries(parseState(name)).filter(([key, value]) => value || key === "arm")), true);
  if (link.closest(".crumb")) return change({ view: "", arm: "" }, true);
  const place = byId(name);
  place.scrollIntoView();
  place.querySelector("a, button, input, summary, [tabindex]")?.focus({ preventScroll: true, focusVisible: false });
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
addEventListener("popstate", render);
document.addEventListener("click", follow);
byId("theme").addEventListener("click", nextTheme);
showTheme();
