//! Models on the hub: which files are downloaded for a model, and which facts `info` reports without downloading the
//! weights. The tests of the downloads themselves are in the crate `qwen3-embed-hub`.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the tests of qwen3-embed-hub use more of it")]
#[path = "../../qwen3-embed-hub/tests/hub_server/mod.rs"]
mod hub_server;
mod log;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub_server::{COMMIT, Reply, Server, repository, sha256};
use log::warnings;
use qwen3_embed::{Embedder, Error, Hub, HubError, HubProblem, Info, Reranker, Source};
use qwen3_embed_testing::fixtures;

const ID: &str = "owner/model";

/// A hub with one model, and an empty cache.
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

    fn download(&self, id: &str) -> Result<PathBuf, Error> {
        let local = Source::from(id).download(&self.hub())?;
        Ok(local.to_string().into())
    }

    fn info(&self, id: &str) -> Info {
        Source::from(id).info_from(&self.hub()).unwrap()
    }

    /// The folder of the commit in the cache.
    fn snapshot(&self) -> PathBuf {
        self.cache.path().join("models--owner--model/snapshots").join(COMMIT)
    }

    /// The names of the blobs in the cache, which are the files with the downloaded contents.
    fn blobs(&self) -> Vec<String> {
        names(&self.cache.path().join("models--owner--model/blobs"))
    }
}

fn hub_error<T: std::fmt::Debug>(result: Result<T, Error>) -> HubError {
    match result {
        Err(Error::Hub(error)) => *error,
        other => panic!("{other:?}"),
    }
}

/// The paths of all files below a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in dir.read_dir().into_iter().flatten().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => names.extend(self::names(&entry.path()).iter().map(|n| format!("{name}/{n}"))),
            false => names.push(name),
        }
    }
    names.sort();
    names
}

/// A model with modules in folders of their own, one of which has weights.
const DENSE: &str = "../sentence-transformers/mean-dense";

const MODULES: &str = r#"[
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "../2_Dense", "type": "sentence_transformers.models.Dense"}
]"#;

#[test]
fn downloads_only_the_files_of_the_model() {
    let others = [
        ("modules.json", MODULES),
        ("1_Pooling/config.json", "{}"),
        ("README.md", "read me"),
        ("pytorch_model.bin", "a pickle"),
        ("onnx/model.onnx", "another format"),
    ];
    let world = World::new(repository("base", &others));
    let dir = world.download(ID).unwrap();
    assert_eq!(dir, world.snapshot());
    let expected = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&dir), expected);
    let absent = [
        "1_Pooling/model.safetensors",
        "adapter_config.json",
        "config_sentence_transformers.json",
        "model.safetensors.index.json",
        "sentence_bert_config.json",
    ];
    let recorded = world.cache.path().join("models--owner--model/.no_exist").join(COMMIT);
    assert_eq!(names(&recorded), absent);
    // A pinned commit needs no further request, because all its files are known.
    world.server.requests();
    assert_eq!(world.download(&format!("{ID}@{COMMIT}")).unwrap(), dir);
    assert_eq!(world.server.requests().len(), 0);
}

#[test]
fn id_embeds_like_the_local_folder() {
    for name in ["base", "causal-lm-untied", DENSE] {
        let world = World::new(repository(name, &[]));
        let texts = ["今天天气真好", "It is a fine day"];
        let from_hub = Embedder::builder(ID).hub(world.hub()).build().unwrap();
        let local = Embedder::builder(fixtures::model(name)).build().unwrap();
        assert_eq!(from_hub.embed_queries(&texts).unwrap(), local.embed_queries(&texts).unwrap());
    }
}

#[test]
fn damaged_weights_are_never_loaded() {
    let world = World::base();
    let n = world.server.repos()[ID]["model.safetensors"].len();
    world.server.change(move |request, reply| {
        if request.to_cdn && reply.body.len() == n {
            reply.body[n - 1] ^= 1;
        }
    });
    let error = hub_error(Embedder::builder(ID).hub(world.hub()).build().map(drop));
    assert!(matches!(error.problem, HubProblem::Checksum { .. }), "{error}");
    world.server.behave();
    Embedder::builder(ID).hub(world.hub()).build().unwrap();
}

