// The playground of a server with an API key. The browser sends the key with every request, and the snippets contain a
// variable for the key.

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
