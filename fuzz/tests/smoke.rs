//! Runs every target for a short time: with its seeds, with the files in `regressions`, and with random changes of both
//! and of its corpus. The corpora are what is left of 20 minutes of fuzzing after `-merge=1`, which keeps the inputs that
//! run other code than the rest.
//!
//! The environment variable `QWEN3_EMBED_FUZZ_SECONDS` is the time for each target. The random numbers differ from run to
//! run. A failure prints the path of a file with the input.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, io, panic};

use flate2::read::GzDecoder;
use qwen3_embed_fuzz::{TARGETS, Target};
use qwen3_embed_testing::mutate::mutated;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tar::{Archive, Entry};

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
    inputs.extend(corpus(name));
    let seconds = env::var("QWEN3_EMBED_FUZZ_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    let (start, mut n_checked) = (Instant::now(), 0);
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        check(target, &mutated(&mut rng, &inputs));
        n_checked += 1;
    }
    eprintln!("{name}: {n_checked} inputs");
}

/// The inputs in the archive of a target.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpora/{name}.tar.gz"));
    let mut archive = Archive::new(GzDecoder::new(File::open(archive).unwrap()));
    let read = |entry: io::Result<Entry<'_, _>>| {
        let mut input = Vec::new();
        entry.unwrap().read_to_end(&mut input).unwrap();
        input
    };
    let corpus: Vec<_> = archive.entries().unwrap().map(read).collect();
    assert!(corpus.len() > 50, "{name}: {} inputs", corpus.len());
    corpus
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
