//! Damaged checkpoints. Each gives an error that names the file and the problem.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed_model::{Checkpoint, Device, Error, Head, LoadOptions, Model, Precision};
use qwen3_embed_testing::fixtures::{self, Tensor, edit_json, edit_tensors};
use safetensors::tensor::Dtype;
use serde_json::json;
use tempfile::TempDir;

/// A copy of a model that a test may damage.
fn copy(name: &str) -> TempDir {
    fixtures::copy(&format!("models/{name}"))
}

fn load(dir: &Path) -> Result<Model, Error> {
    Model::load(dir, Device::Cpu, Precision::F32)
}

fn load_error(dir: &Path) -> Error {
    let error = load(dir).expect_err("the checkpoint is damaged");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// A tensor with one element.
fn scalar(dtype: Dtype) -> Tensor {
    let n_bytes = if dtype == Dtype::BF16 { 2 } else { 4 };
    Tensor { dtype, shape: vec![1], data: vec![0; n_bytes] }
}

#[test]
fn loads_intact_copies() {
    for name in ["base", "sharded", "causal-lm-untied"] {
        load(copy(name).path()).unwrap();
    }
}

#[test]
fn missing_file_is_named() {
    let dir = copy("base");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(matches!(load_error(dir.path()), Error::NoWeights { .. }));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = load_error(dir.path());
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("config.json"));
    let dir = copy("sharded");
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    fs::remove_file(&shard).unwrap();
    assert!(matches!(load_error(dir.path()), Error::Io { path, .. } if path == shard));
}

#[test]
fn rejects_truncated_safetensors_file() {
    let dir = copy("causal-lm-tied");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = load_error(dir.path());
        let named = matches!(&error, Error::Safetensors { path: p, .. } if *p == path);
        // Some systems cannot map an empty file.
        assert!(named || (length == 0 && matches!(error, Error::Io { .. })), "{length}: {error}");
    }
    fs::write(&path, [whole.as_slice(), &[0]].concat()).unwrap();
    assert!(matches!(load_error(dir.path()), Error::Safetensors { .. }), "one byte too many");
}

#[test]
fn corrupt_safetensors_header_never_panics() {
    let dir = copy("causal-lm-tied");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for at in (0..header).step_by(3) {
        for flip in [0x01, 0x10, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).unwrap();
            // Some flips only change the name of a tensor that is not used.
            refused += usize::from(load(dir.path()).is_err());
        }
    }
    assert!(refused > header / 2, "{refused}");
}

#[test]
fn rejects_wrong_header_length_without_allocating_it() {
    let dir = copy("causal-lm-tied");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [u64::MAX, u64::MAX / 2, 1 << 40, whole.len() as u64] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(load_error(dir.path()), Error::Safetensors { .. }), "{length}");
    }
}

#[test]
fn rejects_tensors_that_do_not_fit_the_configuration() {
    const Q_PROJ: &str = "layers.1.self_attn.q_proj.weight";
    let dir = copy("base");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();

    edit_tensors(&path, |tensors| drop(tensors.remove(Q_PROJ)));
    let error = load_error(dir.path());
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == Q_PROJ), "{error}");

    fs::write(&path, &whole).unwrap();
    edit_tensors(&path, |tensors| tensors.get_mut(Q_PROJ).unwrap().shape.reverse());
    match load_error(dir.path()) {
        Error::TensorShape { name, expected, got, path: named } => {
            assert_eq!((name.as_str(), named), (Q_PROJ, path.clone()));
            assert_eq!((expected, got), (vec![128, 64], vec![64, 128]));
        }
        other => panic!("{other}"),
    }

    fs::write(&path, &whole).unwrap();
    edit_tensors(&path, |tensors| tensors.get_mut(Q_PROJ).unwrap().dtype = Dtype::I16);
    let error = load_error(dir.path());
    assert_eq!(
        error.to_string(),
        format!("{}: tensor `{Q_PROJ}`: expected type BF16, F16 or F32, got I16", path.display())
    );

    fs::write(&path, &whole).unwrap();
    edit_tensors(&path, |tensors| {
        tensors.insert("layers.0.self_attn.o_proj.bias".into(), scalar(Dtype::F32));
    });
    assert!(matches!(load_error(dir.path()), Error::UnexpectedTensor { .. }));

    let dir = copy("attention-bias");
    edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        tensors.remove("layers.0.self_attn.v_proj.bias");
    });
    assert!(matches!(load_error(dir.path()), Error::MissingTensor { .. }));
}

