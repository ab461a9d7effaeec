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
/// Without options, all fixtures are compared with the golden files of transformers, in f32.
///
/// --model compares one checkpoint with the golden files that `fixtures/reference.py DIR FILE` has written. Without
/// --golden, it compares with the figures of the model cards, which only the published weights give. --reranker does the
/// same for scores, with golden files of `fixtures/rerank.py DIR FILE` or with published scores.
///
/// --oracle compares any of these checkpoints with another forward pass, on built-in texts and without Python.
///
/// On the CPU, a text's vector must not depend on the batch. On a CUDA device it may, within the tolerance.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a checkpoint, or a .gguf file
    #[arg(long, value_name = "PATH", group = "checkpoint")]
    model: Option<PathBuf>,
    /// Folder of a reranker, or a .gguf file
    #[arg(long, value_name = "PATH", group = "checkpoint", conflicts_with_all = ["bf16", "int8"])]
    reranker: Option<PathBuf>,
    /// Folder of the fixtures [default: the repository's]
    #[arg(long, value_name = "DIR", conflicts_with = "checkpoint")]
    fixtures: Option<PathBuf>,
    /// A golden file of the checkpoint. The option can be repeated
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    golden: Vec<PathBuf>,
    /// Compare with this forward pass instead of with golden files. The checkpoints must be folders with safetensors files
    #[arg(long, value_enum, value_name = "NAME", conflicts_with_all = ["golden", "bf16", "int8"])]
    oracle: Option<OracleName>,
    /// The largest allowed difference between components of unit vectors, or between scores
    #[arg(long, value_name = "X", default_value_t = 1e-5)]
    tolerance: f64,
    /// The device of the models: cpu, cuda, or cuda:N for the CUDA device with that number
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
    /// Compare bf16 matrix multiplications with transformers' bf16. CPUs without bf16 instructions emulate them
    #[arg(long, conflicts_with = "tolerance")]
    bf16: bool,
    /// Compare matrix multiplications with weights in 8 bits. Every cosine must be at least 0.998
    #[arg(long, conflicts_with_all = ["tolerance", "bf16"])]
    int8: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OracleName {
    /// The layers of candle-nn, in f32 on the CPU
    Candle,
}

/// The cosines between the queries and the documents of a model card.
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
            "--int8 needs `--device cpu`, because weights in 8 bits are converted to bf16 on a device"
        );
        return pairs.iter().try_for_each(|(dir, golden)| compare_int8(dir, golden));
    }
    compare_all(&pairs, args.device, args.tolerance)?;
    match &args.model {
        None => rerank_parity::fixtures(&folder, args.device, args.tolerance),
        Some(_) => Ok(()),
    }
}

/// Compares every fixture with its golden file and with candle-nn, on the CPU.
pub(crate) fn fixtures(tolerance: f64) -> Result<()> {
    let folder = root().join("fixtures");
    compare_all(&fixture_files(&folder)?, Device::Cpu, tolerance)?;
    rerank_parity::fixtures(&folder, Device::Cpu, tolerance)?;
    oracle_parity::fixtures(&folder, Device::Cpu, tolerance)
}

fn compare_all(pairs: &[(PathBuf, PathBuf)], device: Device, tolerance: f64) -> Result<()> {
    heading();
    pairs.iter().try_for_each(|(dir, golden)| compare(dir, golden, device, tolerance))
}

/// The checkpoint (a folder or a GGUF file) and the golden file of each fixture.
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
    println!("largest difference of a component of a unit vector, and smallest cosine\n");
    println!(
        "{:<18} {:>5} {:>8} {:>10} {:>10} {:>12} {:>10}  one by one and reversed",
        "checkpoint", "texts", "tokens", "golden", "f64 truth", "1 - cosine", "per layer"
    );
}

