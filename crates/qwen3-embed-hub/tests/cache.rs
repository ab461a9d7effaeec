//! The layout of the cache, and the cases in which the cache is used without a request or because a request has failed.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with other tests")]
mod hub_server;
#[path = "../../qwen3-embed/tests/log/mod.rs"]
mod log;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::fs;

use hub_server::{COMMIT, Reply, Server, sha256};
use log::warnings;
use qwen3_embed_hub::{Hub, HubProblem};
use support::{ID, World, download, download_at, files, problem, tree};

#[test]
fn cache_has_the_layout_of_the_hubs_programs() {
    let others = [("1_Pooling/config.json", "{}"), ("README.md", "read me")];
    for world in World::each_with(|| files(&others)) {
        let dir = download(&world.hub()).unwrap();
        assert_eq!(dir, world.snapshot());
        // The ETag of a large file is its SHA-256. Other ETags are shorter.
        let blob = |file: &str| {
            let hash = sha256(&world.server.repos()[ID][file]);
            hash[..if file.ends_with(".json") { 40 } else { 64 }].to_owned()
        };
        let files = ["config.json", "model.safetensors", "1_Pooling/config.json"];
        let mut expected = vec!["refs/main".to_owned(), format!(".no_exist/{COMMIT}/modules.json")];
        for file in files {
            let up = "../".repeat(file.matches('/').count() + 2);
            expected.push(format!("blobs/{}", blob(file)));
            expected.push(format!("snapshots/{COMMIT}/{file} -> {up}blobs/{}", blob(file)));
            assert_eq!(fs::read(dir.join(file)).unwrap(), world.server.repos()[ID][file], "{file}");
        }
        expected.sort();
        assert_eq!(tree(&world.repo()), expected);
        assert_eq!(fs::read_to_string(world.repo().join("refs/main")).unwrap(), COMMIT);
        let locks = tree(&world.cache.path().join(".locks/models--owner--model"));
        assert_eq!(locks.len(), files.len());
        assert!(locks.contains(&(blob("config.json") + ".lock")));
        assert!(world.server.requests().iter().all(|request| !request.path.contains("README")));

        // One request asks for the newest commit. A pinned commit needs no request.
        assert_eq!(download(&world.hub()).unwrap(), dir);
        assert_eq!(world.server.requests().len(), 1);
        assert_eq!(download_at(&world.hub(), Some(COMMIT)).unwrap(), dir);
        assert_eq!(world.server.requests().len(), 0);
        assert_eq!(tree(&world.repo()), expected);
    }
}

#[test]
fn cache_is_used_without_network() {
    for world in World::each() {
        let offline = world.hub().offline(true);
        match problem(&offline) {
            HubProblem::Offline { cache } => assert_eq!(cache, world.cache.path()),
            other => panic!("{other:?}"),
        }
        let down = world.hub().endpoint("http://127.0.0.1:9").attempts(2);
        assert!(matches!(problem(&down), HubProblem::Unreachable { .. }));

        let dir = download(&world.hub()).unwrap();
        world.server.requests();
        for revision in [None, Some(COMMIT)] {
            assert_eq!(download_at(&offline, revision).unwrap(), dir);
            assert_eq!(download_at(&down, revision).unwrap(), dir);
        }
        assert!(download_at(&offline, Some("v1")).is_err());
        assert_eq!(world.server.requests().len(), 0);
    }
}

/// Responses of a hub that refuses access, or of another server, and the words that the warning must contain.
fn refusals() -> [(Reply, &'static [&'static str]); 6] {
    let refused = |status, message: &str| Reply::status(status).with("X-Error-Message", message);
    let portal = Reply { body: b"<html>log in".to_vec(), ..Reply::status(200) };
    [
        (
            refused(401, "Invalid credentials in Authorization header"),
            &["status 401: Invalid credentials in Authorization header", "HF_TOKEN"],
        ),
        (
            refused(403, "Access is restricted").with("X-Error-Code", "GatedRepo"),
            &["status 403: Access is restricted"],
        ),
        (refused(403, "Token is too old"), &["status 403: Token is too old"]),
        (Reply::status(404), &["status 404: Not Found"]),
        (
            refused(404, "Invalid rev id").with("X-Error-Code", "RevisionNotFound"),
            &["status 404: Invalid rev id"],
        ),
        (
            portal.with("Content-Type", "text/html; charset=utf-8"),
            &["status 200 OK, content type `text/html; charset=utf-8`", "HF_ENDPOINT"],
        ),
    ]
}

