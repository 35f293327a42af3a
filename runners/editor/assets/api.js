// Calls of the public API, whose address is that of the editor without "editor/".

const ROOT = new URL("../", document.baseURI);

/** A refusal of the service, in its own words. */
export class ApiError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

let key = "";

/** Use this key in all later calls. It is kept nowhere else. */
export function useKey(text) {
  key = text.trim();
}

/** Send a request; throws an ApiError for an answer that is none of success. */
async function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The service cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const { code = `${response.status}`, message = response.statusText } = body?.error ?? {};
  throw new ApiError(code, message);
}

/** The model that is served. */
export async function fetchModel() {
  return (await (await send("v1/models")).json()).models[0];
}

function makeForm(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === null || value === "") continue;
    if (value instanceof Blob) form.set(name, value, value.name ?? name);
    else form.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  return form;
}

/**
 * Make sounds. Yields the events of the service: {name, data}, of which the last is a "result".
 *
 * @param {object} fields of the form; undefined ones are left out, objects are sent as JSON.
 * @param {AbortSignal} signal cancels the request, at the service too.
 */
export async function* generate(fields, signal) {
  const body = makeForm(fields);
  const response = await send("v1/generate/events", { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let ended = false;
  while (!ended) {
    const { value, done } = await reader.read();
    text += value ?? "";
    ended = done;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event === null) continue;
      if (event.name === "error") throw new ApiError(event.data.error.code, event.data.error.message);
      yield event;
      if (event.name === "result") return;
    }
  }
  throw new ApiError("broken", "The connection broke before the result came. Try again.");
}

function parseEvent(block) {
  let name = "";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  return data ? { name, data: JSON.parse(data) } : null;
}

/** A file of a result. Its address names the service's own root, which a proxy may have moved. */
export async function fetchFile(url) {
  return (await send(url.slice(url.indexOf("v1/results/")))).blob();
}

/** Mix sounds that exist with a clip, and return the response with the file. */
export async function finish(fields, signal) {
  return send("v1/mix", { method: "POST", body: makeForm(fields), signal });
}
