//! The *frame* is the text of the rerankers' prompt around a query and a document. This module builds the frame, and
//! recognizes the frame in texts that already contain it.

/// The frame before the instruction, with special tokens spelled out.
pub(crate) const PREFIX: &str = concat!(
    "<|im_start|>system\n",
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n",
    "<|im_start|>user\n",
);

/// The frame after the document. It ends with an empty `<think>` block, so that the next token of the model is `yes` or
/// `no`.
pub(crate) const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

const INSTRUCT: &str = "<Instruct>: ";
const QUERY: &str = "\n<Query>: ";
const DOCUMENT: &str = "<Document>: ";

/// The text between [`PREFIX`] and [`SUFFIX`], and the byte offsets of the query and of the document in this text.
pub(crate) fn pair_text(instruction: &str, query: &str, document: &str) -> (String, usize, usize) {
    let mut text = [INSTRUCT, instruction, QUERY].concat();
    let query_start = text.len();
    text.push_str(query);
    text.push('\n');
    text.push_str(DOCUMENT);
    let document_start = text.len();
    text.push_str(document);
    (text, query_start, document_start)
}

/// Whether a query already contains the prompt of [`RerankTemplate`](crate::RerankTemplate). Clients that were written
/// for servers without this template send such queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryFrame<'a> {
    /// The query does not begin with the prompt.
    Absent,
    /// The query begins with the prompt up to the document, exactly as the template writes it.
    Exact {
        /// The instruction in the prompt.
        instruction: &'a str,
        /// The query in the prompt.
        query: &'a str,
    },
    /// The query begins like the prompt but differs from the prompt, for example in the system message.
    Other,
}

impl<'a> QueryFrame<'a> {
    /// Looks for the prompt at the beginning of a query.
    ///
    /// # Examples
    ///
    /// ```
    /// use qwen3_embed_text::QueryFrame;
    ///
    /// assert_eq!(QueryFrame::of("What is gravity?"), QueryFrame::Absent);
    /// assert_eq!(QueryFrame::of("<|im_start|>system\nJudge!<|im_end|>\n"), QueryFrame::Other);
    /// ```
    pub fn of(query: &'a str) -> Self {
        let text = query.trim_start();
        let is_chat = text.starts_with("<|im_start|>system\n");
        let is_pair = text.strip_prefix(INSTRUCT).is_some_and(|rest| rest.contains(QUERY));
        let exact = || {
            let pair = query.strip_prefix(PREFIX)?.strip_prefix(INSTRUCT)?.strip_suffix('\n')?;
            let (instruction, query) = pair.split_once(QUERY)?;
            Some(Self::Exact { instruction, query })
        };
        if is_chat || is_pair { exact().unwrap_or(Self::Other) } else { Self::Absent }
    }
}

/// Returns the document in `text`, which is the part of a prompt after the query of [`QueryFrame::Exact`]. Returns
/// `None` if `text` is not exactly this part of the prompt.
///
/// # Examples
///
/// ```
/// use qwen3_embed_text::unframe_document;
///
/// let framed = "<Document>: Gravity is a force.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
/// assert_eq!(unframe_document(framed), Some("Gravity is a force."));
/// assert_eq!(unframe_document("Gravity is a force."), None);
/// ```
pub fn unframe_document(text: &str) -> Option<&str> {
    text.strip_prefix(DOCUMENT)?.strip_suffix(SUFFIX)
}
