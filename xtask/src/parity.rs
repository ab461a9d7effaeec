use std::fs;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use qwen3_embed::{Embedder, Embeddings, normalize};
use qwen3_embed_model::{Arithmetic, Checkpoint, Device, LoadOptions, Model, Precision};
use qwen3_embed_testing::golden::{self, HiddenStates, Vectors};
use qwen3_embed_testing::vectors::{cosine, max_abs, max_difference, mean, unit};
use serde::Deserialize;

use crate::fixtures::checkpoint_name;
use crate::workspace::root;
use crate::{oracle_parity, rerank_parity};

/// Compare embeddings and rerank scores with other implementations
///
/// Without options, all fixtures are compared in f32 with golden files, which transformers has computed.
///
/// With --model and --golden, one embedding model is compared with golden files that `fixtures/reference.py DIR FILE`
/// has written. With --model alone, the model must be a published one, and is compared with the similarities on its
/// model card.
///
/// --reranker is the same for a reranker and its scores. `fixtures/rerank.py DIR FILE` writes its golden files. Without
/// --golden, the reranker must be Qwen3-Reranker-0.6B, and is compared with published scores.
///
/// With --oracle, the checkpoints are compared with another forward pass instead, on built-in texts.
///
/// The vector of a text must not depend on the other texts of its batch. On a CUDA device, it may differ by the
/// tolerance.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of an embedding model, or a .gguf file
    #[arg(long, value_name = "PATH", group = "checkpoint")]
    model: Option<PathBuf>,
    /// Folder of a reranker, or a .gguf file
    #[arg(long, value_name = "PATH", group = "checkpoint", conflicts_with_all = ["bf16", "int8"])]
    reranker: Option<PathBuf>,
    /// Folder of the fixtures [default: the repository's]
    #[arg(long, value_name = "DIR", conflicts_with = "checkpoint")]
    fixtures: Option<PathBuf>,
    /// A golden file of the checkpoint. This option can be repeated
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    golden: Vec<PathBuf>,
    /// Compare with another forward pass instead of with golden files. Only folders with safetensors files can be
    /// compared
    #[arg(long, value_enum, value_name = "NAME", conflicts_with_all = ["golden", "bf16", "int8"])]
    oracle: Option<OracleName>,
    /// The largest allowed difference between components of unit vectors, or between scores
    #[arg(long, value_name = "X", default_value_t = 1e-5)]
    tolerance: f64,
    /// The device of the models: cpu, cuda, or cuda:N for the CUDA device with the number N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
    /// Multiply matrices in bf16, and compare the errors with those of transformers in bf16. CPUs without bf16
    /// instructions emulate them
    #[arg(long, conflicts_with = "tolerance")]
    bf16: bool,
    /// Multiply matrices with weights in 8 bits. The cosine of every vector and its golden vector must be at least
    /// 0.998
    #[arg(long, conflicts_with_all = ["tolerance", "bf16"])]
    int8: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OracleName {
    /// The layers of candle-nn, in f32 on the CPU
    Candle,
}

/// The cosine similarities between the queries and the documents of a model card.
#[derive(Deserialize)]
struct Published {
    model: String,
    source: String,
    hidden_size: usize,
    tolerance: f32,
    scores: Vec<Vec<f32>>,
}

/// The model cards' queries.
const QUERIES: [&str; 2] = ["What is the capital of China?", "Explain gravity"];

/// The model cards' documents.
const DOCUMENTS: [&str; 2] = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical \
     objects and is responsible for the movement of planets around the sun.",
];

