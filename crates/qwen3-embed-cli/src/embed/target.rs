//! Where the rows go: standard output, a file, or the files of a folder.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::args::{self, OutputFormat, Part};
use super::compute::Failure;
use super::errors::ErrorList;
use super::interrupt::Interrupt;
use super::manifest::{Manifest, Shard};
use super::output::{Layout, Rows, Sink, Writer, create};
use crate::usage::usage_error;

/// Where the rows go.
#[derive(Clone, PartialEq)]
pub(super) enum Target {
    StandardOutput,
    File(PathBuf),
    /// A folder of files with `shard_rows` rows, except for the last file.
    Folder {
        folder: PathBuf,
        shard_rows: u64,
        suffix: String,
    },
}

impl Target {
    /// The target that the flags name, and its format.
    ///
    /// # Errors
    ///
    /// If the flags contradict each other, or if the file exists and must not be replaced.
    pub(super) fn of(args: &args::Output, part: Part) -> Result<(Self, OutputFormat)> {
        if let Some(folder) = &args.output_dir {
            let format = args.output_format.unwrap_or(OutputFormat::Parquet);
            let (folder, shard_rows) = (folder.clone(), args.shard_rows);
            return Ok((Self::Folder { folder, shard_rows, suffix: part.suffix() }, format));
        }
        let Some(path) = args.output.clone().filter(|path| path.as_os_str() != "-") else {
            let format = args.output_format.unwrap_or(OutputFormat::Jsonl);
            if matches!(format, OutputFormat::Npy | OutputFormat::Safetensors) {
                let format = format.extension();
                return Err(usage_error(format!(
                    "{format} cannot be written to standard output: use --output or --output-dir"
                )));
            }
            return Ok((Self::StandardOutput, format));
        };
        let format = args.output_format.or_else(|| OutputFormat::of_name(&path));
        let format = format.ok_or_else(|| {
            usage_error(format!(
                "the name of {} does not tell the format: expected .jsonl, .npy, .safetensors, .arrow or .parquet, or \
                 --output-format",
                path.display()
            ))
        })?;
        let is_free = args.overwrite || !path.exists();
        ensure!(is_free, "{} exists: use --overwrite to replace it", path.display());
        Ok((Self::File(path), format))
    }
}

/// Whether to go on.
#[derive(PartialEq)]
pub(super) enum Next {
    Continue,
    /// The user has interrupted the run, and a file is complete.
    Stop,
}

/// Writes rows to the files of a target.
pub(super) struct TargetWriter {
    target: Target,
    layout: Layout,
    /// The file that is being written, and the number of its rows.
    open: Option<(Box<dyn Writer>, u64)>,
    /// Only for a folder.
    manifest: Option<Manifest>,
    errors: ErrorList,
    interrupt: Interrupt,
    n_rows: u64,
}

impl TargetWriter {
    pub(super) fn new(
        target: Target,
        layout: Layout,
        manifest: Option<Manifest>,
        errors: ErrorList,
        interrupt: Interrupt,
    ) -> Self {
        Self { target, layout, open: None, manifest, errors, interrupt, n_rows: 0 }
    }

    /// Writes the first `n_rows` rows, and lists the failures between them.
    pub(super) fn write(
        &mut self,
        rows: &Rows,
        n_rows: usize,
        failures: &[Failure],
    ) -> Result<Next> {
        let mut failures = failures.iter().peekable();
        let mut at = 0;
        while at < n_rows {
            let room = match (&self.target, &self.open) {
                (Target::Folder { shard_rows, .. }, Some((_, n_rows))) => shard_rows - n_rows,
                (Target::Folder { shard_rows, .. }, None) => *shard_rows,
                _ => u64::MAX,
            };
            let n_left = n_rows - at;
            let end = at + usize::try_from(room).map_or(n_left, |room| room.min(n_left));
            let (writer, n_written) = self.open_file()?;
            writer.write(rows, at..end)?;
            *n_written += (end - at) as u64;
            self.n_rows += (end - at) as u64;
            let next_record = rows.indices[end - 1] + 1;
            while let Some(failure) = failures.next_if(|failure| failure.index < next_record) {
                self.errors.add(failure)?;
            }
            at = end;
            if self.is_full() {
                self.finish_shard(next_record)?;
                if self.interrupt.is_set() {
                    return Ok(Next::Stop);
                }
            }
        }
        failures.try_for_each(|failure| self.errors.add(failure))?;
        Ok(Next::Continue)
    }

    /// Whether the run can stop here without losing rows.
    pub(super) fn is_between_files(&self) -> bool {
        self.open.is_none() || !matches!(self.target, Target::Folder { .. })
    }

