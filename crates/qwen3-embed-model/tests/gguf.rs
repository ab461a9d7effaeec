//! GGUF files that are damaged, contradict themselves or hold another model. Each gives an error that names the file
//! and the problem. None causes a panic, or an allocation of a size that only the file claims.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use qwen3_embed_model::{Checkpoint, Config, Device, Error, Model, Precision, StoredTokenizer};
use qwen3_embed_testing::fixtures::model;
use tempfile::TempDir;

/// An allocator that records the size of the largest allocation of each thread.
struct Watched;

thread_local! {
    /// The largest allocation of this thread. Other tests run on other threads.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller upholds the contract of `GlobalAlloc`, which is the contract of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The largest allocation that a file of 30 kilobytes may cause. A model of that size needs no more.
const MAX_ALLOCATION: usize = 1 << 20;

const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// The description of a GGUF file, which may be wrong.
#[derive(Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    n_entries: Option<u64>,
    n_tensors: Option<u64>,
    metadata: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dimensions: Vec<u64>,
    id: u32,
    /// The offset in the header, if it is not the true one.
    offset: Option<u64>,
    data: Vec<u8>,
}

/// A change to a correct file or tensor.
type Change<'a, T> = &'a dyn Fn(&mut T);

fn string(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

fn array(of: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    [of.to_le_bytes().as_slice(), &n.to_le_bytes(), elements].concat()
}

impl File {
    /// A complete model with two tokens, one layer and one head. C = D = F = 32.
    fn small() -> Self {
        let mut file = Self {
            magic: *b"GGUF",
            version: 3,
            n_entries: None,
            n_tensors: None,
            metadata: Vec::new(),
            tensors: Vec::new(),
        };
        file.set("general.architecture", STRING, string("qwen3"));
        for (key, value) in [
            ("block_count", 1u32),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 1),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 32),
            ("attention.value_length", 32),
        ] {
            file.set(&format!("qwen3.{key}"), U32, value.to_le_bytes().to_vec());
        }
        file.set("qwen3.attention.layer_norm_rms_epsilon", F32, 1e-6f32.to_le_bytes().to_vec());
        file.set("qwen3.rope.freq_base", F32, 1e6f32.to_le_bytes().to_vec());
        file.set("tokenizer.ggml.model", STRING, string("gpt2"));
        file.set("tokenizer.ggml.pre", STRING, string("qwen2"));
        let tokens = [string("a"), string("b")].concat();
        file.set("tokenizer.ggml.tokens", ARRAY, array(STRING, 2, &tokens));
        file.set("tokenizer.ggml.token_type", ARRAY, array(I32, 2, &[1, 0, 0, 0, 3, 0, 0, 0]));
        file.set("tokenizer.ggml.merges", ARRAY, array(STRING, 1, &string("a b")));
        for name in ["attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"] {
            file.add(&format!("blk.0.{name}.weight"), &[32]);
        }
        for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        {
            file.add(&format!("blk.0.{name}.weight"), &[32, 32]);
        }
        file.add("output_norm.weight", &[32]);
        file.add("token_embd.weight", &[32, 2]);
        // One tensor has Q8_0 blocks with the scale 1 and the values 0 to 31.
        let block: Vec<u8> = [0, 0x3c].into_iter().chain(0..32).collect();
        let tensor = file.tensor("blk.0.attn_v.weight");
        (tensor.id, tensor.data) = (8, block.repeat(32));
        file
    }

    fn set(&mut self, key: &str, value_type: u32, value: Vec<u8>) {
        self.metadata.retain(|(present, ..)| present != key);
        self.metadata.push((key.to_owned(), value_type, value));
    }

    /// Adds a tensor in f32.
    fn add(&mut self, name: &str, dimensions: &[u64]) {
        let n: u64 = dimensions.iter().product();
        let data = (0..n).flat_map(|i| (((i * 7 + 3) % 11) as f32 / 11.0 - 0.3).to_le_bytes());
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            id: 0,
            offset: None,
            data: data.collect(),
        });
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// The length of the header, and the whole file.
    fn bytes(&self) -> (usize, Vec<u8>) {
        let mut bytes = [self.magic, self.version.to_le_bytes()].concat();
        bytes.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.n_entries.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value_type, value) in &self.metadata {
            bytes.extend(string(key));
            bytes.extend(value_type.to_le_bytes());
            bytes.extend(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            bytes.extend(tensor.dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            bytes.extend(tensor.id.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        let header = bytes.len();
        bytes.resize(header.next_multiple_of(32), 0);
        bytes.extend(data);
        (header, bytes)
    }
}

/// A folder with one file, which is overwritten again and again.
struct Place {
    _dir: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        Self { _dir: dir, path }
    }

    fn load(&self, bytes: &[u8]) -> Result<Model, Error> {
        fs::write(&self.path, bytes).unwrap();
        Model::load(&self.path, Device::Cpu, Precision::F32)
    }

    /// The error of a changed file, without the path at its beginning.
    fn error(&self, change: impl FnOnce(&mut File)) -> String {
        let mut file = File::small();
        change(&mut file);
        let error = self.load(&file.bytes().1).expect_err("the file is damaged").to_string();
        let path = self.path.display().to_string();
        assert!(error.starts_with(&path) && !error.contains('\n'), "{error}");
        error[path.len()..].to_owned()
    }
}

/// A pseudorandom number: SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn loads_valid_file() {
    let place = Place::new();
    let model = place.load(&File::small().bytes().1).unwrap();
    assert_eq!(model.forward(&[[0, 1]]).unwrap().len(), 32);
    let config: &Config = model.config();
    assert_eq!((config.hidden_size, config.vocab_size, config.head_dim), (32, 2, 32));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 1e6));
    assert!(config.tie_word_embeddings && !config.attention_bias);
    let checkpoint = Checkpoint::open(&place.path).unwrap();
    let StoredTokenizer::Gguf(vocabulary) = checkpoint.tokenizer().unwrap() else { panic!() };
    assert_eq!(vocabulary.tokens, ["a", "b"]);
    assert_eq!(vocabulary.token_types, [1, 3]);
    assert_eq!(vocabulary.merges, ["a b"]);
    assert_eq!((&*vocabulary.model, &*vocabulary.pre_tokenizer), ("gpt2", "qwen2"));
}

