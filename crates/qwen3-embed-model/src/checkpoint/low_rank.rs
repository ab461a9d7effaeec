/// The change that a LoRA adapter makes to a weight matrix [O, I]: the matrix product `b · a`, which is added
/// to the weight.
#[derive(Debug)]
pub(crate) struct LowRankUpdate {
    /// Shape [rank, I].
    a: Vec<f32>,
    /// Shape [O, rank], already multiplied by the adapter's scale.
    b: Vec<f32>,
    rank: usize,
}

impl LowRankUpdate {
    /// `a` has the shape [rank, I], `b` the shape [O, rank].
    pub(crate) fn new(a: Vec<f32>, b: Vec<f32>, rank: usize) -> Self {
        Self { a, b, rank }
    }

    /// Adds row `row_idx` of the update to `row`, which has I values.
    pub(crate) fn add_to(&self, row_idx: usize, row: &mut [f32]) {
        let b = &self.b[row_idx * self.rank..][..self.rank];
        for (b, a) in b.iter().zip(self.a.chunks_exact(row.len())) {
            row.iter_mut().zip(a).for_each(|(weight, a)| *weight += b * a);
        }
    }
}
