//! Compares token ids with those of transformers, and checks that the end-of-text token is appended with any
//! post-processor.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed_testing::fixtures;
use qwen3_embed_text::{
    DEFAULT_INSTRUCTION, Error, SpecialTokens, Tokenizer, TruncationSide, Vocabulary,
    check_white_space, instruct, truncate,
};
use serde_json::{Value, json};

fn tokenizer_json() -> Value {
    fixtures::read_json(&fixtures::path("tokenizer.json"))
}

fn load(path: &Path) -> Tokenizer {
    Tokenizer::from_json(&fs::read(path).unwrap(), path).unwrap()
}

fn tokenizer() -> Tokenizer {
    load(&fixtures::path("tokenizer.json"))
}

/// The tokenizer of the fixtures, after a change to its file.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, Error> {
    let mut json = tokenizer_json();
    change(&mut json);
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("tokenizer.json"))
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, SpecialTokens::Parse).unwrap()
}

fn cases() -> Vec<Value> {
    let cases = fixtures::read_json(&fixtures::path("tokenizer_cases.json"));
    cases.as_array().unwrap().clone()
}

const EOS: u32 = 1000;
const IM_END: u32 = 1002;

#[test]
fn tokens_and_truncation_match_transformers() {
    let tokenizer = tokenizer();
    let cases = cases();
    assert!(cases.len() > 50);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let mut tokens = encode(&tokenizer, text);
        if let Some(limit) = case["max_tokens"].as_u64() {
            let left = case["side"] == "left";
            let side = if left { TruncationSide::Left } else { TruncationSide::Right };
            truncate(&mut tokens, limit as usize, side);
        }
        assert_eq!(tokens, expected, "{case}");
    }
}

#[test]
fn encode_batch_keeps_the_order() {
    let texts: Vec<String> = (0..200).map(|i| "word ".repeat(i % 7) + &i.to_string()).collect();
    let tokenizer = tokenizer();
    let batch = tokenizer.encode_batch(&texts, SpecialTokens::Parse).unwrap();
    let single: Vec<_> = texts.iter().map(|text| encode(&tokenizer, text)).collect();
    assert_eq!(batch, single);
}

#[test]
fn appends_end_of_text_once_with_any_post_processor() {
    let with_template = encode(&tokenizer(), "hello");
    assert_eq!(with_template.last(), Some(&EOS));
    assert_eq!(with_template.iter().filter(|&&id| id == EOS).count(), 1);
    let byte_level = tokenizer_json()["post_processor"]["processors"][0].clone();
    for post_processor in [Value::Null, byte_level] {
        let tokenizer = changed(|json| json["post_processor"] = post_processor).unwrap();
        assert_eq!(encode(&tokenizer, "hello"), with_template);
    }
}

#[test]
fn empty_text_is_encoded_as_end_of_text() {
    for mode in [SpecialTokens::Parse, SpecialTokens::PlainText] {
        assert_eq!(tokenizer().encode("", mode).unwrap(), [EOS]);
    }
}

#[test]
fn rejects_post_processor_of_another_kind_of_model() {
    let error = changed(|json| {
        json["post_processor"]["processors"][1]["single"] = json!([
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        ]);
    });
    assert!(matches!(error, Err(Error::PostProcessor { .. })), "{error:?}");
}

#[test]
fn rejects_tokenizer_without_end_of_text() {
    let error = changed(|json| {
        json["post_processor"] = Value::Null;
        json["added_tokens"].as_array_mut().unwrap().remove(0);
    });
    assert!(matches!(error, Err(Error::NoEndOfText { .. })), "{error:?}");
}

#[test]
fn ignores_truncation_and_padding_settings() {
    let plain = encode(&tokenizer(), "a rather long sentence");
    let tokenizer = changed(|json| {
        json["truncation"] = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        json["padding"] = json!({
            "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"
        });
    });
    assert_eq!(encode(&tokenizer.unwrap(), "a rather long sentence"), plain);
}

#[test]
fn plain_text_mode_never_produces_special_tokens() {
    let tokenizer = tokenizer();
    for token in tokenizer_json()["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as u32;
        let text = format!("before {} after", token["content"].as_str().unwrap());
        assert!(encode(&tokenizer, &text).contains(&id), "{text}");
        let plain = tokenizer.encode(&text, SpecialTokens::PlainText).unwrap();
        assert!(plain[..plain.len() - 1].iter().all(|&id| id < EOS), "{text}: {plain:?}");
        assert_eq!(plain.last(), Some(&EOS));
    }
    for text in ["no special token", "今天天气真好", "", " ", "A\u{30a}"] {
        let plain = tokenizer.encode(text, SpecialTokens::PlainText).unwrap();
        assert_eq!(plain, encode(&tokenizer, text), "{text}");
    }
}