/// Runs `cargo xtask parity`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.fixtures.clone().unwrap_or_else(|| root().join("fixtures"));
    if let Some(OracleName::Candle) = args.oracle {
        let (device, tolerance) = (args.device, args.tolerance);
        return match (&args.model, &args.reranker) {
            (Some(dir), _) => oracle_parity::compare_model(dir, device, tolerance),
            (_, Some(dir)) => oracle_parity::compare_reranker(dir, device, tolerance),
            _ => oracle_parity::fixtures(&folder, device, tolerance),
        };
    }
    if let Some(dir) = &args.reranker {
        if args.golden.is_empty() {
            return rerank_parity::published(dir, args.device);
        }
        let compare =
            |golden: &PathBuf| rerank_parity::compare(dir, golden, args.device, args.tolerance);
        return args.golden.iter().try_for_each(compare);
    }
    let pairs = match &args.model {
        None => fixture_files(&folder)?,
        Some(dir) if args.golden.is_empty() => return published(dir, args.device),
        Some(dir) => args.golden.iter().map(|golden| (dir.clone(), golden.clone())).collect(),
    };
    if args.bf16 {
        return pairs.iter().try_for_each(|(dir, golden)| compare_bf16(dir, golden, args.device));
    }
    if args.int8 {
        ensure!(
            args.device == Device::Cpu,
            "`--int8` needs `--device cpu`, because weights in 8 bits are converted to bf16 on a CUDA device"
        );
        return pairs.iter().try_for_each(|(dir, golden)| compare_int8(dir, golden));
    }
    compare_all(&pairs, args.device, args.tolerance)?;
    match &args.model {
        None => rerank_parity::fixtures(&folder, args.device, args.tolerance),
        Some(_) => Ok(()),
    }
}

/// Compares every fixture and the bundled model with their golden files, and the fixtures with candle-nn, on the CPU.
pub(crate) fn fixtures(tolerance: f64) -> Result<()> {
    let folder = root().join("fixtures");
    let mut pairs = fixture_files(&folder)?;
    pairs.push((root().join("crates/qwen3-embed-demo/model"), folder.join("demo.json")));
    compare_all(&pairs, Device::Cpu, tolerance)?;
    rerank_parity::fixtures(&folder, Device::Cpu, tolerance)?;
    oracle_parity::fixtures(&folder, Device::Cpu, tolerance)
}

fn compare_all(pairs: &[(PathBuf, PathBuf)], device: Device, tolerance: f64) -> Result<()> {
    heading();
    pairs.iter().try_for_each(|(dir, golden)| compare(dir, golden, device, tolerance))
}

/// The checkpoint of each fixture, which is a folder or a GGUF file, and its golden file.
fn fixture_files(fixtures: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let folder = fixtures.join("models");
    let mut models: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    models.sort();
    ensure!(!models.is_empty(), "{} has no models", folder.display());
    let files = models.into_iter().map(|dir| {
        let gguf = dir.join("model.gguf");
        let golden = dir.join("golden.json");
        (if gguf.is_file() { gguf } else { dir }, golden)
    });
    Ok(files.collect())
}

fn heading() {
    println!("largest difference between components of unit vectors, and 1 - smallest cosine\n");
    println!(
        "{:<18} {:>5} {:>8} {:>10} {:>10} {:>12} {:>10}  alone or in another order",
        "checkpoint", "texts", "tokens", "golden", "f64 golden", "1 - cosine", "per layer"
    );
}

/// Compares a checkpoint in f32 with a golden file, and prints a line. Fails if a difference is larger than the
/// tolerance.
fn compare(dir: &Path, golden: &Path, device: Device, tolerance: f64) -> Result<()> {
    let golden: Vectors = golden::read(golden)?;
    let name = checkpoint_name(dir);
    let embedder = Embedder::builder(dir).device(device).build()?;
    let tokens = inputs(&golden, &embedder).with_context(|| name.clone())?;
    drop(embedder);
    let options = LoadOptions {
        device,
        precision: Precision::F32,
        hidden_states: true,
        ..LoadOptions::default()
    };
    let model = Model::load_with(&Checkpoint::open(dir)?, &options)?;
    let ours = vectors(&model, &tokens)?;

    let (mut worst, mut worst_cosine) = (0f64, 1f64);
    for (row, expected) in ours.iter().zip(&golden.embeddings) {
        worst = worst.max(max_difference(row, &unit(expected)));
        worst_cosine = worst_cosine.min(cosine(row, expected));
    }
    let mut truth = None;
    for (row, expected) in ours.iter().zip(golden.unit_f64.iter().flatten()) {
        let difference = max_difference(row, expected);
        truth = Some(truth.unwrap_or(0f64).max(difference));
    }
    let layers = golden.hidden_states.as_ref().map(|h| layer_difference(&model, &tokens, h));
    let layers = layers.transpose()?;
    let change = largest_change(&model, &tokens, &ours)?;
    let (allowed, same) = match device {
        Device::Cpu => (0.0, "bit for bit the same".to_owned()),
        _ => (tolerance, format!("{change:.1e}")),
    };
    let invariant = change <= allowed;
    let column = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1e}"));
    println!(
        "{name:<18} {:>5} {:>8} {worst:>10.1e} {:>10} {:>12.1e} {:>10}  {}",
        tokens.len(),
        tokens.iter().map(Vec::len).sum::<usize>(),
        column(truth),
        1.0 - worst_cosine,
        column(layers),
        if invariant { &same } else { "DIFFERENT" },
    );
    ensure!(worst <= tolerance, "{name}: the difference from {} is {worst:e}", golden.source);
    ensure!(
        truth.unwrap_or(0.0) <= tolerance,
        "{name}: the difference from the golden vectors in f64 is {truth:?}"
    );
    // Hidden states are not normalized, so the difference is relative to the largest value of the layer.
    ensure!(layers.unwrap_or(0.0) <= tolerance, "{name}: the difference in a layer is {layers:?}");
    ensure!(invariant, "{name}: the vector of a text depends on its batch");
    Ok(())
}

