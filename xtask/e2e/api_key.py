"""Requests to a server with an API key."""

import base64
import os

import openai
from openai import OpenAI

from expect import ADDRESS, MODEL, ask, refused

KEY = os.environ["SERVER_API_KEY"]


def create(key):
    client = OpenAI(api_key=key, base_url=f"{ADDRESS}/v1", max_retries=0)
    return client.embeddings.create(model=MODEL, input="a")


create(KEY)
for wrong in ["EMPTY", KEY[:-1], KEY + "x", KEY.upper()]:
    error = refused(openai.AuthenticationError, None, [], lambda: create(wrong))
    assert KEY not in str(error.body)

# Probes need no key. All other paths need the key.
for path in ["/livez", "/readyz", "/health"]:
    assert ask(path)[0] == 200, path
for path in ["/", "/docs", "/metrics", "/info", "/v1/models", "/nowhere", "/playground/script.js"]:
    assert ask(path)[0] == 401, path

# A browser asks its user for a name and a password, which is the key, and then sends both with every request. Each
# challenge has its own header, because Chromium reads only one challenge per header.
status, headers, _ = ask("/", headers={"accept": "text/html"})
challenges = headers.get_all("www-authenticate")
assert status == 401 and any(line.startswith("Basic ") for line in challenges), challenges
credentials = base64.b64encode(f"anyone:{KEY}".encode()).decode()
assert ask("/", headers={"authorization": f"Basic {credentials}"})[0] == 200
credentials = base64.b64encode(f"{KEY}:".encode()).decode()
assert ask("/", headers={"authorization": f"Basic {credentials}"})[0] == 401
