//! Rerank heads: logits against transformers, and checkpoints with another head or none.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed_model::{
    Arithmetic, Checkpoint, Device, Error, LoadOptions, Model, Precision, RerankHead, Result,
    StoredTokenizer,
};
use qwen3_embed_testing::fixtures::{self, Tensor, Tensors, reranker};
use qwen3_embed_testing::golden::{self, Case, Scores};
use qwen3_embed_testing::oracle;
use qwen3_embed_testing::vectors::{max_abs, mean};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const RERANKERS: [&str; 4] = ["tied", "untied", "classifier", "gguf"];

/// The ids of the tokens `yes` and `no`.
fn answers(path: &Path) -> [u32; 2] {
    if path.is_dir() {
        return oracle::answers(path).unwrap();
    }
    let checkpoint = Checkpoint::open(path).unwrap();
    let StoredTokenizer::Gguf(vocabulary) = checkpoint.tokenizer().unwrap() else { panic!() };
    let id = |answer| vocabulary.tokens.iter().position(|token| token == answer).unwrap();
    ["yes", "no"].map(|answer| id(answer) as u32)
}

fn head(path: &Path) -> Result<RerankHead> {
    let [yes, no] = answers(path);
    load_head(path, yes, no)
}

fn load_head(path: &Path, yes: u32, no: u32) -> Result<RerankHead> {
    RerankHead::load(&Checkpoint::open(path)?, yes, no)
}

/// The prompts of a reranker's golden file, and a number of each case.
fn golden(name: &str, number: fn(&Case) -> f64) -> (Vec<Vec<u32>>, Vec<f64>) {
    let path = fixtures::path("rerankers").join(name).join("golden.json");
    let golden: Scores = golden::read(&path).unwrap();
    let numbers = golden.cases.iter().map(number).collect();
    (golden.cases.into_iter().map(|case| case.tokens).collect(), numbers)
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// The largest and the mean difference between our logits and the expected logits, and the largest difference between
/// the scores.
fn errors(ours: &[f32], expected: &[f64]) -> [f64; 3] {
    assert_eq!(ours.len(), expected.len());
    let pairs = || ours.iter().zip(expected).map(|(&a, &b)| (f64::from(a), b));
    let logits: Vec<f64> = pairs().map(|(a, b)| (a - b).abs()).collect();
    let scores: Vec<f64> = pairs().map(|(a, b)| (sigmoid(a) - sigmoid(b)).abs()).collect();
    [max_abs(&logits), mean(&logits), max_abs(&scores)]
}

#[test]
fn every_reranker_matches_transformers_and_the_f64_reference() {
    for name in RERANKERS {
        let path = reranker(name);
        let model = Model::load(&path, Device::Cpu, Precision::F32).unwrap();
        let (prompts, logits) = golden(name, |case| case.logit);
        let ours = head(&path).unwrap().logits(&model, &prompts).unwrap();
        // Logits that are all the same would prove nothing.
        let spread: Vec<f64> = logits.iter().map(|logit| logit - logits[0]).collect();
        assert!(max_abs(&spread) > 1.0, "{name}: {spread:?}");
        let (_, truth) = golden(name, |case| case.logit_f64);
        for (source, expected) in [("transformers", logits), ("the f64 reference", truth)] {
            let [worst, _, worst_score] = errors(&ours, &expected);
            assert!(worst <= 2e-5, "{name}: a logit is {worst:e} from {source}");
            assert!(worst_score <= 1e-5, "{name}: a score is {worst_score:e} from {source}");
        }
        // transformers computes the score by a softmax over both answers, which is the sigmoid of the logit.
        let (_, scores) = golden(name, |case| case.score);
        for (logit, score) in ours.iter().zip(scores) {
            assert!((sigmoid(f64::from(*logit)) - score).abs() <= 1e-5, "{name}: {score}");
        }
    }
}

#[test]
fn bf16_logits_have_at_most_twice_the_error_of_transformers_bf16() {
    for name in ["tied", "untied", "classifier"] {
        let path = reranker(name);
        let options = LoadOptions::multiplying(Precision::Bf16, Arithmetic::Bf16);
        let model = Model::load_with(&Checkpoint::open(&path).unwrap(), &options).unwrap();
        let (prompts, truth) = golden(name, |case| case.logit_f64);
        let ours = errors(&head(&path).unwrap().logits(&model, &prompts).unwrap(), &truth);
        let (_, theirs) = golden(name, |case| case.bf16_logit);
        let theirs: Vec<f32> = theirs.iter().map(|&logit| logit as f32).collect();
        let theirs = errors(&theirs, &truth);
        assert!(ours[1] <= 2.0 * theirs[1], "{name}: {ours:?}, transformers {theirs:?}");
    }
}

#[test]
fn int8_scores_are_close_to_the_f64_reference() {
    // Twice the error of transformers' own bf16 on these models. Their hidden sizes are small, so rounding errors
    // hardly average out.
    const TOLERANCE: f64 = 0.046;
    for name in RERANKERS {
        for arithmetic in [Arithmetic::Int8, Arithmetic::Bytes] {
            let path = reranker(name);
            let options = LoadOptions::multiplying(Precision::Int8, arithmetic);
            let model = Model::load_with(&Checkpoint::open(&path).unwrap(), &options).unwrap();
            let (prompts, truth) = golden(name, |case| case.logit_f64);
            let [_, _, worst] =
                errors(&head(&path).unwrap().logits(&model, &prompts).unwrap(), &truth);
            assert!(worst <= TOLERANCE, "{name}, {arithmetic:?}: {worst}");
        }
    }
}

/// A copy of a reranker in one safetensors file, with changes to its configuration and its tensors.
fn changed(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let (from, dir) = (reranker(name), tempfile::tempdir().unwrap());
    let files = fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|e| e == "safetensors"));
    let mut tensors: Tensors = files.flat_map(|file| fixtures::read_tensors(&file)).collect();
    let mut config = fixtures::read_json(&from.join("config.json"));
    change(&mut config, &mut tensors);
    fixtures::write_tensors(&dir.path().join("model.safetensors"), &tensors);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fixtures::copy_file(&from.join("tokenizer.json"), &dir.path().join("tokenizer.json"));
    dir
}

