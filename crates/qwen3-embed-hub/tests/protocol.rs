//! The hub's protocol: statuses, revisions, redirects, tokens, and responses of other servers.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with other tests")]
mod hub_server;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hub_server::{COMMIT, Reply, Request, sha256};
use qwen3_embed_hub::{HubProblem, RepoId, Repository};
use support::{ID, SELECTION, World, download, download_at, problem};

#[test]
fn retries_busy_hub_and_waits_as_long_as_requested() {
    for world in World::each() {
        let busy = Mutex::new([429, 500, 502, 503].into_iter());
        world.server.change(move |_, reply| {
            if let Some(status) = busy.lock().unwrap().next() {
                *reply = Reply::status(status);
                if status == 429 {
                    reply.headers.push(("Retry-After", "1".to_owned()));
                }
            }
        });
        let start = Instant::now();
        download(&world.hub()).unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
        world.server.change(|_, reply| *reply = Reply::status(504));
        fs::remove_dir_all(world.repo()).unwrap();
        world.server.requests();
        let problem = problem(&world.hub());
        assert!(matches!(problem, HubProblem::Status { status: 504, .. }), "{problem}");
        assert_eq!(world.server.requests().len(), 5);
    }
}

#[test]
fn retries_busy_server_for_large_files_up_to_the_limit() {
    let world = World::http();
    world.server.change(|request, reply| {
        if request.to_cdn && request.method == "GET" {
            *reply = Reply::status(503);
        }
    });
    let problem = problem(&world.hub().attempts(3));
    assert!(matches!(problem, HubProblem::Status { status: 503, .. }), "{problem}");
    let requests = world.server.requests();
    let n = requests.iter().filter(|request| support::is_weights(request)).count();
    assert_eq!(n, 3);
}

