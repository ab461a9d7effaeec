// The map of the playground with the bundled model, and the calculations behind it.

import assert from "node:assert/strict";
import { closing, contrast, open } from "./browser.mjs";

const [address] = process.argv.slice(2);

/** The examples have a topic each, in this order, in each of four languages. */
const N_TOPICS = 4;

async function shown(options = {}) {
  const { page, faults } = await open(address, options);
  await page.click("#tab-map");
  await drawn(page, 16);
  return { page, faults };
}

/** Waits until the map shows so many texts. */
async function drawn(page, n) {
  await page.locator("#map .results[aria-busy=false] .map .point").nth(n - 1).waitFor();
  assert.equal(await page.locator("#map .point").count(), n);
}

/** The numbers of the texts of each cluster in the list, from 0. */
const lists = (page) => page.locator("#map ol.clusters > li").evaluateAll((items) =>
  items.map((item) => [...item.querySelectorAll("[data-text]")].map(({ dataset }) => Number(dataset.text))));

/** The color and the shape of each point. */
const looks = (page) => page.locator("#map .point").evaluateAll((points) =>
  points.map((point) => `${getComputedStyle(point).fill} ${point.getAttribute("d")}`));

/** Replaces the texts by lines that are pasted into an empty box. */
async function paste(page, lines) {
  await page.click("#map .clear");
  await page.locator("#map .texts textarea").evaluate((box, text) => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    box.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
  }, lines.join("\n"));
}

/** No label covers another label or leaves the map. */
async function checkLabels(page, least) {
  const { labels, map } = await page.evaluate(() => {
    const box = (element) => (({ left, right, top, bottom }) => ({ left, right, top, bottom }))(element.getBoundingClientRect());
    return { labels: [...document.querySelectorAll("#map .map text")].map(box), map: box(document.querySelector("#map .map")) };
  });
  assert.ok(labels.length >= least, `${labels.length} labels`);
  for (const [i, a] of labels.entries()) {
    assert.ok(a.left >= map.left && a.right <= map.right && a.top >= map.top && a.bottom <= map.bottom, `label ${i} leaves the map`);
    for (const b of labels.slice(0, i)) {
      // Boxes of texts include empty space above and below the letters.
      const over = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      assert.ok(a.left >= b.right - 1 || b.left >= a.right - 1 || over <= 4, `label ${i} covers another label`);
    }
  }
}

async function topics() {
  const { page, faults } = await shown();
  const examples = await page.locator("#map .texts textarea").evaluateAll((boxes) => boxes.map(({ value }) => value));
  assert.equal(examples.length, 16);
  const expected = Array.from({ length: N_TOPICS }, (_, topic) => examples.map((_, i) => i).filter((i) => i % N_TOPICS === topic));
  assert.deepEqual(await lists(page), expected);
  const found = await looks(page);
  assert.equal(new Set(found).size, N_TOPICS);
  for (const [i, look] of found.entries()) assert.equal(look, found[i % N_TOPICS]);
  const map = page.locator("#map .map");
  assert.equal(await map.getAttribute("role"), "img");
  assert.match(await map.getAttribute("aria-label"), /16 texts in 4 clusters/);
  await checkLabels(page, 16);
  await page.screenshot({ path: "map.png", fullPage: true });

  // The arrow keys and the pointer show the whole text of a mark.
  const readout = page.locator("#map .readout");
  await map.focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  assert.equal(await readout.textContent(), `#2 · Cluster 2 ${examples[1]}`);
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await readout.textContent(), `#16 · Cluster 4 ${examples[15]}`);
  await page.locator("#map .point").nth(4).hover();
  assert.equal(await readout.textContent(), `#5 · Cluster 1 ${examples[4]}`);
  assert.deepEqual(await page.locator("#map li.on .text").allTextContents(), [examples[4]]);

  // Another number of clusters.
  await page.fill("#map input.clusters", "2");
  await page.keyboard.press("Enter");
  await page.locator("#map .status").getByText("2 clusters").waitFor();
  assert.equal((await lists(page)).length, 2);
  await page.fill("#map input.clusters", "0");
  await page.click("#map button[type=submit]");
  assert.equal(await page.locator("#map .error p").textContent(), "The number of clusters must be 1 or more.");
  assert.deepEqual(faults, []);
}

