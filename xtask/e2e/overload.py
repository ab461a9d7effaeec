"""A server with tight limits: refused requests have `Retry-After`, and clients that retry get a response."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import openai
from openai import OpenAI

from expect import ADDRESS, MODEL, answered, refused

N_CLIENTS = 4

# The texts keep the server busy until the other requests arrive. A request may have more texts than the limit of the
# queue.
texts = [f"{i}: " + "All work and no play makes a dull day. " * 10 for i in range(32)]


def create(max_retries, barrier):
    client = OpenAI(api_key="EMPTY", base_url=f"{ADDRESS}/v1", max_retries=max_retries)
    barrier.wait()
    return client.embeddings.create(model=MODEL, input=texts)


def outcomes(max_retries):
    barrier = Barrier(N_CLIENTS)
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        calls = [pool.submit(create, max_retries, barrier) for _ in range(N_CLIENTS)]
        return [(call.exception(), call) for call in calls]


start = time.monotonic()
results = outcomes(max_retries=0)
errors = [error for error, _ in results if error is not None]
assert 0 < len(errors) < N_CLIENTS, f"{len(errors)} of {N_CLIENTS} refused"
for error in errors:
    assert isinstance(error, openai.RateLimitError), repr(error)
    assert set(error.body) == {"message", "type", "param", "code"}, error.body
    assert int(error.response.headers["retry-after"]) >= 1, error.response.headers
print(f"  {len(errors)} of {N_CLIENTS} refused: {errors[0].body['message']}")

results = outcomes(max_retries=100)
for error, call in results:
    assert error is None, repr(error)
    assert len(call.result().data) == len(texts)
print(f"  {N_CLIENTS} of {N_CLIENTS} succeeded with retries, {time.monotonic() - start:.1f} s")
