//! The log, by the flags of Ballista's programs.

use std::io;

use anyhow::{Context, Result};
use ballista_core::config::LogRotationPolicy;
use tracing_appender::rolling;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The flags about the log.
pub(crate) struct Logging<'a> {
    /// The value of `--log-level-setting`, which the variable `RUST_LOG` overrides.
    pub(crate) levels: &'a str,
    /// The value of `--log-dir`. Without it, the log is written to standard error.
    pub(crate) dir: Option<&'a str>,
    pub(crate) rotation: &'a LogRotationPolicy,
    /// The beginning of the names of log files.
    pub(crate) file_prefix: &'a str,
    /// Whether lines contain the name and the id of the thread.
    pub(crate) threads: bool,
}

impl Logging<'_> {
    /// Starts the log.
    ///
    /// # Errors
    ///
    /// An error if the levels are not valid.
    pub(crate) fn start(&self) -> Result<()> {
        let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
            Ok(levels) => EnvFilter::try_new(levels).context("RUST_LOG")?,
            Err(_) => EnvFilter::try_new(self.levels).context("--log-level-setting")?,
        };
        let writer = match self.dir {
            None => BoxMakeWriter::new(io::stderr),
            Some(dir) => BoxMakeWriter::new(match self.rotation {
                LogRotationPolicy::Minutely => rolling::minutely(dir, self.file_prefix),
                LogRotationPolicy::Hourly => rolling::hourly(dir, self.file_prefix),
                LogRotationPolicy::Daily => rolling::daily(dir, self.file_prefix),
                LogRotationPolicy::Never => rolling::never(dir, self.file_prefix),
            }),
        };
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_thread_names(self.threads)
            .with_thread_ids(self.threads)
            .with_env_filter(filter)
            .with_writer(writer)
            .init();
        Ok(())
    }
}
