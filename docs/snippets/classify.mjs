// node classify.mjs model.onnx photo.ppm    (npm install onnxruntime-node, or onnxruntime-web; the code is the same)
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

const [model, picture] = process.argv.slice(2);
const session = await ort.InferenceSession.create(await readFile(model));
const { pixels, width, height } = readPpm(await readFile(picture));
const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
const { logits, maps } = await session.run({ image });

const top = logits.data.indexOf(Math.max(...logits.data));
const powers = Array.from(logits.data, (logit) => Math.exp(logit - logits.data[top]));
const probability = powers[top] / powers.reduce((a, b) => a + b); // softmax; of independent labels 1 / (1 + exp(-logit))
console.log(`class ${top}, probability ${probability.toFixed(4)}`);
console.log(`maps ${maps.dims.join(" x ")}`);

/** RGB bytes, row by row. In a browser a canvas has them: getImageData, without each fourth byte. */
function readPpm(file) {
  const [header, width, height] = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(file.toString("latin1", 0, 64));
  return { pixels: new Uint8Array(file.subarray(header.length)), width: Number(width), height: Number(height) };
}
