// The playground of a server that wants a key: the browser sends it by itself, and snippets speak of it.

import assert from "node:assert/strict";
import { closing, open } from "./browser.mjs";

const [address] = process.argv.slice(2);
const password = process.env.SERVER_API_KEY;

await closing(async () => {
  const { page, faults } = await open(address, { httpCredentials: { username: "anyone", password } });
  await page.click("#similarity button[type=submit]");
  await page.locator("#similarity .matrix").waitFor();
  await page.click("#similarity .request summary");
  assert.match(await page.locator("#similarity code").textContent(), /authorization: Bearer \$API_KEY/);
  assert.ok(!(await page.content()).includes(password));
  assert.deepEqual(faults, []);
});
