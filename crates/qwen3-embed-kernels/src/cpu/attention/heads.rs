/// The attention heads of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, H.
    pub n_heads: usize,
    /// Key/value heads, K. K divides H.
    pub n_kv_heads: usize,
    /// Dimensions of a head, D.
    pub head_dim: usize,
}

impl Heads {
    /// Columns of a matrix that has the queries, keys and values of a token side by side in a row: (H + 2K) · D.
    pub fn qkv_columns(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Columns of the queries, and of the result of attention: H · D.
    pub fn q_columns(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Query heads for each key/value head.
    pub(crate) fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Whether the numbers are valid together: K divides H, D is even, and none is zero.
    pub fn is_whole(&self) -> bool {
        self.n_kv_heads > 0
            && self.n_heads.is_multiple_of(self.n_kv_heads)
            && self.head_dim > 0
            && self.head_dim.is_multiple_of(2)
    }

    pub(in crate::cpu) fn assert_whole(&self) {
        assert!(self.is_whole(), "K divides H and D is even: {self:?}");
    }
}