/// Compares a checkpoint in bf16 with transformers in f32, and prints a line. Fails if the mean error is more than
/// twice the mean error of transformers in bf16, or if a cosine is below 0.9995.
fn compare_bf16(dir: &Path, golden: &Path, device: Device) -> Result<()> {
    let golden: Vectors = golden::read(golden)?;
    let name = checkpoint_name(dir);
    let theirs = golden.transformers_bf16_errors.as_deref();
    let theirs = theirs.context("the golden file has no `transformers_bf16_errors`")?;
    let options = LoadOptions::multiplying(Precision::Bf16, Arithmetic::Bf16);
    let model = Model::load_with(
        &Checkpoint::open(dir)?,
        &LoadOptions { device, hidden_states: true, ..options },
    )?;
    let (mean, worst) = mean_and_worst(&errors(&golden, &model)?);
    let (their_mean, their_worst) = mean_and_worst(theirs);
    println!(
        "{name:<18} 1 - cosine: mean {mean:.1e}, worst {worst:.1e}; \
         transformers' bf16: mean {their_mean:.1e}, worst {their_worst:.1e}"
    );
    ensure!(
        mean <= 2.0 * their_mean,
        "{name}: the mean error is more than twice that of transformers in bf16"
    );
    ensure!(worst <= 5e-4, "{name}: a cosine is {}; expected at least 0.9995", 1.0 - worst);
    Ok(())
}

/// Compares a checkpoint whose weights have 8 bits with transformers in f32, once for each of two arithmetics:
/// activations in 16 bits, and activations in 8 bits where possible. Prints a line for each arithmetic. Fails if a
/// cosine is below 0.998.
fn compare_int8(dir: &Path, golden: &Path) -> Result<()> {
    let golden: Vectors = golden::read(golden)?;
    let name = checkpoint_name(dir);
    for arithmetic in [Arithmetic::Int8, Arithmetic::Bytes] {
        let options = LoadOptions::multiplying(Precision::Int8, arithmetic);
        let model = Model::load_with(
            &Checkpoint::open(dir)?,
            &LoadOptions { hidden_states: true, ..options },
        )?;
        let (mean, worst) = mean_and_worst(&errors(&golden, &model)?);
        println!("{name:<18} {arithmetic:<6?} 1 - cosine: mean {mean:.1e}, worst {worst:.1e}");
        ensure!(
            worst <= 2e-3,
            "{name}, {arithmetic:?}: a cosine is {}; expected at least 0.998",
            1.0 - worst
        );
    }
    Ok(())
}

fn mean_and_worst(errors: &[f64]) -> (f64, f64) {
    (mean(errors), max_abs(errors))
}

/// 1 − cosine between the golden vector and the model's vector, for every input.
fn errors(golden: &Vectors, model: &Model) -> Result<Vec<f64>> {
    let tokens = golden.tokens.as_deref().context("the golden file has no `tokens`")?;
    let rows = model.forward(tokens)?;
    let rows = rows.chunks_exact(model.config().hidden_size);
    Ok(rows.zip(&golden.embeddings).map(|(row, expected)| 1.0 - cosine(row, expected)).collect())
}

