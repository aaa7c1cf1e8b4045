"use strict";
// The charts of the chosen axis, each drawn when it is first shown.
const blocks = [...document.querySelectorAll(".chart")], radios = [...document.querySelectorAll("input[name=axis]")];
const drawn = new Set();

async function drawPanel(place, specification, { rows: own, rival }) {
  const datasets = { arms: own.map((row) => ({ ...data.facts[row.id], ...row })), rival };
  const options = { ast: true, renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true } };
  const { view } = await vegaEmbed(place, { ...specification, datasets }, options);
  place.firstElementChild.setAttribute("aria-hidden", "true"); // `place` has the name of the whole
  view.addEventListener("click", (event, item) => data.arms[item?.datum?.id] && change({ view: "arm", arm: item.datum.id }, true));
}

function drawBlock(block) {
  const { specification, panels } = data.charts[Number(block.dataset.chart)], places = [...block.querySelectorAll(".view")];
  return Promise.all(places.map((place, i) => drawPanel(place, specification, panels[i]).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    throw error;
  })));
}

async function showCharts(state) {
  const axis = radios.find((radio) => radio.value === state.axis) ?? radios[0];
  if (!axis) return;
  axis.checked = true;
  blocks.forEach((block) => (block.hidden = block.dataset.axis !== axis.value));
  const waiting = root.dataset.view === "overview" ? blocks.filter((block) => !block.hidden && !drawn.has(block)) : [];
  waiting.forEach((block) => drawn.add(block));
  await Promise.all(waiting.map(drawBlock));
  if (waiting.length) root.dataset.charts = drawn.size;
}

renderers.push(showCharts);
radios.forEach((radio) => radio.addEventListener("input", () => change({ axis: radio === radios[0] ? "" : radio.value })));
