//! Chunks of long texts: their size, their boundaries, and what they cover.
#![allow(clippy::unwrap_used)]

use std::fs;

use qwen3_embed_testing::fixtures;
use qwen3_embed_text::{Chunk, ChunkOptions, Error, SpecialTokens, Tokenizer};

/// A paragraph in each of four languages. A sentence ends with the punctuation of its language.
const PARAGRAPHS: [&str; 4] = [
    "今天天气真好。我们去公园散步吧！你想带什么？我带了面包和水。",
    "The weather is great today. Let's go for a walk! What do you want to bring? I have bread.",
    "今日はとても良い天気です。公園へ散歩に行きましょう！何を持って行きますか？パンと水があります。",
    "오늘 날씨가 정말 좋네요. 공원에 산책하러 가요! 무엇을 가져갈까요? 빵과 물이 있어요.",
];

fn tokenizer() -> Tokenizer {
    let path = fixtures::path("tokenizer.json");
    Tokenizer::from_json(&fs::read(&path).unwrap(), &path).unwrap()
}

fn chunks<'a>(text: &'a str, max_tokens: usize, overlap: usize) -> Vec<Chunk<'a>> {
    tokenizer().chunks(text, &ChunkOptions { max_tokens, overlap }).unwrap()
}

fn n_tokens(text: &str) -> usize {
    tokenizer().encode(text, SpecialTokens::PlainText).unwrap().len()
}

#[test]
fn chunks_fit_and_cover_the_text() {
    let text = fs::read_to_string(fixtures::path("corpus.txt")).unwrap();
    let text: String = text.chars().take(6_000).collect();
    for (max_tokens, overlap) in [(16, 0), (64, 0), (64, 20), (300, 50)] {
        let mut covered = 0;
        for chunk in chunks(&text, max_tokens, overlap) {
            assert_eq!(chunk.text, &text[chunk.range.clone()]);
            assert_eq!(chunk.text, chunk.text.trim());
            assert_eq!(chunk.n_tokens, n_tokens(chunk.text));
            assert!(chunk.n_tokens <= max_tokens, "{} > {max_tokens}", chunk.n_tokens);
            // What lies between two chunks is white space; with an overlap, the second one may begin earlier.
            let start = chunk.range.start;
            assert!(start >= covered || overlap > 0, "{start} {covered}");
            assert!(text[covered.min(start)..start].trim().is_empty());
            assert!(chunk.range.end > covered);
            covered = chunk.range.end;
        }
        assert!(text[covered..].trim().is_empty());
    }
}

#[test]
fn chunks_end_at_sentence_ends_in_four_scripts() {
    for paragraph in PARAGRAPHS {
        let longest =
            paragraph.split_inclusive(['。', '！', '？', '.', '!', '?']).map(n_tokens).max();
        let chunks = chunks(paragraph, longest.unwrap() + 1, 0);
        assert!(chunks.len() > 1, "{chunks:?}");
        for chunk in chunks {
            assert!(chunk.text.ends_with(['。', '！', '？', '.', '!', '?']), "{}", chunk.text);
        }
    }
}

#[test]
fn chunks_prefer_blank_lines_to_sentence_ends() {
    let text = PARAGRAPHS.join("\n\n");
    let longest = PARAGRAPHS.map(n_tokens).into_iter().max().unwrap();
    let parts: Vec<_> = chunks(&text, longest, 0).into_iter().map(|chunk| chunk.text).collect();
    assert!(PARAGRAPHS.iter().all(|paragraph| parts.iter().any(|part| part.contains(paragraph))));
}

#[test]
fn chunks_overlap_by_whole_sentences() {
    let sentence = "Let's go for a walk!";
    let limit = n_tokens("Let's go for a walk! What do you want to bring?");
    let parts = chunks(PARAGRAPHS[1], limit, n_tokens(sentence) + 1);
    assert!(parts[0].text.ends_with(sentence), "{parts:?}");
    assert!(parts[1].text.starts_with(sentence), "{parts:?}");
    // An overlap that is shorter than the sentence repeats nothing.
    let parts = chunks(PARAGRAPHS[1], limit, 2);
    assert!(parts[0].range.end <= parts[1].range.start, "{parts:?}");
}

#[test]
fn short_and_empty_texts_need_one_and_no_chunk() {
    assert_eq!(chunks("a", 8, 0).len(), 1);
    assert!(chunks("", 8, 0).is_empty());
    assert!(chunks(" \n ", 8, 0).is_empty());
}

#[test]
fn spelling_of_special_tokens_stays_text() {
    let text = "<|endoftext|>";
    let [chunk] = &chunks(text, 32, 0)[..] else { panic!("one chunk") };
    assert_eq!(chunk.text, text);
    assert!(chunk.n_tokens > 2);
}

#[test]
fn rejects_chunks_that_are_not_larger_than_their_overlap() {
    for (max_tokens, overlap, needed) in [(0, 0, 2), (1, 0, 2), (8, 7, 9), (8, 100, 102)] {
        let error = tokenizer().chunks("a b", &ChunkOptions { max_tokens, overlap }).unwrap_err();
        let Error::ChunkSize { min, .. } = error else { panic!("{error}") };
        assert_eq!(min, needed);
    }
}

/// text-splitter makes one chunk of more than eight tokens of a part of this text, in which a longer text has fewer
/// tokens. Fuzzing found it.
#[test]
fn a_chunk_is_never_too_long_although_a_longer_text_may_have_fewer_tokens() {
    let text = "The weawalkPerfether!)is gpr eKQ\u{344}!*\u{0}\u{0}etfco frr a w\u{1}\u{11}\u{0}\u{0}aor( A wa";
    for limit in 2..20 {
        for chunk in chunks(text, limit, 0) {
            assert_eq!(chunk.n_tokens, n_tokens(chunk.text));
            assert!(
                chunk.n_tokens <= limit || chunk.text.chars().count() == 1,
                "{chunk:?} {limit}"
            );
        }
    }
}
