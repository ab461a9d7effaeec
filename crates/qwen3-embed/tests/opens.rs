//! Every file of a model is opened once while the model is loaded.
//!
//! The tests count with inotify: the operating system reports each time that a file is opened.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchMask};
use qwen3_embed::{Embedder, Reranker, Source};
use qwen3_embed_testing::fixtures;
use tempfile::TempDir;

/// The number of times that each file was opened, by the path of the file in the folder.
type Opens = BTreeMap<String, usize>;

/// A folder with copies of fixtures. A fixture is a file, or a folder whose contents are copied.
fn copies(fixtures: &[&str]) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        if from.is_dir() {
            fs::create_dir_all(to).unwrap();
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                copy(&entry.path(), &to.join(entry.file_name()));
            }
        } else {
            fs::write(to, fs::read(from).unwrap()).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for name in fixtures {
        let from = fixtures::path(name);
        let is_file = from.is_file();
        let to =
            if is_file { dir.path().join(from.file_name().unwrap()) } else { dir.path().into() };
        copy(&from, &to);
    }
    dir
}

/// The folder and all folders in it, recursively, with their paths relative to the folder.
fn folders(dir: &Path, name: &str) -> Vec<(PathBuf, String)> {
    let mut all = vec![(dir.to_path_buf(), name.to_owned())];
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            let name = format!("{name}{}/", entry.file_name().to_str().unwrap());
            all.extend(folders(&entry.path(), &name));
        }
    }
    all
}

/// The files in `dir`, or in folders in it, that `work` opens.
fn opens(dir: &Path, work: impl FnOnce()) -> Opens {
    let mut inotify = Inotify::init().unwrap();
    // The operating system merges equal consecutive events. The event of closing a file separates two events of
    // opening.
    let mask = WatchMask::OPEN | WatchMask::CLOSE;
    let mut names = Vec::new();
    for (folder, name) in folders(dir, "") {
        names.push((inotify.watches().add(folder, mask).unwrap(), name));
    }
    work();
    let (mut opens, mut buffer) = (Opens::new(), [0; 4096]);
    loop {
        let events = match inotify.read_events(&mut buffer) {
            Ok(events) => events,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return opens,
            Err(error) => panic!("{error}"),
        };
        for event in events {
            assert!(!event.mask.contains(EventMask::Q_OVERFLOW));
            if event.mask != EventMask::OPEN {
                continue;
            }
            let folder = &names.iter().find(|(watch, _)| *watch == event.wd).unwrap().1;
            let file = event.name.unwrap().to_str().unwrap();
            *opens.entry(format!("{folder}{file}")).or_default() += 1;
        }
    }
}

/// Asserts that each of the expected files was opened once, and that no other file was opened.
fn assert_opened_once(opens: &Opens, expected: &[&str]) {
    let expected: Opens = expected.iter().map(|&file| (file.to_owned(), 1)).collect();
    assert_eq!(*opens, expected);
}

fn embedder(path: impl AsRef<Path>) {
    drop(Embedder::builder(path.as_ref()).build().unwrap());
}

fn reranker(path: impl AsRef<Path>) {
    drop(Reranker::builder(path.as_ref()).build().unwrap());
}

#[test]
fn counts_every_open() {
    let dir = copies(&["models/base"]);
    let config = dir.path().join("config.json");
    let opens = opens(dir.path(), || {
        fs::read(&config).unwrap();
        fs::read(&config).unwrap();
    });
    assert_eq!(opens, Opens::from([("config.json".to_owned(), 2)]));
}

#[test]
fn opens_each_file_of_a_folder_once_for_an_embedder() {
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    let dir = copies(&["models/base"]);
    assert_opened_once(&opens(dir.path(), || embedder(dir.path())), &files);

    let dir = copies(&["sentence-transformers/mean-dense"]);
    let modules = [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_Dense/config.json",
        "3_Dense/model.safetensors",
        "4_Normalize/config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
    ];
    let opens = opens(dir.path(), || embedder(dir.path()));
    assert_opened_once(&opens, &[&files[..], &modules].concat());
}

#[test]
fn opens_each_file_of_a_folder_once_for_a_reranker() {
    for name in ["tied", "classifier"] {
        let files = ["config.json", "model.safetensors", "tokenizer.json"];
        let dir = copies(&[&format!("rerankers/{name}")]);
        assert_opened_once(&opens(dir.path(), || reranker(dir.path())), &files);
    }
    let files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    let dir = copies(&["rerankers/untied"]);
    assert_opened_once(&opens(dir.path(), || reranker(dir.path())), &files);
}

#[test]
fn opens_each_file_of_an_adapter_and_its_base_once() {
    let (dir, base) = (copies(&["adapters/lora"]), copies(&["models/base"]));
    let build = || {
        let builder = Embedder::builder(base.path()).adapter(dir.path());
        drop(builder.build().unwrap());
    };
    let adapter_files = ["adapter_config.json", "adapter_model.safetensors"];
    assert_opened_once(&opens(dir.path(), build), &adapter_files);
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    assert_opened_once(&opens(base.path(), build), &files);
}

#[test]
fn opens_a_gguf_file_once() {
    let dir = copies(&["models/gguf-q8-0/model.gguf"]);
    let path = dir.path().join("model.gguf");
    assert_opened_once(&opens(dir.path(), || embedder(&path)), &["model.gguf"]);
    // The format is recognized by the contents of the file.
    let blob = dir.path().join("sha256-0123");
    fs::rename(&path, &blob).unwrap();
    assert_opened_once(&opens(dir.path(), || embedder(&blob)), &["sha256-0123"]);

    let dir = copies(&["rerankers/gguf/model.gguf"]);
    let path = dir.path().join("model.gguf");
    assert_opened_once(&opens(dir.path(), || reranker(&path)), &["model.gguf"]);
    // In a folder without other models, the file is found by its name.
    assert_opened_once(&opens(dir.path(), || reranker(dir.path())), &["model.gguf"]);
}

#[test]
fn opens_a_gguf_file_and_the_tokenizer_beside_it_once() {
    let dir = copies(&["models/gguf-q8-0/model.gguf", "models/base/tokenizer.json"]);
    let path = dir.path().join("model.gguf");
    let files = ["model.gguf", "tokenizer.json"];
    assert_opened_once(&opens(dir.path(), || embedder(&path)), &files);
}

#[test]
fn info_opens_each_file_once_and_no_tokenizer() {
    let info = |path: &Path| drop(Source::from(path).info().unwrap());
    let dir = copies(&["sentence-transformers/last-token"]);
    let files = [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
    ];
    assert_opened_once(&opens(dir.path(), || info(dir.path())), &files);
    let dir = copies(&["models/gguf-q8-0/model.gguf"]);
    let path = dir.path().join("model.gguf");
    assert_opened_once(&opens(dir.path(), || info(&path)), &["model.gguf"]);
}
