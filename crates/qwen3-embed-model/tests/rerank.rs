//! Reranker heads: against transformers, and where a checkpoint has another one or none.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use qwen3_embed_model::{
    Arithmetic, Checkpoint, Device, Error, LoadOptions, Model, Precision, RerankHead, Result,
    StoredTokenizer,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

const RERANKERS: [&str; 4] = ["tied", "untied", "classifier", "gguf"];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A reranker's folder, or its GGUF file.
fn reranker(name: &str) -> PathBuf {
    let folder = fixtures().join("rerankers").join(name);
    if name == "gguf" { folder.join("model.gguf") } else { folder }
}

/// The ids of yes and no.
fn answers(path: &Path) -> [u32; 2] {
    let id = |tokens: &[String], answer| tokens.iter().position(|t| t == answer).unwrap() as u32;
    if path.is_dir() {
        let tokenizer = json_of(&path.join("tokenizer.json"));
        let vocab = &tokenizer["model"]["vocab"];
        return ["yes", "no"].map(|answer| vocab[answer].as_u64().unwrap() as u32);
    }
    let checkpoint = Checkpoint::open(path).unwrap();
    let StoredTokenizer::Gguf(vocabulary) = checkpoint.tokenizer().unwrap() else { panic!() };
    ["yes", "no"].map(|answer| id(&vocabulary.tokens, answer))
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn head(path: &Path) -> Result<RerankHead> {
    let [yes, no] = answers(path);
    load_head(path, yes, no)
}

fn load_head(path: &Path, yes: u32, no: u32) -> Result<RerankHead> {
    RerankHead::load(&Checkpoint::open(path)?, yes, no)
}

/// What transformers computes: tokens, and a column of numbers.
fn golden(name: &str, column: &str) -> (Vec<Vec<u32>>, Vec<f64>) {
    let golden = json_of(&fixtures().join("rerankers").join(name).join("golden.json"));
    let cases = golden["cases"].as_array().unwrap();
    let tokens = cases.iter().map(|case| serde_json::from_value(case["tokens"].clone()).unwrap());
    (tokens.collect(), cases.iter().map(|case| case[column].as_f64().unwrap()).collect())
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// The largest and the mean distance of our logits from a column, and of the scores.
fn errors(ours: &[f32], theirs: &[f64]) -> [f64; 3] {
    assert_eq!(ours.len(), theirs.len());
    let pairs = || ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a), b));
    let logits = || pairs().map(|(a, b)| (a - b).abs());
    let scores = pairs().map(|(a, b)| (sigmoid(a) - sigmoid(b)).abs());
    let n = ours.len() as f64;
    [logits().fold(0.0, f64::max), logits().sum::<f64>() / n, scores.fold(0.0, f64::max)]
}

#[test]
fn every_reranker_equals_transformers_and_the_f64_truth() {
    for name in RERANKERS {
        let path = reranker(name);
        let model = Model::load(&path, Device::Cpu, Precision::F32).unwrap();
        let (prompts, logits) = golden(name, "logit");
        let ours = head(&path).unwrap().logits(&model, &prompts).unwrap();
        // Scores that are all the same would say nothing.
        let spread = logits.iter().fold(0f64, |max, logit| max.max((logit - logits[0]).abs()));
        assert!(spread > 1.0, "{name}: {spread}");
        for column in ["logit", "logit_f64"] {
            let (_, theirs) = golden(name, column);
            let [worst, _, worst_score] = errors(&ours, &theirs);
            assert!(worst <= 2e-5, "{name}: a logit is {worst:e} from {column}");
            assert!(worst_score <= 1e-5, "{name}: a score is {worst_score:e} from {column}");
        }
        // The sigmoid of the logit is the score that transformers computes by a softmax over both
        // answers.
        let (_, scores) = golden(name, "score");
        for (logit, score) in ours.iter().zip(scores) {
            assert!((sigmoid(f64::from(*logit)) - score).abs() <= 1e-5, "{name}: {score}");
        }
    }
}

#[test]
fn bf16_is_no_further_off_than_that_of_transformers() {
    for name in ["tied", "untied", "classifier"] {
        let path = reranker(name);
        let options = LoadOptions::multiplying(Precision::Bf16, Arithmetic::Bf16);
        let model = Model::load_with(&Checkpoint::open(&path).unwrap(), &options).unwrap();
        let (prompts, truth) = golden(name, "logit_f64");
        let ours = errors(&head(&path).unwrap().logits(&model, &prompts).unwrap(), &truth);
        let (_, theirs) = golden(name, "bf16_logit");
        let theirs: Vec<f32> = theirs.iter().map(|&logit| logit as f32).collect();
        let theirs = errors(&theirs, &truth);
        assert!(ours[1] <= 2.0 * theirs[1], "{name}: {ours:?}, transformers {theirs:?}");
    }
}

