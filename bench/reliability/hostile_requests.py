"""The hostile requests, as data: what is sent, and which responses are right."""

import gzip
import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from client import head, post

MIB = 1 << 20
EMBEDDINGS = "/v1/embeddings"
GIGABYTES = 4


@dataclass
class Case:
    """One request. `parts` makes the byte strings that are sent. `statuses` are the right statuses; `field` is the
    beginning of the error's `param`; `json` tells whether an error has the API's body; `may_close` tells whether
    the server may close the connection without a response; `most_responses` is how many responses may come."""

    name: str
    parts: Callable
    statuses: tuple = (400,)
    field: str | None = None
    json: bool = True
    may_close: bool = False
    most_responses: int | None = None
    timeout: float = 60

    @property
    def wait_s(self):
        """How long to wait for further responses."""
        return 0.5 if self.most_responses else 0

    def has_few_responses(self, reply):
        return not self.most_responses or 1 + reply.rest.count(b"HTTP/1.1 ") <= self.most_responses


def body(name, content, *headers, path=EMBEDDINGS, **options):
    """A case whose body is `content`."""
    return Case(name, lambda: [post(path, content, *headers)], **options)


def raw(name, request, **options):
    """A case of exact bytes."""
    return Case(name, lambda: [request], **options)


def all_cases():
    return [*json_cases(), *field_cases(), *streams(), *compressed(), *http_cases(), *smuggling(), *not_http()]


def json_cases():
    """Bodies that are not the JSON that the route expects."""
    nested = b"[" * 100_000 + b"]" * 100_000
    objects = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    return [
        body("100,000 nested lists", b'{"input": ' + nested + b"}", field="input"),
        body("100,000 nested objects", b'{"input": ' + objects + b"}", field="input"),
        body("100,000 nested lists in a text's place", b'{"input": ["a", ' + nested + b"]}", field="input"),
        body("100,000 nested lists in an unknown field", b'{"input": "a", "x": ' + nested + b"}", statuses=(200,)),
        body("4,000,000 nested lists, not closed", b'{"input": "a", "x": ' + b"[" * 4_000_000),
        body("a list as the body", nested),
        body("no body", b""),
        body("white space of 16 MB", b" " * 16_000_000),
        body("bytes that are not UTF-8", b'{"input": "a\xff\xfe"}', field="input"),
        body("an overlong encoding", b'{"input": "\xc0\xaf"}', field="input"),
        body("an encoded surrogate", b'{"input": "\xed\xa0\xbd"}', field="input"),
        body("a field name that is not UTF-8", b'{"\xff": 1, "input": "a"}'),
        body("UTF-16", '{"input": "a"}'.encode("utf-16")),
        body("a byte order mark", b'\xef\xbb\xbf{"input": "a"}', statuses=(200, 400)),
        body("a NUL byte in a text", b'{"input": "a\0b"}', field="input"),
        body("an escaped NUL", rb'{"input": "a\u0000b"}', statuses=(200,)),
        body("half of a surrogate pair", rb'{"input": "\ud83d"}', field="input"),
        body("the second half of a surrogate pair", rb'{"input": ["a", "\ude00"]}', field="input[1]"),
        body("two bodies", b'{"input": "a"}{"input": "b"}'),
        body("a field twice", b'{"input": "a", "input": "b"}', field="input"),
        body("1,000,000 unknown fields", b'{"input": "a"' + b"".join(b',"%d":1' % i for i in range(1_000_000)) + b"}",
             statuses=(200,)),
        body("5,000,000 empty texts", b'{"input": [""' + b',""' * 5_000_000 + b"]}", field="input"),
        body("5,000,000 empty lists", b'{"input": [[]' + b",[]" * 5_000_000 + b"]}", field="input"),
        body("3,900,000 texts", b'{"input": ["a"' + b',"a"' * 3_900_000 + b"]}", field="input"),
        body("8,000,000 token ids", b'{"input": [1' + b",1" * 8_000_000 + b"]}", field="input"),
        body("2,000 texts of 2,000 token ids",
             b'{"input": [' + b",".join([b"[" + b"1," * 1999 + b"1]"] * 2000) + b"]}", field="input"),
    ]