/// Compares a checkpoint with a golden file in f32, prints a line, and fails beyond the tolerance.
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
    ensure!(worst <= tolerance, "{name}: {worst:e} from {}", golden.source);
    ensure!(truth.unwrap_or(0.0) <= tolerance, "{name}: {truth:?} from the f64 truth");
    // Hidden states are not normalized, so their difference is relative to the largest value.
    ensure!(layers.unwrap_or(0.0) <= tolerance, "{name}: {layers:?} in a layer");
    ensure!(invariant, "{name}: a text's vector depends on the batch");
    Ok(())
}

/// Compares a checkpoint in bf16 with transformers in f32 and prints a line. Fails if the mean error is more than twice that
/// of transformers in bf16, or if a cosine is below 0.9995.
fn compare_bf16(dir: &Path, golden: &Path, device: Device) -> Result<()> {
    let golden: Vectors = golden::read(golden)?;
    let name = checkpoint_name(dir);
    let theirs = golden.transformers_bf16_errors.as_deref();
    let theirs = theirs.context("a golden file with bf16 errors")?;
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
    ensure!(mean <= 2.0 * their_mean, "{name}: more than twice as far off as transformers");
    ensure!(worst <= 5e-4, "{name}: a cosine of {}", 1.0 - worst);
    Ok(())
}

/// Compares weights in 8 bits, with activations in 16 bits and in 8 bits where they fit, with transformers in f32. Prints a
/// line for each, and fails if a cosine is below 0.998.
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
        ensure!(worst <= 2e-3, "{name}, {arithmetic:?}: a cosine of {}", 1.0 - worst);
    }
    Ok(())
}

fn mean_and_worst(errors: &[f64]) -> (f64, f64) {
    (mean(errors), max_abs(errors))
}

/// 1 − cosine between the golden vectors and a model's, for every input.
fn errors(golden: &Vectors, model: &Model) -> Result<Vec<f64>> {
    let tokens = golden.tokens.as_deref().context("a golden file with tokens")?;
    let rows = model.forward(tokens)?;
    let rows = rows.chunks_exact(model.config().hidden_size);
    Ok(rows.zip(&golden.embeddings).map(|(row, expected)| 1.0 - cosine(row, expected)).collect())
}

/// The tokens of each input. Texts are tokenized here, and their tokens must be those of the golden file.
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
            ensure!(ours == given, "text {i}: tokens {ours:?}, expected {given:?}");
        }
        inputs.push(ours);
    }
    ensure!(inputs.len() == golden.embeddings.len(), "as many inputs as embeddings");
    Ok(inputs)
}

/// The largest difference in any layer, relative to that layer's largest value.
fn layer_difference(model: &Model, tokens: &[Vec<u32>], expected: &HiddenStates) -> Result<f64> {
    let mut layers: Vec<Vec<f32>> = Vec::new();
    model.forward_traced(&tokens[expected.text..=expected.text], &mut |_, x| {
        layers.push(x.to_vec());
    })?;
    ensure!(layers.len() == expected.layers.len(), "{} layers were traced", layers.len());
    let mut worst = 0f64;
    // transformers gives the output of its last layer after the final norm. It is compared as the embedding.
    for (ours, expected) in layers.iter().zip(&expected.layers).take(layers.len() - 1) {
        let expected: Vec<f64> = expected.iter().flatten().copied().collect();
        worst = worst.max(max_difference(ours, &expected) / max_abs(&expected));
    }
    Ok(worst)
}

/// The normalized hidden states of last tokens. Golden files have these, whatever the pooling of the model is.
fn vectors(model: &Model, tokens: &[Vec<u32>]) -> Result<Embeddings> {
    let (mut values, dim) = (model.forward(tokens)?, model.embedding_size());
    values.chunks_exact_mut(dim).for_each(normalize);
    Ok(Embeddings::new(values, dim)?)
}

/// The largest difference between the vectors of a batch and those of each text alone or of the reversed batch.
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
        bail!("no published figures for a hidden size of {hidden_size}");
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
        "a cosine differs by {worst}, the tolerance is {}",
        card.tolerance
    );
    Ok(())
}
