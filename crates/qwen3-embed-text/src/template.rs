/// The default instruction for queries. It describes the task that the models were mainly trained for.
pub const DEFAULT_INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query";

/// Puts an instruction before a query, in the format that the models were trained with. There is no space after
/// `Query:`.
///
/// Instructions work best in English, whatever the language of the query.
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
