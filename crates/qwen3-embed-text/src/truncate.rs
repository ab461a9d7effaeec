/// The side on which a text that is too long loses tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TruncationSide {
    /// The beginning is cut and the end kept.
    Left,
    /// The end is cut and the beginning kept.
    Right,
}

/// Cuts `tokens` to at most `max_tokens`, keeping the last one: the end-of-text token that
/// [`Tokenizer::encode`](crate::Tokenizer::encode) appended.
///
/// A limit of 0 is taken as 1, because an input without its end-of-text token has no embedding.
///
/// # Examples
///
/// ```
/// use qwen3_embed_text::{TruncationSide, truncate};
///
/// let mut tokens = vec![1, 2, 3, 4, 99];
/// truncate(&mut tokens, 3, TruncationSide::Right);
/// assert_eq!(tokens, [1, 2, 99]);
///
/// let mut tokens = vec![1, 2, 3, 4, 99];
/// truncate(&mut tokens, 3, TruncationSide::Left);
/// assert_eq!(tokens, [3, 4, 99]);
/// ```
pub fn truncate(tokens: &mut Vec<u32>, max_tokens: usize, side: TruncationSide) {
    let excess = tokens.len().saturating_sub(max_tokens.max(1));
    let end = tokens.len().saturating_sub(1);
    match side {
        TruncationSide::Left => tokens.drain(..excess),
        TruncationSide::Right => tokens.drain(end - excess..end),
    };
}