#[test]
fn downloads_only_the_shards_of_the_index() {
    let others = [("model-00009-of-00009.safetensors", "in no index"), ("extra.safetensors", "no")];
    let world = World::new(repository("causal-lm-untied", &others));
    let dir = world.download(ID).unwrap();
    let shards = names(&dir).iter().filter(|file| file.ends_with(".safetensors")).count();
    assert_eq!(shards, 2);
    assert!(world.server.requests().iter().all(|request| !request.path.contains("extra")));
}

#[test]
fn missing_shard_is_named() {
    let mut files = repository("causal-lm-untied", &[]);
    files.remove("model-00002-of-00002.safetensors");
    let world = World::new(files);
    let error = hub_error(world.download(ID));
    assert!(matches!(error.problem, HubProblem::NoSuchFile), "{error}");
    assert_eq!(error.file.as_deref(), Some("model-00002-of-00002.safetensors"));
}

#[test]
fn rejects_pickle_weights_and_missing_weights() {
    let mut files = repository("base", &[("pytorch_model.bin", "a pickle")]);
    files.remove("model.safetensors");
    let world = World::new(files.clone());
    match world.download(ID).unwrap_err() {
        Error::PickleWeights { model, file } => {
            assert_eq!((model.as_str(), file.as_str()), (ID, "pytorch_model.bin"));
        }
        other => panic!("{other:?}"),
    }
    // The list of the repository's files is enough to reject the model, so there is only one request.
    assert_eq!(world.server.requests().len(), 1);
    // A local folder is checked in the same way.
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        fs::write(dir.path().join(name), contents).unwrap();
    }
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(matches!(&error, Error::PickleWeights { file, .. } if file == "pytorch_model.bin"));
    assert!(error.to_string().contains("can run any code"), "{error}");

    let world = World::new([("config.json".to_owned(), b"{}".to_vec())].into());
    let error = world.download(ID).unwrap_err();
    assert!(matches!(&error, Error::NoWeights { model } if model == ID), "{error}");
}

