// Uses the playground with the mouse and the keyboard, and compares the page with the responses of the server's routes.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { closing, open } from "./browser.mjs";

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

/** The smallest contrast between a cell and its text. */
function contrast(page) {
  return page.evaluate(() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (color) => {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
        const share = value / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return Math.min(...[...document.querySelectorAll(".matrix tbody td")].map((cell) => {
      const { color, backgroundColor } = getComputedStyle(cell);
      const [low, high] = [luminance(color), luminance(backgroundColor)].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    }));
  });
}

const screenshot = (page, name) => page.screenshot({ path: `${name}.png`, fullPage: true });

async function similarity() {
  const { page, faults } = await open(address);
  const examples = await page.locator("#similarity .texts textarea").evaluateAll((boxes) => boxes.map(({ value }) => value));
  assert.equal(examples.length, 4);
  await submit(page, "similarity", ".matrix");
  await checkMatrix(page, examples);
  assert.deepEqual(await page.locator(".matrix thead th[scope=col]").allTextContents(), ["中文", "英文", "日文", "韩文"]);
  await screenshot(page, "similarity");

  const long = `A long text: ${"it goes on and on, ".repeat(30)}`;
  const texts = ["rain", "sun", "<img src=x onerror=alert(1)><b>bold</b>", long, "두 줄", "天气", "a", "b", "c", "d", "e", "Wetter"];
  await type(page, "similarity", texts);
  await page.keyboard.press("Control+Enter");
  await page.locator(".matrix tbody tr").nth(11).waitFor();
  const whole = await checkMatrix(page, texts);
  assert.equal(await page.locator("#similarity .matrix tbody th").nth(2).getAttribute("title"), texts[2]);
  assert.equal(await page.locator("#similarity img, #similarity .answer b > b").count(), 0);
  await screenshot(page, "similarity-12");

  // Moving the slider sends a new request.
  const { embedder } = await (await fetch(`${address}/info`)).json();
  await page.focus("#similarity input[type=range]");
  await page.keyboard.press("Home");
  await page.getByText(`of ${embedder.min_dimensions} dimension`).waitFor();
  assert.equal(await page.inputValue("#similarity input[type=number]"), `${embedder.min_dimensions}`);
  assert.notDeepEqual(await checkMatrix(page, texts, { dimensions: embedder.min_dimensions }), whole);
  await page.fill("#similarity input[type=number]", `${embedder.dimensions}`);

  await page.selectOption("#similarity select", "prompt query");
  assert.equal(await page.locator("#similarity .prompt").textContent(), embedder.prompts.query.replace("\n", "⏎\n"));
  await submit(page, "similarity", ".matrix");
  await checkMatrix(page, texts, { prompt_name: "query" });
  await page.selectOption("#similarity select", "custom");
  await page.keyboard.insertText("Find the same weather");
  await submit(page, "similarity", ".matrix");
  await checkMatrix(page, texts, { instruct: "Find the same weather" });
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
    await page.click(`#${panel} .copy`);
    await page.locator(`#${panel} .copy`).getByText("Copied").waitFor();
    return page.evaluate(() => navigator.clipboard.readText());
  };
  const texts = ["It's \"quoted\" with \\ and $HOME", "`天气` 😀"];
  await type(page, "similarity", texts);
  await page.fill("#similarity input[type=number]", "64");
  await submit(page, "similarity", ".matrix");
  await page.click("#similarity .request summary");
  const expected = await post("v1/embeddings", { input: texts, dimensions: 64, encoding_format: "base64" });
  const { stdout } = await run("bash", ["-c", await copied("similarity", "curl")]);
  assert.deepEqual(JSON.parse(stdout).data, expected.data);
  const print = "\nfor item in response.data:\n    print(item.embedding[0])\n";
  const python = await run(process.env.PYTHON, ["-c", (await copied("similarity", "python")) + print]);
  const firsts = (await rows(texts, { dimensions: 64 })).map(([first]) => first);
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
    for (const panel of ["similarity", "search", "rerank"]) {
      await page.click(`#tab-${panel}`);
      await submit(page, panel, panel === "similarity" ? ".matrix" : ".ranking");
      await page.click(`#${panel} .request summary`);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
      await screenshot(page, `narrow-${panel}-${colorScheme}`);
    }
    assert.ok((await contrast(page)) >= 4.5, `contrast ${await contrast(page)}`);
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
  for (const check of [similarity, searchAndRerank, errors, waiting, snippets, everywhere, keyboard]) {
    await check();
    console.log(`  ${check.name}`);
  }
});
