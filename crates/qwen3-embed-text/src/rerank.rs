use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::frame::{PREFIX, SUFFIX, pair_text};
use crate::tokenizer::{Spans, until};
use crate::{Error, Result, SpecialTokens, Tokenizer};

/// Placeholder for an expression of a chat template.
const EXPRESSION: &str = "\u{0}";

/// The special tokens of the prompt.
const SPECIAL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"];

/// The prompt of the Qwen3 rerankers, as token ids.
///
/// ```text
/// <|im_start|>system
/// Judge whether the Document meets the requirements based on the Query and the Instruct provided.
/// Note that the answer can only be "yes" or "no".<|im_end|>
/// <|im_start|>user
/// <Instruct>: {instruction}
/// <Query>: {query}
/// <Document>: {document}<|im_end|>
/// <|im_start|>assistant
/// <think>
///
/// </think>
///
/// ```
///
/// (The text from `Judge` to `<|im_end|>` is one line.) No end-of-text token is appended. The parts before `<Instruct>`
/// and after the document are token ids that are looked up once. The text between these parts is tokenized as plain
/// text, so no instruction, query or document can contain a special token or change the text around it.
///
/// A prompt that is too long loses tokens at the end of its document. If the prompt without a document is still too
/// long, the query is cut at its end. The rest of the prompt is never cut.
///
/// # Source
///
/// The model card of Qwen3-Reranker, `format_instruction` and `process_inputs`. There are two differences: that code
/// parses special tokens in texts, and it cuts the template if cutting the document is not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerankTemplate {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    yes: u32,
    no: u32,
}

impl RerankTemplate {
    /// Looks up the tokens of the prompt. `path` is for error messages only.
    ///
    /// # Errors
    ///
    /// [`Error::MissingToken`] if the tokenizer lacks one of the special tokens, `yes` or `no`.
    pub fn new(tokenizer: &Tokenizer, path: &Path) -> Result<Self> {
        let missing = |token| Error::MissingToken { path: path.to_path_buf(), token };
        for token in SPECIAL {
            let id = tokenizer.id(token).ok_or_else(|| missing(token))?;
            if tokenizer.encode_special(token)? != [id] {
                return Err(missing(token));
            }
        }
        Ok(Self {
            prefix: tokenizer.encode_special(PREFIX)?,
            suffix: tokenizer.encode_special(SUFFIX)?,
            yes: tokenizer.id("yes").ok_or_else(|| missing("yes"))?,
            no: tokenizer.id("no").ok_or_else(|| missing("no"))?,
        })
    }

    /// Whether a chat template, in the format of transformers, produces this prompt.
    ///
    /// The template matches if its text outside of expressions is the text of the prompt. Templates with statements
    /// other than `set` do not match.
    pub fn matches_chat_template(chat_template: &str) -> bool {
        let hole = EXPRESSION;
        let pair = format!("<Instruct>: {hole}\n<Query>: {hole}\n<Document>: {hole}");
        text_of_template(chat_template) == Some([PREFIX, &pair, SUFFIX].concat())
    }

    /// The id of the token `yes`: the document meets the requirements.
    pub fn yes(&self) -> u32 {
        self.yes
    }

    /// The id of the token `no`: the document does not meet the requirements.
    pub fn no(&self) -> u32 {
        self.no
    }

    /// The tokens at the start of every prompt, before `<Instruct>`.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The tokens at the end of every prompt, after the document.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// Builds the prompt of each pair of a query and a document, with at most `max_tokens` tokens. Runs in parallel on
    /// rayon's current pool.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`] with the index of a pair that could not be tokenized;
    /// [`Error::FrameTooLong`] if the prompt exceeds the limit even without query and document.
    pub fn encode_batch(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
        pairs: &[(&str, &str)],
        max_tokens: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let frame = self.prefix.len() + self.suffix.len();
        let room = max_tokens.saturating_sub(frame);
        let prompt = |(idx, &(query, document)): (usize, &(&str, &str))| {
            let pair = Pair { idx, instruction, query, document };
            match pair.tokens(tokenizer, room)? {
                Fitted::Tokens(tokens) => {
                    Ok([self.prefix.as_slice(), &tokens, &self.suffix].concat())
                }
                Fitted::Needs(n) => Err(Error::FrameTooLong { n_tokens: frame + n, max_tokens }),
            }
        };
        pairs.par_iter().enumerate().map(prompt).collect()
    }
}

