use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::file::read_file;
use crate::{Error, Result};

/// A JSON object whose fields are read one by one, so that each error names its field.
pub(crate) struct Fields {
    pub(crate) path: PathBuf,
    pub(crate) value: Value,
}

impl Fields {
    /// Reads the contents of a JSON file.
    pub(crate) fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let value = serde_json::from_slice(json)
            .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), value })
    }

    /// Reads a JSON file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::from_json(&read_file(path)?, path)
    }

    /// An array as an object whose keys are numbers.
    pub(crate) fn numbered(mut self) -> Self {
        if let Value::Array(items) = self.value {
            let numbered = items.into_iter().enumerate();
            self.value = numbered.map(|(idx, item)| (idx.to_string(), item)).collect();
        }
        self
    }

    /// The field at a dotted path; JSON's null is the same as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        let value = field.split('.').try_fold(&self.value, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }

    pub(crate) fn error(&self, field: &str, expected: String) -> Error {
        let got = self.get(field).map_or_else(|| "nothing".to_owned(), Value::to_string);
        Error::Field { path: self.path.clone(), field: field.to_owned(), expected, got }
    }

    pub(crate) fn expect(
        &self,
        field: &str,
        expected: &str,
        ok: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        match self.get(field) {
            Some(value) if ok(value) => Ok(()),
            _ => Err(self.error(field, expected.to_owned())),
        }
    }

    /// Like [`expect`](Self::expect), but the field may be absent.
    pub(crate) fn expect_if_present(
        &self,
        field: &str,
        expected: &str,
        ok: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        if self.get(field).is_some() { self.expect(field, expected, ok) } else { Ok(()) }
    }

    pub(crate) fn count(&self, field: &str) -> Result<usize> {
        match self.get(field).and_then(Value::as_u64) {
            Some(value) if (1..=MAX_COUNT).contains(&value) => Ok(value as usize),
            _ => Err(self.error(field, format!("a whole number from 1 to {MAX_COUNT}"))),
        }
    }

    pub(crate) fn positive(&self, field: &str) -> Result<f64> {
        match self.get(field).and_then(Value::as_f64) {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            _ => Err(self.error(field, "a number above 0".into())),
        }
    }

    /// A boolean, and what it is where it is absent.
    pub(crate) fn flag(&self, field: &str, absent: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(absent),
            Some(value) => value.as_bool().ok_or_else(|| self.error(field, "true or false".into())),
        }
    }
}

/// Numbers above this in config.json are taken for damage: they keep every product of two of them,
/// and so every tensor's size, within 64 bits.
const MAX_COUNT: u64 = 1 << 28;
