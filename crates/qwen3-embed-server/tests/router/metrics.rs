//! `GET /metrics`: the OpenMetrics format, and the counters.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use qwen3_embed_server::{AppState, ServerOptions};
use serde_json::json;

use crate::common::*;
use crate::limits::{begin, slow, take_long};

/// Samples by name and labels.
type Samples = BTreeMap<String, f64>;

async fn samples(state: &AppState) -> Samples {
    let reply = get(state, "/metrics").await;
    assert_eq!(reply.status, 200);
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(reply.header("content-type"), content_type);
    parse(reply.text())
}

/// Parses the text format and asserts that it is valid.
fn parse(text: &str) -> Samples {
    let text = text.strip_suffix("# EOF\n").unwrap();
    let (mut kinds, mut helped, mut samples) = (BTreeMap::new(), BTreeSet::new(), Samples::new());
    let mut family = "";
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# ") {
            let (keyword, rest) = line.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            family = name;
            match keyword {
                "TYPE" => assert!(kinds.insert(name, value).is_none(), "{name} twice"),
                "HELP" => assert!(helped.insert(name) && value.ends_with('.'), "{line}"),
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                other => panic!("{other}"),
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let suffix = name.split('{').next().unwrap().strip_prefix(family).unwrap();
        let expected: &[&str] = match kinds[family] {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("{other}"),
        };
        assert!(expected.contains(&suffix), "{line}");
        let value: f64 = value.parse().unwrap();
        assert!(value >= 0.0, "{line}");
        assert!(samples.insert(name.to_owned(), value).is_none(), "{name} twice");
    }
    assert_eq!(kinds.keys().copied().collect::<BTreeSet<_>>(), helped);
    samples
}

fn value(samples: &Samples, name: &str) -> f64 {
    *samples.get(&format!("qwen3_embed_{name}")).unwrap_or(&0.0)
}

