//! Adapters against PEFT, and the errors of adapters, poolings and dense layers that are damaged or not supported.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed_model::{
    Adapter, Checkpoint, Device, Error, Folder, LoadOptions, Model, Pooling, Precision,
};
use qwen3_embed_testing::fixtures::{self, Tensor, copy, edit_json as edit, write_tensors};
use qwen3_embed_testing::golden::{self, Vectors};
use qwen3_embed_testing::vectors::{cosine, max_difference, unit};
use safetensors::Dtype;
use serde_json::{Value, json};

fn with_adapter(base: &str, adapter: &Path, precision: Precision) -> Result<Model, Error> {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&fixtures::path(base))?
        .with_adapter(Adapter::open(Folder::on_disk(adapter))?)?;
    Model::load_with(&checkpoint, &options)
}

#[test]
fn merged_adapter_gives_the_vectors_of_peft() {
    let adapter = fixtures::path("adapters/lora");
    let golden: Vectors = golden::read(&adapter.join("golden.json")).unwrap();
    let (tokens, truth) = (golden.tokens.unwrap(), golden.unit_f64.unwrap());
    let plain = Model::load(&fixtures::path("models/base"), Device::Cpu, Precision::F32).unwrap();
    let plain = plain.forward(&tokens).unwrap();
    // Merged weights are f32, so fewer bits round them.
    for (precision, tolerance, least_cosine) in [
        (Precision::F32, 1e-5, 1.0 - 1e-9),
        (Precision::Bf16, 1.0, 0.9995),
        (Precision::Int8, 1.0, 0.998),
    ] {
        let model = with_adapter("models/base", &adapter, precision).unwrap();
        let rows = model.forward(&tokens).unwrap();
        let width = model.embedding_size();
        for (i, row) in rows.chunks_exact(width).enumerate() {
            let largest = max_difference(&unit(row), &truth[i]);
            let similarity = cosine(row, &truth[i]);
            assert!(largest <= tolerance, "{precision:?}, text {i}: {largest:e}");
            assert!(similarity >= least_cosine, "{precision:?}, text {i}: {similarity}");
            let unchanged = cosine(&plain[i * width..][..width], &truth[i]);
            assert!(unchanged < 0.99, "the adapter changes nothing in text {i}: {unchanged}");
        }
    }
}

#[test]
fn rejects_adapter_that_is_not_plain_lora_and_names_the_field() {
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

/// PEFT uses the first of two patterns for one module. Here the order must not matter, because both have the same
/// value.
#[test]
fn accepts_alpha_patterns_that_agree() {
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
fn write_zeros(path: &Path, tensors: &[(&str, [usize; 2])]) {
    let zeros = |&(name, [rows, columns]): &(&str, [usize; 2])| {
        let (shape, data) = (vec![rows, columns], vec![0; 4 * rows * columns]);
        (name.to_owned(), Tensor { dtype: Dtype::F32, shape, data })
    };
    write_tensors(path, &tensors.iter().map(zeros).collect());
}

#[test]
fn rejects_adapter_tensors_that_do_not_fit_the_linear_layers() {
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
        write_zeros(&copy.path().join("adapter_model.safetensors"), &tensors);
        let error = with_adapter("models/base", copy.path(), Precision::F32).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}, expected {expected}");
    }
    // The tensors have the names of a causal language model's adapter. Zeros change nothing.
    let copy = copy("adapters/lora");
    let prefix = "base_model.model.model.layers.2.mlp.up_proj";
    let [a, b] = ["A", "B"].map(|which| format!("{prefix}.lora_{which}.weight"));
    write_zeros(&copy.path().join("adapter_model.safetensors"), &[(&a, [2, 64]), (&b, [160, 2])]);
    let model = with_adapter("models/base", copy.path(), Precision::F32).unwrap();
    let plain = Model::load(&fixtures::path("models/base"), Device::Cpu, Precision::F32).unwrap();
    assert!(model.forward(&[[1, 2, 3]]).unwrap() == plain.forward(&[[1, 2, 3]]).unwrap());
}

#[test]
fn missing_adapter_file_is_named() {
    let copy = copy("adapters/lora");
    let load = || with_adapter("models/base", copy.path(), Precision::F32).unwrap_err().to_string();
    fs::remove_file(copy.path().join("adapter_model.safetensors")).unwrap();
    assert!(load().ends_with("adapter_model.safetensors"), "{}", load());
    fs::remove_file(copy.path().join("adapter_config.json")).unwrap();
    assert!(load().ends_with("adapter_config.json"), "{}", load());
}

#[test]
fn modules_are_applied_unless_hidden_states_are_requested() {
    let dir = fixtures::path("sentence-transformers/mean-dense");
    let model = Model::load(&dir, Device::Cpu, Precision::F32).unwrap();
    assert_eq!((model.pooling(), model.embedding_size()), (Pooling::Mean, 24));
    assert_eq!(model.forward(&[[1, 2]]).unwrap().len(), 24);
    let options =
        LoadOptions { precision: Precision::F32, hidden_states: true, ..LoadOptions::default() };
    let model = Model::load_with(&Checkpoint::open(&dir).unwrap(), &options).unwrap();
    assert_eq!((model.pooling(), model.embedding_size()), (Pooling::LastToken, 32));
}

/// Mean pooling is the default of sentence-transformers for a repository without `modules.json`.
#[test]
fn bidirectional_model_without_modules_uses_mean_pooling() {
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

/// Loads a copy of a repository with other modules and another pooling.
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
fn reads_old_and_new_names_of_poolings() {
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
fn rejects_unknown_and_misordered_modules_and_names_them() {
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
fn rejects_unknown_poolings_and_names_them() {
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
fn rejects_dense_layer_that_does_not_fit() {
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
fn projection_width_is_num_labels_or_that_of_its_tensor() {
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
    // Max pooling and a projection do not commute.
    let error = load(&|_| (), "max").unwrap_err().to_string();
    assert!(
        error.contains("expected another class than Qwen3BidirectionalModel beside"),
        "{error}"
    );
}

#[test]
fn rejects_similarities_other_than_cosine_without_normalization() {
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
