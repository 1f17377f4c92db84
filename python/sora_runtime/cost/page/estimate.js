// One estimate: settings in the words of the command line, the band of its time, memory, money and energy.

/** The attention kernel, precision, parallelism and the rest that decide the rates. */
function settingOf(ask, model, gpu, shape) {
  const engine = known(DATA.engines, ask.engine, "engine");
  for (const [name, all] of [["precision", DATA.precisions], ["attention", DATA.attentions]]) {
    if (ask[name] !== null && !all.includes(ask[name])) {
      throw new Refusal(`${name} = '${ask[name]}' is not known; use one of ${all.join(", ")}`);
    }
  }
  const usual = DATA.kernels[model.kernels][ask.engine][gpu.architecture];
  const share = ask.step_reuse ?? 0;
  if (!(share >= 0 && share < 1)) {
    throw new Refusal(
      `step_reuse = ${general(share)} is out of range; use 0 to below 1, the share of steps reused`,
    );
  }
  const halved = shape.guided && engine.current && ask.gpu_count % 2 === 0;
  const cfg = halved ? 2 : 1; // the two evaluations of guidance share nothing: split there first
  return {
    engine: ask.engine,
    compiled: ask.compiled ?? engine.compiled,
    attention: ask.attention ?? usual,
    attentionStated: ask.attention !== null,
    attentionMethod: model.attention_method,
    attentionDensity: model.attention_density,
    precision: ask.precision,
    reuseShare: share,
    parallelism: { cfg, ulysses: ask.gpu_count / cfg },
    offload: "",
  };
}

/** Frames nearest to a length that the model can make. */
function framesOf(seconds, fps, model) {
  if (!(Number.isFinite(seconds) && seconds > 0 && seconds <= 36000)) {
    throw new Refusal(`seconds = ${general(seconds)} is out of range; use more than 0 and at most 36000`);
  }
  const step = model.temporal_stride;
  return Math.max(roundHalfEven((seconds * fps - 1) / step), 0) * step + 1;
}

function shapeOf(ask, model) {
  const { defaults } = model;
  const fps = ask.fps ?? defaults.fps;
  if (!(Number.isFinite(fps) && fps > 0 && fps <= 1000)) {
    throw new Refusal(`fps = ${general(fps)} is out of range; use more than 0 and at most 1000`);
  }
  if (ask.seconds !== null && ask.num_frames !== null) {
    throw new Refusal("frames and seconds were both given; give one of them");
  }
  const scale = ask.guidance_scale;
  if (scale !== null && !(Number.isFinite(scale) && scale >= 0)) {
    throw new Refusal(`guidance_scale = ${general(scale)} is not 0 or more; use 1 for no guidance`);
  }
  const shape = {
    width: ask.width ?? defaults.width,
    height: ask.height ?? defaults.height,
    frames: ask.seconds === null ? (ask.num_frames ?? defaults.frames) : framesOf(ask.seconds, fps, model),
    steps: ask.num_inference_steps ?? defaults.steps,
    guided: defaults.guided && (scale === null || scale > 1),
    image: ask.image || (model.tasks.length === 1 && model.tasks[0] === "i2v"),
  };
  return { shape, fps };
}

/** What of a clip lies on a GPU, and the mildest offload with which it fits. */
function memoryOf(clip, gpu, setting) {
  const bytes = CONSTANTS.bf16_bytes;
  const each = CONSTANTS.weight_bytes[setting.precision];
  const transformer = clip.transformer.parameters * each;
  const encoders = clip.conditioners.reduce((total, work) => total + work.parameters, 0) * bytes;
  const decoder = clip.decoder ? clip.decoder.parameters * bytes : 0;
  const running = (clip.transformer.peakElements * bytes) / setting.parallelism.ulysses;
  const decoding = clip.decoder ? clip.decoder.peakElements * bytes : 0;
  const resident = transformer + encoders + decoder + Math.max(running, decoding);
  const active = clip.transformer.read * each;
  const oneNetwork = Math.max(active + running, decoder + decoding, encoders);
  const layers = Math.max(clip.transformer.layers, 1);
  const blocks = Math.max((2 * active) / layers + running, decoder + decoding, encoders);
  const usable = gpu.memory_bytes * CONSTANTS.usable_memory;
  let [offload, peak] = ["", resident];
  if (resident > usable) [offload, peak] = oneNetwork <= usable ? ["model", oneNetwork] : ["block", blocks];
  return {
    weights: transformer + encoders + decoder,
    activations: Math.max(running, decoding),
    resident,
    peak,
    capacity: gpu.memory_bytes,
    offload,
    fits: peak <= usable,
  };
}

