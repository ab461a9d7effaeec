"""Hostile requests and texts: each of them is answered or refused, and the next ordinary request gets the same vector
as before."""

import json
import math

import cases
import client
import hostile_requests
from client import post
from server import MIB, Server, last_line, run

# A body may have 16 MiB. Its texts, their tokens and the batches of one request take some times that.
MEMORY_MIB = 1024
# Texts are cut to this number of tokens, so that the time goes into the tokenizer and not into the model.
MAX_TOKENS = 2048
PROBE = ["The quick brown fox jumps over the lazy dog.", "\u4e2d\u6587"]


def requests(args, out):
    """Malformed and hostile HTTP requests and bodies, one at a time."""
    reranker = f"{args.fixtures}/rerankers/tied"
    with Server(args.program, "--model-path", f"{args.fixtures}/models/base", "--reranker-path", reranker,
                "--served-model-name", "base", "--served-reranker-name", "tied") as fixture:
        run_cases(args, out, fixture, hostile_requests.of_rerank(), "fixture and reranker")
    with Server(args.program) as bundled:
        run_cases(args, out, bundled, hostile_requests.all_cases(), "bundled model")


def run_cases(args, out, server, all_cases, name):
    before = probe(server)
    first = start = server.rss_mib()
    out.threw(f"{len(all_cases)} requests at a server ({name}); RSS {start:.0f} MiB")
    largest = (0, "none")
    for case in all_cases:
        if args.only and args.only not in case.name:
            continue
        server.reset_peak()
        start = server.rss_mib()
        reply = client.exchange(server.port, case.parts(), case.timeout, case.wait_s)
        if not server.is_alive():
            out.check(False, f"{case.name}: the server ended: {last_line(server.log())}")
            return
        grown = server.peak_mib() - start
        largest = max(largest, (grown, case.name))
        judge(out, case, reply, grown)
        if probe(server) != before:
            out.check(False, f"{case.name}: the next ordinary request got other vectors")
    out.saw(f"largest growth of RSS: {largest[0]:.0f} MiB ({largest[1]}); after all requests {server.rss_mib():.0f} MiB, "
            f"before {first:.0f} MiB")
    panics = [line for line in server.log().splitlines() if "panicked" in line]
    out.check(not panics, f"panics in the log: {panics[:1] or 'none'}")


def judge(out, case, reply, grown):
    """Checks the status, the error body, the field, and the memory."""
    sent = f", {reply.n_sent / MIB:.0f} MiB sent" if reply.n_sent > MIB else ""
    seen = f"{case.name}: {reply.describe()} [{reply.seconds:.2f} s, +{grown:.0f} MiB{sent}]"
    if reply.status == 0:
        out.check(case.may_close and reply.trouble != "timeout", seen)
        return
    is_right = reply.status in case.statuses
    if reply.status >= 400 and case.json:
        is_right &= bool(reply.error())
    if reply.status >= 400 and case.field:
        is_right &= (reply.error().get("param") or "").startswith(case.field)
        seen += f" param={reply.error().get('param')}"
    is_right &= case.has_few_responses(reply)
    out.check(is_right, seen)
    if grown >= MEMORY_MIB:
        out.limit(f"{case.name}: RSS grew by {grown:.0f} MiB; expected less than {MEMORY_MIB} MiB")


def probe(server):
    """The vectors of an ordinary request, as the text of the response."""
    return client.embed(server.port, PROBE).body


def texts(args, out):
    """Hostile texts as requests, and as lines of the command `embed`: vectors are finite and have unit length."""
    all_texts = cases.texts()
    out.threw(f"{len(all_texts)} texts, of up to {max(len(text.encode()) for text in all_texts.values())} bytes")
    vectors = over_http(args, out, all_texts)
    over_command(args, out, all_texts, vectors)
    invalid_lines(args, out)
    long_texts(args, out)


def over_http(args, out, all_texts):
    """Each text in a request, truncated to the model's limit. Returns the vectors."""
    vectors = {}
    with Server(args.program, "--max-length", str(MAX_TOKENS)) as server:
        before = probe(server)
        for name, text in all_texts.items():
            reply = client.embed(server.port, text, timeout=300, truncate=True)
            vector = reply.json()["data"][0]["embedding"] if reply.status == 200 else None
            vectors[name] = vector
            out.check(is_unit(vector), f"request, {name}: {reply.describe()} in {reply.seconds:.2f} s")
        out.check(probe(server) == before, "the next request got the same vectors")
    return vectors


