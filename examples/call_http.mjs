// Generate the sound of a clip with a service, over HTTP. It needs Node 20 or later, and no package.
//
// node examples/call_http.mjs examples/hammer.mp4 out.mp4 --prompt "a hammer hits stone"
//
// The key of a service that asks for one is read from FOLEY_API_KEY.

import { openAsBlob } from "node:fs";
import { stat, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    help: { type: "boolean" },
    prompt: { type: "string", default: "" },
    server: { type: "string", default: "http://127.0.0.1:3000" },
  },
});

function fail(message) {
  console.error(message);
  process.exit(1);
}

const [clip, output] = positionals;
if (values.help || !output) {
  console.log("node call_http.mjs CLIP OUTPUT [--prompt TEXT] [--server ADDRESS]");
  process.exit(values.help ? 0 : 2);
}

const form = new FormData();
try {
  if (!(await stat(clip)).isFile()) throw new Error("it is no file");
  form.set("clip", await openAsBlob(clip), "clip"); // is read while it is sent
} catch (error) {
  fail(`${clip} cannot be read (${error.message}); check the path`);
}
form.set("prompt", values.prompt);
const key = process.env.FOLEY_API_KEY;
let response;
try {
  response = await fetch(`${values.server}/v1/generate`, {
    method: "POST",
    body: form,
    headers: key ? { Authorization: `Bearer ${key}` } : {},
  });
} catch (error) {
  const reason = error.cause?.message || error.cause?.code || error.message;
  fail(`${values.server} cannot be reached (${reason}); check the address, and that a service runs`);
}
if (!response.ok) {
  const { error } = await response.json().catch(() => ({})); // a proxy may answer otherwise
  // The code is stable; the message says what to do.
  fail(error ? `${error.code}: ${error.message}` : `${values.server} answered ${response.status}`);
}
await writeFile(output, response.body);
console.log(`${output}: seed ${response.headers.get("X-Foley-Seed")}`);
