//! Where a long text can be divided, so that its parts have the same tokens as the whole text.
//!
//! The tokenizers crate needs up to 370 bytes of memory for each byte of a text, which is 3.6 GB for 10 MB of digits.
//! A text that is tokenized in parts needs this memory for one part at a time.

use std::iter;
use std::ops::Range;

use tokenizers::{NormalizerWrapper, Tokenizer};

use crate::vocabulary::pre_tokenizer;

/// The length of a part in bytes. A part ends at the first boundary after this length.
const PART: usize = 32 * 1024;

/// The length of the parts in which a tokenizer tokenizes a text: [`PART`], or `usize::MAX` if texts cannot be divided.
pub(crate) fn part_length(tokenizer: &Tokenizer) -> usize {
    if divides(tokenizer) { PART } else { usize::MAX }
}

/// Whether texts can be divided at every [`is_boundary`] without changing their tokens.
///
/// This is so if the text is split in the way of Qwen3, and if no added token contains a boundary or depends on the
/// characters beside it.
fn divides(tokenizer: &Tokenizer) -> bool {
    let is_qwen3 = matches!(tokenizer.get_normalizer(), Some(NormalizerWrapper::NFC(_)))
        && pre_tokenizer().is_ok_and(|expected| tokenizer.get_pre_tokenizer() == Some(&expected));
    is_qwen3
        && tokenizer.get_added_tokens_decoder().values().all(|token| {
            let followed = token.content.chars().zip(token.content.chars().skip(1));
            !(token.lstrip || token.rstrip || token.single_word)
                && followed.into_iter().all(|(before, after)| !is_boundary(before, after))
        })
}

/// The ranges of the parts of a text, in bytes. Each part but the last has at least `length` bytes.
pub(crate) fn parts(text: &str, length: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0usize;
    iter::from_fn(move || {
        let range = start..boundary(text, start.saturating_add(length));
        start = range.end;
        (!range.is_empty()).then_some(range)
    })
}

/// The first boundary after the first character that begins at `least` or later, or the end of the text.
fn boundary(text: &str, least: usize) -> usize {
    let least = (least..text.len()).find(|&at| text.is_char_boundary(at));
    let least = least.unwrap_or(text.len());
    let chars = text[least..].char_indices();
    let mut followed = chars.clone().zip(chars.skip(1));
    let end = followed.find(|&((_, before), (_, after))| is_boundary(before, after));
    end.map_or(text.len(), |(_, (at, _))| least + at)
}

/// Whether a text can be divided between two characters, whatever is before and after them.
///
/// Normalization form C changes nothing across the boundary, because `after` does not combine with what is before it.
/// The regular expression of Qwen3 never matches both characters at once: white space is matched only at the start of a
/// match or together with other white space, a digit only alone, and a letter only together with letters after it. It
/// also never looks at what is before a match.
fn is_boundary(before: char, after: char) -> bool {
    match after {
        ' ' => !before.is_whitespace(),
        '\n' | '。' | '、' | '，' | '！' | '？' if is_plain_letter(before) => true,
        _ => before.is_ascii_digit() && after.is_ascii(),
    }
}