def over_command(args, out, all_texts, vectors):
    """All texts as JSON lines of one command. Its vectors are those of the server."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in all_texts.values())
    flags = ["--overflow", "truncate-right", "--max-tokens", str(MAX_TOKENS)]
    ended = run(args.program, "embed", *flags, stdin=lines.encode(), timeout=600)
    if not out.check(ended.code == 0, f"command: {ended.describe()}"):
        return
    rows = [json.loads(line) for line in ended.output.splitlines()]
    out.check(len(rows) == len(all_texts), f"command: {len(rows)} vectors in {ended.seconds:.1f} s")
    for name, row in zip(all_texts, rows):
        if not is_unit(row["embedding"]):
            out.check(False, f"command, {name}: not a finite vector of unit length")
        elif vectors[name] and cosine(row["embedding"], vectors[name]) < 0.999:
            out.check(False, f"command, {name}: not the vector of the server")
    out.saw("command: compared with the vectors of the server, cosine at least 0.999")


def invalid_lines(args, out):
    """Lines that are not valid: the error names the line. With `--replace-invalid`, they are embedded."""
    lines = {
        "bytes that are not UTF-8": b'{"text": "a\xff\xfe"}',
        "an overlong encoding": b'{"text": "\xc0\xaf"}',
        "an encoded surrogate": b'{"text": "\xed\xa0\xbd"}',
        "half of a surrogate pair": b'{"text": "\\ud83d"}',
        "a NUL byte": b'{"text": "a\0b"}',
        "nested lists": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested lists in another field": b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "token ids beyond the vocabulary": b'{"tokens": [1, 4294967295]}',
        "a negative token id": b'{"tokens": [-1]}',
        "a huge number": b'{"tokens": [1e999]}',
        "an unfinished line": b'{"text": "a',
        "a list": b"[1, 2, 3]",
    }
    replaced = {"bytes that are not UTF-8", "an overlong encoding", "an encoded surrogate", "half of a surrogate pair"}
    for name, line in lines.items():
        stdin = b'{"text": "first"}\n' + line + b"\n"
        ended = run(args.program, "embed", stdin=stdin)
        if name == "nested lists in another field":
            # Other fields are copied to the output.
            is_copied = ended.code == 0 and b"[" * 100_000 in ended.output
            out.check(is_copied, f"command, {name}: {ended.describe()}; they are in the output")
            continue
        is_right = ended.code == 1 and "line 2" in ended.errors
        out.check(is_right, f"command, {name}: {ended.describe()}")
        if name in replaced:
            ended = run(args.program, "embed", "--replace-invalid", stdin=stdin)
            rows = [json.loads(row) for row in ended.output.splitlines()]
            is_right = ended.code == 0 and len(rows) == 2 and all(is_unit(row["embedding"]) for row in rows)
            out.check(is_right, f"command with --replace-invalid, {name}: exit status {ended.code}, {len(rows)} vectors")


def long_texts(args, out):
    """10 MB of one character: refused or truncated in time, by the server and by the command."""
    with Server(args.program, "--max-length", str(MAX_TOKENS)) as server:
        for name, text in cases.long_runs(10_000_000).items():
            body = json.dumps({"input": text, "truncate": True}, ensure_ascii=False).encode()
            server.reset_peak()
            reply = client.exchange(server.port, [post("/v1/embeddings", body)], 300)
            is_right = reply.status == 200 and is_unit(reply.json()["data"][0]["embedding"])
            # NUL needs six bytes in JSON, so this body is larger than the limit. Too much white space is refused.
            is_right |= reply.status in (400, 413) and bool(reply.error())
            out.check(is_right, f"request, 10 MB of `{name}`, truncated: {reply.describe()} in {reply.seconds:.1f} s, "
                      f"peak {server.peak_mib():.0f} MiB")
            whole = json.dumps({"input": text}, ensure_ascii=False).encode()
            reply = client.exchange(server.port, [post("/v1/embeddings", whole)], 300)
            is_right = reply.status in (400, 413) and bool(reply.error())
            is_right |= reply.status == 200
            out.check(is_right, f"request, 10 MB of `{name}`: {reply.describe()} in {reply.seconds:.1f} s")
    line = json.dumps({"text": "a" * 10_000_000}).encode()
    ended = run(args.program, "embed", stdin=line, timeout=300)
    out.check(ended.code == 1 and "line 1" in ended.errors, f"command, 10 MB of `a`: {ended.describe()}")
    flags = ["--overflow", "truncate-right", "--max-tokens", str(MAX_TOKENS)]
    ended = run(args.program, "embed", *flags, stdin=line, timeout=300)
    rows = ended.output.splitlines()
    out.check(ended.code == 0 and len(rows) == 1 and is_unit(json.loads(rows[0])["embedding"]),
              f"command with truncation, 10 MB of `a`: exit status {ended.code} in {ended.seconds:.1f} s")


def is_unit(vector):
    """Whether a vector is finite and its length differs from 1 by the rounding of f32 values only."""
    if not vector or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in vector):
        return False
    return abs(math.sqrt(sum(value * value for value in vector)) - 1) < 1e-5


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b))
