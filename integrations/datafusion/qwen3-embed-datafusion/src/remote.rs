//! The functions with a model on a server.

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::error::Result;
use datafusion::logical_expr::async_udf::AsyncScalarUDFImpl;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature,
};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;

use crate::embed::Kind;
use crate::rerank;
use crate::rows::{self, Texts};
use crate::server::Server;

/// A function that a server computes.
#[derive(Debug)]
pub(crate) struct Remote {
    function: Function,
    server: Arc<Server>,
    signature: Signature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Function {
    Embed(Kind),
    Rerank,
}

impl Remote {
    /// All functions that this server can compute.
    pub(crate) fn all(server: &Arc<Server>) -> impl Iterator<Item = Self> {
        let rerank = server.has_reranker().then_some(Function::Rerank);
        let functions = Kind::ALL.into_iter().map(Function::Embed).chain(rerank);
        functions.map(|function| {
            let signature = match function {
                Function::Embed(kind) => kind.signature(),
                Function::Rerank => rerank::signature(),
            };
            Self { function, server: server.clone(), signature }
        })
    }
}

// Functions are equal if they use the same connection.
impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function && Arc::ptr_eq(&self.server, &other.server)
    }
}

impl Eq for Remote {}

impl Hash for Remote {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.function, Arc::as_ptr(&self.server)).hash(state);
    }
}

impl ScalarUDFImpl for Remote {
    fn name(&self) -> &str {
        match self.function {
            Function::Embed(kind) => kind.name(),
            Function::Rerank => rerank::RERANK,
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(match self.function {
            Function::Embed(_) => rows::vector_type(self.server.dimensions()),
            Function::Rerank => DataType::Float32,
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(match self.function {
            Function::Embed(kind) => kind.field(&args, self.server.dimensions()),
            Function::Rerank => rerank::field(&args),
        })
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        datafusion::common::internal_err!("{} is asynchronous", self.name())
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Remote {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        // The engine takes an array only, even if all arguments are constants.
        let texts = Texts::of_rows(&args)?;
        let array = match self.function {
            Function::Embed(kind) => {
                let distinct = kind.distinct(&texts);
                let prompted = distinct.groups.iter().map(|group| {
                    let items = group.items.iter();
                    items.map(|text| kind.with_prompt(group.key, text)).collect()
                });
                let vectors = self.server.embed(prompted.collect()).await?;
                distinct.vectors(&vectors, self.server.dimensions())?
            }
            Function::Rerank => {
                let distinct = rerank::distinct(&texts);
                let requests = distinct.groups.iter().map(|group| {
                    let documents = group.items.iter().map(|&text| text.to_owned()).collect();
                    (group.key.unwrap_or_default().to_owned(), documents)
                });
                let scores = self.server.rerank(requests.collect()).await?;
                distinct.numbers(&scores)
            }
        };
        Ok(ColumnarValue::Array(array))
    }
}
