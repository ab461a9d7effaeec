//! Adapters, poolings and dense layers: against PEFT and sentence-transformers, and damaged ones.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use qwen3_embed_model::{
    Adapter, Checkpoint, Device, Error, LoadOptions, Model, Pooling, Precision,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A copy of a fixture's folder that a test may damage.
fn copy(name: &str) -> TempDir {
    fn copy_folder(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
            match from.is_dir() {
                true => copy_folder(&from, &to.join(name)),
                false => fs::write(to.join(name), fs::read(&from).unwrap()).unwrap(),
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy_folder(&fixture(name), to.path());
    to
}

fn edit(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn numbers(row: &Value) -> Vec<f64> {
    row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn unit(row: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let row: Vec<f64> = row.into_iter().collect();
    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    row.into_iter().map(|v| v / norm).collect()
}

fn with_adapter(base: &str, adapter: &Path, precision: Precision) -> Result<Model, Error> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&fixture(base))?.with_adapter(Adapter::open(adapter)?)?;
    Model::load_with(&checkpoint, &options)
}

#[test]
fn a_merged_adapter_gives_the_vectors_of_peft() {
    let adapter = fixture("adapters/lora");
    let golden: Value =
        serde_json::from_slice(&fs::read(adapter.join("golden.json")).unwrap()).unwrap();
    let tokens: Vec<Vec<u32>> = golden["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| numbers(text).iter().map(|&id| id as u32).collect())
        .collect();
    let plain = Model::load(&fixture("models/base"), Device::Cpu, Precision::F32).unwrap();
    let plain = plain.forward(&tokens).unwrap();
    // Merged weights are f32, so that keeping them in fewer bits rounds them.
    for (precision, tolerance, least_cosine) in [
        (Precision::F32, 1e-5, 1.0 - 1e-9),
        (Precision::Bf16, 1.0, 0.9995),
        (Precision::Int8, 1.0, 0.998),
    ] {
        let model = with_adapter("models/base", &adapter, precision).unwrap();
        let rows = model.forward(&tokens).unwrap();
        let width = model.embedding_size();
        for (i, row) in rows.chunks_exact(width).enumerate() {
            let row = unit(row.iter().map(|&v| v.into()));
            let expected = numbers(&golden["unit_f64"][i]);
            let largest = row.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let cosine: f64 = row.iter().zip(&expected).map(|(a, b)| a * b).sum();
            assert!(largest <= tolerance, "{precision:?}, text {i}: {largest:e}");
            assert!(cosine >= least_cosine, "{precision:?}, text {i}: {cosine}");
            let plain = unit(plain[i * width..][..width].iter().map(|&v| v.into()));
            let unchanged: f64 = plain.iter().zip(&expected).map(|(a, b)| a * b).sum();
            assert!(unchanged < 0.99, "the adapter changes nothing in text {i}: {unchanged}");
        }
    }
}

#[test]
fn an_adapter_that_is_no_plain_lora_of_this_model_is_refused_by_name() {
    for (field, value, expected) in [
        ("peft_type", json!("IA3"), "expected \"LORA\", got \"IA3\""),
        ("peft_type", Value::Null, "expected \"LORA\", got nothing"),
        ("use_dora", json!(true), "expected null or false, got true"),
        (
            "modules_to_save",
            json!(["embed_tokens"]),
            "expected null or false, got [\"embed_tokens\"]",
        ),
        ("bias", json!("all"), "expected \"none\", got \"all\""),
        ("init_lora_weights", json!("pissa"), "expected true, false or one of gaussian, "),
        ("lora_alpha", json!(0), "expected a number above 0, got 0"),
        ("lora_alpha", Value::Null, "expected a number above 0, got nothing"),
        ("use_rslora", json!("yes"), "expected true or false, got \"yes\""),
    ] {
        let copy = copy("adapters/lora");
        edit(&copy.path().join("adapter_config.json"), |config| config[field] = value.clone());
        let error = with_adapter("models/base", copy.path(), Precision::F32).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&format!("adapter_config.json: field `{field}`: {expected}")),
            "{message}"
        );
    }
    for (pattern, expected) in [
        (
            json!({".*_proj": 3}),
            "`alpha_pattern..*_proj`: expected the name of a module, not a regular",
        ),
        (json!({"q_proj": -1}), "`alpha_pattern.q_proj`: expected a number above 0, got -1"),
        (
            json!({"layers.0.self_attn.q_proj": 3, "q_proj": 5}),
            "`alpha_pattern.q_proj`: expected 3, as in `layers.0.self_attn.q_proj`, which matches \
             `layers.0.self_attn.q_proj`, too, got 5",
        ),
    ] {
        let copy = copy("adapters/lora");
        edit(&copy.path().join("adapter_config.json"), |c| c["alpha_pattern"] = pattern.clone());
        let error =
            with_adapter("models/base", copy.path(), Precision::F32).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Of two patterns for one module PEFT takes the first in the file: here they say the same.
#[test]
fn patterns_that_agree_are_one() {
    let vectors = |pattern: Value| {
        let copy = copy("adapters/lora");
        edit(&copy.path().join("adapter_config.json"), |config| config["alpha_pattern"] = pattern);
        let model = with_adapter("models/base", copy.path(), Precision::F32).unwrap();
        model.forward(&[[1, 2, 3]]).unwrap()
    };
    let one = vectors(json!({"q_proj": 5}));
    assert!(one == vectors(json!({"self_attn.q_proj": 5, "q_proj": 5.0})));
    assert!(one != vectors(json!({"q_proj": 6})));
}

/// Writes an adapter whose tensors, [rows, columns], are zeros.
fn write_tensors(path: &Path, tensors: &[(&str, [usize; 2])]) {
    let header: serde_json::Map<String, Value> = tensors
        .iter()
        .scan(0, |end, &(name, [rows, columns])| {
            let start = *end;
            *end += rows * columns * 4;
            let info =
                json!({"dtype": "F32", "shape": [rows, columns], "data_offsets": [start, *end]});
            Some((name.to_owned(), info))
        })
        .collect();
    let header = Value::from(header).to_string();
    let n_bytes: usize = tensors.iter().map(|(_, [rows, columns])| rows * columns * 4).sum();
    let bytes =
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; n_bytes]].concat();
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_adapters_tensors_belong_to_linear_layers_of_the_model_and_have_their_shape() {
    let (a, b) = (
        "base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.layers.0.self_attn.q_proj.lora_B.weight",
    );
    for (tensors, expected) in [
        (vec![(a, [4, 64])], "has no tensor `base_model.model.layers.0.self_attn.q_proj.lora_B"),
        (vec![(b, [128, 4])], "has no tensor `base_model.model.layers.0.self_attn.q_proj.lora_A"),
        (vec![(a, [4, 65]), (b, [128, 4])], "expected shape [4, 64], got [4, 65]"),
        (vec![(a, [4, 64]), (b, [128, 5])], "expected shape [128, 4], got [128, 5]"),
        (
            vec![("base_model.model.layers.3.self_attn.q_proj.lora_A.weight", [4, 64])],
            "expected only `lora_A` and `lora_B` of the decoder's linear layers",
        ),
        (
            vec![("base_model.model.embed_tokens.lora_embedding_A", [4, 64])],
            "tensor `base_model.model.embed_tokens.lora_embedding_A`: expected only",
        ),
        (
            vec![("model.layers.0.self_attn.q_proj.lora_A.weight", [4, 64])],
            "expected only `lora_A`",
        ),
        (
            vec![
                ("base_model.model.layers.00.self_attn.q_proj.lora_A.weight", [4, 64]),
                ("base_model.model.layers.00.self_attn.q_proj.lora_B.weight", [128, 4]),
            ],
            "tensor `base_model.model.layers.00.self_attn.q_proj.lora_A.weight`: expected only",
        ),
        (
            vec![("base_model.model.layers.+1.self_attn.q_proj.lora_A.weight", [4, 64])],
            "tensor `base_model.model.layers.+1.self_attn.q_proj.lora_A.weight`: expected only",
        ),
        (vec![], "has no tensor `base_model.model.layers.*.lora_A.weight`"),
    ] {
        let copy = copy("adapters/lora");
        write_tensors(&copy.path().join("adapter_model.safetensors"), &tensors);
        let error = with_adapter("models/base", copy.path(), Precision::F32).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}, expected {expected}");
    }
    // The names of a causal-LM checkpoint, and a rank of 0, which adds nothing.
    let copy = copy("adapters/lora");
    let prefix = "base_model.model.model.layers.2.mlp.up_proj";
    let [a, b] = ["A", "B"].map(|which| format!("{prefix}.lora_{which}.weight"));
    write_tensors(&copy.path().join("adapter_model.safetensors"), &[(&a, [2, 64]), (&b, [160, 2])]);
    let model = with_adapter("models/base", copy.path(), Precision::F32).unwrap();
    let plain = Model::load(&fixture("models/base"), Device::Cpu, Precision::F32).unwrap();
    assert!(model.forward(&[[1, 2, 3]]).unwrap() == plain.forward(&[[1, 2, 3]]).unwrap());
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let copy = copy("adapters/lora");
    let load = || with_adapter("models/base", copy.path(), Precision::F32).unwrap_err().to_string();
    fs::remove_file(copy.path().join("adapter_model.safetensors")).unwrap();
    assert!(load().ends_with("adapter_model.safetensors"), "{}", load());
    fs::remove_file(copy.path().join("adapter_config.json")).unwrap();
    assert!(load().ends_with("adapter_config.json"), "{}", load());
}

#[test]
fn modules_decide_what_a_vector_is_unless_hidden_states_are_asked_for() {
    let dir = fixture("sentence-transformers/mean-dense");
    let model = Model::load(&dir, Device::Cpu, Precision::F32).unwrap();
    assert_eq!((model.pooling(), model.embedding_size()), (Pooling::Mean, 24));
    assert_eq!(model.forward(&[[1, 2]]).unwrap().len(), 24);
    let options =
        LoadOptions { precision: Precision::F32, hidden_states: true, ..LoadOptions::default() };
    let model = Model::load_with(&Checkpoint::open(&dir).unwrap(), &options).unwrap();
    assert_eq!((model.pooling(), model.embedding_size()), (Pooling::LastToken, 32));
}

/// As sentence-transformers has it where there are no modules.
#[test]
fn a_bidirectional_model_without_modules_gives_the_mean_of_its_tokens() {
    let copy = copy("models/bidirectional");
    let load = |hidden_states| {
        let options =
            LoadOptions { precision: Precision::F32, hidden_states, ..LoadOptions::default() };
        Model::load_with(&Checkpoint::open(copy.path()).unwrap(), &options).unwrap()
    };
    let (plain, last) = (load(false), load(true));
    assert_eq!((plain.pooling(), last.pooling()), (Pooling::Mean, Pooling::LastToken));
    let modules = json!([module("", "Transformer"), module("1_Pooling", "Pooling")]);
    fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
    fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    let mean = json!({"pooling_mode": "mean"});
    fs::write(copy.path().join("1_Pooling/config.json"), mean.to_string()).unwrap();
    let [plain, mean, last] =
        [plain, load(false), last].map(|model| model.forward(&[[1, 2, 3]]).unwrap());
    assert!(plain == mean && plain != last);
}

/// The model of a copy of a repository with these modules, and this pooling.
fn with_modules(modules: &Value, pooling: &Value) -> Result<Model, Error> {
    let copy = copy("sentence-transformers/mean-dense");
    fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
    fs::write(copy.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    Model::load(copy.path(), Device::Cpu, Precision::F32)
}

fn module(path: &str, kind: &str) -> Value {
    json!({"path": path, "type": format!("sentence_transformers.models.{kind}")})
}

fn with_pooling(pooling: &Value) -> Result<Pooling, Error> {
    let modules = json!([module("", "Transformer"), module("1_Pooling", "Pooling")]);
    Ok(with_modules(&modules, pooling)?.pooling())
}

#[test]
fn poolings_have_an_old_and_a_new_name() {
    for (pooling, name, flag) in [
        (Pooling::LastToken, "lasttoken", "pooling_mode_lasttoken"),
        (Pooling::FirstToken, "cls", "pooling_mode_cls_token"),
        (Pooling::Mean, "mean", "pooling_mode_mean_tokens"),
        (Pooling::MeanSqrtLength, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        (Pooling::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
        (Pooling::Max, "max", "pooling_mode_max_tokens"),
    ] {
        assert_eq!(with_pooling(&json!({"pooling_mode": name})).unwrap(), pooling);
        assert_eq!(with_pooling(&json!({"pooling_mode": [name]})).unwrap(), pooling);
        let flags = json!({"pooling_mode_cls_token": false, flag: true});
        assert_eq!(with_pooling(&flags).unwrap(), pooling, "{flag}");
    }
    assert_eq!(with_pooling(&json!({})).unwrap(), Pooling::Mean);
    let left_out = json!({"pooling_mode": "lasttoken", "include_prompt": false});
    assert_eq!(with_pooling(&left_out).unwrap(), Pooling::LastToken);
}

#[test]
fn modules_in_another_order_and_unknown_ones_are_refused_by_name() {
    let transformer = || module("", "Transformer");
    let pooling = || module("1_Pooling", "Pooling");
    for (modules, message) in [
        (json!([]), "`0.type`: expected Transformer of sentence_transformers, got nothing"),
        (json!({}), "`0.type`: expected Transformer of sentence_transformers, got nothing"),
        (
            json!([transformer()]),
            "`1.type`: expected Pooling of sentence_transformers, got nothing",
        ),
        (
            json!([transformer(), module("", "Normalize")]),
            "`1.type`: expected Pooling of sentence_transformers, got \"sent",
        ),
        (
            json!([{"path": "", "type": "custom_st.Transformer"}, pooling()]),
            "`0.type`: expected Transformer of sentence_transformers, got \"custom_st.Transformer\"",
        ),
        (
            json!([transformer(), {"path": "1_Pooling", "type": "Pooling"}]),
            "`1.type`: expected Pooling of sentence_transformers, got \"Pooling\"",
        ),
        (
            json!([transformer(), pooling(), {"path": "", "type": "st_quantize.FlexibleQuantizer"}]),
            "config.json: field `architectures`: expected PPLXQwen3Model, whose `modules.json` may have \
             st_quantize.FlexibleQuantizer, got Qwen3Model",
        ),
        (
            json!([transformer(), pooling(), {"path": "", "type": "other.FlexibleQuantizer"}]),
            "`2.type`: expected Dense or Normalize of sentence_transformers, got \"other.Flex",
        ),
        (
            json!([
                transformer(), pooling(), {"path": "", "type": "st_quantize.FlexibleQuantizer"},
                module("", "Normalize")
            ]),
            "`3.type`: expected nothing after st_quantize.FlexibleQuantizer, got",
        ),
        (json!([module("0_Transformer", "Transformer")]), "`0.path`: expected \"\", the"),
        (
            json!([module("", "CLIPModel")]),
            "`0.type`: expected Transformer of sentence_transformers, got \"sent",
        ),
        (
            json!([transformer(), pooling(), module("2_CNN", "CNN")]),
            "`2.type`: expected Dense or Normalize of sentence_transformers, got \"sentence_transformers.models.CNN\"",
        ),
        (
            json!([transformer(), pooling(), module("", "Normalize"), module("", "Dense")]),
            "`3.type`: expected nothing after Normalize",
        ),
        (
            json!([transformer(), pooling(), module("../2_Dense", "Dense")]),
            "`2.path`: expected the name of a folder in the folder of modules.json",
        ),
    ] {
        let error = with_modules(&modules, &json!({"pooling_mode": "mean"})).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn poolings_that_are_not_known_are_refused_by_name() {
    for (pooling, message) in [
        (json!({"pooling_mode": "median"}), "`pooling_mode`: expected one of lasttoken, cls, "),
        (json!({"pooling_mode": ["mean", "max"]}), "weightedmean, max, got [\"mean\",\"max\"]"),
        (json!({"pooling_mode": ["mean", 7]}), "weightedmean, max, got [\"mean\",7]"),
        (json!({"pooling_mode": [["mean", "max"]]}), "max, got [[\"mean\",\"max\"]]"),
        (json!({"pooling_mode": 3}), "weightedmean, max, got 3"),
        (json!({"pooling_mode": []}), "weightedmean, max, got []"),
        (
            json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}),
            "`pooling_mode_max_tokens`: expected false beside `pooling_mode_mean_tokens`, got true",
        ),
        (
            json!({"pooling_mode_mean_tokens": "yes"}),
            "`pooling_mode_mean_tokens`: expected true or false, got \"yes\"",
        ),
        (
            json!({"pooling_mode": "mean", "include_prompt": false}),
            "`include_prompt`: expected true, got false",
        ),
    ] {
        let error = with_pooling(&pooling).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn a_dense_layer_that_does_not_fit_is_refused() {
    let load = |file: &str, change: &dyn Fn(&mut Value)| {
        let copy = copy("sentence-transformers/mean-dense");
        edit(&copy.path().join(file), change);
        Model::load(copy.path(), Device::Cpu, Precision::F32).unwrap_err().to_string()
    };
    for (field, value, expected) in [
        ("in_features", json!(31), "`in_features`: expected 32, got 31"),
        (
            "out_features",
            json!(47),
            "tensor `linear.weight`: expected shape [47, 32], got [48, 32]",
        ),
        ("out_features", json!(0), "`out_features`: expected a whole number"),
        (
            "activation_function",
            json!("my.Function"),
            "`activation_function`: expected one of torch.nn",
        ),
        ("use_residual", json!(true), "`use_residual`: expected false, got true"),
        ("module_input_name", json!("tokens"), "expected sentence_embedding, got \"tokens\""),
    ] {
        let error = load("2_Dense/config.json", &|config| config[field] = value.clone());
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    let error = load("3_Dense/config.json", &|config| config["bias"] = json!(true));
    assert!(error.contains("no tensor `linear.bias`"), "{error}");
}

#[test]
fn a_projection_has_the_width_of_the_configuration_or_its_own() {
    let load = |change: &dyn Fn(&mut Value), pooling: &str| {
        let copy = copy("sentence-transformers/projected");
        edit(&copy.path().join("config.json"), change);
        let config = json!({"pooling_mode": pooling});
        fs::write(copy.path().join("1_Pooling/config.json"), config.to_string()).unwrap();
        Model::load(copy.path(), Device::Cpu, Precision::F32)
    };
    for num_labels in [json!(48), Value::Null] {
        let model = load(&|config| config["num_labels"] = num_labels.clone(), "mean").unwrap();
        assert_eq!(model.embedding_size(), 48);
    }
    for (num_labels, expected) in [
        (json!(47), "tensor `linear.weight`: expected shape [47, 32], got [48, 32]"),
        (json!(0), "field `num_labels`: expected a whole number"),
        (json!("48"), "field `num_labels`: expected a whole number"),
    ] {
        let error = load(&|config| config["num_labels"] = num_labels.clone(), "mean");
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // The largest value of what is projected is not the projection of the largest value.
    let error = load(&|_| (), "max").unwrap_err().to_string();
    assert!(
        error.contains("expected another class than Qwen3BidirectionalModel beside"),
        "{error}"
    );
}

#[test]
fn another_similarity_than_cosine_needs_vectors_of_unit_length() {
    let load = |similarity: Value, modules: usize| {
        let copy = copy("sentence-transformers/mean-dense");
        let file = copy.path().join("config_sentence_transformers.json");
        edit(&file, |config| config["similarity_fn_name"] = similarity);
        edit(&copy.path().join("modules.json"), |all| {
            all.as_array_mut().unwrap().truncate(modules)
        });
        Model::load(copy.path(), Device::Cpu, Precision::F32)
    };
    for similarity in [Value::Null, json!("cosine"), json!("dot"), json!("euclidean")] {
        load(similarity, 5).unwrap();
    }
    load(json!("cosine"), 4).unwrap();
    for (similarity, modules) in [("dot", 4), ("euclidean", 4), ("manhattan", 5)] {
        let error = load(json!(similarity), modules).unwrap_err().to_string();
        assert!(error.contains("`similarity_fn_name`: expected \"cosine\""), "{error}");
    }
}
