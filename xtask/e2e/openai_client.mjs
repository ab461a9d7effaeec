// The openai package for Node. By default it requests base64. It has a type for each kind of error.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [address] = process.argv.slice(2);
const model = process.env.MODEL;
const client = new OpenAI({ apiKey: "EMPTY", baseURL: `${address}/v1`, maxRetries: 0 });
const texts = ["今天天气真好,适合出去散步", "The weather is great today, perfect for a walk"];

const create = (input, options = {}) => client.embeddings.create({ model, input, ...options });
const rows = ({ data }) => data.map(({ embedding }) => Float32Array.from(embedding));

const answer = await create(texts);
assert.deepEqual(answer.data.map(({ index }) => index), [0, 1]);
assert.equal(answer.model, model);
assert.equal(answer.usage.total_tokens, 16 + 19);
assert.deepEqual(rows(answer), rows(await create(texts, { encoding_format: "float" })));

const cut = rows(await create(texts, { dimensions: 64 }));
for (const row of cut) {
  assert.equal(row.length, 64);
  assert.ok(Math.abs(Math.hypot(...row) - 1) < 1e-6);
}

const models = [];
for await (const { id } of client.models.list()) models.push(id);
assert.ok(models.includes(model));
assert.equal((await client.models.retrieve(model)).id, model);

async function refused(kind, status, param, call) {
  const error = await call().then(() => assert.fail(`expected ${kind.name}`), (error) => error);
  assert.ok(error instanceof kind, String(error));
  assert.equal(error.status, status);
  assert.ok((error.param ?? "").startsWith(param), `param ${error.param}`);
  assert.deepEqual(Object.keys(error.error).sort(), ["code", "message", "param", "type"]);
  console.log(`  ${error.constructor.name} ${error.message}`);
}

await refused(OpenAI.BadRequestError, 400, "dimensions", () => create("a", { dimensions: 0 }));
await refused(OpenAI.BadRequestError, 400, "input", () => create(["a", ""]));
await refused(OpenAI.NotFoundError, 404, "model", () => client.models.retrieve("gpt"));
await refused(OpenAI.NotFoundError, 404, "", () => client.get("/nowhere"));
