"""The texts that are timed, as token ids, of the same lengths as those of `qwen3-embed bench`."""

import json
import pathlib
import random
import tempfile
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

Tokens = list[int]
Vectors = NDArray[np.float32]

MIXED_LENGTHS = pathlib.Path(__file__).parent.parent / "mixed_lengths.json"
N_QUERIES = 256
N_RERANKED = 100
RERANK_TOKENS = (96, 128)
"""Of the instruction and the query, which all prompts of a rerank call have in common, and of a
document."""
QUERY_HEAD = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)

REFERENCE_TEXTS = [
    "a",
    "The capital of China is Beijing.",
    QUERY_HEAD + "What is gravity?",
    "今天天气真好，适合出去散步。 오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요.",
    "Gravity is a force that attracts two bodies towards each other. " * 50,
]
"""Texts whose vectors are compared; the last one is longer than 512 tokens."""


@dataclass(frozen=True)
class Workload:
    """Texts that are embedded by one call."""

    name: str
    texts: list[Tokens]
    one_length: bool
    """Whether all texts have the same length, and so make one batch without padding."""
    bench: list[str]
    """What makes `qwen3-embed bench` run texts of these lengths."""

    @property
    def n_tokens(self) -> int:
        """Real tokens: no padding counts."""
        return sum(map(len, self.texts))

    def batches(self, size: int | None) -> list[list[Tokens]]:
        """The texts sorted by length in batches of `size`, or as one batch."""
        if size is None:
            return [self.texts]
        texts = sorted(self.texts, key=len)
        return [texts[i : i + size] for i in range(0, len(texts), size)]


def parse(name: str, checkpoint: pathlib.Path) -> Workload:
    """`mixed`, `mixed/N` for every Nth of its texts, `queries`, `rerank`, or texts × tokens such as
    8x128."""
    vocab_size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    ids = random.Random(0)

    def texts_of(lengths: list[int]) -> list[Tokens]:
        return [[ids.randrange(vocab_size) for _ in range(n)] for n in lengths]

    if name == "mixed":
        lengths = json.loads(MIXED_LENGTHS.read_text())
        return Workload(name, texts_of(lengths), False, ["--lengths", str(MIXED_LENGTHS)])
    if name.startswith("mixed/"):
        lengths = json.loads(MIXED_LENGTHS.read_text())[:: int(name.removeprefix("mixed/"))]
        file = pathlib.Path(tempfile.gettempdir()) / f"{name.replace('/', '-')}.json"
        file.write_text(json.dumps(lengths))
        return Workload(name, texts_of(lengths), False, ["--lengths", str(file)])
    if name == "queries":
        frame = tokenize([QUERY_HEAD], checkpoint)[0]
        texts = [frame[:-1] + query + frame[-1:] for query in texts_of(query_lengths())]
        return Workload(name, texts, False, ["--queries", str(N_QUERIES)])
    if name == "rerank":
        n_prefix, n_document = RERANK_TOKENS
        prefix = texts_of([n_prefix])[0]
        texts = [prefix + text for text in texts_of([n_document] * N_RERANKED)]
        bench = ["--shape", f"{N_RERANKED}x{n_document}", "--prefix", str(n_prefix)]
        return Workload(name, texts, True, bench)
    try:
        n_texts, n_tokens = map(int, name.split("x"))
    except ValueError:
        raise ValueError(f"expected mixed, mixed/N, queries, rerank or a shape such as 8x128, got {name}") from None
    return Workload(name, texts_of([n_tokens] * n_texts), True, ["--shape", name])


def query_lengths() -> list[int]:
    """Tokens of each query without its instruction, by the generator of `qwen3-embed bench`."""
    state, lengths = 2, []
    for _ in range(N_QUERIES):
        state = (state * 6_364_136_223_846_793_005 + 1) % 2**64
        lengths.append(4 + (state >> 33) % 13)
    return lengths


def tokenize(texts: list[str], checkpoint: pathlib.Path) -> list[Tokens]:
    """Token ids with the end-of-text token that the checkpoint's tokenizer appends."""
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
