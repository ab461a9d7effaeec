"""The openai package for Python: requests, decoding of responses, and exceptions."""

import asyncio
import base64
import json

import numpy as np
import openai
from openai import AsyncOpenAI, OpenAI

from expect import ADDRESS, FIXTURES, MODEL, WEATHER, refused

client = OpenAI(api_key="EMPTY", base_url=f"{ADDRESS}/v1", max_retries=0)
golden = json.loads((FIXTURES / "models/wide/golden.json").read_text())
info = json.loads(client.get(f"{ADDRESS}/info", cast_to=str))["embedder"]


def create(texts, **options):
    return client.embeddings.create(model=MODEL, input=texts, **options)


def embed(texts, **options):
    return np.float32([item.embedding for item in create(texts, **options).data])


def unit(rows):
    rows = np.float64(rows)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def vectors_equal_transformers():
    """Embeds texts and token ids. The server uses token ids unchanged, including the end-of-text token."""
    for i, (text, tokens) in enumerate(zip(golden["texts"], golden["tokens"])):
        if text is None:
            # The tokens are random ids. The server refuses them, because the end-of-text token is not at their end.
            continue
        expected = unit(golden["embeddings"][i])
        inputs = [tokens, [tokens]] + ([text] if text else [])
        for given in inputs:
            answer = create(given)
            error = np.abs(answer.data[0].embedding - expected).max()
            assert error < 1e-5, f"text {i}: off by {error}"
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(tokens)
            assert answer.model == MODEL
    several = create(golden["tokens"][:4])
    assert several.usage.total_tokens == sum(map(len, golden["tokens"][:4]))
    assert np.array_equal(np.float32([item.embedding for item in several.data]), embed(WEATHER))


def base64_and_decimals_have_the_same_bits():
    assert WEATHER == golden["texts"][:4]
    default = embed(WEATHER)
    decimals = embed(WEATHER, encoding_format="float")
    encoded = [item.embedding for item in create(WEATHER, encoding_format="base64").data]
    decoded = np.array([np.frombuffer(base64.b64decode(text), "<f4") for text in encoded])
    assert default.tobytes() == decimals.tobytes() == decoded.tobytes()


def fewer_dimensions_are_cut_and_normalized():
    whole = embed(WEATHER)
    assert whole.shape == (4, info["dimensions"])
    for dimensions in [info["min_dimensions"], 33, 64, info["dimensions"]]:
        cut = embed(WEATHER, dimensions=dimensions)
        assert cut.shape == (4, dimensions)
        error = np.abs(cut - unit(whole[:, :dimensions])).max()
        # Each value is rounded a few times.
        assert error <= 4 * np.finfo(np.float32).eps, error


def instructions_are_put_before_texts():
    task = "Given a web search query, retrieve relevant passages that answer the query"
    query = "What is the capital of China?"
    plain = embed([f"Instruct: {task}\nQuery:{query}"])
    for extension in [{"prompt_name": "query"}, {"instruct": task}]:
        assert np.array_equal(plain, embed(query, extra_body=extension)), extension
    assert np.array_equal(embed(query), embed(query, extra_body={"prompt_name": "document"}))
    assert not np.array_equal(plain, embed(query))


def unknown_fields_are_accepted():
    plain = embed(WEATHER[0])
    assert np.array_equal(plain, embed(WEATHER[0], user="someone", extra_body={"whatever": [1]}))
    long = embed(WEATHER[0], extra_body={"normalize": False})
    assert np.abs(long - golden["embeddings"][0]).max() < 1e-4
    too_long = "a b " * info["max_input_length"]
    cut = create(too_long, extra_body={"truncate": True})
    assert cut.usage.total_tokens == info["max_input_length"]
    left = create(too_long, extra_body={"truncate": True, "truncation_side": "left"})
    assert left.usage.total_tokens == info["max_input_length"]


def models_are_listed():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def other_model_names_are_accepted():
    for name in ["text-embedding-3-small", MODEL.split("/")[1], f"openai/{MODEL}"]:
        answer = client.embeddings.create(model=name, input=WEATHER)
        assert answer.model == MODEL, answer.model
        assert np.array_equal(np.float32([item.embedding for item in answer.data]), embed(WEATHER))


def errors_raise_matching_exceptions():
    bad = openai.BadRequestError
    limit = info["max_input_length"]
    too_long = "a b " * limit
    many = ["a"] * 2049
    end = golden["tokens"][0][-1]
    for param, words, call in [
        ("dimensions", ["0", str(info["dimensions"])], lambda: create("a", dimensions=0)),
        ("dimensions", ["100000"], lambda: create("a", dimensions=100_000)),
        ("dimensions", [], lambda: create("a", dimensions="many")),
        ("input", [], lambda: create("")),
        ("input", [], lambda: create([])),
        ("input", ["input[1]"], lambda: create(["a", "", "b"])),
        ("input", ["input[2]"], lambda: create([[1], [2], []])),
        ("input", ["input[1]", str(limit), "truncate"], lambda: create(["a", too_long])),
        ("input", ["2048", "2049"], lambda: create(many)),
        ("input", ["9906"], lambda: create([9906, 1917, end])),
        ("input", ["input[1]", "1000000"], lambda: create([[5, end], [7, 1_000_000, end]])),
        ("input", ["input[1]", "end-of-text", str(end)], lambda: create([[5, end], [5, 6]])),
        ("input", ["-1"], lambda: create([-1])),
        ("input", [], lambda: create([1.5])),
        ("input", [], lambda: create([None])),
        ("input", [], lambda: create({"text": "a"})),
        ("encoding_format", ["hex"], lambda: create("a", encoding_format="hex")),
        ("prompt_name", ["poem"], lambda: create("a", extra_body={"prompt_name": "poem"})),
        ("instruct", [], lambda: create("a", extra_body={"instruct": 5})),
    ]:
        refused(bad, param, words, call)
    refused(openai.NotFoundError, "model", ["nobody/nothing"], lambda: client.models.retrieve("nobody/nothing"))
    refused(openai.NotFoundError, None, ["/v1/poems"], lambda: client.post("/poems", cast_to=str))
    method = refused(openai.APIStatusError, None, ["GET"], lambda: client.get("/embeddings", cast_to=str))
    assert method.status_code == 405, method
    assert method.response.headers["allow"] == "POST", method.response.headers
    create("still there")


async def concurrent_requests_get_their_own_vectors():
    one_by_one = [embed(f"text {i}")[0] for i in range(32)]
    async with AsyncOpenAI(api_key="EMPTY", base_url=f"{ADDRESS}/v1", max_retries=0) as many:
        calls = [many.embeddings.create(model=MODEL, input=f"text {i}") for i in range(32)]
        together = [answer.data[0].embedding for answer in await asyncio.gather(*calls)]
    assert np.array_equal(one_by_one, np.float32(together))


vectors_equal_transformers()
base64_and_decimals_have_the_same_bits()
fewer_dimensions_are_cut_and_normalized()
instructions_are_put_before_texts()
unknown_fields_are_accepted()
models_are_listed()
other_model_names_are_accepted()
errors_raise_matching_exceptions()
asyncio.run(concurrent_requests_get_their_own_vectors())