def field_cases():
    """Fields with values of the wrong type or size."""
    inputs = {"null": b"null", "true": b"true", "an object": b"{}", "a number": b"1.5", "an empty list": b"[]",
              "an empty text": b'""', "mixed types": b'["a", 1]', "a negative id": b"[-1]", "an id of 2^32": b"[4294967296]",
              "an id beyond the vocabulary": b"[4294967295]", "a huge number": b"[1e999]",
              "a number of 10,000 digits": b"[" + b"9" * 10_000 + b"]"}
    made = [body(f"input is {name}", b'{"input": ' + value + b"}", field="input") for name, value in inputs.items()]
    made.append(body("no input", b"{}", field="input"))
    for value in (b"0", b"-1", b"1.5", b"1e999", b"18446744073709551616", b'"256"', b"[256]"):
        sent = b'{"input": "a", "dimensions": ' + value + b"}"
        # The path of a number that is no JSON number is not known to the parser.
        made.append(body(f"dimensions is {value.decode()}", sent, field="dimensions"))
    for name, value in {"encoding_format": b'"base65"', "prompt_name": b'"none such"', "truncate": b'"maybe"',
                        "truncation_side": b'"middle"', "truncate_prompt_tokens": b"-2", "model": b"7"}.items():
        sent = b'{"input": "a", "' + name.encode() + b'": ' + value + b"}"
        made.append(body(f"{name} is {value.decode()}", sent, field=name))
    made.append(body("a model name of 1 MB", b'{"input": "a", "model": "' + b"m" * MIB + b'"}', statuses=(200, 400)))
    made.append(body("an instruction of 10 MB", b'{"input": "a", "instruct": "' + b"i " * 5_000_000 + b'"}'))
    made.append(body("2,049 texts", b'{"input": ["a"' + b',"a"' * 2048 + b"]}", field="input"))
    return made


def of_rerank():
    """Requests for the routes of a reranker, and for those of other APIs."""
    def rerank(name, content, **options):
        return body(name, content, path="/v1/rerank", **options)

    return [
        rerank("rerank: nested lists", b'{"query": "a", "documents": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
               field="documents"),
        rerank("rerank: no documents", b'{"query": "a", "documents": []}', field="documents"),
        rerank("rerank: 100,000 documents", b'{"query": "a", "documents": ["a"' + b',"a"' * 99_999 + b"]}",
               field="documents"),
        # Long queries and documents are cut, as in other rerank APIs.
        rerank("rerank: a query of 1 MB", b'{"query": "' + b"q " * 500_000 + b'", "documents": ["a"]}',
               statuses=(200, 400)),
        rerank("rerank: a document of 10 MB", b'{"query": "a", "documents": ["' + b"d " * 5_000_000 + b'"]}',
               statuses=(200, 400)),
        rerank("rerank: special tokens", b'{"query": "<|im_end|>", "documents": ["<|im_start|>", ""]}', statuses=(200,)),
        rerank("rerank: half of a surrogate pair", rb'{"query": "\ud83d", "documents": ["a"]}', field="query"),
        rerank("rerank: top_n is -1", b'{"query": "a", "documents": ["a"], "top_n": -1}', field="top_n"),
        rerank("rerank: top_n is 2^63", b'{"query": "a", "documents": ["a"], "top_n": 9223372036854775808}',
               statuses=(200, 400)),
        body("score: lists of different lengths", b'{"text_1": ["a", "b", "c"], "text_2": ["a", "b"]}',
             path="/v1/score", field="text_"),
        body("tokenize: 10 MB", b'{"inputs": "' + b"t " * 5_000_000 + b'"}', path="/tokenize", statuses=(200, 400, 413)),
        body("decode: ids beyond the vocabulary", b'{"ids": [4294967295]}', path="/decode", field="ids",
             statuses=(200, 400)),
        body("decode: 8,000,000 ids", b'{"ids": [1' + b",1" * 8_000_000 + b"]}", path="/decode",
             statuses=(200, 400, 413)),
        body("similarity: 100,000 sentences",
             b'{"inputs": {"source_sentence": "a", "sentences": ["a"' + b',"a"' * 99_999 + b"]}}", path="/similarity"),
        body("embed of Cohere: unknown types", b'{"texts": ["a"], "input_type": "x", "embedding_types": ["f8"]}',
             path="/v2/embed"),
    ]


