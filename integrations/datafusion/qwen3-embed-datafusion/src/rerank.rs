//! `rerank` with a model in this process.

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature,
};

use qwen3_embed::{ScoreOptions, Scores};

use crate::local::Place;
use crate::rows::{self, Texts};
use crate::{Error, Qwen3Options};

/// The name of the SQL function.
pub(crate) const RERANK: &str = "rerank";

/// `rerank(query, document)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rerank {
    place: Place,
    signature: Signature,
}

impl Rerank {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, signature: signature() }
    }

    pub(crate) fn is_here(&self) -> bool {
        self.place.is_here()
    }
}

pub(crate) fn signature() -> Signature {
    rows::signature(2..=2)
}

/// The field of the result.
pub(crate) fn field(args: &ReturnFieldArgs<'_>) -> FieldRef {
    rows::field(RERANK, DataType::Float32, args)
}

/// The distinct documents, in groups with the same query.
pub(crate) fn distinct(texts: &Texts) -> rows::Distinct<'_> {
    texts.distinct(Some(0), 1)
}

impl ScalarUDFImpl for Rerank {
    fn name(&self) -> &str {
        RERANK
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float32)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(field(&args))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let models = self.place.models(RERANK)?;
        let reranker = models.reranker(&Qwen3Options::of(&args.config_options))?;
        let texts = Texts::of(&args)?;
        let distinct = distinct(&texts);
        // One call for all queries, so that batches are full even if each query has few documents.
        let pairs = distinct.groups.iter().flat_map(|group| {
            group.items.iter().map(|document| (group.key.unwrap_or_default(), *document))
        });
        let pairs: Vec<(&str, &str)> = pairs.collect();
        let text = |index: usize| pairs.get(index).map(|(_, document)| *document);
        let score = || reranker.score_with(&pairs, &ScoreOptions::new());
        let scores = models.counted(score, |scores, counts| {
            let n_tokens = scores.as_ref().map_or(&[][..], Scores::n_tokens);
            counts.pairs += n_tokens.len() as u64;
            counts.tokens += n_tokens.iter().sum::<usize>() as u64;
        });
        let scores = scores.map_err(|error| Error::of_model(RERANK, error, text))?.to_vec();
        let mut rest = scores.as_slice();
        let groups = distinct.groups.iter().map(|group| {
            let (scores, others) = rest.split_at(group.items.len());
            rest = others;
            scores.to_vec()
        });
        let groups: Vec<_> = groups.collect();
        texts.result(&distinct.numbers(&groups))
    }
}
