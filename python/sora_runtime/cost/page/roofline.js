// How long a clip takes: for each operator class the larger of arithmetic and memory time, and what neither explains.

const FITTED = new Map(DATA.fit.names.map((name, place) => [name, Math.exp(DATA.fit.logs[place])]));
const PLACE = new Map(DATA.fit.names.map((name, place) => [name, place]));

/** [value, spread] that a parameter was believed to have before any clip was timed: its own or its family's. */
function priorOf(name) {
  const { priors } = DATA.fit;
  if (Object.hasOwn(priors, name)) return priors[name];
  const families = Object.keys(priors).filter((prefix) => prefix.endsWith(".") && name.startsWith(prefix));
  return priors[families.reduce((longest, prefix) => (prefix.length > longest.length ? prefix : longest), "")];
}

/** The achieved rates; notes which were asked for and may have one changed. */
class Rates {
  constructor() {
    this.asked = new Set();
    this.changed = "";
    this.factor = 1;
  }

  get(name) {
    this.asked.add(name);
    if (!FITTED.has(name)) FITTED.set(name, priorOf(name)[0]);
    const value = FITTED.get(name);
    return name === this.changed ? value * this.factor : value;
  }
}

const SHARPNESS = CONSTANTS.sharpness;

function softMin(a, b) {
  return (a ** -SHARPNESS + b ** -SHARPNESS) ** (-1 / SHARPNESS);
}

function softMax(a, b) {
  return (a ** SHARPNESS + b ** SHARPNESS) ** (1 / SHARPNESS);
}

function sum(values) {
  return Object.values(values).reduce((total, value) => total + value, 0);
}

function peakOf(gpu, precision) {
  return gpu.rates[precision] || gpu.rates.bf16;
}

function matrixRate(gpu, rates) {
  const peak = peakOf(gpu, "bf16") * rates.get("matrix") * rates.get("matrix." + gpu.architecture);
  const own = rates.get("gpu." + gpu.id);
  if (gpu.tdp_w === null) return peak / own;
  const share = (gpu.tdp_w / CONSTANTS.reference_w) ** CONSTANTS.power_exponent;
  const power = (CONSTANTS.reference_w / (rates.get("power." + gpu.architecture) * 1e-12)) * share;
  return softMin(peak, power) / own;
}

function linearGain(gpu, setting, rates) {
  const { precision } = setting;
  if (precision === "bf16" || precision === "fp16") return 1;
  if (precision.endsWith("-weights")) return rates.get("precision." + precision);
  const ratio = peakOf(gpu, precision) / peakOf(gpu, "bf16");
  const eager = setting.compiled || precision === "fp32" ? 1 : rates.get("quantise.eager");
  return Math.max(ratio * rates.get("precision." + precision), 0.1) * eager;
}

function attentionRate(gpu, setting, rates, head) {
  const kernel = setting.attention;
  const pair = rates.get(`attention.pair.${kernel}.${gpu.architecture}`);
  let rate = matrixRate(gpu, rates) * rates.get("attention." + kernel) * pair;
  if (head <= CONSTANTS.small_head) rate *= rates.get("attention.head64");
  if (setting.attentionMethod) {
    rate /= Math.min(setting.attentionDensity / rates.get("sparse." + setting.attentionMethod), 1);
  }
  return rate;
}

/** GPU seconds of one evaluation by class, `split` GPUs sharing it evenly. */
function evaluationSeconds(work, gpu, setting, rates, split = 1, head = 128) {
  const { flops, elements } = work;
  const bytes = CONSTANTS.bf16_bytes;
  const bandwidth = (gpu.bandwidth * rates.get("memory")) / rates.get("gpu." + gpu.id);
  const matrix = matrixRate(gpu, rates);
  const fusion = rates.get(setting.compiled ? "fusion.compiled" : "fusion.eager");
  const weights = work.read * CONSTANTS.weight_bytes[setting.precision];
  const engine = (rates.get("engine." + setting.engine) * rates.get("split") ** Math.log2(split)) / split;
  const busy = {
    linear: softMax(
      flops.linear / (matrix * linearGain(gpu, setting, rates)),
      (elements.linear * bytes + weights) / bandwidth,
    ),
    attention: softMax(
      flops.attention / attentionRate(gpu, setting, rates, head),
      (elements.attention * bytes) / bandwidth,
    ),
    elementwise: (elements.elementwise * bytes * fusion) / bandwidth,
  };
  if (flops.convolution) {
    const rate = matrix * rates.get("convolution") * rates.get("convolution." + gpu.architecture);
    busy.convolution = softMax(flops.convolution / rate, (elements.convolution * bytes) / bandwidth);
  }
  for (const name of Object.keys(busy)) busy[name] *= engine;
  const host = work.layers * rates.get(setting.compiled ? "overhead.compiled" : "overhead.eager");
  const total = sum(busy);
  busy.overhead = softMax(total, host) - total;
  return busy;
}

