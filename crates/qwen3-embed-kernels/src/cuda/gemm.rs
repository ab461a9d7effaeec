//! The arguments of cuBLAS for a matrix multiplication.

use std::ops::Range;

use super::{Shape, at_most};
use crate::Result;

/// A matrix multiplication `out = x · weightᵀ` in the column-major terms of cuBLAS: C is `outᵀ`, [O, T], A is the
/// transposed weight, [I, O], and B is `xᵀ`, [I, T].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gemm {
    /// Rows of C: columns of `out` that are computed.
    pub(crate) m: i32,
    /// Columns of C: rows of `out`.
    pub(crate) n: i32,
    /// Length of the sums.
    pub(crate) k: i32,
    /// Elements between the columns of A, B and C.
    pub(crate) strides: [i32; 3],
    /// Offsets of A and C, in elements.
    pub(crate) offsets: [usize; 2],
}

impl Gemm {
    /// The multiplication of `x` with the rows `columns` of a contiguous weight [O, I], which computes these columns of
    /// `out`.
    pub(crate) fn new(x: Shape, columns: Range<usize>, out: Shape) -> Result<Self> {
        let size = |value: usize| -> Result<i32> {
            at_most("linear", "a size", value, i32::MAX as usize)?;
            Ok(value as i32)
        };
        Ok(Self {
            m: size(columns.len())?,
            n: size(x.n_rows)?,
            k: size(x.n_columns)?,
            strides: [size(x.n_columns)?, size(x.stride)?, size(out.stride)?],
            offsets: [columns.start * x.n_columns, columns.start],
        })
    }

    /// Whether there is nothing to compute.
    pub(crate) fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The computation of cuBLAS with `op(A) = Aᵀ` and `op(B) = B`, both column-major.
    fn gemm(p: &Gemm, a: &[f64], b: &[f64], c: &mut [f64]) {
        let [lda, ldb, ldc] = p.strides.map(|stride| stride as usize);
        let (a, c) = (&a[p.offsets[0]..], &mut c[p.offsets[1]..]);
        for column in 0..p.n as usize {
            for row in 0..p.m as usize {
                let products = (0..p.k as usize).map(|k| a[row * lda + k] * b[column * ldb + k]);
                c[column * ldc + row] = products.sum();
            }
        }
    }

    #[test]
    fn computes_the_given_columns_of_a_product() {
        let (n_rows, n_in, n_out) = (3, 5, 4);
        // Rows of x and of the result have gaps.
        let x = Shape { n_rows, n_columns: n_in, stride: 7 };
        let out = Shape { n_rows, n_columns: n_out, stride: 6 };
        let values = |n: usize| (0..n).map(|i| (i * i % 23) as f64).collect::<Vec<_>>();
        let (a, b) = (values(n_out * n_in), values(n_rows * x.stride));
        for columns in [0..4, 1..3, 3..4, 2..2] {
            let mut c = vec![f64::NAN; n_rows * out.stride];
            let product = Gemm::new(x, columns.clone(), out).unwrap();
            gemm(&product, &a, &b, &mut c);
            assert_eq!(product.is_empty(), columns.is_empty());
            for (at, &got) in c.iter().enumerate() {
                let (row, column) = (at / out.stride, at % out.stride);
                if !columns.contains(&column) {
                    assert!(got.is_nan());
                    continue;
                }
                let products = (0..n_in).map(|i| b[row * x.stride + i] * a[column * n_in + i]);
                assert_eq!(got, products.sum::<f64>());
            }
        }
    }
}