#[test]
fn quantization_names_the_gguf_file() {
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
        assert_eq!(world.download(id).unwrap(), world.snapshot().join(file));
        // All files have the same contents.
        Embedder::builder(id).hub(world.hub().offline(true)).build().unwrap();
        world.server.requests();
        world.download(&format!("{id}@{COMMIT}")).unwrap();
        assert_eq!(world.server.requests().len(), 0, "{id}");
    }
    let expected = [
        "owner/model:M-Q4_K_M.gguf",
        "owner/model:M-Q5_K_M.gguf",
        "owner/model:M-Q8_0.gguf",
        "owner/model:b/M-Q2.gguf",
        "owner/model:c/M-Q2.gguf",
        "owner/model:f16/M.F16.gguf",
    ];
    for id in [ID, "owner/model:Q2", "owner/model:K_M", "owner/model:Q3_K", "owner/model:README.md"]
    {
        match world.download(id).unwrap_err() {
            Error::WhichGguf { model, choices } => {
                assert_eq!((&*model, &*choices), (id, &expected.map(str::to_owned)[..]))
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The cached file may not be the file that the user means.
#[test]
fn ambiguous_gguf_id_is_an_error_even_if_one_file_is_cached() {
    let gguf = repository("gguf-q8-0", &[]).remove("model.gguf").unwrap();
    let world = World::new([("a/M-Q2.gguf".to_owned(), gguf.clone())].into());
    let dir = world.download("owner/model:Q2").unwrap();
    assert!(dir.ends_with("a/M-Q2.gguf"));
    const NEWER: &str = "fedcba9876543210fedcba9876543210fedcba98";
    world.server.repos().get_mut(ID).unwrap().insert("b/M-Q2.gguf".to_owned(), gguf);
    world.server.change(|request, reply| {
        if request.path.starts_with("/api/") {
            let body = String::from_utf8(reply.body.clone()).unwrap();
            reply.body = body.replace(COMMIT, NEWER).into();
        }
    });
    let error = world.download("owner/model:Q2").unwrap_err();
    assert!(matches!(error, Error::WhichGguf { .. }), "{error}");
    let error = Source::from("owner/model:Q2").info_from(&world.hub()).unwrap_err();
    assert!(matches!(error, Error::WhichGguf { .. }), "{error}");
}

#[test]
fn downloads_the_files_of_an_adapter() {
    let files = [
        ("adapter_config.json", r#"{"base_model_name_or_path": "owner/base"}"#),
        ("adapter_model.safetensors", "weights"),
        ("tokenizer.json", "{}"),
        ("optimizer.pt", "a pickle"),
    ];
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    let world = World::new(files.collect());
    let dir = world.download(ID).unwrap();
    let expected = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];
    assert_eq!(names(&dir), expected);
    assert_eq!(Source::from(ID).download(&world.hub().offline(true)).unwrap(), dir.into());
}

#[test]
fn downloads_the_chat_template_of_a_saved_reranker() {
    let world = World::new(repository("../sentence-transformers/logit-score", &[]));
    let dir = world.download(ID).unwrap();
    for file in ["chat_template.jinja", "tokenizer_config.json", "1_LogitScore/config.json"] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let reranker = Reranker::builder(ID).hub(world.hub()).build().unwrap();
    assert_eq!(reranker.default_instruction(), "Find the document that answers the question");
    World::new(repository("../sentence-transformers/logit-score", &[])).info(ID);
}

#[test]
fn existing_path_takes_precedence_over_id() {
    let world = World::base();
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("owner/model");
    fs::create_dir_all(&local).unwrap();
    fs::write(local.join("config.json"), "{}").unwrap();
    assert_eq!(world.download(local.to_str().unwrap()).unwrap(), local);
    // A path is never an id.
    let error = Source::from(Path::new(ID)).download(&world.hub()).unwrap_err();
    assert!(matches!(&error, Error::NoSuchModel { path } if path == Path::new(ID)), "{error}");
    for text in ["nowhere", "/nowhere/at/all", "./owner/model", "models/m.gguf", "a/b@"] {
        let error = world.download(text).unwrap_err();
        assert!(matches!(error, Error::NoSuchModel { .. }), "{text}: {error}");
    }
    assert_eq!(world.server.requests().len(), 0);
}

#[test]
fn info_downloads_no_weights() {
    for (name, id) in [
        ("base", ID),
        ("causal-lm-untied", ID),
        (DENSE, ID),
        ("gguf-q8-0", "owner/model:model.gguf"),
    ] {
        let prompts = r#"{"prompts": {"query": "Q: "}}"#;
        let world = World::new(repository(name, &[("config_sentence_transformers.json", prompts)]));
        // Only ranges of the weights may be requested.
        world.server.change(|request, reply| {
            let is_whole = request.to_cdn && request.header("range").is_none();
            if is_whole && request.method == "GET" {
                *reply = Reply::status(418);
            }
        });
        let info = world.info(id);
        // A file that is stored in git has a blob with a name of 40 digits. Weights would have a name of 64 digits.
        assert!(world.blobs().iter().all(|blob| blob.len() == 40));
        world.server.behave();
        let dir = world.download(id).unwrap();
        let whole = Source::from(dir).info_from(&world.hub()).unwrap();
        assert_eq!(info.summary, whole.summary, "{name}");
        let offline = Source::from(id).info_from(&world.hub().offline(true)).unwrap();
        assert_eq!(offline.summary, info.summary);
        if !id.contains(':') {
            assert_eq!(info.prompts["query"], "Q: ");
            assert_eq!(info, whole);
        }
    }
}

#[test]
fn info_reads_the_cache_with_warning_if_hub_refuses() {
    let world = World::base();
    world.download(ID).unwrap();
    let info = world.info(ID);
    world.server.change(|_, reply| *reply = Reply::status(403));
    world.server.requests();
    let log = warnings(|| assert_eq!(world.info(ID), info));
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("WARN") && log.contains("status 403: Forbidden"), "{log}");
    assert_eq!(world.server.requests().len(), 1);
}

/// The mirror redirects every request for a file to another host, without headers that describe the file.
#[test]
fn info_follows_mirror_to_another_host() {
    let (world, other) = (World::base(), World::base());
    let url = other.server.url().to_owned();
    world.server.change(move |request, reply| {
        if !request.path.starts_with("/api/") {
            *reply = Reply::status(308).with("Location", format!("{url}{}", request.path));
        }
    });
    let files = other.server.repos()[ID].clone();
    other.server.change(move |request, reply| {
        let file = &files[request.path.rsplit('/').next().unwrap()];
        let etag = format!("\"{}\"", sha256(file));
        *reply = Reply { body: file.clone(), ..Reply::status(200) }.with("ETag", etag);
    });
    let info = world.info(ID);
    let dir = world.download(ID).unwrap();
    assert_eq!(Source::from(dir).info_from(&world.hub()).unwrap(), info);
}
