// The controls, and the state that they and the page's address share.

const FIRST_MODEL = Object.hasOwn(DATA.models, "wan2.1-t2v-14b") ? "wan2.1-t2v-14b" : Object.keys(DATA.models)[0];
const find = (id) => document.getElementById(id);

/** What the user set, by name; what is missing is the model's or the command's default. */
let state = {};
let last = null; // the latest estimate that was not refused
const inputs = new Map(); // name -> {refresh}

const SIZES = [["480p", 832, 480], ["720p", 1280, 720], ["1080p", 1920, 1080], ["720p upright", 720, 1280], ["square", 960, 960]];

const model = () => DATA.models[state.model ?? FIRST_MODEL];

/** The size nearest to a wanted one that the model can make. */
function roundedSize(width, height) {
  const { pad_size, spatial_stride, patch_size } = model();
  const near = (value, patch) => Math.max(Math.round(value / (spatial_stride * patch)), 1) * spatial_stride * patch;
  return pad_size ? [width, height] : [near(width, patch_size[2]), near(height, patch_size[1])];
}

function settingsOf(values) {
  const settings = { model: FIRST_MODEL, assumptions: {} };
  for (const [name, value] of Object.entries(values)) {
    if (DATA.assumptions.some((each) => each.name === name)) settings.assumptions[name] = value;
    else if (name === "guidance") settings.guidance_scale = value ? null : 1;
    else settings[name] = value;
  }
  return settings;
}

const WORDS = ["model", "gpu", "precision", "engine", "attention"];
const SWITCHES = ["image", "guidance", "compiled"];
const NUMBERS = ["gpu_count", "width", "height", "num_frames", "seconds", "fps", "num_inference_steps", "step_reuse"]
  .concat(DATA.assumptions.map((each) => each.name));

/** The state of an address; what it does not know is left out. */
function readAddress() {
  const read = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const number = text.trim() === "" ? NaN : Number(text);
    if (WORDS.includes(name)) read[name] = text;
    else if (SWITCHES.includes(name)) read[name] = text === "true";
    else if (NUMBERS.includes(name) && !Number.isNaN(number)) read[name] = number;
    else if (name === "price") read.price = Number.isNaN(number) ? text : number;
  }
  return read;
}

function writeAddress() {
  const fragment = `#${new URLSearchParams(Object.entries(state))}`;
  history.replaceState(null, "", fragment);
  find("link").href = fragment;
}

/** Sets one value, or with null returns it to its default; what it decides beside itself follows. */
function set(name, value) {
  if (value === null) delete state[name];
  else state[name] = value;
  if (name === "num_frames") delete state.seconds;
  if (name === "seconds") delete state.num_frames;
  if (name === "gpu" && typeof state.price === "string") delete state.price;
  if (name === "model") {
    for (const own of ["num_frames", "fps", "num_inference_steps", "guidance", "image"]) delete state[own];
    const size = [state.width ?? model().defaults.width, state.height ?? model().defaults.height];
    if (state.width || state.height) [state.width, state.height] = roundedSize(...size);
  }
  render();
}

function row(name, label, control, hint = null) {
  const parts = [make("label", { for: name }, label), control];
  if (hint) parts.push(hint);
  return make("div", { class: "row" }, ...parts);
}

/** A list; `options` gives [value, text] pairs anew at each drawing, "" for the default. */
function choice(name, label, options, { read = () => state[name] ?? "", write = (value) => set(name, value || null) } = {}) {
  const select = make("select", { id: name });
  let drawn = "";
  const refresh = () => {
    const wanted = options();
    if (JSON.stringify(wanted) !== drawn) {
      drawn = JSON.stringify(wanted);
      select.replaceChildren(...wanted.map(([value, text]) => make("option", { value }, text)));
    }
    select.value = read();
  };
  select.addEventListener("change", () => write(select.value));
  inputs.set(name, { refresh });
  return row(name, label, select);
}

