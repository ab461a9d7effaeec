//! `qwen3-embed bench --kernels`: the speed of each kernel.

use std::io::{self, Write};

use anyhow::Result;
use qwen3_embed::measure::{Heads, Kernel, LayerShapes, Measurement, measure_layer};
use qwen3_embed::{Arithmetic, Kernels, Source};
use serde_json::{Value, json};

use super::machine;
use crate::download;

/// The model whose shapes are used if no model is named.
const DEFAULT: &str = "Qwen3-Embedding-0.6B";

/// The shapes of [`DEFAULT`].
const SHAPES: LayerShapes = LayerShapes {
    hidden_size: 1024,
    intermediate_size: 3072,
    heads: Heads { n_heads: 16, n_kv_heads: 8, head_dim: 128 },
};

/// Measures the kernels, and prints a table or a JSON object.
pub(super) fn run(model: Option<&str>, json: bool) -> Result<()> {
    let kernels = Kernels::chosen()?;
    let (model, shapes) = shapes(model)?;
    let measurements = measure_layer(shapes)?;
    let mut output = io::stdout().lock();
    if json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": machine::cpu(),
            "instruction_sets": machine::instruction_sets(),
            "kernels": kernels.name,
            "threads": 1,
            "model": model,
            "hidden_size": shapes.hidden_size,
            "intermediate_size": shapes.intermediate_size,
            "query_heads": shapes.heads.n_heads,
            "key_value_heads": shapes.heads.n_kv_heads,
            "head_dim": shapes.heads.head_dim,
            "results": measurements.map(|measured| result(&measured)).collect::<Vec<Value>>(),
        });
        return Ok(writeln!(output, "{report}")?);
    }
    write_header(&mut output, kernels, model, shapes)?;
    let mut section = "";
    for measured in measurements {
        let titles = titles(measured.kernel);
        if section != titles[0] {
            section = titles[0];
            write_titles(&mut output, titles, &measured)?;
        }
        write_line(&mut output, &measured)?;
    }
    Ok(())
}

/// The name of a model, and the shapes of its layers.
pub(super) fn shapes(model: Option<&str>) -> Result<(&str, LayerShapes)> {
    let Some(model) = model else { return Ok((DEFAULT, SHAPES)) };
    let config = Source::from(model).info_from(&download::hub())?.summary.config;
    let shapes = LayerShapes {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        heads: Heads {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        },
    };
    Ok((model, shapes))
}

/// One of the `results` in JSON.
fn result(measured: &Measurement) -> Value {
    let mut result = match measured.kernel {
        Kernel::Linear { format, layer, n_out, n_in } => json!({
            "kernel": "linear", "weights": format.weights(), "activations": format.activations(),
            "layer": layer, "n_out": n_out, "n_in": n_in,
        }),
        Kernel::Attention { arithmetic, .. } => {
            json!({ "kernel": "attention", "precision": precision(arithmetic) })
        }
        Kernel::Quantize { format, n_in } => {
            json!({ "kernel": "quantize", "activations": format.activations(), "n_in": n_in })
        }
        Kernel::RmsNorm { .. } => json!({ "kernel": "rms_norm" }),
        Kernel::QkNormRope { .. } => json!({ "kernel": "qk_norm_rope" }),
    };
    let rates = measured.rates.map(|(n, rate)| match measured.peak {
        Some(peak) => json!({ "rows": n, "operations_per_s": rate, "peak_share": rate / peak }),
        None => json!({ "rows": n, "values_per_s": rate }),
    });
    result["peak_operations_per_s"] = measured.peak.into();
    result["rates"] = rates.to_vec().into();
    result
}

