"use strict";
// The whole state of the page is the fragment of its address. Controls write it, `render` shows it; what is left out is the default.
const SINGLE = ["view", "arm", "sort", "find", "lossless", "axis"];
const LISTS = ["pair", "model", "runtime", "target"]; // null: no choice was made
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const renderers = []; // functions of the state, in the order in which they show it
const details = unpack(byId("packed").textContent); // a promise of what is seen of single arms

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function parseState(text) {
  const found = new URLSearchParams(text), state = {};
  SINGLE.forEach((name) => (state[name] = found.get(name) ?? ""));
  LISTS.forEach((name) => (state[name] = found.has(name) ? found.getAll(name).filter(Boolean) : null));
  return state;
}

function readState() {
  return parseState(location.hash.slice(1));
}

function fragment(state) {
  const found = new URLSearchParams();
  SINGLE.filter((name) => state[name]).forEach((name) => found.append(name, state[name]));
  LISTS.filter((name) => state[name]).forEach((name) => (state[name].length ? state[name] : [""]).forEach((value) => found.append(name, value)));
  return `#${found}`;
}

// `visit` adds a step to the browser's history: for another view, not for each letter of a search.
function change(changes, visit = false) {
  const next = fragment({ ...readState(), ...changes });
  if (next !== location.hash) history[visit ? "pushState" : "replaceState"](null, "", next);
  render();
}

function render() {
  const state = readState();
  renderers.forEach((show) => show(state));
}

function tell(text) {
  byId("told").textContent = text;
}
