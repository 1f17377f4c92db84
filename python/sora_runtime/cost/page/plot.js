// The plot of all GPUs: seconds per clip against dollars per generated second, with hosted models as lines.

const NAMESPACE = "http://www.w3.org/2000/svg";

function draw(parent, tag, attributes, text = "") {
  const node = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  parent.append(node);
  return node;
}

/** Four significant digits, as the command line prints them. */
function printed(value) {
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 12 });
}

/** A time in the unit that people would use. */
function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const [name, length] = units.find(([, length]) => seconds >= length) ?? ["s", 1];
  return `${Number((seconds / length).toPrecision(3))} ${name}`;
}

const TIME_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200]
  .concat([18000, 36000, 86400, 172800, 432000, 864000, 1728000, 4320000]);

/** Values of 1, 2 and 5 times a power of ten. */
function decimalTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of [1, 2, 5]) ticks.push(Number(`${digit}e${power}`));
  }
  return ticks;
}

/** A logarithmic axis over [low, high] on pixels from `start` to `end`. */
function logAxis(low, high, start, end) {
  const scale = (end - start) / (Math.log(high) - Math.log(low));
  const at = (value) => start + (Math.log(value) - Math.log(low)) * scale;
  const thin = (ticks, distance) => {
    const kept = [];
    for (const tick of ticks.filter((value) => value >= low && value <= high)) {
      if (!kept.length || Math.abs(at(tick) - at(kept.at(-1))) >= distance) kept.push(tick);
    }
    return kept;
  };
  return { at, thin };
}

function extent(values, margin) {
  return [Math.min(...values) / margin, Math.max(...values) * margin];
}

/** GPUs that no other beats in both time and money, from the fastest. */
function frontierOf(points) {
  const kept = [];
  for (const point of [...points].sort((a, b) => a.seconds - b.seconds)) {
    if (point.fits && (!kept.length || point.usd < kept.at(-1).usd)) kept.push(point);
  }
  return kept;
}

/** Draws the plot anew; `onChoose` gets the id of a GPU that is clicked. */
function drawPlot(parent, { points, band, lines, onChoose }) {
  const width = Math.max(parent.clientWidth, 280);
  const narrow = width < 560;
  const height = narrow ? 420 : 500;
  const edge = { left: 52, right: narrow ? 96 : 176, top: 26, bottom: 40 };
  parent.replaceChildren();
  const svg = draw(parent, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  svg.setAttribute("aria-label", "Time per clip and dollars per generated second of each GPU; the tables below hold the same");
  const [left, right, top, bottom] = [edge.left, width - edge.right, edge.top, height - edge.bottom];
  const x = logAxis(...extent([...points.map((p) => p.seconds), ...band.map((b) => b.seconds)], 1.25), left, right);
  const dollars = [...points.map((p) => p.usd), ...band.map((b) => b.usd), ...lines.map((l) => l.usd)];
  const range = extent(dollars, 1.15);
  const y = logAxis(...range, bottom, top);
  drawAxes(svg, x, y, { left, right, top, bottom }, decimalTicks(...range));
  drawLines(svg, lines, y, { left, right, width, characters: narrow ? 14 : 26 });
  const frontier = frontierOf(points);
  const path = frontier.map((p) => `${x.at(p.seconds)},${y.at(p.usd)}`).join(" ");
  if (frontier.length > 1) draw(svg, "polyline", { points: path, class: "frontier" });
  const bars = [];
  if (band.length === 2) {
    const chosen = points.find((point) => point.chosen);
    const [cx, cy] = [x.at(chosen.seconds), y.at(chosen.usd)];
    const [a, b] = band.map((each) => [x.at(each.seconds), y.at(each.usd)]);
    draw(svg, "line", { x1: a[0], y1: cy, x2: b[0], y2: cy, class: "band" });
    draw(svg, "line", { x1: cx, y1: a[1], x2: cx, y2: b[1], class: "band" });
    bars.push([a[0], cy - 2, b[0], cy + 2], [cx - 2, b[1], cx + 2, a[1]]);
  }
  const rank = (point) => (point.chosen ? 0 : frontier.includes(point) ? 1 : 2);
  const ordered = [...points].sort((a, b) => rank(a) - rank(b) || a.usd - b.usd);
  drawPoints(svg, ordered, x, y, { left, right, top, bottom }, bars, onChoose);
}

function drawAxes(svg, x, y, { left, right, top, bottom }, moneyTicks) {
  for (const tick of x.thin(TIME_TICKS, 48)) {
    draw(svg, "line", { x1: x.at(tick), x2: x.at(tick), y1: top, y2: bottom, class: "grid" });
    draw(svg, "text", { x: x.at(tick), y: bottom + 15, "text-anchor": "middle", class: "axis" }, duration(tick));
  }
  for (const tick of y.thin(moneyTicks, 22)) {
    draw(svg, "line", { x1: left, x2: right, y1: y.at(tick), y2: y.at(tick), class: "grid" });
    draw(svg, "text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end", class: "axis" }, `$${tick}`);
  }
  const middle = (left + right) / 2;
  draw(svg, "text", { x: 4, y: top - 8, class: "axis" }, "$ per generated second (log)");
  draw(svg, "text", { x: middle, y: bottom + 33, "text-anchor": "middle", class: "axis" }, "time per clip (log)");
}