#[test]
fn int8_keeps_the_scores() {
    // Twice what transformers' own bf16 is off by on these models, the hidden size of which leaves
    // rounding errors little to average over.
    const BAR: f64 = 0.046;
    for name in RERANKERS {
        for arithmetic in [Arithmetic::Int8, Arithmetic::Bytes] {
            let path = reranker(name);
            let options = LoadOptions::multiplying(Precision::Int8, arithmetic);
            let model = Model::load_with(&Checkpoint::open(&path).unwrap(), &options).unwrap();
            let (prompts, truth) = golden(name, "logit_f64");
            let [_, _, worst] =
                errors(&head(&path).unwrap().logits(&model, &prompts).unwrap(), &truth);
            assert!(worst <= BAR, "{name}, {arithmetic:?}: {worst}");
        }
    }
}

/// The tensors of a safetensors file by name: type, shape and bytes.
type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a fixture in one file, with a change to its configuration and its tensors.
fn changed(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let (from, dir) = (fixtures().join(name), tempfile::tempdir().unwrap());
    let mut tensors = Tensors::new();
    for file in fs::read_dir(&from).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = fs::read(path).unwrap();
            for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let (shape, data) = (tensor.shape().to_vec(), tensor.data().to_vec());
                tensors.insert(name, (tensor.dtype(), shape, data));
            }
        }
    }
    let mut config = json_of(&from.join("config.json"));
    change(&mut config, &mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let views: HashMap<_, _> = views.collect();
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(from.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    dir
}

fn changed_head(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> Result<RerankHead> {
    let dir = changed(&format!("rerankers/{name}"), change);
    head(dir.path())
}

/// `lm_head.weight` is used if it is there, whatever `tie_word_embeddings` says, as by transformers.
#[test]
fn the_head_is_what_the_checkpoint_contains() {
    let own = head(&reranker("untied")).unwrap();
    let claimed = changed_head("untied", |config, _| config["tie_word_embeddings"] = json!(true));
    assert_eq!(claimed.unwrap(), own);
    let tied = changed_head("untied", |config, tensors| {
        config["tie_word_embeddings"] = json!(true);
        tensors.remove("lm_head.weight");
    });
    assert_ne!(tied.unwrap(), own);
    // The same tensor under both names.
    let twice = changed_head("tied", |_, tensors| {
        let embeddings = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), embeddings);
    });
    assert_eq!(twice.unwrap(), head(&reranker("tied")).unwrap());
}

#[test]
fn the_answers_are_rows_of_the_head() {
    let path = reranker("untied");
    let [yes, no] = answers(&path);
    let (here, there) = (load_head(&path, yes, no), load_head(&path, no, yes));
    let model = Model::load(&path, Device::Cpu, Precision::F32).unwrap();
    let prompts = [[1, 2, 3]];
    let here = here.unwrap().logits(&model, &prompts).unwrap();
    let there = there.unwrap().logits(&model, &prompts).unwrap();
    assert_eq!(here[0], -there[0]);
    assert_ne!(here[0], 0.0);
    let error = head(&reranker("tied")).unwrap().logits(&model, &prompts).unwrap_err();
    assert!(matches!(error, Error::HeadSize { expected: 96, got: 64 }), "{error}");
    let error = load_head(&path, yes, 1026).unwrap_err();
    assert!(matches!(error, Error::AnswerOutOfRange { id: 1026, vocab_size: 1026, .. }), "{error}");
}

#[test]
fn an_embedding_model_is_refused() {
    // As published: a causal language model by its configuration, without a head.
    let error = load_head(&fixtures().join("models/base"), 1, 2).unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { .. }), "{error}");
    assert!(error.to_string().contains("no `model.` before their names"), "{error}");
    let error = changed_head("tied", |config, _| config["architectures"] = json!(["Qwen3Model"]));
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { got, .. } if got.contains("Qwen3Model")));
    let tied = changed("rerankers/tied", |_, _| {});
    assert_eq!(head(tied.path()).unwrap(), head(&reranker("tied")).unwrap());
    fs::create_dir(tied.path().join("1_Pooling")).unwrap();
    for file in ["modules.json", "1_Pooling/config.json"] {
        let from = fixtures().join("sentence-transformers/last-token").join(file);
        fs::copy(from, tied.path().join(file)).unwrap();
    }
    let error = head(tied.path()).unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { got, .. } if got.contains("modules.json")));
    // Where what follows the pooling is not known, too. A reranker has no pooling.
    let modules = tied.path().join("modules.json");
    let with = |classes: &[&str]| {
        let list: Vec<_> = classes.iter().map(|class| json!({"path": "", "type": class})).collect();
        fs::write(&modules, json!(list).to_string()).unwrap();
        head(tied.path())
    };
    let error = with(&["a.Transformer", "a.Pooling", "a.Unknown"]).unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { got, .. } if got.contains("modules.json")));
    assert_eq!(with(&["a.Transformer", "a.LogitScore"]).unwrap(), head(&reranker("tied")).unwrap());
    fs::write(&modules, "{").unwrap();
    let error = head(tied.path()).unwrap_err();
    assert!(matches!(&error, Error::Json { path, .. } if *path == modules), "{error}");
    for (name, refused) in [("gguf-k-quants", true), ("gguf-q8-0", true), ("gguf-float", false)] {
        let path = fixtures().join("models").join(name).join("model.gguf");
        let result = load_head(&path, 1, 2);
        assert_eq!(matches!(result, Err(Error::NoRerankHead { .. })), refused, "{name}");
        assert_eq!(result.is_ok(), !refused, "{name}");
    }
}

