/// Whether what texts have in common is computed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Tokens that texts begin with are computed once, equal texts too, and the last layer only as far
    /// as the answer needs it. The keys and values of what texts began with are kept for later calls,
    /// in so many bytes at most; none with 0. On the processor, vectors are the same, bit
    /// for bit, as with [`Off`](Self::Off).
    On {
        /// Bytes that keys and values take at most.
        cache_bytes: usize,
    },
    /// Every token of every text is computed in every layer: for comparison.
    Off,
}

impl Default for Sharing {
    /// On, with 128 MiB.
    fn default() -> Self {
        Self::On { cache_bytes: 128 << 20 }
    }
}

/// What a model has computed and what sharing has saved it since it was loaded, over all calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SharingCounts {
    /// Tokens of all texts.
    pub n_tokens: u64,
    /// Tokens that were computed.
    pub n_computed: u64,
    /// Times that a kept prefix was found.
    pub cache_hits: u64,
    /// Tokens that were not computed because they were found.
    pub cache_tokens: u64,
    /// Bytes that the kept keys and values take now.
    pub cache_bytes: u64,
}
