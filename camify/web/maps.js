// What a network's numbers mean: classes, probabilities, maps, heat, boxes, colors. Pure functions, as in camify's
// task.py, maps.py, normalizers.py, boxes.py and drawing/primitives.py; tests compare them with those.
//
// network: the content of camify-web.json.
// outputs: {logits: K numbers, maps: K*h*w numbers, objectMaps: the same or null, height: h, width: w}.

// ---------------------------------------------------------------- classes

/** The logits of the classes: of one logit z those of its class and of its absence, z and -z. */
export function classLogits(network, outputs) {
  const logits = Array.from(outputs.logits);
  if (network.task !== "binary") return logits;
  return network.positive === 1 ? [-logits[0], logits[0]] : [logits[0], -logits[0]];
}

export function probabilities(network, logits) {
  if (network.task !== "multiclass") return logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Class numbers, the predicted one first. */
export function ranked(network, logits) {
  const order = logits.map((_, index) => index);
  if (network.task === "binary" && network.positive === 0) return order; // it speaks for class 0, whatever its sign
  return order.sort((a, b) => logits[b] - logits[a] || a - b);
}

// ---------------------------------------------------------------- maps

/** The raw map (h*w) of a class: "plain", "contrast" or "object". */
export function classMap(network, outputs, index, kind) {
  const cells = outputs.height * outputs.width, count = outputs.logits.length;
  const binary = network.task === "binary", channel = binary ? 0 : index;
  const sign = binary && index !== network.positive ? -1 : 1;
  const map = new Float32Array(cells);
  for (let i = 0; i < cells; i++) map[i] = sign * outputs.maps[channel * cells + i];
  if (kind === "plain") return map;
  const mean = new Float32Array(cells); // what all classes share; nothing where they do not exclude each other
  if (network.task === "multiclass") {
    for (let k = 0; k < count; k++) for (let i = 0; i < cells; i++) mean[i] += outputs.maps[k * cells + i] / count;
  }
  for (let i = 0; i < cells; i++) {
    map[i] -= mean[i];
    if (kind === "object") map[i] += outputs.objectMaps[i] - (outputs.maps[i] - mean[i]);
  }
  return map;
}

/** The map that the box rule cuts: the mean with that of the mirrored picture, mirrored back, where it says so. */
export function mapToCut(map, mirroredMap, width) {
  if (!mirroredMap) return map;
  return map.map((value, i) => (value + mirroredMap[i - (i % width) + width - 1 - (i % width)]) / 2);
}

/** A map (h*w) at another size: bilinear with half-pixel centers. */
export function upsampled(map, height, width, newHeight, newWidth) {
  const rows = positions(height, newHeight), columns = positions(width, newWidth);
  const result = new Float32Array(newHeight * newWidth);
  for (let y = 0, i = 0; y < newHeight; y++) {
    const upper = rows.low[y] * width, lower = rows.high[y] * width, down = rows.share[y];
    for (let x = 0; x < newWidth; x++, i++) {
      const left = columns.low[x], right = columns.high[x], across = columns.share[x];
      const top = map[upper + left] + (map[upper + right] - map[upper + left]) * across;
      const bottom = map[lower + left] + (map[lower + right] - map[lower + left]) * across;
      result[i] = top + (bottom - top) * down;
    }
  }
  return result;
}

function positions(size, newSize) {
  const low = new Int32Array(newSize), high = new Int32Array(newSize), share = new Float32Array(newSize);
  for (let i = 0; i < newSize; i++) {
    const place = Math.max(0, ((i + 0.5) * size) / newSize - 0.5);
    low[i] = Math.min(Math.floor(place), size - 1);
    high[i] = Math.min(low[i] + 1, size - 1);
    share[i] = place - low[i];
  }
  return { low, high, share };
}

// ---------------------------------------------------------------- heat

function extremes(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function percentile(values, share) {
  const sorted = Float32Array.from(values).sort(); // a typed array sorts by number
  const place = ((sorted.length - 1) * share) / 100, low = Math.floor(place);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
}

/** A raw map of image size in [0, 1] by the rule's normalizer; a map that shows nothing gives zeros. */
export function normalized(map, rule) {
  let [low, high] = extremes(map);
  const rounding = 4 * 2 ** -23 * Math.max(Math.abs(low), Math.abs(high));
  const isConstant = !(high - low > rounding);
  if (rule.normalizer === "max") low = 0;
  if (rule.normalizer === "pas") {
    const cut = percentile(map, rule.percentile);
    if (cut > low) high = cut;
  }
  if (rule.normalizer === "ivr") low = percentile(map, rule.percentile);
  if (isConstant || !(high > low)) return new Float32Array(map.length);
  return map.map((value) => Math.min(1, Math.max(0, (value - low) / (high - low))));
}

/** The threshold that parts heat best, at 256 levels (Otsu 1979). */
export function otsuThreshold(heat) {
  const counts = new Float64Array(256);
  for (const value of heat) counts[Math.floor(value * 255 + 0.5)]++;
  const total = heat.length, sum = counts.reduce((sum, count, level) => sum + count * level, 0);
  let best = 0, largest = 0, below = 0, sumBelow = 0;
  for (let level = 0; level < 256; level++) {
    below += counts[level];
    sumBelow += counts[level] * level;
    if (!below || below === total) continue;
    const distance = sumBelow / below - (sum - sumBelow) / (total - below);
    const between = (below / total) * (total - below) * distance * distance;
    if (between > largest) [largest, best] = [between, level];
  }
  return (best + 0.5) / 255;
}

/** The pixels (0 or 1) of heat that reach the threshold; none of heat that is zero everywhere. */
export function cut(heat, threshold) {
  const [, high] = extremes(heat);
  return Uint8Array.from(heat, (value) => (high > 0 && value >= threshold ? 1 : 0));
}

// ---------------------------------------------------------------- boxes

const SMALLEST_SHARE = 0.01; // of the image's pixels, of a region beside the largest

/** Boxes [x0, y0, x1, y1], exclusive, of a mask's regions: the largest's, or with "all" those of 1 % and more. */
export function regionBoxes(mask, height, width, regions) {
  const found = components(mask, height, width);
  found.sort((a, b) => b.pixels - a.pixels || a.box[1] - b.box[1] || a.box[0] - b.box[0]);
  const least = regions === "all" ? SMALLEST_SHARE * height * width : Infinity;
  return found.filter((region, i) => i === 0 || region.pixels >= least).map((region) => region.box);
}

/** The 8-connected components of a mask: their boxes, and their pixels, those of their holes included. */
function components(mask, height, width) {
  const labels = new Int32Array(mask.length), stack = [], found = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    const label = found.length + 1;
    let x0 = width, y0 = height, x1 = 0, y1 = 0;
    labels[start] = label;
    stack.push(start);
    while (stack.length) {
      const at = stack.pop(), x = at % width, y = (at - x) / width;
      [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), Math.max(y1, y + 1)];
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const next = v * width + u;
          if (mask[next] && !labels[next]) {
            labels[next] = label;
            stack.push(next);
          }
        }
      }
    }
    found.push({ box: [x0, y0, x1, y1], label });
  }
  for (const region of found) region.pixels = filledPixels(labels, width, region);
  return found;
}

