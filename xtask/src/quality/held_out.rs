//! The texts with which the quality of a model is measured.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The sentence of the example `multilingual_similarity`, in the languages of [`LANGUAGES`].
pub(super) const WEATHER: [&str; 4] = [
    "今天天气真好,适合出去散步",
    "The weather is great today, perfect for a walk",
    "今日の天気はとても良いです、散歩に最適です",
    "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요",
];

/// The languages of the meanings, in the order of the columns of `meanings.tsv`.
pub(super) const LANGUAGES: [&str; 4] = ["zh", "en", "ja", "ko"];

/// How many meanings are compared with [`WEATHER`].
const UNRELATED_MEANINGS: usize = 10;

/// Texts that the model was not trained with.
pub(super) struct HeldOut {
    /// Meanings that were written for this project, in [`LANGUAGES`].
    pub(super) meanings: Translations,
    /// Pairs of sentences of other sources.
    pub(super) pairs: Vec<Translations>,
    /// The first meanings that are not about the weather, in all languages.
    pub(super) unrelated: Vec<String>,
}

/// Texts with the same meanings in several languages.
pub(super) struct Translations {
    pub(super) name: &'static str,
    pub(super) languages: &'static [&'static str],
    /// All texts of the first language, then all texts of the next language, and so on.
    pub(super) texts: Vec<String>,
}

impl HeldOut {
    /// Reads `meanings.tsv` and `tatoeba.tsv`. The file `hsk.tsv` is read if it exists: it is not part of the repository
    /// because of its license.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let meanings = rows(&folder.join("meanings.tsv"), 1 + LANGUAGES.len())?;
        let mut pairs = vec![pairs("tatoeba", &["ja", "en"], folder)?];
        if folder.join("hsk.tsv").is_file() {
            pairs.push(self::pairs("hsk", &["zh", "en"], folder)?);
        }
        let unrelated = meanings.iter().filter(|row| row[0] != "weather").take(UNRELATED_MEANINGS);
        Ok(Self {
            unrelated: unrelated.flat_map(|row| row[1..].to_vec()).collect(),
            meanings: Translations {
                name: "meanings",
                languages: &LANGUAGES,
                texts: by_column(&meanings, 1),
            },
            pairs,
        })
    }
}

impl Translations {
    /// The number of texts in each language.
    pub(super) fn len(&self) -> usize {
        self.texts.len() / self.languages.len()
    }
}

fn pairs(
    name: &'static str,
    languages: &'static [&'static str],
    folder: &Path,
) -> Result<Translations> {
    let rows = rows(&folder.join(format!("{name}.tsv")), languages.len())?;
    Ok(Translations { name, languages, texts: by_column(&rows, 0) })
}

/// The cells from column `first` on, column by column.
fn by_column(rows: &[Vec<String>], first: usize) -> Vec<String> {
    let n_columns = rows.first().map_or(0, Vec::len);
    (first..n_columns).flat_map(|column| rows.iter().map(move |row| row[column].clone())).collect()
}

/// The cells of a file with tabs between columns.
fn rows(path: &Path, n_columns: usize) -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut rows = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let row: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let (place, got) = (format!("{}:{}", path.display(), idx + 1), row.len());
        ensure!(got == n_columns, "{place}: expected {n_columns} columns, got {got}");
        rows.push(row);
    }
    ensure!(rows.len() > 1, "{}: expected at least two lines", path.display());
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_texts_are_read_by_language() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("meanings.tsv", "weather\tz1\te1\tj1\tk1\nfood\tz2\te2\tj2\tk2\n");
        write("tatoeba.tsv", "j1\te1\nj2\te2\n");
        let held_out = HeldOut::read(dir.path()).unwrap();
        assert_eq!(held_out.meanings.texts, ["z1", "z2", "e1", "e2", "j1", "j2", "k1", "k2"]);
        assert_eq!(held_out.unrelated, ["z2", "e2", "j2", "k2"]);
        assert_eq!((held_out.meanings.len(), held_out.pairs.len()), (2, 1));
        assert_eq!(held_out.pairs[0].texts, ["j1", "j2", "e1", "e2"]);
        write("hsk.tsv", "z\te\nwithout a tab");
        let error = HeldOut::read(dir.path()).err().unwrap().to_string();
        assert!(error.ends_with("hsk.tsv:2: expected 2 columns, got 1"), "{error}");
    }
}