/** Hosted models; the margin names as many as it has room for. */
function drawLines(svg, lines, y, { left, right, width, characters }) {
  let free = Infinity;
  for (const line of [...lines].sort((a, b) => a.usd - b.usd)) {
    const at = y.at(line.usd);
    const group = draw(svg, "g", {});
    draw(group, "title", {}, line.title);
    draw(group, "line", { x1: left, x2: right, y1: at, y2: at, class: "api" });
    draw(group, "line", { x1: left, x2: width, y1: at, y2: at, class: "api-hit" });
    if (at > free - 12) continue;
    free = at;
    const name = line.name.length > characters ? `${line.name.slice(0, characters - 1)}…` : line.name;
    draw(group, "text", { x: right + 4, y: at + 4, class: "api-label" }, name);
  }
}

/** Points from the most important; a label that would cover something is left to the pointer. */
function drawPoints(svg, points, x, y, { left, right, top, bottom }, bars, onChoose) {
  const boxes = points.map((p) => [x.at(p.seconds) - 5, y.at(p.usd) - 5, x.at(p.seconds) + 5, y.at(p.usd) + 5]);
  const taken = [...boxes, ...bars];
  const isFree = (box) =>
    box[0] >= left && box[2] <= right && box[1] >= top && box[3] <= bottom &&
    !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
  const groups = [];
  for (const point of points) {
    const [cx, cy] = [x.at(point.seconds), y.at(point.usd)];
    const names = ["gpu", point.chosen ? "chosen" : "", point.fits ? "" : "unfit"].filter(Boolean).join(" ");
    const group = draw(svg, "g", { class: names });
    groups.push(group);
    draw(group, "title", {}, point.title);
    draw(group, "circle", { cx, cy, r: point.chosen ? 6 : 4 });
    draw(group, "circle", { cx, cy, r: 11, style: "fill: transparent; stroke: none" });
    group.addEventListener("click", () => onChoose(point.id));
    const length = point.id.length * (point.chosen ? 7.1 : 6.6);
    const places = [[8, 4], [-8 - length, 4], [-length / 2, -9], [-length / 2, 17], [8, -7], [8, 15], [-8 - length, -7], [-8 - length, 15]];
    const spot = places.find(([dx, dy]) => isFree([cx + dx - 2, cy + dy - 10, cx + dx + length + 2, cy + dy + 2]));
    if (!spot && !point.chosen) continue;
    const [dx, dy] = spot ?? places[cx > (left + right) / 2 ? 1 : 0];
    taken.push([cx + dx, cy + dy - 10, cx + dx + length, cy + dy + 2]);
    draw(group, "text", { x: cx + dx, y: cy + dy }, point.id);
  }
  svg.append(groups[0]); // the chosen one lies on top
}
