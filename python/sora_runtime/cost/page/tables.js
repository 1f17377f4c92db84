// What the page shows of an estimate beside the plot: facts, bars and tables with dates and sources.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fc0", "#7a8a3a", "#8c8c8c"];

const NEGLIGIBLE = 1e-6; // share of a bar that is not worth its entry

/** Seconds by what a reader can act on. */
function timeItems({ stages }) {
  const { denoise, clip } = stages;
  return [
    ["matrix products", denoise.linear],
    ["attention", denoise.attention],
    ["norms and activations", denoise.elementwise + (denoise.convolution || 0)],
    ["launch and host", denoise.overhead],
    ["communication", denoise.communication],
    ["offload", (denoise.offload || 0) + (clip.offload || 0)],
    ["text and image encoders", sum(stages.text_encode) + sum(stages.image_encode)],
    ["VAE decode", sum(stages.vae_decode)],
    ["beside the networks", clip.overhead],
  ];
}

/** A stacked bar and its key; `write` gives the text of an amount. */
function drawBar(parent, items, write) {
  const total = items.reduce((all, [, value]) => all + value, 0);
  const all = items.map(([name, value], place) => ({ name, value, colour: COLOURS[place] }));
  const shown = all.filter(({ value }) => value / total > NEGLIGIBLE);
  const percent = (value) => {
    const share = (value / total) * 100;
    return share < 0.1 ? "under 0.1%" : `${share.toFixed(share < 10 ? 1 : 0)}%`;
  };
  const text = ({ name, value }) => `${name}: ${write(value)}, ${percent(value)}`;
  const bar = make("div", { class: "bar", role: "img", "aria-label": shown.map(text).join("; ") });
  const key = make("ul", { class: "key" });
  for (const item of shown) {
    bar.append(make("span", { style: `flex: ${item.value / total} 1 0; background: ${item.colour}`, title: text(item) }));
    const mark = make("i", { style: `background: ${item.colour}` });
    key.append(make("li", {}, mark, `${item.name} `, make("b", {}, write(item.value)), ` ${percent(item.value)}`));
  }
  parent.replaceChildren(bar, key);
}

function dollars(value) {
  return `$${printed(value)}`;
}

function gigabytes(value) {
  return `${printed(value / 1e9)} GB`;
}

/** [name, value, detail] of the list under the headline. */
function factsOf(e) {
  const { p10, p50, p90, money, memory, clip, geometry, setting } = e;
  const share = ((e.limit / p50) * 100).toFixed(0);
  const several = e.ask.gpu_count > 1 ? `, on ${e.ask.gpu_count} GPUs` : "";
  const gpuHours = (p50 * e.ask.gpu_count) / 3600;
  return [
    ["Seconds per clip", `${printed(p50)} s`, `p10–p90: ${printed(p10)} to ${printed(p90)} s${several}`],
    ["Dollars per clip", money ? dollars(money.usd_per_clip) : "no price", money && `${dollars(e.money10.usd_per_clip)} to ${dollars(e.money90.usd_per_clip)}`],
    ["Dollars per minute", money ? dollars(money.usd_per_minute) : "no price", `GPU-hours per clip: ${printed(gpuHours)}`],
    ["Clip", `${e.shape.frames} frames, ${printed(e.videoSeconds)} s`, `${geometry.width}x${geometry.height} at ${general(e.fps)} fps`],
    ["Work", `${clip.tokens.toLocaleString("en-US")} tokens`, `${printed(clip.transformer.flops.linear / 1e15 + clip.transformer.flops.attention / 1e15)} PFLOP an evaluation, ${clip.steps * clip.passes} evaluations`],
    ["Memory on each GPU", gigabytes(memory.peak), `of ${gigabytes(memory.capacity)}; weights ${gigabytes(memory.weights)}`],
    ["At the data sheet's peak", `${printed(e.limit)} s`, `the estimate reaches ${share}% of that rate${e.limitMoney ? `; ${dollars(e.limitMoney.usd_per_second)} per second` : ""}`],
    ["Energy at the meter", money && money.wh !== null ? `${printed(money.wh)} Wh` : "not known", "per kept clip, with host and cooling"],
    ["Runs as", `${setting.engine}, ${setting.attention}`, `${setting.precision}${setting.compiled ? ", compiled" : ", eager"}${parallelText(setting)}`],
  ];
}

function parallelText({ parallelism }) {
  const { cfg, ulysses } = parallelism;
  return cfg * ulysses === 1 ? "" : `, cfg ${cfg} x ulysses ${ulysses}`;
}

