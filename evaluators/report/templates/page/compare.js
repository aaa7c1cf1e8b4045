"use strict";
// Two arms side by side: every number of both, and the difference.
const sides = { left: byId("left"), right: byId("right") };
const SCALES = { bytes: [[1e6, " MB"], [1e3, " kB"]], ms: [[1, " ms"]], seconds: [[1, " s"]], percent: [[0.01, " points"]], times: [[1, "×"]] };

// Three significant digits, never in exponent form.
function digits(value) {
  const places = value === 0 ? 0 : Math.max(0, Math.min(20, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return Math.abs(value).toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

function difference(before, after, form) {
  const change = after - before;
  if (change === 0) return "equal";
  const scales = SCALES[form] ?? [[1, ""]], [unit, name] = scales.find(([size]) => Math.abs(change) >= 0.1 * size) ?? scales.at(-1);
  const ratio = form !== "p" && form !== "percent" && before > 0 && after > 0 ? `, ${(after / before).toFixed(2)}×` : "";
  return `${change > 0 ? "+" : "−"}${form === "count" ? Math.abs(change).toLocaleString("en") : digits(change / unit)}${name}${ratio}`;
}

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

function numberRow([name, form], one, other, arms) {
  if (!one && !other) return null;
  const row = element("tr");
  row.append(element("th", name, { scope: "row" }));
  [one, other].forEach((found, i) => row.append(element("td", found ? found[1] : "–", { class: "n", "data-label": arms[i].name })));
  row.append(element("td", one && other ? difference(one[0], other[0], form) : "–", { class: "n", "data-label": "Difference" }));
  return row;
}

function groupBody(heading, rows) {
  const head = element("tr"), body = element("tbody");
  head.append(element("th", heading, { colspan: 4, scope: "rowgroup", class: "group" }));
  body.append(head, ...rows);
  return body;
}

// `one` and `other` are the numbers of two arms, all groups' in a row.
function bodies(one, other, arms) {
  let at = 0;
  return data.groups.flatMap((group) => {
    const rows = group.numbers.map((number) => numberRow(number, one[at], other[at++], arms)).filter(Boolean);
    return rows.length ? [groupBody(group.title, rows)] : [];
  });
}

function comparison(ids, numbers) {
  const arms = ids.map((id) => data.arms[id]), made = element("table", "", { class: "plain pairs stack", id: "pairs" }), head = element("tr");
  head.append(element("th", "Number", { scope: "col" }), element("th", "", { scope: "col", class: "n" }), element("th", "", { scope: "col", class: "n" }));
  ids.forEach((id, i) => head.cells[i + 1].append(element("a", arms[i].name, { href: `#${new URLSearchParams({ view: "arm", arm: id })}` })));
  head.append(element("th", "Difference, second less first", { scope: "col", class: "n" }));
  made.append(element("caption", `${arms[0].name} and ${arms[1].name}: every number of both. Differences are between estimates; each arm is tested against float32 only.`));
  made.createTHead().append(head);
  made.append(...bodies(numbers[ids[0]], numbers[ids[1]], arms));
  return made;
}

function verdicts(...arms) {
  const made = element("div", "", { class: "sides-said" });
  made.append(...arms.map((arm) => element("p", arm.verdict, { class: "sub" })));
  return made;
}

async function showComparison({ view, pair }) {
  if (view !== "compare") return;
  const ids = Object.keys(data.arms), asked = (pair ?? []).filter((id) => data.arms[id]);
  const first = asked[0] ?? ids[0], second = asked[1] ?? ids.find((id) => id !== first) ?? first;
  if (!first) return byId("sides").replaceChildren("This report has no arms.");
  [sides.left.value, sides.right.value] = [first, second];
  const { numbers } = await details;
  byId("sides").replaceChildren(verdicts(data.arms[first], data.arms[second]), comparison([first, second], numbers));
  tell(`${data.arms[first].name} beside ${data.arms[second].name}`);
}

renderers.push(showComparison);
Object.values(sides).forEach((side) => {
  side.append(...Object.entries(data.arms).map(([id, arm]) => element("option", arm.full, { value: id })));
  side.addEventListener("change", () => change({ pair: [sides.left.value, sides.right.value] }));
});
byId("swap").addEventListener("click", () => change({ pair: [sides.right.value, sides.left.value] }));
