//! The text of the Qwen3 rerankers' prompt around query and document: what is put around a pair, and how it is
//! recognized in texts whose client has put it there already.

/// What comes before the instruction, its special tokens spelled out.
pub(crate) const PREFIX: &str = concat!(
    "<|im_start|>system\n",
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n",
    "<|im_start|>user\n",
);

/// What comes behind the document: the model has thought nothing, and its next token is the answer.
pub(crate) const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

const INSTRUCT: &str = "<Instruct>: ";
const QUERY: &str = "\n<Query>: ";
const DOCUMENT: &str = "<Document>: ";

/// The text between [`PREFIX`] and [`SUFFIX`], and where the query and the document begin in it.
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

/// Whether a query has the frame of [`RerankTemplate`](crate::RerankTemplate) around it, which a client puts
/// there that was written for a server without the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryFrame<'a> {
    /// The query has no frame.
    Absent,
    /// The query has the frame up to the document, exactly as the template writes it.
    Exact {
        /// The instruction in the frame.
        instruction: &'a str,
        /// The query in the frame.
        query: &'a str,
    },
    /// The query begins like the frame, and goes on in another way: another system message, for instance, or
    /// no system message.
    Other,
}

impl<'a> QueryFrame<'a> {
    /// Looks for the frame at the beginning of a query.
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

/// The document in the part of the frame that belongs behind [`QueryFrame::Exact`], or nothing if `text` is not
/// exactly that.
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