#[test]
fn reads_the_configuration_of_the_fixtures() {
    let load = |name| Model::load(&model(name), Device::Cpu, Precision::F32).unwrap();
    let config = load("gguf-float").config().clone();
    assert!(config.attention_bias && !config.tie_word_embeddings);
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (2, 2));
    assert_eq!((config.head_dim, config.vocab_size), (48, 1026));
    let config = load("gguf-q8-0").config().clone();
    assert!(!config.attention_bias && config.tie_word_embeddings);
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (4, 2));
    assert_eq!((config.vocab_size, config.max_position_embeddings), (1040, 8192));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 1e6));
}

#[test]
fn ignores_rerank_head_and_redundant_metadata() {
    let place = Place::new();
    let mut file = File::small();
    let expected = place.load(&file.bytes().1).unwrap().forward(&[[0, 1]]).unwrap();
    file.add("output.weight", &[32, 2]);
    file.add("cls.output.weight", &[32, 2]);
    file.set("qwen3.pooling_type", U32, vec![4, 0, 0, 0]);
    file.set("qwen3.rope.scaling.type", STRING, string("none"));
    file.set("qwen3.rope.scaling.factor", F32, 4f32.to_le_bytes().to_vec());
    file.set("qwen3.rope.dimension_count", U32, vec![32, 0, 0, 0]);
    file.set("qwen3.attention.causal", BOOL, vec![1]);
    file.set("split.count", U8, vec![1]);
    // Invalid UTF-8 does not matter in a value that is not read.
    file.set("general.description", STRING, [&3u64.to_le_bytes()[..], &[0xff; 3]].concat());
    for version in [2, 3] {
        file.version = version;
        let model = place.load(&file.bytes().1).unwrap();
        assert!(!model.config().tie_word_embeddings);
        assert_eq!(model.forward(&[[0, 1]]).unwrap(), expected);
    }
}

#[test]
fn rejects_file_without_the_magic_number() {
    let place = Place::new();
    let mut file = File::small();
    file.magic = *b"GGML";
    let error = place.load(&file.bytes().1).unwrap_err();
    assert!(matches!(&error, Error::NotGguf { got, .. } if got == "GGML"), "{error}");
    let expected = " is not a GGUF file: expected a file that begins with `GGUF`, got `GGML`";
    assert!(error.to_string().contains(expected), "{error}");
    let error = place.load(b"GGU").unwrap_err();
    assert!(matches!(&error, Error::NotGguf { got, .. } if got == "GGU"), "{error}");
}

