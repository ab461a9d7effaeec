//! From batches of records to rows with vectors.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use qwen3_embed::{EmbedOptions, Embedder, Error, Prompt, Text};

use super::args::VectorFormat;
use super::input::{Batch, Record};
use super::output::{Rows, Vectors};

/// A record that could not be embedded.
pub(super) struct Failure {
    /// The index of the record in the whole input.
    pub(super) index: u64,
    /// The place of the record, such as `line 7 of texts.csv`.
    pub(super) place: String,
    pub(super) file: Arc<str>,
    /// What the records of the file are called, such as `line`.
    pub(super) unit: &'static str,
    /// The number of the line or row.
    pub(super) number: u64,
    pub(super) error: anyhow::Error,
}

/// The rows of a batch.
pub(super) struct Computed {
    pub(super) rows: Rows,
    /// The records that have no row, in the order of the input.
    pub(super) failures: Vec<Failure>,
    /// The index of the record that follows the batch, or `None` if the batch has no records.
    pub(super) next_record: Option<u64>,
    pub(super) file: Arc<str>,
    /// The number of bytes that have been read from the file.
    pub(super) bytes_read: u64,
}

/// Replaces each string by its tokens. The records of a batch may have different instructions.
pub(super) fn tokenize(embedder: &Embedder, prompt: &Prompt, batch: &mut Batch) -> Result<()> {
    let default = embedder.prompt_text(prompt)?.into_owned();
    let mut strings = Vec::new();
    for (at, record) in batch.records.iter().enumerate() {
        let Ok(Record { text: Text::String(text), instruction }) = record else { continue };
        let string = match instruction {
            Some(instruction) => qwen3_embed::instruct(instruction, text),
            None => [&default, &**text].concat(),
        };
        strings.push((at, string));
    }
    let texts: Vec<&str> = strings.iter().map(|(_, string)| string.as_str()).collect();
    let mut set = |at: usize, tokens: qwen3_embed::Result<Vec<u32>>| {
        let index = usize::try_from(batch.indices[at]).unwrap_or(usize::MAX);
        batch.records[at] = match tokens {
            Ok(tokens) => Ok(Record { text: tokens.into(), instruction: None }),
            Err(error) => Err(error.map_text_index(|_| index).into()),
        };
    };
    match embedder.tokenize(&texts) {
        Ok(tokens) => strings.iter().zip(tokens).for_each(|((at, _), tokens)| set(*at, Ok(tokens))),
        // One of the texts cannot be tokenized, or is too long.
        Err(_) => {
            for (at, string) in &strings {
                set(*at, embedder.tokenize(&[string]).map(|mut tokens| tokens.remove(0)));
            }
        }
    }
    Ok(())
}

/// Computes the vectors of a batch, whose strings have been replaced by tokens.
pub(super) fn compute(
    embedder: &Embedder,
    mut batch: Batch,
    format: VectorFormat,
) -> Result<Computed> {
    let texts = batch.records.iter().filter_map(|record| Some(&record.as_ref().ok()?.text));
    let mut embeddings = embedder.embed_iter(texts, &EmbedOptions::new())?;
    let n_records = batch.records.len();
    let dimensions = embedder.dimensions();
    let (mut indices, mut n_tokens) = (Vec::new(), Vec::new());
    let mut vectors = Vec::with_capacity(n_records * dimensions);
    let mut keep = vec![false; n_records];
    let mut errors = Vec::new();
    for (at, record) in batch.records.iter().enumerate() {
        if record.is_err() {
            continue;
        }
        match embeddings.next() {
            Some(Ok(embedding)) => {
                indices.push(batch.indices[at]);
                n_tokens.push(u32::try_from(embedding.n_tokens).unwrap_or(u32::MAX));
                vectors.extend(embedding.vector);
                keep[at] = true;
            }
            Some(Err(error)) if error.text_index().is_some() => errors.push((at, error)),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(anyhow!("the model computed too few vectors")),
        }
    }
    drop(embeddings);
    let mut errors = errors.into_iter().peekable();
    let mut failures = Vec::new();
    for (at, record) in std::mem::take(&mut batch.records).into_iter().enumerate() {
        let error = match (record, errors.next_if(|(failed, _)| *failed == at)) {
            (Err(error), _) => error,
            (Ok(_), Some((_, error))) => at_index(error, batch.indices[at]),
            (Ok(_), None) => continue,
        };
        let place = batch.place(at);
        let (index, number) = (batch.indices[at], batch.numbers[at]);
        let (file, unit) = (batch.file.clone(), batch.unit);
        failures.push(Failure { index, place, file, unit, number, error });
    }
    let Batch { file, indices: all, carried, bytes_read, .. } = batch;
    let next_record = all.last().map(|last| last + 1);
    let vectors = Vectors::new(vectors, dimensions, format)?;
    let rows = Rows { indices, n_tokens, vectors, carried: carried.filter(&keep)? };
    Ok(Computed { rows, failures, next_record, file, bytes_read })
}

/// An error about a text, with the index of the text in the whole input.
fn at_index(error: Error, index: u64) -> anyhow::Error {
    error.map_text_index(|_| usize::try_from(index).unwrap_or(usize::MAX)).into()
}