/// Ignoring such a tensor, for example a projection after the decoder, would give other vectors.
#[test]
fn rejects_tensor_that_would_be_ignored() {
    for (model, name, is_refused) in [
        ("base", "linear.weight", true),
        ("../sentence-transformers/projected", "linear.bias", true),
        ("../sentence-transformers/projected", "model.linear.weight", true),
        ("base", "projector.0.weight", true),
        ("base", "layers.3.input_layernorm.weight", true),
        ("base", "layers.00.input_layernorm.weight", true),
        ("base", "layers.0.self_attn.q_proj.weight_scale", true),
        ("base", "layers.0.mlp.up_proj.bias", true),
        ("base", "model.norm.weight", true),
        ("base", "lm_head.weight", false),
        ("base", "score.weight", false),
        ("base", "rotary_emb.inv_freq", false),
        ("attention-bias", "layers.1.mlp.up_proj.bias", true),
        ("causal-lm-tied", "norm.weight", true),
        ("causal-lm-tied", "model.lm_head.weight", true),
        ("causal-lm-tied", "lm_head.bias", true),
        ("causal-lm-tied", "lm_head.weight", false),
        ("causal-lm-tied", "model.layers.1.self_attn.rotary_emb.inv_freq", false),
    ] {
        let dir = copy(model);
        let path = dir.path().join("model.safetensors");
        edit_tensors(&path, |tensors| {
            tensors.insert(name.into(), scalar(Dtype::F32));
        });
        match load(dir.path()) {
            Ok(_) => assert!(!is_refused, "{model}: {name}"),
            Err(Error::UnexpectedTensor { path: file, name: named }) => {
                assert_eq!((is_refused, file, &*named), (true, path, name), "{model}");
            }
            Err(other) => panic!("{model}, {name}: {other}"),
        }
    }
}

/// A copy of a model whose tensors have a prefix before their names.
fn with_prefix(model: &str, prefix: &str) -> TempDir {
    let dir = copy(model);
    edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor))
            .collect();
    });
    dir
}

/// Training and compiling wrap a model in modules, whose names become prefixes of the tensors' names.
#[test]
fn finds_tensors_behind_prefixes_of_wrappers() {
    let tokens = [[1, 2, 3]];
    let expected = load(copy("base").path()).unwrap().forward(&tokens).unwrap();
    for (prefix, head) in [
        ("", Head::None),
        ("model.", Head::TiedLmHead),
        ("module.", Head::None),
        ("_orig_mod.", Head::None),
        ("base_model.model.", Head::None),
        ("language_model.model.", Head::TiedLmHead),
        ("module._orig_mod.model.", Head::TiedLmHead),
        ("base_model.model.model.", Head::TiedLmHead),
        ("_orig_mod.module.base_model.model.model.", Head::TiedLmHead),
    ] {
        let dir = with_prefix("base", prefix);
        let model = load(dir.path()).unwrap_or_else(|error| panic!("{prefix}: {error}"));
        assert_eq!(model.forward(&tokens).unwrap(), expected, "{prefix}");
        assert_eq!(Checkpoint::open(dir.path()).unwrap().head(), head, "{prefix}");
    }
    // The head and the decoder are in the same wrapper.
    for (head, is_known) in [("module.lm_head.weight", true), ("lm_head.weight", false)] {
        let dir = with_prefix("base", "module.model.");
        edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
            tensors.insert(head.into(), scalar(Dtype::F32));
        });
        match Checkpoint::open(dir.path()) {
            Ok(checkpoint) => assert!(is_known && checkpoint.head() == Head::LmHead, "{head}"),
            Err(Error::UnexpectedTensor { name, .. }) => assert!(!is_known && name == head),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn rejects_unknown_prefix_and_two_decoders() {
    for prefix in
        ["encoder.", "model.encoder.", "text_model.model.", "model.model.", "model.module."]
    {
        let dir = with_prefix("base", prefix);
        let error = load_error(dir.path());
        let expected = format!(
            "{}: expected one tensor `embed_tokens.weight`, without a prefix or with `model.`, `module.`, \
             `_orig_mod.`, `base_model.model.` or `language_model.` before its name, got `{prefix}embed_tokens.weight`",
            dir.path().display()
        );
        assert_eq!(error.to_string(), expected);
    }
    let dir = copy("base");
    edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        let copy = tensors["embed_tokens.weight"].clone();
        tensors.insert("model.embed_tokens.weight".into(), copy);
    });
    let error = load_error(dir.path()).to_string();
    assert!(error.ends_with("got `embed_tokens.weight`, `model.embed_tokens.weight`"), "{error}");
}

