"""Times other implementations beside qwen3-embed, on one checkpoint and the same token counts.

    python compare.py --model DIR --ours PATH/qwen3-embed --threads 1

Each peer takes turns with ours on the same cores or the same CUDA device, so that both see the
machine in the same state, and is compared by the median of the rounds' ratios.
"""

import argparse
import hashlib
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace

import numpy as np

import machine
import workloads
from peers import KINDS, ON_CUDA, Setup
from worker import PeerFailed, Worker, worker
from workloads import Tokens, Vectors, Workload

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = "pytorch-f32"
OURS_FOR = {"f32": "f32", "bf16": "bf16", "int8": "int8", "q8_0": "int8", "q4_k_m": "int8"}
"""Our precision for a peer of a precision."""


@dataclass(frozen=True)
class Ours:
    """The qwen3-embed program."""

    program: pathlib.Path
    model: pathlib.Path
    """A checkpoint's folder, or a GGUF file."""
    threads: int
    device: str

    def measure(self, workload: Workload, precision: str, n_runs: int) -> "Measured":
        """The median of some runs after a warm-up; loading does not count."""
        command = ["bench", "--runs", str(n_runs), "--json", *workload.bench]
        report = json.loads(self._output(command, precision))
        result = report["results"][0]
        peak_bytes = result.get("peak_device_bytes") or result.get("peak_rss_bytes")
        speed, share = result["tokens_per_s"], result.get("peak_share", float("nan"))
        return Measured(report["machine"], speed, share, peak_bytes)

    def vectors(self, texts: list[Tokens], precision: str) -> Vectors:
        """The vectors of token ids."""
        lines = "".join(json.dumps({"tokens": tokens}) + "\n" for tokens in texts)
        output = self._output(["embed"], precision, lines)
        return np.array([json.loads(line)["embedding"] for line in output.splitlines()])

    def _output(self, command: list[str], precision: str, stdin: str = "") -> str:
        options = {
            "model": self.model,
            "precision": precision,
            "threads": self.threads,
            "device": self.device,
        }
        done = subprocess.run(
            [self.program, *command, *(f"--{name}={value}" for name, value in options.items())],
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout


@dataclass(frozen=True)
class Measured:
    """What `qwen3-embed bench` measured."""

    machine: str
    """A line about the processor or the CUDA device, with its measured peak."""
    tokens_per_s: float
    peak_share: float
    """The operations per second as a share of the peak. NaN if the peak is unknown."""
    peak_bytes: int | None
    """The most memory of the process or of the CUDA device."""


@dataclass
class Row:
    """The rounds of one workload by one peer and ours."""

    peer: str
    workload: str
    batch_size: int | None
    """None where the peer is given all texts at once."""
    n_texts: int
    n_tokens: int
    """Real tokens: no padding counts."""
    ours: str
    """Our precision."""
    peer_tokens_per_s: list[float] = field(default_factory=list)
    ours_tokens_per_s: list[float] = field(default_factory=list)
    ours_peak_share: list[float] = field(default_factory=list)
    ours_peak_bytes: int | None = None

    def cells(self) -> list[str]:
        """Medians, and the least and the largest ratio of ours to the peer's."""
        pairs = zip(self.ours_tokens_per_s, self.peer_tokens_per_s, strict=True)
        ratios = [ours / peer for ours, peer in pairs]
        return [
            self.peer,
            self.workload + (f", batches of {self.batch_size}" if self.batch_size else ""),
            f"{statistics.median(self.peer_tokens_per_s):.1f}",
            f"{statistics.median(self.ours_tokens_per_s):.1f} ({self.ours})",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}–{max(ratios):.2f}",
            f"{100 * statistics.median(self.ours_peak_share):.1f}%",
            "" if self.ours_peak_bytes is None else f"{self.ours_peak_bytes / 1e9:.1f} GB",
        ]


@dataclass
class Described:
    """A peer, or one precision of ours, apart from its speed."""

    peer: str
    version: str
    cosine: float | None
    """The least over the reference texts; none if a vector is not finite."""
    peak_bytes: int | None = None
    load_s: float | None = None

    def cells(self) -> list[str]:
        """The peer's line of the table."""
        memory = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e9:.1f} GB"
        loading = "" if self.load_s is None else f"{self.load_s:.1f} s"
        cosine = "not finite" if self.cosine is None else f"{self.cosine:.5f}"
        return [self.peer, self.version, cosine, memory, loading]


