"""A first program with the openai package: four sentences in one request, and the matrix of their cosine similarities.
The server was started with `--model-path Qwen/Qwen3-Embedding-4B`, and the program uses the name after the slash as the
model name."""

import json

import numpy as np
import openai
from sklearn.metrics.pairwise import cosine_similarity

from expect import ADDRESS, FIXTURES, WEATHER

client = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="None")

response = client.embeddings.create(model="Qwen3-Embedding-4B", input=WEATHER)
embeddings = [item.embedding for item in response.data]
matrix = cosine_similarity(embeddings)
print(np.array_str(matrix, precision=4, suppress_small=True))

assert response.model == "Qwen/Qwen3-Embedding-4B", response.model
assert [model.id for model in client.models.list()] == ["Qwen/Qwen3-Embedding-4B"]
assert [item.index for item in response.data] == [0, 1, 2, 3]
assert matrix.shape == (4, 4), matrix.shape
assert np.allclose(np.diag(matrix), 1, rtol=0, atol=1e-12), np.diag(matrix)
assert np.allclose(matrix, matrix.T, rtol=0, atol=1e-12), matrix
# The vectors that transformers has computed with the same small model.
golden = json.loads((FIXTURES / "models/wide/golden.json").read_text())
assert golden["texts"][:4] == WEATHER
assert np.allclose(matrix, cosine_similarity(golden["embeddings"][:4]), rtol=0, atol=1e-2), matrix

# The vector of a text does not depend on its batch, bit for bit.
for text, expected in zip(WEATHER, embeddings):
    (alone,) = client.embeddings.create(model="Qwen3-Embedding-4B", input=text).data
    assert alone.embedding == expected, text
