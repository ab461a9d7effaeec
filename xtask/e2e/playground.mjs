// Uses the playground with the mouse and the keyboard, and compares the page with the responses of the server's routes.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { closing, contrast, open } from "./browser.mjs";

const [address] = process.argv.slice(2);
const run = promisify(execFile);

async function post(path, body) {
  const response = await fetch(`${address}/${path}`, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  return response.json();
}

async function rows(input, options = {}) {
  const { data } = await post("v1/embeddings", { input, ...options });
  return data.map(({ embedding }) => embedding);
}

/** What each panel shows as its result. */
const RESULTS = { similarity: ".matrix", search: ".ranking", rerank: ".ranking", map: ".map" };

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

/** The number in a text of the page. */
const number = (text) => Number(text.replace("−", "-"));

/** Whether a number on the page is equal to a value that is rounded to three decimals. */
const isNear = (shown, value) => Math.abs(shown - value) < 0.0006;

async function submit(page, panel, result) {
  await page.click(`#${panel} button[type=submit]`);
  await settled(page, panel, result);
}

async function settled(page, panel, result) {
  await page.locator(`#${panel} .results[aria-busy=false] ${result}`).first().waitFor();
}

/** The texts in the boxes of a panel. The page has the boxes only when the server is ready. */
async function texts(page, panel) {
  const boxes = page.locator(`#${panel} .texts textarea`);
  await boxes.first().waitFor();
  return boxes.evaluateAll((all) => all.map(({ value }) => value));
}

/** Replaces the texts of a panel with the keyboard. */
async function type(page, panel, texts) {
  await page.click(`#${panel} .clear`);
  for (const [i, text] of texts.entries()) {
    if (i) await page.keyboard.press("Enter");
    await page.keyboard.insertText(text);
  }
}

async function matrix(page) {
  const lines = await page.locator("#similarity .matrix tbody tr").all();
  return Promise.all(lines.map(async (line) => (await line.locator("td").allTextContents()).map(number)));
}

async function checkMatrix(page, texts, options) {
  const shown = await matrix(page);
  const expected = await rows(texts, options);
  assert.equal(shown.length, texts.length);
  for (const [i, line] of shown.entries()) {
    assert.equal(line.length, texts.length);
    assert.equal(line[i], 1);
    for (const [j, value] of line.entries()) {
      assert.equal(value, shown[j][i]);
      assert.ok(isNear(value, dot(expected[i], expected[j])), `${i}, ${j}: ${value}`);
    }
  }
  return shown;
}

async function checkRanking(page, panel, documents, scores) {
  const items = await page.locator(`#${panel} .ranking li`).all();
  assert.equal(items.length, documents.length);
  const order = documents.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
  for (const [place, item] of items.entries()) {
    assert.equal(await item.locator(".text").textContent(), documents[order[place]]);
    assert.ok(isNear(number(await item.locator(".score").textContent()), scores[order[place]]));
  }
}

const screenshot = (page, name) => page.screenshot({ path: `${name}.png`, fullPage: true });

/** The first sight of each tab shows the result of its example, without a click. */
async function examples() {
  const sent = [];
  const { page, faults } = await open(address, {}, async (page) => {
    page.on("request", (request) => request.method() === "POST" && sent.push(new URL(request.url()).pathname));
  });
  await settled(page, "similarity", ".matrix");
  await checkMatrix(page, await texts(page, "similarity"));
  assert.deepEqual(sent, ["/v1/embeddings"]);
  for (const [panel, result] of Object.entries(RESULTS)) {
    await page.click(`#tab-${panel}`);
    await settled(page, panel, result);
  }
  const all = ["/v1/embeddings", "/v1/embeddings", "/v1/embeddings", "/v1/rerank", "/v1/embeddings"];
  assert.deepEqual(sent, all);
  // The second sight of a tab sends nothing.
  for (const panel of Object.keys(RESULTS)) await page.click(`#tab-${panel}`);
  assert.deepEqual(sent, all);
  assert.deepEqual(faults, []);

  // A failed example is not repeated.
  let n_failed = 0;
  const failing = await open(address, {}, (page) => page.route("**/v1/embeddings", (route) => {
    n_failed += 1;
    return route.abort("connectionrefused");
  }));
  await settled(failing.page, "similarity", ".error p");
  await failing.page.click("#tab-rerank");
  await settled(failing.page, "rerank", ".ranking");
  await failing.page.click("#tab-similarity");
  await failing.page.waitForTimeout(300);
  assert.equal(n_failed, 1);
}

async function similarity() {
  const { page, faults } = await open(address);
  const examples = await texts(page, "similarity");
  assert.equal(examples.length, 4);
  await submit(page, "similarity", ".matrix");
  await checkMatrix(page, examples);
  assert.deepEqual(await page.locator(".matrix thead th[scope=col]").allTextContents(), ["中文", "英文", "日文", "韩文"]);
  await screenshot(page, "similarity");

  const long = `A long text: ${"it goes on and on, ".repeat(30)}`;
  const written = ["rain", "sun", "<img src=x onerror=alert(1)><b>bold</b>", long, "두 줄", "天气", "a", "b", "c", "d", "e", "Wetter"];
  await type(page, "similarity", written);
  await page.keyboard.press("Control+Enter");
  await page.locator(".matrix tbody tr").nth(11).waitFor();
  const whole = await checkMatrix(page, written);
  assert.equal(await page.locator("#similarity .matrix tbody th").nth(2).getAttribute("title"), written[2]);
  assert.equal(await page.locator("#similarity img, #similarity .answer b > b").count(), 0);
  await screenshot(page, "similarity-12");

  // Moving the slider sends a new request.
  const { embedder } = await (await fetch(`${address}/info`)).json();
  await page.focus("#similarity input[type=range]");
  await page.keyboard.press("Home");
  await page.getByText(`of ${embedder.min_dimensions} dimension`).waitFor();
  assert.equal(await page.inputValue("#similarity input[type=number]"), `${embedder.min_dimensions}`);
  assert.notDeepEqual(await checkMatrix(page, written, { dimensions: embedder.min_dimensions }), whole);
  await page.fill("#similarity input[type=number]", `${embedder.dimensions}`);

  await page.selectOption("#similarity select", "prompt query");
  assert.equal(await page.locator("#similarity .prompt").textContent(), embedder.prompts.query.replace("\n", "⏎\n"));
  await submit(page, "similarity", ".matrix");
  await checkMatrix(page, written, { prompt_name: "query" });
  await page.selectOption("#similarity select", "custom");
  await page.keyboard.insertText("Find the same weather");
  await submit(page, "similarity", ".matrix");
  await checkMatrix(page, written, { instruct: "Find the same weather" });
  assert.deepEqual(faults, []);
}

async function searchAndRerank() {
  const { page, faults } = await open(address);
  const documents = ["The capital of China is Beijing.", "Gravity attracts.", "北京是中华人民共和国的首都。", "Paris"];
  await page.click("#tab-search");
  await page.fill("#search .query", "Where is Paris?");
  await type(page, "search", documents);
  await submit(page, "search", ".ranking");
  const [query] = await rows("Where is Paris?", { prompt_name: "query" });
  await checkRanking(page, "search", documents, (await rows(documents)).map((row) => dot(query, row)));
  await screenshot(page, "search");

  await page.focus("#tab-search");
  await page.keyboard.press("ArrowRight");
  await page.fill("#rerank .query", "Where is Paris?");
  await type(page, "rerank", documents);
  for (const instruct of [undefined, "Find the opposite"]) {
    if (instruct) await page.fill("#rerank .instruct", instruct);
    await submit(page, "rerank", ".ranking");
    const scores = [];
    const { results } = await post("v1/rerank", { query: "Where is Paris?", documents, instruct });
    for (const { index, relevance_score } of results) scores[index] = relevance_score;
    await checkRanking(page, "rerank", documents, scores);
  }
  await screenshot(page, "rerank");
  assert.deepEqual(faults, []);
}

async function errors() {
  const { page, faults } = await open(address);
  await page.fill("#similarity input[type=number]", "0");
  await submit(page, "similarity", ".error p");
  const { error } = await post("v1/embeddings", { input: "a", dimensions: 0 });
  const [message, detail] = await page.locator("#similarity .error p").allTextContents();
  assert.equal(message, error.message);
  assert.match(detail, /status 400/);
  assert.ok(detail.includes(error.type), detail);
  await screenshot(page, "error");

  await page.click("#similarity .clear");
  await submit(page, "similarity", ".error p");
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "text 1");

  await page.route("**/v1/embeddings", (route) => route.abort("connectionrefused"));
  await page.keyboard.insertText("a");
  await page.fill("#similarity input[type=number]", "32");
  await submit(page, "similarity", ".error p");
  assert.match(await page.locator("#similarity .error p").textContent(), /does not respond/);
  assert.deepEqual(faults.filter((fault) => !fault.includes("ERR_CONNECTION_REFUSED")), []);
}

