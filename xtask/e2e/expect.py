"""What the scripts share: the server that they are given, and what they expect of errors."""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

ADDRESS = sys.argv[1]
MODEL = os.environ["MODEL"]
FIXTURES = Path(os.environ["FIXTURES"])

WEATHER = [
    "今天天气真好,适合出去散步",
    "The weather is great today, perfect for a walk",
    "今日の天気はとても良いです、散歩に最適です",
    "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요",
]


def ask(path, body=None, headers=None):
    """A route's status, headers and text, by the standard library alone."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | (headers or {})
    request = urllib.request.Request(ADDRESS + path, data, headers)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read().decode()


def answered(path, body=None):
    """What a route answers, which has to be well."""
    status, _, text = ask(path, body)
    assert status == 200, f"{path}: {status} {text}"
    return json.loads(text)


def check_error(body, *words):
    """An error in OpenAI's shape, whose message has these words."""
    assert set(body) == {"message", "type", "param", "code"}, body
    for word in words:
        assert word in body["message"], f"{word!r} is not in {body['message']!r}"


def refused(kind, param, words, call):
    """The error, of the client's own type, in which a call has to end."""
    try:
        answer = call()
    except kind as error:
        check_error(error.body, *words)
        got = error.param or ""
        assert got.startswith(param or "") and bool(got) == bool(param), f"param {got!r}: {error}"
        assert error.request_id, "no x-request-id"
        print(f"  {type(error).__name__} {error.status_code}: {error.body['message']}")
        return error
    raise AssertionError(f"{kind.__name__} expected, got {str(answer)[:200]}")