#[test]
fn rejects_invalid_header_and_says_where() {
    let place = Place::new();
    let not = |rest: &str| format!(" is not a GGUF file that can be read: {rest}");
    let cases: [(&str, Change<'_, File>); 10] = [
        ("byte 4, the version: expected 2 or 3, got 1", &|f| f.version = 1),
        ("byte 4, the version: expected 2 or 3, got 4", &|f| f.version = 4),
        ("byte 4, the version: expected 2 or 3, little-endian, got a big-endian file", &|f| {
            f.version = 3 << 24;
        }),
        ("byte 8, the number of tensors: expected at most", &|f| f.n_tensors = Some(u64::MAX)),
        ("byte 16, the number of metadata entries: expected at most", &|f| {
            f.n_entries = Some(1 << 40);
        }),
        ("byte 42, key `twice`: expected one, got two", &|f| {
            let entry = ("twice".to_owned(), BOOL, vec![0]);
            f.metadata.splice(0..0, [entry.clone(), entry]);
        }),
        ("the value of `general.name`: expected one of the types 0 to 12, got type 13", &|f| {
            f.set("general.name", 13, vec![0; 8]);
        }),
        (
            "the value of `x`: expected an array of one of the types 0 to 8 or 10 to 12, got an array \
          of type 9",
            &|f| f.set("x", ARRAY, array(ARRAY, 1, &[0; 12])),
        ),
        ("the value of `x`: expected at most", &|f| {
            f.set("x", ARRAY, array(U32, u64::MAX / 4, &[]));
        }),
        ("the value of `x`: expected at most", &|f| f.set("x", STRING, vec![255; 8])),
    ];
    for (expected, change) in cases {
        let error = place.error(change);
        let starts = error.starts_with(&not(expected));
        assert!(starts || (!expected.starts_with("byte") && error.contains(expected)), "{error}");
    }
}

#[test]
fn rejects_wrong_tensor_entries_and_names_the_tensor() {
    const Q: &str = "blk.0.attn_q.weight";
    let place = Place::new();
    let whole = File::small().bytes().1.len();
    let cases: [(String, Change<'_, Tensor>); 9] = [
        ("the data of tensor `blk.0.attn_q.weight`: expected an offset that is a multiple of 32, \
          got 33".into(), &|t| t.offset = Some(33)),
        (format!("expected 4096 bytes within the file, got offset {} after", 1u64 << 40), &|t| {
            t.offset = Some(1 << 40);
        }),
        ("expected 4096 bytes within the file, got offset".into(), &|t| {
            t.offset = Some(u64::MAX - 31);
        }),
        ("expected data after those of `blk.0.attn_norm.weight`, got overlapping data".into(), &|t| {
            t.offset = Some(0);
        }),
        ("tensor `blk.0.attn_q.weight`: expected 1 to 4 dimensions, got 0".into(), &|t| {
            t.dimensions.clear();
        }),
        ("expected 1 to 4 dimensions, got 5".into(), &|t| t.dimensions = vec![2; 5]),
        (format!("expected dimensions of at most {whole} bytes, none of them 0, got [32, 0]"), &|t| {
            t.dimensions = vec![32, 0];
        }),
        ("none of them 0, got [4294967296, 4294967296]".into(), &|t| {
            t.dimensions = vec![1 << 32, 1 << 32];
        }),
        ("expected rows of whole blocks of 32 Q8_0 values, got rows of 31".into(), &|t| {
            (t.id, t.dimensions[0]) = (8, 31);
        }),
    ];
    for (expected, change) in cases {
        let error = place.error(|file| change(file.tensor(Q)));
        assert!(error.contains(&expected), "{error}\nexpected {expected}");
        assert!(error.contains("is not a GGUF file that can be read: byte"), "{error}");
        assert!(error.contains("tensor `blk.0."), "{error}");
    }
    let error = place.error(|file| file.add(Q, &[32]));
    assert!(error.contains("tensor `blk.0.attn_q.weight`: expected one, got two"), "{error}");
    let error = place.error(|file| file.tensor(Q).id = 2);
    assert_eq!(
        error,
        ": tensor `blk.0.attn_q.weight`: expected type F32, F16, BF16, Q8_0, Q5_0, Q4_K, Q5_K or \
         Q6_K, got type 2"
    );
    let error = place.error(|file| file.remove(Q));
    assert_eq!(error, " has no tensor `blk.0.attn_q.weight`");
    let error = place.error(|file| file.remove("token_embd.weight"));
    assert_eq!(error, " has no tensor `token_embd.weight`");
    let error = place.error(|file| file.tensor(Q).dimensions = vec![64, 16]);
    assert_eq!(error, ": tensor `blk.0.attn_q.weight`: expected shape [32, 32], got [16, 64]");
    let error = place.error(|file| file.tensor("token_embd.weight").dimensions = vec![64]);
    assert_eq!(error, ": tensor `token_embd.weight`: expected shape [64, 32], got [64]");
    let error = place.error(|file| file.add("blk.0.attn_k.bias", &[32]));
    let expected =
        "expected only the tensors of a decoder with this configuration, and of its head";
    assert_eq!(error, format!(": tensor `blk.0.attn_k.bias`: {expected}"));
    for name in ["blk.1.attn_norm.weight", "blk.0.attn_q.scale", "dense_2.weight", "cls.weight"] {
        let error = place.error(|file| file.add(name, &[32]));
        assert_eq!(error, format!(": tensor `{name}`: {expected}"));
    }
    let error = place.error(|file| file.add("blk.0.attn_q.bias", &[32]));
    assert_eq!(error, " has no tensor `blk.0.attn_k.bias`");
}

#[test]
fn rejects_metadata_of_another_model_and_names_the_key() {
    let number = |value: u32| (U32, value.to_le_bytes().to_vec());
    let float = |value: f32| (F32, value.to_le_bytes().to_vec());
    let text = |value: &str| (STRING, string(value));
    let cases = [
        ("general.architecture", text("bert"), "expected \"qwen3\", got \"bert\""),
        ("general.architecture", number(3), "expected \"qwen3\", got 3"),
        ("general.alignment", number(24), "expected a power of two, as u32, got 24"),
        ("general.alignment", number(0), "expected a power of two, as u32, got 0"),
        ("general.alignment", text("32"), "expected a power of two, as u32, got \"32\""),
        ("split.count", number(2), "expected one file that holds the whole model, got 2"),
        ("qwen3.block_count", number(0), "expected a whole number from 1 to 268435456, got 0"),
        ("qwen3.block_count", number(u32::MAX), "expected a whole number from 1 to 268435456"),
        ("qwen3.embedding_length", float(32.0), "expected a whole number from 1"),
        ("qwen3.attention.head_count_kv", number(3), "expected a divisor of 1, got 3"),
        (
            "qwen3.attention.head_count",
            (ARRAY, array(U32, 1, &[1, 0, 0, 0])),
            "got \"an array of 1\"",
        ),
        (
            "qwen3.attention.value_length",
            number(64),
            "expected the same as `qwen3.attention.key_length`",
        ),
        (
            "qwen3.rope.dimension_count",
            number(16),
            "expected the same as `qwen3.attention.key_length`",
        ),
        (
            "qwen3.attention.layer_norm_rms_epsilon",
            float(0.0),
            "expected a number above 0, got 0.0",
        ),
        ("qwen3.attention.layer_norm_rms_epsilon", float(f32::NAN), "expected a number above 0"),
        ("qwen3.rope.freq_base", float(f32::INFINITY), "expected a number above 0, got \"inf\""),
        (
            "qwen3.pooling_type",
            number(5),
            "expected 0 (none), 1 (mean), 2 (cls), 3 (last) or 4 (rank), got 5",
        ),
        ("qwen3.rope.scaling.type", text("yarn"), "expected \"none\", got \"yarn\""),
        ("qwen3.rope.scaling.factor", float(4.0), "expected 1, got 4.0"),
        ("qwen3.rope.scale_linear", float(2.0), "expected 1, got 2.0"),
        ("qwen3.attention.sliding_window", number(4096), "expected 0, got 4096"),
        ("qwen3.attention.causal", number(1), "expected true or false, got 1"),
    ];
    let place = Place::new();
    for (key, (value_type, value), expected) in cases {
        let error = place.error(|file| file.set(key, value_type, value));
        assert!(error.starts_with(&format!(": field `{key}`: ")), "{error}");
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    let error = place.error(|file| file.add("rope_freqs.weight", &[16]));
    assert!(
        error.contains("`rope_freqs.weight`: expected no scaled rotary frequencies"),
        "{error}"
    );
    for key in ["block_count", "context_length", "attention.key_length", "rope.freq_base"] {
        let key = format!("qwen3.{key}");
        let error = place.error(|file| file.metadata.retain(|(present, ..)| *present != key));
        assert!(
            error.contains(&format!("`{key}`: expected")) && error.ends_with("got nothing"),
            "{error}"
        );
    }
}

#[test]
fn rejects_missing_or_mistyped_vocabulary_and_names_the_key() {
    let place = Place::new();
    let bad = array(STRING, 1, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    let cases = [
        ("tokenizer.ggml.model", None, "a string of UTF-8"),
        ("tokenizer.ggml.pre", Some((U32, vec![0; 4])), "a string of UTF-8"),
        ("tokenizer.ggml.tokens", None, "an array of UTF-8 strings"),
        ("tokenizer.ggml.tokens", Some((ARRAY, bad)), "an array of UTF-8 strings"),
        ("tokenizer.ggml.merges", Some((STRING, string("a b"))), "an array of UTF-8 strings"),
        ("tokenizer.ggml.token_type", None, "an array of 32-bit integers"),
        ("tokenizer.ggml.token_type", Some((ARRAY, array(F32, 0, &[]))), "an array of 32-bit"),
    ];
    for (key, value, expected) in cases {
        let mut file = File::small();
        file.metadata.retain(|(present, ..)| present != key);
        if let Some((value_type, value)) = value {
            file.set(key, value_type, value);
        }
        place.load(&file.bytes().1).unwrap();
        let error = Checkpoint::open(&place.path).unwrap().tokenizer().unwrap_err();
        assert!(matches!(&error, Error::Field { field, .. } if field == key), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn rejects_truncated_gguf_file() {
    let place = Place::new();
    let (header, whole) = File::small().bytes();
    let ends =
        (0..header + 64).chain((header + 64..whole.len()).step_by(97)).chain([whole.len() - 1]);
    for length in ends {
        let error = place.load(&whole[..length]).unwrap_err();
        // An empty file cannot be mapped on every system.
        let is_expected = match length {
            0 => matches!(error, Error::Io { .. } | Error::NotGguf { .. }),
            1..4 => matches!(error, Error::NotGguf { .. }),
            _ => matches!(error, Error::Gguf { .. }),
        };
        assert!(is_expected, "{length}: {error}");
    }
    let mut state = 1;
    for name in ["gguf-k-quants", "gguf-q8-0", "gguf-float"] {
        let whole = fs::read(model(name)).unwrap();
        for _ in 0..40 {
            let length = random(&mut state) as usize % whole.len();
            let error = place.load(&whole[..length]).unwrap_err();
            assert!(matches!(error, Error::Gguf { .. }), "{name}, {length}: {error}");
        }
    }
}

/// Loads a file that may be damaged and uses the model. Whether the file was accepted.
fn try_everything(place: &Place, bytes: &[u8]) -> bool {
    let model = place.load(bytes);
    // The tokenizer and the vectors may be errors, but must not panic.
    drop(Checkpoint::open(&place.path).and_then(|checkpoint| checkpoint.tokenizer()));
    if let Ok(model) = &model {
        drop(model.forward(&[[0u32, 1]]));
    }
    model.is_ok()
}

#[test]
fn damaged_gguf_file_never_panics_or_allocates_claimed_sizes() {
    let place = Place::new();
    let (header, whole) = File::small().bytes();
    assert!(try_everything(&place, &whole));
    // The first call has made the kernels' one-time allocations.
    LARGEST.set(0);
    let mut refused = 0;
    for at in 0..header {
        for value in [u64::MAX, 1 << 60, 1 << 31, 0] {
            let mut bytes = whole.clone();
            let end = (at + 8).min(header);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            refused += usize::from(!try_everything(&place, &bytes));
        }
    }
    assert!(refused > header * 2, "{refused} of {}", header * 4);
    let mut state = 2;
    for _ in 0..4000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(&mut state) % 3 {
            // Mostly in the header, because other data are as valid.
            let end = if random(&mut state).is_multiple_of(8) { whole.len() } else { header };
            let at = random(&mut state) as usize % end;
            bytes[at] ^= 1 << (random(&mut state) % 8);
        }
        try_everything(&place, &bytes);
    }
    let largest = LARGEST.get();
    assert!(largest <= MAX_ALLOCATION, "an allocation of {largest} bytes");
}

#[test]
fn flipped_bits_of_a_real_gguf_header_never_panic() {
    let place = Place::new();
    let whole = fs::read(model("gguf-q8-0")).unwrap();
    let mut state = 3;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        let at = random(&mut state) as usize % 40_000;
        bytes[at] ^= 1 << (random(&mut state) % 8);
        try_everything(&place, &bytes);
    }
}