fn changed_head(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> Result<RerankHead> {
    let dir = changed(name, change);
    head(dir.path())
}

/// As in transformers, `lm_head.weight` is used if it exists, whatever `tie_word_embeddings` says.
#[test]
fn lm_head_tensor_wins_over_tie_word_embeddings() {
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
fn logit_is_the_difference_of_the_answers_rows() {
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
fn rejects_embedding_model() {
    // As in the published embedding models, the configuration names a causal language model, and there is no head.
    let error = load_head(&fixtures::model("base"), 1, 2).unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { .. }), "{error}");
    assert!(error.to_string().contains("no `model.` before their names"), "{error}");
    let error = changed_head("tied", |config, _| config["architectures"] = json!(["Qwen3Model"]));
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { got, .. } if got.contains("Qwen3Model")));
    let tied = changed("tied", |_, _| {});
    assert_eq!(head(tied.path()).unwrap(), head(&reranker("tied")).unwrap());
    fs::create_dir(tied.path().join("1_Pooling")).unwrap();
    for file in ["modules.json", "1_Pooling/config.json"] {
        let from = fixtures::path("sentence-transformers/last-token").join(file);
        fixtures::copy_file(&from, &tied.path().join(file));
    }
    let error = head(tied.path()).unwrap_err();
    assert!(matches!(&error, Error::NoRerankHead { got, .. } if got.contains("modules.json")));
    // A list with a pooling is refused even if the module after the pooling is unknown. A reranker has no pooling.
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
        let result = load_head(&fixtures::model(name), 1, 2);
        assert_eq!(matches!(result, Err(Error::NoRerankHead { .. })), refused, "{name}");
        assert_eq!(result.is_ok(), !refused, "{name}");
    }
}

#[test]
fn rejects_checkpoint_without_head() {
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
    // Without a class, the prefix `model.` shows a language model.
    let known = changed_head("tied", |config, _| config["architectures"] = Value::Null);
    assert_eq!(known.unwrap(), head(&reranker("tied")).unwrap());
}

