//! Finds the files of a source: on this machine, or on the hub.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use qwen3_embed_model::{Adapter, Folder};

use super::files::{ADAPTER_CONFIG, begins_as_gguf, is_gguf, is_pickle};
use super::id::ModelId;
use super::place::Place;
#[cfg(feature = "hub")]
use super::selection;
use super::{Hub, Kind, Source, adapter};
use crate::{Error, Result};

impl Source {
    /// Downloads the files that the model needs and that are not in the cache of `hub`.
    ///
    /// Returns the source of the model on this machine, which is a folder, a GGUF file, or the same files in memory. If
    /// the model is on this machine already, there is nothing to download.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchModel`] if the source neither exists nor is an id.
    /// - [`Error::Hub`] if a download fails.
    /// - [`Error::WhichGguf`] if the repository has several GGUF files and the id does not name exactly one of them.
    /// - [`Error::PickleWeights`] or [`Error::NoWeights`] if the repository has no weights in a supported format.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use qwen3_embed::{Embedder, Hub, Source};
    ///
    /// let hub = Hub::from_env().on_download(|file| eprintln!("{}: {}/{}", file.name, file.done, file.total));
    /// let local = Source::from("Qwen/Qwen3-Embedding-0.6B").download(&hub)?;
    /// println!("the model is in {local}");
    /// let embedder = Embedder::builder(local).build()?;
    /// // The builder downloads too:
    /// let embedder = Embedder::builder("Qwen/Qwen3-Embedding-0.6B").hub(hub).build()?;
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn download(&self, hub: &Hub) -> Result<Self> {
        Ok(match self.open_alone(Some(hub))? {
            Place::OnDisk(path) => path.into(),
            Place::InMemory(folder) => Self(Kind::InMemory(folder)),
        })
    }

    /// The model's place on this machine, after downloading the model if necessary. If the source is an adapter, the
    /// result is its base model together with the adapter.
    pub(crate) fn locate(&self, hub: Option<&Hub>) -> Result<Local> {
        let place = self.open_alone(hub)?;
        let Some(base) = adapter::base(&place)? else {
            return Ok(Local { place, adapter: None });
        };
        let opened = base.source.open_alone(hub);
        let base_place = base.named(opened)?;
        match adapter::base(&base_place)? {
            None => Ok(Local { place: base_place, adapter: Some(*base.adapter) }),
            Some(_) => {
                let [first, second] = [base_place.path(), place.path()].map(Path::to_path_buf);
                Err(Error::TwoAdapters { first, second })
            }
        }
    }

    /// The folder of an adapter, after downloading it if necessary.
    pub(crate) fn open_adapter(&self, hub: Option<&Hub>) -> Result<Folder> {
        Ok(match self.open_alone(hub)? {
            Place::OnDisk(path) => Folder::on_disk(&path),
            Place::InMemory(folder) => folder,
        })
    }

    /// The place on this machine of the model or the adapter, after downloading it if necessary.
    pub(super) fn open_alone(&self, hub: Option<&Hub>) -> Result<Place> {
        match self.parse()? {
            Parsed::Local(place) => Ok(place),
            #[cfg(feature = "hub")]
            Parsed::Id(id) => match hub {
                Some(hub) => selection::download(hub, &id),
                None => selection::download(&Hub::from_env(), &id),
            }
            .map(Place::OnDisk),
            #[cfg(not(feature = "hub"))]
            Parsed::Id(id) => match hub {
                Some(hub) => match *hub {},
                None => Err(Error::NoHub { id: id.to_string() }),
            },
        }
    }

    /// Decides between a folder, a GGUF file, files in memory and an id.
    pub(super) fn parse(&self) -> Result<Parsed> {
        let (path, text) = match &self.0 {
            Kind::InMemory(folder) => {
                return Ok(Parsed::Local(Place::InMemory(folder.clone())));
            }
            Kind::Path(path) => (path.as_path(), None),
            Kind::Text(text) => (Path::new(text), Some(text)),
        };
        if path.is_dir() {
            return look_into(path).map(Place::OnDisk).map(Parsed::Local);
        }
        if path.is_file() {
            return Ok(Parsed::Local(Place::OnDisk(path.to_path_buf())));
        }
        let id = text.filter(|_| !path.exists()).and_then(|text| ModelId::parse(text));
        id.map(Parsed::Id).ok_or_else(|| Error::NoSuchModel { path: path.to_path_buf() })
    }
}

/// A source that is on this machine, or an id on the hub.
pub(super) enum Parsed {
    Local(Place),
    Id(ModelId),
}

/// A model on this machine.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) place: Place,
    /// The adapter that is added to the model.
    pub(crate) adapter: Option<Adapter>,
}

/// The model in a folder: the folder itself if it has a configuration, otherwise its only GGUF file.
fn look_into(dir: &Path) -> Result<PathBuf> {
    let io = |source| Error::Io { path: dir.to_path_buf(), source };
    let name = |entry: io::Result<DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let names: io::Result<Vec<String>> = fs::read_dir(dir).and_then(|all| all.map(name).collect());
    let names = names.map_err(io)?;
    let is_safetensors =
        |name: &String| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let pickle = names.iter().filter(|name| is_pickle(name)).max();
    if let (Some(file), false) = (pickle, names.iter().any(is_safetensors)) {
        return Err(Error::PickleWeights { model: dir.display().to_string(), file: file.clone() });
    }
    if ["config.json", ADAPTER_CONFIG].iter().any(|file| dir.join(file).is_file()) {
        return Ok(dir.to_path_buf());
    }
    let mut files = Vec::new();
    for name in names {
        let path = dir.join(&name);
        if path.is_file() && (is_gguf(&path) || begins_as_gguf(&path)?) {
            files.push(name);
        }
    }
    files.sort_unstable();
    match &files[..] {
        [] => Err(Error::NoConfig { dir: dir.to_path_buf(), snapshot: snapshot(dir) }),
        [file] => Ok(dir.join(file)),
        _ => Err(Error::WhichGguf { model: dir.display().to_string(), choices: files }),
    }
}

/// The folder of the newest commit, if `dir` is the folder of a repository in the hub's cache.
fn snapshot(dir: &Path) -> Option<PathBuf> {
    let commit = fs::read_to_string(dir.join("refs/main")).ok()?;
    let snapshot = dir.join("snapshots").join(commit.trim());
    snapshot.join("config.json").is_file().then_some(snapshot)
}
