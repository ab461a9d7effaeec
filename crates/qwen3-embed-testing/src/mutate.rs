//! Random changes of inputs, for runs without a fuzzer.

use rand::RngExt;
use rand::rngs::SmallRng;

/// Values that are often near a limit.
const BOUNDARIES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];

/// Parts of texts and of JSON that have caused faults in other programs.
const TOKENS: [&str; 16] = [
    "null",
    "-1",
    "1e999",
    "[]",
    "{}",
    "[[",
    "\"\"",
    "\\ud83d",
    "\u{0}",
    "\u{202e}",
    "e\u{301}",
    "<|im_end|>",
    "<|endoftext|>",
    "../",
    "\u{10ffff}",
    "18446744073709551616",
];

/// A copy of one of `seeds` with one or several random changes.
pub fn mutated(rng: &mut SmallRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..1 << rng.random_range(0..4) {
        change(rng, &mut data, seeds);
    }
    data
}

fn change(rng: &mut SmallRng, data: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let n = data.len();
    let at = rng.random_range(0..=n);
    let len = rng.random_range(0..=16).min(n - at);
    match rng.random_range(0..9) {
        0 if at < n => data[at] ^= 1 << rng.random_range(0..8),
        1 if at < n => data[at] = rng.random(),
        2 => drop(data.drain(at..at + len)),
        3 => {
            let part = data[at..at + len].to_vec();
            data.splice(at..at, part.repeat(rng.random_range(1..4)));
        }
        4 => {
            // A number, little-endian as in safetensors and GGUF files, of 1 to 8 bytes.
            let number = BOUNDARIES[rng.random_range(0..BOUNDARIES.len())].to_le_bytes();
            let width = (1usize << rng.random_range(0..4)).min(n - at);
            data[at..at + width].copy_from_slice(&number[..width]);
        }
        5 => {
            let token = TOKENS[rng.random_range(0..TOKENS.len())];
            data.splice(at..at + len * usize::from(rng.random::<bool>()), token.bytes());
        }
        6 => data.truncate(at),
        7 => {
            let other = &seeds[rng.random_range(0..seeds.len())];
            let start = rng.random_range(0..=other.len());
            data.splice(at.., other[start..].iter().copied());
        }
        _ => {
            let number = BOUNDARIES[rng.random_range(0..BOUNDARIES.len())].to_string();
            replace_number(data, at, &number);
        }
    }
}

/// Replaces the decimal number at or after `at`, if there is one.
fn replace_number(data: &mut Vec<u8>, at: usize, number: &str) {
    let Some(start) = data[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else {
        return;
    };
    let len = data[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    data.splice(start..start + len, number.bytes());
}