/// Writes the lines about the machine and the shapes.
fn write_header(
    output: &mut impl Write,
    kernels: &Kernels,
    model: &str,
    shapes: LayerShapes,
) -> io::Result<()> {
    let int8 = if kernels.int8_weights == Arithmetic::Bytes { "8" } else { "16" };
    let rows = [
        ("program", format!("qwen3-embed {}, one thread", env!("CARGO_PKG_VERSION"))),
        ("CPU", machine::cpu()),
        ("instructions", machine::instruction_sets().join(" ")),
        (
            "kernel set",
            format!(
                "{}: bf16 weights are multiplied in {}, 8-bit weights with {int8}-bit activations",
                kernels.name,
                precision(kernels.bf16_weights)
            ),
        ),
        ("shapes", shapes_line(model, shapes)),
    ];
    for (name, value) in rows {
        writeln!(output, "{name:14}{value}")?;
    }
    Ok(())
}

/// A line about the shapes of a model's layers.
pub(super) fn shapes_line(model: &str, shapes: LayerShapes) -> String {
    let LayerShapes { hidden_size, intermediate_size, heads } = shapes;
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    format!(
        "{model}: hidden size {hidden_size}, MLP {intermediate_size}, {n_heads} query and {n_kv_heads} key/value heads of \
         {head_dim}"
    )
}

/// The name of a floating-point arithmetic.
fn precision(arithmetic: Arithmetic) -> &'static str {
    if arithmetic == Arithmetic::Bf16 { "bf16" } else { "f32" }
}

/// The title of a kernel's section, of the operands in it, and of the numbers of rows.
fn titles(kernel: Kernel) -> [&'static str; 3] {
    match kernel {
        Kernel::Linear { .. } => [
            "matrix multiplications, GOP/s and share of the peak",
            "weights  activations     layer",
            "rows",
        ],
        Kernel::Attention { .. } => ["causal attention, GOP/s and share of the peak", "", "tokens"],
        Kernel::Quantize { .. } | Kernel::RmsNorm { .. } | Kernel::QkNormRope { .. } => {
            ["operations on rows, 10⁹ values/s", "", "rows"]
        }
    }
}

/// Writes the titles of a section and of its columns.
fn write_titles(
    output: &mut impl Write,
    [section, operands, rows]: [&str; 3],
    measured: &Measurement,
) -> io::Result<()> {
    let peak = if measured.peak.is_some() { "peak" } else { "" };
    writeln!(output, "\n{section}")?;
    write!(output, "{operands:OPERANDS$}{peak:>8}")?;
    for (n, _) in measured.rates {
        let rows = if n == 1 { rows.trim_end_matches('s') } else { rows };
        write!(output, "{:>17}", format!("{n} {rows}"))?;
    }
    writeln!(output)
}

/// The width of the column for the operands of a kernel.
const OPERANDS: usize = 50;

/// Writes the line of a kernel.
fn write_line(output: &mut impl Write, measured: &Measurement) -> io::Result<()> {
    let operands = match measured.kernel {
        Kernel::Linear { format, layer, n_out, n_in } => {
            let (weights, activations) = (format.weights(), format.activations());
            format!("{weights:9}{activations:16}{layer:13}{:>11}", format!("{n_out}×{n_in}"))
        }
        Kernel::Attention { arithmetic, .. } => precision(arithmetic).to_owned(),
        Kernel::Quantize { format, n_in } => {
            format!("quantize {n_in} values to {}", format.activations())
        }
        Kernel::RmsNorm { .. } => "RMSNorm".to_owned(),
        Kernel::QkNormRope { .. } => "RMSNorm and RoPE of queries and keys".to_owned(),
    };
    let peak = measured.peak.map_or(String::new(), |peak| format!("{:.1}", peak / 1e9));
    write!(output, "{operands:OPERANDS$}{peak:>8}")?;
    for (_, rate) in measured.rates {
        match measured.peak {
            Some(peak) => write!(output, "{:>10.2}{:>6.1}%", rate / 1e9, 100.0 * rate / peak)?,
            None => write!(output, "{:>17.2}", rate / 1e9)?,
        }
    }
    writeln!(output)
}