@dataclass
class Comparison:
    """One run of this program, and what it found so far."""

    machine: machine.Machine
    ours: Ours
    setup: Setup
    workloads: list[Workload]
    texts: list[Tokens]
    """Reference texts, whose vectors are compared."""
    batch_sizes: list[int]
    rounds: int
    runs: int
    """Runs in each round, of which the median counts."""
    ours_for: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    described: list[Described] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    ours_on: str = ""
    """What ours says of the machine."""
    out: pathlib.Path | None = None
    """The file for all measurements."""

    def save(self) -> None:
        """Writes what was measured so far to the file."""
        if not self.out:
            return
        report = {
            "machine": asdict(self.machine),
            "ours_on": self.ours_on,
            "threads": self.setup.threads,
            "model": str(self.setup.model),
            "rows": [asdict(row) for row in self.rows],
            "peers": [asdict(described) for described in self.described],
            "left_out": self.left_out,
        }
        self.out.write_text(json.dumps(report, indent=1) + "\n")

    def prepare(self, names: list[str]) -> list[str]:
        """Converts the checkpoint for peers; the ones for which that worked."""
        return [name for name in names if self._attempt(name, self._prepare)]

    def add_peers(self, names: list[str]) -> None:
        """Measures peers beside ours."""
        for name in names:
            self._attempt(name, self._add_peer)

    def add_ours(self) -> None:
        """Notes how close our own vectors are, at each precision that a peer was compared with."""
        for precision in sorted({row.ours for row in self.rows}):
            cosine = least_cosine(self.ours.vectors(self.texts, precision), self.reference())
            self.described.append(Described("ours", f"qwen3-embed {precision}", cosine))

    def reference(self) -> Vectors:
        """The reference texts' vectors by PyTorch in f32, one text at a time and so unpadded."""
        path = self.setup.cache / "reference.npy"
        if not path.exists():
            with self._process(REFERENCE) as process:
                process.call("load", REFERENCE, self.setup)
                run = process.call("run", [[tokens] for tokens in self.texts])
            np.save(path, run.vectors)
        return np.load(path)

    def _attempt(self, name: str, work: Callable[[str], None]) -> bool:
        try:
            work(name)
        except PeerFailed as reason:
            self.left_out[name] = str(reason)
        return name not in self.left_out

    def _process(self, name: str) -> AbstractContextManager[Worker]:
        return worker(self.setup.cache / f"{name}.log")

    def _prepare(self, name: str) -> None:
        progress(f"{name}: preparing")
        with self._process(name) as process:
            process.call("prepare", name, self.setup)

    def _add_peer(self, name: str) -> None:
        progress(f"{name}: loading")
        with self._process(name) as process:
            load_s = process.call("load", name, self.setup)
            vectors = process.call("run", [self.texts]).vectors
            for workload in self.workloads:
                try:
                    self.rows += self._measure(process, name, workload)
                except (PeerFailed, subprocess.CalledProcessError) as reason:
                    self.left_out[f"{name}, {workload.name}"] = str(reason)
                self.save()
            peak_bytes = process.call("peak_bytes")
        cosine = least_cosine(vectors, self.reference())
        version = KINDS[name].peer.version()
        self.described.append(Described(name, version, cosine, peak_bytes, load_s))

    def _measure(self, process: Worker, name: str, workload: Workload) -> list[Row]:
        """One workload: a warm-up, then the peer with every batch size and ours, in turns."""
        kind = KINDS[name]
        precision = self.ours_for[kind.precision]
        ours = replace(self.ours, model=kind.peer.same_weights(self.setup, kind.precision))
        at_once = workload.one_length or not kind.peer.pads
        rows = [
            Row(name, workload.name, size, len(workload.texts), workload.n_tokens, precision)
            for size in ([None] if at_once else self.batch_sizes)
        ]
        for row in rows:
            process.call("run", workload.batches(row.batch_size))
        for _ in range(self.rounds):
            for row in rows:
                run = process.call("run", workload.batches(row.batch_size), self.runs)
                row.peer_tokens_per_s.append(row.n_tokens / run.seconds)
            measured = ours.measure(workload, precision, self.runs)
            self.ours_on = measured.machine
            for row in rows:
                row.ours_tokens_per_s.append(measured.tokens_per_s)
                row.ours_peak_share.append(measured.peak_share)
                row.ours_peak_bytes = measured.peak_bytes
        for row in rows:
            progress(table_line(row.cells()))
        return rows


