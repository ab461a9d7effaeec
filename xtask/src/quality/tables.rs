//! The figures as Markdown tables.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::bars::Bar;
use super::evaluation::{CANDIDATES, Evaluation, Format, Retrieval};
use super::held_out::LANGUAGES;

/// A Markdown table whose columns are aligned: first columns with text, to the left, then columns with numbers, to the
/// right.
pub(super) struct Table {
    n_text_columns: usize,
    /// The first row is the header.
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(n_text_columns: usize, header: &[&str]) -> Self {
        let header = header.iter().map(|&name| name.to_owned()).collect();
        Self { n_text_columns, rows: vec![header] }
    }

    pub(super) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let width = |column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
        for (idx, row) in self.rows.iter().enumerate() {
            write!(f, "|")?;
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                match column < self.n_text_columns {
                    true => write!(f, " {cell:<width$} |")?,
                    false => write!(f, " {cell:>width$} |")?,
                }
            }
            writeln!(f)?;
            if idx == 0 {
                write!(f, "|")?;
                for column in 0..row.len() {
                    let end = if column < self.n_text_columns { "-" } else { ":" };
                    write!(f, "{:-<1$}{end}|", "", width(column) + 1)?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// All tables, with a sentence about each.
pub(super) fn report(evaluation: &Evaluation, bars: &[Bar]) -> String {
    let Evaluation { n_meanings, dimensions, .. } = evaluation;
    format!(
        "A text in one language is the query, and the texts in another language are the candidates. recall@1 is the\n\
         share of queries whose translation is the first hit, and MRR is the mean of 1 / rank of the translation. Both\n\
         are averaged over the directions, such as zh-en for Chinese queries and English candidates.\n\n\
         The bars, in f32 with {dimensions} dimensions and the first {CANDIDATES} texts unless the line says otherwise:\n\n\
         {}\n\
         `meanings` is {n_meanings} meanings in Chinese, English, Japanese and Korean that were written for this project.\n\
         `tatoeba` and `hsk` are sentences of these collections with their English translations:\n\n{}\n\
         recall@1 of each direction, with {CANDIDATES} candidates and {dimensions} dimensions. Rows are the languages of queries:\n\n{}\n\
         Weight formats and kernel sets, with all {n_meanings} meanings as candidates: recall@1 by the number of\n\
         dimensions, then MRR and the least recall@1 of a direction with all dimensions:\n\n{}\n\
         Agreement of the weight formats with f32: the share of queries with the same first hit, the mean of Kendall's\n\
         tau over the first ten hits in f32, and the smallest cosine of a text's vector to its vector in f32:\n\n{}\n\
         Cosines of the sentences of the example `multilingual_similarity`, and their mean cosines to 40 unrelated\n\
         texts:\n\n{}",
        bar_table(bars),
        retrieval_table(&evaluation.retrievals),
        direction_table(evaluation),
        format_table(&evaluation.formats),
        agreement_table(&evaluation.formats),
        weather_table(evaluation),
    )
}

/// Replaces the part of a Markdown file between the marker comments of a section.
pub(super) fn write_section(file: &Path, section: &str, text: &str) -> Result<()> {
    let markdown = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let replaced = replace_section(&markdown, section, text).with_context(|| {
        let [begin, end] = markers(section);
        format!("{}: expected the lines `{begin}` and `{end}`", file.display())
    })?;
    fs::write(file, replaced).with_context(|| file.display().to_string())
}

fn replace_section(markdown: &str, section: &str, text: &str) -> Option<String> {
    let [begin, end] = markers(section);
    let (before, rest) = markdown.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim()))
}

fn markers(section: &str) -> [String; 2] {
    [format!("<!-- {section} -->"), format!("<!-- /{section} -->")]
}

fn bar_table(bars: &[Bar]) -> Table {
    let mut table = Table::new(2, &["figure", "bar", "measured", "met"]);
    for bar in bars {
        let met = if bar.is_met() { "yes" } else { "no" };
        table.push(vec![bar.name.clone(), bar.limit(), bar.figure(), met.to_owned()]);
    }
    table
}

fn retrieval_table(retrievals: &[Retrieval]) -> Table {
    let header =
        ["texts", "queries", "candidates", "dimensions", "recall@1", "MRR", "least recall@1"];
    let mut table = Table::new(2, &header);
    for retrieval in retrievals {
        let queries = if retrieval.has_prompt { "with prompt" } else { "as documents" };
        table.push(vec![
            retrieval.source.to_owned(),
            queries.to_owned(),
            retrieval.candidates.to_string(),
            retrieval.dimensions.to_string(),
            decimals(retrieval.recall()),
            decimals(retrieval.mrr()),
            least(retrieval),
        ]);
    }
    table
}

fn direction_table(evaluation: &Evaluation) -> Table {
    let mut table = Table::new(1, &[&["queries"], &LANGUAGES[..]].concat());
    let retrieval = evaluation.retrieval("meanings", evaluation.dimensions);
    for from in LANGUAGES {
        let recall = |to| {
            let name = format!("{from}-{to}");
            let direction = retrieval?.directions.iter().find(|direction| direction.name == name);
            direction.map(|direction| decimals(direction.recall))
        };
        let cells = LANGUAGES.map(|to| recall(to).unwrap_or_default());
        table.push([vec![from.to_owned()], cells.to_vec()].concat());
    }
    table
}

fn format_table(formats: &[Format]) -> Table {
    let retrievals = formats.first().map_or(&[][..], |format| &format.retrievals);
    let dimensions = retrievals.iter().map(|retrieval| retrieval.dimensions.to_string());
    let dimensions: Vec<String> = dimensions.collect();
    let dimensions: Vec<&str> = dimensions.iter().map(String::as_str).collect();
    let header = [&["weights", "kernels"], &dimensions[..], &["MRR", "least recall@1"]].concat();
    let mut table = Table::new(2, &header);
    for format in formats {
        let mut row = vec![format.weights.to_owned(), format.kernels.to_owned()];
        row.extend(format.retrievals.iter().map(|retrieval| decimals(retrieval.recall())));
        row.push(decimals(format.retrievals[0].mrr()));
        row.push(least(&format.retrievals[0]));
        table.push(row);
    }
    table
}

fn agreement_table(formats: &[Format]) -> Table {
    let mut table = Table::new(2, &["weights", "kernels", "same first hit", "tau", "least cosine"]);
    for format in formats {
        if let Some(agreement) = &format.agreement {
            table.push(vec![
                format.weights.to_owned(),
                format.kernels.to_owned(),
                decimals(agreement.same_first),
                decimals(agreement.tau),
                format!("{:.5}", agreement.least_cosine),
            ]);
        }
    }
    table
}

fn weather_table(evaluation: &Evaluation) -> Table {
    let mut table = Table::new(1, &[&[""], &LANGUAGES[..], &["unrelated"]].concat());
    let weather = &evaluation.weather;
    for ((name, cosines), &unrelated) in
        LANGUAGES.iter().zip(&weather.cosines).zip(&weather.unrelated)
    {
        let mut row = vec![(*name).to_owned()];
        row.extend(cosines.iter().chain([&unrelated]).map(|&cosine| decimals(cosine)));
        table.push(row);
    }
    table
}

fn least(retrieval: &Retrieval) -> String {
    let least = retrieval.least().map(|least| format!("{} {}", decimals(least.recall), least.name));
    least.unwrap_or_default()
}

fn decimals(value: f64) -> String {
    format!("{value:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_columns_are_aligned() {
        let mut table = Table::new(1, &["name", "x"]);
        table.push(vec!["longer".to_owned(), "0.25".to_owned()]);
        let expected = "| name   |    x |\n|--------|-----:|\n| longer | 0.25 |\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn only_the_text_between_the_markers_is_replaced() {
        let markdown = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->";
        let expected = "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n<!-- y -->";
        let replaced = replace_section(markdown, "x", "new\n").unwrap();
        assert_eq!(replaced, expected);
        assert_eq!(replace_section(&replaced, "x", "new").unwrap(), expected);
        assert_eq!(replace_section(markdown, "y", "new"), None);
    }
}
