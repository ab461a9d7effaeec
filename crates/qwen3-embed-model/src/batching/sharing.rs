/// Whether tokens that texts have in common are computed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// A token sequence with which several texts begin is computed once, and so are equal texts. The last layer
    /// computes queries only for the last token of each text. A prefix cache keeps the keys and values of common
    /// beginnings for later calls. On the CPU, vectors are the same as with [`Off`](Self::Off), bit for bit.
    ///
    /// On a CUDA device, a call with a single text of at most 512 tokens does not use the cache, if the model is as small
    /// as 0.6B: its forward pass is recorded, and computes all tokens.
    On {
        /// The size of the prefix cache in bytes. With 0, nothing is kept between calls.
        cache_bytes: usize,
    },
    /// Every token of every text is computed in every layer. Use this to measure what sharing saves.
    Off,
}

impl Default for Sharing {
    /// [`On`](Self::On) with a prefix cache of 128 MiB.
    fn default() -> Self {
        Self::On { cache_bytes: 128 << 20 }
    }
}

/// How many tokens a model has computed, and how many tokens sharing has saved, since the model was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SharingCounts {
    /// The tokens of all texts.
    pub n_tokens: u64,
    /// The tokens that were computed.
    pub n_computed: u64,
    /// The number of times that a prefix was found in the cache.
    pub cache_hits: u64,
    /// The tokens that were not computed because they were found in the cache.
    pub cache_tokens: u64,
    /// The bytes that the prefix cache uses now.
    pub cache_bytes: u64,
}
