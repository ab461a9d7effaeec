use crate::{Error, Result};

/// Normalizes a vector to unit length: `v / ‖v‖₂`. A zero vector stays a zero vector.
///
/// # Examples
///
/// ```
/// let mut v = [3.0, 4.0];
/// qwen3_embed::normalize(&mut v);
/// assert_eq!(v, [0.6, 0.8]);
/// ```
pub fn normalize(vector: &mut [f32]) {
    let norm = norm(vector);
    if norm > 0.0 {
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
}

/// The cosine similarity of two vectors: `a · b / (‖a‖₂ ‖b‖₂)`, from −1 to 1. It is 0 if one of the vectors is a
/// zero vector.
///
/// # Errors
///
/// [`Error::DimensionMismatch`] if the vectors have different numbers of dimensions.
///
/// # Examples
///
/// ```
/// assert_eq!(qwen3_embed::cosine(&[1.0, 0.0], &[2.0, 2.0])?, 0.5f32.sqrt());
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
pub fn cosine(a: &[f32], b: &[f32]) -> Result<f32> {
    if a.len() != b.len() {
        return Err(Error::DimensionMismatch { left: a.len(), right: b.len() });
    }
    let norms = norm(a) * norm(b);
    Ok(if norms > 0.0 { (exact_dot(a, b) / norms).clamp(-1.0, 1.0) as f32 } else { 0.0 })
}

/// The Euclidean norm. It is computed in f64, in which the square of an f32 neither overflows nor underflows.
pub(crate) fn norm(vector: &[f32]) -> f64 {
    exact_dot(vector, vector).sqrt()
}

/// The dot product of two vectors of the same length in f64, with four independent sums.
pub(crate) fn exact_dot(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [0f64; 4];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..4 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b));
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// The cosine similarity of a unit vector and a vector, from their dot product and the squared norm of the vector.
pub(crate) fn ratio([dot, square]: [f32; 2]) -> f32 {
    // Rounding must not take the result out of the range from −1 to 1.
    if square > 0.0 { (dot / square.sqrt()).clamp(-1.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes_very_long_and_very_short_vectors() {
        for scale in [1e-38, 1.0, 1e38] {
            let mut v = [scale, -scale, scale, scale];
            normalize(&mut v);
            assert_eq!(v, [0.5, -0.5, 0.5, 0.5], "{scale}");
            assert_eq!(cosine(&[scale, scale], &[scale, -scale]).unwrap(), 0.0);
        }
    }

    #[test]
    fn zero_vectors_do_not_cause_nan() {
        let mut v = [0.0; 3];
        normalize(&mut v);
        assert_eq!(v, [0.0; 3]);
        assert_eq!(cosine(&v, &[1.0, 2.0, 3.0]).unwrap(), 0.0);
        assert_eq!(cosine(&[], &[]).unwrap(), 0.0);
    }

    #[test]
    fn cosine_rejects_vectors_of_different_dimensions() {
        let error = cosine(&[1.0], &[1.0, 2.0]).unwrap_err();
        assert!(matches!(error, Error::DimensionMismatch { left: 1, right: 2 }));
    }
}
