"""Other implementations of Qwen3 embedding, each behind the same few methods.

A peer is constructed in a process of its own and imports its library there. It takes token ids and
gives the last token's hidden state after the final norm, so that no tokenizer is timed.
"""

import abc
import json
import os
import pathlib
import subprocess
import tomllib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

import convert
from workloads import Tokens, Vectors

HERE = pathlib.Path(__file__).parent


class Unsupported(Exception):
    """This peer cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Setup:
    """What every peer is constructed with."""

    model: pathlib.Path
    cache: pathlib.Path
    """A folder for what is made of this checkpoint."""
    threads: int
    max_tokens: int
    """The length of the longest text that will come."""
    device: str = "cpu"
    """`cpu`, or `cuda` for the first CUDA device."""


def resident_peak(pid: int) -> int:
    """The most memory that a process had resident so far, in bytes."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


class Peer(abc.ABC):
    """One implementation with a checkpoint loaded at one precision."""

    pads = True
    """Whether texts of different lengths that are computed together cost padding."""

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str:
        """The library and its version."""

    @classmethod
    def prepare(cls, setup: Setup, precision: str) -> pathlib.Path:
        """The file or folder that the constructor loads, written first where it is missing."""
        return setup.model

    @classmethod
    def same_weights(cls, setup: Setup, precision: str) -> pathlib.Path:
        """What ours is to load beside this peer: the checkpoint, or the file that both read."""
        return setup.model

    @abc.abstractmethod
    def __init__(self, setup: Setup, precision: str) -> None:
        """Loads the checkpoint."""

    def inputs(self, batch: list[Tokens]) -> Any:
        """What `embed` takes for a batch. This is not timed."""
        return padded(batch) if self.pads else batch

    @abc.abstractmethod
    def embed(self, inputs: Any) -> Vectors:
        """One row for each text of the batch."""

    def peak_bytes(self) -> int:
        """The most memory that the peer had so far: resident, or on the CUDA device."""
        return resident_peak(os.getpid())


Integers = NDArray[np.int64]


def padded(batch: list[Tokens]) -> tuple[Integers, Integers, Integers]:
    """Token ids and a mask, texts × tokens, and the lengths of the texts.

    Texts are padded on the right, where a causal model never looks, and the row of the last real
    token is taken. Padded on the left, OpenVINO's conversion gives NaN.
    """
    lengths = np.array([len(tokens) for tokens in batch])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    for row, tokens in zip(ids, batch, strict=True):
        row[: len(tokens)] = tokens
    return ids, mask, lengths


class PaddedPeer(Peer):
    """A peer whose forward pass takes a rectangle of token ids and a mask."""

    @abc.abstractmethod
    def forward(self, ids: Integers, mask: Integers) -> Vectors:
        """Hidden states after the final norm, texts × tokens × hidden size."""

    def embed(self, inputs: Any) -> Vectors:
        ids, mask, lengths = inputs
        return self.forward(ids, mask)[np.arange(len(ids)), lengths - 1]


class PyTorch(Peer):
    """The bare model as transformers and sentence-transformers run it: eager, with sdpa."""

    @classmethod
    def version(cls) -> str:
        return f"torch {metadata.version('torch')}, transformers {metadata.version('transformers')}"

    def __init__(self, setup: Setup, precision: str) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        self._device = setup.device
        self._model = convert.bare_model(setup.model, precision).to(setup.device)

    def embed(self, inputs: Any) -> Vectors:
        import torch

        with torch.inference_mode():
            ids, mask, lengths = (torch.from_numpy(array).to(self._device) for array in inputs)
            # Of a batch on a CUDA device, only the last tokens are copied to the host.
            last = self._model(ids, mask)[torch.arange(len(ids), device=self._device), lengths - 1]
            return last.float().cpu().numpy()

    def peak_bytes(self) -> int:
        import torch

        return torch.cuda.max_memory_reserved() if self._device == "cuda" else super().peak_bytes()


class OpenVino(PaddedPeer):
    """OpenVINO's CPU plugin. Its int8 has weights compressed by nncf and quantizes activations in
    groups of 256 as it runs, the fastest of its group sizes; what is not quantized is computed in
    bf16 where the processor has it."""

    @classmethod
    def version(cls) -> str:
        return f"openvino {metadata.version('openvino')}, nncf {metadata.version('nncf')}"

    @classmethod
    def prepare(cls, setup: Setup, precision: str) -> pathlib.Path:
        write = convert.openvino_int8 if precision == "int8" else convert.openvino_f32
        return write(setup.model, setup.cache)

    def __init__(self, setup: Setup, precision: str) -> None:
        import openvino

        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise Unsupported("OpenVINO computes no bf16 on this processor")
        options = {
            "INFERENCE_NUM_THREADS": setup.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision != "f32" and has_bf16 else "f32",
            # The process is pinned already: one thread has its core, several still move about.
            "ENABLE_CPU_PINNING": setup.threads > 1,
        }
        if precision == "int8":
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 256
        path = self.prepare(setup, precision)
        self._model = core.compile_model(path / "model.xml", "CPU", options)

    def forward(self, ids: Integers, mask: Integers) -> Vectors:
        return self._model({"input_ids": ids, "attention_mask": mask})[0]