/** Seconds of the clip by part; parts vary from one installation to the next. */
function partSeconds(stages) {
  const parts = {};
  for (const [stage, seconds] of Object.entries(stages)) {
    for (const [name, value] of Object.entries(seconds)) {
      const own = stage === "denoise" || name === "offload";
      const part = own ? (Object.hasOwn(CONSTANTS.part_spread, name) ? name : "") : stage;
      parts[part] = (parts[part] || 0) + value;
    }
  }
  return parts;
}

/** Variance of the logarithm of a time from what the rates do not know, by their joint covariance. */
function rateVariance(gradient) {
  const lower = DATA.fit.covariance_lower;
  const covariance = (i, j) => (i >= j ? lower[(i * (i + 1)) / 2 + j] : lower[(j * (j + 1)) / 2 + i]);
  const inside = gradient.filter(([name]) => PLACE.has(name)).map(([name, slope]) => [PLACE.get(name), slope]);
  let total = 0;
  for (const [i, a] of inside) for (const [j, b] of inside) total += a * b * covariance(i, j);
  for (const [name, slope] of gradient) if (!PLACE.has(name)) total += (slope * priorOf(name)[1]) ** 2;
  return total;
}

/** The median of the clip's seconds, and with `band` how far it may be off. */
function predict(clip, gpu, setting, band) {
  const rates = new Rates();
  const now = () => {
    const stages = clipSeconds(clip, gpu, setting, rates);
    return { stages, parts: partSeconds(stages) };
  };
  const { stages, parts } = now();
  const seconds = sum(parts);
  if (!band) return { p10: seconds, p50: seconds, p90: seconds, stages };
  const gradient = [];
  rates.factor = 1 + CONSTANTS.step;
  for (const name of [...rates.asked]) {
    rates.changed = name;
    gradient.push([name, Math.log(sum(now().parts) / seconds) / Math.log1p(CONSTANTS.step)]);
  }
  let variance = rateVariance(gradient) + DATA.fit.source_spread ** 2 + DATA.fit.row_spread ** 2;
  const { cfg, ulysses } = setting.parallelism;
  variance += (CONSTANTS.split_spread * Math.log2(cfg * ulysses)) ** 2;
  for (const [part, value] of Object.entries(parts)) {
    if (part) variance += ((value / seconds) * CONSTANTS.part_spread[part]) ** 2;
  }
  if (!setting.attentionStated && ["hopper", "blackwell"].includes(gpu.architecture)) {
    variance += (CONSTANTS.attention_spread * Math.min((stages.denoise.attention || 0) / seconds, 1)) ** 2;
  }
  const factor = Math.exp(CONSTANTS.z90 * Math.sqrt(variance));
  return { p10: seconds / factor, p50: seconds, p90: seconds * factor, stages };
}

/** USD per GPU-hour and where it is from; null where the catalogue has none. */
function priceOf(gpu, wanted) {
  if (typeof wanted === "number") {
    if (!(Number.isFinite(wanted) && wanted > 0)) {
      throw new Refusal(`price = ${general(wanted)} is not above 0 USD an hour; use one such as 2.5`);
    }
    const describe = `${general(wanted)} USD per GPU-hour: as stated`;
    return { usd_per_hour: wanted, what: "as stated", describe, date: "", sources: [] };
  }
  const names = Object.keys(gpu.prices);
  if (!names.length) return null;
  if (wanted !== null && !names.includes(wanted)) {
    const which = `a price of ${gpu.id} in the catalogue; it has ${names.join(", ")}`;
    throw new Refusal(`price = '${wanted}' is neither a number of USD an hour nor ${which}`);
  }
  return gpu.prices[wanted ?? names[0]];
}

