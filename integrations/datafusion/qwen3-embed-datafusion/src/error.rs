use std::fmt;

use datafusion::error::DataFusionError;

/// An error of the functions. A query that fails with one contains it as [`DataFusionError::External`]. Over Ballista,
/// its message arrives as a part of Ballista's error.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model cannot be loaded, or it rejects a text.
    #[error("{function}: {source}{}", text.as_ref().map_or_else(String::new, |text| format!(", in the row with {text:?}")))]
    Model {
        /// The name of the SQL function.
        function: &'static str,
        /// The beginning of the text that the error is about.
        text: Option<String>,
        /// What is wrong.
        source: Box<qwen3_embed::Error>,
    },
    /// A session asks for another model than the one that this process uses.
    #[error(
        "the option {option} of the session is `{expected}`, and this process uses the model `{got}`: a process uses \
         one model for all its queries"
    )]
    AnotherModel {
        /// The name of the option.
        option: &'static str,
        /// The model of the session.
        expected: String,
        /// The model of the process.
        got: String,
    },
    /// `rerank` is called and no reranker is set.
    #[error(
        "rerank: no reranker is set, for example SET qwen3.reranker = 'Qwen/Qwen3-Reranker-0.6B'"
    )]
    NoReranker,
    /// A query is planned where there is no model, and the session does not say how many dimensions vectors have.
    #[error(
        "{function}: this process plans queries without a model, so the session must set the number of dimensions, \
         for example SET qwen3.dimensions = 1024"
    )]
    NoDimensions {
        /// The name of the SQL function.
        function: &'static str,
    },
    /// A function is called where there is no model.
    #[error("{function}: this process plans queries, and executors compute the functions")]
    NotHere {
        /// The name of the SQL function.
        function: &'static str,
    },
    /// The type of an argument cannot be used.
    #[error("{function}: argument {argument} must be {expected}, got {got}")]
    Argument {
        /// The name of the SQL function.
        function: &'static str,
        /// The number of the argument, from 1.
        argument: usize,
        /// The types that can be used.
        expected: &'static str,
        /// The type.
        got: String,
    },
    /// The number of arguments is wrong.
    #[error("{function} has {expected} arguments, got {got}")]
    Arguments {
        /// The name of the SQL function.
        function: &'static str,
        /// The numbers of arguments that the function can have.
        expected: String,
        /// The number of arguments.
        got: usize,
    },
    /// Two vectors have different lengths.
    #[error("{function}: the vectors of a row have different lengths, {left} and {right}")]
    Lengths {
        /// The name of the SQL function.
        function: &'static str,
        /// The length of the first vector.
        left: usize,
        /// The length of the second vector.
        right: usize,
    },
    /// A server cannot be reached, or its answer is not as expected.
    #[error("{url}: {problem}")]
    Server {
        /// The address of the request.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

/// The message, because Ballista sends the debug format of an executor's error to the client.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        Self::External(Box::new(error))
    }
}

impl Error {
    /// An error of a model about the text that `text` finds by its index.
    pub(crate) fn of_model<'a>(
        function: &'static str,
        source: qwen3_embed::Error,
        text: impl FnOnce(usize) -> Option<&'a str>,
    ) -> Self {
        const LENGTH: usize = 60;
        let text = source.text_index().and_then(text).map(|text| {
            let beginning: String = text.chars().take(LENGTH).collect();
            if beginning.len() < text.len() { format!("{beginning}…") } else { beginning }
        });
        Self::Model { function, text, source: Box::new(source) }
    }
}