/** The page while the server is still loading, and a request that is replaced by a newer request. */
async function waiting() {
  let n_polls = 0;
  let asked;
  const gone = new Promise((resolve) => (asked = resolve));
  const { page, faults } = await open(address, {}, async (page) => {
    await page.route("**/readyz", (route) => {
      n_polls += 1;
      const error = { message: "the models are loading", type: "server_error", param: null, code: null };
      return n_polls > 2 ? route.continue() : route.fulfill({ status: 503, json: { error } });
    });
  });
  await page.getByText("the models are loading").waitFor();
  await page.locator("#similarity form").waitFor();
  assert.equal(n_polls, 3);

  await page.route("**/v1/embeddings", (route) => {
    // The first request never gets a response.
    if (route.request().postData().includes("first")) return asked(route.request());
    return route.continue();
  });
  await type(page, "similarity", ["first"]);
  await page.keyboard.press("Control+Enter");
  const first = await gone;
  const failed = page.waitForEvent("requestfailed", (request) => request === first);
  await type(page, "similarity", ["second"]);
  await page.keyboard.press("Control+Enter");
  await settled(page, "similarity", ".matrix");
  assert.match((await failed).failure().errorText, /ABORTED/);
  assert.equal(await page.locator(".matrix tbody th").textContent(), "#1second");
  assert.deepEqual(faults, []);
}