#[test]
fn classifier_has_one_label_and_no_bias() {
    let own = head(&reranker("classifier")).unwrap();
    let unnamed = changed_head("classifier", |config, _| config["architectures"] = json!([]));
    assert_eq!(unnamed.unwrap(), own);
    let error = changed_head("classifier", |_, tensors| {
        let score = tensors.get_mut("score.weight").unwrap();
        (score.shape, score.data) = (vec![2, 64], score.data.repeat(2));
    });
    match error.unwrap_err() {
        Error::TensorShape { name, expected, got, .. } => {
            assert_eq!((&*name, expected, got), ("score.weight", vec![1, 64], vec![2, 64]));
        }
        other => panic!("{other}"),
    }
    let error = changed_head("classifier", |_, tensors| {
        let bias = Tensor { dtype: Dtype::F32, shape: vec![1], data: vec![0; 4] };
        tensors.insert("score.bias".into(), bias);
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::UnexpectedTensor { name, .. } if name == "score.bias"));
}

#[test]
fn non_finite_logit_is_an_error_with_the_index_of_the_text() {
    let dir = classifier_of_values(f32::MAX);
    let model = Model::load(dir.path(), Device::Cpu, Precision::F32).unwrap();
    let head = head(dir.path()).unwrap();
    let error = head.logits(&model, &[[1, 2], [3, 4]]).unwrap_err();
    assert!(matches!(error, Error::LogitNotFinite { text: 0, .. }), "{error}");
    assert!(error.to_string().contains("inf"), "{error}");
}

#[test]
fn rejects_head_that_is_not_finite() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = head(classifier_of_values(value).path()).unwrap_err();
        assert!(
            matches!(&error, Error::WeightNotFinite { name, index: 0, .. } if name == "score.weight"),
            "{error}"
        );
    }
}

/// A classifier whose weights are `value`, with the signs of the original weights.
fn classifier_of_values(value: f32) -> TempDir {
    changed("classifier", |_, tensors| {
        let score = &mut tensors.get_mut("score.weight").unwrap().data;
        for weight in score.chunks_exact_mut(4) {
            let sign = f32::from_le_bytes(weight.try_into().unwrap()).signum();
            weight.copy_from_slice(&(sign * value).to_le_bytes());
        }
    })
}

/// Labels of a GGUF file in the other order, and other labels than yes and no.
#[test]
fn gguf_labels_decide_which_row_is_yes() {
    let file = fs::read(reranker("gguf")).unwrap();
    // The array of the two strings `yes` and `no`.
    let labels = [&3u64.to_le_bytes()[..], b"yes", &2u64.to_le_bytes(), b"no"].concat();
    let at = file.windows(labels.len()).position(|window| window == labels).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let relabeled = |labels: [&[u8]; 2]| {
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
    let swapped = relabeled([b"no", b"yes"]).unwrap();
    let model = Model::load(&path, Device::Cpu, Precision::F32).unwrap();
    let prompts = [[5, 6, 7]];
    let own = head(&reranker("gguf")).unwrap().logits(&model, &prompts).unwrap();
    assert_eq!(swapped.logits(&model, &prompts).unwrap()[0], -own[0]);
    let error = relabeled([b"yea", b"no"]).unwrap_err();
    assert!(error.to_string().contains("expected the labels \"yes\" and \"no\""), "{error}");
}

/// Files of older converters have no classifier tensor. Their token embeddings are the head.
#[test]
fn gguf_file_without_classifier_uses_token_embeddings() {
    let file = fs::read(reranker("gguf")).unwrap();
    // The last entry of the header: a name, two dimensions, a type and an offset.
    let name = [&17u64.to_le_bytes()[..], b"cls.output.weight"].concat();
    let at = file.windows(name.len()).position(|window| window == name).unwrap();
    let data = (at + name.len() + 4 + 2 * 8 + 4 + 8).next_multiple_of(32);
    let padding = vec![0; at.next_multiple_of(32) - at];
    let mut file = [&file[..at], &padding, &file[data..]].concat();
    // The header's number of tensors.
    file[8] -= 1;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, file).unwrap();
    // The fixture's classifier rows are rows of its token embeddings, in the same type.
    assert_eq!(head(&path).unwrap(), head(&reranker("gguf")).unwrap());
}
