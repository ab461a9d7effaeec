//! Malformed bodies, and the exact messages of their errors.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use futures_util::{StreamExt, stream};
use qwen3_embed_server::ServerOptions;
use serde_json::json;

use crate::common::*;

const PATH: &str = "/v1/embeddings";

/// Bodies, and the parameter and the message of their errors.
const NOT_AN_OBJECT: &[(&str, &str, &str)] = &[
    ("", "", "the body is empty: expected a JSON object"),
    (" \t\r\n ", "", "the body is empty: expected a JSON object"),
    ("input", "", "the body is not a JSON object: it begins with `i`"),
    ("null", "", "the body is not a JSON object: it begins with `n`"),
    ("true", "", "the body is not a JSON object: it begins with `t`"),
    ("7", "", "the body is not a JSON object: it begins with `7`"),
    (r#""text""#, "", r#"the body is not a JSON object: it begins with `"`"#),
    (r#"["wide","text"]"#, "", "the body is not a JSON object: it begins with `[`"),
    (
        r#"[null,"text",null,null,null,null,null,null,null,null]"#,
        "",
        "the body is not a JSON object: it begins with `[`",
    ),
    ("input=text&model=wide", "", "the body is not a JSON object: it begins with `i`"),
    ("\u{feff}{\"input\":\"a\"}", "", r"the body is not a JSON object: it begins with `\xef`"),
    ("{", "", "the body is not valid JSON: EOF while parsing an object at line 1 column 1"),
    ("{}{", "input", "missing field `input` at line 1 column 2"),
    (
        r#"{"input":"a""#,
        "",
        "the body is not valid JSON: EOF while parsing an object at line 1 column 12",
    ),
    (
        r#"{"input":"a"#,
        "input",
        "input is not valid JSON: EOF while parsing a string at line 1 column 11",
    ),
    (
        r#"{"input":["a","#,
        "input",
        "input is not valid JSON: EOF while parsing a value at line 1 column 14",
    ),
    (
        r#"{"input":"a"}}"#,
        "",
        "the body is not valid JSON: trailing characters at line 1 column 14",
    ),
    (
        r#"{"input":"a"}{"input":"b"}"#,
        "",
        "the body is not valid JSON: trailing characters at line 1 column 14",
    ),
    (r#"{"input":"a",}"#, "", "the body is not valid JSON: trailing comma at line 1 column 14"),
    (r#"{'input':'a'}"#, "", "the body is not valid JSON: key must be a string at line 1 column 2"),
    (r#"{input:"a"}"#, "", "the body is not valid JSON: key must be a string at line 1 column 2"),
    (
        r#"{"input":"a"} // text"#,
        "",
        "the body is not valid JSON: trailing characters at line 1 column 15",
    ),
    (r#"{"input":NaN}"#, "input", "input is not valid JSON: expected value at line 1 column 10"),
    (
        r#"{"input":"a","dimensions":1e999}"#,
        "dimensions",
        "dimensions is not valid JSON: number out of range at line 1 column 31",
    ),
    (
        "{\"input\":\"a\nb\"}",
        "input",
        r"input is not valid JSON: control character (\u0000-\u001F) found while parsing a string at line 2 column 0",
    ),
    (r#"{"input":"\x41"}"#, "input", "input is not valid JSON: invalid escape at line 1 column 12"),
    (
        r#"{"input":"\ud800"}"#,
        "input",
        r"input is not valid JSON: unexpected end of hex escape at line 1 column 17; half of a surrogate pair, such as `\ud83d`, is not a character",
    ),
    (
        r#"{"input":"\udc00 a"}"#,
        "input",
        r"input is not valid JSON: lone leading surrogate in hex escape at line 1 column 16; half of a surrogate pair, such as `\ud83d`, is not a character",
    ),
    (
        r#"{"input":["a","\ud83d\u0041"]}"#,
        "input[1]",
        r"input[1] is not valid JSON: lone leading surrogate in hex escape at line 1 column 27; half of a surrogate pair, such as `\ud83d`, is not a character",
    ),
];

#[tokio::test]
async fn rejects_bodies_that_are_not_json_objects() {
    check_refused(ready().await, PATH, NOT_AN_OBJECT).await;
}

#[tokio::test]
async fn rejects_invalid_utf_8() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"{\"input\":\"\xff\"}",
            "input is not valid JSON: invalid unicode code point at line 1 column 11",
        ),
        (
            b"{\"input\":\"\xc3\"}",
            "input is not valid JSON: invalid unicode code point at line 1 column 11",
        ),
        (
            b"{\"input\":\"\xed\xa0\x80\"}",
            "input is not valid JSON: invalid unicode code point at line 1 column 11",
        ),
        (b"\xff\xfe{\0", r"the body is not a JSON object: it begins with `\xff`"),
    ];
    for (body, message) in cases {
        let reply = call(ready().await, post_request(PATH, body)).await;
        let param = message.starts_with("input").then_some("input");
        assert_eq!((reply.status, reply.json()), (400, invalid(param, message)));
    }
}

/// Bodies, and the parameter and the message of their errors.
const WRONG_FIELDS: &[(&str, &str, &str)] = &[
    ("{}", "input", "missing field `input` at line 1 column 2"),
    (r#"{"model":"wide"}"#, "input", "missing field `input` at line 1 column 16"),
    (r#"{"inputs":"a"}"#, "input", "missing field `input` at line 1 column 14"),
    (
        r#"{"input":null}"#,
        "input",
        "input: invalid type: null, expected a string, a list of strings, a list of token ids, or a list of such lists at line 1 column 13",
    ),
    (
        r#"{"input":true}"#,
        "input",
        "input: invalid type: boolean `true`, expected a string, a list of strings, a list of token ids, or a list of such lists at line 1 column 13",
    ),
    (
        r#"{"input":1}"#,
        "input",
        "input: invalid type: integer `1`, expected a string, a list of strings, a list of token ids, or a list of such lists at line 1 column 10",
    ),
    (
        r#"{"input":1.5}"#,
        "input",
        "input: invalid type: floating point `1.5`, expected a string, a list of strings, a list of token ids, or a list of such lists at line 1 column 12",
    ),
    (
        r#"{"input":{"text":"a"}}"#,
        "input",
        "input: invalid type: map, expected a string, a list of strings, a list of token ids, or a list of such lists at line 1 column 10",
    ),
    (r#"{"input":"a","input":"b"}"#, "input", "duplicate field `input` at line 1 column 20"),
    (
        r#"{"input":"a","model":["wide"]}"#,
        "model",
        "model: invalid type: sequence, expected a string at line 1 column 21",
    ),
    (
        r#"{"input":"a","model":1}"#,
        "model",
        "model: invalid type: integer `1`, expected a string at line 1 column 22",
    ),
    (
        r#"{"input":"a","dimensions":"256"}"#,
        "dimensions",
        r#"dimensions: invalid type: string "256", expected usize at line 1 column 31"#,
    ),
    (
        r#"{"input":"a","dimensions":-1}"#,
        "dimensions",
        "dimensions: invalid value: integer `-1`, expected usize at line 1 column 28",
    ),
    (
        r#"{"input":"a","dimensions":64.5}"#,
        "dimensions",
        "dimensions: invalid type: floating point `64.5`, expected usize at line 1 column 30",
    ),
    (
        r#"{"input":"a","dimensions":64.0}"#,
        "dimensions",
        "dimensions: invalid type: floating point `64.0`, expected usize at line 1 column 30",
    ),
    (
        r#"{"input":"a","dimensions":1e300}"#,
        "dimensions",
        "dimensions: invalid type: floating point `1e+300`, expected usize at line 1 column 31",
    ),
    (
        r#"{"input":"a","dimensions":18446744073709551616}"#,
        "dimensions",
        "dimensions: invalid type: floating point `1.8446744073709552e+19`, expected usize at line 1 column 46",
    ),
    (
        r#"{"input":"a","dimensions":[64]}"#,
        "dimensions",
        "dimensions: invalid type: sequence, expected usize at line 1 column 26",
    ),
    (
        r#"{"input":"a","encoding_format":"base32"}"#,
        "encoding_format",
        "encoding_format: expected `float` or `base64`, got `base32` at line 1 column 40",
    ),
    (
        r#"{"input":"a","encoding_format":"Float"}"#,
        "encoding_format",
        "encoding_format: expected `float` or `base64`, got `Float` at line 1 column 39",
    ),
    (
        r#"{"input":"a","encoding_format":1}"#,
        "encoding_format",
        "encoding_format: invalid type: integer `1`, expected a string at line 1 column 32",
    ),
    (
        r#"{"input":"a","encoding_format":{"float":1}}"#,
        "encoding_format",
        "encoding_format: invalid type: map, expected a string at line 1 column 31",
    ),
    (
        r#"{"input":"a","truncate":"true"}"#,
        "truncate",
        r#"truncate: invalid type: string "true", expected a boolean at line 1 column 30"#,
    ),
    (
        r#"{"input":"a","truncate":1}"#,
        "truncate",
        "truncate: invalid type: integer `1`, expected a boolean at line 1 column 25",
    ),
    (
        r#"{"input":"a","truncation_side":"up"}"#,
        "truncation_side",
        "truncation_side: expected `left` or `right`, got `up` at line 1 column 36",
    ),
    (
        r#"{"input":"a","normalize":0}"#,
        "normalize",
        "normalize: invalid type: integer `0`, expected a boolean at line 1 column 26",
    ),
    (
        r#"{"input":"a","instruct":["b"]}"#,
        "instruct",
        "instruct: invalid type: sequence, expected a string at line 1 column 24",
    ),
    (
        r#"{"input":"a","prompt_name":7}"#,
        "prompt_name",
        "prompt_name: invalid type: integer `7`, expected a string at line 1 column 28",
    ),
];

#[tokio::test]
async fn rejects_fields_of_the_wrong_type_and_names_them() {
    check_refused(ready().await, PATH, WRONG_FIELDS).await;
}

/// Bodies, and the item and the message of their errors.
const WRONG_ITEMS: &[(&str, &str, &str)] = &[
    (r#"{"input":[]}"#, "input", "input has 0 items; expected 1 to 2048"),
    (r#"{"input":""}"#, "input", "input is empty"),
    (r#"{"input":["a",""]}"#, "input[1]", "input[1] is empty"),
    (r#"{"input":[[]]}"#, "input[0]", "input[0] is empty"),
    (r#"{"input":[[1],[]]}"#, "input[1]", "input[1] is empty"),
    (
        r#"{"input":[null]}"#,
        "input[0]",
        "input[0]: invalid type: null, expected a string, a token id, or a list of token ids at line 1 column 14",
    ),
    (
        r#"{"input":["a",null]}"#,
        "input[1]",
        "input[1]: invalid type: null, expected a string at line 1 column 18",
    ),
    (
        r#"{"input":["a",1]}"#,
        "input[1]",
        "input[1]: invalid type: integer `1`, expected a string at line 1 column 15",
    ),
    (
        r#"{"input":["a",["b"]]}"#,
        "input[1]",
        "input[1]: invalid type: sequence, expected a string at line 1 column 14",
    ),
    (
        r#"{"input":["a",{"text":"b"}]}"#,
        "input[1]",
        "input[1]: invalid type: map, expected a string at line 1 column 14",
    ),
    (
        r#"{"input":[["a"]]}"#,
        "input[0][0]",
        r#"input[0][0]: invalid type: string "a", expected a token id, 0 to 4294967295 at line 1 column 14"#,
    ),
    (
        r#"{"input":[1,"a"]}"#,
        "input[1]",
        r#"input[1]: invalid type: string "a", expected a token id, 0 to 4294967295 at line 1 column 15"#,
    ),
    (
        r#"{"input":[1,[2]]}"#,
        "input[1]",
        "input[1]: invalid type: sequence, expected a token id, 0 to 4294967295 at line 1 column 13",
    ),
    (
        r#"{"input":[[1],2]}"#,
        "input[1]",
        "input[1]: invalid type: integer `2`, expected a list of token ids at line 1 column 15",
    ),
    (
        r#"{"input":[[1],"a"]}"#,
        "input[1]",
        r#"input[1]: invalid type: string "a", expected a list of token ids at line 1 column 17"#,
    ),
    (
        r#"{"input":[[1],[2,"a"]]}"#,
        "input[1][1]",
        r#"input[1][1]: invalid type: string "a", expected a token id, 0 to 4294967295 at line 1 column 20"#,
    ),
    (
        r#"{"input":[[[1]]]}"#,
        "input[0][0]",
        "input[0][0]: invalid type: sequence, expected a token id, 0 to 4294967295 at line 1 column 12",
    ),
    (
        r#"{"input":[true]}"#,
        "input[0]",
        "input[0]: invalid type: boolean `true`, expected a string, a token id, or a list of token ids at line 1 column 14",
    ),
    (
        r#"{"input":[{}]}"#,
        "input[0]",
        "input[0]: invalid type: map, expected a string, a token id, or a list of token ids at line 1 column 12",
    ),
    (
        r#"{"input":[-1]}"#,
        "input[0]",
        "input[0]: invalid value: integer `-1`, expected a token id, 0 to 4294967295 at line 1 column 12",
    ),
    (
        r#"{"input":[1,-1]}"#,
        "input[1]",
        "input[1]: invalid type: integer `-1`, expected a token id, 0 to 4294967295 at line 1 column 14",
    ),
    (
        r#"{"input":[[1,-1]]}"#,
        "input[0][1]",
        "input[0][1]: invalid type: integer `-1`, expected a token id, 0 to 4294967295 at line 1 column 15",
    ),
    (
        r#"{"input":[1.5]}"#,
        "input[0]",
        "input[0]: invalid type: floating point `1.5`, expected a string, a token id, or a list of token ids at line 1 column 13",
    ),
    (
        r#"{"input":[1,2.0]}"#,
        "input[1]",
        "input[1]: invalid type: floating point `2.0`, expected a token id, 0 to 4294967295 at line 1 column 15",
    ),
    (
        r#"{"input":[4294967296]}"#,
        "input[0]",
        "input[0]: invalid value: integer `4294967296`, expected a token id, 0 to 4294967295 at line 1 column 20",
    ),
    (
        r#"{"input":[[18446744073709551616]]}"#,
        "input[0][0]",
        "input[0][0]: invalid type: floating point `1.8446744073709552e+19`, expected a token id, 0 to 4294967295 at line 1 column 31",
    ),
    (
        r#"{"input":[5,1026,1000]}"#,
        "input",
        "input: token id 1026 at position 1 is not below the vocabulary size 1026",
    ),
    (
        r#"{"input":[[5,1000],[6,4294967295,1000]]}"#,
        "input[1]",
        "input[1]: token id 4294967295 at position 1 is not below the vocabulary size 1026",
    ),
];

#[tokio::test]
async fn rejects_invalid_items_and_names_their_index() {
    let deep = format!(r#"{{"input":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases = [(
        deep.as_str(),
        "input[0][0]",
        "input[0][0]: invalid type: sequence, expected a token id, 0 to 4294967295 at line 1 column 12",
    )];
    check_refused(ready().await, PATH, WRONG_ITEMS).await;
    check_refused(ready().await, PATH, &cases).await;
}

#[tokio::test]
async fn accepts_any_characters() {
    let state = ready().await;
    let deep = format!(r#"{{"input":"a","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for (body, text) in [
        (deep.as_str(), "a"),
        (r#"{"input":"a\u0000b"}"#, "a\0b"),
        (r#"{"input":"\ud83d\ude00 \/ \u00e9"}"#, "\u{1f600} / \u{e9}"),
        ("{\"input\":\"\u{10ffff}\u{feff}\u{202e}\"}", "\u{10ffff}\u{feff}\u{202e}"),
        ("\n {\t\"input\" :\r\n\"a\" } \n", "a"),
        (r#"{"\u0069nput":"<|endoftext|>"}"#, "<|endoftext|>"),
    ] {
        let reply = call(state, post_request(PATH, body.to_owned())).await;
        let expected = embedder().embed_documents(&[text]).unwrap();
        let embedding = vector(&reply.ok()["data"][0]["embedding"]);
        assert_eq!(bits(&embedding), bits(expected.as_slice()), "{body}");
    }
}

#[tokio::test]
async fn accepts_white_space_and_rejects_empty_text() {
    let state = ready().await;
    for text in [" ", "\n", "\t \r\n", "\u{3000}", "\0"] {
        let expected = embedder().embed_documents(&[text]).unwrap();
        let body = post(state, PATH, json!({ "input": ["a", text] })).await.ok();
        assert_eq!(bits(&vector(&body["data"][1]["embedding"])), bits(expected.as_slice()));
        let body = post(state, "/embed", json!({ "inputs": text })).await.ok();
        assert_eq!(bits(&vector(&body[0])), bits(expected.as_slice()));
    }
    check_refused(state, PATH, &[(r#"{"input":["a",""]}"#, "input[1]", "input[1] is empty")]).await;
    for (body, name) in [(r#"{"inputs":[""]}"#, "inputs[0]"), (r#"{"inputs":""}"#, "inputs")] {
        check_refused(state, "/embed", &[(body, name, &format!("{name} is empty"))]).await;
    }
}

#[tokio::test]
async fn rejects_long_run_of_white_space() {
    let body = json!({ "input": ["a", " ".repeat(600_000)], "truncate": true });
    let message = "input[1] has 600000 white-space characters in a row, the limit is 500000";
    check_refused(ready().await, PATH, &[(&body.to_string(), "input[1]", message)]).await;
    let body = json!({ "input": "a", "instruct": " ".repeat(600_000) });
    let message = "instruct has 600000 white-space characters in a row, the limit is 500000";
    check_refused(ready().await, PATH, &[(&body.to_string(), "instruct", message)]).await;
}

#[tokio::test]
async fn rejects_text_longer_than_the_models_limit() {
    let limit = embedder().max_tokens();
    let text = "a ".repeat(limit);
    let n_tokens = embedder().count_tokens(&[&text]).unwrap()[0];
    let message = format!("input has {n_tokens} tokens, the limit is {limit}{TRUNCATE_HINT}");
    let body = json!({ "input": text }).to_string();
    check_refused(ready().await, PATH, &[(&body, "input", &message)]).await;
}

/// Routes that embed texts reject empty strings, even if other strings are not empty, but accept white space. Routes
/// that rank, score or tokenize texts accept empty strings.
#[tokio::test]
async fn rejects_empty_strings_where_they_would_be_embedded() {
    let state = ready().await;
    for (path, name, request) in [
        (PATH, "input", json!({ "input": "" })),
        (PATH, "input[1]", json!({ "input": ["a", ""] })),
        (PATH, "input[0]", json!({ "input": ["", " "], "instruct": "b" })),
        (PATH, "input", json!({ "input": "", "prompt_name": "query" })),
        (PATH, "input[1]", json!({ "input": [[5, 1000], []] })),
        ("/embeddings", "input[1]", json!({ "input": ["a", ""] })),
        ("/embed", "inputs", json!({ "inputs": "" })),
        ("/embed", "inputs[0]", json!({ "inputs": [""] })),
        ("/", "inputs[2]", json!({ "inputs": ["a", "b", ""] })),
        (
            "/similarity",
            "inputs.source_sentence",
            json!({ "inputs": { "source_sentence": "", "sentences": ["a"] } }),
        ),
        (
            "/similarity",
            "inputs.sentences[1]",
            json!({ "inputs": { "source_sentence": "a", "sentences": ["b", ""] } }),
        ),
    ] {
        let message = format!("{name} is empty");
        check_refused(state, path, &[(&request.to_string(), name, &message)]).await;
    }
    for (path, request) in [
        (PATH, json!({ "input": [" ", "\n", "\t", "\u{3000}"] })),
        ("/embed", json!({ "inputs": " " })),
        ("/similarity", json!({ "inputs": { "source_sentence": " ", "sentences": ["\n"] } })),
        ("/v1/rerank", json!({ "query": "", "documents": ["", "a"] })),
        ("/v1/rerank", json!({ "query": "a", "documents": [{ "text": "" }] })),
        ("/rerank", json!({ "query": "a", "texts": [""] })),
        ("/v1/score", json!({ "text_1": "", "text_2": ["", "a"] })),
        ("/tokenize", json!({ "inputs": ["", "a"] })),
    ] {
        let reply = post(state, path, request).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
}

async fn check_content_type(value: Option<&[u8]>, expected: Option<&str>) {
    let mut request = Request::post(PATH).body(Body::from(r#"{"input":"a"}"#)).unwrap();
    if let Some(value) = value {
        request.headers_mut().insert(header::CONTENT_TYPE, value.try_into().unwrap());
    }
    let reply = call(ready().await, request).await;
    match expected {
        None => assert_eq!(reply.status, 200),
        Some(got) => {
            let message = format!("expected `Content-Type: application/json`, got {got}");
            let code = "unsupported_media_type";
            let expected = error("invalid_request_error", None::<&str>, code, &message);
            assert_eq!((reply.status, reply.json()), (415, expected));
        }
    }
}

#[tokio::test]
async fn requires_json_content_type() {
    for value in [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        " application/json ; x=y",
        "application/problem+json",
    ] {
        check_content_type(Some(value.as_bytes()), None).await;
    }
    check_content_type(None, Some("none")).await;
    check_content_type(Some(b""), Some("``")).await;
    check_content_type(Some(b"\xff"), Some("`\u{fffd}`")).await;
    for value in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"] {
        check_content_type(Some(value.as_bytes()), Some(&format!("`{value}`"))).await;
    }
}

/// A body without a declared length, in chunks of 100 bytes.
fn in_pieces(body: &str) -> Body {
    let pieces: Vec<Bytes> = body.as_bytes().chunks(100).map(Bytes::copy_from_slice).collect();
    Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
}

#[tokio::test]
async fn rejects_body_above_the_size_limit() {
    let options = ServerOptions { payload_limit: 1000, ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    let sized = |n: usize| {
        let frame = r#"{"input":""}"#.len();
        json!({ "input": "a".repeat(n - frame) }).to_string()
    };
    let message = "the body is larger than the limit of 1000 bytes";
    let too_large = error("invalid_request_error", None::<&str>, "payload_too_large", message);
    for (n, status) in [(999, 200), (1000, 200), (1001, 413), (100_000, 413)] {
        let body = sized(n);
        assert_eq!(body.len(), n);
        let mut with_length = post_request(PATH, body.clone());
        with_length.headers_mut().insert(header::CONTENT_LENGTH, n.into());
        for request in [with_length, post_request(PATH, in_pieces(&body))] {
            let reply = call(&state, request).await;
            assert_eq!(reply.status, status);
            assert!(status == 200 || reply.json() == too_large, "{}", reply.text());
        }
    }
    // A body with a declared length above the limit is rejected before it is read.
    let mut request =
        post_request(PATH, Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()));
    request.headers_mut().insert(header::CONTENT_LENGTH, 1001.into());
    let reply = call(&state, request).await;
    assert_eq!((reply.status, reply.json()), (413, too_large));
}

#[tokio::test(start_paused = true)]
async fn times_out_stalled_body() {
    let options =
        ServerOptions { body_timeout: Duration::from_secs(7), ..ServerOptions::default() };
    let state = qwen3_embed_server::AppState::new(options);
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{\"input\":"))]);
    let body = Body::from_stream(first.chain(stream::pending()));
    let began = tokio::time::Instant::now();
    let reply = call(&state, post_request(PATH, body)).await;
    let message = "the body did not arrive within 7 s";
    let expected = error("invalid_request_error", None::<&str>, "request_timeout", message);
    assert_eq!((reply.status, reply.json()), (408, expected));
    assert_eq!(began.elapsed().as_secs(), 7);
}

#[tokio::test]
async fn rejects_incomplete_body() {
    let pieces = [Ok(Bytes::from_static(b"{\"input\":")), Err(std::io::Error::other("reset"))];
    let body = Body::from_stream(stream::iter(pieces));
    let reply = call(ready().await, post_request(PATH, body)).await;
    let expected = invalid(None::<&str>, "the body could not be read: reset");
    assert_eq!((reply.status, reply.json()), (400, expected));
}

/// Bodies of 32 KiB and more are parsed on another thread.
#[tokio::test]
async fn parses_large_body_like_a_small_one() {
    let state = ready().await;
    let padding = "x".repeat(100_000);
    let body = json!({ "input": "a", "padding": padding, }).to_string();
    let reply = call(state, post_request(PATH, body.clone())).await;
    let expected = embedder().embed_documents(&["a"]).unwrap();
    let embedding = vector(&reply.ok()["data"][0]["embedding"]);
    assert_eq!(bits(&embedding), bits(expected.as_slice()));
    let body = json!({ "input": ["a", padding, ""] }).to_string();
    check_refused(state, PATH, &[(&body, "input[2]", "input[2] is empty")]).await;
}
