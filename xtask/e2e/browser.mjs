// Opens pages in headless Chromium and collects their errors.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

// Turns off the GPU, and the features of Chromium that use the network without a request of the page.
const QUIET = ["quic", "background-networking", "component-update", "sync", "gpu"].map((what) => `--disable-${what}`);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--no-first-run", ...QUIET],
});

/** Opens the page of a server. `faults` collects errors, warnings and requests to other servers. */
export async function open(address, options = {}, prepare = async () => {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => {
    // Chromium reports every status other than 200, even if the page handles it.
    const isStatus = message.text().startsWith("Failed to load resource: the server responded with a status");
    if (["error", "warning"].includes(message.type()) && !isStatus) faults.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(`${address}/`)) faults.push(`request to ${request.url()}`);
  });
  await prepare(page);
  const response = await page.goto(`${address}/`);
  assert.equal(response.status(), 200);
  assert.match(response.headers()["content-security-policy"] ?? "", /default-src 'self'/);
  return { page, faults };
}

/** Runs `work` and then closes the browser, even if `work` fails. */
export async function closing(work) {
  try {
    await work();
  } finally {
    await browser.close();
  }
}

/** The smallest contrast between two colors of the elements that a selector finds. `front` and `back` are properties of the
 * computed style. With `within`, the second color is that of the ancestor that this selector finds. */
export function contrast(page, selector, front, back, within = null) {
  return page.evaluate(([selector, front, back, within]) => {
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
    return Math.min(...[...document.querySelectorAll(selector)].map((element) => {
      const behind = within ? element.closest(within) : element;
      const colors = [getComputedStyle(element)[front], getComputedStyle(behind)[back]];
      const [low, high] = colors.map(luminance).sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    }));
  }, [selector, front, back, within]);
}