/// Whether a character is a letter of the most frequent scripts without combining marks.
fn is_plain_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || matches!(c, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}')
        || matches!(c, '\u{ac00}'..='\u{d7a3}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use qwen3_embed_testing::fixtures;
    use serde_json::{Value, json};
    use tokenizers::{
        NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
        PreTokenizer,
    };

    use super::*;

    fn json() -> Value {
        fixtures::read_json(&fixtures::path("tokenizer.json"))
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(fs::read(fixtures::path("tokenizer.json")).unwrap()).unwrap()
    }

    /// Whether the tokenizer of the fixtures divides texts after a change to its file.
    fn divides_after(change: impl FnOnce(&mut Value)) -> bool {
        let mut json = json();
        change(&mut json);
        divides(&Tokenizer::from_bytes(json.to_string()).unwrap())
    }

    /// The token ids of a text, and the words of which the tokens are parts.
    fn tokens_and_words(tokenizer: &Tokenizer, text: &str) -> (Vec<u32>, Vec<String>) {
        let ids = tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
        let mut normalized = NormalizedString::from(text);
        tokenizer.get_normalizer().unwrap().normalize(&mut normalized).unwrap();
        let mut words = PreTokenizedString::from(normalized);
        tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut words).unwrap();
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        (ids, words.into_iter().map(|(word, ..)| word.to_owned()).collect())
    }

    /// Pieces of text that the regular expression, normalization, or added tokens treat in their own way, and any
    /// other character.
    fn piece() -> impl Strategy<Value = String> {
        let pieces = [
            " ",
            "  ",
            "\n",
            "\r",
            "\r\n",
            "\t",
            "\u{3000}",
            "\u{a0}",
            "\u{85}",
            "\u{2028}",
            "'",
            "'s",
            "'LL",
            "a",
            "word",
            "É",
            "e\u{301}",
            "\u{301}",
            "\u{327}",
            "\u{3099}",
            "\u{1100}",
            "\u{1161}",
            "\u{11a8}",
            "가",
            "각",
            "か",
            "ガ",
            "天",
            "气",
            "。",
            "、",
            "，",
            "！",
            "？",
            "、\u{3099}",
            "0",
            "12",
            "٣",
            "½",
            "Ⓐ",
            "ⅷ",
            ".",
            ",",
            "<|endoftext|>",
            "<|im_end|>",
            "<|im",
            "|>",
            "<",
            "\u{200d}",
            "👩\u{200d}🚀",
            "\u{0}",
            "क\u{93f}",
            "\u{915}\u{94d}",
            "\u{338}",
            "=\u{338}",
            "K",
            "ſ",
        ];
        prop_oneof![
            9 => select(pieces.as_slice().to_vec()).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parts_have_the_tokens_of_the_text(pieces in vec(piece(), 0..40), length in 0..20usize) {
            thread_local!(static TOKENIZER: Tokenizer = tokenizer());
            let text = pieces.concat();
            let parts: Vec<_> = parts(&text, length).collect();
            let mut end = 0;
            for part in &parts {
                prop_assert_eq!(part.start, end);
                prop_assert!(part.len() >= length || part.end == text.len());
                end = part.end;
            }
            prop_assert_eq!(end, text.len());
            TOKENIZER.with(|tokenizer| {
                let of_parts = parts.iter().map(|part| tokens_and_words(tokenizer, &text[part.clone()]));
                let (ids, words): (Vec<_>, Vec<_>) = of_parts.unzip();
                prop_assert_eq!((ids.concat(), words.concat()), tokens_and_words(tokenizer, &text));
                Ok(())
            })?;
        }
    }

    #[test]
    fn most_texts_have_boundaries() {
        let texts = [
            "The weather is great today. Perfect for a walk! ",
            "今天天气真好，适合出去散步。今日の天気はとても良いです。",
            "오늘 날씨가 정말 좋네요. 산책하러 나가요! ",
            "Сегодня прекрасная погода. मौसम आज बहुत अच्छा है। الطقس رائع اليوم. ",
            "0123456789",
            "id,text\n1,abc\n2,def\n",
        ];
        for text in texts {
            let text = text.repeat(5_000);
            let longest = parts(&text, PART).map(|part| part.len()).max().unwrap();
            assert!(longest < PART + 100, "{longest} {}", &text[..20]);
        }
    }

    #[test]
    fn only_tokenizers_of_qwen3_divide_texts() {
        assert!(divides(&tokenizer()));
        assert!(!divides_after(|json| json["normalizer"] = Value::Null));
        assert!(!divides_after(|json| json["normalizer"] = json!({ "type": "NFKC" })));
        assert!(!divides_after(|json| json["pre_tokenizer"] = Value::Null));
        assert!(!divides_after(|json| {
            json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\s+|\S+");
        }));
    }

    #[test]
    fn added_tokens_that_look_past_a_boundary_prevent_division() {
        for (field, value) in [
            ("content", json!("two words")),
            ("content", json!("<|reserved_10|>")),
            ("lstrip", json!(true)),
            ("rstrip", json!(true)),
            ("single_word", json!(true)),
        ] {
            let change = |json: &mut Value| json["added_tokens"][1][field] = value.clone();
            assert!(!divides_after(change), "{field}: {value}");
        }
    }
}
