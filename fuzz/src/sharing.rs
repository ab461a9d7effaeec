//! Calls of a model with texts that may have common prefixes.
//!
//! Property: the vectors of a text are the same, bit for bit, whether the text is computed alone, or together with other
//! texts, with prefixes that are shared within a call and kept between calls, in batches of any size.

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use qwen3_embed_model::{Checkpoint, LoadOptions, Model, Sharing};
use qwen3_embed_testing::checkpoint::RandomCheckpoint;

use crate::files;

/// One input: calls of texts. Tokens are taken modulo 4, so that prefixes are often equal.
#[derive(Debug, Arbitrary)]
struct Input {
    cache: Cache,
    batch_tokens: u8,
    calls: Vec<Vec<Vec<u8>>>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Cache {
    None,
    /// Room for a few prefixes.
    Small,
    Large,
}

/// The longest text in tokens. Longer texts find nothing new and take long.
const MAX_TOKENS: usize = 48;

/// Checks the calls of one input.
pub fn check(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    static CHECKPOINT: LazyLock<Checkpoint> = LazyLock::new(|| {
        let small = RandomCheckpoint { num_hidden_layers: 2, deviation: 0.5, ..files::small() };
        Checkpoint::open(files::folder(&small).path()).unwrap()
    });
    static ALONE: LazyLock<Model> = LazyLock::new(|| load().with_sharing(Sharing::Off));
    fn load() -> Model {
        Model::load_with(&CHECKPOINT, &LoadOptions::default()).unwrap()
    }
    let cache_bytes = match input.cache {
        Cache::None => 0,
        Cache::Small => 2_000,
        Cache::Large => 1 << 20,
    };
    let model = load()
        .with_sharing(Sharing::On { cache_bytes })
        .with_batch_tokens(usize::from(input.batch_tokens).max(1));
    for call in &input.calls {
        let texts: Vec<Vec<u32>> = call
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| text.iter().take(MAX_TOKENS).map(|&token| u32::from(token % 4)).collect())
            .collect();
        let got = model.forward(&texts).unwrap();
        let rows = got.chunks_exact(model.embedding_size());
        assert_eq!(rows.len(), texts.len());
        for (text, row) in texts.iter().zip(rows) {
            let alone = ALONE.forward(&[text]).unwrap();
            let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(row), bits(&alone), "{text:?} of {texts:?}");
        }
    }
    let n_bytes = model.sharing_counts().cache_bytes;
    assert!(n_bytes as usize <= cache_bytes, "{n_bytes} bytes in a cache of {cache_bytes}");
}

/// Calls with equal texts, and with common prefixes.
pub fn seeds() -> Vec<Vec<u8>> {
    (0..6u8)
        .map(|i| (0..200u32).map(|j| (j * u32::from(3 + i) / 7 % 5) as u8 + i % 2).collect())
        .collect()
}