#[test]
fn a_checkpoint_without_a_head_is_refused() {
    let error = changed_head("untied", |_, tensors| {
        tensors.remove("lm_head.weight");
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { got, .. } if got.contains("no `tie_word")));
    let error = changed_head("classifier", |_, tensors| {
        tensors.remove("score.weight");
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "score.weight"));
    // No class and no prefix tell it from a reranker.
    let known = changed_head("tied", |config, _| config["architectures"] = Value::Null);
    assert_eq!(known.unwrap(), head(&reranker("tied")).unwrap());
}

#[test]
fn a_classifier_has_one_label_and_no_bias() {
    let own = head(&reranker("classifier")).unwrap();
    let unnamed = changed_head("classifier", |config, _| config["architectures"] = json!([]));
    assert_eq!(unnamed.unwrap(), own);
    let error = changed_head("classifier", |_, tensors| {
        let score = tensors.get_mut("score.weight").unwrap();
        (score.1, score.2) = (vec![2, 64], score.2.repeat(2));
    });
    match error.unwrap_err() {
        Error::TensorShape { name, expected, got, .. } => {
            assert_eq!((&*name, expected, got), ("score.weight", vec![1, 64], vec![2, 64]));
        }
        other => panic!("{other}"),
    }
    let error = changed_head("classifier", |_, tensors| {
        tensors.insert("score.bias".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::UnexpectedTensor { name, .. } if name == "score.bias"));
}

#[test]
fn a_logit_that_is_not_finite_is_an_error_that_names_its_text() {
    for (value, expected) in [(f32::NAN, "NaN"), (f32::MAX, "inf")] {
        let dir = changed("rerankers/classifier", |_, tensors| {
            let score = &mut tensors.get_mut("score.weight").unwrap().2;
            for weight in score.chunks_exact_mut(4) {
                let sign = f32::from_le_bytes(weight.try_into().unwrap()).signum();
                weight.copy_from_slice(&(sign * value).to_le_bytes());
            }
        });
        let model = Model::load(dir.path(), Device::Cpu, Precision::F32).unwrap();
        let head = head(dir.path()).unwrap();
        let error = head.logits(&model, &[[1, 2], [3, 4]]).unwrap_err();
        assert!(matches!(error, Error::LogitNotFinite { text: 0, .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A GGUF file whose labels are the other way round, or not those.
#[test]
fn the_labels_of_a_gguf_file_say_which_row_is_which() {
    let file = fs::read(reranker("gguf")).unwrap();
    // The array of two strings: yes, no.
    let labels = [&3u64.to_le_bytes()[..], b"yes", &2u64.to_le_bytes(), b"no"].concat();
    let at = file.windows(labels.len()).position(|window| window == labels).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let relabelled = |labels: [&[u8]; 2]| {
        let mut file = file.clone();
        file.splice(
            at..at + 21,
            [
                &(labels[0].len() as u64).to_le_bytes(),
                labels[0],
                &(labels[1].len() as u64).to_le_bytes(),
                labels[1],
            ]
            .concat(),
        );
        fs::write(&path, file).unwrap();
        head(&path)
    };
    let swapped = relabelled([b"no", b"yes"]).unwrap();
    let model = Model::load(&path, Device::Cpu, Precision::F32).unwrap();
    let prompts = [[5, 6, 7]];
    let own = head(&reranker("gguf")).unwrap().logits(&model, &prompts).unwrap();
    assert_eq!(swapped.logits(&model, &prompts).unwrap()[0], -own[0]);
    let error = relabelled([b"yea", b"no"]).unwrap_err();
    assert!(error.to_string().contains("expected the labels \"yes\" and \"no\""), "{error}");
}

/// Without a classifier's tensor a GGUF file's own embeddings are the head, as those of older converters.
#[test]
fn a_gguf_file_without_a_classifier_has_the_head_of_a_language_model() {
    let file = fs::read(reranker("gguf")).unwrap();
    // It is the last one in the header: a name, two dimensions, a type and an offset.
    let name = [&17u64.to_le_bytes()[..], b"cls.output.weight"].concat();
    let at = file.windows(name.len()).position(|window| window == name).unwrap();
    let data = (at + name.len() + 4 + 2 * 8 + 4 + 8).next_multiple_of(32);
    let padding = vec![0; at.next_multiple_of(32) - at];
    let mut file = [&file[..at], &padding, &file[data..]].concat();
    // The number of tensors.
    file[8] -= 1;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, file).unwrap();
    // The classifier's rows were made from those of the embeddings, in the same type.
    assert_eq!(head(&path).unwrap(), head(&reranker("gguf")).unwrap());
}
