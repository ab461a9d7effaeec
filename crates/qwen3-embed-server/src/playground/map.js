// The map: texts as marks in two dimensions, with their clusters. The list of the clusters below the map has the same
// content for users who cannot see the map.

import { element, plural, svg } from "./document.js";
import { clusters, cosineMatrix, plane } from "./vectors.js";

/** Texts beyond this number are embedded but not shown on the map. There would be no space for their labels. */
const MAP_LIMIT = 200;
/** The shapes of the marks, around the point 0, 0. A cluster has a shape and a color, because some users do not see
 * differences between colors. There are as many shapes as colors in the style sheet. */
const SHAPES = [
  "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
  "M-5.5-5.5h11v11h-11z",
  "M0-7L7 5.5H-7z",
  "M0-7.5L7.5 0L0 7.5L-7.5 0z",
  "M-2.3-7h4.6v4.7h4.7v4.6h-4.7v4.7h-4.6v-4.7h-4.7v-4.6h4.7z",
  "M0 7L7-5.5H-7z",
];
/** Lengths in pixels: half of a mark with its outline, the space at the edges, and the largest width of a label. */
const MARK = 8, EDGE = 20, LABEL = 190;
/** A pointer activates the nearest mark within this distance. */
const REACH = 30;
/** Places of a label around its mark, in the order of preference: to the right (1) or the left (−1), below (1) or above
 * (−1). At a corner, it is less clear to which mark a label belongs. */
const SIDES = [[1, 0], [-1, 0], [0, -1], [0, 1]], CORNERS = [[1, -1], [1, 1], [-1, -1], [-1, 1]];
/** Lengths of a label, as shares of the largest width, in the order of preference. */
const LENGTHS = [1, 0.6, 0.35];

/** A summary, and the nodes of the map of the texts with `k` clusters and of the list of the clusters. */
export function map(texts, rows, k) {
  const shown = texts.slice(0, MAP_LIMIT);
  const cosines = cosineMatrix(rows.slice(0, MAP_LIMIT));
  const cluster = clusters(cosines, Math.min(k, shown.length));
  const { points, share } = plane(cosines);
  const count = Math.max(...cluster) + 1;
  const name = `Map of ${plural(shown.length, "text")} in ${plural(count, "cluster")}, which are listed below`;
  const picture = svg("svg", { class: "map", role: "img", tabindex: 0, "aria-label": name });
  const lists = Array.from({ length: count }, (_, c) => list(shown, cluster, c));
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const view = { texts: shown, cluster, points, picture, readout, lists, active: null, positions: [] };
  activate(view, null);
  listen(view);
  const rest = texts.length > shown.length ? ` The map shows the first ${MAP_LIMIT} texts.` : "";
  const hint = `The two axes of the map keep ${Math.round(share * 100)} % of the variance of the vectors. `
    + `The clusters are computed with all dimensions.${rest}`;
  const nodes = [picture, readout, element("ol", { class: "clusters" }, ...lists), element("p", { class: "hint" }, hint)];
  return [plural(count, "cluster"), nodes];
}

/** A cluster in the list: its mark, its number, and its texts. */
function list(texts, cluster, c) {
  const members = texts.map((_, i) => i).filter((i) => cluster[i] === c);
  const picture = svg("svg", { viewBox: "-9 -9 18 18", "aria-hidden": "true" }, mark(c));
  const name = element("p", {}, picture, element("b", {}, `Cluster ${c + 1}`), ` ${plural(members.length, "text")}`);
  const items = members.map((i) => {
    const { text, label, lang } = texts[i];
    const whole = element("span", { class: "text", title: text, lang: lang || null }, text.slice(0, 1000));
    return element("li", { "data-text": i }, element("span", {}, label), whole);
  });
  return element("li", {}, name, element("ol", {}, ...items));
}

/** The mark of a cluster. With n shapes and n colors, the first n² clusters have different marks. */
function mark(c) {
  const shape = SHAPES[(c + Math.floor(c / SHAPES.length)) % SHAPES.length];
  return svg("path", { class: `mark color-${(c % SHAPES.length) + 1}`, d: shape });
}

// ---- Drawing ----

/** Draws the map in the width that it has on the page. Labels have the size of other texts, so they are placed anew for
 * each width. */
function draw(view, width) {
  const height = Math.round(Math.min(Math.max(width * 0.75, 320), 520));
  view.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  view.picture.setAttribute("height", height);
  view.positions = positions(view.points, width, height);
  const marks = view.positions.map(([x, y], i) => {
    const drawn = mark(view.cluster[i]);
    drawn.classList.add("point");
    drawn.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    return drawn;
  });
  view.picture.replaceChildren(...marks, ...labels(view, width, height));
  activate(view, view.active);
}

/** The points in pixels. Both axes have the same scale, because the distances between points have a meaning. */
function positions(points, width, height) {
  const range = (axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  };
  const [left, right] = range(0);
  const [low, high] = range(1);
  const scale = Math.min((width - 2 * EDGE) / (right - left), (height - 2 * EDGE) / (high - low));
  // Without distances, the scale is infinite, and all points are in the middle.
  const finite = Number.isFinite(scale) ? scale : 0;
  const at = (value, from, to) => (value - (from + to) / 2) * finite;
  return points.map(([x, y]) => [width / 2 + at(x, left, right), height / 2 - at(y, low, high)]);
}

