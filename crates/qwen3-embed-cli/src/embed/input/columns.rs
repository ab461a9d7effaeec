//! Which columns of a table have the text and the instruction, and which columns are copied.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};

/// Names of the output, which columns of the input cannot have.
const OUTPUT_NAMES: [&str; 4] = ["index", "embedding", "scale", "n_tokens"];

/// The names of columns or JSON fields.
#[derive(Clone)]
pub(in crate::embed) struct Names {
    pub(in crate::embed) text: String,
    pub(in crate::embed) instruction: String,
    /// The columns that are copied, or `None` for all except for the text and its instruction.
    pub(in crate::embed) copied: Option<Vec<String>>,
}

impl Names {
    /// Whether the column is copied to the output.
    pub(super) fn copies(&self, name: &str) -> bool {
        !OUTPUT_NAMES.contains(&name)
            && match &self.copied {
                Some(copied) => copied.iter().any(|copied| copied == name),
                None => name != self.text && name != self.instruction,
            }
    }

    /// Finds the columns of a table. `names` are the names of its columns.
    ///
    /// # Errors
    ///
    /// If the table has no column with the text, or not all columns that the user wants to be copied.
    pub(super) fn find(&self, names: &[&str], file: &str) -> Result<Positions> {
        let position = |name: &str| names.iter().position(|&column| column == name);
        let wanted = [&self.text].into_iter().chain(self.copied.iter().flatten());
        for name in wanted {
            ensure!(
                position(name).is_some(),
                "{file} has no column `{name}`: its columns are {}",
                names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            );
        }
        Ok(Positions {
            text: position(&self.text).unwrap_or_default(),
            instruction: position(&self.instruction),
            copied: (0..names.len()).filter(|&at| self.copies(names[at])).collect(),
        })
    }
}

/// The string of a value in a column. Bytes that are not UTF-8 are an error, or are replaced.
pub(super) fn decoded<'a>(
    bytes: &'a [u8],
    column: &str,
    replaces_invalid: bool,
) -> Result<Cow<'a, str>> {
    if replaces_invalid {
        return Ok(String::from_utf8_lossy(bytes));
    }
    let text = str::from_utf8(bytes);
    Ok(text.with_context(|| format!("column `{column}` is not UTF-8"))?.into())
}

/// The positions of columns in a table.
pub(super) struct Positions {
    pub(super) text: usize,
    pub(super) instruction: Option<usize>,
    pub(super) copied: Vec<usize>,
}
