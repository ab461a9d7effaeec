use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use qwen3_embed::{Device, Precision, Reranker, ScoreOptions};
use qwen3_embed_testing::golden::{self, Scores};

use crate::fixtures;

/// Published scores of Qwen3-Reranker-0.6B for one query, and their tolerances. The precision in which the scores were
/// computed is unknown.
const PUBLISHED: [(&str, f64, f64); 3] = [
    ("法国的首都是巴黎。", 0.79819, 0.01),
    ("德国的首都是柏林。", 2.034e-4, 1e-4),
    ("香蕉是黄色的水果。", 4.638e-6, 1e-5),
];

const PUBLISHED_QUERY: &str = "法国首都是哪里？";

const PUBLISHED_INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query.";

/// Compares all rerankers among the fixtures with their golden files.
pub(crate) fn fixtures(fixtures: &Path, device: Device, tolerance: f64) -> Result<()> {
    println!("\n{:<18} {:>5} {:>10} {:>10}", "reranker", "pairs", "scores", "logits");
    let folder = fixtures.join("rerankers");
    let mut rerankers: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    rerankers.sort();
    ensure!(!rerankers.is_empty(), "{} has no rerankers", folder.display());
    rerankers.iter().try_for_each(|dir| {
        let gguf = dir.join("model.gguf");
        let model = if gguf.is_file() { &gguf } else { dir };
        compare(model, &dir.join("golden.json"), device, tolerance)
    })
}

/// Compares a reranker in f32 with a golden file of `fixtures/rerank.py`, and prints a line. Fails if a score differs
/// by more than the tolerance.
pub(crate) fn compare(model: &Path, golden: &Path, device: Device, tolerance: f64) -> Result<()> {
    let golden: Scores = golden::read(golden)?;
    let reranker = Reranker::builder(model).precision(Precision::F32).device(device).build()?;
    let mut worst = [0f64; 2];
    for case in &golden.cases {
        let mut options = ScoreOptions::new().max_tokens(case.max_tokens);
        options.instruction.clone_from(&case.instruction);
        let ranked = reranker.rank_with(&case.query, &[&case.document], &options)?;
        for document in ranked {
            worst[0] = worst[0].max((f64::from(document.score) - case.score).abs());
            worst[1] = worst[1].max((f64::from(document.logit) - case.logit).abs());
        }
    }
    let name = fixtures::checkpoint_name(model);
    println!("{name:<18} {:>5} {:>10.1e} {:>10.1e}", golden.cases.len(), worst[0], worst[1]);
    ensure!(
        worst[0] <= tolerance,
        "{name}: a score differs by {:e} from {}",
        worst[0],
        golden.source
    );
    Ok(())
}

/// Compares Qwen3-Reranker-0.6B with published scores.
pub(crate) fn published(model: &Path, device: Device) -> Result<()> {
    let reranker = Reranker::builder(model).precision(Precision::F32).device(device).build()?;
    let options = ScoreOptions::new().instruction(PUBLISHED_INSTRUCTION);
    for (document, expected, tolerance) in PUBLISHED {
        let ranked = reranker.rank_with(PUBLISHED_QUERY, &[document], &options)?;
        let score = f64::from(ranked[0].score);
        println!("{document}: expected {expected:.4e}, got {score:.4e}");
        ensure!(
            (score - expected).abs() <= tolerance,
            "{document}: the score differs by more than {tolerance}"
        );
    }
    Ok(())
}
