//! A text, a limit, and what the tokenizer makes of it.
//!
//! Properties:
//!
//! - The tokens of a plain text end with the end-of-text token, contain no other special token, and decode to the text
//!   in Unicode's normalization form C.
//! - A truncated text has the tokens of the whole text from one side, and its end-of-text token.
//! - A cut text is a prefix of the text and is not longer than the limit.
//! - Chunks are parts of the text in their order, with white space between them, and only a chunk of one character is
//!   longer than the limit.
//! - Pieces have the ids of the tokens.

use arbitrary::{Arbitrary, Unstructured};
use qwen3_embed_text::{ChunkOptions, SpecialTokens, Tokenizer, TruncationSide, truncate};
use unicode_normalization::UnicodeNormalization;

use crate::tokenizer::tokenizer;

/// One input.
#[derive(Debug, Arbitrary)]
struct Input<'a> {
    limit: u8,
    overlap: u8,
    text: &'a str,
}

/// Checks one text.
pub fn check(data: &[u8]) {
    let Ok(Input { limit, overlap, text }) = Input::arbitrary_take_rest(Unstructured::new(data))
    else {
        return;
    };
    let tokenizer = tokenizer();
    let Ok(tokens) = tokenizer.encode(text, SpecialTokens::PlainText) else { return };
    check_round_trip(tokenizer, text, &tokens);
    check_truncation(&tokens, limit.into());
    check_cut(tokenizer, text, limit.into());
    check_chunks(tokenizer, text, limit.into(), overlap.into());
    for special_tokens in [SpecialTokens::Parse, SpecialTokens::PlainText] {
        let tokens = tokenizer.encode(text, special_tokens).unwrap();
        assert_eq!(tokens.last(), Some(&tokenizer.end_of_text()));
        let pieces = tokenizer.pieces(text, special_tokens).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(), tokens);
    }
}

fn check_round_trip(tokenizer: &Tokenizer, text: &str, tokens: &[u32]) {
    let (&end, tokens) = tokens.split_last().unwrap();
    assert_eq!(end, tokenizer.end_of_text());
    let n_plain = tokenizer.base_vocab_size() as u32;
    assert!(tokens.iter().all(|&token| token < n_plain), "a special token in {tokens:?}");
    let normalized: String = text.nfc().collect();
    assert_eq!(tokenizer.decode(tokens, false).unwrap(), normalized);
}

fn check_truncation(tokens: &[u32], limit: usize) {
    let n = tokens.len().min(limit.max(1)) - 1;
    let (&end, before) = tokens.split_last().unwrap();
    for side in [TruncationSide::Left, TruncationSide::Right] {
        let mut cut = tokens.to_vec();
        truncate(&mut cut, limit, side);
        let kept = match side {
            TruncationSide::Left => &before[before.len() - n..],
            TruncationSide::Right => &before[..n],
        };
        assert_eq!(cut, [kept, &[end]].concat());
    }
}

fn check_cut(tokenizer: &Tokenizer, text: &str, limit: usize) {
    let cut = tokenizer.cut(text, limit).unwrap();
    assert!(text.starts_with(cut));
    let n_tokens = |text: &str| tokenizer.encode(text, SpecialTokens::PlainText).unwrap().len() - 1;
    assert!(cut.len() == text.len() || n_tokens(text) > limit, "cut a text that fits");
}

fn check_chunks(tokenizer: &Tokenizer, text: &str, max_tokens: usize, overlap: usize) {
    let options = ChunkOptions { max_tokens, overlap };
    let Ok(chunks) = tokenizer.chunks(text, &options) else { return };
    let mut end = 0;
    for chunk in &chunks {
        assert_eq!(&text[chunk.range.clone()], chunk.text);
        assert!(chunk.range.end >= end && !chunk.text.is_empty());
        if chunk.range.start > end {
            let between = &text[end..chunk.range.start];
            assert!(between.chars().all(char::is_whitespace), "left out {between:?}");
        }
        end = chunk.range.end;
        assert!(
            chunk.n_tokens <= max_tokens || chunk.text.chars().count() == 1,
            "{chunk:?} has more than {max_tokens} tokens"
        );
    }
    assert!(text[end..].chars().all(char::is_whitespace), "left out {:?}", &text[end..]);
}

/// Texts of several scripts, with special tokens and combining marks.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "The weather is great today. Perfect for a walk!\n\nIt's 21°C.",
        "今天天气真好，适合出去散步。今日の天気はとても良いです。오늘 날씨가 정말 좋네요.",
        "<|im_start|>user\n<|endoftext|> e\u{301}\u{327} \u{1f469}\u{200d}\u{1f680} \u{202e}abc\u{202c} \u{1100}\u{1161}",
    ];
    texts.map(|text| [&[8, 2], text.as_bytes()].concat()).to_vec()
}
