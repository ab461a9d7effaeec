//! Random texts, as token ids.

use rand::{RngExt, rngs::SmallRng};

/// `n` texts of 1 to `max_tokens` tokens, most of them short.
///
/// Most texts begin with a part of an earlier text or with a whole earlier text. Some are equal to an earlier text.
pub fn random_texts(
    rng: &mut SmallRng,
    n: usize,
    vocab_size: usize,
    max_tokens: usize,
) -> Vec<Vec<u32>> {
    let mut texts: Vec<Vec<u32>> = Vec::new();
    for _ in 0..n {
        let mut text = match texts.len() {
            0 => Vec::new(),
            n => texts[rng.random_range(0..n)].clone(),
        };
        match rng.random_range(0..4) {
            0 => text.clear(),
            1 => (),
            _ => text.truncate(rng.random_range(0..=text.len())),
        }
        let max_added = if rng.random_bool(0.2) { max_tokens / 2 } else { 12 };
        let n_added = rng.random_range(usize::from(text.is_empty())..=max_added);
        text.extend((0..n_added).map(|_| rng.random_range(0..vocab_size as u32)));
        text.truncate(max_tokens);
        texts.push(text);
    }
    texts
}