def streams():
    """Bodies of gigabytes. The server refuses them when the limit of 16 MiB is known to be exceeded."""
    ids = b"1," * (MIB // 2)

    def counted():
        length = GIGABYTES << 30
        yield head("POST", EMBEDDINGS, "Content-Type: application/json", f"Content-Length: {length}")
        yield b'{"input": ['
        for _ in range(GIGABYTES << 10):
            yield ids

    def chunked():
        yield head("POST", EMBEDDINGS, "Content-Type: application/json", "Transfer-Encoding: chunked")
        yield b"b\r\n" + b'{"input": [' + b"\r\n"
        for _ in range(GIGABYTES << 10):
            yield b"%x\r\n" % len(ids) + ids + b"\r\n"

    def tiny_chunks():
        yield head("POST", EMBEDDINGS, "Content-Type: application/json", "Transfer-Encoding: chunked")
        for _ in range(20):
            yield b"1\r\n \r\n" * (1 << 20)

    def endless_trailer():
        yield head("POST", EMBEDDINGS, "Content-Type: application/json", "Transfer-Encoding: chunked")
        yield b"e\r\n" + b'{"input": "a"}' + b"\r\n0\r\n"
        for _ in range(64):
            yield b"X-Trailer: " + b"t" * 1000 + b"\r\n"

    def endless_extension():
        yield head("POST", EMBEDDINGS, "Content-Type: application/json", "Transfer-Encoding: chunked")
        yield b"e;"
        for _ in range(64):
            yield b"x" * MIB

    return [
        Case("token ids without end, Content-Length 4 GiB", counted, (413,)),
        Case("token ids without end, in chunks", chunked, (413,)),
        Case("20 million chunks of one byte", tiny_chunks, (413,), timeout=120),
        Case("trailers without end", endless_trailer, (400, 413, 431), json=False, may_close=True),
        Case("a chunk extension without end", endless_extension, (400, 413, 431), json=False, may_close=True),
        raw("Content-Length of 2^64", head("POST", EMBEDDINGS, "Content-Length: 18446744073709551616"), json=False),
    ]


def compressed():
    """Small bodies that are large when they are decompressed, and bodies that are not what they claim to be."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([packer.compress(b" " * MIB) for _ in range(1024)] + [packer.flush()])
    members = gzip.compress(b" " * MIB) * 64
    whole = gzip.compress(b'{"input": "a"}')
    made = [
        body("a gzip bomb of 1 GiB", bomb, "Content-Encoding: gzip", statuses=(413,)),
        body("a gzip bomb of 64 members", members, "Content-Encoding: gzip", statuses=(413,)),
        body("a gzip bomb inside gzip", gzip.compress(bomb), "Content-Encoding: gzip"),
        body("gzip twice", bomb, "Content-Encoding: gzip, gzip", statuses=(415,)),
        body("gzip that is cut off", whole[:-6], "Content-Encoding: gzip"),
        body("1,000,000 empty gzip members", gzip.compress(b"") * 700_000, "Content-Encoding: gzip"),
        body("no gzip", b'{"input": "a"}', "Content-Encoding: gzip"),
        body("no zstd", b'{"input": "a"}', "Content-Encoding: zstd"),
        body("an unknown compression", b'{"input": "a"}', "Content-Encoding: br", statuses=(415,)),
    ]
    if zstd := shutil.which("zstd"):
        for log in (20, 27, 30):
            command = [zstd, "-q", "-19", f"--zstd=wlog={log}", "--ultra", "-c"]
            packed = subprocess.run(command, input=b" " * (256 * MIB), stdout=subprocess.PIPE, check=True).stdout
            made.append(body(f"a zstd bomb of 256 MiB, window 2^{log}", packed, "Content-Encoding: zstd",
                             statuses=(400, 413)))
    return made


def http_cases():
    """Wrong methods, paths, headers and content types."""
    good = b'{"input": "a"}'
    made = [
        raw(f"method {method}", head(method, EMBEDDINGS, "Content-Length: 0"), statuses=(405,))
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QWEN")
    ]
    made.append(raw("method CONNECT", head("CONNECT", "localhost:80"), statuses=(400, 404, 405)))
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded", "application/jsonx", "\xff"):
        made.append(Case(f"content type {kind!a}", lambda kind=kind: [post(EMBEDDINGS, good, content_type=kind)], (415,)))
    made.append(Case("no content type", lambda: [post(EMBEDDINGS, good, content_type=None)], (415,)))
    paths = {"%00": "/%00", "%ff": "/v1/models/%ff", "..": "/../../../etc/passwd", "docs ..": "/docs/../../etc/passwd",
             "docs %2e": "/docs/%2e%2e/%2e%2e/etc/passwd", "twice": "//v1//embeddings", "an absolute URL": "http://x/y"}
    made += [raw(f"path {name}", head("GET", path), statuses=(400, 404)) for name, path in paths.items()]
    made += [
        raw("a path of 60 kB", head("GET", "/" + "p" * 60_000), statuses=(400, 404, 414, 431), json=False),
        raw("a path of 1 MB", head("GET", "/" + "p" * MIB), statuses=(400, 414, 431), json=False),
        raw("a header of 1 MB", head("GET", "/livez", "X-Large: " + "h" * MIB), statuses=(400, 431), json=False),
        raw("100,000 headers", head("GET", "/livez", *[f"X-{i}: 1" for i in range(100_000)]), statuses=(400, 431),
            json=False),
        raw("1,000 headers", head("GET", "/livez", *[f"X-{i}: 1" for i in range(1000)]), statuses=(400, 431),
            json=False),
        raw("a header name of spaces", head("GET", "/livez", " : x"), json=False),
        raw("a NUL in a header", head("GET", "/livez", "X-Nul: a\0b"), json=False),
        raw("a request id with a line break", head("GET", "/livez", "X-Request-Id: a\rb"), json=False),
        raw("a request id of 60 kB", head("GET", "/livez", "X-Request-Id: " + "i" * 60_000), statuses=(200,)),
        raw("an unknown expectation", post(EMBEDDINGS, good, "Expect: the-unexpected"), statuses=(200, 417)),
        raw("an upgrade to HTTP/2", head("GET", "/livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
                                         "HTTP2-Settings: AAMAAABkAAQAAP__"), statuses=(200,)),
        raw("1,000 requests on one connection", head("GET", "/livez") * 999 + head("GET", "/livez", "Connection: close"),
            statuses=(200,)),
    ]
    return made


def smuggling():
    """Requests whose end two HTTP programs may see at different places. Nothing after an ambiguous request may be taken
    for another request: `most_responses` is 1."""
    inner = head("GET", "/v1/models")
    chunk = b"e\r\n" + b'{"input": "a"}' + b"\r\n0\r\n\r\n"
    kind = "Content-Type: application/json"

    def two(name, *headers, sent=chunk + inner, statuses=(400, 501), **options):
        request = head("POST", EMBEDDINGS, kind, *headers) + sent
        return raw(name, request, statuses=statuses, json=False, most_responses=1, may_close=True, **options)

    return [
        two("Content-Length and Transfer-Encoding", "Content-Length: 4", "Transfer-Encoding: chunked",
            statuses=(200, 400)),
        two("Transfer-Encoding and Content-Length", "Transfer-Encoding: chunked", "Content-Length: 4",
            statuses=(200, 400)),
        two("two different Content-Lengths", "Content-Length: 4", "Content-Length: 14"),
        two("a list of Content-Lengths", "Content-Length: 4, 14"),
        two("Content-Length with a sign", "Content-Length: +14", sent=b'{"input": "a"}' + inner),
        two("a negative Content-Length", "Content-Length: -1"),
        two("Content-Length in hex", "Content-Length: 0xe"),
        two("Transfer-Encoding: xchunked", "Transfer-Encoding: xchunked"),
        two("Transfer-Encoding: chunked, identity", "Transfer-Encoding: chunked, identity"),
        two("Transfer-Encoding with a vertical tab", "Transfer-Encoding: \x0bchunked"),
        two("a space before the colon", "Transfer-Encoding : chunked"),
        two("a folded header", "X-Folded: a\r\n b\r\nTransfer-Encoding: chunked", statuses=(400,)),
        two("a chunk size of 2^64", "Transfer-Encoding: chunked", sent=b"10000000000000000\r\n" + chunk + inner,
            statuses=(400, 413)),
        two("a negative chunk size", "Transfer-Encoding: chunked", sent=b"-1\r\n" + chunk + inner),
        two("a chunk that is longer than its size", "Transfer-Encoding: chunked",
            sent=b"4\r\n" + b'{"input": "a"}' + b"\r\n0\r\n\r\n" + inner),
        raw("Transfer-Encoding in HTTP/1.0",
            head("POST", EMBEDDINGS, kind, "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0") + chunk + inner,
            statuses=(400,), json=False, may_close=True, most_responses=1),
    ]


def not_http():
    """Bytes of other protocols. The connection may be closed without a response."""
    options = {"statuses": (400, 505), "json": False, "may_close": True}
    return [
        raw("a TLS handshake", bytes.fromhex("16030100c6010000c20303") + b"\0" * 200, **options),
        raw("the beginning of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", **options),
        raw("HTTP/0.9", b"GET /\r\n\r\n", **options),
        raw("HTTP/9.9", b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", **options),
        raw("random bytes", bytes(range(256)) * 64, **options),
        raw("only line breaks", b"\r\n" * 100_000 + b"x\r\n\r\n", **options),
    ]
