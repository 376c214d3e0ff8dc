// Fetches files, says how far it is, and refuses a file that is not the one that the page was made with.

/** The bytes of a file {url, bytes, integrity}; onProgress is told how many have come. */
export async function download(file, onProgress) {
  let response;
  try {
    response = await fetch(file.url);
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
  return checked(new Blob(parts), file);
}

/** The bytes of a blob whose hash is the file's; the browser itself compares, also where crypto.subtle is missing. */
async function checked(blob, file) {
  const address = URL.createObjectURL(blob);
  try {
    return await (await fetch(address, { integrity: file.integrity })).arrayBuffer();
  } catch {
    throw new Error(
      `${file.url} is not the file that this page was made with: its SHA-384 is another one ` +
        `(${blob.size.toLocaleString("en")} bytes, expected ${file.bytes.toLocaleString("en")}). ` +
        "It was changed or damaged; copy the folder again, or export it again.",
    );
  } finally {
    URL.revokeObjectURL(address);
  }
}
