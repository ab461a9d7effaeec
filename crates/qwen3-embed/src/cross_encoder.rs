//! Rerankers that sentence-transformers has saved: a causal language model with a module `LogitScore`.

use std::path::PathBuf;

use qwen3_embed_model::{Error as ModelError, Fields, Folder, Module, SentenceTransformers};
use qwen3_embed_text::{DEFAULT_INSTRUCTION, RerankTemplate};
use serde_json::Value;

use crate::Result;
use crate::repository::prompts;
use crate::source::CHAT_TEMPLATES;

/// The settings of a reranker that sentence-transformers has saved.
#[derive(Debug)]
pub(crate) struct CrossEncoder {
    /// The token ids of the answers "yes" and "no".
    pub(crate) answers: [u32; 2],
    /// The default instruction. `None` if the default instruction of the chat template is used.
    pub(crate) instruction: Option<String>,
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
    /// Whether the `modules.json` of a repository lists a `LogitScore` of sentence-transformers.
    pub(crate) fn is_in(files: &SentenceTransformers) -> bool {
        files.modules().any(is_logit_score)
    }

    /// Reads the settings of a reranker. `None` if there is no `modules.json`, or if it lists the modules of an
    /// embedding model or of a classifier.
    ///
    /// # Errors
    ///
    /// [`ModelError::Field`] for a setting that would change scores and is not supported.
    pub(crate) fn read(files: &SentenceTransformers) -> Result<Option<Self>> {
        let Some(fields) = files.modules_json() else { return Ok(None) };
        let modules: Vec<Module<'_>> = files.modules().collect();
        let Some(idx) = modules.iter().copied().position(is_logit_score) else {
            // The second module of an embedding model is a pooling.
            return match modules.get(1) {
                Some(module) if module.name() != Some("Pooling") => {
                    Err(fields.error("1.type", "LogitScore of sentence_transformers").into())
                }
                _ => Ok(None),
            };
        };
        if modules.len() != 2 || idx != 1 || modules[0].name() != Some("Transformer") {
            let classes: Vec<&str> = modules.iter().map(|module| module.class).collect();
            let expected = "a Transformer and a LogitScore of sentence_transformers";
            return Err(fields.error_with("type", expected, classes.join(", ")).into());
        }
        let Some(folder) = modules[idx].folder() else {
            return Err(fields
                .error("1.path", "the name of a folder in the folder of modules.json")
                .into());
        };
        let answers = answers(files.module_config(folder)?)?;
        let instruction = files.prompts_json().map(instruction).transpose()?.flatten();
        check_template(files.folder(), instruction.is_none())?;
        Ok(Some(Self { answers, instruction }))
    }
}

fn is_logit_score(module: Module<'_>) -> bool {
    module.name() == Some("LogitScore")
}

/// The token ids of the answers "yes" and "no" in the `config.json` of a `LogitScore`.
fn answers(fields: &Fields) -> Result<[u32; 2]> {
    let expected = "causal_logits";
    fields.expect_if_present("module_input_name", expected, |name| name == expected)?;
    let token = |field: &str, expected: &str| {
        let token = fields.get(field).and_then(Value::as_u64);
        let token = token.and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| fields.error(field, expected))
    };
    let yes = token("true_token_id", "the token id of the answer yes")?;
    Ok([yes, token("false_token_id", "the token id of the answer no, as in Qwen3-Reranker")?])
}

/// The default instruction: the default prompt in a `config_sentence_transformers.json`, if there is one.
fn instruction(fields: &Fields) -> Result<Option<String>> {
    let expected = format!("one of {}", ACTIVATIONS.join(", "));
    fields.expect_if_present("activation_fn", &expected, |name| {
        name.as_str().is_some_and(|name| ACTIVATIONS.contains(&name))
    })?;
    let Some(name) = fields.string("default_prompt_name")? else { return Ok(None) };
    match prompts(fields)?.remove(name) {
        // With an empty prompt, the template uses its own instruction.
        Some(prompt) => Ok(Some(prompt).filter(|prompt| !prompt.is_empty())),
        None => Err(fields.error("default_prompt_name", "one of `prompts`").into()),
    }
}

/// Rejects a chat template that makes another prompt than Qwen3-Reranker's. With `uses_its_instruction`, the default
/// instruction of the template must be [`DEFAULT_INSTRUCTION`].
fn check_template(folder: &Folder, uses_its_instruction: bool) -> Result<()> {
    let (path, template) = chat_template(folder)?;
    let error = |expected: &str, got: String| {
        let (path, field) = (path.clone(), "chat_template".to_owned());
        ModelError::Field { path, field, expected: expected.to_owned(), got }
    };
    let Some(template) = template else {
        return Err(error("the prompt of Qwen3-Reranker", "nothing".to_owned()).into());
    };
    let got = format!("{template:?}");
    if !RerankTemplate::matches_chat_template(&template) {
        let expected = "the prompt of Qwen3-Reranker, in a template with only expressions and `set` statements";
        return Err(error(expected, got).into());
    }
    if uses_its_instruction && !template.contains(DEFAULT_INSTRUCTION) {
        let expected = format!("`{DEFAULT_INSTRUCTION}` as the default instruction");
        return Err(error(&expected, got).into());
    }
    Ok(())
}

/// The file with the chat template, and the template if the file has one.
fn chat_template(folder: &Folder) -> Result<(PathBuf, Option<String>)> {
    let [jinja, config] = CHAT_TEMPLATES;
    if folder.contains(jinja) {
        let template = String::from_utf8_lossy(&folder.read(jinja)?).into_owned();
        return Ok((folder.path_of(jinja), Some(template)));
    }
    if !folder.contains(config) {
        return Ok((folder.path_of(jinja), None));
    }
    let fields = Fields::read(folder, config)?;
    let template = fields.get("chat_template").and_then(default_template);
    Ok((fields.path().to_path_buf(), template))
}

/// The template in a `tokenizer_config.json`: the only one, or the one with the name `default`.
fn default_template(template: &Value) -> Option<String> {
    let named = |template: &&Value| template.get("name").is_some_and(|name| name == "default");
    let template = match template.as_array() {
        Some(templates) => templates.iter().find(named)?.get("template")?,
        None => template,
    };
    template.as_str().map(str::to_owned)
}
