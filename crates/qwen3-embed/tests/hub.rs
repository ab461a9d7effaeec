//! Models of the hub, from a server on loopback that speaks its API.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

mod hub_server;
mod log;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hub_server::{COMMIT, Reply, Request, Server, repository, sha256};
use log::warnings;
use qwen3_embed::{Embedder, Error, Hub, HubError, HubProblem, Reranker};

const ID: &str = "owner/model";

/// A hub with one model, and a cache that is empty.
struct World {
    server: Server,
    cache: tempfile::TempDir,
}

impl World {
    fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { server: Server::start(&[(ID, files)]), cache: tempfile::tempdir().unwrap() }
    }

    fn base() -> Self {
        Self::new(repository("base", &[]))
    }

    fn hub(&self) -> Hub {
        Hub::new(self.cache.path())
            .endpoint(self.server.url())
            .retry_wait(Duration::from_millis(5))
            .timeout(Duration::from_secs(20))
    }

    fn pinned(&self) -> String {
        format!("{ID}@{COMMIT}")
    }

    /// The folder of the model in the cache.
    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--owner--model")
    }

    fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    fn weights(&self) -> Vec<u8> {
        self.server.repos()[ID]["model.safetensors"].clone()
    }

    /// Where what there is of the weights lies.
    fn incomplete(&self) -> PathBuf {
        self.repo().join("blobs").join(sha256(&self.weights()) + ".incomplete")
    }

    /// What goes wrong with the download of a model.
    fn problem(&self, id: &str) -> HubProblem {
        problem(self.hub().download(id))
    }
}

fn problem(result: Result<PathBuf, Error>) -> HubProblem {
    hub_error(result).problem
}

fn hub_error(result: Result<PathBuf, Error>) -> HubError {
    match result {
        Err(Error::Hub(error)) => *error,
        other => panic!("{other:?}"),
    }
}

/// All files and links below a folder, with what links point to.
fn tree(dir: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    for entry in dir.read_dir().into_iter().flatten() {
        let (path, kind) = (entry.as_ref().unwrap().path(), entry.unwrap().file_type().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if kind.is_dir() {
            entries.extend(tree(&path).into_iter().map(|entry| format!("{name}/{entry}")));
        } else if kind.is_symlink() {
            entries.push(format!("{name} -> {}", fs::read_link(path).unwrap().display()));
        } else {
            entries.push(name);
        }
    }
    entries.sort();
    entries
}

/// Whether a request is for the bytes of the weights.
fn is_weights(request: &Request) -> bool {
    request.to_cdn && request.method == "GET"
}

/// A model with modules in folders of their own, one with weights.
const DENSE: &str = "../sentence-transformers/mean-dense";

const MODULES: &str = r#"[
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "../2_Dense", "type": "sentence_transformers.models.Dense"}
]"#;

#[test]
fn a_model_is_downloaded_once_and_lies_as_the_hubs_programs_lay_it() {
    let others = [
        ("modules.json", MODULES),
        ("1_Pooling/config.json", "{}"),
        ("README.md", "read me"),
        ("pytorch_model.bin", "a pickle"),
        ("onnx/model.onnx", "another format"),
    ];
    let world = World::new(repository("base", &others));
    let dir = world.hub().download(ID).unwrap();
    assert_eq!(dir, world.snapshot());
    // Small files are named as the hub names them, large ones by their SHA-256.
    let blob = |file: &str| {
        let hash = sha256(&world.server.repos()[ID][file]);
        hash[..if file.ends_with(".json") { 40 } else { 64 }].to_owned()
    };
    let files = [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
    ];
    let mut expected = vec!["refs/main".to_owned()];
    for file in files {
        let up = "../".repeat(file.matches('/').count() + 2);
        expected.push(format!("blobs/{}", blob(file)));
        expected.push(format!("snapshots/{COMMIT}/{file} -> {up}blobs/{}", blob(file)));
        assert_eq!(fs::read(dir.join(file)).unwrap(), world.server.repos()[ID][file], "{file}");
    }
    let lacking = [
        "1_Pooling/model.safetensors",
        "adapter_config.json",
        "config_sentence_transformers.json",
        "model.safetensors.index.json",
        "sentence_bert_config.json",
    ];
    expected.extend(lacking.map(|file| format!(".no_exist/{COMMIT}/{file}")));
    expected.sort();
    assert_eq!(tree(&world.repo()), expected);
    assert_eq!(fs::read_to_string(world.repo().join("refs/main")).unwrap(), COMMIT);
    let locks = tree(&world.cache.path().join(".locks/models--owner--model"));
    assert_eq!(locks.len(), files.len());
    assert!(locks.contains(&(blob("config.json") + ".lock")));
    let asked = world.server.requests();
    assert!(
        asked.iter().all(|r| !["README", "pytorch", "onnx"].iter().any(|w| r.path.contains(w)))
    );

    // The newest commit is one question, a pinned one is none.
    assert_eq!(world.hub().download(ID).unwrap(), dir);
    assert_eq!(world.server.requests().len(), 1);
    assert_eq!(world.hub().download(world.pinned()).unwrap(), dir);
    assert_eq!(world.server.requests().len(), 0);
    assert_eq!(tree(&world.repo()), expected);
}

