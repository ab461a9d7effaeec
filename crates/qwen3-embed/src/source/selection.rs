//! Which files of a repository a model is made of.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::id::{ModelId, is_file};
use super::{ADAPTER_CONFIG, is_gguf, is_pickle, read};
use crate::cross_encoder::CHAT_TEMPLATES;

/// Files that a model's folder may have and that say which others there are.
const FIRST: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    INDEX,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    ADAPTER_CONFIG,
];

const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";

/// The files that may be there and that say which others there are.
pub(super) fn first() -> Vec<String> {
    FIRST.map(str::to_owned).into()
}

/// The other files that may be there, after those of [`first`] are in the folder `dir`: weights, shards
/// that the index names, and what belongs to the modules of sentence-transformers.
pub(super) fn rest(dir: &Path) -> crate::Result<Vec<String>> {
    let mut files = Vec::new();
    match json(&dir.join(INDEX))? {
        Some(index) => {
            let shards = index["weight_map"].as_object().into_iter().flatten();
            let shards: BTreeSet<&str> = shards.filter_map(|(_, file)| file.as_str()).collect();
            files.extend(shards.into_iter().filter(|file| is_file(file)).map(str::to_owned));
        }
        None => files.push(WEIGHTS.to_owned()),
    }
    if dir.join(ADAPTER_CONFIG).is_file() {
        files.push(ADAPTER.to_owned());
    }
    let modules = json(&dir.join("modules.json"))?.unwrap_or_default();
    for module in modules.as_array().into_iter().flatten() {
        // The decoder's own module has no folder.
        if let Some(path) = module["path"].as_str().filter(|path| is_file(path)) {
            files.extend(["config.json", WEIGHTS].map(|file| format!("{path}/{file}")));
        }
        if module["type"].as_str().is_some_and(|kind| kind.ends_with(".LogitScore")) {
            files.extend(CHAT_TEMPLATES.map(str::to_owned));
        }
    }
    Ok(files)
}

/// Whether the folder `dir` has what a model cannot do without: its configuration, its tokenizer and all
/// of its weights, or those of an adapter. The name of what is missing if not.
pub(super) fn missing(dir: &Path) -> crate::Result<Option<String>> {
    let has = |file: &str| dir.join(file).is_file();
    if has(ADAPTER_CONFIG) && has(ADAPTER) {
        return Ok(None);
    }
    let needed = ["config.json", "tokenizer.json"].into_iter().find(|file| !has(file));
    if needed.is_some() || has(WEIGHTS) {
        return Ok(needed.map(str::to_owned));
    }
    Ok(rest(dir)?.into_iter().find(|file| !file.contains('/') && !has(file)))
}

/// Why a repository with these files is no model that can be read, if it is none.
pub(super) enum Refused {
    /// It has weights, but as a pickle file.
    Pickle(String),
    /// It has GGUF files, and none was chosen.
    Gguf(Vec<String>),
    NoWeights,
}

/// Checks that a repository has weights that are read.
pub(super) fn check(id: &ModelId, files: &[String]) -> Result<(), Refused> {
    if files.iter().any(|file| [WEIGHTS, INDEX, ADAPTER].contains(&file.as_str())) {
        return Ok(());
    }
    let ggufs = gguf_files(files);
    if !ggufs.is_empty() {
        return Err(Refused::Gguf(choices(id, &ggufs)));
    }
    match files.iter().find(|file| is_pickle(file)) {
        Some(file) => Err(Refused::Pickle(file.clone())),
        None => Err(Refused::NoWeights),
    }
}

/// The one GGUF file that an id means: the one with this name, or the only one that has the words in
/// its name. Otherwise the ids of all of them.
pub(super) fn gguf(id: &ModelId, which: &str, files: &[String]) -> Result<String, Vec<String>> {
    let ggufs = gguf_files(files);
    if let Some(file) = ggufs.iter().find(|file| **file == which) {
        return Ok((*file).to_owned());
    }
    let which = which.to_ascii_lowercase();
    let is_meant = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
        let stem = name.strip_suffix(".gguf").unwrap_or(&name);
        // A word of its own: `K_M` is not `Q4_K_M`.
        stem.strip_suffix(&which).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.']))
    };
    let mut meant = ggufs.iter().filter(|file| is_meant(file));
    match (meant.next(), meant.next()) {
        (Some(file), None) => Ok((*file).to_owned()),
        _ => Err(choices(id, &ggufs)),
    }
}

/// The tokenizer that may lie beside a GGUF file.
pub(super) fn beside(gguf: &str) -> String {
    match gguf.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/tokenizer.json"),
        None => "tokenizer.json".to_owned(),
    }
}

/// The GGUF files of a repository.
fn gguf_files(files: &[String]) -> Vec<&str> {
    let files = files.iter().map(String::as_str);
    files.filter(|file| is_file(file) && is_gguf(Path::new(file))).collect()
}

/// The ids that mean each of the files.
fn choices(id: &ModelId, ggufs: &[&str]) -> Vec<String> {
    let choice = |file: &&str| {
        let (repo, revision) = (id.repo.clone(), id.revision.clone());
        ModelId { repo, gguf: Some((*file).to_owned()), revision }.to_string()
    };
    ggufs.iter().map(choice).collect()
}

/// The contents of a JSON file, if there is such a file.
fn json(path: &Path) -> crate::Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let json = serde_json::from_slice(&read(path)?)
        .map_err(|source| qwen3_embed_model::Error::Json { path: path.to_path_buf(), source })?;
    Ok(Some(json))
}
