// Generate the sound of a clip with a service, over HTTP. It needs Node 20 or later, and no package.
//
// node examples/call_http.mjs examples/hammer.mp4 out.mp4 --prompt "a hammer hits stone"
//
// The key of a service that asks for one is read from FOLEY_API_KEY.

import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    help: { type: "boolean" },
    prompt: { type: "string", default: "" },
    server: { type: "string", default: "http://127.0.0.1:3000" },
  },
});
const [clip, output] = positionals;
if (values.help || !output) {
  console.log("node call_http.mjs CLIP OUTPUT [--prompt TEXT] [--server ADDRESS]");
  process.exit(values.help ? 0 : 2);
}

const form = new FormData();
form.set("clip", await openAsBlob(clip), "clip"); // is read while it is sent
form.set("prompt", values.prompt);
const key = process.env.FOLEY_API_KEY;
const response = await fetch(`${values.server}/v1/generate`, {
  method: "POST",
  body: form,
  headers: key ? { Authorization: `Bearer ${key}` } : {},
});
if (!response.ok) {
  const { error } = await response.json(); // the code is stable; the message says what to do
  console.error(`${error.code}: ${error.message}`);
  process.exit(1);
}
await writeFile(output, response.body);
console.log(`${output}: seed ${response.headers.get("X-Foley-Seed")}`);