/** Pixels of a component and its holes: those of its box that nothing outside reaches but through it. */
function filledPixels(labels, width, { box: [x0, y0, x1, y1], label }) {
  const columns = x1 - x0 + 2, rows = y1 - y0 + 2; // with a margin around, from where the outside is filled
  const outside = new Uint8Array(columns * rows), stack = [0];
  outside[0] = 1;
  let count = 0;
  while (stack.length) {
    const at = stack.pop(), x = at % columns, y = (at - x) / columns;
    count++;
    for (const [u, v] of [[x - 1, y], [x + 1, y], [x, y - 1], [x, y + 1]]) {
      if (u < 0 || v < 0 || u >= columns || v >= rows || outside[v * columns + u]) continue;
      const inside = u > 0 && v > 0 && u <= x1 - x0 && v <= y1 - y0;
      if (inside && labels[(y0 + v - 1) * width + x0 + u - 1] === label) continue;
      outside[v * columns + u] = 1;
      stack.push(v * columns + u);
    }
  }
  return columns * rows - count;
}

/** What the rule makes of a raw map for a picture of some size: threshold, and boxes in its pixels. */
export function boxesOf(network, outputs, map, pictureHeight, pictureWidth, threshold = network.rule.threshold) {
  const [height, width] = network.input_size;
  const heat = normalized(upsampled(map, outputs.height, outputs.width, height, width), network.rule);
  const settled = threshold === "otsu" ? otsuThreshold(heat) : threshold;
  const across = pictureWidth / width, down = pictureHeight / height;
  const boxes = regionBoxes(cut(heat, settled), height, width, network.rule.regions);
  return { threshold: settled, boxes: boxes.map(([x0, y0, x1, y1]) => [x0 * across, y0 * down, x1 * across, y1 * down]) };
}

// ---------------------------------------------------------------- colors

const FLAT = 1 / 256; // of the scale: what one step of the colors cannot show

/** Heat of a raw map at a size in steps 0..255, full heat at the map's maximum, and a note where there is none. */
export function heatLevels(map, height, width, newHeight, newWidth) {
  const [low, high] = extremes(map), levels = new Uint8Array(newHeight * newWidth);
  if (!Number.isFinite(low + high)) return { levels, scale: 0, note: "The map is not finite." };
  if (!(high > 0)) return { levels, scale: 0, note: "No positive evidence." };
  if (high - low <= FLAT * high) return { levels, scale: high, note: "The map is the same everywhere." };
  const heat = upsampled(map, height, width, newHeight, newWidth);
  for (let i = 0; i < levels.length; i++) levels[i] = Math.round(Math.min(1, Math.max(0, heat[i] / high)) * 255);
  return { levels, scale: high, note: "" };
}

/** Lay heat over RGBA pixels, in place; tint: for each level the share of the picture, of its gray, and a color. */
export function applyTint(pixels, levels, tint) {
  const [picture, gray, ...colors] = tint;
  for (let i = 0; i < levels.length; i++) {
    const level = levels[i], at = 4 * i;
    const dimmed = gray[level] * ((pixels[at] * 19595 + pixels[at + 1] * 38470 + pixels[at + 2] * 7471 + 32768) >> 16);
    for (let channel = 0; channel < 3; channel++) {
      pixels[at + channel] = Math.floor(picture[level] * pixels[at + channel] + dimmed + colors[channel][level]);
    }
  }
}
