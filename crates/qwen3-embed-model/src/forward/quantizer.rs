/// Rounds vectors to integers from −127 to 127: round(127 · tanh x). Infinities and NaN stay as they are, so that
/// a later check finds them.
///
/// # Source
///
/// The `FlexibleQuantizer` of pplx-embed-v1 with its default, `int8`.
pub(crate) fn round_to_int8(vectors: &mut [f32]) {
    let finite = vectors.iter_mut().filter(|x| x.is_finite());
    finite.for_each(|x| *x = (x.tanh() * 127.0).round_ties_even());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_integers_and_keeps_infinities_and_nan() {
        let mut values = [0.0, -0.5, 0.01, 9.0, -30.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        round_to_int8(&mut values);
        assert_eq!(values[..7], [0.0, -59.0, 1.0, 127.0, -127.0, f32::INFINITY, f32::NEG_INFINITY]);
        assert!(values[7].is_nan());
    }
}
