"""Compares the speed of searches without an index: ours, NumPy, usearch and NumKong, in turns. See README.md."""

import argparse
import json
import os
import subprocess
import time
from importlib import metadata
from pathlib import Path
from statistics import median

# One thread, before NumPy starts its threads.
for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"]:
    os.environ[name] = "1"

import numkong
import numpy as np
from usearch.index import MetricKind, search

KINDS = ["f32", "f16", "int8", "bits"]
# Values that are generated at a time.
PART = 1 << 22


def random(seed, start, n):
    """The pseudo-random bits at `n` positions of the sequence `seed`. ours.rs computes the same bits."""
    x = np.arange(start, start + n, dtype=np.uint64) + np.uint64(seed << 40)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    return x >> np.uint64(24)


def values(kind, bits):
    if kind == "int8":
        return bits.astype(np.uint8).view(np.int8)
    if kind == "bits":
        return bits.astype(np.uint8)
    floats = (bits & np.uint64(0xFFFFFF)).astype(np.float32) / np.float32(8388608) - np.float32(1)
    return floats.astype(np.float16) if kind == "f16" else floats


def vectors(kind, seed, n, dimensions):
    if kind == "bits" and seed == 2:
        # A query is made of single bits, which ours packs itself.
        bits = (random(seed, 0, n * dimensions) & np.uint64(1)).astype(np.uint8)
        return np.packbits(bits.reshape(n, dimensions), axis=1)
    size = dimensions // 8 if kind == "bits" else dimensions
    out = np.empty(n * size, dtype=values(kind, random(1, 0, 1)).dtype)
    for start in range(0, out.size, PART):
        part = out[start : start + PART]
        part[:] = values(kind, random(seed, start, part.size))
    return out.reshape(n, size)


def best(scores, k):
    """The indices of the largest scores, the largest first."""
    k = min(k, len(scores))
    candidates = np.argpartition(scores, -k)[-k:]
    return candidates[np.argsort(-scores[candidates], kind="stable")]


class NumPy:
    """The fastest comparison of one query with all vectors that NumPy offers for the type."""

    name = "numpy"

    def __init__(self, kind, stored, k):
        self.kind, self.stored, self.k = kind, stored, k
        if kind in ["f32", "int8"]:
            # Ours and usearch compare by the cosine, too. The norms of vectors of integers are kept by ours as well.
            self.norms = np.array([np.linalg.norm(row.astype(np.float32)) for row in stored])

    def search(self, query):
        if self.kind == "bits":
            # Sums of words of 64 bits are several times faster than sums of bytes.
            differing = self.stored.view(np.uint64) ^ query.view(np.uint64)
            return best(-np.bitwise_count(differing).sum(axis=1, dtype=np.int32), self.k)
        if self.kind == "int8":
            dots = np.einsum("ij,j->i", self.stored, query, dtype=np.int32, casting="safe")
            return best(dots / self.norms, self.k)
        return best(self.stored @ query / self.norms, self.k)


class USearch:
    """usearch's exact search, without an index."""

    name = "usearch"

    def __init__(self, kind, stored, k):
        self.stored, self.k = stored, k
        self.metric = MetricKind.Hamming if kind == "bits" else MetricKind.Cos

    def search(self, query):
        return search(self.stored, query, self.k, self.metric, exact=True, threads=1).keys


class NumKong:
    """The kernels that usearch uses, called once for all vectors."""

    name = "numkong"

    def __init__(self, kind, stored, k):
        self.stored, self.k = stored, k
        self.options = {"f32": {}, "f16": {}, "int8": {}, "bits": {"dtype": "uint1"}}[kind]
        self.metric = "hamming" if kind == "bits" else "angular"

    def search(self, query):
        distances = numkong.cdist(query[None], self.stored, self.metric, **self.options)
        return best(-np.asarray(distances, dtype=np.float64)[0], self.k)


def run(peer, queries):
    start = time.perf_counter()
    hits = [peer.search(query) for query in queries]
    return time.perf_counter() - start, hits


class Ours:
    def __init__(self, program, kind, args):
        numbers = [args.vectors, args.dimensions, args.queries, args.k]
        command = ["taskset", "-c", str(args.cpu), program, kind, *map(str, numbers)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # NumPy asks the kernel for huge pages for its arrays. With this setting, glibc does the same for our vectors.
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{program} has failed")

    def run(self):
        print(file=self.process.stdin, flush=True)
        reply = json.loads(self.process.stdout.readline())
        return reply["seconds"], reply["hits"]

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def agreement(hits, expected):
    """The share of the hits that are among the expected ones."""
    found = [len(set(map(int, a)) & set(map(int, b))) / len(b) for a, b in zip(hits, expected)]
    return sum(found) / len(found)


def measure(kind, args):
    stored = vectors(kind, 1, args.vectors, args.dimensions)
    queries = vectors(kind, 2, args.queries, args.dimensions)
    ours = Ours(args.ours, kind, args)
    results = []
    # NumPy has no fast product of f16.
    for peer_class in [USearch, NumKong] if kind == "f16" else [NumPy, USearch, NumKong]:
        peer = peer_class(kind, stored, args.k)
        run(peer, queries)
        ours.run()
        seconds, ratios = {"ours": [], "peer": []}, []
        for _ in range(args.rounds):
            peer_seconds, expected = run(peer, queries)
            our_seconds, hits = ours.run()
            seconds["ours"].append(our_seconds / args.queries)
            seconds["peer"].append(peer_seconds / args.queries)
            ratios.append(peer_seconds / our_seconds)
        milliseconds = {name: 1000 * median(times) for name, times in seconds.items()}
        result = {
            "kind": kind,
            "peer": peer.name,
            "ours_ms": milliseconds["ours"],
            "peer_ms": milliseconds["peer"],
            "ours_gb_per_s": stored.nbytes / median(seconds["ours"]) / 1e9,
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "agreement": agreement(hits, expected),
        }
        results.append(result)
        print(
            f"{kind:<6}{peer.name:<10}{result['peer_ms']:>10.2f}{result['ours_ms']:>10.2f}"
            f"{result['ours_gb_per_s']:>8.1f}{result['ratio']:>8.2f}"
            f"  ({result['ratio_min']:.2f}–{result['ratio_max']:.2f}){result['agreement']:>8.3f}",
            flush=True,
        )
    ours.end()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", default="target/release/examples/search_speed", help="our program")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--queries", type=int, default=5, help="queries of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--kinds", default="f32,f16,int8,bits", help=f"of {','.join(KINDS)}")
    parser.add_argument("--cpu", type=int, default=0, help="the core on which all programs run")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    if args.dimensions % 64 != 0:
        parser.error("--dimensions is not a multiple of 64")
    os.sched_setaffinity(0, [args.cpu])
    print(f"{args.vectors} vectors of {args.dimensions} dimensions, one thread; ratio = their time / ours")
    print(f"{'type':<6}{'peer':<10}{'peer ms':>10}{'ours ms':>10}{'GB/s':>8}{'ratio':>8}   agreement of hits")
    results = [result for kind in args.kinds.split(",") for result in measure(kind, args)]
    if args.out:
        names = ["numpy", "usearch", "numkong"]
        report = {
            "versions": {name: metadata.version(name) for name in names},
            "arguments": vars(args) | {"out": str(args.out)},
            "results": results,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
