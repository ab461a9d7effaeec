//! Arithmetic on vectors for comparisons. It is done in f64 for every type of values.

/// The vector divided by its Euclidean norm.
pub fn unit<T: Copy + Into<f64>>(vector: &[T]) -> Vec<f64> {
    let norm = dot(vector, vector).sqrt();
    vector.iter().map(|&value| value.into() / norm).collect()
}

/// The cosine of the angle between two vectors.
///
/// # Panics
///
/// If the lengths differ.
pub fn cosine<T: Copy + Into<f64>, U: Copy + Into<f64>>(a: &[T], b: &[U]) -> f64 {
    dot(&unit(a), &unit(b))
}

/// The largest absolute difference between the elements of two vectors. 0 if the vectors are empty, NaN if a
/// difference is NaN.
///
/// # Panics
///
/// If the lengths differ.
pub fn max_difference<T: Copy + Into<f64>, U: Copy + Into<f64>>(a: &[T], b: &[U]) -> f64 {
    assert_eq!(a.len(), b.len(), "the vectors have different lengths");
    max(a.iter().zip(b).map(|(&a, &b)| (a.into() - b.into()).abs()))
}

/// The largest absolute value. 0 if there is no value, NaN if a value is NaN.
pub fn max_abs<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    max(values.iter().map(|&value| value.into().abs()))
}

/// The arithmetic mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn dot<T: Copy + Into<f64>, U: Copy + Into<f64>>(a: &[T], b: &[U]) -> f64 {
    assert_eq!(a.len(), b.len(), "the vectors have different lengths");
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

/// The largest of values that are not negative. If a value is NaN, the result is NaN, unlike with [`f64::max`], so that
/// a comparison with a tolerance fails.
fn max(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |max, value| if value > max || value.is_nan() { value } else { max })
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn unit_vector_and_cosine_are_computed_in_f64() {
        assert_eq!(unit(&[3f32, 4.0]), [0.6, 0.8]);
        assert_eq!(cosine(&[1f32, 0.0], &[0f64, 2.0]), 0.0);
        // The squares overflow f32.
        assert_abs_diff_eq!(cosine(&[3e30f32, 3e30], &[1f64, 1.0]), 1.0, epsilon = 1e-15);
    }

    #[test]
    fn max_difference_reports_nan() {
        assert_eq!(max_difference(&[1f32, 2.0], &[1f64, 4.5]), 2.5);
        assert!(max_difference(&[f32::NAN, 2.0], &[1f64, 4.5]).is_nan());
        assert!(max_difference(&[2f32, f32::NAN, 3.0], &[1f64, 2.0, 3.0]).is_nan());
        assert_eq!(max_abs::<f64>(&[]), 0.0);
    }
}
