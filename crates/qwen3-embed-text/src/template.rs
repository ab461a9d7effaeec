/// The task of a query that comes with no other: the one that the models were trained on most.
pub const DEFAULT_INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query";

/// A query behind its instruction, as the models were trained: there is no space after `Query:`.
///
/// Instructions are best written in English, whatever the query's language.
///
/// # Examples
///
/// ```
/// use qwen3_embed_text::instruct;
///
/// assert_eq!(
///     instruct("Find a recipe for the ingredients", "leek, potato"),
///     "Instruct: Find a recipe for the ingredients\nQuery:leek, potato",
/// );
/// ```
///
/// # Source
///
/// The model card of Qwen3-Embedding, `get_detailed_instruct`.
pub fn instruct(instruction: &str, query: &str) -> String {
    format!("Instruct: {instruction}\nQuery:{query}")
}
