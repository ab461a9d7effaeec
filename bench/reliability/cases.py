"""Hostile texts, for the server and for the command."""

import random


def every_plane():
    """One character of every 128 code points from U+0000 to U+10FFFF, and all non-characters. Surrogates are left
    out, because they are not characters."""
    code_points = set(range(1, 0x110000, 128)) | {0x10FFFF}
    code_points |= set(range(0xFDD0, 0xFDF0))
    code_points |= {plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)}
    return "".join(chr(code) for code in sorted(code_points) if not 0xD800 <= code < 0xE000)


def mixed_marks(n):
    """One letter with `n` combining marks of several combining classes in random order, which NFC has to sort."""
    marks = "\u0301\u0327\u0316\u0334\u05b0\u064b\u0345\u0f71\u3099\U0001d165"
    rng = random.Random(7)
    return "a" + "".join(rng.choice(marks) for _ in range(n))


def texts():
    """Name and text of every hostile text. Each of them is valid Unicode."""
    rng = random.Random(3)
    anything = [chr(rng.randrange(0x20, 0xD800)) for _ in range(20_000)]
    return {
        "NUL characters": "before\0after" + "\0" * 1000,
        "all control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
        "right-to-left marks": "a" + "\u200f\u202e\u2067" * 20_000,
        "combining marks of one class": "a" + "\u0301" * 100_000,
        "combining marks of many classes": mixed_marks(100_000),
        "zero-width joiners": "\u200d" * 100_000,
        "emoji joined": "\U0001f469\u200d" * 20_000,
        "variation selectors": "a" + "\ufe0f\U000e0100" * 20_000,
        "Hangul letters to compose": "\u1112\u1161\u11ab" * 20_000,
        "letters that NFC expands": "\u0390\u1f87\ufb2c\U0001d160" * 10_000,
        "every plane of Unicode": every_plane(),
        "random characters": "".join(anything),
        "byte order marks": "\ufeff" * 10_000,
        "line and paragraph separators": "\u2028\u2029\x85" * 10_000,
        "special tokens": "<|im_end|><|endoftext|><|im_start|>" * 1000,
        "half special tokens": "<|im_end" * 5000 + "|>" * 5000,
        "one word of 100 kB": "a" * 100_000,
        "100 kB of spaces": " " * 100_000,
        "100 kB of line breaks": "\r\n" * 50_000,
        "100 kB of digits": "7" * 100_000,
        "100 kB of apostrophes": "'s" * 50_000,
        "JSON inside a text": '{"input": "]}\\", [[[' * 2000,
    }


def long_runs(n_bytes):
    """Texts of about `n_bytes` bytes that consist of one character, for tokenizers whose time is not linear."""
    characters = {"a": "a", "space": " ", "line break": "\n", "!": "!", "digit": "1", "Chinese": "\u4e2d",
                  "combining": "\u0301", "emoji": "\U0001f600", "NUL": "\0"}
    return {name: char * (n_bytes // len(char.encode())) for name, char in characters.items()}