/** Runs the snippets and compares their output with the page. */
async function snippets() {
  const { page, faults } = await open(address, { permissions: ["clipboard-read", "clipboard-write"] });
  const copied = async (panel, language) => {
    await page.click(`#${panel} [data-language=${language}]`);
    await page.locator(`#${panel} [data-language=${language}][aria-pressed=true]`).waitFor();
    // The button may still say "Copied" about the text before, so the new text itself is awaited.
    await page.evaluate(() => navigator.clipboard.writeText(""));
    await page.click(`#${panel} .copy`);
    await page.locator(`#${panel} .copy`).getByText("Copied").waitFor();
    await page.waitForFunction(async () => (await navigator.clipboard.readText()) !== "");
    return page.evaluate(() => navigator.clipboard.readText());
  };
  const quoted = ["It's \"quoted\" with \\ and $HOME", "`天气` 😀"];
  await type(page, "similarity", quoted);
  await page.fill("#similarity input[type=number]", "64");
  await submit(page, "similarity", ".matrix");
  await page.click("#similarity .request summary");
  const expected = await post("v1/embeddings", { input: quoted, dimensions: 64, encoding_format: "base64" });
  const { stdout } = await run("bash", ["-c", await copied("similarity", "curl")]);
  assert.deepEqual(JSON.parse(stdout).data, expected.data);
  const print = "\nfor item in response.data:\n    print(item.embedding[0])\n";
  const python = await run(process.env.PYTHON, ["-c", (await copied("similarity", "python")) + print]);
  const firsts = (await rows(quoted, { dimensions: 64 })).map(([first]) => first);
  assert.deepEqual(python.stdout.trim().split("\n").map((line) => Math.fround(line)), firsts.map(Math.fround));

  await page.click("#tab-rerank");
  await page.fill("#rerank .instruct", "Don't");
  await submit(page, "rerank", ".ranking");
  await page.click("#rerank .request summary");
  const results = await run(process.env.PYTHON, ["-c", `${await copied("rerank", "python")}print(json.dumps(results))`]);
  const scores = JSON.parse(results.stdout).map(({ relevance_score }) => relevance_score.toFixed(3));
  assert.deepEqual(await page.locator("#rerank .score").allTextContents(), scores);
  assert.deepEqual(faults, []);
}

async function everywhere() {
  for (const colorScheme of ["light", "dark"]) {
    const { page, faults } = await open(address, { colorScheme, viewport: { width: 360, height: 740 } });
    for (const [panel, result] of Object.entries(RESULTS)) {
      await page.click(`#tab-${panel}`);
      await submit(page, panel, result);
      await page.click(`#${panel} .request summary`);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
      await screenshot(page, `narrow-${panel}-${colorScheme}`);
    }
    const least = await contrast(page, ".matrix tbody td", "color", "backgroundColor");
    assert.ok(least >= 4.5, `contrast ${least}`);
    assert.deepEqual(faults, []);
  }
}

/** Reaches every control of the page with the Tab key. */
async function keyboard() {
  const { page } = await open(address);
  await page.locator("#similarity form").waitFor();
  const seen = [];
  while (!seen.includes("API reference")) {
    await page.keyboard.press("Tab");
    const { name, isVisible } = await page.evaluate(() => ({
      name: document.activeElement.textContent.trim() || document.activeElement.ariaLabel || document.activeElement.localName,
      isVisible: document.activeElement.matches(":focus-visible"),
    }));
    assert.ok(isVisible, `${name} does not show that it has the focus`);
    seen.push(name);
    assert.ok(seen.length < 40, seen.join(", "));
    if (name === "Compare") {
      await page.keyboard.press("Enter");
      await settled(page, "similarity", ".matrix");
    }
  }
  assert.ok(seen.includes("Compare"), seen.join(", "));
}

await closing(async () => {
  for (const check of [examples, similarity, searchAndRerank, errors, waiting, snippets, everywhere, keyboard]) {
    await check();
    console.log(`  ${check.name}`);
  }
});