#[test]
fn an_id_embeds_like_the_folder_it_was_uploaded_from() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
    for name in ["base", "causal-lm-untied", DENSE] {
        let world = World::new(repository(name, &[]));
        let texts = ["今天天气真好", "It is a fine day"];
        let ours = Embedder::builder(ID).hub(world.hub()).build().unwrap();
        let theirs = Embedder::builder(fixtures.join(name)).build().unwrap();
        assert_eq!(ours.embed_queries(&texts).unwrap(), theirs.embed_queries(&texts).unwrap());
    }
}

#[test]
fn only_the_shards_of_the_index_are_downloaded_and_several_at_once() {
    let world = World::new(repository(
        "causal-lm-untied",
        &[("model-00009-of-00009.safetensors", "in no index"), ("extra.safetensors", "no")],
    ));
    // Neither of the two shards is sent at once.
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    world.server.change(move |request, reply| {
        if is_weights(request) {
            seen.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            reply.silence = Duration::from_millis(300);
        }
    });
    let start = Instant::now();
    let dir = world.hub().download(ID).unwrap();
    let shards = tree(&dir).iter().filter(|file| file.contains("safetensors ->")).count();
    assert_eq!(shards, 2);
    // One after the other they would take as long again.
    assert!(start.elapsed() < Duration::from_millis(550), "{:?}", start.elapsed());
    assert_eq!(most.load(SeqCst), 2);
    assert!(world.server.requests().iter().all(|r| !r.path.contains("extra")));
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let world = World::base();
    let n = world.weights().len();
    let mut breaks = 0;
    world.server.change(move |request, reply| {
        // More often than a request may fail in a row, but each time some of it has come.
        if is_weights(request) && reply.body.len() > n / 10 {
            breaks += 1;
            reply.cut = (breaks <= 8).then_some(n / 10);
        }
    });
    let dir = world.hub().attempts(2).download(ID).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
    let asked = world.server.requests();
    let ranges = asked.iter().filter(|r| is_weights(r)).filter_map(|r| r.header("range"));
    let ranges: Vec<_> = ranges.map(str::to_owned).collect();
    let expected: Vec<_> = (1..=8).map(|i| format!("bytes={}-", n / 10 * i)).collect();
    assert_eq!(ranges, expected);
}

#[test]
fn an_interrupted_download_goes_on_the_next_time() {
    let world = World::base();
    let n = world.weights().len();
    world.server.change(move |request, reply| {
        if is_weights(request) && reply.body.len() == n {
            reply.cut = Some(n / 2);
        } else if is_weights(request) && request.header("range").is_some() {
            *reply = Reply::status(503);
        }
    });
    let error = hub_error(world.hub().download(ID));
    assert!(matches!(error.problem, HubProblem::Status { status: 503, .. }), "{error}");
    assert_eq!(error.file.as_deref(), Some("model.safetensors"));
    assert_eq!(fs::metadata(world.incomplete()).unwrap().len(), n as u64 / 2);
    assert!(!world.snapshot().join("model.safetensors").exists());
    // Nothing says that the model is there.
    assert!(!world.repo().join("refs/main").exists());
    assert!(matches!(problem(world.hub().offline(true).download(ID)), HubProblem::Offline { .. }));

    world.server.behave();
    world.server.requests();
    let dir = world.hub().download(ID).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
    let asked = world.server.requests();
    let ranges: Vec<_> =
        asked.iter().filter(|r| is_weights(r)).map(|r| r.header("range")).collect();
    assert_eq!(ranges, [Some(format!("bytes={}-", n / 2).as_str())]);
    assert!(!world.incomplete().exists());
}

