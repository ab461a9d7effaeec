// Calculations with vectors: cosines, clusters, and principal components. Nothing here depends on a page or a server.
//
// Clusters and components are computed from the cosines of all pairs of texts, not from the vectors. For a few hundred
// texts, this takes less time than with the vectors, because they have up to thousands of dimensions.

const RESTARTS = 30, MAX_STEPS = 100, POWER_STEPS = 300;

export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** The vectors of a response in the order of the texts, normalized in double precision. */
export function units({ data }) {
  const rows = [];
  for (const { index, embedding } of data) {
    const bytes = Uint8Array.from(atob(embedding), (character) => character.charCodeAt(0));
    const row = Float64Array.from(new Float32Array(bytes.buffer));
    const length = Math.sqrt(dot(row, row));
    rows[index] = row.map((value) => value / length);
  }
  return rows;
}

/** The cosine of each pair of normalized vectors. */
export const cosineMatrix = (rows) => rows.map((a) => rows.map((b) => dot(a, b)));

// ---- Clusters ----

/**
 * Spherical k-means: the cluster of each text. Clusters are numbered in the order of their first texts. There are fewer
 * than `k` clusters if fewer than `k` texts are different.
 *
 * The best of several starts counts. The starts are those of k-means++, with pseudorandom numbers that are the same on
 * every call, so equal texts always give equal clusters.
 */
export function clusters(cosines, k) {
  const random = generator(1);
  let best = { quality: -Infinity };
  for (let i = 0; i < RESTARTS; i++) {
    const found = improved(cosines, seeds(cosines, k, random));
    // The difference is larger than rounding errors, so that the first of equally good results counts.
    if (found.quality > best.quality + 1e-9) best = found;
  }
  const numbers = new Map();
  for (const cluster of best.nearest) if (!numbers.has(cluster)) numbers.set(cluster, numbers.size);
  return best.nearest.map((cluster) => numbers.get(cluster));
}

/** Texts that are far from each other. Each is drawn with a probability in proportion to its distance to the others. */
function seeds(cosines, k, random) {
  const chosen = [Math.floor(random() * cosines.length)];
  while (chosen.length < k) {
    // The square of the distance of unit vectors is 2 − 2 cos. Rounding errors of equal vectors are cut off.
    const distances = cosines.map((row) => Math.min(...chosen.map((seed) => 1 - row[seed])));
    const weights = distances.map((distance) => (distance > 1e-9 ? distance : 0));
    let rest = random() * weights.reduce((sum, weight) => sum + weight, 0);
    const next = weights.findIndex((weight) => weight > 0 && (rest -= weight) <= 0);
    if (next < 0) break;
    chosen.push(next);
  }
  return chosen;
}

/** The result of k-means with these texts as the first centroids. The quality is the sum of the cosines to centroids. */
function improved(cosines, chosen) {
  let nearest = cosines.map((row) => largest(chosen.map((seed) => row[seed])));
  let quality = -Infinity;
  for (let step = 0; step < MAX_STEPS; step++) {
    const similarities = centroidCosines(cosines, nearest, chosen.length);
    const next = similarities.map(largest);
    quality = similarities.reduce((sum, row, i) => sum + row[next[i]], 0);
    if (next.every((cluster, i) => cluster === nearest[i])) break;
    nearest = next;
  }
  return { nearest, quality };
}

/** The cosine of each text with the centroid of each cluster. A cluster without texts has the cosine −∞. */
function centroidCosines(cosines, nearest, k) {
  const sums = cosines.map((row) => {
    const sum = new Float64Array(k);
    row.forEach((cosine, j) => (sum[nearest[j]] += cosine));
    return sum;
  });
  // The square of the length of a sum of vectors is the sum of their dot products.
  const squares = new Float64Array(k);
  sums.forEach((sum, i) => (squares[nearest[i]] += sum[nearest[i]]));
  return sums.map((sum) => Array.from(sum, (value, c) => (squares[c] > 0 ? value / Math.sqrt(squares[c]) : -Infinity)));
}

const largest = (values) => values.indexOf(Math.max(...values));

/** The generator mulberry32: numbers from 0 to 1 that depend on the seed only. */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// ---- Principal components ----

/**
 * The first two principal components of the vectors: the coordinates of each text, and the share of the variance that
 * the coordinates keep.
 *
 * The coordinates are the eigenvectors of the centered cosines, times the square roots of the eigenvalues.
 */
export function plane(cosines) {
  const centered = center(cosines);
  // Any start works that is not orthogonal to the eigenvectors.
  let axes = [1, 2].map((axis) => cosines.map((_, i) => Math.sin(axis * (i + 1))));
  for (let step = 0; step < POWER_STEPS; step++) axes = orthonormal(axes.map((axis) => product(centered, axis)));
  const values = axes.map((axis) => Math.max(dot(axis, product(centered, axis)), 0));
  const points = cosines.map((_, i) => axes.map((axis, a) => axis[i] * Math.sqrt(values[a])));
  const variance = centered.reduce((sum, row, i) => sum + row[i], 0);
  return { points, share: variance > 1e-9 ? (values[0] + values[1]) / variance : 1 };
}

/** The dot products of the vectors minus their mean. */
function center(cosines) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const means = cosines.map(mean);
  const whole = mean(means);
  return cosines.map((row, i) => row.map((cosine, j) => cosine - means[i] - means[j] + whole));
}

const product = (matrix, vector) => matrix.map((row) => dot(row, vector));

/** Two vectors made orthogonal and of length one. A vector that is nearly zero becomes zero. */
function orthonormal([first, second]) {
  const one = (vector) => {
    const length = Math.sqrt(dot(vector, vector));
    return vector.map((value) => (length > 1e-12 ? value / length : 0));
  };
  const x = one(first);
  const along = dot(x, second);
  return [x, one(second.map((value, i) => value - along * x[i]))];
}