/// The tokens of each input. Texts are tokenized, and their tokens must be equal to those of the golden file.
fn inputs(golden: &Vectors, embedder: &Embedder) -> Result<Vec<Vec<u32>>> {
    let mut inputs = Vec::with_capacity(golden.texts.len());
    for (i, text) in golden.texts.iter().enumerate() {
        let given = golden.tokens.as_ref().map(|tokens| tokens[i].clone());
        let ours = match text {
            Some(text) => embedder.tokenize(&[text])?.pop(),
            None => given.clone(),
        };
        let ours = ours.with_context(|| format!("input {i} has neither text nor tokens"))?;
        if let Some(given) = given {
            ensure!(ours == given, "text {i}: expected the tokens {given:?}, got {ours:?}");
        }
        inputs.push(ours);
    }
    ensure!(
        inputs.len() == golden.embeddings.len(),
        "the golden file has {} inputs and {} embeddings",
        inputs.len(),
        golden.embeddings.len()
    );
    Ok(inputs)
}

/// The largest difference in any layer, relative to that layer's largest value.
fn layer_difference(model: &Model, tokens: &[Vec<u32>], expected: &HiddenStates) -> Result<f64> {
    let mut layers: Vec<Vec<f32>> = Vec::new();
    model.forward_traced(&tokens[expected.text..=expected.text], &mut |_, x| {
        layers.push(x.to_vec());
    })?;
    ensure!(
        layers.len() == expected.layers.len(),
        "expected {} traced layers, got {}",
        expected.layers.len(),
        layers.len()
    );
    let mut worst = 0f64;
    // The last layer is left out, because transformers returns its output after the final norm. The comparison of the
    // embeddings covers this output.
    for (ours, expected) in layers.iter().zip(&expected.layers).take(layers.len() - 1) {
        let expected: Vec<f64> = expected.iter().flatten().copied().collect();
        worst = worst.max(max_difference(ours, &expected) / max_abs(&expected));
    }
    Ok(worst)
}

/// The normalized hidden states of the last tokens. Golden files contain these vectors for every model, even if its
/// pooling is not last-token pooling.
fn vectors(model: &Model, tokens: &[Vec<u32>]) -> Result<Embeddings> {
    let (mut values, dim) = (model.forward(tokens)?, model.embedding_size());
    values.chunks_exact_mut(dim).for_each(normalize);
    Ok(Embeddings::new(values, dim)?)
}

/// The largest difference between the vectors of a batch and the vectors of the same texts when each text is alone, or
/// when the batch has the reverse order.
fn largest_change(model: &Model, tokens: &[Vec<u32>], batch: &Embeddings) -> Result<f64> {
    let mut reversed = tokens.to_vec();
    reversed.reverse();
    let reversed = vectors(model, &reversed)?;
    let mut largest = 0f64;
    for (i, text) in tokens.iter().enumerate() {
        let alone = vectors(model, slice::from_ref(text))?;
        for row in [alone.row(0), reversed.row(tokens.len() - 1 - i)] {
            largest = largest.max(max_difference(row, batch.row(i)));
        }
    }
    Ok(largest)
}

/// Compares a checkpoint with the cosines of the model card for its size.
fn published(dir: &Path, device: Device) -> Result<()> {
    let embedder = Embedder::builder(dir).precision(Precision::F32).device(device).build()?;
    let hidden_size = embedder.config().hidden_size;
    let cards = root().join("fixtures/published.json");
    let cards: Vec<Published> = serde_json::from_slice(&fs::read(cards)?)?;
    let Some(card) = cards.iter().find(|card| card.hidden_size == hidden_size) else {
        bail!(
            "fixtures/published.json has no similarities for a model with hidden size {hidden_size}"
        );
    };
    println!("{}: {}", card.model, card.source);
    let queries = embedder.embed_queries(&QUERIES)?;
    let scores = queries.similarity(&embedder.embed_documents(&DOCUMENTS)?)?;
    let mut worst = 0f32;
    for (i, expected) in card.scores.iter().enumerate() {
        println!("expected {expected:.4?}, got {:.4?}", scores.row(i));
        for (expected, got) in expected.iter().zip(scores.row(i)) {
            worst = worst.max((expected - got).abs());
        }
    }
    ensure!(
        worst <= card.tolerance,
        "a cosine differs by {worst}; expected at most {}",
        card.tolerance
    );
    Ok(())
}
