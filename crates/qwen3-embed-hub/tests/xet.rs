//! Downloads of files in Xet storage. Many tests in `cache.rs`, `protocol.rs` and `transfers.rs` also use Xet storage.
#![cfg(feature = "hf-hub")]
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with other tests")]
mod hub_server;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::fs;
use std::time::{Duration, Instant};

use hub_server::{Reply, xet};
use qwen3_embed_hub::{HubProblem, Transport};
use support::{World, download, is_weights, tree};

#[test]
fn downloads_file_from_xet_storage() {
    let world = World::xet();
    let dir = download(&world.hub().token("hf_secret")).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
    let requests = world.server.requests();
    let storage = requests.iter().filter(|request| request.path.contains("/reconstructions/"));
    let bearer = format!("Bearer {}", xet::TOKEN);
    assert!(storage.clone().count() > 0);
    assert!(storage.clone().all(|request| request.header("authorization") == Some(&bearer)));
    // The blobs of two files, and nothing else.
    assert_eq!(tree(&world.repo().join("blobs")).len(), 2);
}

/// The caller's runtime would panic if this thread waited for another runtime.
#[test]
fn downloads_inside_a_runtime() {
    let world = World::xet();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { download(&world.hub()).unwrap() });
}

#[test]
fn error_of_xet_storage_names_the_file() {
    let world = World::xet();
    world.server.change(|request, reply| {
        if request.path.contains("/reconstructions/") {
            *reply = Reply::status(400);
        }
    });
    let error = download(&world.hub()).unwrap_err();
    assert!(matches!(error.problem, HubProblem::Unreachable { .. }), "{error:?}");
    assert_eq!(error.file.as_deref(), Some("model.safetensors"));
    let blobs = tree(&world.repo().join("blobs"));
    assert!(blobs.iter().all(|blob| !blob.contains("hf-hub")), "{blobs:?}");
}

#[test]
fn refused_storage_token_names_the_file() {
    let world = World::xet();
    world.server.change(|request, reply| {
        if request.path.contains("/xet-read-token/") {
            *reply = Reply::status(403).with("X-Error-Message", "Token is too old");
        }
    });
    let error = download(&world.hub()).unwrap_err();
    match error.problem {
        HubProblem::Forbidden { message, .. } => assert_eq!(message, "Token is too old"),
        other => panic!("{other:?}"),
    }
    assert_eq!(error.file.as_deref(), Some("model.safetensors"));
}

/// The contents are in Xet storage only, and the built-in client does not support Xet storage.
#[test]
fn built_in_client_does_not_read_xet_storage() {
    let world = World::xet();
    let error = download(&world.hub().transport(Transport::Http)).unwrap_err();
    assert_eq!(error.file.as_deref(), Some("model.safetensors"));
    assert!(world.server.requests().iter().all(|request| !request.path.contains("xet")));
}

#[test]
fn hf_hub_is_not_used_for_other_files() {
    let world = World::http();
    let dir = download(&world.hub().transport(Transport::HfHub)).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
    assert!(world.server.requests().iter().all(|request| !request.path.contains("xet")));
}

#[test]
fn silent_hub_times_out() {
    let world = World::xet();
    let mut first = true;
    world.server.change(move |request, reply| {
        if request.path.contains("/xet-read-token/") && std::mem::take(&mut first) {
            reply.silence = Duration::from_secs(5);
        }
    });
    let start = Instant::now();
    download(&world.hub().timeout(Duration::from_millis(500))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// While hf-hub transfers chunks, its own timeouts apply, so a chunk may take longer than the timeout of the hub.
#[test]
fn slow_storage_does_not_time_out() {
    let world = World::xet();
    world.server.change(|request, reply| {
        if is_weights(request) {
            reply.silence = Duration::from_millis(1_500);
        }
    });
    download(&world.hub().timeout(Duration::from_millis(500))).unwrap();
    let requests = world.server.requests();
    assert_eq!(requests.iter().filter(|request| is_weights(request)).count(), 1);
}