#[test]
fn a_connection_that_breaks_every_time_is_an_error_that_says_how_far_it_came() {
    let world = World::base();
    let n = world.weights().len() as u64;
    world.server.change(move |request, reply| {
        if is_weights(request) {
            reply.cut = Some(if reply.body.len() as u64 == n { 1000 } else { 0 });
        }
    });
    let error = hub_error(world.hub().download(ID));
    assert!(
        matches!(error.problem, HubProblem::Cut { done: 1000, total, .. } if total == n),
        "{error}"
    );
    // The first attempt, which brought something, and five that did not.
    let asked = world.server.requests();
    assert_eq!(asked.iter().filter(|r| is_weights(r) && r.header("range").is_some()).count(), 5);
}

#[test]
fn what_is_left_of_an_earlier_download_is_not_trusted() {
    let world = World::base();
    let n = world.weights().len();
    // Other bytes than the file's, more than the file has, and all that it has but other ones.
    for length in [100, n + 100, n] {
        fs::create_dir_all(world.incomplete().parent().unwrap()).unwrap();
        fs::write(world.incomplete(), vec![1; length]).unwrap();
        let dir = world.hub().download(ID).unwrap();
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights(), "{length}");
        fs::remove_dir_all(world.repo()).unwrap();
    }
}

#[test]
fn a_server_that_cannot_resume_starts_again() {
    let world = World::base();
    let whole = world.weights();
    let n = whole.len();
    let mut first = true;
    world.server.change(move |request, reply| {
        if is_weights(request) && std::mem::take(&mut first) {
            reply.cut = Some(n / 2);
        } else if request.header("range").is_some() {
            *reply = Reply { body: whole.clone(), ..Reply::status(200) };
        }
    });
    let dir = world.hub().download(ID).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
}

#[test]
fn damaged_bytes_are_thrown_away_and_never_loaded() {
    let world = World::base();
    let n = world.weights().len();
    world.server.change(move |request, reply| {
        if is_weights(request) && reply.body.len() == n {
            reply.body[n - 1] ^= 1;
        }
    });
    let error = Embedder::builder(ID).hub(world.hub()).build().map(|_| PathBuf::new());
    let error = hub_error(error);
    let expected = sha256(&world.weights());
    match &error.problem {
        HubProblem::Checksum { expected: e, got } => assert!(*e == expected && got.len() == 64),
        other => panic!("{other:?}"),
    }
    assert!(
        error.to_string().starts_with("owner/model, model.safetensors (from http://127.0.0.1:")
    );
    assert!(!world.snapshot().join("model.safetensors").exists());
    assert!(tree(&world.repo().join("blobs")).iter().all(|blob| !blob.starts_with(&expected)));
    world.server.behave();
    world.hub().download(ID).unwrap();
}

#[test]
fn a_file_of_another_size_than_announced_is_thrown_away() {
    for (file, change) in [
        ("model.safetensors", -1),
        ("model.safetensors", 1),
        ("config.json", -1),
        ("config.json", 1),
    ] {
        let world = World::base();
        let n = world.server.repos()[ID][file].len();
        world.server.change(move |request, reply| {
            if request.header("range").is_some() {
                *reply = Reply::status(416);
            } else if request.method == "GET" && reply.body.len() == n {
                reply.body.resize((n as i64 + change) as usize, b' ');
            }
        });
        let error = hub_error(world.hub().attempts(2).download(ID));
        let got = (n as i64 + change) as u64;
        assert!(
            matches!(error.problem, HubProblem::Size { expected, got: g } if (expected, g) == (n as u64, got)),
            "{error}"
        );
        assert_eq!(error.file.as_deref(), Some(file));
        assert!(!world.snapshot().join(file).exists());
        // Others, which were stopped, may have been begun.
        let hash = sha256(&world.server.repos()[ID][file]);
        let blobs = tree(&world.repo().join("blobs"));
        assert!(!blobs.iter().any(|blob| blob.starts_with(&hash[..40])), "{blobs:?}");
    }
}