function assumptionsOf(overrides) {
  const values = {};
  for (const { name, value, low, high } of DATA.assumptions) {
    values[name] = overrides[name] ?? value;
    if (!(Number.isFinite(values[name]) && values[name] >= low && values[name] <= (high ?? Infinity))) {
      const upper = high === null ? " or more" : ` to ${general(high)}`;
      throw new Refusal(`${name} = ${general(values[name])} is out of range; use ${general(low)}${upper}`);
    }
  }
  return values;
}

/** The cost and energy of one kept clip that takes `wall` seconds on `gpus` rented GPUs. */
function costOfClip(wall, gpus, gpu, price, videoSeconds, a) {
  const gpuSeconds = wall * gpus;
  const attempts = 1 / ((1 - a.failed_share) * (1 - a.discarded_share));
  const start = ((a.cold_start_seconds * (gpuSeconds / wall)) / a.clips_per_start) * attempts;
  const busy = gpuSeconds * attempts + start;
  const idle = busy * (1 / a.utilisation - 1);
  const watts = busy * a.busy_power_share + idle * a.idle_power_share;
  const rate = price.usd_per_hour / 3600;
  const size = (a.clip_megabits * videoSeconds) / 8000;
  const compute = gpuSeconds * rate;
  const failed = (compute * a.failed_share) / (1 - a.failed_share);
  const items = {
    compute,
    failed,
    discarded: ((compute + failed) * a.discarded_share) / (1 - a.discarded_share),
    "cold start": start * rate,
    idle: idle * rate,
    storage: size * a.storage_months * a.storage_price,
    egress: size * a.downloads * a.egress_price,
  };
  const total = sum(items);
  return {
    usd_per_clip: total,
    usd_per_second: total / videoSeconds,
    usd_per_minute: (total / videoSeconds) * 60,
    items,
    wh: gpu.tdp_w === null ? null : (watts * gpu.tdp_w * (1 + a.host_power_share) * a.pue) / 3600,
  };
}

const ASK = {
  ...{ model: null, ...DATA.defaults, width: null, height: null, num_frames: null, seconds: null, fps: null },
  ...{ num_inference_steps: null, guidance_scale: null, image: false, attention: null, compiled: null },
  ...{ step_reuse: null, price: null, assumptions: {} },
};

/** What `sora-bench estimate` answers to the same settings; `band` false leaves p10 and p90 at the median. */
function estimate(settings, band = true) {
  const ask = { ...ASK, ...settings };
  const model = known(DATA.models, ask.model, "model");
  const gpu = { id: ask.gpu, ...known(DATA.gpus, ask.gpu, "gpu") };
  checkWhole("gpu count", ask.gpu_count);
  if (!(ask.gpu_count >= 1 && ask.gpu_count <= DATA.limits.gpus)) {
    throw new Refusal(`gpu count = ${ask.gpu_count} is out of range; use 1 to ${DATA.limits.gpus}`);
  }
  const { shape, fps } = shapeOf(ask, model);
  const { geometry, clip } = clipOf(model, shape);
  const setting = settingOf(ask, model, gpu, shape);
  const memory = memoryOf(clip, gpu, setting);
  setting.offload = memory.offload;
  const { p10, p50, p90, stages } = predict(clip, gpu, setting, band);
  const price = priceOf(gpu, ask.price);
  const assumptions = assumptionsOf(ask.assumptions);
  const videoSeconds = shape.frames / fps;
  const cost = (wall) => price && costOfClip(wall, ask.gpu_count, gpu, price, videoSeconds, assumptions);
  const limit = limitSeconds(clip, gpu, setting.precision, ask.gpu_count);
  const money = cost(p50);
  return {
    ...{ ask, model, gpu, shape, fps, geometry, clip, setting, memory, stages, price, assumptions, videoSeconds },
    ...{ p10, p50, p90, usd_per_clip: money && money.usd_per_clip, usd_per_second: money && money.usd_per_second },
    ...{ money, money10: cost(p10), money90: cost(p90), limit, limitMoney: cost(limit) },
  };
}

window.sora = { estimate, data: DATA, Refusal };