    pub(super) fn errors(&self) -> &ErrorList {
        &self.errors
    }

    /// Completes the output. `next_record` is the number of records of the input.
    pub(super) fn finish(&mut self, next_record: u64) -> Result<()> {
        match self.target {
            Target::Folder { .. } => {
                if self.open.is_some() {
                    self.finish_shard(next_record)?;
                }
                self.errors.sync()?;
                let Some(manifest) = &mut self.manifest else { return Ok(()) };
                manifest.state.next_record = manifest.state.next_record.max(next_record);
                manifest.state.n_skipped = self.errors.n_records();
                manifest.state.errors_bytes = self.errors.n_bytes();
                manifest.state.complete = true;
                manifest.write()
            }
            _ => {
                if self.n_rows == 0 {
                    let empty = Rows::empty(self.layout)?;
                    self.open_file()?.0.write(&empty, 0..0)?;
                }
                self.close()?.into_iter().try_for_each(commit)
            }
        }
    }

    /// Keeps what was written before an error or an interruption. Returns what the user should know about it.
    pub(super) fn keep(mut self) -> Result<Option<String>> {
        let n_rows = self.n_rows;
        match &self.target {
            Target::Folder { folder, .. } => {
                let n_shards = self.manifest.as_ref().map_or(0, |m| m.state.shards.len());
                Ok(Some(format!(
                    "{} has {n_shards} complete files: run the same command with --resume to go on",
                    folder.display()
                )))
            }
            Target::StandardOutput => {
                self.close()?.into_iter().try_for_each(commit)?;
                Ok(None)
            }
            Target::File(_) if n_rows == 0 => Ok(None),
            Target::File(_) => {
                let mut kept = Vec::new();
                for sink in self.close()? {
                    if let Sink::File(file) = sink {
                        kept.push(file.keep()?.display().to_string());
                    }
                }
                let kept = kept.join(" and ");
                Ok(Some(format!(
                    "the first {n_rows} rows are in {kept}. Only --output-dir can go on with a run"
                )))
            }
        }
    }

    fn is_full(&self) -> bool {
        match (&self.target, &self.open) {
            (Target::Folder { shard_rows, .. }, Some((_, n_rows))) => n_rows >= shard_rows,
            _ => false,
        }
    }

    /// The file that is being written. It is created if necessary.
    fn open_file(&mut self) -> Result<&mut (Box<dyn Writer>, u64)> {
        if self.open.is_none() {
            let path = match &self.target {
                Target::StandardOutput => None,
                Target::File(path) => Some(path.clone()),
                Target::Folder { folder, .. } => Some(folder.join(self.shard_name())),
            };
            self.open = Some((create(self.layout, path.as_deref())?, 0));
        }
        self.open.as_mut().context("there is no open file")
    }

    fn shard_name(&self) -> String {
        let number = self.manifest.as_ref().map_or(0, |manifest| manifest.state.shards.len());
        let suffix = match &self.target {
            Target::Folder { suffix, .. } => suffix.as_str(),
            _ => "",
        };
        shard_name(suffix, number, self.layout.format)
    }

    /// Completes the file of a folder, and then says so in the manifest.
    fn finish_shard(&mut self, next_record: u64) -> Result<()> {
        let file = self.shard_name();
        let rows = self.open.as_ref().map_or(0, |(_, n_rows)| *n_rows);
        self.close()?.into_iter().try_for_each(commit)?;
        self.errors.sync()?;
        let Some(manifest) = &mut self.manifest else { return Ok(()) };
        manifest.state.shards.push(Shard { file, rows });
        manifest.state.next_record = next_record;
        manifest.state.n_skipped = self.errors.n_records();
        manifest.state.errors_bytes = self.errors.n_bytes();
        manifest.write()
    }

    /// Writes the end of the open file.
    fn close(&mut self) -> Result<Vec<Sink>> {
        self.open.take().map_or(Ok(Vec::new()), |(writer, _)| writer.finish())
    }
}

/// The name of a file in a folder. `suffix` is that of [`Part::suffix`].
pub(super) fn shard_name(suffix: &str, number: usize, format: OutputFormat) -> String {
    format!("part{suffix}-{number:05}.{}", format.extension())
}

/// Gives a complete file its name.
fn commit(sink: Sink) -> Result<()> {
    match sink {
        Sink::File(file) => file.commit(),
        Sink::StandardOutput(mut output) => {
            Ok(std::io::Write::flush(&mut output).context("cannot write standard output")?)
        }
    }
}
