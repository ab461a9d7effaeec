//! Every kernel of every kernel set against its f64 reference, with bounds derived from the standard model of rounding.
//!
//! The error of a sum of n products in f32 is at most γ(n) = n·u / (1 − n·u) times the sum of their magnitudes, where u
//! is half the distance from 1 to the next f32 (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1).
//! If a value is stored as bf16, half the distance from 1 to the next bf16, times the value, is added to the bound.
//!
//! Inputs begin one element into their allocation, so a kernel that relies on alignment fails. Outputs are filled with
//! NaN, so a kernel that skips an element fails. The gaps between rows are NaN, so a kernel that reads them fails, and
//! the tests check that they are still NaN afterwards.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    EXP_ROUNDINGS, Grid, Misaligned, Value, assert_close, attend_from, bits, gamma, kept,
    magnitudes, pack, widened,
};
use half::bf16;
use qwen3_embed_kernels::cpu::{
    Arithmetic, AttentionScratch, Epilogue, Heads, Kernels, Layout, PackedWeight, Rows, RowsMut,
    attention, qk_norm_rope, rms_norm,
};
use qwen3_embed_kernels::{Queries, Ragged, Segment, SegmentKind, reference};

#[test]
fn current_kernel_set_is_the_requested_one_or_runs_on_this_cpu() {
    assert_eq!(Kernels::available()[0].name, "portable");
    let current = Kernels::current();
    match std::env::var(Kernels::VARIABLE).ok().filter(|name| !name.is_empty()) {
        Some(named) => assert_eq!(current.name, named),
        None => assert!(Kernels::all().any(|set| std::ptr::eq(set, current))),
    }
}

#[test]
fn measured_peak_is_plausible_for_a_cpu() {
    for kernels in Kernels::all() {
        for arithmetic in Arithmetic::ALL {
            let peak = kernels.measured_peak(arithmetic);
            assert!((1e7..2e12).contains(&peak), "{}: {peak:e}", kernels.name);
        }
    }
}

fn check_rms_norm<T: Value>(kernels: &Kernels, rows: usize, channels: usize) {
    let (x, weight) = (Misaligned::random(1, rows * channels), Misaligned::random(2, channels));
    let mut out = Grid::<T>::nan(rows, channels);
    rms_norm(kernels, x.get(), weight.get(), 1e-6, &mut out.rows_mut());
    let expected = reference::rms_norm(&x.f64(), &weight.f64(), 1e-6);
    // The sum of squares, a division, a root, an addition and products. `eps` is rounded too.
    let relative = gamma(channels + 8);
    let what = format!("{}, {rows} × {channels}", kernels.name);
    out.assert_close(&expected, |i| relative * expected[i].abs(), &what);
}

#[test]
fn rms_norm_matches_the_reference() {
    for kernels in Kernels::all() {
        for channels in [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 129, 1024] {
            for rows in [1, 3, 40] {
                check_rms_norm::<f32>(kernels, rows, channels);
                check_rms_norm::<bf16>(kernels, rows, channels);
            }
        }
        let mut out = Grid::<f32>::nan(1, 4);
        rms_norm(kernels, &[0.0; 4], &[3.0; 4], 1e-6, &mut out.rows_mut());
        assert_eq!(out.dense(), [0.0; 4], "{}: a row of zeros", kernels.name);
    }
}

