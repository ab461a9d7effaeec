//! A GGUF file of a small model.
//!
//! Properties: a file is rejected, or the model runs and its vectors are finite. If candle reads the file, too, the
//! number of tensors agrees.

use std::fs;
use std::io::Cursor;
use std::sync::LazyLock;

use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use qwen3_embed_model::{Checkpoint, Summary};
use tempfile::TempDir;

use crate::files;

/// Checks one file.
pub fn check(data: &[u8]) {
    static DIR: LazyLock<TempDir> =
        LazyLock::new(|| tempfile::tempdir_in(files::memory()).unwrap());
    let path = DIR.path().join("model.gguf");
    fs::write(&path, data).unwrap();
    let _ = files::run(&path);
    let Ok(summary) = Checkpoint::open(&path).and_then(|checkpoint| Summary::of(&checkpoint))
    else {
        return;
    };
    if let Ok(content) = Content::read(&mut Cursor::new(data)) {
        let n_values: usize =
            content.tensor_infos.values().map(|tensor| tensor.shape.elem_count()).sum();
        assert_eq!(summary.n_parameters, n_values as u64);
    }
}

/// A model with one layer, in f32, and in Q8_0 and Q4_K.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![file(8, GgmlDType::F32), file(32, GgmlDType::Q8_0), file(256, GgmlDType::Q4K)]
}

/// A model of width `c` with matrices of type `dtype`.
fn file(c: usize, dtype: GgmlDType) -> Vec<u8> {
    let (vocab, heads, head_dim) = (4, 2, c / 2);
    let norm = |n: usize| (vec![n], GgmlDType::F32);
    let matrix = |rows: usize| (vec![rows, c], dtype);
    let tensors = [
        ("token_embd.weight", matrix(vocab)),
        ("output_norm.weight", norm(c)),
        ("blk.0.attn_norm.weight", norm(c)),
        ("blk.0.attn_q.weight", matrix(heads * head_dim)),
        ("blk.0.attn_k.weight", matrix(head_dim)),
        ("blk.0.attn_v.weight", matrix(head_dim)),
        ("blk.0.attn_output.weight", matrix(c)),
        ("blk.0.attn_q_norm.weight", norm(head_dim)),
        ("blk.0.attn_k_norm.weight", norm(head_dim)),
        ("blk.0.ffn_norm.weight", norm(c)),
        ("blk.0.ffn_gate.weight", matrix(c)),
        ("blk.0.ffn_up.weight", matrix(c)),
        ("blk.0.ffn_down.weight", matrix(c)),
    ];
    let quantize = |(name, (shape, dtype)): (&str, (Vec<usize>, GgmlDType))| {
        let values = Tensor::arange(0f32, shape.iter().product::<usize>() as f32, &Device::Cpu);
        let values = values.unwrap().sin().unwrap().reshape(shape).unwrap().to_dtype(DType::F32);
        (name.to_owned(), QTensor::quantize(&values.unwrap(), dtype).unwrap())
    };
    let tensors: Vec<(String, QTensor)> = tensors.into_iter().map(quantize).collect();
    let tokens = ["a", "b", "ab", "<|endoftext|>"].map(|token| Value::String(token.to_owned()));
    let kinds = [1, 1, 1, 3].map(Value::I32);
    let number = |n: usize| Value::U32(n as u32);
    let metadata = [
        ("general.architecture", Value::String("qwen3".to_owned())),
        ("qwen3.block_count", number(1)),
        ("qwen3.context_length", number(64)),
        ("qwen3.embedding_length", number(c)),
        ("qwen3.feed_forward_length", number(c)),
        ("qwen3.attention.head_count", number(heads)),
        ("qwen3.attention.head_count_kv", number(1)),
        ("qwen3.attention.key_length", number(head_dim)),
        ("qwen3.attention.value_length", number(head_dim)),
        ("qwen3.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("qwen3.rope.freq_base", Value::F32(1e6)),
        ("qwen3.pooling_type", number(3)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("qwen2".to_owned())),
        ("tokenizer.ggml.tokens", Value::Array(tokens.to_vec())),
        ("tokenizer.ggml.token_type", Value::Array(kinds.to_vec())),
        ("tokenizer.ggml.merges", Value::Array(vec![Value::String("a b".to_owned())])),
    ];
    let metadata: Vec<(&str, &Value)> =
        metadata.iter().map(|(name, value)| (*name, value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut file = Cursor::new(Vec::new());
    write(&mut file, &metadata, &tensors).unwrap();
    file.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_valid() {
        let dir = tempfile::tempdir().unwrap();
        for seed in seeds() {
            let path = dir.path().join("model.gguf");
            fs::write(&path, seed).unwrap();
            files::run(&path).unwrap();
        }
    }
}