#[test]
fn refusals_become_problems() {
    for world in World::each() {
        let refused = |status: u16, headers: &[(&'static str, &str)]| {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
            world.server.change(move |_, reply| {
                *reply = Reply { headers: headers.clone(), ..Reply::status(status) };
            });
            let problem = problem(&world.hub());
            world.server.behave();
            assert!(!world.repo().join("refs").exists());
            problem
        };
        let gated = [("X-Error-Code", "GatedRepo"), ("X-Error-Message", "Access is restricted")];
        for status in [401, 403] {
            let page = format!("{}/{ID}", world.server.url());
            let problem = refused(status, &gated);
            assert!(
                matches!(&problem, HubProblem::Gated { page: p, .. } if *p == page),
                "{problem}"
            );
            assert!(problem.to_string().contains("HF_TOKEN"));
        }
        let invalid = [("X-Error-Message", "Invalid credentials in Authorization header")];
        assert!(matches!(refused(401, &invalid), HubProblem::BadToken { .. }));
        assert!(matches!(refused(401, &[]), HubProblem::NoSuchModel { status: 401, .. }));
        assert!(matches!(refused(404, &[]), HubProblem::NoSuchModel { status: 404, .. }));
        let forbidden = [("X-Error-Message", "Token is too old")];
        match refused(403, &forbidden) {
            HubProblem::Forbidden { status: 403, message } => {
                assert_eq!(message, "Token is too old");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(refused(418, &[]), HubProblem::Status { status: 418, .. }));
        // There is only one attempt, because another attempt would not help.
        world.server.requests();
        let other = RepoId::new("owner/other", None).unwrap();
        let hub = world.hub();
        let error = Repository::new(&hub, &other, other.to_string()).newest(&SELECTION);
        assert!(matches!(error.unwrap_err().problem, HubProblem::NoSuchModel { .. }));
        match download_at(&hub, Some("v9")).unwrap_err().problem {
            HubProblem::NoSuchRevision { revision, .. } => assert_eq!(revision, "v9"),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.server.requests().len(), 2);
    }
}

/// The request for the listing succeeds, but the requests for files are refused.
#[test]
fn refused_file_is_named() {
    let world = World::http();
    for (status, code) in [(403, "none"), (401, "GatedRepo"), (404, "EntryNotFound")] {
        world.server.change(move |request, reply| {
            if request.to_cdn && request.method == "GET" {
                *reply = Reply::status(status).with("X-Error-Code", code);
            }
        });
        let error = download(&world.hub()).unwrap_err();
        assert_eq!(error.file.as_deref(), Some("model.safetensors"));
        match (status, error.problem) {
            (403, HubProblem::Forbidden { message, .. }) => assert_eq!(message, "Forbidden"),
            (401, HubProblem::Gated { .. }) | (404, HubProblem::NoSuchFile) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn branches_tags_and_pull_requests_are_revisions() {
    for world in World::each() {
        for revision in ["v1", "refs/pr/1"] {
            download_at(&world.hub(), Some(revision)).unwrap();
            let noted = fs::read_to_string(world.repo().join("refs").join(revision)).unwrap();
            assert_eq!(noted, COMMIT);
        }
        assert!(!world.repo().join("refs/main").exists());
    }
}

#[test]
fn missing_file_is_named() {
    for world in World::each() {
        // The file is not in the listing.
        let files = world.server.repos().get_mut(ID).unwrap().remove("model.safetensors").unwrap();
        let error = download(&world.hub()).unwrap_err();
        assert!(matches!(error.problem, HubProblem::NoSuchFile), "{error}");
        assert_eq!(error.file.as_deref(), Some("model.safetensors"));
        // The file is in the listing, but not on the server.
        world.server.repos().get_mut(ID).unwrap().insert("model.safetensors".into(), files);
        fs::remove_dir_all(world.repo()).unwrap();
        world.server.change(|request, reply| {
            if request.path.ends_with("config.json") {
                *reply = Reply::status(404).with("X-Error-Code", "EntryNotFound");
            }
        });
        let error = download(&world.hub()).unwrap_err();
        assert!(matches!(error.problem, HubProblem::NoSuchFile), "{error}");
        assert_eq!(error.file.as_deref(), Some("config.json"));
    }
}

#[test]
fn token_is_sent_to_the_hub_only_and_never_shown() {
    for world in World::each() {
        let hub = world.hub().token(" hf_secret\n");
        assert!(!format!("{hub:?}").contains("hf_secret"));
        download(&hub).unwrap();
        let requests = world.server.requests();
        assert!(requests.iter().any(|request| request.to_cdn));
        for request in requests {
            let has_token = request.header("authorization") == Some("Bearer hf_secret");
            assert_eq!(has_token, !request.to_cdn, "{request:?}");
        }
        world.server.change(|_, reply| *reply = Reply::status(403));
        let error = download_at(&hub, Some("v1")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hf_secret"));
        // The line feed in this token would add another header to the request.
        let error = download_at(&world.hub().token("hf_\nsecret"), Some("v1")).unwrap_err();
        assert!(matches!(&error.problem, HubProblem::Unusable { .. }));
        assert!(!format!("{error} {error:?}").contains("secret"));
        // Without a token, none is sent.
        fs::remove_dir_all(world.repo()).unwrap();
        world.server.behave();
        world.server.requests();
        download(&world.hub()).unwrap();
        let mut requests = world.server.requests().into_iter().filter(|request| !request.to_cdn);
        assert!(requests.all(|request| request.header("authorization").is_none()));
    }
}

/// A mirror redirects every request for a file to another host. The mirror itself announces nothing about the file, or
/// only a hash.
#[test]
fn follows_mirror_to_another_host_without_token() {
    let wrong_hash = "f".repeat(64);
    for (is_whole_hub, linked_etag) in [(false, None), (true, None), (true, Some(wrong_hash))] {
        let (world, other) = (World::http(), World::http());
        let (url, etag) = (other.server.url().to_owned(), linked_etag.clone());
        world.server.change(move |request, reply| {
            if !request.path.starts_with("/api/") {
                let location = format!("{url}{}", request.path);
                *reply = Reply::status(308).with("Location", location);
                let etag = etag.iter().filter(|_| request.path.ends_with("config.json"));
                reply.headers.extend(etag.map(|etag| ("X-Linked-ETag", format!("\"{etag}\""))));
            }
        });
        if !is_whole_hub {
            let files = other.server.repos()[ID].clone();
            other.server.change(move |request, reply| {
                let file = &files[request.path.rsplit('/').next().unwrap()];
                let etag = format!("\"{}\"", sha256(file));
                let whole = Reply { body: file.clone(), ..Reply::status(200) };
                *reply = whole.with("ETag", etag);
            });
        }
        let hub = world.hub().token("hf_secret");
        // The hash that is announced first takes precedence. Here, this hash is wrong.
        if let Some(hash) = &linked_etag {
            let error = download(&hub).unwrap_err();
            match &error.problem {
                HubProblem::Checksum { expected, .. } => assert_eq!(expected, hash),
                other => panic!("{other:?}"),
            }
            assert_eq!(error.file.as_deref(), Some("config.json"));
            continue;
        }
        let dir = download(&hub).unwrap();
        for (file, contents) in world.server.repos()[ID].iter() {
            assert_eq!(fs::read(dir.join(file)).unwrap(), *contents, "{file}");
        }
        let (here, there) = (world.server.requests(), other.server.requests());
        assert!(here.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
        assert!(there.iter().any(|request| request.method == "HEAD"));
        for request in there {
            assert_eq!(request.header("authorization"), None, "{request:?}");
        }
    }
}

#[test]
fn rejects_responses_of_other_servers() {
    let world = World::http();
    let changed = |change: fn(&Request, &mut Reply)| {
        world.server.change(change);
        let problem = problem(&world.hub());
        assert!(matches!(problem, HubProblem::Unusable { .. }), "{problem}");
        assert!(problem.to_string().contains("HF_ENDPOINT"));
        assert!(!world.repo().join("refs").exists());
    };
    changed(|_, reply| *reply = Reply { body: b"<html>".to_vec(), ..Reply::status(200) });
    changed(|_, reply| reply.body = br#"{"sha": "../../x", "siblings": []}"#.to_vec());
    changed(|_, reply| *reply = Reply::status(302).with("Location", "/again"));
    changed(|request, reply| {
        if request.method == "HEAD" {
            reply.headers.retain(|(name, _)| !name.ends_with("ag"));
        }
    });
    changed(|request, reply| {
        if request.method == "HEAD" {
            let etag = ("X-Linked-ETag", "\"../../../evil\"".to_owned());
            reply.headers.insert(0, etag);
        }
    });
    for endpoint in ["nonsense", "", "ftp://127.0.0.1", "http://a b"] {
        let problem = problem(&world.hub().endpoint(endpoint));
        assert!(matches!(problem, HubProblem::Unusable { .. }), "{endpoint}: {problem}");
    }
}
