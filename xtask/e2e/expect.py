"""Functions that the scripts share: requests to the server, and checks of errors."""

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
    """Sends a request with the standard library and returns the status, headers and text of the response."""
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
    """Sends a request and returns the JSON of its response, which must be successful."""
    status, _, text = ask(path, body)
    assert status == 200, f"{path}: {status} {text}"
    return json.loads(text)


def check_error(body, *words):
    """Checks that an error has OpenAI's shape and that its message contains these words."""
    assert set(body) == {"message", "type", "param", "code"}, body
    for word in words:
        assert word in body["message"], f"{word!r} is not in {body['message']!r}"


def refused(kind, param, words, call):
    """Checks that a call raises this type of error, and returns the error."""
    try:
        answer = call()
    except kind as error:
        check_error(error.body, *words)
        got = error.param or ""
        assert got.startswith(param or "") and bool(got) == bool(param), f"param {got!r}: {error}"
        assert error.request_id, "no x-request-id"
        print(f"  {type(error).__name__} {error.status_code}: {error.body['message']}")
        return error
    raise AssertionError(f"expected {kind.__name__}, got {str(answer)[:200]}")