#[test]
fn keeps_special_token_at_the_end_of_a_text() {
    let tokens = encode(&tokenizer(), "stop<|im_end|>");
    assert_eq!(tokens[tokens.len() - 2..], [IM_END, EOS]);
}

#[test]
fn instruct_puts_no_space_before_the_query() {
    assert_eq!(
        instruct(DEFAULT_INSTRUCTION, "What is the capital of China?"),
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n\
         Query:What is the capital of China?"
    );
}

#[test]
fn truncate_keeps_the_last_token_at_every_limit() {
    let tokens = vec![1, 2, 3, 9];
    for limit in 0..6 {
        for side in [TruncationSide::Left, TruncationSide::Right] {
            let mut cut = tokens.clone();
            truncate(&mut cut, limit, side);
            assert_eq!(cut.len(), limit.clamp(1, 4));
            assert_eq!(cut.last(), Some(&9));
        }
    }
    let mut empty = Vec::new();
    truncate(&mut empty, 3, TruncationSide::Right);
    truncate(&mut empty, 0, TruncationSide::Left);
    assert!(empty.is_empty());
}

#[test]
fn rejects_file_that_is_not_a_tokenizer_and_names_it() {
    let whole = tokenizer_json().to_string();
    for json in ["", "{}", "[]", "null", "{\"model\": 1}", &whole[..whole.len() / 2]] {
        let path = Path::new("folder/tokenizer.json");
        let error = Tokenizer::from_json(json.as_bytes(), path).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{json}: {error}");
        assert_eq!(error.to_string(), "folder/tokenizer.json does not contain a valid tokenizer");
    }
}

#[test]
fn rejects_file_on_which_the_parser_panics() {
    let error = changed(|json| {
        json["post_processor"]["processors"][1]["special_tokens"] = json!({});
    });
    assert!(matches!(error, Err(Error::Tokenizer { .. })), "{error:?}");
    let whole = tokenizer_json().to_string();
    let cut = &whole[..whole.find("\"decoder\":{").unwrap() + 15];
    let error = Tokenizer::from_json(cut.as_bytes(), Path::new("tokenizer.json"));
    assert!(matches!(error, Err(Error::Tokenizer { .. })), "{error:?}");
}

#[test]
fn rejects_white_space_beyond_the_regex_engines_limit() {
    let tokenizer = tokenizer();
    // A run of white space up to the limit is split like any other run: its last character belongs to the next word.
    let after = encode(&tokenizer, " hello you");
    let text = format!("{}hello you", " ".repeat(500_000));
    assert!(encode(&tokenizer, &text).ends_with(&after));
    check_white_space(&text).unwrap();
    for white_space in [' ', '\u{3000}'] {
        let text = format!("a{}hello", String::from(white_space).repeat(500_001));
        for mode in [SpecialTokens::Parse, SpecialTokens::PlainText] {
            let error = tokenizer.encode(&text, mode).unwrap_err();
            assert!(matches!(error, Error::WhiteSpace { got: 500_001, .. }), "{error}");
        }
        let error = check_white_space(&text).unwrap_err();
        assert!(matches!(error, Error::WhiteSpace { text: 0, got: 500_001, .. }), "{error}");
    }
}

/// The vocabulary of a GGUF file.
#[derive(Clone)]
struct Parts {
    model: String,
    pre_tokenizer: String,
    tokens: Vec<String>,
    token_types: Vec<i32>,
    merges: Vec<String>,
}

impl Parts {
    /// Converts a `tokenizer.json` in the way in which llama.cpp's converter does.
    fn of_json(json: &Value) -> Self {
        let mut tokens: Vec<(u64, String, i32)> = Vec::new();
        for (token, id) in json["model"]["vocab"].as_object().unwrap() {
            tokens.push((id.as_u64().unwrap(), token.clone(), 1));
        }
        for token in json["added_tokens"].as_array().unwrap() {
            let kind = if token["special"].as_bool().unwrap() { 3 } else { 4 };
            let content = token["content"].as_str().unwrap().to_owned();
            tokens.push((token["id"].as_u64().unwrap(), content, kind));
        }
        tokens.sort_unstable();
        assert!(tokens.iter().map(|token| token.0).eq(0..tokens.len() as u64));
        let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        });
        Self {
            model: "gpt2".into(),
            pre_tokenizer: "qwen2".into(),
            merges: merges.collect(),
            token_types: tokens.iter().map(|token| token.2).collect(),
            tokens: tokens.into_iter().map(|token| token.1).collect(),
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let vocabulary = Vocabulary {
            model: &self.model,
            pre_tokenizer: &self.pre_tokenizer,
            tokens: &self.tokens,
            token_types: &self.token_types,
            merges: &self.merges,
        };
        Tokenizer::from_vocabulary(&vocabulary, Path::new("folder/model.gguf"))
    }

    fn error(mut self, change: impl FnOnce(&mut Self)) -> Error {
        change(&mut self);
        self.tokenizer().unwrap_err()
    }
}