/// MLX packs weights into U32 and adds tensors of scales and biases.
#[test]
fn rejects_tensors_quantized_by_mlx() {
    for name in ["layers.0.self_attn.q_proj.scales", "layers.0.self_attn.q_proj.biases"] {
        let dir = copy("base");
        let path = dir.path().join("model.safetensors");
        edit_tensors(&path, |tensors| {
            tensors.get_mut("layers.0.self_attn.q_proj.weight").unwrap().dtype = Dtype::I16;
            tensors.insert(name.into(), scalar(Dtype::BF16));
        });
        let expected = format!(
            "{}: tensor `{name}`: weights that MLX has quantized are not supported: use the original model, or a \
             GGUF file",
            path.display()
        );
        assert_eq!(load_error(dir.path()).to_string(), expected);
    }
}

#[test]
fn rejects_configuration_with_other_sizes() {
    let fields = [
        ("hidden_size", 128),
        ("intermediate_size", 80),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 4),
        ("head_dim", 16),
        ("vocab_size", 1000),
        ("num_hidden_layers", 4),
        ("num_hidden_layers", 1 << 27),
    ];
    for (field, value) in fields {
        let dir = copy("base");
        edit_json(&dir.path().join("config.json"), |config| config[field] = json!(value));
        let error = load_error(dir.path());
        assert!(
            matches!(error, Error::TensorShape { .. } | Error::MissingTensor { .. }),
            "{field} = {value}: {error}"
        );
    }
    // The largest `head_dim` that a configuration may have. It is refused without an allocation of that size.
    let dir = copy("base");
    edit_json(&dir.path().join("config.json"), |config| config["head_dim"] = json!(1 << 28));
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        match Model::load(dir.path(), Device::Cpu, precision).unwrap_err() {
            Error::TensorShape { name, expected, got, .. } => {
                assert_eq!(name, "layers.0.self_attn.q_norm.weight");
                assert_eq!((expected, got), (vec![1 << 28], vec![32]), "{precision:?}");
            }
            other => panic!("{precision:?}: {other}"),
        }
    }
    assert!(matches!(Checkpoint::open(dir.path()), Err(Error::TensorShape { .. })));
    let dir = copy("base");
    edit_json(&dir.path().join("config.json"), |config| config["model_type"] = json!("bert"));
    let error = load_error(dir.path()).to_string();
    assert!(error.contains("`model_type`: expected \"qwen3\", got \"bert\""), "{error}");
}

