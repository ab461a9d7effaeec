//! The metadata of a GGUF file: the configuration and the tokenizer of a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::Value;
use qwen3_embed::Tokenizer;
use qwen3_embed_model::{Checkpoint, Config, StoredTokenizer};
use serde::Deserialize;

/// The type of a token, with the numbers of ggml.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The version of ggml's blocks.
const QUANTIZATION_VERSION: u32 = 2;
/// The pooling of the last token.
const POOLING_LAST: u32 = 3;

/// The parts of a `tokenizer.json` that a GGUF file has.
#[derive(Deserialize)]
struct TokenizerJson {
    model: Bpe,
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: BTreeMap<String, usize>,
    merges: Vec<Merge>,
}

/// A pair of tokens. Older files have one string with a space.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Joined(String),
}

#[derive(Deserialize)]
struct AddedToken {
    id: usize,
    content: String,
    special: bool,
}

/// The metadata that llama.cpp's converter writes for an embedding model, as far as programs read them. `file_type` is
/// llama.cpp's number of the mixture of types.
pub(super) fn of_model(checkpoint: &Checkpoint, file_type: u32) -> Result<Vec<(String, Value)>> {
    let folder = checkpoint.path();
    let name = folder.file_name().map_or("model".into(), |name| name.to_string_lossy());
    let mut metadata = vec![
        ("general.architecture".to_owned(), string("qwen3")),
        ("general.type".to_owned(), string("model")),
        ("general.name".to_owned(), string(&name)),
        ("general.file_type".to_owned(), Value::U32(file_type)),
        ("general.quantization_version".to_owned(), Value::U32(QUANTIZATION_VERSION)),
    ];
    metadata.extend(of_config(checkpoint.config())?);
    let StoredTokenizer::Json { path, contents } = checkpoint.tokenizer()? else {
        bail!("{}: expected a folder with a tokenizer.json", folder.display())
    };
    metadata.extend(of_tokenizer(&contents, &path, checkpoint.config().vocab_size)?);
    Ok(metadata)
}

fn of_config(config: &Config) -> Result<Vec<(String, Value)>> {
    let counts = [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("pooling_type", POOLING_LAST as usize),
    ];
    let mut metadata = Vec::new();
    for (key, count) in counts {
        metadata.push((format!("qwen3.{key}"), Value::U32(count.try_into()?)));
    }
    let (epsilon, base) = (config.rms_norm_eps as f32, config.rope_theta as f32);
    metadata.push(("qwen3.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(epsilon)));
    metadata.push(("qwen3.rope.freq_base".to_owned(), Value::F32(base)));
    Ok(metadata)
}

/// The tokenizer. The matrix of token embeddings may have more rows than there are tokens. The other rows belong to
/// unused tokens.
fn of_tokenizer(json: &[u8], path: &Path, vocab_size: usize) -> Result<Vec<(String, Value)>> {
    let end_of_text = Tokenizer::from_json(json, path)?.end_of_text();
    let TokenizerJson { model, added_tokens } =
        serde_json::from_slice(json).with_context(|| path.display().to_string())?;
    let mut tokens: Vec<(String, i32)> =
        (0..vocab_size).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
    let normal = model.vocab.into_iter().map(|(token, id)| (id, token, NORMAL));
    let added = added_tokens
        .into_iter()
        .map(|token| (token.id, token.content, if token.special { CONTROL } else { USER_DEFINED }));
    for (id, token, kind) in normal.chain(added) {
        let what = path.display();
        ensure!(id < vocab_size, "{what}: expected ids below {vocab_size}, got {id} for `{token}`");
        tokens[id] = (token, kind);
    }
    let merges = model.merges.into_iter().map(|merge| match merge {
        Merge::Pair([left, right]) => Value::String(format!("{left} {right}")),
        Merge::Joined(merge) => Value::String(merge),
    });
    let (tokens, kinds): (Vec<Value>, Vec<Value>) =
        tokens.into_iter().map(|(token, kind)| (Value::String(token), Value::I32(kind))).unzip();
    let fields = [
        ("model", string("gpt2")),
        ("pre", string("qwen2")),
        ("tokens", Value::Array(tokens)),
        ("token_type", Value::Array(kinds)),
        ("merges", Value::Array(merges.collect())),
        ("eos_token_id", Value::U32(end_of_text)),
        ("add_eos_token", Value::Bool(true)),
    ];
    let key = |(field, value)| (format!("tokenizer.ggml.{field}"), value);
    Ok(fields.into_iter().map(key).collect())
}

fn string(value: &str) -> Value {
    Value::String(value.to_owned())
}