class OnnxRuntime(PaddedPeer):
    """ONNX Runtime with weights quantized by quantize_dynamic, activations as it runs."""

    @classmethod
    def version(cls) -> str:
        return f"onnxruntime {metadata.version('onnxruntime')}"

    @classmethod
    def prepare(cls, setup: Setup, precision: str) -> pathlib.Path:
        return convert.onnx_int8(setup.model, setup.cache)

    def __init__(self, setup: Setup, precision: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        path = self.prepare(setup, precision) / "model.onnx"
        self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def forward(self, ids: Integers, mask: Integers) -> Vectors:
        return self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class LlamaCpp(Peer):
    """llama.cpp in its embedding mode, pooling the last token. Short texts share a batch up to
    llama.cpp's default of tokens that are computed together; longer ones go alone."""

    pads = False
    N_TOKENS_TOGETHER = 512
    N_TEXTS_TOGETHER = 64

    @classmethod
    def version(cls) -> str:
        return f"llama-cpp-python {metadata.version('llama-cpp-python')}"

    @classmethod
    def prepare(cls, setup: Setup, precision: str) -> pathlib.Path:
        return convert.gguf_quantized(setup.model, setup.cache, precision)

    @classmethod
    def same_weights(cls, setup: Setup, precision: str) -> pathlib.Path:
        return cls.prepare(setup, precision) / "model.gguf"

    def __init__(self, setup: Setup, precision: str) -> None:
        import llama_cpp

        self._api = llama_cpp
        path = self.same_weights(setup, precision)
        model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = max(setup.max_tokens, self.N_TOKENS_TOGETHER)
        options.n_ubatch = self.N_TOKENS_TOGETHER
        options.n_seq_max = self.N_TEXTS_TOGETHER
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = setup.threads
        options.embeddings = True
        options.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_LAST
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        self._hidden_size = llama_cpp.llama_model_n_embd(model)
        self._batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)

    def embed(self, batch: list[Tokens]) -> Vectors:
        rows: list[Vectors] = []
        while len(rows) < len(batch):
            rows.extend(self._decode(self._that_fit(batch[len(rows) :])))
        return np.stack(rows)

    def _that_fit(self, texts: list[Tokens]) -> list[Tokens]:
        """The first texts that are computed together: at least one."""
        n_tokens = np.cumsum([len(tokens) for tokens in texts[: self.N_TEXTS_TOGETHER]])
        return texts[: max(1, int(np.searchsorted(n_tokens, self.N_TOKENS_TOGETHER, "right")))]

    def _decode(self, texts: list[Tokens]) -> list[Vectors]:
        api, batch = self._api, self._batch
        places = [(i, j, token) for i, text in enumerate(texts) for j, token in enumerate(text)]
        batch.n_tokens = len(places)
        for k, (i, j, token) in enumerate(places):
            batch.token[k], batch.pos[k] = token, j
            batch.n_seq_id[k], batch.seq_id[k][0] = 1, i
            batch.logits[k] = True
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        status = api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with {status}")
        shape = (self._hidden_size,)
        return [
            np.ctypeslib.as_array(api.llama_get_embeddings_seq(self._context, i), shape).copy()
            for i in range(len(texts))
        ]


class FastembedRs(Peer):
    """fastembed-rs, which runs candle, in the program of the folder fastembed/. It computes texts
    of equal length together."""

    pads = False

    @classmethod
    def version(cls) -> str:
        lock = tomllib.loads((HERE / "fastembed/Cargo.lock").read_text())
        versions = {package["name"]: package["version"] for package in lock["package"]}
        return f"fastembed-rs {versions['fastembed']}, candle {versions['candle-core']}"

    @classmethod
    def prepare(cls, setup: Setup, precision: str) -> pathlib.Path:
        # Beside the models' folders: the program is the same for every checkpoint.
        target = setup.cache.parent / "fastembed"
        command = ["cargo", "build", "--release", "--locked", "--quiet"]
        flags = {"CARGO_TARGET_DIR": str(target), "RUSTFLAGS": "-C target-cpu=native"}
        subprocess.run(command, cwd=HERE / "fastembed", env=os.environ | flags, check=True)
        return target / "release/fastembed-peer"

    def __init__(self, setup: Setup, precision: str) -> None:
        self._program = subprocess.Popen(
            [self.prepare(setup, precision), setup.model],
            env=os.environ | {"RAYON_NUM_THREADS": str(setup.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def embed(self, batch: list[Tokens]) -> Vectors:
        assert self._program.stdin and self._program.stdout
        self._program.stdin.write(json.dumps(batch) + "\n")
        self._program.stdin.flush()
        line = self._program.stdout.readline()
        if not line:
            raise RuntimeError(f"the program ended with {self._program.wait()}")
        return np.array(json.loads(line), dtype=np.float32)

    def peak_bytes(self) -> int:
        return resident_peak(self._program.pid)


@dataclass(frozen=True)
class Kind:
    """A peer and the precision it runs at."""

    peer: type[Peer]
    precision: str


ON_CUDA = ["pytorch-bf16", "pytorch-f32"]
"""The peers that run on a CUDA device."""

KINDS: dict[str, Kind] = {
    "pytorch-f32": Kind(PyTorch, "f32"),
    "pytorch-bf16": Kind(PyTorch, "bf16"),
    "openvino-f32": Kind(OpenVino, "f32"),
    "openvino-bf16": Kind(OpenVino, "bf16"),
    "openvino-int8": Kind(OpenVino, "int8"),
    "onnxruntime-int8": Kind(OnnxRuntime, "int8"),
    "llamacpp-q8_0": Kind(LlamaCpp, "q8_0"),
    "llamacpp-q4_k_m": Kind(LlamaCpp, "q4_k_m"),
    "fastembed-f32": Kind(FastembedRs, "f32"),
}
