// The page: what the user gives goes to the network in its worker, and what it answers is drawn and written.
// Names of classes come from users: they are set as text, never as markup.

import { download } from "./downloads.js";
import {
  applyTint, boxesOf, classLogits, classMap, heatLevels, mapToCut, probabilities, ranked,
} from "./maps.js";
import { ask } from "./session.js";

const $ = (id) => document.getElementById(id);
const MOST_PIXELS = 4096 * 3072; // of a picture; a larger one is made smaller before it goes to the network
const CAMERA_SIDE = 640, SHOWN_SIDE = 1024; // longest sides, pixels
const LISTED = 10; // classes at once
const KINDS = {
  plain: ["Plain", "Evidence for the class."],
  contrast: ["Contrast", "Why this class and not the others: the map less the mean of all classes' maps."],
  object: ["Object", "Where the object is: the contrast map and what all classes share."],
};

let network; // the content of camify-web.json
let answer = null; // {outputs, ofMirrored, milliseconds, name} of the picture
let stream = null; // of the camera, while it runs
let source = document.createElement("canvas"); // the picture as the network has had it
let next = document.createElement("canvas"); // the picture that it has now
let turn = 0; // of the picture that it was given last
const chosen = { class: null, kind: "plain", threshold: null }; // null: the first class, the network's rule

// ---------------------------------------------------------------- texts

