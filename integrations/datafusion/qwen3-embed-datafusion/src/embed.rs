//! `embed` and `embed_query` with a model in this process.

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use qwen3_embed::{DEFAULT_INSTRUCTION, Embeddings, Prompt};

use crate::local::Place;
use crate::rows::{self, Texts};
use crate::{Error, Qwen3Options};

/// `embed(text)` or `embed_query(text [, instruction])`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Embed {
    kind: Kind,
    place: Place,
    /// The options of the session, which decide the type of the result.
    options: Qwen3Options,
    signature: Signature,
}

/// Which texts are embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Document,
    Query,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Document, Self::Query];

    /// The name of the SQL function.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Document => "embed",
            Self::Query => "embed_query",
        }
    }

    pub(crate) fn signature(self) -> Signature {
        rows::signature(match self {
            Self::Document => 1..=1,
            Self::Query => 1..=2,
        })
    }

    /// The distinct texts, in groups with the same instruction.
    pub(crate) fn distinct(self, texts: &Texts) -> rows::Distinct<'_> {
        texts.distinct((texts.n_columns() == 2).then_some(1), 0)
    }

    /// The prompt of texts with this instruction.
    fn prompt(self, instruction: Option<&str>) -> Prompt {
        match (self, instruction) {
            (_, Some(instruction)) => Prompt::Instruction(instruction.to_owned()),
            (Self::Query, None) => Prompt::Query,
            (Self::Document, None) => Prompt::Document,
        }
    }

    /// The text with its prompt, for a server that has no prompts.
    pub(crate) fn with_prompt(self, instruction: Option<&str>, text: &str) -> String {
        match (self, instruction) {
            (_, Some(instruction)) => qwen3_embed::instruct(instruction, text),
            (Self::Query, None) => qwen3_embed::instruct(DEFAULT_INSTRUCTION, text),
            (Self::Document, None) => text.to_owned(),
        }
    }

    /// The field of the result.
    pub(crate) fn field(self, args: &ReturnFieldArgs<'_>, dimensions: usize) -> FieldRef {
        rows::field(self.name(), rows::vector_type(dimensions), args)
    }
}

impl Embed {
    pub(crate) fn new(kind: Kind, place: Place) -> Self {
        let signature = kind.signature();
        Self { kind, place, options: Qwen3Options::default(), signature }
    }

    pub(crate) fn is_here(&self) -> bool {
        self.place.is_here()
    }

    fn dimensions(&self) -> Result<usize, Error> {
        match (self.options.dimensions, &self.place) {
            (Some(dimensions), _) => Ok(dimensions),
            (None, Place::Here(models)) => Ok(models.embedder(&self.options)?.dimensions()),
            (None, Place::Executors) => Err(Error::NoDimensions { function: self.kind.name() }),
        }
    }
}

impl ScalarUDFImpl for Embed {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(rows::vector_type(self.dimensions()?))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(self.kind.field(&args, self.dimensions()?))
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        Some(Self { options: Qwen3Options::of(config), ..self.clone() }.into())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let function = self.kind.name();
        let models = self.place.models(function)?;
        let options = Qwen3Options::of(&args.config_options);
        let embedder = models.embedder(&options)?;
        // The type of the result was decided when the query was planned, maybe in another process.
        let dimensions = rows::dimensions_of(args.return_type()).unwrap_or(embedder.dimensions());
        let options = options.embed_options(dimensions);
        let texts = Texts::of(&args)?;
        let distinct = self.kind.distinct(&texts);
        let vectors = distinct.groups.iter().map(|group| {
            let options = options.clone().prompt(self.kind.prompt(group.key));
            let embed = || embedder.embed_with(group.items.iter().copied(), &options);
            let embeddings = models.counted(embed, |embeddings, counts| {
                let n_tokens = embeddings.as_ref().map_or(&[][..], Embeddings::n_tokens);
                counts.texts += n_tokens.len() as u64;
                counts.tokens += n_tokens.iter().sum::<usize>() as u64;
            });
            let text = |index: usize| group.items.get(index).copied();
            Ok(embeddings.map_err(|error| Error::of_model(function, error, text))?.into_vec())
        });
        let vectors = vectors.collect::<Result<Vec<_>, Error>>()?;
        texts.result(&distinct.vectors(&vectors, dimensions)?)
    }
}