def least_cosine(rows: Vectors, reference: Vectors) -> float | None:
    """The least cosine of a row with the reference's, if all are finite."""
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
    least = float(np.min(np.sum(rows * reference, axis=1) / norms))
    return least if np.isfinite(least) else None


def progress(line: str) -> None:
    """Tells who waits what is going on."""
    print(line, file=sys.stderr, flush=True)


def table_line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(map(table_line, [heading, ["---"] * len(heading), *rows]))


def cache_of(model: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """The folder for what is made of a checkpoint: another one when its files change."""
    files = [model / "config.json", *sorted(model.glob("*.safetensors"))]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:8]
    return cache / f"{model.name}-{digest}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""

    def items(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(item) for item in items(text)]

    def pairs(text: str) -> dict[str, str]:
        return dict(item.split("=") for item in items(text))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=pathlib.Path, required=True, help="folder with a checkpoint")
    add("--ours", type=pathlib.Path, required=True, help="the qwen3-embed program")
    add("--threads", type=int, default=1)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: the first CUDA device")
    add("--workloads", type=items, default=["8x128"], help="such as 8x128,mixed,mixed/8,queries,rerank")
    add("--peers", type=items, help=f"default: all, {','.join(KINDS)}; on cuda {','.join(ON_CUDA)}")
    add("--rounds", type=int, default=3, help="turns of peer and ours")
    add("--runs", type=int, default=1, help="runs in each turn, of which the median counts")
    add("--batch-sizes", type=numbers, default=[1, 8, 32], help="of mixed and queries, if padded")
    add("--ours-for", type=pairs, default={}, help="our precision for a peer's: int8=int8,…")
    add("--cache", type=pathlib.Path, default=ROOT / "target/peers", help="converted checkpoints")
    add("--out", type=pathlib.Path, help="file for all measurements, as JSON")
    arguments = parser.parse_args()
    available = ON_CUDA if arguments.device == "cuda" else list(KINDS)
    arguments.peers = arguments.peers or available
    for name in arguments.peers:
        if name not in available:
            parser.error(f"no peer is called {name}: there are {', '.join(available)}")
    files = [arguments.model / name for name in ("config.json", "tokenizer.json")]
    for file in [*files, arguments.ours]:
        if not file.is_file():
            parser.error(f"{file} is missing")
    return arguments


def main() -> None:
    """Prepares the peers, measures them, and prints the tables."""
    arguments = parse_arguments()
    model = arguments.model.resolve()
    cache = cache_of(model, arguments.cache.resolve())
    cache.mkdir(parents=True, exist_ok=True)
    loads = [workloads.parse(name, model) for name in arguments.workloads]
    texts = workloads.tokenize(workloads.REFERENCE_TEXTS, model)
    longest = max(map(len, [*texts, *(text for load in loads for text in load.texts)]))
    this = machine.describe()
    comparison = Comparison(
        machine=this,
        ours=Ours(arguments.ours.resolve(), model, arguments.threads, arguments.device),
        setup=Setup(model, cache, arguments.threads, longest, arguments.device),
        workloads=loads,
        texts=texts,
        batch_sizes=arguments.batch_sizes,
        rounds=arguments.rounds,
        runs=arguments.runs,
        ours_for=OURS_FOR | arguments.ours_for,
        out=arguments.out,
    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    names = comparison.prepare(arguments.peers)
    if arguments.device == "cpu":
        machine.pin(arguments.threads)
    comparison.add_peers(names)
    comparison.add_ours()
    print(f"{this.cpu}, {' '.join(this.flags)}, {arguments.threads} of {this.cores} cores")
    print(f"{comparison.ours_on}\n")
    speeds = ["peer", "workload", "peer tokens/s", "ours tokens/s", "ours / peer", "spread"]
    speeds += ["ours of peak", "ours memory"]
    print(table(speeds, [row.cells() for row in comparison.rows]) + "\n")
    peers = ["peer", "version", "least cosine to PyTorch f32", "peak memory", "loading"]
    print(table(peers, [described.cells() for described in comparison.described]))
    for name, reason in comparison.left_out.items():
        print(f"\n{name} is left out: {reason}")
    comparison.save()


if __name__ == "__main__":
    main()
