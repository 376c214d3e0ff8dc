// Runs the network in a worker, so that the page answers while it computes. It loads nothing: the page hands over what
// it has loaded and checked.

const LONGEST_START = 120_000; // milliseconds
let ort, session;

const tasks = {
  async load({ script, wasm, model, threads }) {
    ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" }))); // threads load it again
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.initTimeout = LONGEST_START;
    ort.env.logLevel = "error";
    session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
    return { outputs: session.outputNames };
  },

  async run({ pixels, width, height, mirrored }) {
    const start = performance.now();
    const outputs = await outputsOf(pixels, width, height, false);
    const ofMirrored = mirrored ? await outputsOf(pixels, width, height, true) : null;
    return { outputs, ofMirrored, milliseconds: performance.now() - start };
  },
};

/** One forward of an RGBA picture, or of its mirror image. */
async function outputsOf(pixels, width, height, mirrored) {
  const rgb = new Uint8Array(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 3) {
      const from = 4 * (y * width + (mirrored ? width - 1 - x : x));
      rgb[to] = pixels[from];
      rgb[to + 1] = pixels[from + 1];
      rgb[to + 2] = pixels[from + 2];
    }
  }
  const image = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  const { logits, maps, object_maps: objectMaps } = await session.run({ image });
  const [, , mapHeight, mapWidth] = maps.dims;
  return { logits: logits.data, maps: maps.data, objectMaps: objectMaps?.data ?? null, height: mapHeight, width: mapWidth };
}

let last = Promise.resolve(); // a session runs one picture at a time

addEventListener("message", ({ data: { id, task, values } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, result: await tasks[task](values) });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
});