/// All bf16 values, f32 values just above, just below and half-way between them, and non-finite values, against the
/// rounding of the `half` crate.
#[test]
fn rounds_bf16_to_nearest_even_and_keeps_non_finite_values() {
    // Normal numbers, zeros and infinities. CPUs may round subnormal numbers to zero.
    let upper = (0u32..0x8000).filter(|u| *u == 0 || (0x80..=0x7f80).contains(u)).step_by(7);
    let mut values: Vec<f32> = upper
        .flat_map(|u| [u, u | 0x8000])
        .flat_map(|u| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| (u << 16) | low))
        .filter(|bits| bits & 0x7f80_0000 != 0x7f80_0000 && bits & 0x7f80_0000 != 0)
        .map(f32::from_bits)
        .collect();
    values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]);
    for kernels in Kernels::all() {
        // Multiplying by 1 stores the value itself.
        let one = PackedWeight::pack_f32(1, 1, Layout::Plain, |_, row| row[0] = 1.0);
        let x = Grid::<f32>::of(&values, 1);
        let mut out = Grid::<bf16>::nan(values.len(), 1);
        one.repacked(kernels).multiply(x.rows(), None, &mut out.rows_mut(), Epilogue::Store);
        for (got, value) in out.dense().into_iter().zip(&values) {
            let expected = bf16::from_f32(*value).to_f64();
            assert!(got == expected, "{}: {got:e} for {value:e}", kernels.name);
        }
        // NaN with the lowest and the highest bits set, which a wrong rounding turns into a number.
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
            let nan = Grid::<f32>::of(&[f32::from_bits(bits)], 1);
            let mut out = Grid::<bf16>::of(&[0.0], 1);
            one.repacked(kernels).multiply(nan.rows(), None, &mut out.rows_mut(), Epilogue::Store);
            assert!(out.dense()[0].is_nan(), "{}: {bits:x}", kernels.name);
        }
    }
}

/// Sizes around the edges of tiles and panels of 8 to 32 columns.
const SIZES: [usize; 10] = [1, 2, 7, 8, 15, 16, 17, 31, 33, 130];

/// A linear layer with inputs of type `X`, whose weight is kept in bf16 or f32.
fn check_linear<X: Value>(keep_bf16: bool, [rows, n_in, n_out]: [usize; 3]) {
    let x = Grid::<X>::random(1, rows, n_in);
    let weight = Misaligned::random(2, n_out * n_in);
    let bias = Misaligned::random(3, n_out);
    let packed = pack(&weight, n_out, n_in, Layout::Plain, keep_bf16);
    let w = kept(&weight, keep_bf16);
    let product = reference::linear(&x.dense(), &w, Some(&bias.f64()), n_in);
    let (x_size, w_size) = (magnitudes(&x.dense()), magnitudes(&w));
    let sums = reference::linear(&x_size, &w_size, Some(&magnitudes(&bias.f64())), n_in);
    for kernels in Kernels::all() {
        let packed = packed.repacked(kernels);
        let what = format!("{}, {rows} × {n_in} × {n_out}, bf16 {keep_bf16}", kernels.name);
        let bound = |i: usize| gamma(n_in + 1) * sums[i];
        let mut out = Grid::<f32>::nan(rows, n_out);
        packed.multiply(x.rows(), Some(bias.get()), &mut out.rows_mut(), Epilogue::Store);
        out.assert_close(&product, bound, &what);
        let mut out = Grid::<bf16>::nan(rows, n_out);
        packed.multiply(x.rows(), Some(bias.get()), &mut out.rows_mut(), Epilogue::Store);
        out.assert_close(&product, bound, &what);
        let mut out = Grid::<f32>::random(4, rows, n_out);
        let sum: Vec<f64> = product.iter().zip(out.dense()).map(|(p, b)| p + b).collect();
        packed.multiply(x.rows(), Some(bias.get()), &mut out.rows_mut(), Epilogue::Add);
        out.assert_close(&sum, |i| gamma(n_in + 2) * (sums[i] + 2.0), &what);
    }
}

#[test]
fn linear_matches_the_reference() {
    let rows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 25];
    let shapes = SIZES.iter().flat_map(|&o| rows.map(|t| [t, 19, o]));
    let more = [[200, 64, 48], [385, 3, 20], [1, 1024, 40], [7, 1, 1], [6, 2, 33], [5, 18, 64]];
    for shape in shapes.chain(more) {
        check_linear::<f32>(false, shape);
        check_linear::<f32>(true, shape);
        check_linear::<bf16>(true, shape);
    }
}