/// Waits until a sample has the given value. Batches may be counted after the responses to their requests.
async fn wait_for(state: &AppState, name: &str, expected: f64) -> Samples {
    let began = Instant::now();
    loop {
        let samples = samples(state).await;
        let value = value(&samples, name);
        if value >= expected || began.elapsed() > Duration::from_secs(20) {
            assert_eq!(value, expected, "{name}");
            return samples;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn loading_server_has_metrics() {
    let state = AppState::new(ServerOptions::default());
    let first = samples(&state).await;
    assert!(!first.keys().any(|name| name.contains("model=")), "{first:?}");
    let second = samples(&state).await;
    assert_eq!(value(&second, r#"requests_total{route="/metrics",status="200"}"#), 1.0);
}

#[tokio::test]
async fn counts_requests_by_route_and_status() {
    let state = started(both(), ServerOptions::default()).await;
    let embeddings = json!({ "input": "a" });
    for _ in 0..3 {
        post(&state, "/v1/embeddings", embeddings.clone()).await.ok();
    }
    post(&state, "/v1/embeddings", json!({})).await;
    // A trailing slash does not make another route.
    post(&state, "/v1/embeddings/", json!({ "model": "tied", "input": "a" })).await;
    get(&state, "/v1/embeddings").await;
    get(&state, "/v1/models/wide").await;
    get(&state, "/v1/models/a/b").await;
    for path in ["/a", "/b", "/c?d=\"e\"\n".trim_end()] {
        get(&state, path.split('?').next().unwrap()).await;
    }
    let samples = samples(&state).await;
    for (route, status, expected) in [
        ("/v1/embeddings", 200, 3.0),
        ("/v1/embeddings", 400, 2.0),
        ("/v1/embeddings", 405, 1.0),
        ("/v1/models/{*id}", 200, 1.0),
        ("/v1/models/{*id}", 404, 1.0),
        // Unknown paths have no series of their own.
        ("none", 404, 3.0),
    ] {
        let name = format!("requests_total{{route=\"{route}\",status=\"{status}\"}}");
        assert_eq!(value(&samples, &name), expected, "{name}");
    }
    let name = r#"request_duration_seconds_count{route="/v1/embeddings"}"#;
    assert_eq!(value(&samples, name), 6.0);
    assert!(value(&samples, r#"request_duration_seconds_sum{route="/v1/embeddings"}"#) > 0.0);
}

#[tokio::test]
async fn counts_request_of_disconnected_client() {
    let state = slow(ServerOptions::default()).await;
    {
        let request = json!({ "input": vec![TEXTS[1]; 20] });
        let mut given_up = pin!(post(&state, "/v1/embeddings", request));
        begin(&mut given_up).await;
    }
    let name = r#"requests_total{route="/v1/embeddings",status="499"}"#;
    assert_eq!(value(&samples(&state).await, name), 1.0);
}

#[tokio::test]
async fn counts_tokens_batches_and_stages() {
    let state = started(both(), ServerOptions::default()).await;
    let tokens = |model: &str| format!("tokens_total{{model=\"{model}\"}}");
    let warm = embedder().count_tokens(&["warm"]).unwrap()[0] as f64;
    // The short text that each model computes at the start counts as a batch.
    let before = wait_for(&state, &tokens("embedder"), warm).await;
    let body = post(&state, "/v1/embeddings", json!({ "input": TEXTS })).await.ok();
    let n_tokens = body["usage"]["prompt_tokens"].as_f64().unwrap();
    let after = wait_for(&state, &tokens("embedder"), warm + n_tokens).await;
    let name = |name: &str| format!("{name}{{model=\"embedder\"}}");
    for (counted, expected) in [
        ("batch_texts_sum", 4.0),
        ("batch_texts_count", 1.0),
        ("batch_tokens_sum", n_tokens),
        ("batch_duration_seconds_count", 1.0),
        ("tokenize_duration_seconds_count", 1.0),
        ("queue_duration_seconds_count", 1.0),
        ("compute_duration_seconds_count", 1.0),
    ] {
        let change = value(&after, &name(counted)) - value(&before, &name(counted));
        assert_eq!(change, expected, "{counted}");
    }
    let warm = value(&samples(&state).await, &tokens("reranker"));
    let request = json!({ "query": "a", "documents": ["b", "c"] });
    let body = post(&state, "/rerank", request).await.ok();
    let n_tokens = body["usage"]["prompt_tokens"].as_f64().unwrap();
    let after = wait_for(&state, &tokens("reranker"), warm + n_tokens).await;
    let stage = r#"compute_duration_seconds_count{model="reranker"}"#;
    assert_eq!(value(&after, stage), 1.0);
    // The count of the embedder has not changed.
    assert_eq!(value(&after, &name("compute_duration_seconds_count")), 1.0);
}

#[tokio::test]
async fn counts_tokens_saved_by_sharing() {
    let state = started(both(), ServerOptions::default()).await;
    for query in ["a", "b", "c"] {
        let request = json!({ "input": query, "prompt_name": "query" });
        post(&state, "/v1/embeddings", request).await.ok();
        let request = json!({ "query": query, "documents": ["d", "e"] });
        post(&state, "/rerank", request).await.ok();
    }
    let counts = [
        ("embedder", state.embedder().unwrap().model().sharing_counts()),
        ("reranker", state.reranker().unwrap().model().sharing_counts()),
    ];
    let samples = samples(&state).await;
    for (model, counts) in counts {
        assert!(counts.cache_hits > 0 && counts.cache_tokens > 0, "{model}: {counts:?}");
        for (name, expected) in [
            ("prefix_cache_hits_total", counts.cache_hits),
            ("prefix_cache_tokens_total", counts.cache_tokens),
            ("prefix_cache_bytes", counts.cache_bytes),
            ("computed_tokens_total", counts.n_computed),
        ] {
            let name = format!("{name}{{model=\"{model}\"}}");
            assert_eq!(value(&samples, &name), expected as f64, "{name}");
        }
    }
}

#[tokio::test]
async fn counts_waiting_texts() {
    let state = slow(ServerOptions::default()).await;
    let waiting = r#"waiting_texts{model="embedder"}"#;
    assert_eq!(value(&samples(&state).await, waiting), 0.0);
    {
        let mut first = pin!(take_long(&state));
        begin(&mut first).await;
        let n_waiting = value(&samples(&state).await, waiting);
        assert!((1.0..=2048.0).contains(&n_waiting), "{n_waiting}");
        assert_eq!(value(&samples(&state).await, r#"waiting_texts{model="reranker"}"#), 0.0);
    }
    assert_eq!(value(&samples(&state).await, waiting), 0.0);
}
