// Fetches files, says how far it is, and refuses a file that is not the one that the page was made with.

/** The bytes of a file {url, bytes, integrity}; onProgress is told how many have come. */
export async function download(file, onProgress) {
  const kept = await checked(await fetched(file, "default", onProgress), file);
  if (kept) return kept;
  // what the browser kept may be of an earlier export
  const blob = await fetched(file, "reload", () => {}), bytes = await checked(blob, file);
  if (bytes) return bytes;
  throw new Error(
    `${file.url} is not the file that this page was made with: its SHA-384 is another one ` +
      `(${blob.size.toLocaleString("en")} bytes, expected ${file.bytes.toLocaleString("en")}). ` +
      "It was changed or damaged; copy the folder again, or export it again.",
  );
}

async function fetched(file, cache, onProgress) {
  let response;
  try {
    response = await fetch(file.url, { cache });
  } catch {
    throw new Error(`${file.url} cannot be reached. Is there a connection, and is the file beside this page?`);
  }
  if (!response.ok) throw new Error(`${file.url}: the server answers ${response.status}. Is the file beside this page?`);
  const parts = [];
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      onProgress(value.length);
    }
  } catch {
    throw new Error(`${file.url}: the connection broke off. Load the page again.`);
  }
  return new Blob(parts);
}

/** The bytes of a blob, or null where its hash is not the file's; the browser compares, also without crypto.subtle. */
async function checked(blob, file) {
  const address = URL.createObjectURL(blob);
  try {
    return await (await fetch(address, { integrity: file.integrity })).arrayBuffer();
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(address);
  }
}