fn check_swiglu<X: Value, O: Value>(keep_bf16: bool, [rows, n_in, ffn]: [usize; 3]) {
    let x = Grid::<X>::random(1, rows, n_in);
    let weight = Misaligned::random(2, 2 * ffn * n_in);
    let packed = pack(&weight, 2 * ffn, n_in, Layout::SwiGlu, keep_bf16);
    let w = kept(&weight, keep_bf16);
    let gate_up = reference::linear(&x.dense(), &w, None, n_in);
    let sums = reference::linear(&magnitudes(&x.dense()), &magnitudes(&w), None, n_in);
    let expected = reference::swiglu(&gate_up, ffn);
    for kernels in Kernels::all() {
        let mut out = Grid::<O>::nan(rows, ffn);
        let packed = packed.repacked(kernels);
        assert_eq!(packed.n_columns(), ffn);
        packed.multiply(x.rows(), None, &mut out.rows_mut(), Epilogue::Store);
        // The slope of SiLU is at most 1.1, so it hardly amplifies the error of a gate. The gate is multiplied by the
        // up value, which has an error too.
        let bound = |i: usize| {
            let (row, column) = (i / ffn, i % ffn);
            let at = row * 2 * ffn + column;
            let (gate, up) = (gate_up[at].abs(), gate_up[at + ffn].abs());
            let (d_gate, d_up) = (gamma(n_in) * sums[at], gamma(n_in) * sums[at + ffn]);
            1.1 * d_gate * (up + d_up) + gate * d_up + gamma(EXP_ROUNDINGS) * gate * up
        };
        out.assert_close(&expected, bound, &format!("{}, {ffn}", kernels.name));
    }
}

#[test]
fn swiglu_matches_the_reference() {
    for shape in [[1, 9, 1], [3, 5, 7], [7, 16, 8], [13, 33, 17], [6, 64, 100]] {
        check_swiglu::<f32, f32>(false, shape);
        check_swiglu::<f32, f32>(true, shape);
        check_swiglu::<bf16, bf16>(true, shape);
    }
}

#[test]
fn swiglu_of_extreme_gates_is_finite() {
    for kernels in Kernels::all() {
        // The only input is 1, so the rows of the weight are the gates, followed by the ups.
        let gates = [-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 1e30];
        let rows: Vec<f32> = gates.iter().copied().chain([1.0; 9]).collect();
        let packed = PackedWeight::pack_f32(18, 1, Layout::SwiGlu, |o, row| row[0] = rows[o]);
        let x = Grid::<f32>::of(&[1.0], 1);
        let mut out = Grid::<f32>::nan(1, 9);
        packed.repacked(kernels).multiply(x.rows(), None, &mut out.rows_mut(), Epilogue::Store);
        let expected = reference::swiglu(&widened(&rows), 9);
        for (got, expected) in out.dense().into_iter().zip(expected) {
            let error = (got - expected).abs();
            // Below −88, the result and its error are smaller than 1e-30 times the gate.
            assert!(error <= gamma(EXP_ROUNDINGS) * expected.abs() + 1e-7, "{got} for {expected}");
        }
    }
}

fn check_rows_alone<X: Value, O: Value>(keep_bf16: bool, layout: Layout) {
    let (n_in, n_out) = (70, 90);
    let dense = Misaligned::random(1, 400 * n_in);
    let weight = Misaligned::random(2, n_out * n_in);
    for kernels in Kernels::all() {
        let packed = pack(&weight, n_out, n_in, layout, keep_bf16).repacked(kernels);
        let columns = packed.n_columns();
        let product = |rows: std::ops::Range<usize>| {
            let x = Grid::<X>::of(&dense.get()[rows.start * n_in..rows.end * n_in], n_in);
            let mut out = Grid::<O>::nan(rows.len(), columns);
            packed.multiply(x.rows(), None, &mut out.rows_mut(), Epilogue::Store);
            bits(&out)
        };
        let all = product(0..400);
        for rows in [0..1, 1..3, 7..8, 0..6, 5..18, 3..200, 100..393] {
            let expected = &all[rows.start * columns..rows.end * columns];
            assert!(product(rows.clone()) == expected, "{}, rows {rows:?}", kernels.name);
        }
    }
}

