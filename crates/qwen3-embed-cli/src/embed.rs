mod args;
mod compute;
mod errors;
mod input;
mod interrupt;
mod manifest;
mod output;
mod pipeline;
mod progress;
mod target;

pub(crate) use args::Args;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use qwen3_embed::Embedder;
use serde_json::{Map, Value, json};

use self::args::{OnError, OutputFormat};
use self::compute::{Computed, Failure};
use self::errors::ErrorList;
use self::input::{InputFile, Names, ReadOptions, input_files};
use self::interrupt::Interrupt;
use self::manifest::{Manifest, identity};
use self::output::Layout;
use self::pipeline::Pipeline;
use self::progress::Progress;
use self::target::{Next, Target, TargetWriter, shard_name};
use crate::model::ModelIdentity;
use crate::usage::usage_error;

/// The time between two checks for signals while there is nothing to write.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs `qwen3-embed embed`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (target, format) = Target::of(&args.output, args.input.shard)?;
    let files = input_files(&args.input.files, args.input.format)?;
    if args.output.resume && files.iter().any(|file| file.path.is_none()) {
        return Err(usage_error(
            "--resume needs files, because standard input cannot be read again".to_owned(),
        ));
    }
    let interrupt = Interrupt::default();
    if target != Target::StandardOutput {
        interrupt.listen()?;
    }
    let (embedder, model) = args.build()?;
    let embedder = Arc::new(embedder);
    let manifest = match &target {
        Target::Folder { folder, suffix, .. } => {
            let settings = settings(args, &embedder, &model, &files, format)?;
            let first = shard_name(suffix, 0, format);
            Some(Manifest::open(folder, suffix, &first, settings, args.output.resume)?)
        }
        _ => None,
    };
    if manifest.as_ref().is_some_and(|manifest| manifest.state.complete) {
        eprintln!("the run is complete");
        return Ok(());
    }
    let state = manifest.as_ref().map(|manifest| &manifest.state);
    let first_record = state.map_or(0, |state| state.next_record);
    let errors = match &target {
        Target::Folder { folder, suffix, .. } => {
            Some(args.errors.clone().unwrap_or(folder.join(format!("errors{suffix}.jsonl"))))
        }
        _ => args.errors.clone(),
    };
    let (n_skipped, n_bytes) = state.map_or((0, 0), |state| (state.n_skipped, state.errors_bytes));
    let errors = ErrorList::open(errors, n_skipped, n_bytes)?;
    let layout = Layout { format, vectors: args.output.vectors, dimensions: embedder.dimensions() };
    let progress = shows_progress(args, &target, &files).then(|| Progress::new(&files));
    let options = ReadOptions {
        columns: Names {
            text: args.input.text_column.clone(),
            instruction: args.input.instruct_column.clone(),
            copied: args.input.columns.clone(),
        },
        invalid: args.invalid,
        typed: format.has_columns(),
        part: args.input.shard,
        first_record,
    };
    let prompt = args.prompt.options().prompt;
    // Checks the name of the prompt before the input is read.
    embedder.prompt_text(&prompt)?;
    let pipeline = Pipeline::start(files, options, embedder, prompt, args.output.vectors);
    let writer = TargetWriter::new(target, layout, manifest, errors, interrupt.clone());
    Run { args, writer, progress, interrupt, next_record: first_record }.finish(pipeline)
}

/// A run that writes what its pipeline computes.
struct Run<'a> {
    args: &'a Args,
    writer: TargetWriter,
    progress: Option<Progress>,
    interrupt: Interrupt,
    /// The index of the first record that has not been written.
    next_record: u64,
}

