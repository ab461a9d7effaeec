//! The progress of a run, on standard error.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use super::input::InputFile;

/// The time between two lines, if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how many texts have been written.
pub(super) struct Progress {
    /// A bar on a terminal, or `None` for lines.
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Instant,
    n_texts: u64,
    n_tokens: u64,
    /// For each file, the total size of the files before it.
    offsets: HashMap<Arc<str>, u64>,
    /// The size of the input, or 0 if it is not known.
    n_bytes: u64,
    /// The position after the first batch, and when it was reached.
    first: Option<(u64, Instant)>,
}

impl Progress {
    pub(super) fn new(files: &[InputFile]) -> Self {
        let (mut offsets, mut n_bytes, mut is_known) = (HashMap::new(), 0, true);
        for file in files {
            offsets.insert(file.name.clone(), n_bytes);
            match &file.metadata {
                Some(metadata) => n_bytes += metadata.len(),
                None => is_known = false,
            }
        }
        let n_bytes = if is_known { n_bytes } else { 0 };
        let bar = io::stderr().is_terminal().then(|| {
            if n_bytes == 0 {
                return ProgressBar::new_spinner().with_style(style("{spinner} {msg}"));
            }
            ProgressBar::new(n_bytes).with_style(style("{bar:25} {percent:>3} % {msg}"))
        });
        let now = Instant::now();
        let (n_texts, n_tokens, first) = (0, 0, None);
        Self { bar, start: now, last_line: now, n_texts, n_tokens, offsets, n_bytes, first }
    }

    /// Adds a batch that was written. `bytes_read` is the position in its file.
    pub(super) fn add(&mut self, n_tokens: &[u32], file: &Arc<str>, bytes_read: u64) {
        self.n_texts += n_tokens.len() as u64;
        self.n_tokens += n_tokens.iter().map(|&n| u64::from(n)).sum::<u64>();
        let position = self.offsets.get(file).copied().unwrap_or(0) + bytes_read;
        if let Some(bar) = &self.bar {
            bar.set_position(position.min(self.n_bytes));
            bar.set_message(self.message(Some(position)));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}", self.message(Some(position)));
        }
        self.first.get_or_insert((position, Instant::now()));
    }

    /// Shows the totals.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}", self.message(None));
    }

    /// The counts and the speed, and at a position in the input also the time that is left.
    fn message(&self, position: Option<u64>) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let per_second = |n: u64| HumanCount((n as f64 / seconds) as u64);
        let mut message = format!(
            "{} texts, {} texts/s, {} tokens/s",
            HumanCount(self.n_texts),
            per_second(self.n_texts),
            per_second(self.n_tokens)
        );
        if let Some(left) = position.and_then(|position| self.time_left(position)) {
            message += &format!(", {} left", HumanDuration(left));
        }
        message
    }

    fn time_left(&self, position: u64) -> Option<Duration> {
        let (first, since) = self.first?;
        let (done, left) = (position.checked_sub(first)?, self.n_bytes.checked_sub(position)?);
        (done > 0).then(|| since.elapsed().mul_f64(left as f64 / done as f64))
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
