use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::folder::Folder;
use crate::{Error, Result};

/// The fields of a JSON file, or of a GGUF file's metadata.
///
/// A field is named by its path in the file, with dots between the names of nested objects and the indices of
/// arrays: `rope_scaling.rope_type`, `0.type`. Every error names the file and the field.
#[derive(Debug, Clone)]
pub struct Fields {
    path: PathBuf,
    value: Value,
}

/// The largest count that a file may contain. The product of two counts, and so the size of every tensor, then
/// fits in 64 bits.
const MAX_COUNT: u64 = 1 << 28;

impl Fields {
    /// Fields that were read from the file at `path`.
    pub(crate) fn new(path: &Path, value: Value) -> Self {
        Self { path: path.to_path_buf(), value }
    }

    /// Parses the contents of a JSON file. Errors name `path`.
    pub(crate) fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let value = serde_json::from_slice(json)
            .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
        Ok(Self::new(path, value))
    }

    /// Reads a JSON file of a folder.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Json`] if it is not valid JSON.
    pub fn read(folder: &Folder, file: &str) -> Result<Self> {
        Self::from_json(&folder.read(file)?, &folder.path_of(file))
    }

    /// Reads a JSON file of a folder if it exists.
    pub(crate) fn read_if_present(folder: &Folder, file: &str) -> Result<Option<Self>> {
        if folder.contains(file) { Self::read(folder, file).map(Some) } else { Ok(None) }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of elements, if the file contains an array, or of fields, if it contains an object.
    pub(crate) fn len(&self) -> usize {
        match &self.value {
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            _ => 0,
        }
    }

    /// The value of `field`, or `None` if the field is absent or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        let value = field.split('.').try_fold(&self.value, |value, key| match value {
            Value::Array(items) => items.get(key.parse::<usize>().ok()?),
            value => value.get(key),
        })?;
        (!value.is_null()).then_some(value)
    }

    /// An error that says which value `field` has in the file, and which value was expected.
    pub fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        let got = self.get(field).map_or_else(|| "nothing".to_owned(), Value::to_string);
        self.error_with(field, expected, got)
    }

    /// As [`error`](Self::error), with a description of the value in the file, `got`.
    pub fn error_with(
        &self,
        field: &str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Error {
        let (path, field) = (self.path.clone(), field.to_owned());
        Error::Field { path, field, expected: expected.into(), got: got.into() }
    }

    /// Checks the value of `field`, which must be present.
    ///
    /// # Errors
    ///
    /// [`Error::Field`] with `expected` if `is_expected` is false.
    pub fn expect(
        &self,
        field: &str,
        expected: &str,
        is_expected: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        match self.get(field) {
            Some(value) if is_expected(value) => Ok(()),
            _ => Err(self.error(field, expected)),
        }
    }

    /// Checks the value of `field`, which may be absent.
    ///
    /// # Errors
    ///
    /// As [`expect`](Self::expect).
    pub fn expect_if_present(
        &self,
        field: &str,
        expected: &str,
        is_expected: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        if self.get(field).is_some() { self.expect(field, expected, is_expected) } else { Ok(()) }
    }

    /// The string in `field`, or `None` if the field is absent.
    ///
    /// # Errors
    ///
    /// [`Error::Field`] if the value is not a string.
    pub fn string(&self, field: &str) -> Result<Option<&str>> {
        self.expect_if_present(field, "a string", Value::is_string)?;
        Ok(self.get(field).and_then(Value::as_str))
    }

    /// The positive integer in `field`, which must be present.
    pub(crate) fn count(&self, field: &str) -> Result<usize> {
        match self.get(field).and_then(Value::as_u64) {
            Some(value) if (1..=MAX_COUNT).contains(&value) => Ok(value as usize),
            _ => Err(self.error(field, format!("a whole number from 1 to {MAX_COUNT}"))),
        }
    }

    /// The positive number in `field`, which must be present.
    pub(crate) fn positive(&self, field: &str) -> Result<f64> {
        match self.get(field).and_then(Value::as_f64) {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            _ => Err(self.error(field, "a number above 0")),
        }
    }

    /// The boolean in `field`, or `default` if the field is absent.
    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(field, "true or false")),
        }
    }
}