/** Why the band is wide or the clip may not run; empty where there is nothing to say. */
function notesOf({ model, gpu, memory, price }) {
  const notes = [];
  if (!memory.fits) notes.push(`The clip does not fit: ${gigabytes(memory.peak)} are needed even when weights are streamed.`);
  else if (memory.offload) {
    const how = { model: "one network at a time", block: "the transformer streamed block by block" }[memory.offload];
    notes.push(`${gigabytes(memory.resident)} do not fit on the GPU, so weights are offloaded (${how}).`);
  }
  if (!price) notes.push(`The catalogue has no price of ${gpu.id}; state one.`);
  if (model.decoder === null) notes.push(`The VAE of ${model.title} is of a class whose work is not known, so its decode is left out.`);
  if (!gpu.verified) notes.push(`The data sheet of ${gpu.id} was not read again (${gpu.source}).`);
  return notes.join(" ");
}

/** A table; columns are [title, class, cell of a row]. */
function table(columns, rows, isChosen = () => false) {
  const head = make("tr", {}, ...columns.map(([title, kind]) => make("th", { class: kind, scope: "col" }, title)));
  const body = rows.map((row) =>
    make("tr", { class: isChosen(row) ? "chosen" : null }, ...columns.map(([, kind, cell]) => make("td", { class: kind }, ...[cell(row)].flat()))),
  );
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

const ADDRESS = /https?:\/\/[^\s;,]+/g;

/** Text whose addresses are links. */
function linked(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(ADDRESS)) {
    parts.push(text.slice(end, match.index), make("a", { href: match[0], rel: "noreferrer" }, match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

function gpuTable(estimates) {
  const price = (e, name) => (e.price ? e.price[name] : "");
  return table(
    [
      ["GPU", "", (e) => e.gpu.id],
      ["s per clip", "number", (e) => printed(e.p50)],
      ["$ per second", "number", (e) => (e.usd_per_second === null ? "" : printed(e.usd_per_second))],
      ["$ per GPU-hour", "number", (e) => (e.price ? printed(e.price.usd_per_hour) : "no price")],
      ["memory", "", (e) => (e.memory.fits ? e.memory.offload && `offload: ${e.memory.offload}` || "fits" : "does not fit")],
      ["price", "wide", (e) => price(e, "what")],
      ["date", "", (e) => price(e, "date")],
      ["source", "wide", (e) => linked(e.price ? e.price.sources.join("; ") : "")],
    ],
    estimates,
    (e) => e.chosen,
  );
}

function apiTable(prices, usd) {
  const sound = { true: "with", false: "without", null: "not said" };
  return table(
    [
      ["model", "wide", (p) => p.model],
      ["provider", "", (p) => p.provider],
      ["tier", "", (p) => p.tier || "any"],
      ["sound", "", (p) => sound[p.audio]],
      ["$ per second", "number", (p) => printed(p.usd_per_second)],
      ["times ours", "number", (p) => (usd === null ? "" : printed(p.usd_per_second / usd))],
      ["date", "", (p) => p.date],
      ["source", "wide", (p) => linked(p.note ? `${p.source} (${p.note})` : p.source)],
    ],
    prices,
  );
}

/** Everything that was taken for granted, with its origin. */
function assumptionTable(e) {
  const { model, gpu, setting, price, ask, assumptions } = e;
  const rows = [
    ["model", model.title, `${model.source}, ${model.date}${model.notes ? `; ${model.notes}` : ""}`],
    ["GPU data sheet", gpu.title, `${gpu.source}, ${gpu.date}`],
    ["price", price ? price.describe : "none", price && price.sources.length ? price.sources.join("; ") : "stated"],
    ["software", "as published in 2024 to 2026", `rates fitted to ${DATA.fit.about.rows} rows of ${DATA.fit.about.sources} sources`],
  ];
  if (ask.attention === null) rows.push(["attention", setting.attention, `what ${setting.engine} uses there for a model of ${model.released || "today"}`]);
  if (ask.gpu_count > 1) rows.push(["parallelism", parallelText(setting).slice(2), "usual for this engine"]);
  if (setting.offload) rows.push(["offload", setting.offload, `${gigabytes(e.memory.resident)} do not fit on the GPU`]);
  for (const { name, value, unit, origin, shown } of DATA.assumptions) {
    if (shown) rows.push([name.replaceAll("_", " "), `${general(assumptions[name])} ${unit}`, assumptions[name] === value ? origin : "stated"]);
  }
  return table([["what", "", (r) => r[0]], ["value", "", (r) => r[1]], ["origin", "wide", (r) => linked(r[2])]], rows);
}
