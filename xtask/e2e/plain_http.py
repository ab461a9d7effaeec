"""The rerank and score APIs of Cohere, Jina and vLLM, and the routes of text-embeddings-inference, with the standard
library."""

import json
import math

from expect import FIXTURES, MODEL, WEATHER, answered, ask, check_error

# The scores that transformers has computed with the same model.
golden = json.loads((FIXTURES / "rerankers/tied/golden.json").read_text())
RERANKER = answered("/info")["reranker"]["id"]

QUERY = "What is the capital of China?"
DOCUMENTS = [
    "Gravity is a force that attracts two bodies towards each other.",
    "The capital of China is Beijing.",
    "北京是中华人民共和国的首都。",
]


def near(a, b, tolerance=1e-5):
    return math.isclose(a, b, rel_tol=0, abs_tol=tolerance)


def scores_equal_transformers():
    for case in golden["cases"]:
        if not case["query"] or not case["document"]:
            continue
        body = {"query": case["query"], "documents": [case["document"]]}
        if case["instruction"] is not None:
            body["instruct"] = case["instruction"]
        if case["max_tokens"] != 8192:
            continue
        (result,) = answered("/v1/rerank", body)["results"]
        assert near(result["relevance_score"], case["score"]), (case["query"], result)


def reranking_in_the_shape_of_cohere_and_jina():
    body = {"model": RERANKER, "query": QUERY, "documents": DOCUMENTS}
    # By default, the response of /v1/rerank contains the documents, as with Jina and vLLM, and the response of
    # /v2/rerank does not, as with Cohere.
    bare = body | {"return_documents": False}
    requests = {"/v1/rerank": bare, "/v2/rerank": body, "/rerank": bare}
    answers = [answered(path, request) for path, request in requests.items()]
    for answer in answers:
        assert answer["results"] == answers[0]["results"]
        assert set(answer) >= {"id", "model", "usage", "results"}, set(answer)
        assert answer["model"] == RERANKER
        assert answer["usage"]["total_tokens"] >= answer["usage"]["prompt_tokens"] > 0
    for result in answered("/v1/rerank", body)["results"]:
        assert result["document"]["text"] == DOCUMENTS[result["index"]]
    other = answered("/v1/rerank", bare | {"model": "rerank-v3.5"})
    assert (other["model"], other["results"]) == (RERANKER, answers[0]["results"])
    results = answers[0]["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True), scores
    assert all("document" not in result for result in results)

    best = answered("/v2/rerank", body | {"top_n": 2, "return_documents": True})["results"]
    assert [result["relevance_score"] for result in best] == scores[:2]
    for result in best:
        assert result["document"]["text"] == DOCUMENTS[result["index"]]
    objects = bare | {"documents": [{"text": document} for document in DOCUMENTS]}
    assert answered("/v1/rerank", objects)["results"] == results
    other = answered("/v1/rerank", body | {"instruct": "Find a sentence about gravity"})["results"]
    assert other != results


def reranking_in_the_shape_of_text_embeddings_inference():
    ours = answered("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})["results"]
    theirs = answered("/rerank", {"query": QUERY, "texts": DOCUMENTS})
    assert theirs == [{"index": r["index"], "score": r["relevance_score"]} for r in ours]
    texts = answered("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True})
    assert [result["text"] for result in texts] == [DOCUMENTS[r["index"]] for r in ours]
    raw = answered("/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True})
    for logit, score in zip(raw, theirs):
        assert near(1 / (1 + math.exp(-logit["score"])), score["score"]), (logit, score)


def scores_of_pairs():
    by_index = {
        result["index"]: result["relevance_score"]
        for result in answered("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})["results"]
    }
    expected = [by_index[i] for i in range(3)]
    for path in ["/v1/score", "/score"]:
        for pairs in [
            {"text_1": QUERY, "text_2": DOCUMENTS},
            {"text_1": [QUERY] * 3, "text_2": DOCUMENTS},
            {"queries": QUERY, "documents": DOCUMENTS},
        ]:
            answer = answered(path, pairs)
            assert answer["object"] == "list" and answer["usage"]["total_tokens"] > 0
            assert [item["index"] for item in answer["data"]] == [0, 1, 2]
            assert [item["score"] for item in answer["data"]] == expected, (path, pairs)
        one = answered(path, {"text_1": QUERY, "text_2": DOCUMENTS[1]})["data"]
        assert [item["score"] for item in one] == [expected[1]]


def the_routes_of_text_embeddings_inference():
    openai = answered("/v1/embeddings", {"input": WEATHER})["data"]
    rows = answered("/embed", {"inputs": WEATHER})
    assert rows == [item["embedding"] for item in openai]
    assert answered("/embed", {"inputs": WEATHER[0]}) == rows[:1]
    assert answered("/", {"inputs": WEATHER}) == rows
    body = {"inputs": {"source_sentence": WEATHER[0], "sentences": WEATHER}}
    for value, row in zip(answered("/similarity", body), rows):
        assert near(value, sum(a * b for a, b in zip(rows[0], row)))
    (tokens,) = answered("/tokenize", {"inputs": WEATHER[1]})
    ids = [token["id"] for token in tokens]
    wide = json.loads((FIXTURES / "models/wide/golden.json").read_text())
    assert ids == wide["tokens"][1]
    assert answered("/decode", {"ids": ids}) == [WEATHER[1]]


def errors():
    for path, body, status, words in [
        ("/v1/rerank", {"query": QUERY, "documents": []}, 400, ["documents"]),
        ("/v1/rerank", {"query": QUERY}, 400, ["documents"]),
        ("/v1/rerank", {"documents": DOCUMENTS}, 400, ["query"]),
        ("/v1/rerank", {"query": QUERY, "documents": ["a", 5]}, 400, ["documents"]),
        ("/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b"]}, 400, [RERANKER]),
        ("/v1/embeddings", {"model": RERANKER, "input": "a"}, 400, [MODEL]),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 400, ["2", "3"]),
        ("/v1/rerank", "nonsense", 400, []),
        ("/nowhere", {}, 404, ["/nowhere"]),
    ]:
        got, headers, text = ask(path, body)
        assert got == status, f"{path} {body}: {got} {text}"
        assert headers["content-type"] == "application/json", headers["content-type"]
        check_error(json.loads(text)["error"], *words)
        print(f"  {got}: {json.loads(text)['error']['message']}")


scores_equal_transformers()
reranking_in_the_shape_of_cohere_and_jina()
reranking_in_the_shape_of_text_embeddings_inference()
scores_of_pairs()
the_routes_of_text_embeddings_inference()
errors()