#[test]
fn a_busy_hub_is_asked_again_and_obeyed() {
    let world = World::base();
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
    world.hub().download(ID).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    world.server.change(|_, reply| *reply = Reply::status(504));
    fs::remove_dir_all(world.repo()).unwrap();
    world.server.requests();
    let problem = world.problem(ID);
    assert!(matches!(problem, HubProblem::Status { status: 504, .. }), "{problem}");
    assert_eq!(world.server.requests().len(), 5);
}

#[test]
fn what_the_hub_refuses_is_said_in_its_own_terms() {
    let world = World::base();
    let refused = |status: u16, headers: &[(&'static str, &str)]| {
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        world.server.change(move |_, reply| {
            *reply = Reply { headers: headers.clone(), ..Reply::status(status) };
        });
        let problem = world.problem(ID);
        world.server.behave();
        assert!(!world.repo().join("refs").exists());
        problem
    };
    let gated = [("X-Error-Code", "GatedRepo"), ("X-Error-Message", "Access is restricted")];
    for status in [401, 403] {
        let page = format!("{}/{ID}", world.server.url());
        let problem = refused(status, &gated);
        assert!(matches!(&problem, HubProblem::Gated { page: p, .. } if *p == page), "{problem}");
        assert!(problem.to_string().contains("HF_TOKEN"));
    }
    let invalid = [("X-Error-Message", "Invalid credentials in Authorization header")];
    assert!(matches!(refused(401, &invalid), HubProblem::BadToken { .. }));
    assert!(matches!(refused(401, &[]), HubProblem::NoSuchModel { status: 401, .. }));
    assert!(matches!(refused(404, &[]), HubProblem::NoSuchModel { status: 404, .. }));
    let forbidden = [("X-Error-Message", "Token is too old")];
    match refused(403, &forbidden) {
        HubProblem::Forbidden { status: 403, message } => assert_eq!(message, "Token is too old"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(refused(418, &[]), HubProblem::Status { status: 418, .. }));
    // Asked once: asking again would not help.
    world.server.requests();
    assert!(matches!(world.problem("owner/other"), HubProblem::NoSuchModel { .. }));
    match world.problem("owner/model@v9") {
        HubProblem::NoSuchRevision { revision, .. } => assert_eq!(revision, "v9"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.server.requests().len(), 2);
}

#[test]
fn branches_tags_and_pull_requests_are_revisions() {
    let world = World::base();
    for revision in ["v1", "refs/pr/1"] {
        world.hub().download(format!("{ID}@{revision}")).unwrap();
        assert_eq!(fs::read_to_string(world.repo().join("refs").join(revision)).unwrap(), COMMIT);
    }
    assert!(!world.repo().join("refs/main").exists());
}

#[test]
fn a_file_that_the_repository_lacks_is_named() {
    let mut files = repository("causal-lm-untied", &[]);
    files.remove("model-00002-of-00002.safetensors");
    let world = World::new(files);
    let error = hub_error(world.hub().download(ID));
    assert!(matches!(error.problem, HubProblem::NoSuchFile), "{error}");
    assert_eq!(error.file.as_deref(), Some("model-00002-of-00002.safetensors"));
    // Listed, but not there.
    let world = World::base();
    world.server.change(|request, reply| {
        if request.path.ends_with("config.json") {
            *reply = Reply::status(404).with("X-Error-Code", "EntryNotFound");
        }
    });
    let error = hub_error(world.hub().download(ID));
    assert!(matches!(error.problem, HubProblem::NoSuchFile), "{error}");
    assert_eq!(error.file.as_deref(), Some("config.json"));
}

#[test]
fn the_token_goes_to_the_hub_only_and_into_no_message() {
    let world = World::base();
    let hub = world.hub().token(" hf_secret\n");
    assert!(!format!("{hub:?}").contains("hf_secret"));
    hub.download(ID).unwrap();
    let asked = world.server.requests();
    assert!(asked.iter().any(|request| request.to_cdn));
    for request in asked {
        let expected = (!request.to_cdn).then_some("Bearer hf_secret");
        assert_eq!(request.header("authorization"), expected, "{request:?}");
    }
    world.server.change(|_, reply| *reply = Reply::status(403));
    let error = hub.download("owner/model@v1").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hf_secret"));
    // A token that cannot be sent, for it would be more than one header.
    let error = world.hub().token("hf_\nsecret").download("owner/model@v1").unwrap_err();
    assert!(matches!(&error, Error::Hub(e) if matches!(e.problem, HubProblem::Unusable { .. })));
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn without_a_network_the_cache_is_used() {
    let world = World::base();
    let offline = world.hub().offline(true);
    let error = hub_error(offline.download(ID));
    assert!(matches!(&error.problem, HubProblem::Offline { cache } if cache == world.cache.path()));
    let nowhere = world.hub().endpoint("http://127.0.0.1:9").attempts(2);
    let problem = problem(nowhere.download(ID));
    assert!(matches!(problem, HubProblem::Unreachable { .. }), "{problem}");

    let dir = world.hub().download(ID).unwrap();
    world.server.requests();
    for id in [ID.to_owned(), world.pinned()] {
        assert_eq!(offline.download(id.as_str()).unwrap(), dir);
        assert_eq!(nowhere.download(id.as_str()).unwrap(), dir);
    }
    assert!(offline.download("owner/model@v1").is_err());
    assert_eq!(world.server.requests().len(), 0);
}

/// What a hub answers that does not give the model out any more, or that is not the hub, and what the warning says.
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
fn cached_model_is_used_with_a_warning_whatever_the_hub_answers() {
    for (answer, expected) in refusals() {
        let world = World::base();
        let refuse = || {
            let answer = answer.clone();
            world.server.change(move |_, reply| *reply = answer.clone());
        };
        refuse();
        // With nothing in the cache, all of these are errors.
        let error = world.hub().download(ID).unwrap_err().to_string();
        assert!(expected.iter().all(|words| error.contains(words)), "{error}");
        world.server.behave();
        let dir = world.hub().download(ID).unwrap();
        let info = world.hub().info(ID).unwrap();
        let before = tree(&world.repo());
        refuse();
        world.server.requests();
        let mut log = warnings(|| assert_eq!(world.hub().download(ID).unwrap(), dir));
        log += &warnings(|| assert_eq!(world.hub().info(ID).unwrap(), info));
        assert_eq!(log.lines().count(), 2, "{log}");
        for line in log.lines() {
            let used = format!("{} is used", dir.display());
            assert!(line.contains("WARN") && line.contains(&used) && line.contains(ID), "{line}");
            assert!(expected.iter().all(|words| line.contains(words)), "{line}");
        }
        // Nobody who has the model waits for further attempts.
        assert_eq!(world.server.requests().len(), 2);
        assert_eq!(tree(&world.repo()), before);
        // A pinned model needs no request, and gives no warning.
        assert_eq!(warnings(|| drop(world.hub().download(world.pinned()).unwrap())), "");
    }
}

#[test]
fn update_that_fails_leaves_the_cached_commit_in_use_with_a_warning() {
    const NEWER: &str = "fedcba9876543210fedcba9876543210fedcba98";
    let world = World::base();
    let dir = world.hub().download(ID).unwrap();
    world.server.change(|request, reply| {
        if request.path.starts_with("/api/") {
            let body = String::from_utf8(reply.body.clone()).unwrap();
            reply.body = body.replace(COMMIT, NEWER).into();
        } else {
            *reply = Reply::status(403).with("X-Error-Message", "Token is too old");
        }
    });
    let log = warnings(|| assert_eq!(world.hub().download(ID).unwrap(), dir));
    assert!(log.contains("status 403: Token is too old") && log.contains(NEWER), "{log}");
    let log = warnings(|| drop(world.hub().info(ID).unwrap()));
    assert!(log.contains("status 403: Token is too old"), "{log}");
    assert_eq!(fs::read_to_string(world.repo().join("refs/main")).unwrap(), COMMIT);
    // What is missing is an error.
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    assert!(matches!(world.problem(ID), HubProblem::Forbidden { .. }));
}

/// Without it, vectors would be others than those of the model.
#[test]
fn file_that_the_cached_commit_is_known_to_lack_is_an_error() {
    let world = World::new(repository("base", &[("modules.json", "[]")]));
    world.hub().download(ID).unwrap();
    fs::remove_file(world.snapshot().join("modules.json")).unwrap();
    world.server.change(|request, reply| {
        if !request.path.starts_with("/api/") {
            *reply = Reply::status(403);
        }
    });
    for id in [ID.to_owned(), world.pinned()] {
        let error = hub_error(world.hub().download(id));
        assert!(matches!(error.problem, HubProblem::Forbidden { .. }), "{error}");
        assert_eq!(error.file.as_deref(), Some("modules.json"));
    }
}

/// A mirror that sends every request for a file to another host, and says nothing of the file, or only its hash.
#[test]
fn mirror_that_redirects_to_another_host_is_followed_without_the_token() {
    let other_etag = "f".repeat(64);
    for (is_whole_hub, linked_etag) in [(false, None), (true, None), (true, Some(other_etag))] {
        let (world, other) = (World::base(), World::base());
        let (url, etag) = (other.server.url().to_owned(), linked_etag.clone());
        world.server.change(move |request, reply| {
            if !request.path.starts_with("/api/") {
                *reply = Reply::status(308).with("Location", format!("{url}{}", request.path));
                let etag = etag.iter().filter(|_| request.path.ends_with("tokenizer.json"));
                reply.headers.extend(etag.map(|etag| ("X-Linked-ETag", format!("\"{etag}\""))));
            }
        });
        if !is_whole_hub {
            let files = other.server.repos()[ID].clone();
            other.server.change(move |request, reply| {
                let file = &files[request.path.rsplit('/').next().unwrap()];
                let etag = format!("\"{}\"", sha256(file));
                *reply = Reply { body: file.clone(), ..Reply::status(200) }.with("ETag", etag);
            });
        }
        let hub = world.hub().token("hf_secret");
        let info = hub.info(ID).unwrap();
        // The hash that comes first is believed: here it is that of another file.
        if let Some(expected) = linked_etag {
            let error = hub_error(hub.download(ID));
            let is_other = |e: &String| *e == expected;
            assert!(
                matches!(&error.problem, HubProblem::Checksum { expected: e, .. } if is_other(e))
            );
            assert_eq!(error.file.as_deref(), Some("tokenizer.json"));
            continue;
        }
        let dir = hub.download(ID).unwrap();
        for (file, contents) in world.server.repos()[ID].iter() {
            assert_eq!(fs::read(dir.join(file)).unwrap(), *contents, "{file}");
        }
        assert_eq!(info, hub.info(dir).unwrap());
        let (asked, there) = (world.server.requests(), other.server.requests());
        assert!(asked.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
        assert!(there.iter().any(|request| request.method == "HEAD"));
        assert!(there.iter().all(|request| request.header("authorization").is_none()));
    }
}

/// transformers leaves out what it does not need, and does not look for it.
#[test]
fn what_another_program_has_left_out_is_fetched_when_there_is_a_network() {
    let world = World::new(repository("base", &[("modules.json", "[]")]));
    world.hub().download(ID).unwrap();
    fs::remove_file(world.snapshot().join("modules.json")).unwrap();
    fs::remove_dir_all(world.repo().join(".no_exist")).unwrap();
    world.hub().offline(true).download(world.pinned()).unwrap();
    assert!(!world.snapshot().join("modules.json").exists());
    world.server.requests();
    world.hub().download(world.pinned()).unwrap();
    assert!(world.snapshot().join("modules.json").exists());
    // Its contents are there: they are only asked for.
    assert_eq!(world.server.requests().iter().filter(|r| r.method == "GET").count(), 1);
}

#[test]
fn slow_is_no_error_and_silent_is_one() {
    let world = World::base();
    let slow = |_: &Request, reply: &mut Reply| reply.per_kilobyte = Duration::from_millis(4);
    world.server.change(slow);
    let hub = world.hub().timeout(Duration::from_millis(500));
    let start = Instant::now();
    hub.download(ID).unwrap();
    // Longer than the hub may be silent.
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());

    fs::remove_dir_all(world.repo()).unwrap();
    let mut first = true;
    world.server.change(move |request, reply| {
        if is_weights(request) && std::mem::take(&mut first) {
            reply.silence = Duration::from_secs(3);
        }
    });
    let start = Instant::now();
    hub.download(ID).unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    world.server.change(|_, reply| reply.silence = Duration::from_secs(3));
    let problem = problem(hub.attempts(2).download("owner/model@v1"));
    assert!(matches!(problem, HubProblem::Unreachable { .. }), "{problem}");
}

#[test]
fn those_who_come_at_the_same_time_download_once() {
    let world = World::base();
    world.server.change(|_, reply| reply.silence = Duration::from_millis(50));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let dir = world.hub().download(ID).unwrap();
                assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
            });
        }
    });
    let asked = world.server.requests();
    assert_eq!(asked.iter().filter(|request| is_weights(request)).count(), 1);
    assert!(!tree(world.cache.path()).iter().any(|file| file.contains(".new")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let world = World::base();
    fs::create_dir_all(world.incomplete().parent().unwrap()).unwrap();
    // Whatever is written to this device, there is no room for it.
    std::os::unix::fs::symlink("/dev/full", world.incomplete()).unwrap();
    let error = hub_error(world.hub().download(ID));
    let n = world.weights().len() as u64;
    match &error.problem {
        HubProblem::DiskFull { dir, done: 0, total, .. } => {
            assert_eq!((dir.as_path(), *total), (world.repo().join("blobs").as_path(), n));
        }
        other => panic!("{other:?}"),
    }
    assert!(!world.snapshot().join("model.safetensors").exists());
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    fs::write(&file, "").unwrap();
    let server = Server::start(&[(ID, repository("base", &[]))]);
    let problem = problem(Hub::new(&file).endpoint(server.url()).download(ID));
    match problem {
        HubProblem::Io { path, .. } => assert!(path.starts_with(&file), "{}", path.display()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pickle_files_are_refused_with_the_reason() {
    let mut files = repository("base", &[("pytorch_model.bin", "a pickle")]);
    files.remove("model.safetensors");
    let world = World::new(files.clone());
    let error = world.hub().download(ID).unwrap_err();
    assert!(
        matches!(&error, Error::PickleWeights { model, file } if model == ID && file == "pytorch_model.bin"),
        "{error}"
    );
    // The list of files was enough.
    assert_eq!(world.server.requests().len(), 1);
    // The same in a folder.
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        fs::write(dir.path().join(name), contents).unwrap();
    }
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(matches!(&error, Error::PickleWeights { file, .. } if file == "pytorch_model.bin"));
    assert!(error.to_string().contains("can run any program"), "{error}");
    // And neither: no weights at all.
    let world = World::new([("config.json".to_owned(), b"{}".to_vec())].into());
    assert!(matches!(world.problem(ID), HubProblem::NoWeights));
}

#[test]
fn a_gguf_file_of_a_repository_is_named_by_its_quantisation() {
    let gguf = repository("gguf-q8-0", &[]).remove("model.gguf").unwrap();
    let mut files: BTreeMap<_, _> = [("README.md".to_owned(), vec![])].into();
    for name in [
        "M-Q8_0.gguf",
        "M-Q4_K_M.gguf",
        "M-Q5_K_M.gguf",
        "f16/M.F16.gguf",
        "b/M-Q2.gguf",
        "c/M-Q2.gguf",
    ] {
        files.insert(name.to_owned(), gguf.clone());
    }
    let world = World::new(files);
    for (id, file) in [
        ("owner/model:Q8_0", "M-Q8_0.gguf"),
        ("owner/model:q4_k_m", "M-Q4_K_M.gguf"),
        ("owner/model:F16", "f16/M.F16.gguf"),
        ("owner/model:c/M-Q2.gguf", "c/M-Q2.gguf"),
    ] {
        let path = world.hub().download(id).unwrap();
        assert_eq!(path, world.snapshot().join(file));
        // All have the same contents.
        Embedder::builder(id).hub(world.hub().offline(true)).build().unwrap();
        world.server.requests();
        world.hub().download(format!("{id}@{COMMIT}")).unwrap();
        assert_eq!(world.server.requests().len(), 0, "{id}");
    }
    let choices = [
        "owner/model:M-Q4_K_M.gguf",
        "owner/model:M-Q5_K_M.gguf",
        "owner/model:M-Q8_0.gguf",
        "owner/model:b/M-Q2.gguf",
        "owner/model:c/M-Q2.gguf",
        "owner/model:f16/M.F16.gguf",
    ];
    for id in [ID, "owner/model:Q2", "owner/model:K_M", "owner/model:Q3_K", "owner/model:README.md"]
    {
        match world.problem(id) {
            HubProblem::WhichGguf { choices: c } => assert_eq!(c, choices, "{id}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_adapter_is_downloaded_with_what_belongs_to_it() {
    let files = [
        ("adapter_config.json", r#"{"base_model_name_or_path": "owner/base"}"#),
        ("adapter_model.safetensors", "weights"),
        ("tokenizer.json", "{}"),
        ("optimizer.pt", "a pickle"),
    ];
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    let world = World::new(files.collect());
    let dir = world.hub().download(ID).unwrap();
    let names: Vec<_> =
        tree(&dir).iter().map(|link| link.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]);
    assert_eq!(world.hub().offline(true).download(ID).unwrap(), dir);
}

#[test]
fn a_saved_reranker_is_downloaded_with_its_template() {
    let world = World::new(repository("../sentence-transformers/logit-score", &[]));
    let dir = world.hub().download(ID).unwrap();
    for file in ["chat_template.jinja", "tokenizer_config.json", "1_LogitScore/config.json"] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let reranker = Reranker::builder(ID).hub(world.hub()).build().unwrap();
    assert_eq!(reranker.default_instruction(), "Find the document that answers the question");
    let fresh = World::new(repository("../sentence-transformers/logit-score", &[]));
    assert!(fresh.hub().info(ID).is_ok());
}

#[test]
fn what_is_no_hub_is_said_to_be_none() {
    let world = World::base();
    let changed = |change: fn(&Request, &mut Reply)| {
        world.server.change(change);
        let problem = world.problem(ID);
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
        let problem = problem(world.hub().endpoint(endpoint).download(ID));
        assert!(matches!(problem, HubProblem::Unusable { .. }), "{endpoint}: {problem}");
    }
}

#[test]
fn progress_reaches_the_end_of_every_file() {
    let world = World::new(repository("causal-lm-untied", &[]));
    let seen = Arc::new(Mutex::new(BTreeMap::<String, Vec<(u64, u64)>>::new()));
    let files = seen.clone();
    let hub = world.hub().on_download(move |progress| {
        let mut files = files.lock().unwrap();
        files.entry(progress.name.to_owned()).or_default().push((progress.done, progress.total));
    });
    let dir = hub.download(ID).unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), 5);
    for (name, steps) in seen {
        let size = fs::metadata(dir.join(&name)).unwrap().len();
        assert!(steps.is_sorted() && steps.iter().all(|(_, total)| *total == size), "{name}");
        assert_eq!(steps.iter().filter(|(done, total)| done == total).count(), 1, "{name}");
        assert_eq!(steps.last(), Some(&(size, size)));
    }
}

#[test]
fn what_is_there_is_no_id() {
    let world = World::base();
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("owner/model");
    fs::create_dir_all(&local).unwrap();
    fs::write(local.join("config.json"), "{}").unwrap();
    let hub = world.hub();
    // Both readings of a string: here the folder is there.
    assert_eq!(hub.download(local.to_str().unwrap()).unwrap(), local);
    // A path is never an id.
    let error = hub.download(Path::new(ID)).unwrap_err();
    assert!(matches!(&error, Error::NoSuchModel { path } if path == Path::new(ID)), "{error}");
    for text in ["nowhere", "/nowhere/at/all", "./owner/model", "models/m.gguf", "a/b@"] {
        let error = hub.download(text).unwrap_err();
        assert!(matches!(error, Error::NoSuchModel { .. }), "{text}: {error}");
    }
    assert_eq!(world.server.requests().len(), 0);
}

#[test]
fn a_model_is_described_without_its_weights() {
    for (name, id) in [
        ("base", ID),
        ("causal-lm-untied", ID),
        (DENSE, ID),
        ("gguf-q8-0", "owner/model:model.gguf"),
    ] {
        let world = World::new(repository(
            name,
            &[("config_sentence_transformers.json", r#"{"prompts": {"query": "Q: "}}"#)],
        ));
        // The headers are small; what is behind them is never sent.
        world.server.change(|request, reply| {
            if is_weights(request) && request.header("range").is_none() {
                *reply = Reply::status(418);
            }
        });
        let info = world.hub().info(id).unwrap();
        assert!(tree(&world.repo().join("blobs")).iter().all(|blob| blob.len() == 40));
        world.server.behave();
        let dir = world.hub().download(id).unwrap();
        let whole = world.hub().info(dir).unwrap();
        assert_eq!(info.summary, whole.summary, "{name}");
        assert_eq!(world.hub().offline(true).info(id).unwrap().summary, info.summary);
        if !id.contains(':') {
            assert_eq!(info.prompts["query"], "Q: ");
            assert_eq!(info, whole);
        }
    }
}