/// The texts of one prompt.
#[derive(Clone, Copy)]
struct Pair<'a> {
    /// Index of the pair in the caller's list.
    idx: usize,
    instruction: &'a str,
    query: &'a str,
    document: &'a str,
}

/// The result of fitting a pair into a limit.
enum Fitted {
    /// The tokens of the pair, cut if necessary.
    Tokens(Vec<u32>),
    /// The pair exceeds the limit even without query and document. This is its number of tokens without them.
    Needs(usize),
}

impl Pair<'_> {
    /// Tokenizes the pair and cuts it to `room` tokens.
    fn tokens(self, tokenizer: &Tokenizer, room: usize) -> Result<Fitted> {
        let (text, _, document_start) = self.text();
        let n_tokens = room.saturating_add(1);
        let plain = SpecialTokens::PlainText;
        let Spans { mut ids, ranges } = tokenizer.encode_spans(self.idx, &text, plain, n_tokens)?;
        if ids.len() <= room {
            return Ok(Fitted::Tokens(ids));
        }
        // Tokens that end before the document. The first token of the document may contain the space before the
        // document.
        let before = ranges.iter().take_while(|range| range.end <= document_start);
        if before.count() < room {
            ids.truncate(room);
            return Ok(Fitted::Tokens(ids));
        }
        self.tokens_of_query(tokenizer, room)
    }

    /// Tokenizes the pair without its document, and cuts its query until it fits. The query is cut where a token begins
    /// and is then tokenized again, because its new end may merge with the text after it.
    fn tokens_of_query(mut self, tokenizer: &Tokenizer, room: usize) -> Result<Fitted> {
        self.document = "";
        loop {
            let (text, query_start, _) = self.text();
            let plain = SpecialTokens::PlainText;
            let Spans { ids, ranges } =
                tokenizer.encode_spans(self.idx, &text, plain, usize::MAX)?;
            if ids.len() <= room {
                return Ok(Fitted::Tokens(ids));
            }
            if self.query.is_empty() {
                return Ok(Fitted::Needs(ids.len()));
            }
            self.query = without_last(self.query, query_start, &ranges, ids.len() - room);
        }
    }

    /// The pair as text, and the byte offsets of the query and of the document.
    fn text(self) -> (String, usize, usize) {
        pair_text(self.instruction, self.query, self.document)
    }
}

/// The text of a Jinja template, with [`EXPRESSION`] in place of every expression. Returns `None` for templates with
/// statements other than `set`.
///
/// # Source
///
/// The documentation of Jinja, *White Space Control*, with the settings of transformers, which remove the first line
/// feed after a statement and the last line feed of the template.
fn text_of_template(template: &str) -> Option<String> {
    let mut rest = template.strip_suffix('\n').unwrap_or(template);
    let mut text = String::new();
    while let Some((before, tag)) = rest.split_once('{').filter(|(_, tag)| !tag.is_empty()) {
        let (end, replacement) = match tag.as_bytes()[0] {
            b'{' => ("}}", EXPRESSION),
            b'%' => ("%}", ""),
            b'#' => ("#}", ""),
            _ => {
                text.push_str(before);
                text.push('{');
                rest = tag;
                continue;
            }
        };
        let (inside, behind) = tag[1..].split_once(end)?;
        let trimmed = inside.strip_prefix('-').unwrap_or(inside);
        text.push_str(if trimmed.len() < inside.len() { before.trim_end() } else { before });
        if end == "%}" && !trimmed.trim_start().starts_with("set ") {
            return None;
        }
        text.push_str(replacement);
        rest = match inside.ends_with('-') {
            true => behind.trim_start(),
            false if end != "}}" => behind.strip_prefix('\n').unwrap_or(behind),
            false => behind,
        };
    }
    text.push_str(rest);
    Some(text)
}

/// Removes the last `n` tokens of a query, which begins at the byte `query_start` of the encoded text and is not empty.
/// If the first removed token begins inside a character, the whole character is removed.
fn without_last<'a>(
    query: &'a str,
    query_start: usize,
    ranges: &[Range<usize>],
    n: usize,
) -> &'a str {
    let of_query = query_start..query_start + query.len();
    let starts = ranges.iter().map(|range| range.start);
    let starts: Vec<usize> = starts.filter(|start| of_query.contains(start)).collect();
    let kept = starts.len().saturating_sub(n);
    until(query, starts.get(kept).map_or(0, |start| start - query_start))
}