/** Seconds that the GPUs of one evaluation spend on all-to-alls; the page shares a clip by Ulysses and guidance. */
function communicationSeconds(clip, gpu, setting, rates) {
  const { ulysses } = setting.parallelism;
  if (ulysses === 1) return 0;
  const bandwidth = gpu.link_bandwidth * rates.get("link." + gpu.link);
  const activations = clip.tokens * clip.width * CONSTANTS.bf16_bytes;
  const volume = (((4 * activations) / ulysses) * (ulysses - 1)) / ulysses;
  return clip.transformer.layers * (volume / bandwidth + 4 * rates.get("collective"));
}

function denoiseSeconds(clip, gpu, setting, rates) {
  const { cfg, ulysses } = setting.parallelism;
  const one = evaluationSeconds(clip.transformer, gpu, setting, rates, ulysses, clip.head);
  one.communication = communicationSeconds(clip, gpu, setting, rates);
  const evaluations = clip.steps * Math.ceil(clip.passes / cfg) * (1 - setting.reuseShare);
  const seconds = {};
  for (const [name, value] of Object.entries(one)) seconds[name] = value * evaluations;
  if (setting.offload === "block") {
    const weights = clip.transformer.read * CONSTANTS.weight_bytes[setting.precision];
    const streaming = (weights / (rates.get("offload.block") * 1e9)) * clip.steps;
    const busy = sum(seconds);
    seconds.offload = softMax(busy, streaming) - busy;
  }
  return seconds;
}

/** The setting of encoders and VAE: bf16 and eager attention, whatever the transformer is. */
function plainSetting(setting) {
  const attention = setting.attention === "cpu" ? "cpu" : "fa2";
  const precision = setting.precision === "fp32" ? "fp32" : "bf16";
  return { ...setting, precision, attention, attentionMethod: "", attentionDensity: 1 };
}

function addSeconds(total, part, times) {
  for (const [name, value] of Object.entries(part)) total[name] = (total[name] || 0) + value * times;
}

/** Wall seconds of every stage by class; their sum is the clip. */
function clipSeconds(clip, gpu, setting, rates) {
  const plain = plainSetting(setting);
  const stages = { text_encode: {}, image_encode: {} };
  for (const work of clip.conditioners) {
    addSeconds(stages.text_encode, evaluationSeconds(work, gpu, plain, rates), clip.prompts);
  }
  if (clip.encoder) addSeconds(stages.image_encode, evaluationSeconds(clip.encoder, gpu, plain, rates), 1);
  stages.denoise = denoiseSeconds(clip, gpu, setting, rates);
  stages.vae_decode = {};
  if (clip.decoder) addSeconds(stages.vae_decode, evaluationSeconds(clip.decoder, gpu, plain, rates), 1);
  stages.clip = { overhead: rates.get("clip") * rates.get("clip." + setting.engine) };
  if (setting.offload === "model") {
    const weights = clip.conditioners.reduce((total, work) => total + work.parameters, 0) + clip.transformer.parameters;
    stages.clip.offload = (weights * CONSTANTS.bf16_bytes) / (rates.get("offload.model") * 1e9);
  }
  return stages;
}

/** The clip at the data sheet: each class of each stage at the larger of FLOPs / peak and bytes / bandwidth. */
function limitSeconds(clip, gpu, precision, gpus) {
  const runs = [
    ...clip.conditioners.map((work) => ["text_encode", work, clip.prompts]),
    ...(clip.encoder ? [["image_encode", clip.encoder, 1]] : []),
    ["denoise", clip.transformer, clip.steps * clip.passes],
    ...(clip.decoder ? [["vae_decode", clip.decoder, 1]] : []),
  ];
  const stages = new Map();
  for (const [stage, work, times] of runs) {
    if (!stages.has(stage)) stages.set(stage, { flops: {}, moved: {} });
    const { flops, moved } = stages.get(stage);
    for (const name of CONSTANTS.operators) {
      const weights = name === "linear" ? work.read : 0;
      flops[name] = (flops[name] || 0) + work.flops[name] * times;
      moved[name] = (moved[name] || 0) + (work.elements[name] + weights) * CONSTANTS.bf16_bytes * times;
    }
  }
  let total = 0;
  for (const [stage, { flops, moved }] of stages) {
    for (const name of ["linear", "attention", "convolution"]) {
      const own = stage === "denoise" && name === "linear" && !precision.endsWith("-weights") ? precision : "bf16";
      const memory = name === "convolution" ? 0 : moved[name] / gpu.bandwidth;
      total += Math.max(flops[name] / peakOf(gpu, own), memory);
    }
  }
  return total / gpus;
}
