//! Which files of a repository belong to a model.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use qwen3_embed_hub::{
    Cached, Commit, Hub, Newest, Repository, Selection, Snapshot, is_relative_path,
};
use serde_json::Value;

use super::files::{ADAPTER_CONFIG, CHAT_TEMPLATES, is_gguf, is_pickle};
use super::id::ModelId;
use crate::{Error, Result};

/// The files that are downloaded first, see [`first`].
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

/// Finds or downloads a model at its newest commit. Returns its folder or GGUF file.
pub(super) fn download(hub: &Hub, id: &ModelId) -> Result<PathBuf> {
    let repository = Repository::new(hub, &id.repo, id.to_string());
    let (Newest::Cached(path) | Newest::Fetched(path)) = repository.newest(&WholeModel(id))?;
    Ok(path)
}

/// All files of a model: the files of a folder, or a GGUF file and the tokenizer next to it.
pub(super) struct WholeModel<'a>(pub(super) &'a ModelId);

impl Selection for WholeModel<'_> {
    type Fetched = PathBuf;
    type Error = Error;

    fn find(&self, snapshot: &Snapshot<'_>) -> Result<Cached> {
        let dir = snapshot.dir();
        let (path, files) = match &self.0.gguf {
            Some(which) => {
                let Some(file) = choose_gguf(which, &snapshot.files()) else {
                    return Ok(Cached::Missing(which.clone()));
                };
                (dir.join(&file), vec![tokenizer_next_to(&file)])
            }
            None => {
                if let Some(file) = missing(&dir)? {
                    return Ok(Cached::Missing(file));
                }
                let files = [first(), rest(&dir)?].concat();
                (dir, files)
            }
        };
        let is_complete = files.iter().all(|file| snapshot.knows(file));
        Ok(if is_complete { Cached::Complete(path) } else { Cached::Usable(path) })
    }

    fn fetch(&self, commit: &Commit<'_>) -> Result<PathBuf> {
        let dir = commit.snapshot().dir();
        let path = match gguf_of(self.0, commit.files())? {
            Some(file) => {
                let path = dir.join(&file);
                let tokenizer = tokenizer_next_to(&file);
                commit.download(vec![file, tokenizer])?;
                path
            }
            None => {
                commit.download(first())?;
                commit.download(rest(&dir)?)?;
                if let Some(file) = missing(&dir)? {
                    return Err(commit.no_such_file(file).into());
                }
                dir
            }
        };
        commit.make_current();
        Ok(path)
    }

    fn overrides_cache(&self, error: &Error) -> bool {
        is_ambiguous(error)
    }
}

/// Whether the error says that an id does not name exactly one file of its repository. In this case, the file in the
/// cache may not be the file that the user means.
pub(super) fn is_ambiguous(error: &Error) -> bool {
    matches!(error, Error::WhichGguf { .. })
}

/// The files that are downloaded first. Some are optional. Their contents determine which other files the model has:
/// see [`rest`].
pub(super) fn first() -> Vec<String> {
    FIRST.map(str::to_owned).into()
}

/// The other files of a model: the weights or the shards that the index lists, and the files of the modules of
/// sentence-transformers. Some are optional. The files of [`first`] must be in the folder `dir`.
pub(super) fn rest(dir: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    match json(&dir.join(INDEX))? {
        Some(index) => {
            let shards = index["weight_map"].as_object().into_iter().flatten();
            let shards: BTreeSet<&str> = shards.filter_map(|(_, file)| file.as_str()).collect();
            let shards = shards.into_iter().filter(|file| is_relative_path(file));
            files.extend(shards.map(str::to_owned));
        }
        None => files.push(WEIGHTS.to_owned()),
    }
    if dir.join(ADAPTER_CONFIG).is_file() {
        files.push(ADAPTER.to_owned());
    }
    let modules = json(&dir.join("modules.json"))?.unwrap_or_default();
    for module in modules.as_array().into_iter().flatten() {
        // The decoder's module has an empty path: its files are in `dir` itself.
        if let Some(path) = module["path"].as_str().filter(|path| is_relative_path(path)) {
            files.extend(["config.json", WEIGHTS].map(|file| format!("{path}/{file}")));
        }
        if module["type"].as_str().is_some_and(|kind| kind.ends_with(".LogitScore")) {
            files.extend(CHAT_TEMPLATES.map(str::to_owned));
        }
    }
    Ok(files)
}

