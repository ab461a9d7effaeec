//! Signals that end a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit status of a command that a second Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Whether the user wants the run to end.
#[derive(Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on, the first SIGINT or SIGTERM is remembered, and the second one ends the process.
    pub(super) fn listen(&self) -> Result<()> {
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, INTERRUPTED, self.0.clone())
                .and_then(|_| flag::register(signal, self.0.clone()))
                .context("cannot listen for signals")?;
        }
        Ok(())
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