/** The labels that have space: the text, or less of it, or its number. */
function labels({ texts, picture, positions }, width, height) {
  const measure = measurer(picture);
  const taken = positions.map(([x, y]) => ({ x: x - MARK, y: y - MARK, width: 2 * MARK, height: 2 * MARK }));
  const isInside = (box) => box.x >= 2 && box.y >= 2 && box.x + box.width <= width - 2 && box.y + box.height <= height - 2;
  const isFree = (box) => isInside(box) && !taken.some((other) => overlap(box, other));
  const drawn = [];
  positions.forEach((position, i) => {
    const lines = LENGTHS.map((length) => shortened(texts[i].text, length * Math.min(LABEL, width / 2), measure));
    const attempts = [[lines, SIDES], [lines, CORNERS], [[`${i + 1}`], [...SIDES, ...CORNERS]]];
    const choices = attempts.flatMap(([lines, sides]) => lines.flatMap((line) => {
      const size = { width: measure(line), height: measure.height };
      return sides.map((side) => ({ line, box: beside(position, side, size) }));
    }));
    const found = choices.find(({ box }) => isFree(box));
    if (!found) return;
    const { line, box } = found;
    taken.push(box);
    const place = { x: box.x.toFixed(1), y: (box.y + box.height * 0.8).toFixed(1) };
    drawn.push(svg("text", { ...place, lang: texts[i].lang || null }, line));
  });
  return drawn;
}

/** The place of a label at a side or a corner of a mark. */
function beside([x, y], [right, down], { width, height }) {
  const along = (side, size, at) => (side === 0 ? at - size / 2 : side > 0 ? at + MARK + 1 : at - MARK - 1 - size);
  return { x: along(right, width, x), y: along(down, height, y), width, height };
}

const overlap = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

/** A function for the width of a text in the font of an element. */
function measurer(within) {
  const { fontSize, fontFamily } = getComputedStyle(within);
  const context = document.createElement("canvas").getContext("2d");
  context.font = `${fontSize} ${fontFamily}`;
  return Object.assign((text) => context.measureText(text).width, { height: parseFloat(fontSize) * 1.3 });
}

/** The beginning of a text, in one line that is at most `width` wide. */
function shortened(text, width, measure) {
  const line = text.trim().replace(/\s+/g, " ");
  const characters = [...line.slice(0, 200)];
  if (line.length <= 200 && measure(line) <= width) return line;
  while (characters.length > 1 && measure(`${characters.join("").trimEnd()}…`) > width) characters.pop();
  return `${characters.join("").trimEnd()}…`;
}

// ---- The whole text of a mark ----

/** Shows the whole text of a mark when a pointer is near it, and when the arrow keys move to it. */
function listen(view) {
  const { picture, texts, lists } = view;
  let drawn = 0;
  new ResizeObserver(([{ contentRect: { width } }]) => {
    // The width is zero while another tab is shown. Drawing changes the height, but not the width.
    if (width === 0 || width === drawn) return;
    drawn = width;
    draw(view, width);
  }).observe(picture);
  const near = ({ clientX, clientY }) => {
    const { left, top } = picture.getBoundingClientRect();
    activate(view, nearest(view.positions, clientX - left, clientY - top));
  };
  picture.addEventListener("pointermove", near);
  picture.addEventListener("pointerdown", near);
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = view.active ?? (step > 0 ? -1 : 0);
    activate(view, (from + step + texts.length) % texts.length);
  });
  for (const item of lists.flatMap((list) => [...list.querySelectorAll("[data-text]")])) {
    item.addEventListener("pointerenter", () => activate(view, Number(item.dataset.text)));
  }
}

/** The mark that is nearest to a position, or null if no mark is near. */
function nearest(positions, x, y) {
  const distances = positions.map((position) => Math.hypot(position[0] - x, position[1] - y));
  const smallest = Math.min(...distances);
  return smallest <= REACH ? distances.indexOf(smallest) : null;
}

/** Highlights a mark and its text in the list, and shows the whole text below the map. */
function activate(view, active) {
  view.active = active;
  const points = view.picture.querySelectorAll(".point");
  points.forEach((point, i) => point.classList.toggle("on", i === active));
  for (const item of view.lists.flatMap((list) => [...list.querySelectorAll("[data-text]")])) {
    item.classList.toggle("on", Number(item.dataset.text) === active);
  }
  if (active === null) {
    view.readout.replaceChildren("Point at a mark, or press the arrow keys on the map, to read its whole text.");
    return;
  }
  const { text, label, lang } = view.texts[active];
  const where = element("b", {}, `${label} · Cluster ${view.cluster[active] + 1}`);
  view.readout.replaceChildren(where, " ", element("span", { lang: lang || null }, text.slice(0, 1000)));
}
