"use strict";
(() => {
  const table = document.getElementById("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });

  // Rows without a number come last in both directions.
  function compare(a, b) {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
  }

  function sort(index) {
    const head = heads[index], down = head.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
    const keyed = [...body.rows].map((row) => [row.cells[index]?.dataset.v, row]);
    keyed.sort(([a], [b]) => (a === undefined || b === undefined ? (a === undefined) - (b === undefined) : sign * compare(a, b)));
    body.append(...keyed.map(([, row]) => row));
    heads.forEach((h) => h.setAttribute("aria-sort", h === head ? (down ? "descending" : "ascending") : "none"));
  }
  heads.forEach((head, index) => head.firstElementChild.addEventListener("click", () => sort(index)));

  const find = document.getElementById("find"), lossless = document.getElementById("lossless"), shown = document.getElementById("shown");
  const runtimes = [...document.querySelectorAll("input[name=runtime]")];
  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean), open = new Set(runtimes.filter((r) => r.checked).map((r) => r.value));
    let count = 0;
    for (const row of body.rows) {
      const text = row.dataset.find.toLowerCase();
      row.hidden = !open.has(row.dataset.runtime) || (lossless.checked && row.dataset.lossless !== "1") || !words.every((w) => text.includes(w));
      count += !row.hidden;
    }
    shown.textContent = count === body.rows.length ? `${count} arms` : `${count} of ${body.rows.length} arms`;
  }
  [find, lossless, ...runtimes].forEach((input) => input.addEventListener("input", filter));
  document.querySelector("form.tools").addEventListener("submit", (event) => event.preventDefault());
  filter(); // a reload keeps what was typed

  function reveal() {
    const arm = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (arm instanceof HTMLDetailsElement) {
      arm.open = true;
      arm.scrollIntoView();
    }
  }
  addEventListener("hashchange", reveal);
  reveal();

  const anchors = new Map([...body.rows].map((row) => [row.dataset.id, row.querySelector("th a").hash]));
  const data = document.getElementById("specifications"), specifications = data ? JSON.parse(data.textContent) : [];
  async function draw(place) {
    const options = { ast: true, renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true } };
    const { view } = await vegaEmbed(place, specifications[Number(place.dataset.spec)], options);
    view.addEventListener("click", (event, item) => {
      const hash = item?.datum?.id && anchors.get(item.datum.id);
      if (hash) location.hash === hash ? reveal() : (location.hash = hash);
    });
  }
  const drawn = [...document.querySelectorAll(".view")].map((place) => draw(place).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    throw error;
  }));
  Promise.all(drawn).then(() => document.documentElement.setAttribute("data-charts", drawn.length));
})();
