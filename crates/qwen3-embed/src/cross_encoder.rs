//! Rerankers that sentence-transformers has saved: a causal language model with a module `LogitScore`.

use std::collections::BTreeMap;
use std::path::Path;

use qwen3_embed_model::Error as ModelError;
use qwen3_embed_text::{DEFAULT_INSTRUCTION, RerankTemplate};
use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::source::{read, read_json};

/// The settings of a reranker in its repository.
#[derive(Debug)]
pub(crate) struct CrossEncoder {
    /// The token ids of the answers yes and no.
    pub(crate) answers: [u32; 2],
    /// The default instruction. `None` if it is that of the chat template.
    pub(crate) instruction: Option<String>,
}

/// The files that may contain the chat template, in the order in which they are read.
pub(crate) const CHAT_TEMPLATES: [&str; 2] = ["chat_template.jinja", "tokenizer_config.json"];

/// A module of `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// The `config.json` of `LogitScore`.
#[derive(Deserialize)]
struct LogitScore {
    true_token_id: u32,
    false_token_id: Option<u32>,
    module_input_name: Option<String>,
}

/// `config_sentence_transformers.json`
#[derive(Deserialize, Default)]
#[serde(default)]
struct ModelConfig {
    activation_fn: Option<String>,
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// The supported activation functions. The score is always the sigmoid of the logit, whichever of these functions a
/// repository names, because the logit is returned too.
const ACTIVATIONS: [&str; 4] = [
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.activation.Sigmoid",
    "torch.nn.Identity",
    "torch.nn.Sigmoid",
];

impl CrossEncoder {
    /// Whether the `modules.json` in a folder has a `LogitScore` of sentence-transformers.
    pub(crate) fn is_in(dir: &Path) -> Result<bool> {
        Ok(modules(dir)?.iter().any(Module::is_logit_score))
    }

    /// Reads the settings of the reranker in a folder. `None` if there is no `modules.json`, or if its modules are
    /// those of an embedding model or of a classifier.
    ///
    /// # Errors
    ///
    /// [`ModelError::Field`] if a setting would change scores and is not supported.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let modules = modules(dir)?;
        let Some(idx) = modules.iter().position(Module::is_logit_score) else {
            // With a pooling it is an embedding model, which is refused because it has no head.
            return match modules.get(1).filter(|module| !module.is("Pooling")) {
                Some(module) => {
                    let expected = "LogitScore of sentence_transformers";
                    Err(field(dir, "modules.json", "1.type", expected, &module.kind))
                }
                None => Ok(None),
            };
        };
        let path = &modules[idx].path;
        if modules.len() != 2 || idx != 1 || !modules[0].is("Transformer") {
            let kinds: Vec<&str> = modules.iter().map(|module| module.kind.as_str()).collect();
            let expected = "a Transformer and a LogitScore of sentence_transformers";
            return Err(field(dir, "modules.json", "type", expected, &kinds.join(", ")));
        }
        if path.is_empty() || path.starts_with('.') || path.contains(['/', '\\', ':']) {
            let expected = "the name of a folder in the folder of modules.json";
            return Err(field(dir, "modules.json", "1.path", expected, path));
        }
        let answers = answers(&dir.join(path))?;
        let instruction = instruction(dir)?;
        check_template(dir, instruction.is_none())?;
        Ok(Some(Self { answers, instruction }))
    }
}

impl Module {
    fn is(&self, kind: &str) -> bool {
        self.kind.starts_with("sentence_transformers.")
            && self.kind.rsplit('.').next() == Some(kind)
    }

    fn is_logit_score(&self) -> bool {
        self.is("LogitScore")
    }
}

/// The modules of `modules.json`. Empty if there is no such file.
fn modules(dir: &Path) -> Result<Vec<Module>> {
    let path = dir.join("modules.json");
    if path.is_file() { read_json(&path) } else { Ok(Vec::new()) }
}

/// The token ids of the answers yes and no, from the `LogitScore` in `dir`.
fn answers(dir: &Path) -> Result<[u32; 2]> {
    let config: LogitScore = read_json(&dir.join("config.json"))?;
    let input = config.module_input_name.as_deref().unwrap_or("causal_logits");
    if input != "causal_logits" {
        return Err(field(dir, "config.json", "module_input_name", "causal_logits", input));
    }
    match config.false_token_id {
        Some(no) => Ok([config.true_token_id, no]),
        None => {
            let expected = "the token id of the answer no, as in Qwen3-Reranker";
            Err(field(dir, "config.json", "false_token_id", expected, "nothing"))
        }
    }
}

/// The default prompt, which is the instruction. `None` if there is no default prompt.
fn instruction(dir: &Path) -> Result<Option<String>> {
    const FILE: &str = "config_sentence_transformers.json";
    let path = dir.join(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let config: ModelConfig = read_json(&path)?;
    let activation = config.activation_fn.as_deref().unwrap_or(ACTIVATIONS[0]);
    if !ACTIVATIONS.contains(&activation) {
        let expected = format!("one of {}", ACTIVATIONS.join(", "));
        return Err(field(dir, FILE, "activation_fn", &expected, activation));
    }
    let Some(name) = config.default_prompt_name else { return Ok(None) };
    match config.prompts.get(&name) {
        // With an empty prompt, the chat template uses its own instruction.
        Some(prompt) => Ok(prompt.clone().filter(|prompt| !prompt.is_empty())),
        None => Err(field(dir, FILE, "default_prompt_name", "one of `prompts`", &name)),
    }
}

/// Refuses a chat template that makes another prompt than that of Qwen3-Reranker. If `uses_its_instruction`, also
/// refuses a chat template whose instruction is not [`DEFAULT_INSTRUCTION`].
fn check_template(dir: &Path, uses_its_instruction: bool) -> Result<()> {
    let [jinja, config] = CHAT_TEMPLATES;
    let (file, template) = match dir.join(jinja).is_file() {
        true => (jinja, Some(String::from_utf8_lossy(&read(&dir.join(jinja))?).into_owned())),
        false if dir.join(config).is_file() => (config, template(&read_json(&dir.join(config))?)),
        false => (jinja, None),
    };
    let Some(template) = template else {
        return Err(field(dir, file, "chat_template", "the prompt of Qwen3-Reranker", "nothing"));
    };
    if !RerankTemplate::is_made_by(&template) {
        let expected = "the prompt of Qwen3-Reranker, with no statements but expressions and `set`";
        return Err(field(dir, file, "chat_template", expected, &format!("{template:?}")));
    }
    if uses_its_instruction && !template.contains(DEFAULT_INSTRUCTION) {
        let expected = format!("`{DEFAULT_INSTRUCTION}` as the default instruction");
        return Err(field(dir, file, "chat_template", &expected, &format!("{template:?}")));
    }
    Ok(())
}

/// The chat template of `tokenizer_config.json`: the only one, or the one with the name `default`.
fn template(config: &Value) -> Option<String> {
    let template = config.get("chat_template")?;
    let named = |template: &&Value| template.get("name").is_some_and(|name| name == "default");
    let template = match template.as_array() {
        Some(templates) => templates.iter().find(named)?.get("template")?,
        None => template,
    };
    template.as_str().map(str::to_owned)
}

fn field(dir: &Path, file: &str, field: &str, expected: &str, got: &str) -> crate::Error {
    let (path, field) = (dir.join(file), field.to_owned());
    ModelError::Field { path, field, expected: expected.to_owned(), got: got.to_owned() }.into()
}
