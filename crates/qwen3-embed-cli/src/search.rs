use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use qwen3_embed::{EmbedOptions, Embedder, Prompt, Reranker, ScoreOptions};
use serde::Serialize;

use crate::lines::{
    Document, Format, InputArgs, documents_of_file, documents_of_standard_input, name_place,
    on_one_line, write_line,
};
use crate::model::EmbedderArgs;

/// Search files: show the lines that are most similar to a query
///
/// Each line of the files is a document. A result is a cosine similarity, the file and the line, and the text. All lines
/// are embedded each time, so this is for trying a model, and not for large collections.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Text files. `-` is standard input [default: standard input]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What to search, in any language. Repeat the flag for each query
    #[arg(long, value_name = "TEXT", required = true)]
    query: Vec<String>,
    /// Number of results for each query
    #[arg(long, value_name = "N", default_value_t = 10)]
    top_k: usize,
    /// Instruction for the queries [default: the model's prompt for queries]
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Folder, GGUF file or id of a reranker, which sorts the best results again. The results have its scores
    #[arg(long, value_name = "PATH or ID")]
    rerank: Option<String>,
    /// Number of results that the reranker sorts, if --top-k is not larger
    #[arg(long, value_name = "N", default_value_t = 20, requires = "rerank")]
    candidates: usize,
    /// Write a JSON object for each result, {"query": "…", "score": 0.71, "file": "notes.txt", "line": 12, "text": "…"}
    #[arg(long)]
    json: bool,
    /// Format of the files
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// A line of standard output with `--json`.
#[derive(Serialize)]
struct Output<'a> {
    query: &'a str,
    score: f32,
    file: Option<&'a str>,
    line: usize,
    text: &'a str,
}

/// A result: the index of a document, and its cosine similarity or rerank score.
type Found = (usize, f32);

/// Runs `qwen3-embed search`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let documents = args.documents()?;
    ensure!(!documents.is_empty(), "expected lines to search, got none");
    let embedder = args.embedder.builder()?.build()?;
    let reranker = args.rerank.as_deref().map(|model| args.embedder.reranker(model)).transpose()?;
    let results = args.search(&documents, &embedder, reranker.as_ref())?;

    let mut output = BufWriter::new(io::stdout().lock());
    for (i, (query, found)) in args.query.iter().zip(&results).enumerate() {
        if args.query.len() > 1 && !args.json {
            writeln!(output, "{}{query}", if i > 0 { "\n" } else { "" })?;
        }
        for &(idx, score) in found {
            let document = &documents[idx];
            let Document { text, file, line } = document;
            if args.json {
                let (file, line) = (file.as_deref(), *line);
                write_line(&mut output, &Output { query, score, file, line, text })?;
            } else {
                writeln!(output, "{score:6.3}  {document}  {}", on_one_line(text))?;
            }
        }
    }
    Ok(output.flush()?)
}

impl Args {
    fn documents(&self) -> Result<Vec<Document>> {
        if self.files.is_empty() {
            return documents_of_standard_input(self.format, self.input);
        }
        let mut documents = Vec::new();
        for path in &self.files {
            documents.extend(match path == Path::new("-") {
                true => documents_of_standard_input(self.format, self.input)?,
                false => documents_of_file(path, self.format, self.input)?,
            });
        }
        Ok(documents)
    }

    /// The results of each query, the best first.
    fn search(
        &self,
        documents: &[Document],
        embedder: &Embedder,
        reranker: Option<&Reranker>,
    ) -> Result<Vec<Vec<Found>>> {
        let prompt = self.instruct.clone().map_or(Prompt::Query, Prompt::Instruction);
        let queries = self.query.iter().map(String::as_str);
        let queries = embedder.embed_with(queries, &EmbedOptions::new().prompt(prompt));
        let queries = queries.map_err(|error| match error.text_index() {
            Some(idx) => anyhow!(error).context(format!("query {}", idx + 1)),
            None => error.into(),
        })?;
        let vectors = embedder.embed_documents(documents);
        let vectors = vectors.map_err(|error| name_place(documents, error))?;
        let mut options = ScoreOptions::new();
        options.instruction = self.instruct.clone();

        let mut results = Vec::new();
        for (query, vector) in self.query.iter().zip(queries.iter()) {
            let n = if reranker.is_some() { self.top_k.max(self.candidates) } else { self.top_k };
            let hits = vectors.top_k(vector, n)?;
            let mut found: Vec<Found> = hits.iter().map(|hit| (hit.index, hit.score)).collect();
            if let Some(reranker) = reranker {
                let texts: Vec<&str> =
                    found.iter().map(|&(idx, _)| documents[idx].as_ref()).collect();
                let ranked = reranker.rank_with(query, &texts, &options).map_err(|error| {
                    name_place(documents, error.map_text_index(|idx| found[idx].0))
                })?;
                found = ranked.iter().map(|ranked| (found[ranked.index].0, ranked.score)).collect();
                found.truncate(self.top_k);
            }
            results.push(found);
        }
        Ok(results)
    }
}
