//! Runs every target for a short time: with its seeds, with the files in `regressions`, and with random changes of both.
//!
//! The environment variable `QWEN3_EMBED_FUZZ_SECONDS` is the time for each target. The random numbers differ from run to
//! run. A failure prints the path of a file with the input.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, panic};

use qwen3_embed_fuzz::{TARGETS, Target};
use qwen3_embed_testing::mutate::mutated;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Seconds for each target, if the environment variable is not set.
const SECONDS: f64 = 0.5;

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let mut inputs = (target.seeds)();
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    for entry in fs::read_dir(regressions).into_iter().flatten() {
        inputs.push(fs::read(entry.unwrap().path()).unwrap());
    }
    inputs.iter().for_each(|input| check(target, input));
    let seconds = env::var("QWEN3_EMBED_FUZZ_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    let (start, mut n_checked) = (Instant::now(), 0);
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        check(target, &mutated(&mut rng, &inputs));
        n_checked += 1;
    }
    eprintln!("{name}: {n_checked} inputs");
}

/// Checks one input. If it violates a property, writes it to a file.
fn check(target: &Target, input: &[u8]) {
    if let Err(failure) = panic::catch_unwind(|| (target.check)(input)) {
        let path = env::temp_dir().join(format!("qwen3-embed-fuzz-{}", target.name));
        fs::write(&path, input).unwrap();
        eprintln!("{}: the input is in {}", target.name, path.display());
        panic::resume_unwind(failure);
    }
}

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            run(stringify!($name));
        }
    )*};
}

tests!(config safetensors index gguf text rerank ragged sharing server);

#[test]
fn every_target_has_a_test() {
    let tests = include_str!("smoke.rs");
    let line = tests.lines().find(|line| line.starts_with("tests!(")).unwrap();
    for target in TARGETS {
        assert!(line.contains(target.name), "{}", target.name);
    }
}