#[test]
fn rows_of_linear_do_not_depend_on_other_rows_bit_for_bit() {
    for layout in [Layout::Plain, Layout::SwiGlu] {
        check_rows_alone::<f32, f32>(false, layout);
        check_rows_alone::<f32, f32>(true, layout);
        check_rows_alone::<bf16, bf16>(true, layout);
    }
}

#[test]
fn qk_norm_rope_matches_the_reference() {
    let cases = [
        (vec![1], 1, 1, 2),
        (vec![3, 1, 300], 2, 1, 16),
        (vec![5, 40], 4, 2, 128),
        (vec![9], 8, 8, 6),
        (vec![2, 2], 2, 2, 34),
    ];
    for (lengths, n_heads, n_kv_heads, head_dim) in cases {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let batch = Ragged::from_lengths(lengths).unwrap();
        let (columns, half) = (heads.qkv_columns(), head_dim / 2);
        let before = Misaligned::random(1, batch.n_tokens() * columns);
        let [q_norm, k_norm] = [2, 3].map(|seed| Misaligned::random(seed, head_dim));
        let angles: Vec<f64> = batch
            .positions()
            .flat_map(|p| {
                (0..half).map(move |i| p as f64 * 1e4f64.powf(-2.0 * i as f64 / head_dim as f64))
            })
            .collect();
        let [cos, sin] = [f64::cos, f64::sin]
            .map(|f: fn(f64) -> f64| angles.iter().map(|&a| f(a) as f32).collect::<Vec<_>>());
        for kernels in Kernels::all() {
            let mut qkv = Misaligned(before.0.clone());
            let norms = [q_norm.get(), k_norm.get()];
            qk_norm_rope(kernels, qkv.get_mut(), heads, 0, norms, 1e-6, [&cos, &sin]);
            let parts = [(0, n_heads, &q_norm), (n_heads, n_kv_heads, &k_norm)];
            for (first, count, norm) in parts {
                let part = |values: &[f32]| -> Vec<f32> {
                    let columns_of_part = first * head_dim..(first + count) * head_dim;
                    values
                        .chunks_exact(columns)
                        .flat_map(|row| row[columns_of_part.clone()].to_vec())
                        .collect()
                };
                let x = widened(&part(before.get()));
                let expected = reference::qk_norm_rope(&x, &norm.f64(), 1e-6, 1e4, &batch);
                let normed = reference::rms_norm(&x, &norm.f64(), 1e-6);
                // The error of the norm, and of the rotation of a pair: rounded tables, two products, a sum.
                let bound = |i: usize| {
                    let (head, lane) = (i / head_dim * head_dim, i % half);
                    gamma(head_dim + 12)
                        * (normed[head + lane].abs() + normed[head + lane + half].abs())
                };
                assert_close(&part(qkv.get()), &expected, bound, kernels.name);
            }
            let values = (n_heads + n_kv_heads) * head_dim;
            for (row, before) in
                qkv.get().chunks_exact(columns).zip(before.get().chunks_exact(columns))
            {
                assert_eq!(row[values..], before[values..], "values are left alone");
            }
        }
    }
}

fn attend<T: Value>(kernels: &Kernels, qkv: &[f32], batch: &Ragged, heads: Heads) -> Grid<T> {
    attend_from::<T>(kernels, qkv, batch, Queries::All, heads)
}

