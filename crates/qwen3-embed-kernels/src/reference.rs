//! Every operation of the forward pass as plain loops in f64.
//!
//! Tests compare every kernel with these functions. They are slow and are not used outside of tests. Matrices are
//! row-major slices.

use crate::{Ragged, SegmentKind};

/// RMSNorm of each row: `y = x / sqrt(mean(x²) + eps) · weight`.
///
/// # Shapes
///
/// `x` is [rows, C] and `weight` is `[C]`; the result is [rows, C].
///
/// # Source
///
/// Zhang and Sennrich, *Root Mean Square Layer Normalization* (2019), equation 4.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let mean_square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean_square + eps).sqrt();
        y.extend(row.iter().zip(weight).map(|(v, w)| v * scale * w));
    }
    y
}

/// A linear layer: `y = x · weightᵀ + bias`.
///
/// # Shapes
///
/// `x` is [rows, I], `weight` is [O, I] and `bias`, if any, is `[O]`; the result is [rows, O].
pub fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, n_in: usize) -> Vec<f64> {
    let n_out = weight.len() / n_in;
    let mut y = Vec::with_capacity(x.len() / n_in * n_out);
    for row in x.chunks_exact(n_in) {
        for (o, w) in weight.chunks_exact(n_in).enumerate() {
            let dot: f64 = row.iter().zip(w).map(|(a, b)| a * b).sum();
            y.push(dot + bias.map_or(0.0, |bias| bias[o]));
        }
    }
    y
}

/// Rotary position embedding of one head at one position: lanes `i` and `i + D/2` are rotated by the angle
/// `position · theta^(−2i/D)`.
///
/// # Source
///
/// Su et al., *RoFormer* (2021), equation 34, with the half-split pairing of GPT-NeoX.
pub fn rope(head: &[f64], position: usize, theta: f64) -> Vec<f64> {
    let half = head.len() / 2;
    let mut y = head.to_vec();
    for i in 0..half {
        let angle = position as f64 * theta.powf(-2.0 * i as f64 / head.len() as f64);
        let (sin, cos) = angle.sin_cos();
        y[i] = head[i] * cos - head[i + half] * sin;
        y[i + half] = head[i + half] * cos + head[i] * sin;
    }
    y
}

/// Per-head RMSNorm followed by RoPE, for the queries or the keys of the computed tokens of a batch.
///
/// # Shapes
///
/// `x` is [T, heads · D] and `weight` is `[D]`; the result is [T, heads · D].
pub fn qk_norm_rope(x: &[f64], weight: &[f64], eps: f64, theta: f64, batch: &Ragged) -> Vec<f64> {
    let n_columns = x.len() / batch.n_tokens().max(1);
    let normed = rms_norm(x, weight, eps);
    let mut y = Vec::with_capacity(x.len());
    for (row, position) in normed.chunks_exact(n_columns.max(1)).zip(batch.positions()) {
        for head in row.chunks_exact(weight.len()) {
            y.extend(rope(head, position, theta));
        }
    }
    y
}

/// Grouped-query attention within each text: query head `h` reads key/value head `h / (H / K)`, and a token sees itself
/// and the tokens before it in its own text, or the whole text if the batch is bidirectional.
///
/// # Shapes
///
/// `q` is [P + T, H · D]; `k` and `v` are [P + T, K · D]; the result is [P + T, H · D], with zeros for given tokens.
///
/// # Source
///
/// Ainslie et al., *GQA* (2023); softmax(q·kᵀ / √D)·v of Vaswani et al. (2017), equation 1.
pub fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    batch: &Ragged,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
) -> Vec<f64> {
    let mut y = vec![0.0; q.len()];
    let at = |row: usize, head: usize, heads: usize| (row * heads + head) * head_dim;
    for segment in 0..batch.n_segments() {
        if batch.segment(segment).kind == SegmentKind::Given {
            continue;
        }
        let path: Vec<usize> = batch.path(segment).collect();
        for position in batch.positions_of(segment) {
            let (row, seen) = (path[position], &path[batch.seen_from(segment, position)]);
            for head in 0..n_heads {
                let kv_head = head / (n_heads / n_kv_heads);
                let query = &q[at(row, head, n_heads)..][..head_dim];
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|&other| {
                        let key = &k[at(other, kv_head, n_kv_heads)..][..head_dim];
                        let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                        dot / (head_dim as f64).sqrt()
                    })
                    .collect();
                let out = &mut y[at(row, head, n_heads)..][..head_dim];
                for (&other, weight) in seen.iter().zip(softmax(&scores)) {
                    let value = &v[at(other, kv_head, n_kv_heads)..][..head_dim];
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
    y
}

/// `exp(x) / sum(exp(x))`, with the maximum subtracted from `x` to avoid overflow.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// SwiGLU: `silu(gate) · up`, where `silu(x) = x / (1 + exp(−x))`.
///
/// # Shapes
///
/// `gate_up` is [rows, 2F], where a row has F gates and then F ups; the result is [rows, F].
///
/// # Source
///
/// Shazeer, *GLU Variants Improve Transformer* (2020), equation 6.
pub fn swiglu(gate_up: &[f64], ffn_size: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * ffn_size) {
        let (gate, up) = row.split_at(ffn_size);
        y.extend(gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u));
    }
    y
}

/// The rows of `x` with the indices `rows`, in that order.
///
/// # Shapes
///
/// `x` is [T, C]; the result is [rows, C].
pub fn gather_rows(x: &[f64], rows: &[u32], n_columns: usize) -> Vec<f64> {
    rows.iter().flat_map(|&row| &x[row as usize * n_columns..][..n_columns]).copied().collect()
}