const percent = (share) => {
  if (share < 0.0005) return "< 0.1 %";
  return share > 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
};
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const seconds = (milliseconds) => (milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`);

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Say what went wrong; with "" what has to be said all the time. */
function showProblem(text) {
  const untrained = network?.untrained.join(", ");
  $("problem").textContent = text || (untrained ? `Never trained: ${untrained}. The answers mean nothing yet.` : "");
  $("problem").hidden = !$("problem").textContent;
}

// ---------------------------------------------------------------- start

async function start() {
  $("start").remove();
  $("loading").hidden = false;
  try {
    const response = await fetch("camify-web.json", { cache: "no-cache" });
    if (!response.ok) throw new Error(`camify-web.json: the server answers ${response.status}. Is the file beside this page?`);
    network = await response.json();
    describe();
    const { script, wasm, model } = network.files;
    const total = script.bytes + wasm.bytes + model.bytes;
    let loaded = 0;
    const advance = (bytes) => {
      loaded += bytes;
      $("progress").value = Math.min(1, loaded / total);
      $("progress-label").textContent = `Loading ${megabytes(loaded)} of ${megabytes(total)}`;
    };
    const files = await Promise.all([script, wasm, model].map((file) => download(file, advance)));
    $("progress-label").textContent = "Starting the network";
    const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency ?? 1) : 1;
    await ask("load", { script: files[0], wasm: files[1], model: files[2], threads }, files);
    $("choose").disabled = $("camera").disabled = false;
    document.documentElement.dataset.state = "ready";
  } catch (error) {
    showProblem(error.message);
    document.documentElement.dataset.state = "failed";
  } finally {
    $("loading").hidden = true;
  }
}

// ---------------------------------------------------------------- pictures

/** Give a picture (an image or a video) to the network; null where another one took its place meanwhile. */
async function answerTo(picture, width, height, name, most) {
  let [w, h] = [width, height];
  if (network.picture_size) [h, w] = network.picture_size;
  else if (w * h > most) {
    const factor = Math.sqrt(most / (w * h));
    [w, h] = [Math.max(1, Math.round(w * factor)), Math.max(1, Math.round(h * factor))];
  }
  const own = ++turn;
  [next.width, next.height] = [w, h];
  const context = next.getContext("2d", { willReadFrequently: true, alpha: false });
  context.fillStyle = "#fff"; // below what is transparent
  context.fillRect(0, 0, w, h);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, w, h);
  const { data } = context.getImageData(0, 0, w, h);
  const result = await ask("run", { pixels: data, width: w, height: h, mirrored: network.rule.flip }, [data.buffer]);
  if (own !== turn) return null;
  [source, next] = [next, source];
  return { ...result, name, width, height };
}

async function takeFile(file) {
  if (!file || $("choose").disabled) return;
  stopCamera();
  showProblem("");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }); // upright by its EXIF tag
  } catch {
    showProblem(`${file.name || "The picture"}: this browser cannot read it as an image. Give it as JPEG or PNG.`);
    return;
  }
  $("canvas").setAttribute("aria-busy", "true");
  try {
    const result = await answerTo(bitmap, bitmap.width, bitmap.height, file.name || "picture", MOST_PIXELS);
    if (!result) return;
    answer = result;
    const resized = source.width !== bitmap.width || source.height !== bitmap.height;
    $("picture-note").textContent = resized
      ? `The browser made the picture ${source.width} x ${source.height} pixels before the network got it.` : "";
    chosen.class = null;
    show();
    speak();
  } catch (error) {
    showProblem(error.message);
  } finally {
    bitmap.close();
    $("canvas").removeAttribute("aria-busy");
  }
}

// ---------------------------------------------------------------- camera

const CAMERA_PROBLEMS = {
  NotAllowedError: "The camera may not be used: allow it for this page in the browser's settings.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera cannot be used: another program has it.",
};

async function startCamera() {
  showProblem("");
  if (!navigator.mediaDevices) {
    showProblem("Browsers give the camera only to pages from https:// or from localhost. Serve this folder that way.");
    return;
  }
  $("camera").disabled = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: CAMERA_SIDE } } });
  } catch (error) {
    showProblem(CAMERA_PROBLEMS[error.name] ?? `The camera cannot be used (${error.name}).`);
    return;
  } finally {
    $("camera").disabled = false;
  }
  setCameraButton(true);
  $("picture-note").textContent = "";
  $("spoken").textContent = "The camera runs.";
  const video = document.createElement("video");
  [video.muted, video.playsInline, video.srcObject] = [true, true, stream];
  await follow(video, stream);
}

/** Answer to one frame after the other, as fast as the network is, until the camera stops. */
async function follow(video, own) {
  const times = []; // when the last frames were done
  try {
    await video.play();
    while (stream === own) {
      const result = await answerTo(video, video.videoWidth, video.videoHeight, "camera", CAMERA_SIDE * CAMERA_SIDE);
      if (!result || stream !== own) break;
      times.push(performance.now());
      if (times.length > 20) times.shift();
      const rate = times.length > 1 ? (1000 * (times.length - 1)) / (times.at(-1) - times[0]) : null;
      answer = { ...result, rate };
      show();
      await new Promise(requestAnimationFrame); // waits while the page is hidden
    }
  } catch (error) {
    if (stream === own) {
      stopCamera();
      showProblem(error.message);
    }
  }
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  setCameraButton(false);
  if (answer) speak();
}

function setCameraButton(running) {
  $("camera").setAttribute("aria-pressed", running);
  $("camera").textContent = running ? "Stop the camera" : "Use the camera";
}

// ---------------------------------------------------------------- what is shown

/** What follows from the answer and from what is chosen; pure. */
function settled() {
  const { outputs, ofMirrored, width, height } = answer;
  const logits = classLogits(network, outputs), shares = probabilities(network, logits), order = ranked(network, logits);
  const index = chosen.class ?? order[0];
  const map = classMap(network, outputs, index, chosen.kind);
  const mirrored = ofMirrored && classMap(network, ofMirrored, index, chosen.kind);
  const { threshold, boxes } = boxesOf(
    network, outputs, mapToCut(map, mirrored, outputs.width), height, width, chosen.threshold ?? network.rule.threshold,
  );
  return { logits, shares, order, index, map, threshold, boxes };
}

function show() {
  if (!answer) return;
  const now = settled();
  for (const id of ["answer", "result", "settings", "key", "canvas"]) $(id).hidden = false;
  $("empty").hidden = true;
  draw(now);
  listClasses(now);
  $("threshold").value = now.threshold;
  const isOwn = chosen.threshold === null;
  $("threshold-value").textContent = now.threshold.toFixed(2) + (isOwn && network.rule.threshold === "otsu" ? " (Otsu)" : "");
  $("rule").setAttribute("aria-pressed", isOwn);
  $("kind-note").textContent = KINDS[chosen.kind][1];
  $("figures").textContent = [
    `${answer.width} x ${answer.height} pixels`,
    `network ${seconds(answer.milliseconds)}`,
    ...(answer.rate ? [`${answer.rate.toFixed(1)} frames a second`] : []),
  ].join(" · ");
  if (document.querySelector("#result details").open) writeJson(now);
}

function draw(now) {
  const canvas = $("canvas"), factor = Math.min(1, SHOWN_SIDE / Math.max(answer.width, answer.height));
  const grown = Math.max(factor, Math.min(3, 480 / Math.max(answer.width, answer.height))); // small ones are enlarged
  const width = Math.max(1, Math.round(answer.width * grown)), height = Math.max(1, Math.round(answer.height * grown));
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  const { levels, scale, note } = heatLevels(now.map, answer.outputs.height, answer.outputs.width, height, width);
  if ($("heat").checked) {
    const pixels = context.getImageData(0, 0, width, height);
    applyTint(pixels.data, levels, network.tint);
    context.putImageData(pixels, 0, 0);
  }
  if ($("boxes").checked) {
    for (const box of now.boxes) outline(context, box.map((value, i) => value * (i % 2 ? height / answer.height : width / answer.width)));
  }
  $("scale").textContent = note || scale.toPrecision(3);
  const name = network.classes[now.index], box = now.boxes[0]?.map(Math.round);
  canvas.setAttribute("aria-label", `Map of ${name} over ${answer.name}. ${note} ` +
    (box ? `Box from ${box[0]}, ${box[1]} to ${box[2]}, ${box[3]} of ${answer.width} x ${answer.height} pixels.` : "No box."));
}

function outline(context, [x0, y0, x1, y1]) {
  for (const [inset, color, width] of [[0.5, "#10181c", 3], [1, "#fff", 1.5]]) {
    [context.strokeStyle, context.lineWidth] = [color, width];
    context.strokeRect(x0 + inset, y0 + inset, x1 - x0 - 2 * inset, y1 - y0 - 2 * inset);
  }
}

function listClasses({ shares, order, index }) {
  const wanted = $("search").value.trim().toLowerCase();
  const matches = wanted ? order.filter((i) => network.classes[i].toLowerCase().includes(wanted)) : order;
  const listed = matches.slice(0, LISTED);
  if (!wanted && !listed.includes(index)) listed.push(index);
  const rows = [...$("classes").children];
  while (rows.length > listed.length) rows.pop().remove();
  while (rows.length < listed.length) rows.push($("classes").appendChild(classRow()));
  listed.forEach((i, place) => { // rows stay, so that focus stays while the camera runs
    const button = rows[place].firstChild, [name, share, bar] = button.children;
    button.dataset.index = i;
    button.setAttribute("aria-pressed", i === index);
    [name.textContent, share.textContent] = [network.classes[i], percent(shares[i])];
    bar.firstChild.style.width = `${100 * shares[i]}%`;
  });
  const left = matches.length - listed.filter((i) => matches.includes(i)).length;
  $("more").textContent = wanted && !matches.length ? "No class has such a name."
    : left > 0 ? `and ${left.toLocaleString("en")} more` : "";
  $("follow").setAttribute("aria-pressed", chosen.class === null);
  $("follow").hidden = network.classes.length < 2;
}

function classRow() {
  const row = document.createElement("li"), button = element("button", "");
  button.type = "button";
  const bar = element("span", "", "bar");
  bar.append(element("span", ""));
  button.append(element("span", ""), element("span", "", "share"), bar);
  row.append(button);
  return row;
}

function speak() {
  const { shares, index, order } = settled();
  const first = `${network.classes[order[0]]}, ${percent(shares[order[0]])}.`;
  $("spoken").textContent = index === order[0] ? first : `${first} Map of ${network.classes[index]}.`;
}

function writeJson({ logits, shares, index, map, threshold, boxes }) {
  const { width: columns, height: rows } = answer.outputs;
  const values = (list, digits) => Array.from(list, (value) => Number(value.toPrecision(digits)));
  const result = {
    network: network.source, picture: answer.name, width: answer.width, height: answer.height,
    milliseconds: Number(answer.milliseconds.toFixed(1)), task: network.task,
    classes: network.classes, logits: values(logits, 8), probabilities: values(shares, 8),
    map: { class: network.classes[index], kind: chosen.kind, height: rows, width: columns, values: values(map, 8) },
    box: { threshold: values([threshold], 6)[0], normalizer: network.rule.normalizer, xyxy: boxes.map((box) => values(box, 6)) },
  };
  $("json").textContent = JSON.stringify(result, null, 1).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s*\n\s*/g, " "));
}

function describe() {
  const { script, wasm, model } = network.files;
  document.querySelector("main").hidden = $("about").hidden = false;
  const names = network.classes.slice(0, 6).join(", ") + (network.classes.length > 6 ? " and others" : "");
  $("summary").textContent = `${network.classes.length} classes: ${names}. ` +
    `${megabytes(model.bytes)} of network, ${megabytes(script.bytes + wasm.bytes)} to run it. No picture leaves this device.`;
  const meaning = { multiclass: "one of the classes (softmax)", multilabel: "each class for itself (sigmoid)", binary: "one class or its absence (sigmoid)" };
  const facts = {
    "Network": network.source,
    "License of its weights": network.license ?? "not stated",
    "Answers": meaning[network.task] + (network.task_is_known ? "" : "; nobody said so, it is what the number of logits suggests"),
    "Class names": network.named ? "the network's own" : "not known: classes are numbered",
    "Pictures": `of any size, resized to ${network.input_size[1]} x ${network.input_size[0]} pixels${network.picture_size ? " by the browser" : " inside the network"}`,
    "Box": network.rule_text,
    "Maps": network.pool === "gap" ? "the mean of a class's plain map + its bias = its logit" : `pooled by ${network.pool}: maps do not add up to logits`,
    "Files": `model.onnx ${megabytes(model.bytes)} (${network.precision}), onnxruntime-web ${network.runtime} (MIT) ${megabytes(script.bytes + wasm.bytes)}`,
    "Runs on": `${crossOriginIsolated ? "several threads" : "one thread"} of this device's processor (WebAssembly)`,
    "Notes": network.notes.join("; ") || null,
    "Made by": `camify ${network.camify_version}`,
  };
  for (const [label, text] of Object.entries(facts)) {
    if (text !== null) $("facts").append(element("dt", label), element("dd", text));
  }
  showProblem("");
  if (network.kinds.includes(network.rule.kind)) chosen.kind = network.rule.kind; // else it is the plain map
  for (const kind of network.kinds) {
    const button = element("button", KINDS[kind][0]);
    [button.type, button.dataset.kind] = ["button", kind];
    button.setAttribute("aria-pressed", kind === chosen.kind);
    $("kinds").append(button);
  }
  $("kinds").hidden = network.kinds.length < 2;
  $("search").hidden = network.classes.length <= LISTED;
  const pixels = new ImageData(256, 1);
  pixels.data.fill(224).forEach((_, i) => { if (i % 4 === 3) pixels.data[i] = 255; });
  applyTint(pixels.data, Uint8Array.from({ length: 256 }, (_, level) => level), network.tint);
  $("colors").getContext("2d").putImageData(pixels, 0, 0);
}

// ---------------------------------------------------------------- what the user does

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  takeFile($("file").files[0]);
  $("file").value = ""; // the same file can be chosen again
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) takeFile(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFile(event.dataTransfer.files[0]);
  });
}
$("classes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  chosen.class = Number(button.dataset.index);
  show();
  speak();
});
$("follow").addEventListener("click", () => {
  chosen.class = null;
  show();
});
$("kinds").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  chosen.kind = button.dataset.kind;
  for (const other of $("kinds").children) other.setAttribute("aria-pressed", other === button);
  show();
});
for (const id of ["heat", "boxes"]) $(id).addEventListener("change", show);
$("search").addEventListener("input", show);
$("threshold").addEventListener("input", () => {
  chosen.threshold = Number($("threshold").value);
  show();
});
$("rule").addEventListener("click", () => {
  chosen.threshold = null;
  show();
});
document.querySelector("#result details").addEventListener("toggle", show);
$("copy").addEventListener("click", async () => {
  getSelection().selectAllChildren($("json")); // where the clipboard is out of reach the text is at least selected
  try {
    await navigator.clipboard.writeText($("json").textContent);
    $("copy").textContent = "Copied";
  } catch {
    $("copy").textContent = "Selected";
  }
});

start();
