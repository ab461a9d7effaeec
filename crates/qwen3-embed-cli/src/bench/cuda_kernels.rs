//! `qwen3-embed bench --kernels --device cuda`: the speed of each kernel on a CUDA device.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::{Result, ensure};
use qwen3_embed::Arithmetic;
use qwen3_embed::measure::{CudaBench, CudaMeasurement, CudaPeaks};
use serde_json::{Value, json};

use super::kernels::{shapes, shapes_line};
use super::machine;

/// Measures the kernels, and prints a table or a JSON object.
pub(super) fn run(ordinal: usize, model: Option<&str>, json: bool) -> Result<()> {
    let (model, shapes) = shapes(model)?;
    let bench = CudaBench::open(ordinal)?;
    let (name, peaks) = (bench.name()?, bench.peaks(Arithmetic::Bf16)?);
    // An error hides no other kernel.
    let mut n_failed = 0;
    let measurements =
        bench.layer(shapes).inspect(|measured| n_failed += usize::from(measured.is_err()));
    let mut output = io::stdout().lock();
    if json {
        let results: Vec<Value> = measurements.map(result).collect();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": name,
            "model": model,
            "peak_operations_per_s": peaks.operations_per_s,
            "peak_bytes_per_s": peaks.bytes_per_s,
            "results": results,
        });
        writeln!(output, "{report}")?;
    } else {
        writeln!(output, "{}, bf16", machine::cuda_summary(&name, peaks))?;
        writeln!(output, "{}\n", shapes_line(model, shapes))?;
        writeln!(
            output,
            "{:<24} {:>8} {:>11} {:>9} {:>8} {:>8} {:>12}",
            "kernel", "texts", "time", "TFLOP/s", "of peak", "GB/s", "of bandwidth"
        )?;
        for measured in measurements {
            match measured {
                Ok(measured) => writeln!(output, "{}", line(&measured, peaks))?,
                Err(error) => writeln!(output, "error: {error}")?,
            }
        }
    }
    ensure!(n_failed == 0, "{n_failed} kernels could not be measured");
    Ok(())
}

/// One of the `results` in JSON.
fn result(measured: Result<CudaMeasurement, impl Display>) -> Value {
    let measured = match measured {
        Ok(measured) => measured,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    json!({
        "kernel": measured.kernel,
        "shape": shape(&measured),
        "seconds": measured.seconds,
        "operations": measured.n_operations,
        "bytes": measured.n_bytes,
        "recorded": measured.is_recorded,
    })
}

/// A line of the table.
fn line(measured: &CudaMeasurement, peaks: CudaPeaks) -> String {
    let CudaMeasurement { kernel, seconds, n_operations, n_bytes, .. } = measured;
    let operations = match n_operations / seconds {
        0.0 => format!("{:>9} {:>8}", "-", "-"),
        rate => format!("{:>9.1} {:>7.1}%", rate / 1e12, 100.0 * rate / peaks.operations_per_s),
    };
    let rate = n_bytes / seconds;
    // Such a time may be that of the host.
    let note = if measured.is_recorded { "" } else { " (not recorded)" };
    format!(
        "{kernel:<24} {:>8} {:>8.1} µs {operations} {:>8.0} {:>11.1}%{note}",
        shape(measured),
        1e6 * seconds,
        rate / 1e9,
        100.0 * rate / peaks.bytes_per_s,
    )
}

/// The texts of a batch.
fn shape(measured: &CudaMeasurement) -> String {
    format!("{}x{}", measured.n_texts, measured.n_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_show_rates_and_their_shares_of_the_peaks() {
        let peaks = CudaPeaks { operations_per_s: 800e12, bytes_per_s: 4e12 };
        let product = CudaMeasurement {
            kernel: "down_proj",
            n_texts: 8,
            n_tokens: 512,
            seconds: 50e-6,
            n_operations: 3e10,
            n_bytes: 1e8,
            is_recorded: true,
        };
        let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(line(&product, peaks)),
            ["down_proj", "8x512", "50.0", "µs", "600.0", "75.0%", "2000", "50.0%"]
        );
        let norm = CudaMeasurement { kernel: "rms_norm", n_operations: 0.0, ..product };
        assert_eq!(
            words(line(&norm, peaks)),
            ["rms_norm", "8x512", "50.0", "µs", "-", "-", "2000", "50.0%"]
        );
    }
}
