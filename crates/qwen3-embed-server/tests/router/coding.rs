//! Compressed request bodies.

use std::io::Write;

use axum::http::{HeaderValue, header};
use flate2::Compression;
use flate2::write::GzEncoder;
use qwen3_embed_server::{AppState, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;

const PATH: &str = "/v1/embeddings";

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zstd(body: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    // Without a checksum, the decoder may not notice a wrong byte.
    encoder.include_checksum(true).unwrap();
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Sends a body with the given `Content-Encoding`.
async fn send(state: &AppState, path: &str, coding: impl AsRef<[u8]>, body: Vec<u8>) -> Reply {
    let mut request = post_request(path, body);
    let coding = HeaderValue::from_bytes(coding.as_ref()).unwrap();
    request.headers_mut().insert(header::CONTENT_ENCODING, coding);
    call(state, request).await
}

#[tokio::test]
async fn reads_compressed_bodies() {
    let state = ready().await;
    let body = json!({ "input": TEXTS, "padding": "x".repeat(100_000) }).to_string().into_bytes();
    let halves = body.split_at(body.len() / 2);
    let expected = post(state, PATH, json!({ "input": TEXTS })).await.ok();
    for (coding, body) in [
        ("gzip", gzip(&body)),
        ("x-gzip", gzip(&body)),
        (" GZIP ", gzip(&body)),
        ("identity, gzip", gzip(&body)),
        ("gzip", [gzip(halves.0), gzip(halves.1)].concat()),
        ("zstd", zstd(&body)),
        ("Zstd", zstd(&body)),
        ("zstd", [zstd(halves.0), zstd(halves.1)].concat()),
        ("identity", body.clone()),
        ("", body.clone()),
    ] {
        assert_eq!(send(state, PATH, coding, body).await.ok(), expected, "{coding}");
    }
}

#[tokio::test]
async fn every_route_reads_compressed_bodies() {
    for (path, request) in [
        ("/v1/rerank", json!({ "query": "a", "documents": ["b"] })),
        ("/v2/rerank", json!({ "query": "a", "documents": ["b"] })),
        ("/rerank", json!({ "query": "a", "texts": ["b"] })),
        ("/v1/score", json!({ "text_1": "a", "text_2": "b" })),
        ("/embed", json!({ "inputs": "a" })),
        ("/similarity", json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } })),
        ("/tokenize", json!({ "inputs": "a" })),
        ("/decode", json!({ "ids": [1] })),
    ] {
        let body = request.to_string().into_bytes();
        send(ready().await, path, "gzip", gzip(&body)).await.ok();
        send(ready().await, path, "zstd", zstd(&body)).await.ok();
    }
}

#[tokio::test]
async fn rejects_other_content_encodings() {
    for (coding, got) in [
        (&b"br"[..], "br"),
        (b"deflate", "deflate"),
        (b"gzip, gzip", "gzip, gzip"),
        (b"zstd, gzip", "zstd, gzip"),
        (b"gzipx", "gzipx"),
        (b"\xff", "\u{fffd}"),
    ] {
        let reply = send(ready().await, PATH, coding, b"{\"input\":\"a\"}".to_vec()).await;
        let message =
            format!("expected `Content-Encoding: identity`, `gzip` or `zstd`, got `{got}`");
        let code = "unsupported_media_type";
        let expected = error("invalid_request_error", None::<&str>, code, &message);
        assert_eq!((reply.status, reply.json()), (415, expected));
    }
    // Two headers have the same meaning as one header with a list.
    let mut request = post_request(PATH, gzip(&gzip(b"{}")));
    for _ in 0..2 {
        let coding = HeaderValue::from_static("gzip");
        request.headers_mut().append(header::CONTENT_ENCODING, coding);
    }
    assert_eq!(call(ready().await, request).await.status, 415);
}

#[tokio::test]
async fn rejects_broken_compressed_bodies() {
    let body = json!({ "input": TEXTS }).to_string().into_bytes();
    let damaged = |mut body: Vec<u8>| {
        let middle = body.len() / 2;
        body[middle] ^= 0xff;
        body
    };
    for (coding, bodies) in [
        ("gzip", [gzip(&body), [gzip(&body), b"rest".to_vec()].concat()]),
        ("zstd", [zstd(&body), [zstd(&body), b"rest".to_vec()].concat()]),
    ] {
        let [whole, with_rest] = bodies;
        let cut = |n: usize| whole[..n].to_vec();
        let bodies = [
            cut(1),
            cut(12),
            cut(whole.len() / 2),
            cut(whole.len() - 1),
            damaged(whole.clone()),
            with_rest,
            body.clone(),
        ];
        for body in bodies {
            let reply = send(ready().await, PATH, coding, body).await;
            assert_eq!(reply.status, 400, "{}", reply.text());
            let error = &reply.json()["error"];
            let message = error["message"].as_str().unwrap();
            let expected = format!(
                "the header `Content-Encoding` is `{coding}`, but the body is incomplete or is not valid {coding}: "
            );
            assert!(message.len() > expected.len() && message.starts_with(&expected), "{message}");
            assert_eq!(error["param"], Value::Null);
        }
        assert_eq!(send(ready().await, PATH, coding, Vec::new()).await.status, 400);
    }
    // The decoder would need a window of 128 MiB, which is larger than the server accepts.
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&body).unwrap();
    let reply = send(ready().await, PATH, "zstd", encoder.finish().unwrap()).await;
    assert!(reply.status == 400 && reply.text().contains("memory"), "{}", reply.text());
    // The errors about the decompressed body are the same as without compression.
    let reply = send(ready().await, PATH, "gzip", gzip(b"{\"input\":[\"a\",\"\"]}")).await;
    assert_eq!((reply.status, reply.json()), (400, invalid("input[1]", "input[1] is empty")));
}

#[tokio::test]
async fn body_limit_applies_to_the_decompressed_body() {
    let options = ServerOptions { payload_limit: 100_000, ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    let message = "the decompressed body is larger than the limit of 100000 bytes";
    let too_large = error("invalid_request_error", None::<&str>, "payload_too_large", message);
    let sized = |n: usize| {
        let frame = json!({ "input": "a", "x": "" }).to_string().len();
        json!({ "input": "a", "x": "x".repeat(n - frame) }).to_string().into_bytes()
    };
    // The last body is a thousand times as large as its gzip form, and more than ten thousand times as large as its
    // zstd form.
    for (n, status) in [(100_000, 200), (100_001, 413), (64 << 20, 413)] {
        let body = sized(n);
        assert_eq!(body.len(), n);
        for (coding, body) in [("gzip", gzip(&body)), ("zstd", zstd(&body))] {
            assert!(body.len() < 100_000);
            let reply = send(&state, PATH, coding, body).await;
            assert_eq!(reply.status, status, "{}", reply.text());
            assert!(status == 200 || reply.json() == too_large);
        }
    }
}