#[test]
fn rejects_wrong_index_of_shards() {
    let cases = [
        (json!(null), "weight_map"),
        (json!({}), "weight_map"),
        (json!(["model-00001-of-00003.safetensors"]), "weight_map"),
        (json!({"norm.weight": 3}), "weight_map.norm.weight"),
        (json!({"norm.weight": "../model-00001-of-00003.safetensors"}), "weight_map.norm.weight"),
        (json!({"norm.weight": "/etc/passwd"}), "weight_map.norm.weight"),
        (json!({"norm.weight": ""}), "weight_map.norm.weight"),
        (json!({"norm.weight": ".."}), "weight_map.norm.weight"),
    ];
    let dir = copy("sharded");
    let index = dir.path().join("model.safetensors.index.json");
    for (weight_map, named) in cases {
        edit_json(&index, |json| json["weight_map"] = weight_map.clone());
        let error = load_error(dir.path());
        assert!(
            matches!(&error, Error::Field { field, .. } if field == named),
            "{weight_map}: {error}"
        );
    }
    fs::write(&index, "{").unwrap();
    assert!(matches!(load_error(dir.path()), Error::Json { .. }));

    let dir = copy("sharded");
    edit_json(&dir.path().join("model.safetensors.index.json"), |json| {
        json["weight_map"]["norm.weight"] = json!("model-00001-of-00003.safetensors");
    });
    let error = load_error(dir.path());
    assert!(
        matches!(&error, Error::MissingTensor { name, .. } if name == "norm.weight"),
        "{error}"
    );
}

#[test]
fn rejects_tensor_in_two_shards() {
    let dir = copy("sharded");
    let mut norm = None;
    edit_tensors(&dir.path().join("model-00003-of-00003.safetensors"), |tensors| {
        norm = tensors.get("norm.weight").cloned();
    });
    edit_tensors(&dir.path().join("model-00001-of-00003.safetensors"), |tensors| {
        tensors.insert("norm.weight".into(), norm.unwrap());
    });
    let error = load_error(dir.path());
    assert!(
        matches!(&error, Error::DuplicateTensor { name, .. } if name == "norm.weight"),
        "{error}"
    );
}

/// A copy of a model in which all values of a tensor from `start` on are `value`.
fn with_values(name: &str, start: usize, value: f32) -> TempDir {
    let dir = copy("causal-lm-tied");
    edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        for weight in &mut tensor.data.as_chunks_mut::<4>().0[start..] {
            *weight = value.to_le_bytes();
        }
    });
    dir
}

#[test]
fn rejects_weights_that_are_not_finite() {
    let tensors = [
        ("model.layers.0.mlp.down_proj.weight", 0),
        ("model.layers.1.self_attn.k_proj.weight", 100),
        ("model.layers.0.input_layernorm.weight", 5),
        ("model.embed_tokens.weight", 0),
        ("model.norm.weight", 0),
    ];
    for (tensor, start) in tensors {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let dir = with_values(tensor, start, value);
            let error = load_error(dir.path());
            let Error::WeightNotFinite { path, name, index, value: got } = &error else {
                panic!("{error}");
            };
            assert_eq!(path, &dir.path().join("model.safetensors"));
            assert_eq!((name.as_str(), got.to_bits()), (tensor, value.to_bits()));
            assert!((start..start + 256).contains(index), "{index}");
        }
    }
}

#[test]
fn rejects_every_weight_that_is_not_finite_when_all_are_verified() {
    let tensor = "model.embed_tokens.weight";
    let dir = copy("causal-lm-tied");
    let file = dir.path().join("model.safetensors");
    let original = fs::read(&file).unwrap();
    let verify = LoadOptions { verify: true, ..LoadOptions::default() };
    let load =
        |options: &LoadOptions| Model::load_with(&Checkpoint::open(dir.path()).unwrap(), options);
    assert!(load(&verify).is_ok());
    let mut n_sampled = 0;
    for at in (0..32_000).step_by(997) {
        edit_tensors(&file, |tensors| {
            let data = &mut tensors.get_mut(tensor).unwrap().data;
            data[4 * at..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        let error = load(&verify).unwrap_err();
        assert!(
            matches!(&error, Error::WeightNotFinite { name, index, .. } if name == tensor && *index == at),
            "{error}"
        );
        n_sampled += usize::from(load(&LoadOptions::default()).is_err());
        fs::write(&file, &original).unwrap();
    }
    // Samples find some of the values only.
    assert!((1..33).contains(&n_sampled), "{n_sampled}");
}

#[test]
fn activations_that_overflow_give_an_error() {
    let dir = with_values("model.layers.0.mlp.down_proj.weight", 0, f32::MAX);
    let error = load(dir.path()).unwrap().forward(&[vec![1, 2]]).unwrap_err();
    assert!(matches!(error, Error::NotFinite { text: 0, .. }), "{error}");
}