fn check_attention<T: Value>(batch: &Ragged, heads: Heads) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let qkv = Misaligned::random(5, batch.n_rows() * heads.qkv_columns());
    let part = |start: usize, n: usize, scale: f64| -> Vec<f64> {
        qkv.get()
            .chunks_exact(heads.qkv_columns())
            .flat_map(|row| row[start * head_dim..(start + n) * head_dim].to_vec())
            .map(|v| T::of(v).into() * scale)
            .collect()
    };
    // The kernel expects queries that are divided by √D. The reference divides them itself.
    let q = part(0, n_heads, (head_dim as f64).sqrt());
    let k = part(n_heads, n_kv_heads, 1.0);
    let v = part(n_heads + n_kv_heads, n_kv_heads, 1.0);
    let expected = reference::attention(&q, &k, &v, batch, n_heads, n_kv_heads, head_dim);
    // Values are at most 2. An error δ of a score changes a weight by at most the factor exp(2δ). The exponentials,
    // their sum, the weighted sum and its rescaling add roundings.
    let score_error = gamma(head_dim) * head_dim as f64 * 4.0;
    let roundings = 2 * batch.max_length() + 2 * EXP_ROUNDINGS + batch.max_length() / 16;
    let bound = 2.0 * (2.0 * score_error + gamma(roundings) + T::U);
    for kernels in Kernels::all() {
        for queries in [Queries::All, Queries::Last] {
            let what = format!("{}, {batch:?}, {queries:?}, {heads:?}", kernels.name);
            let out = attend_from::<T>(kernels, qkv.get(), batch, queries, heads);
            let expected = &expected[batch.first_query(queries) * heads.q_columns()..];
            out.assert_close(expected, |_| bound, &what);
        }
    }
}

#[test]
fn attention_matches_the_reference() {
    let cases: [(&[usize], usize, usize, usize); 8] = [
        (&[1], 1, 1, 2),
        (&[1, 2, 3], 4, 2, 8),
        (&[15, 16, 17, 31, 32, 33], 2, 2, 16),
        (&[127, 128, 129], 2, 1, 16),
        (&[5, 260], 6, 2, 10),
        (&[33, 33], 3, 3, 128),
        (&[20], 2, 1, 130),
        (&[300], 100, 1, 4),
    ];
    for (lengths, n_heads, n_kv_heads, head_dim) in cases {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let batch = Ragged::from_lengths(lengths.iter().copied()).unwrap();
        let bidirectional = batch.clone().bidirectional().unwrap();
        for batch in [batch, bidirectional] {
            check_attention::<f32>(&batch, heads);
            check_attention::<bf16>(&batch, heads);
        }
    }
}

/// Segments that continue other segments at and near the edges of blocks and panels. Some segments are given, and some
/// are not the end of a text.
fn forests() -> Vec<Ragged> {
    use SegmentKind::{Given, Inner, Text};
    let segment = |n_tokens, parent, kind| Segment { n_tokens, parent, kind };
    let mut forests = vec![vec![
        segment(130, None, Given),
        segment(20, Some(0), Text),
        segment(300, Some(0), Inner),
        segment(1, Some(2), Text),
        segment(127, Some(2), Text),
        segment(7, Some(4), Text),
        segment(9, None, Inner),
        segment(3, None, Text),
    ]];
    for n in [1, 31, 127, 128, 129, 255, 256] {
        for kind in [Given, Inner, Text] {
            forests.push(vec![
                segment(n, None, kind),
                segment(1, Some(0), Text),
                segment(2, Some(0), Inner),
                segment(130, Some(2), Text),
                segment(5, Some(3), Given),
                segment(4, Some(4), Text),
            ]);
        }
    }
    forests.into_iter().map(|segments| Ragged::from_segments(segments).unwrap()).collect()
}

#[test]
fn attention_along_segments_matches_the_reference() {
    for batch in forests() {
        for heads in [
            Heads { n_heads: 4, n_kv_heads: 2, head_dim: 8 },
            Heads { n_heads: 3, n_kv_heads: 1, head_dim: 34 },
        ] {
            check_attention::<f32>(&batch, heads);
            check_attention::<bf16>(&batch, heads);
        }
    }
}

