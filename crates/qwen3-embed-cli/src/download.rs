use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use anyhow::Result;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use qwen3_embed::{Hub, Source};

/// Download a model from the Hugging Face Hub to the cache, and print the path of the model
///
/// Files that are in the cache are not downloaded again. An interrupted download is resumed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Id of the model: OWNER/NAME, optionally with @REVISION, or OWNER/NAME:Q8_0 for a GGUF file
    #[arg(value_name = "ID")]
    model: String,
}

/// Runs `qwen3-embed download`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let local = Source::from(&args.model).download(&hub())?;
    writeln!(io::stdout(), "{local}")?;
    Ok(())
}

/// The hub with the settings of the environment. For each file that is downloaded, a progress bar is shown, or a line
/// is printed if standard error is not a terminal.
pub(crate) fn hub() -> Hub {
    let hub = Hub::from_env();
    if !io::stderr().is_terminal() {
        return hub.on_download(|file| {
            if file.done == file.total {
                eprintln!("downloaded {}, {}", file.name, HumanBytes(file.total));
            }
        });
    }
    let bars = MultiProgress::new();
    let by_name = Mutex::new(HashMap::<String, ProgressBar>::new());
    hub.on_download(move |file| {
        let Ok(mut by_name) = by_name.lock() else { return };
        let bar = by_name.entry(file.name.to_owned()).or_insert_with(|| {
            // The bytes of an earlier, interrupted download must not count for the speed of this download.
            let bar = ProgressBar::new(file.total).with_position(file.done);
            bar.reset_eta();
            bars.add(bar.with_style(style()).with_message(file.name.to_owned()))
        });
        bar.set_position(file.done);
        if file.done == file.total {
            bar.finish();
        }
    })
}

fn style() -> ProgressStyle {
    let template =
        "{msg:40!} {bar:25} {bytes:>10} of {total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