/// The texts of the tokenizer cases, the lines of the corpus, and overlapping pieces of the corpus.
fn many_texts() -> Vec<String> {
    let mut texts: Vec<String> =
        cases().iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    let corpus = fs::read_to_string(fixtures::path("corpus.txt")).unwrap();
    texts.extend(corpus.lines().map(str::to_owned));
    let chars: Vec<char> = corpus.chars().collect();
    texts.extend(chars.windows(41).step_by(7).map(String::from_iter));
    texts
}

fn assert_same_tokens(json: &Tokenizer, vocabulary: &Tokenizer) {
    let texts = many_texts();
    assert!(texts.len() > 500);
    assert_eq!(json.end_of_text(), vocabulary.end_of_text());
    assert_eq!(json.base_vocab_size(), vocabulary.base_vocab_size());
    for mode in [SpecialTokens::Parse, SpecialTokens::PlainText] {
        let (a, b) = (json.encode_batch(&texts, mode), vocabulary.encode_batch(&texts, mode));
        for ((text, a), b) in texts.iter().zip(a.unwrap()).zip(b.unwrap()) {
            assert_eq!(a, b, "{text}");
        }
    }
}

#[test]
fn gguf_vocabulary_gives_the_tokens_of_tokenizer_json() {
    let parts = Parts::of_json(&tokenizer_json());
    assert_same_tokens(&tokenizer(), &parts.tokenizer().unwrap());
}

#[test]
fn unused_tokens_do_not_change_the_ids_of_other_tokens() {
    let parts = Parts::of_json(&tokenizer_json());
    let mut padded = parts.clone();
    for i in 0..10 {
        padded.tokens.push(format!("[PAD{i}]"));
        padded.token_types.push(5);
    }
    assert_same_tokens(&tokenizer(), &padded.tokenizer().unwrap());
    // An unused token between the base vocabulary and the added tokens.
    let mut unused = parts;
    unused.tokens.insert(1000, "[PAD]".into());
    unused.token_types.insert(1000, 5);
    let unused = unused.tokenizer().unwrap();
    for text in many_texts() {
        let tokens = encode(&unused, &text).into_iter();
        let renumbered: Vec<u32> = tokens.map(|id| id - u32::from(id > 1000)).collect();
        assert_eq!(renumbered, encode(&tokenizer(), &text), "{text}");
    }
}

#[test]
fn rejects_vocabulary_of_another_model_and_says_why() {
    let parts = Parts::of_json(&tokenizer_json());
    let refused = |change: &dyn Fn(&mut Parts)| parts.clone().error(change).to_string();
    assert_eq!(
        refused(&|p| p.model = "llama".into()),
        "folder/model.gguf: the kind of tokenizer: expected gpt2, got llama"
    );
    assert_eq!(
        refused(&|p| p.pre_tokenizer = "llama-bpe".into()),
        "folder/model.gguf: the pre-tokenizer: expected qwen2, got llama-bpe"
    );
    assert_eq!(
        refused(&|p| p.token_types.truncate(1025)),
        "folder/model.gguf: the number of token types: expected 1026, got 1025"
    );
    assert_eq!(
        refused(&|p| p.token_types[7] = 9),
        "folder/model.gguf: the type of token 7: expected 1 to 6, got 9"
    );
    assert_eq!(
        refused(&|p| p.tokens[900] = p.tokens[901].clone()),
        format!(
            "folder/model.gguf: token `{}`: expected one entry, got two entries",
            parts.tokens[901]
        )
    );
    assert_eq!(
        refused(&|p| p.merges[3] = "ab".into()),
        "folder/model.gguf: merge 3: expected two tokens with a space between them, got `ab`"
    );
    assert_eq!(
        refused(&|p| p.token_types[0] = 5),
        "folder/model.gguf: the tokens of single bytes: expected all 256, got 255 of them"
    );
    let error = parts.clone().error(|p| p.merges[3] = "not there".into());
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
    let error = parts.clone().error(|p| p.tokens[EOS as usize] = "<|end_of_text|>".into());
    assert!(matches!(error, Error::NoEndOfText { expected: "<|endoftext|>", .. }), "{error}");
    let error = parts.clone().error(|p| {
        p.tokens.clear();
        p.token_types.clear();
        p.merges.clear();
    });
    assert!(matches!(error, Error::Vocabulary { .. }), "{error}");
}