/// The rows of each segment have the same bits as in a batch that has the segment's text only, in one segment.
fn check_segments_alone<T: Value>() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 16 };
    let (columns, out_columns) = (heads.qkv_columns(), heads.q_columns());
    for batch in forests() {
        let qkv = Misaligned::random(7, batch.n_rows() * columns);
        for kernels in Kernels::all() {
            let all = attend_from::<T>(kernels, qkv.get(), &batch, Queries::All, heads);
            let last = attend_from::<T>(kernels, qkv.get(), &batch, Queries::Last, heads);
            let (all, last) = (bits(&all), bits(&last));
            assert!(all[(batch.n_tokens() - batch.n_last()) * out_columns..] == last);
            for segment in 0..batch.n_segments() {
                if batch.segment(segment).kind == SegmentKind::Given {
                    continue;
                }
                let path: Vec<usize> = batch.path(segment).collect();
                let whole: Vec<f32> = path
                    .iter()
                    .flat_map(|row| qkv.get()[row * columns..][..columns].to_vec())
                    .collect();
                let alone = Ragged::from_lengths([path.len()]).unwrap();
                let alone = bits(&attend::<T>(kernels, &whole, &alone, heads));
                for position in batch.positions_of(segment) {
                    let row = path[position] - batch.n_given();
                    let got = &all[row * out_columns..][..out_columns];
                    let expected = &alone[position * out_columns..][..out_columns];
                    assert!(got == expected, "{}, {batch:?}, {segment}", kernels.name);
                }
            }
        }
    }
}

#[test]
fn attention_along_segments_equals_attention_over_whole_texts_bit_for_bit() {
    check_segments_alone::<f32>();
    check_segments_alone::<bf16>();
}

fn check_text_alone<T: Value>() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 16 };
    let lengths = [20, 7, 150, 1, 129];
    let (columns, out_columns) = (heads.qkv_columns(), heads.q_columns());
    let qkv = Misaligned::random(6, lengths.iter().sum::<usize>() * columns);
    let causal = Ragged::from_lengths(lengths).unwrap();
    let bidirectional = causal.clone().bidirectional().unwrap();
    let cases = Kernels::all().flat_map(|k| [(k, &causal), (k, &bidirectional)]);
    for (kernels, batch) in cases {
        let together = bits(&attend::<T>(kernels, qkv.get(), batch, heads));
        for (end, n_tokens) in batch.last_rows().into_iter().zip(lengths) {
            let text = end as usize + 1 - n_tokens..end as usize + 1;
            // Alone, and truncated: with a causal mask, the tokens after a token do not matter.
            for n in [text.len(), text.len().div_ceil(2), 1] {
                if n < text.len() && !batch.is_causal() {
                    continue;
                }
                let alone = Ragged::from_lengths([n]).unwrap();
                let alone = if batch.is_causal() { alone } else { alone.bidirectional().unwrap() };
                let qkv = &qkv.get()[text.start * columns..][..n * columns];
                let expected = &together[text.start * out_columns..][..n * out_columns];
                let got = bits(&attend::<T>(kernels, qkv, &alone, heads));
                assert!(got == expected, "{}, {n} tokens of {text:?}", kernels.name);
            }
        }
    }
}

#[test]
fn attention_does_not_depend_on_other_texts_bit_for_bit() {
    check_text_alone::<f32>();
    check_text_alone::<bf16>();
}

#[test]
fn attention_scores_in_the_hundreds_do_not_overflow() {
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 2 };
    // Scores of 0, ±400 and ±800. The value of each token is its position.
    let rows: Vec<f32> =
        (0..200).flat_map(|p| [40.0, 0.0, 10.0 * (p % 5 - 2) as f32, 0.0, p as f32, 1.0]).collect();
    let batch = Ragged::from_lengths([200]).unwrap();
    for kernels in Kernels::all() {
        let out = attend::<f32>(kernels, &rows, &batch, heads).dense();
        for (position, out) in out.chunks_exact(2).enumerate() {
            // The tokens with the largest score so far have all the weight.
            let best = (0..=position).map(|p| p % 5).max().unwrap();
            let places: Vec<usize> = (0..=position).filter(|p| p % 5 == best).collect();
            let mean = places.iter().sum::<usize>() as f64 / places.len() as f64;
            assert!((out[0] - mean).abs() <= 1e-3, "{}: {} for {mean}", kernels.name, out[0]);
            assert!((out[1] - 1.0).abs() <= 1e-5);
        }
    }
}

