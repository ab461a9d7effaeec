//! Models whose files are in memory: the same results and errors as from the same files in a folder.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed_model::{
    Checkpoint, Error, Folder, LoadOptions, Model, Precision, StoredTokenizer, Summary,
};
use qwen3_embed_testing::fixtures;

type Files = Vec<(&'static str, &'static [u8])>;

/// The files in a folder, in memory until the program ends. Their contents begin at addresses that are `offset` more
/// than a multiple of 64.
fn read(dir: &Path, prefix: &str, offset: usize) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            files.extend(read(&path, &format!("{name}/"), offset));
            continue;
        }
        let contents = fs::read(&path).unwrap();
        let mut bytes = vec![0; contents.len() + 128];
        let start = bytes.as_ptr().addr().next_multiple_of(64) - bytes.as_ptr().addr() + offset;
        bytes[start..][..contents.len()].copy_from_slice(&contents);
        files.push((name.leak(), &bytes.leak()[start..][..contents.len()]));
    }
    files
}

fn in_memory(files: Files) -> Folder {
    Folder::in_memory("my-model", files.leak())
}

/// The vectors of some texts, as bits.
fn vectors(checkpoint: &Checkpoint, precision: Precision, preload: bool) -> Vec<u32> {
    let options = LoadOptions { precision, preload, ..LoadOptions::default() };
    let model = Model::load_with(checkpoint, &options).unwrap();
    let texts = [vec![7; 3], (0..200).map(|id| id * 5 % 1000).collect(), vec![1]];
    let vectors = model.forward(&texts).unwrap();
    vectors.iter().map(|value| value.to_bits()).collect()
}

/// Covers a single file, shards, each type of values in safetensors files, dense layers and a projection.
#[test]
fn vectors_are_those_of_the_same_files_in_a_folder_bit_for_bit() {
    for name in [
        "models/base",
        "models/sharded",
        "models/causal-lm-untied",
        "models/attention-bias",
        "sentence-transformers/mean-dense",
        "sentence-transformers/projected",
    ] {
        let path = fixtures::path(name);
        let on_disk = Checkpoint::open(&path).unwrap();
        // Tensors of two and of four bytes per value are not aligned at odd addresses.
        for offset in [0, 1, 2] {
            let memory = Checkpoint::open_folder(in_memory(read(&path, "", offset))).unwrap();
            assert_eq!(Summary::of(&memory).unwrap(), Summary::of(&on_disk).unwrap(), "{name}");
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                for preload in [false, true] {
                    let expected = vectors(&on_disk, precision, preload);
                    let got = vectors(&memory, precision, preload);
                    assert!(got == expected, "{name}, offset {offset}, {precision}");
                }
            }
        }
    }
}

#[test]
fn reads_tokenizer_and_settings_from_memory() {
    let path = fixtures::path("sentence-transformers/mean-dense");
    let checkpoint = Checkpoint::open_folder(in_memory(read(&path, "", 0))).unwrap();
    assert_eq!(checkpoint.path(), Path::new("my-model"));
    assert!(!checkpoint.is_gguf() && checkpoint.has_modules() && !checkpoint.has_unused_adapter());
    let StoredTokenizer::Json { path: name, contents } = checkpoint.tokenizer().unwrap() else {
        panic!()
    };
    assert_eq!(name, Path::new("my-model/tokenizer.json"));
    assert_eq!(*contents, fs::read(path.join("tokenizer.json")).unwrap());
    let prompts = checkpoint.sentence_transformers().prompts_json().unwrap();
    assert_eq!(prompts.path(), Path::new("my-model/config_sentence_transformers.json"));
}

#[test]
fn errors_name_the_file_in_memory() {
    let of_base = |left_out: &str| {
        let mut files = read(&fixtures::model("base"), "", 0);
        files.retain(|(name, _)| *name != left_out);
        Checkpoint::open_folder(in_memory(files))
    };
    let error = of_base("config.json").unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if path == Path::new("my-model/config.json")),
        "{error}"
    );
    let error = of_base("model.safetensors").unwrap_err();
    assert!(matches!(&error, Error::NoWeights { dir } if dir == Path::new("my-model")), "{error}");
    let error = of_base("tokenizer.json").unwrap().tokenizer().unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if path == Path::new("my-model/tokenizer.json")),
        "{error}"
    );

    let mut files = read(&fixtures::model("sharded"), "", 0);
    let shard = "model-00002-of-00003.safetensors";
    files.retain(|(name, _)| *name != shard);
    let error = Checkpoint::open_folder(in_memory(files)).unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == Path::new("my-model").join(shard)),
        "{error}"
    );

    let mut files = read(&fixtures::path("sentence-transformers/mean-dense"), "", 0);
    files.retain(|(name, _)| *name != "2_Dense/model.safetensors");
    let checkpoint = Checkpoint::open_folder(in_memory(files)).unwrap();
    let error = Model::load_with(&checkpoint, &LoadOptions::default()).unwrap_err();
    assert!(
        matches!(&error, Error::NoWeights { dir } if dir == Path::new("my-model/2_Dense")),
        "{error}"
    );
}

/// A file that ends early is an error at every length, whether its bytes are aligned or not.
#[test]
fn rejects_truncated_weights_in_memory() {
    for offset in [0, 1] {
        let files = read(&fixtures::model("base"), "", offset);
        let weights = files.iter().find(|(name, _)| *name == "model.safetensors").unwrap().1;
        for length in [0, 7, 8, 100, weights.len() / 2, weights.len() - 1] {
            let mut files = files.clone();
            files.retain(|(name, _)| *name != "model.safetensors");
            files.push(("model.safetensors", &weights[..length]));
            let error = Checkpoint::open_folder(in_memory(files)).unwrap_err();
            let expected = Path::new("my-model/model.safetensors");
            assert!(
                matches!(&error, Error::Safetensors { path, .. } if path == expected),
                "{error}"
            );
        }
    }
}