/// The first required file that is not in the folder `dir`: the configuration, the tokenizer or weights. An adapter
/// requires only its own two files.
fn missing(dir: &Path) -> Result<Option<String>> {
    let has = |file: &str| dir.join(file).is_file();
    if has(ADAPTER_CONFIG) && has(ADAPTER) {
        return Ok(None);
    }
    let required = ["config.json", "tokenizer.json"].into_iter().find(|file| !has(file));
    if required.is_some() || has(WEIGHTS) {
        return Ok(required.map(str::to_owned));
    }
    Ok(rest(dir)?.into_iter().find(|file| !file.contains('/') && !has(file)))
}

/// The GGUF file that an id names, or `None` if the id names a model in safetensors files.
///
/// # Errors
///
/// If the repository has no weights in a supported format, or the id does not name exactly one GGUF file.
pub(super) fn gguf_of(id: &ModelId, files: &[String]) -> Result<Option<String>> {
    let model = || id.to_string();
    let ambiguous = || Error::WhichGguf { model: model(), choices: gguf_ids(id, files) };
    if let Some(which) = &id.gguf {
        return choose_gguf(which, files).map(Some).ok_or_else(ambiguous);
    }
    if files.iter().any(|file| [WEIGHTS, INDEX, ADAPTER].contains(&file.as_str())) {
        return Ok(None);
    }
    if gguf_files(files).next().is_some() {
        return Err(ambiguous());
    }
    match files.iter().find(|file| is_pickle(file)) {
        Some(file) => Err(Error::PickleWeights { model: model(), file: file.clone() }),
        None => Err(Error::NoWeights { model: model() }),
    }
}

/// The GGUF file with the name `which`, or the only GGUF file whose name ends with `which`.
fn choose_gguf(which: &str, files: &[String]) -> Option<String> {
    if let Some(file) = gguf_files(files).find(|file| *file == which) {
        return Some(file.to_owned());
    }
    let which = which.to_ascii_lowercase();
    let matches = |file: &&str| {
        let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
        let stem = name.strip_suffix(".gguf").unwrap_or(&name);
        // The match begins after a `-` or `.`: `K_M` does not match `M-Q4_K_M.gguf`.
        stem.strip_suffix(&which).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.']))
    };
    let mut matching = gguf_files(files).filter(matches);
    let file = matching.next()?;
    matching.next().is_none().then(|| file.to_owned())
}

/// The path of the tokenizer in the folder of a GGUF file.
fn tokenizer_next_to(gguf: &str) -> String {
    match gguf.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/tokenizer.json"),
        None => "tokenizer.json".to_owned(),
    }
}

/// The GGUF files of a repository.
fn gguf_files(files: &[String]) -> impl Iterator<Item = &str> {
    let files = files.iter().map(String::as_str);
    files.filter(|file| is_relative_path(file) && is_gguf(Path::new(file)))
}

/// One id for each GGUF file of a repository.
fn gguf_ids(id: &ModelId, files: &[String]) -> Vec<String> {
    let id_of = |file: &str| ModelId { repo: id.repo.clone(), gguf: Some(file.to_owned()) };
    gguf_files(files).map(|file| id_of(file).to_string()).collect()
}

/// The contents of a JSON file, if the file exists.
fn json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let json = fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    let json = serde_json::from_slice(&json)
        .map_err(|source| qwen3_embed_model::Error::Json { path: path.to_path_buf(), source })?;
    Ok(Some(json))
}
