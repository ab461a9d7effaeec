//! The list of skipped records.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::compute::Failure;

/// Where skipped records are listed.
pub(super) struct ErrorList {
    /// `None` for standard error.
    path: Option<PathBuf>,
    file: Option<File>,
    n_bytes: u64,
    n_records: u64,
}

impl ErrorList {
    /// The list in the file `path`, or on standard error. An earlier run has listed `n_records` in `n_bytes`. What
    /// follows these bytes is cut off.
    pub(super) fn open(path: Option<PathBuf>, n_records: u64, n_bytes: u64) -> Result<Self> {
        let mut list = Self { path, file: None, n_bytes, n_records };
        if list.path.as_ref().is_some_and(|path| path.exists()) {
            list.file = list.open_file()?;
        }
        Ok(list)
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(super) fn n_records(&self) -> u64 {
        self.n_records
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub(super) fn add(&mut self, failure: &Failure) -> Result<()> {
        self.n_records += 1;
        let Failure { index, place, file, unit, number, error } = failure;
        let Some(path) = self.path.clone() else {
            eprintln!("skipped {place}: {error:#}");
            return Ok(());
        };
        let mut object = Map::new();
        object.insert("index".to_owned(), (*index).into());
        object.insert("file".to_owned(), (**file).into());
        object.insert((*unit).to_owned(), (*number).into());
        object.insert("error".to_owned(), format!("{error:#}").into());
        let line = format!("{}\n", Value::Object(object));
        if self.file.is_none() {
            self.file = self.open_file()?;
        }
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(line.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        self.n_bytes += line.len() as u64;
        Ok(())
    }

    /// Writes the list to the disk.
    pub(super) fn sync(&self) -> Result<()> {
        match (&self.file, &self.path) {
            (Some(file), Some(path)) => {
                file.sync_all().with_context(|| format!("cannot write {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn open_file(&self) -> Result<Option<File>> {
        let Some(path) = &self.path else { return Ok(None) };
        let about = || format!("cannot write {}", path.display());
        let file = File::options().create(true).append(true).open(path).with_context(about)?;
        file.set_len(self.n_bytes).with_context(about)?;
        Ok(Some(file))
    }
}
