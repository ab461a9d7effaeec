"""LangChain's class OpenAIEmbeddings.

By default, the class sends token ids of OpenAI's tokenizer, which have no meaning for this model.
`check_embedding_ctx_length=False` makes the class send texts. Programs without this setting must get an error instead
of meaningless vectors.
"""

import numpy as np
import openai
from langchain_openai import OpenAIEmbeddings
from openai import OpenAI

from expect import ADDRESS, MODEL, WEATHER, refused

client = OpenAI(api_key="EMPTY", base_url=f"{ADDRESS}/v1", max_retries=0)


def embedder(**options):
    return OpenAIEmbeddings(
        model=MODEL,
        api_key="EMPTY",
        base_url=f"{ADDRESS}/v1",
        check_embedding_ctx_length=False,
        max_retries=0,
        **options,
    )


def embed(texts, **options):
    answer = client.embeddings.create(model=MODEL, input=texts, **options)
    return [item.embedding for item in answer.data]


expected = embed(WEATHER)
assert np.array_equal(expected, embedder().embed_documents(WEATHER))
assert np.array_equal(expected[1], embedder().embed_query(WEATHER[1]))
# With `chunk_size`, the class divides the texts into several requests and joins the responses.
assert np.array_equal(expected, embedder(chunk_size=3).embed_documents(WEATHER))
assert np.array_equal(embed(WEATHER, dimensions=64), embedder(dimensions=64).embed_documents(WEATHER))

# Token ids of "The" and of "The weather is great today" in OpenAI's cl100k_base. This model also has these ids.
for foreign in [[[791]], [[791, 9282, 374, 2294, 3432]]]:
    words = ["input[0]", "end-of-text", "check_embedding_ctx_length=False"]
    refused(openai.BadRequestError, "input", words, lambda: embed(foreign))
assert np.array_equal(expected, embed(WEATHER))
