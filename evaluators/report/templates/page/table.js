"use strict";
// The table of all arms: sorted, filtered, and two of its rows chosen to be compared.
const table = byId("table"), rows = [...table.tBodies[0].rows], heads = [...table.tHead.rows[0].cells].filter((head) => head.dataset.sort);
const find = byId("find"), lossless = byId("lossless"), facets = ["model", "runtime", "target"];
const collator = new Intl.Collator("en", { numeric: true });

function cellValue(row, key) {
  return row.querySelector(`[data-sort="${key}"]`)?.dataset.v;
}

// Rows without a value come last in both directions.
function compareValues(a, b, sign) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  const x = Number(a), y = Number(b);
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y);
}

function showOrder({ sort }) {
  const key = sort.replace(/^-/, ""), sign = sort.startsWith("-") ? -1 : 1, known = heads.some((head) => head.dataset.sort === key);
  const keyed = known ? rows.map((row) => [cellValue(row, key), row]).sort(([a], [b]) => compareValues(a, b, sign)) : rows.map((row) => [0, row]);
  table.tBodies[0].append(...keyed.map(([, row]) => row));
  heads.forEach((head) => head.setAttribute("aria-sort", head.dataset.sort !== key ? "none" : sign < 0 ? "descending" : "ascending"));
}

function showFilter(state) {
  const wanted = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = row.dataset.find.toLowerCase(), chosen = facets.every((name) => !state[name] || state[name].includes(row.dataset[name]));
    row.hidden = !chosen || (state.lossless && row.dataset.lossless !== "1") || !wanted.every((word) => text.includes(word));
    count += !row.hidden;
  }
  const all = `${rows.length} arm${rows.length === 1 ? "" : "s"}`;
  byId("shown").textContent = count === rows.length ? all : `${count} of ${all}`;
  byId("nothing").hidden = count > 0;
  byId("reset").hidden = ![...facets, "find", "lossless", "sort"].some((name) => state[name]?.length || state[name] === "1" || Array.isArray(state[name]));
  if (find.value !== state.find) find.value = state.find;
  lossless.checked = state.lossless === "1";
  facets.forEach((name) => boxes(name).forEach((box) => (box.checked = !state[name] || state[name].includes(box.value))));
}

function boxes(name) {
  return [...document.querySelectorAll(`#arms input[name="${name}"]`)];
}

function chosenFacet(name) {
  const all = boxes(name), on = all.filter((box) => box.checked).map((box) => box.value);
  return on.length === all.length ? null : on;
}

function showPair(state) {
  const pair = (state.pair ?? []).filter((id) => data.arms[id]);
  boxes("pair").forEach((box) => (box.checked = pair.includes(box.value)));
  byId("tray").hidden = pair.length === 0;
  byId("tray").firstElementChild.textContent = pair.map((id) => data.arms[id].name).join(" and ") + (pair.length === 1 ? ": choose another arm to compare it with" : "");
  byId("compare-now").disabled = pair.length !== 2;
}

// A third choice takes the place of the older of two.
function choose(box) {
  const others = (readState().pair ?? []).filter((id) => id !== box.value);
  const pair = box.checked ? [...others, box.value].slice(-2) : others;
  change({ pair: pair.length ? pair : null });
}

renderers.push(showOrder, showFilter, showPair);
heads.forEach((head) => head.firstElementChild.addEventListener("click", () => {
  const key = head.dataset.sort, now = readState().sort;
  change({ sort: now === key ? `-${key}` : now === `-${key}` ? "" : key });
}));
find.addEventListener("input", () => change({ find: find.value }));
lossless.addEventListener("input", () => change({ lossless: lossless.checked ? "1" : "" }));
facets.forEach((name) => boxes(name).forEach((box) => box.addEventListener("input", () => change({ [name]: chosenFacet(name) }))));
boxes("pair").forEach((box) => box.addEventListener("input", () => choose(box)));
byId("reset").addEventListener("click", () => change({ find: "", lossless: "", sort: "", model: null, runtime: null, target: null }));
byId("compare-now").addEventListener("click", () => change({ view: "compare", arm: "" }, true));
byId("compare-none").addEventListener("click", () => change({ pair: null }));
document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
