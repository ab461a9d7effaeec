//! The model classes that a checkpoint may name: the classes of transformers, and two classes of repositories with
//! their own code. That code is not run. What it computes is implemented here, after public descriptions.

use serde_json::Value;

use crate::Result;
use crate::checkpoint::fields::Fields;

/// The model class of a checkpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Class {
    /// The name of the class, if the configuration has one.
    pub(crate) name: Option<String>,
    /// Whether attention is bidirectional, whatever other fields of the configuration say.
    pub(crate) is_bidirectional: bool,
    /// Whether a linear layer, `linear.weight`, may follow the decoder.
    pub(crate) may_project: bool,
}

/// A class that is defined by the code of a repository.
struct OwnCode {
    model_type: &'static str,
    name: &'static str,
    /// The class in `auto_map`: the name of the Python file, a dot, and the name of the class.
    auto_model: &'static str,
    may_project: bool,
}

/// The `model_type` of transformers.
const QWEN3: &str = "qwen3";

/// The classes of transformers.
const STOCK: [&str; 3] = ["Qwen3Model", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"];

/// The supported classes of repositories with their own code. Both are the decoder of transformers with bidirectional
/// attention.
///
/// # Source
///
/// `Qwen3BidirectionalModel` is the class of voyage-4-nano, as in vLLM (`voyage.py`) and text-embeddings-inference
/// (`qwen3.rs`). `PPLXQwen3Model` is the class of pplx-embed-v1, as in text-embeddings-inference (`pplx1.rs`).
const OWN_CODE: [OwnCode; 2] = [
    OwnCode {
        model_type: QWEN3,
        name: "Qwen3BidirectionalModel",
        auto_model: "modeling_qwen3_bidirectional.Qwen3BidirectionalModel",
        may_project: true,
    },
    OwnCode {
        model_type: "bidirectional_pplx_qwen3",
        name: "PPLXQwen3Model",
        auto_model: "modeling.PPLXQwen3Model",
        may_project: false,
    },
];

/// The class of pplx-embed-context, which is not supported.
const LATE_CHUNKING: &str = "modeling.PPLXQwen3ContextualModel";

impl Class {
    /// Reads the class that `config.json` names. Fails for classes whose code or head is not supported.
    pub(crate) fn read(fields: &Fields) -> Result<Self> {
        let auto_model = auto_model(fields)?;
        let first = fields.get("architectures").and_then(|classes| classes.get(0));
        let first = first.and_then(Value::as_str);
        let own = match auto_model {
            Some(auto_model) => OWN_CODE.iter().find(|own| own.auto_model == auto_model),
            None => OWN_CODE.iter().find(|own| Some(own.name) == first),
        };
        let model_type = own.map_or(QWEN3, |own| own.model_type);
        fields.expect("model_type", &format!("\"{model_type}\""), |v| v == model_type)?;
        let known: Vec<&str> = STOCK.into_iter().chain(own.map(|own| own.name)).collect();
        let expected = format!("none or one of {}", known.join(", "));
        fields.expect_if_present("architectures", &expected, |v| {
            let is_known = |first: &Value| known.iter().any(|known| first == known);
            v.as_array().is_some_and(|classes| classes.first().is_none_or(is_known))
        })?;
        let Some(own) = own else {
            return Ok(Self { name: first.map(str::to_owned), ..Self::default() });
        };
        for (field, value) in [("is_causal", false), ("use_bidirectional_attention", true)] {
            let expected = format!("{value}, as in the code of {}", own.name);
            fields.expect_if_present(field, &expected, |v| *v == value)?;
        }
        let name = Some(own.name.to_owned());
        Ok(Self { name, is_bidirectional: true, may_project: own.may_project })
    }
}

/// The class that `auto_map` names for `AutoModel`. `None` without one. Fails for classes that are not supported.
fn auto_model(fields: &Fields) -> Result<Option<&str>> {
    let Some(map) = fields.get("auto_map") else { return Ok(None) };
    let known = OWN_CODE.map(|own| own.auto_model).join(" or ");
    let expected = format!("no AutoModel with its own code, except {known}");
    let refused = |expected: String| Err(fields.error("auto_map", expected));
    let Some(map) = map.as_object() else { return refused(expected) };
    let mut models = map.iter().filter(|(key, _)| key.starts_with("AutoModel"));
    let auto_model = match (models.next(), models.next()) {
        (None, _) => return Ok(None),
        (Some((key, Value::String(name))), None) if key == "AutoModel" => name,
        _ => return refused(expected),
    };
    // `owner/name--` before the class names the repository that contains the code.
    let auto_model = auto_model.rsplit("--").next().unwrap_or(auto_model);
    if auto_model == LATE_CHUNKING {
        let reason =
            "it embeds the chunks of a document together (late chunking), which is not supported";
        return refused(format!("another class than {LATE_CHUNKING}: {reason}"));
    }
    match OWN_CODE.iter().any(|own| own.auto_model == auto_model) {
        true => Ok(Some(auto_model)),
        false => refused(expected),
    }
}