#[test]
fn cache_is_used_with_warning_if_hub_refuses() {
    for (reply, expected) in refusals() {
        for world in World::each() {
            let refuse = || {
                let refusal = reply.clone();
                world.server.change(move |_, reply| *reply = refusal.clone());
            };
            refuse();
            // With an empty cache, every refusal is an error.
            let error = download(&world.hub()).unwrap_err().to_string();
            assert!(expected.iter().all(|words| error.contains(words)), "{error}");
            world.server.behave();
            let dir = download(&world.hub()).unwrap();
            let before = tree(&world.repo());
            refuse();
            world.server.requests();
            let log = warnings(|| assert_eq!(download(&world.hub()).unwrap(), dir));
            assert_eq!(log.lines().count(), 1, "{log}");
            let used = format!("{} is used", dir.display());
            assert!(log.contains("WARN") && log.contains(&used) && log.contains(ID), "{log}");
            assert!(expected.iter().all(|words| log.contains(words)), "{log}");
            // There is only one attempt, because the cached files can be used.
            assert_eq!(world.server.requests().len(), 1);
            assert_eq!(tree(&world.repo()), before);
            // A pinned commit needs no request.
            let pinned = || drop(download_at(&world.hub(), Some(COMMIT)).unwrap());
            assert_eq!(warnings(pinned), "");
        }
    }
}

#[test]
fn failed_update_leaves_cached_commit_in_use() {
    const NEWER: &str = "fedcba9876543210fedcba9876543210fedcba98";
    for world in World::each() {
        let dir = download(&world.hub()).unwrap();
        world.server.change(|request, reply| {
            if request.path.starts_with("/api/") {
                let body = String::from_utf8(reply.body.clone()).unwrap();
                reply.body = body.replace(COMMIT, NEWER).into();
            } else {
                *reply = Reply::status(403).with("X-Error-Message", "Token is too old");
            }
        });
        let log = warnings(|| assert_eq!(download(&world.hub()).unwrap(), dir));
        assert!(log.contains("status 403: Token is too old") && log.contains(NEWER), "{log}");
        assert_eq!(fs::read_to_string(world.repo().join("refs/main")).unwrap(), COMMIT);
        // If the cached commit lacks a required file, the failed update is an error.
        fs::remove_file(dir.join("config.json")).unwrap();
        assert!(matches!(problem(&world.hub()), HubProblem::Forbidden { .. }));
    }
}

/// The commit has the optional file. If the cached files were used without it, the results would differ from those of
/// the commit.
#[test]
fn missing_optional_file_of_newest_commit_is_an_error() {
    for world in World::each_with(|| files(&[("modules.json", "[]")])) {
        download(&world.hub()).unwrap();
        fs::remove_file(world.snapshot().join("modules.json")).unwrap();
        world.server.change(|request, reply| {
            if !request.path.starts_with("/api/") {
                *reply = Reply::status(403);
            }
        });
        for revision in [None, Some(COMMIT)] {
            let error = download_at(&world.hub(), revision).unwrap_err();
            assert!(matches!(error.problem, HubProblem::Forbidden { .. }), "{error}");
            assert_eq!(error.file.as_deref(), Some("modules.json"));
        }
    }
}

/// Other programs download only the files that they need, and do not record which files a commit does not have.
#[test]
fn files_that_another_program_left_out_are_downloaded() {
    for world in World::each_with(|| files(&[("modules.json", "[]")])) {
        download(&world.hub()).unwrap();
        fs::remove_file(world.snapshot().join("modules.json")).unwrap();
        fs::remove_dir_all(world.repo().join(".no_exist")).unwrap();
        download_at(&world.hub().offline(true), Some(COMMIT)).unwrap();
        assert!(!world.snapshot().join("modules.json").exists());
        world.server.requests();
        download_at(&world.hub(), Some(COMMIT)).unwrap();
        assert!(world.snapshot().join("modules.json").exists());
        // The blob is in the cache. Only the listing is a GET request.
        let requests = world.server.requests();
        assert_eq!(requests.iter().filter(|request| request.method == "GET").count(), 1);
    }
}

#[test]
fn error_names_cache_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    fs::write(&file, "").unwrap();
    let server = Server::start(&[(ID, files(&[]))]);
    match problem(&Hub::new(&file).endpoint(server.url())) {
        HubProblem::Io { path, .. } => assert!(path.starts_with(&file), "{}", path.display()),
        other => panic!("{other:?}"),
    }
}