impl Run<'_> {
    /// Writes all batches.
    fn finish(mut self, pipeline: Pipeline) -> Result<()> {
        let result = self.write_all(&pipeline);
        if let Some(progress) = &self.progress {
            progress.finish();
        }
        let result = match result {
            Ok(Next::Continue) => {
                pipeline.join().and_then(|()| self.writer.finish(self.next_record))
            }
            Ok(Next::Stop) => Err(anyhow!("interrupted")),
            Err(error) => Err(error),
        };
        let n_skipped = self.writer.errors().n_records();
        if n_skipped > 0 {
            let list = self.writer.errors().path();
            let list = list.map_or_else(String::new, |path| format!(": see {}", path.display()));
            eprintln!("{n_skipped} records were skipped{list}");
        }
        let Err(error) = result else { return Ok(()) };
        // Of two errors, the first one is the cause.
        if let Ok(Some(kept)) = self.writer.keep() {
            eprintln!("{kept}");
        }
        Err(error)
    }

    fn write_all(&mut self, pipeline: &Pipeline) -> Result<Next> {
        let mut has_said_so = false;
        loop {
            if self.interrupt.is_set() {
                if self.writer.is_between_files() {
                    return Ok(Next::Stop);
                }
                if !has_said_so {
                    eprintln!(
                        "interrupted: the current file is completed. A second signal ends the command at once"
                    );
                    has_said_so = true;
                }
            }
            let computed = match pipeline.batches.recv_timeout(SIGNAL_INTERVAL) {
                Ok(computed) => computed?,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(Next::Continue),
            };
            if let Next::Stop = self.write(computed)? {
                return Ok(Next::Stop);
            }
        }
    }

    fn write(&mut self, computed: Computed) -> Result<Next> {
        let Computed { rows, mut failures, next_record, file, bytes_read } = computed;
        let failure = match self.args.on_error {
            OnError::Fail if !failures.is_empty() => Some(failures.remove(0)),
            _ => None,
        };
        let mut n_rows = rows.indices.len();
        if let Some(Failure { index, .. }) = &failure {
            // The rows before an error are written.
            n_rows = rows.indices.partition_point(|row| row < index);
            failures.clear();
        }
        if let Next::Stop = self.writer.write(&rows, n_rows, &failures)? {
            return Ok(Next::Stop);
        }
        if let Some(failure) = failure {
            return Err(failure.error.context(failure.place));
        }
        self.next_record = next_record.unwrap_or(self.next_record);
        if let Some(progress) = &mut self.progress {
            progress.add(&rows.n_tokens, &file, bytes_read);
        }
        Ok(Next::Continue)
    }
}

/// Whether the progress is shown: a program that exchanges lines with this one does not expect it.
fn shows_progress(args: &Args, target: &Target, files: &[InputFile]) -> bool {
    let has_files = files.iter().all(|file| file.path.is_some());
    let is_mixed = io::stdout().is_terminal() && io::stderr().is_terminal();
    !args.quiet && (*target != Target::StandardOutput || (has_files && !is_mixed))
}

/// The settings that determine the files in a folder.
fn settings(
    args: &Args,
    embedder: &Embedder,
    model: &ModelIdentity,
    files: &[InputFile],
    format: OutputFormat,
) -> Result<Map<String, Value>> {
    let settings = json!({
        "input": identity(files),
        "text_column": args.input.text_column,
        "instruct_column": args.input.instruct_column,
        "columns": args.input.columns,
        "shard": args.input.shard.to_string(),
        "replace_invalid": args.invalid.replaces_invalid(),
        "model": model.name,
        "revision": model.commit,
        "adapter": args.embedder.adapter(),
        "precision": embedder.precision().to_string(),
        "dimensions": embedder.dimensions(),
        "prompt": embedder.prompt_text(&args.prompt.options().prompt)?,
        "max_tokens": embedder.max_tokens(),
        "overflow": args.overflow,
        "plain_text": args.plain_text,
        "vectors": args.output.vectors,
        "output_format": format,
        "shard_rows": args.output.shard_rows,
    });
    match settings {
        Value::Object(settings) => Ok(settings),
        _ => bail!("the settings are not an object"),
    }
}