/** A number, with a slider where `range` gives [low, high]; `shown` is what an untouched one shows. */
function number(name, label, shown, { range = null, log = false, step = "any", hint = null } = {}) {
  const box = make("input", { id: name, type: "number", step, inputmode: "decimal" });
  box.addEventListener("input", () => set(name, box.value === "" ? null : Number(box.value)));
  const note = hint && make("span", { class: "hint" });
  const slider = range && make("input", { type: "range", min: 0, max: 1000, "aria-label": `${label}, slider` });
  const [low, high] = range ?? [0, 1];
  const toValue = (t) => (log ? low * (high / low) ** t : low + (high - low) * t);
  const toShare = (v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const rounded = (v) => (step === 1 ? Math.round(v) : Number(v.toPrecision(2)));
  if (slider) slider.addEventListener("input", () => set(name, rounded(toValue(slider.value / 1000))));
  const refresh = () => {
    const value = state[name] ?? shown();
    if (document.activeElement !== box) box.value = value === null || value === undefined ? "" : Number(value.toPrecision(6));
    if (slider && document.activeElement !== slider) slider.value = 1000 * Math.min(Math.max(toShare(value || low), 0), 1);
    if (note) note.textContent = hint();
  };
  box.addEventListener("blur", refresh);
  inputs.set(name, { refresh });
  return row(name, label, slider ? make("div", { class: "pair" }, slider, box) : box, note);
}

function tick(name, label, read, isOff = () => false) {
  const box = make("input", { id: name, type: "checkbox" });
  box.addEventListener("change", () => set(name, box.checked));
  const refresh = () => {
    box.checked = read();
    box.disabled = isOff();
  };
  inputs.set(name, { refresh });
  return row(name, label, box);
}

function group(title, ...rows) {
  return make("fieldset", {}, make("legend", {}, title), ...rows);
}

function sizeOptions() {
  const { width, height } = model().defaults;
  const named = SIZES.map(([name, ...size]) => [roundedSize(...size), name]);
  const all = [[[width, height], "as released"], ...named.filter(([[w, h]]) => w !== width || h !== height)];
  return [...all.map(([[w, h], name]) => [`${w}x${h}`, `${name}: ${w}x${h}`]), ["", "other"]];
}

function sizeChoice() {
  const { defaults } = DATA.models[FIRST_MODEL];
  const current = () => `${state.width ?? model().defaults.width ?? defaults.width}x${state.height ?? model().defaults.height}`;
  return choice("size", "size", sizeOptions, {
    read: () => (sizeOptions().some(([value]) => value === current()) ? current() : ""),
    write: (value) => {
      if (value) [state.width, state.height] = value.split("x").map(Number);
      render();
    },
  });
}

function priceOptions() {
  const { prices } = DATA.gpus[state.gpu ?? DATA.defaults.gpu];
  const all = Object.entries(prices).map(([name, { usd_per_hour, what }]) => [name, `${name}: $${printed(usd_per_hour)} (${what})`]);
  return [...all, ["", all.length ? "as stated below" : "no price known; state one"]];
}

function assumption(name) {
  const { value, unit } = DATA.assumptions.find((each) => each.name === name);
  const label = name.replaceAll("_", " ");
  const range = { utilisation: [0.05, 1], failed_share: [0, 0.5], discarded_share: [0, 0.9] }[name] ?? null;
  return number(name, label, () => value, { range, hint: () => unit });
}

function buildControls() {
  const usual = (text) => [["", text]];
  const same = (names) => names.map((name) => [name, name]);
  const shown = DATA.assumptions.filter((each) => each.shown).map((each) => each.name);
  const main = shown.slice(0, 5);
  const frames = () => state.num_frames ?? last?.shape.frames ?? null;
  const plain = (name) => ({ read: () => state[name] ?? DATA.defaults[name], write: (value) => set(name, value) });
  const firstPrice = () => Object.keys(DATA.gpus[state.gpu ?? DATA.defaults.gpu]?.prices ?? {})[0] ?? "";
  const choosePrice = {
    read: () => (typeof state.price === "number" ? "" : (state.price ?? firstPrice())),
    write: (value) => set("price", value || (last?.price?.usd_per_hour ?? 2)),
  };
  find("controls").append(
    group(
      "Model and hardware",
      choice("model", "model", () => Object.entries(DATA.models).map(([name, { title }]) => [name, title]), {
        read: () => state.model ?? FIRST_MODEL,
        write: (value) => set("model", value),
      }),
      choice("gpu", "GPU", () => Object.entries(DATA.gpus).map(([name, { title }]) => [name, title]), plain("gpu")),
      number("gpu_count", "GPUs per clip", () => DATA.defaults.gpu_count, { range: [1, 16], step: 1 }),
    ),
    group(
      "Clip",
      sizeChoice(),
      number("width", "width", () => model().defaults.width, { step: 1 }),
      number("height", "height", () => model().defaults.height, { step: 1 }),
      number("seconds", "seconds", () => last && last.videoSeconds, { range: [0.5, 60], log: true }),
      number("num_frames", "frames", frames, { step: 1 }),
      number("fps", "fps", () => model().defaults.fps),
      number("num_inference_steps", "steps", () => model().defaults.steps, { range: [1, 100], log: true, step: 1 }),
      tick("guidance", "guidance", () => model().defaults.guided && (state.guidance ?? true), () => !model().defaults.guided),
      tick("image", "from a picture", () => last?.shape.image ?? false, () => model().tasks.join() === "i2v"),
    ),
    group(
      "How it runs",
      choice("precision", "precision", () => same(DATA.precisions), plain("precision")),
      choice("engine", "engine", () => same(Object.keys(DATA.engines)), plain("engine")),
      choice("attention", "attention", () => [...usual("usual there"), ...same(DATA.attentions)]),
      choice("compiled", "compiled", () => [...usual("as the engine is"), ["true", "yes"], ["false", "no"]], {
        read: () => String(state.compiled ?? ""),
        write: (value) => set("compiled", value === "" ? null : value === "true"),
      }),
      number("step_reuse", "steps reused", () => 0, { range: [0, 0.9], hint: () => "share of steps that reuse an earlier one" }),
    ),
    group(
      "Money",
      choice("price_of", "price", priceOptions, choosePrice),
      number("price", "$ per GPU-hour", () => last?.price?.usd_per_hour ?? null, { range: [0.1, 20], log: true }),
      ...main.map(assumption),
      make("details", {}, make("summary", {}, "More assumptions"), ...shown.slice(5).map(assumption)),
    ),
    make("button", { type: "reset" }, "Back to the defaults"),
  );
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("controls").addEventListener("reset", (event) => {
    event.preventDefault();
    state = {};
    render();
  });
}