async function otherTexts() {
  const { page, faults } = await shown();
  await paste(page, Array.from({ length: 120 }, (_, i) => `Text ${i} about ${["rain", "trains", "banks"][i % 3]} and the number ${i * i}`));
  await page.click("#map button[type=submit]");
  await drawn(page, 120);
  assert.equal((await lists(page)).length, 11);
  assert.equal(new Set(await looks(page)).size, 11);
  await checkLabels(page, 10);
  await page.screenshot({ path: "map-120.png", fullPage: true });

  await paste(page, ["<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"]);
  await page.fill("#map input.clusters", "2");
  await page.click("#map button[type=submit]");
  await drawn(page, 2);
  assert.deepEqual(await lists(page), [[0, 1]]);
  assert.equal(await page.locator("#map img").count(), 0);
  await page.click("#map .texts li >> nth=0 >> button");
  await page.click("#map button[type=submit]");
  await drawn(page, 1);
  assert.deepEqual(faults, []);
}

/** Both color schemes, on a narrow page that becomes wide. */
async function colorSchemes() {
  const colors = [];
  for (const colorScheme of ["light", "dark"]) {
    const { page, faults } = await shown({ colorScheme, viewport: { width: 360, height: 740 } });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
    await checkLabels(page, 12);
    await paste(page, ["rain", "train", "bank", "soup", "doctor", "goal"]);
    await page.fill("#map input.clusters", "6");
    await page.click("#map button[type=submit]");
    await drawn(page, 6);
    assert.equal(new Set(await looks(page)).size, 6);
    colors.push((await looks(page)).join());
    for (const [selector, limit] of [[".point", 3], [".map text", 4.5]]) {
      const least = await contrast(page, `#map ${selector}`, "fill", "backgroundColor", ".map");
      assert.ok(least >= limit, `contrast of ${selector}, ${colorScheme}: ${least}`);
    }
    const narrow = await page.locator("#map .map").getAttribute("viewBox");
    await page.screenshot({ path: `map-narrow-${colorScheme}.png`, fullPage: true });
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.waitForFunction((narrow) => document.querySelector("#map .map").getAttribute("viewBox") !== narrow, narrow);
    await checkLabels(page, 6);
    assert.deepEqual(faults, []);
  }
  assert.notEqual(colors[0], colors[1]);
}

/** Pseudorandom numbers from −1 to 1. */
function numbers(seed) {
  return () => {
    seed = (seed * 48271) % 2147483647;
    return (seed / 2147483647) * 2 - 1;
  };
}

const unit = (row) => row.map((value) => value / Math.hypot(...row));

/** The sum of the cosines of vectors with the centroids of their clusters. */
function quality(rows, assigned) {
  return [...new Set(assigned)].reduce((total, cluster) => {
    const members = rows.filter((_, i) => assigned[i] === cluster);
    return total + Math.hypot(...rows[0].map((_, d) => members.reduce((sum, row) => sum + row[d], 0)));
  }, 0);
}

async function calculations() {
  const source = await (await fetch(`${address}/playground/vectors.js`)).text();
  const { clusters, cosineMatrix, plane } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
  for (let seed = 1; seed <= 20; seed++) {
    const number = numbers(seed * 7919);
    const rows = Array.from({ length: 9 }, () => unit(Array.from({ length: 4 }, number)));
    const found = clusters(cosineMatrix(rows), 2);
    assert.deepEqual(clusters(cosineMatrix(rows), 2), found);
    // The best of all ways to make two groups of nine vectors.
    const all = Array.from({ length: 2 ** 8 }, (_, bits) => rows.map((_, i) => (bits >> i) & 1));
    const best = Math.max(...all.map((assigned) => quality(rows, assigned)));
    assert.ok(Math.abs(quality(rows, found) - best) < 1e-9, `seed ${seed}: ${quality(rows, found)}, the best is ${best}`);
  }
  assert.deepEqual(clusters(cosineMatrix([[1, 0], [1, 0], [0, 1]]), 3), [0, 0, 1]);
  assert.deepEqual(clusters([[1]], 1), [0]);

  // Vectors that differ in two directions only keep all their distances.
  const number = numbers(3);
  const flat = Array.from({ length: 12 }, () => {
    const angle = number() * 2;
    return [0.6, 0.8 * Math.cos(angle), 0, 0.8 * Math.sin(angle)];
  });
  const { points, share } = plane(cosineMatrix(flat));
  assert.ok(Math.abs(share - 1) < 1e-9, share);
  const distance = (a, b) => Math.hypot(...a.map((value, d) => value - b[d]));
  for (const [i, a] of points.entries()) {
    for (const [j, b] of points.entries()) assert.ok(Math.abs(distance(a, b) - distance(flat[i], flat[j])) < 1e-9, `${i}, ${j}`);
  }
  assert.deepEqual(plane([[1, 1], [1, 1]]), { points: [[0, 0], [0, 0]], share: 1 });
}

await closing(async () => {
  for (const check of [calculations, topics, otherTexts, colorSchemes]) {
    await check();
    console.log(`  ${check.name}`);
  }
});
