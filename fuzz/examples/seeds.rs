//! Writes the seeds of every target to `fuzz/corpus`, where `cargo fuzz` looks for inputs to begin with.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed_fuzz::TARGETS;

fn main() {
    for target in TARGETS {
        let folder = format!("corpus/fuzz-{}", target.name);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        fs::create_dir_all(&folder).unwrap();
        for (i, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{i}")), seed).unwrap();
        }
    }
}
