//! The manifest of an output folder: what the run does, and how far it is.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::input::InputFile;
use super::output::PartialFile;

/// The version of the manifest's format.
const VERSION: u32 = 1;

/// The file with the state of a run.
pub(super) struct Manifest {
    path: PathBuf,
    pub(super) state: State,
    /// The lock of the run, which ends with this value.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// The input, the model and the flags that determine the output.
    settings: Map<String, Value>,
    /// The complete files, in the order of the input.
    pub(super) shards: Vec<Shard>,
    /// The index of the first record that is in none of the complete files.
    pub(super) next_record: u64,
    /// The number of records that were skipped before `next_record`.
    pub(super) n_skipped: u64,
    /// The size of the list of skipped records.
    pub(super) errors_bytes: u64,
    /// Whether all records of the input are in the files.
    pub(super) complete: bool,
}

/// A complete file.
#[derive(Serialize, Deserialize)]
pub(super) struct Shard {
    pub(super) file: String,
    pub(super) rows: u64,
}

impl Manifest {
    /// Starts a run in a folder, or goes on with the run of the folder's manifest.
    ///
    /// # Errors
    ///
    /// If another process has this run, if the folder has a manifest and `resume` is false, if the run of the manifest has
    /// other settings, or if the folder has no manifest but the file `first_file`.
    pub(super) fn open(
        folder: &Path,
        suffix: &str,
        first_file: &str,
        settings: Map<String, Value>,
        resume: bool,
    ) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let lock = lock(folder, suffix)?;
        let path = folder.join(format!("manifest{suffix}.json"));
        let name = path.display();
        let about = || format!("cannot read {name}");
        match fs::read(&path) {
            Ok(bytes) => {
                ensure!(
                    resume,
                    "{} has the files of an earlier run: use --resume to go on with it, or another folder",
                    folder.display()
                );
                let state: State = serde_json::from_slice(&bytes).with_context(about)?;
                let version = state.version;
                ensure!(version == VERSION, "{name} has version {version}, expected {VERSION}");
                check_settings(&state.settings, &settings).with_context(|| {
                    format!("cannot go on with the run in {}", folder.display())
                })?;
                for shard in &state.shards {
                    let exists = folder.join(&shard.file).is_file();
                    ensure!(exists, "{} is missing in {}", shard.file, folder.display());
                }
                Ok(Self { path, state, _lock: lock })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let first_file = folder.join(first_file);
                ensure!(
                    !first_file.exists(),
                    "{} exists, and {name} does not: use another folder",
                    first_file.display()
                );
                let (shards, next_record, n_skipped, errors_bytes) = Default::default();
                let complete = false;
                let state = State {
                    version: VERSION,
                    settings,
                    shards,
                    next_record,
                    n_skipped,
                    errors_bytes,
                    complete,
                };
                let manifest = Self { path, state, _lock: lock };
                manifest.write()?;
                Ok(manifest)
            }
            Err(error) => Err(error).with_context(about),
        }
    }

    /// Writes the state to the disk. The file has the old or the new state at any moment.
    pub(super) fn write(&self) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.state)?;
        text.push(b'\n');
        let mut file = PartialFile::create(&self.path)?;
        let written = file.write_all(&text);
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        file.commit()
    }
}

/// Locks the run of a folder, so that two processes do not write the same files. The operating system releases the lock
/// when the process ends. The file stays, because another process may have opened it already.
///
/// # Errors
///
/// If another process has the lock.
fn lock(folder: &Path, suffix: &str) -> Result<File> {
    let path = folder.join(format!(".lock{suffix}"));
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("another process is writing to {}: wait until it ends", folder.display())
        }
        // Some file systems have no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Checks that the settings of a run are those of its manifest.
fn check_settings(expected: &Map<String, Value>, got: &Map<String, Value>) -> Result<()> {
    for name in expected.keys().chain(got.keys()) {
        let [expected, got] =
            [expected, got].map(|settings| settings.get(name).unwrap_or(&Value::Null));
        if expected != got {
            bail!("expected `{name}` {expected}, as in its manifest, got {got}");
        }
    }
    Ok(())
}

/// What identifies the input: the name, the size and the time of the last change of each file.
pub(super) fn identity(files: &[InputFile]) -> Value {
    let file = |file: &InputFile| {
        let metadata = file.metadata.as_ref();
        let modified = metadata.and_then(|metadata| metadata.modified().ok());
        let since = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        json!({
            "name": &*file.name,
            "bytes": metadata.map(std::fs::Metadata::len),
            "modified_ns": since.and_then(|since| u64::try_from(since.as_nanos()).ok()),
        })
    };
    files.iter().map(file).collect()
}
