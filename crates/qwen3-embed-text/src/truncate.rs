/// The side on which a text that is too long is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TruncationSide {
    /// Removes the beginning of the text and keeps the end.
    Left,
    /// Removes the end of the text and keeps the beginning.
    Right,
}

/// Cuts `tokens` to at most `max_tokens`. The last token is always kept, because it is the end-of-text token that
/// [`Tokenizer::encode`](crate::Tokenizer::encode) has appended.
///
/// A limit of 0 has the same effect as 1, because the model needs at least the end-of-text token.
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