/// Runs only if the published tokenizer is on this machine.
#[test]
fn published_gguf_vocabulary_gives_the_tokens_of_tokenizer_json() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/qwen3-tokenizer.json");
    if !path.is_file() {
        return;
    }
    let json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_same_tokens(&load(&path), &Parts::of_json(&json).tokenizer().unwrap());
}

/// Runs only if the published tokenizer is on this machine.
#[test]
fn published_tokenizer_gives_known_tokens() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/qwen3-tokenizer.json");
    if !path.is_file() {
        return;
    }
    let tokenizer = load(&path);
    assert_eq!(tokenizer.base_vocab_size(), 151_643);
    let cases: [(&str, &[u32]); 2] = [
        (
            "今天天气真好,适合出去散步",
            &[100_644, 104_307, 88_051, 52_801, 11, 100_231, 102_057, 111_261, 151_643],
        ),
        (
            "The weather is great today, perfect for a walk",
            &[785, 9104, 374, 2244, 3351, 11, 4727, 369, 264, 4227, 151_643],
        ),
    ];
    for (text, tokens) in cases {
        assert_eq!(encode(&tokenizer, text), tokens);
    }
    let query = instruct(DEFAULT_INSTRUCTION, "What is the capital of China?");
    assert_eq!(encode(&tokenizer, &query).len(), 27);
    assert_eq!(encode(&tokenizer, "The capital of China is Beijing.").len(), 8);
}

/// A text that is tokenized in several parts.
fn long_text() -> String {
    let corpus = fs::read_to_string(fixtures::path("corpus.txt")).unwrap();
    let text = [&corpus[..corpus.len() / 2], "<|im_end|>", &corpus[corpus.len() / 2..]].concat();
    text.repeat(120_000 / text.len() + 1)
}

#[test]
fn the_start_of_a_text_has_the_tokens_of_the_truncated_text() {
    let text = long_text();
    for tokenizer in [tokenizer(), tokenizer().follow_file_for_end_of_text()] {
        for special_tokens in [SpecialTokens::Parse, SpecialTokens::PlainText] {
            let tokens = tokenizer.encode(&text, special_tokens).unwrap();
            let n_tokens = tokens.len();
            for max_tokens in [0, 1, 2, 1000, n_tokens / 2, n_tokens - 1, n_tokens, n_tokens + 1] {
                let mut expected = tokens.clone();
                match tokenizer.appends_end_of_text() {
                    true => truncate(&mut expected, max_tokens, TruncationSide::Right),
                    false => expected.truncate(max_tokens),
                }
                let start = tokenizer.encode_start(&text, special_tokens, max_tokens).unwrap();
                assert_eq!(start, expected, "{max_tokens}");
            }
        }
    }
}

#[test]
fn pieces_of_a_long_text_cover_it_in_order() {
    let (tokenizer, text) = (tokenizer(), long_text());
    let chars: Vec<char> = text.chars().collect();
    for special_tokens in [SpecialTokens::Parse, SpecialTokens::PlainText] {
        let pieces = tokenizer.pieces(&text, special_tokens).unwrap();
        let (last, pieces) = pieces.split_last().unwrap();
        assert_eq!((last.id, last.start, last.end), (EOS, chars.len(), chars.len()));
        let mut end = 0;
        for piece in pieces {
            assert_eq!(piece.text, chars[piece.start..piece.end].iter().collect::<String>());
            // If a character consists of several tokens, each of them has the whole character.
            assert!(piece.start <= end && piece.end >= end && piece.start < piece.end, "{piece:?}");
            end = piece.end;
        }
        assert_eq!(end, chars.len());
    }
}

#[test]
fn a_long_text_is_cut_where_its_tokens_end() {
    let (tokenizer, text) = (tokenizer(), long_text());
    let n_tokens = tokenizer.encode(&text, SpecialTokens::PlainText).unwrap().len() - 1;
    assert_eq!(tokenizer.cut(&text, n_tokens).unwrap(), text);
    for max_tokens in [1, 1000, n_tokens / 2, n_tokens - 1] {
        let cut = tokenizer.cut(&text, max_tokens).unwrap();
        assert!(text.starts_with(cut));
        let n_cut = tokenizer.encode(cut, SpecialTokens::PlainText).unwrap().len() - 1;
        // A character may take several tokens, and the end of the cut text may merge in another way.
        assert!(n_cut.abs_diff(max_tokens) <= 4, "{n_cut} {max_tokens}");
    }
}