/// The softmax must not hide a non-finite score.
#[test]
fn attention_propagates_non_finite_values() {
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 2 };
    let batch = Ragged::from_lengths([40]).unwrap();
    for (kernels, value) in
        Kernels::all().flat_map(|kernels| [f32::NAN, f32::INFINITY].map(|value| (kernels, value)))
    {
        // A non-finite first key, then a non-finite first value.
        for column in [2, 4] {
            let mut qkv = vec![1.0; 40 * heads.qkv_columns()];
            qkv[column] = value;
            for out in [
                attend::<f32>(kernels, &qkv, &batch, heads).dense(),
                attend::<bf16>(kernels, &qkv, &batch, heads).dense(),
            ] {
                let rows = out.chunks_exact(2);
                let lost = rows.filter(|row| row.iter().all(|v| v.is_finite())).count();
                assert_eq!(lost, 0, "{}: {value} in column {column}", kernels.name);
            }
        }
        let one = PackedWeight::pack_f32(2, 1, Layout::SwiGlu, |_, row| row[0] = 1.0);
        let x = Grid::<f32>::of(&[f32::NAN], 1);
        let mut out = Grid::<f32>::of(&[0.0], 1);
        one.repacked(kernels).multiply(x.rows(), None, &mut out.rows_mut(), Epilogue::Store);
        assert!(out.dense()[0].is_nan(), "{}: SwiGLU", kernels.name);
    }
}

#[test]
fn accepts_empty_operands() {
    for kernels in Kernels::all() {
        for [rows, n_in, n_out] in [[0, 3, 5], [2, 0, 5], [2, 3, 0]] {
            let weight = PackedWeight::pack_bf16(n_out, n_in, Layout::Plain, |_, _| {});
            let x = vec![1f32; rows * n_in];
            let mut out = vec![f32::NAN; rows * n_out];
            let x = Rows::new(x.as_slice(), [rows, n_in], n_in);
            let y = &mut RowsMut::new(out.as_mut_slice(), [rows, n_out], n_out);
            weight.repacked(kernels).multiply(x, None, y, Epilogue::Store);
            assert!(out.iter().all(|&v| v == 0.0), "{rows} × {n_in} × {n_out}");
        }
        let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 2 };
        let batch = Ragged::from_lengths([]).unwrap();
        let mut scratch = AttentionScratch::default();
        let mut out: [f32; 0] = [];
        let out = &mut RowsMut::new(out.as_mut_slice(), [0, 2], 2);
        attention(kernels, &[], &batch, Queries::All, heads, &mut scratch, out);
    }
}

/// Kernels panic on operands of wrong sizes, which safe code can pass, instead of reading beyond their ends.
#[test]
fn rejects_operands_of_wrong_sizes() {
    let refused = |f: &dyn Fn()| {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err());
    };
    refused(&|| _ = Rows::new(&[0f32; 9][..], [2, 5], 5));
    refused(&|| _ = Rows::new(&[0f32; 9][..], [2, 5], 4));
    // Sizes whose product overflows to a small number.
    refused(&|| _ = Rows::new(&[0f32][..], [(1 << 62) + 1, 1], 4));
    refused(&|| _ = RowsMut::new(&mut [0f32][..], [(1 << 62) + 1, 1], 4));
    refused(&|| drop(PackedWeight::pack_f32(3, 1, Layout::SwiGlu, |_, row| row[0] = 1.0)));
    for (n_heads, n_kv_heads, head_dim) in [(1, 1, 3), (3, 2, 2), (1, 0, 2), (1, 1, 0)] {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let batch = Ragged::from_lengths([1]).unwrap();
        refused(&|| {
            let qkv = vec![0.0; heads.qkv_columns()];
            let mut out = Grid::<bf16>::nan(1, heads.q_columns());
            let mut scratch = AttentionScratch::default();
            let out = &mut out.rows_mut();
            let kernels = Kernels::current();
            attention(kernels, &qkv, &batch, Queries::All, heads, &mut scratch, out);
        });
    }
}
