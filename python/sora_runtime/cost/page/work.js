// The work of a clip: shapes from pixels and frames, and each network's FLOPs and bytes over them.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const CONSTANTS = DATA.constants;

/** A request that is not a clip, a model, a GPU or a price: one sentence with what, the value and the remedy. */
class Refusal extends Error {}

/** The value of `table[name]`, or a refusal that lists what there is. */
function known(table, name, what) {
  if (Object.hasOwn(table, name)) return table[name];
  throw new Refusal(`${what} = '${name}' is not known; use one of ${Object.keys(table).join(", ")}`);
}

/** A number as C's %g writes it. */
function general(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const [digits, exponent] = value.toExponential(5).split("e").map(Number);
  if (value === 0 || (exponent >= -4 && exponent < 6)) return String(Number(value.toPrecision(6)));
  return `${digits}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

/** To the nearest whole number, halves to the even one. */
function roundHalfEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

function checkWhole(name, value) {
  if (Number.isInteger(value)) return;
  throw new Refusal(`${name} = ${general(value)} is not a whole number; use ${Math.max(Math.round(value) || 1, 1)}`);
}

function checkShape(shape) {
  for (const name of ["width", "height", "frames", "steps"]) {
    checkWhole(name, shape[name]);
    if (!(shape[name] >= 1 && shape[name] <= DATA.limits[name])) {
      throw new Refusal(`${name} = ${shape[name]} is out of range; use 1 to ${DATA.limits[name]}`);
    }
  }
}

function checkMultiple(name, value, step) {
  if (value > 0 && value % step === 0) return;
  const below = Math.floor(value / step) * step;
  const nearest = below > 0 ? `${below} or ${below + step}` : `${step}`;
  throw new Refusal(`${name} = ${value} is not a positive multiple of ${step}; use ${nearest}`);
}

function checkFrames(frames, stride) {
  if (frames >= 1 && (frames - 1) % stride === 0) return;
  const below = Math.floor((frames - 1) / stride) * stride + 1;
  const nearest = below > 0 ? `${below} or ${below + stride}` : "1";
  throw new Refusal(`num_frames = ${frames} is not ${stride}k+1; use ${nearest}`);
}

/** Latent frames, rows and columns and the tokens of one evaluation. */
function geometryOf(model, width, height, frames) {
  const [patchFrames, patchRows, patchColumns] = model.patch_size;
  const stride = model.spatial_stride;
  if (model.pad_size) {
    width = Math.ceil(width / (stride * patchColumns)) * stride * patchColumns;
    height = Math.ceil(height / (stride * patchRows)) * stride * patchRows;
  }
  let whole = frames;
  if (model.chunk !== null) {
    const [headFrames, headLatents] = model.chunk_head;
    const chunks = Math.ceil(Math.max(frames - headFrames, 0) / model.chunk[0]);
    whole = (headLatents + chunks * model.chunk[1] - 1) * model.temporal_stride + 1;
  }
  checkMultiple("height", height, stride * patchRows);
  checkMultiple("width", width, stride * patchColumns);
  checkFrames(whole, model.temporal_stride);
  let latentFrames = Math.floor((whole - 1) / model.temporal_stride) + 1;
  const excess = latentFrames % patchFrames;
  if (excess && model.pad_latent_frames) latentFrames += patchFrames - excess;
  else if (excess) {
    const latents = `gives ${latentFrames} latent frames, which is not a multiple of the patch of ${patchFrames}`;
    throw new Refusal(`num_frames = ${whole} ${latents}; use another length`);
  }
  const rows = Math.floor(height / stride);
  const columns = Math.floor(width / stride);
  const tokens = (latentFrames / patchFrames) * Math.floor(rows / patchRows) * Math.floor(columns / patchColumns);
  return { width, height, frames, rows, columns, latentFrames, tokens };
}

/** The product of the sizes at these places of `constants.sizes`. */
function product(sizes, of) {
  return of.reduce((value, place) => value * sizes[place], 1);
}

/** A network's work over given sizes by operator class; `repeated` and `peak` are of a tiled decode. */
function loadOf(work, sizes, repeated = 1, peak = 1) {
  const flops = {};
  const elements = {};
  for (const name of CONSTANTS.operators) flops[name] = elements[name] = 0;
  for (const [operator, flopsEach, elementsEach, of] of work.terms) {
    const name = CONSTANTS.operators[operator];
    const units = product(sizes, of);
    flops[name] += flopsEach * units;
    elements[name] += elementsEach * units;
  }
  for (const name of CONSTANTS.operators) {
    flops[name] *= repeated;
    elements[name] *= repeated;
  }
  const alive = work.peak.reduce((total, [each, of]) => total + each * product(sizes, of), 0);
  const { parameters, read, layers } = work;
  return { flops, elements, peakElements: alive * peak, parameters, read, layers };
}

/** What runs in a clip and how often. */
function clipOf(model, shape) {
  checkShape(shape);
  const geometry = geometryOf(model, shape.width, shape.height, shape.frames);
  const sizes = [geometry.tokens, geometry.rows * geometry.columns, geometry.latentFrames];
  const load = (index, over, ...tiling) => loadOf(DATA.works[index], over, ...tiling);
  const picture = model.encodes_whole_clip ? sizes : [sizes[0], sizes[1], 1];
  const clip = {
    tokens: geometry.tokens,
    transformer: load(model.transformer, sizes),
    steps: shape.steps,
    passes: shape.guided ? model.defaults.evaluations : 1,
    decoder: model.decoder === null ? null : load(model.decoder, sizes, ...model.tiling),
    encoder: model.encoder === null || !shape.image ? null : load(model.encoder, picture),
    conditioners: model.conditioners
      .filter(([of]) => of === "text" || shape.image)
      .map(([, index]) => load(index, sizes)),
    prompts: shape.guided ? 2 : 1,
    width: model.width,
    head: model.head,
  };
  return { geometry, clip };
}
