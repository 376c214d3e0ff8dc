// The page's side of the worker in network.js: a question, and the promise of its answer.

const worker = new Worker(new URL("network.js", import.meta.url), { type: "module" });
const waiting = new Map();
let count = 0;

/** Do a task of network.js with values; what is in transfer is handed over, not copied. */
export function ask(task, values, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, task, values }, transfer);
  });
}

worker.addEventListener("message", ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(`The network cannot run here: ${error}`));
});

worker.addEventListener("error", (event) => {
  event.preventDefault();
  const error = new Error("network.js cannot run here. Is it beside this page, and is the browser a current one?");
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
});
