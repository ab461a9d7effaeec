"""Four sentences, a request for each, and the matrix of their cosines: what a first program with the
openai package does, which knows of this server no more than its address."""

import numpy as np
from openai import OpenAI
from sklearn.metrics.pairwise import cosine_similarity

from expect import ADDRESS, MODEL, WEATHER

client = OpenAI(api_key="EMPTY", base_url=f"{ADDRESS}/v1")

embeddings = []
for text in WEATHER:
    response = client.embeddings.create(model=MODEL, input=text)
    embeddings.append(np.array(response.data[0].embedding))
matrix = cosine_similarity(np.array(embeddings))
print(np.array_str(matrix, precision=4, suppress_small=True))

assert matrix.shape == (4, 4), matrix.shape
assert np.allclose(np.diag(matrix), 1, rtol=0, atol=1e-12), np.diag(matrix)
assert np.allclose(matrix, matrix.T, rtol=0, atol=1e-12), matrix
others = matrix[~np.eye(4, dtype=bool)]
assert (others < 1 - 1e-3).all(), "different sentences, the same vector"

# A text's vector does not depend on the batch that it is in, bit for bit.
batch = client.embeddings.create(model=MODEL, input=WEATHER)
assert [item.index for item in batch.data] == [0, 1, 2, 3]
assert np.array_equal(embeddings, [item.embedding for item in batch.data])
