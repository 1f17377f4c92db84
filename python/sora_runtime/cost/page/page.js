// Draws every answer anew from the state.

/** The estimate on every GPU; a stated price is the chosen GPU's alone. */
function onEveryGpu(settings, chosen) {
  const all = [];
  for (const id of Object.keys(DATA.gpus)) {
    const price = typeof settings.price === "string" ? settings.price : null;
    try {
      all.push(id === chosen.gpu.id ? { ...chosen, chosen: true } : estimate({ ...settings, gpu: id, price }, false));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error; // a GPU that is not to be had at that commitment
    }
  }
  return all;
}

/** Hosted models' prices at the tier nearest to the clip's size. */
function apiPrices({ shape }) {
  const side = Math.min(shape.width, shape.height);
  const distance = (price) => (price.pixels === null ? 0 : Math.abs(Math.log(price.pixels / side)));
  const nearest = new Map();
  for (const price of DATA.api_prices.filter((each) => each.task === (shape.image ? "i2v" : "t2v"))) {
    const key = [price.provider, price.model, price.audio].join("|");
    if (!nearest.has(key) || distance(price) < distance(nearest.get(key))) nearest.set(key, price);
  }
  return [...nearest.values()].sort((a, b) => a.usd_per_second - b.usd_per_second);
}

/** One line for each price, whoever asks it. */
function apiLines(prices) {
  const lines = new Map();
  for (const price of prices) {
    const key = price.usd_per_second.toPrecision(2);
    const name = price.model.replace(/\/(text|image|reference)-to-video$/, "").replace(/^[^/]*\/(?=.{4})/, "");
    const from = `${price.provider}, ${price.tier || "any size"}, ${price.date}; ${price.source}`;
    const title = `${price.model}: $${printed(price.usd_per_second)} per second (${from})`;
    const line = lines.get(key) ?? { name, usd: price.usd_per_second, titles: [] };
    lines.set(key, { ...line, titles: [...line.titles, title] });
  }
  return [...lines.values()].map((line) => ({ ...line, title: line.titles.join("\n") }));
}

function showPlot(e, everywhere, hosted) {
  const priced = everywhere.filter((each) => each.money);
  const points = priced.map((each) => ({
    id: each.gpu.id,
    seconds: each.p50,
    usd: each.usd_per_second,
    fits: each.memory.fits,
    chosen: Boolean(each.chosen),
    title: `${each.gpu.title}: ${printed(each.p50)} s per clip, $${printed(each.usd_per_second)} per second; ${each.price.describe}${each.memory.offload && `; offload: ${each.memory.offload}`}`,
  }));
  const ends = [["p10", e.money10], ["p90", e.money90]];
  const band = e.money ? ends.map(([name, money]) => ({ seconds: e[name], usd: money.usd_per_second })) : [];
  const left = Object.keys(DATA.gpus).length - points.length;
  const price = typeof state.price === "string" ? state.price : "catalogue";
  find("plot-note").textContent = `${points.length} GPUs at their ${price} price${left ? ` (${left} without one are left out)` : ""}; down and to the left is better.`;
  const marks = ["orange: the chosen GPU, with its p10–p90 band", "hollow: does not fit", "line: no GPU is faster and cheaper"];
  find("plot-key").replaceChildren(...[...marks, "dashed: hosted models", "a click chooses a GPU"].map((mark) => make("li", {}, mark)));
  drawPlot(find("plot"), { points, band, lines: apiLines(hosted), onChoose: (id) => set("gpu", id) });
}

function showAnswer(e) {
  const { money } = e;
  find("usd-per-second").textContent = money ? dollars(e.usd_per_second) : "no price";
  find("usd-band").textContent = money
    ? `p10–p90: ${dollars(e.money10.usd_per_second)} to ${dollars(e.money90.usd_per_second)}; ${e.model.title} on ${e.ask.gpu_count} x ${e.gpu.title}`
    : "";
  find("facts").replaceChildren(
    ...factsOf(e).map(([name, value, detail]) => make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, detail || "")))),
  );
  const notes = notesOf(e);
  find("memory-note").hidden = !notes;
  find("memory-note").textContent = notes;
  drawBar(find("time-bar"), timeItems(e), (value) => `${printed(value)} s`);
  if (money) drawBar(find("money-bar"), Object.entries(money.items), dollars);
  else find("money-bar").replaceChildren("no price");
}

/** Computes and draws everything from the state. */
function render() {
  const settings = settingsOf(state);
  let refusal = "";
  try {
    last = estimate(settings);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refusal = error.message;
  }
  find("refusal").hidden = !refusal;
  find("refusal").textContent = refusal;
  for (const section of document.querySelectorAll("#results > section")) section.classList.toggle("stale", Boolean(refusal));
  for (const { refresh } of inputs.values()) refresh();
  writeAddress();
  if (refusal) return;
  showAnswer(last);
  const everywhere = onEveryGpu(settings, last);
  const hosted = apiPrices(last);
  showPlot(last, everywhere, hosted);
  find("gpu-table").replaceChildren(gpuTable([...everywhere].sort((a, b) => (a.usd_per_second ?? Infinity) - (b.usd_per_second ?? Infinity))));
  find("api-table").replaceChildren(apiTable(hosted, last.usd_per_second));
  find("assumption-table").replaceChildren(assumptionTable(last));
}

find("about").textContent = `The estimates of sora-bench ${DATA.version}, with prices as known on ${DATA.today}. This page needs no network.`;
state = readAddress();
buildControls();
addEventListener("hashchange", () => {
  state = readAddress();
  render();
});
addEventListener("resize", () => last && render());
render();
