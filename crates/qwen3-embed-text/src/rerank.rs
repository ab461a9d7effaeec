use std::path::Path;

use rayon::prelude::*;
use tokenizers::Encoding;

use crate::frame::{PREFIX, SUFFIX, pair_text};
use crate::{Error, Result, Tokenizer};

/// Stands for an expression of a chat template.
const EXPRESSION: &str = "\u{0}";

/// The special tokens of the frame.
const SPECIAL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"];

/// The prompt of the Qwen3 rerankers, in the tokens of their tokenizer.
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
/// (The sentence that begins with `Judge` is one line.) No end-of-text token is appended. What stands
/// before `<Instruct>` and behind the document is put around a pair as token ids, and the pair itself is
/// plain text: no instruction, query or document can make a special token, or reach what is around it.
///
/// A prompt that is too long loses tokens at the end of its document. If the document is gone and it is
/// still too long, the query is cut at its end. The rest is never cut.
///
/// # Source
///
/// The model card of Qwen3-Reranker, `format_instruction` and `process_inputs`. The tokens are the same
/// but for texts that spell special tokens, which are parsed there, and for limits that the document
/// alone cannot meet, where the frame is cut there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerankTemplate {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    yes: u32,
    no: u32,
}

impl RerankTemplate {
    /// The prompt in the tokens of `tokenizer`, whose file `path` is named in errors.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] if the tokenizer lacks one of the special tokens, `yes` or `no`.
    pub fn new(tokenizer: &Tokenizer, path: &Path) -> Result<Self> {
        let no_token = |token| Error::NoToken { path: path.to_path_buf(), token };
        for token in SPECIAL {
            let id = tokenizer.id(token).ok_or_else(|| no_token(token))?;
            if tokenizer.encode_special(token)? != [id] {
                return Err(no_token(token));
            }
        }
        Ok(Self {
            prefix: tokenizer.encode_special(PREFIX)?,
            suffix: tokenizer.encode_special(SUFFIX)?,
            yes: tokenizer.id("yes").ok_or_else(|| no_token("yes"))?,
            no: tokenizer.id("no").ok_or_else(|| no_token("no"))?,
        })
    }

    /// Whether a chat template of transformers makes this prompt: whether the text that is left without
    /// its expressions is that of the prompt. A template with other statements than `set` does not count.
    pub fn is_made_by(chat_template: &str) -> bool {
        let hole = EXPRESSION;
        let pair = format!("<Instruct>: {hole}\n<Query>: {hole}\n<Document>: {hole}");
        text_of_template(chat_template) == Some([PREFIX, &pair, SUFFIX].concat())
    }

    /// The token of the answer that the document meets the requirements.
    pub fn yes(&self) -> u32 {
        self.yes
    }

    /// The token of the answer that it does not.
    pub fn no(&self) -> u32 {
        self.no
    }

    /// The tokens that every prompt begins with, up to `<Instruct>`.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The tokens that every prompt ends with, from behind the document on.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// The prompt of each pair of a query and a document, of at most `max_tokens`, in parallel on
    /// rayon's current pool.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`] with the index of a pair that could not be tokenized;
    /// [`Error::FrameTooLong`] if the prompt is over the limit without query and document.
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

/// What stands in the frame.
#[derive(Clone, Copy)]
struct Pair<'a> {
    /// Its index in the call.
    idx: usize,
    instruction: &'a str,
    query: &'a str,
    document: &'a str,
}

/// Tokens within a limit, or how many there are at least.
enum Fitted {
    Tokens(Vec<u32>),
    Needs(usize),
}

impl Pair<'_> {
    /// The pair in at most `room` tokens.
    fn tokens(self, tokenizer: &Tokenizer, room: usize) -> Result<Fitted> {
        let (text, _, document_start) = self.text();
        let encoding = tokenizer.encode_spans(self.idx, &text)?;
        let ids = encoding.get_ids();
        if ids.len() <= room {
            return Ok(Fitted::Tokens(ids.to_vec()));
        }
        // A token of the document may begin with the space in front of it.
        let before = encoding.get_offsets().iter().take_while(|span| span.1 <= document_start);
        if before.count() < room {
            return Ok(Fitted::Tokens(ids[..room].to_vec()));
        }
        self.tokens_of_query(tokenizer, room)
    }

    /// The same without its document, and with as much of its query as there is room for: cut where a
    /// token begins, and tokenized anew, because what stands behind it may merge with its new end.
    fn tokens_of_query(mut self, tokenizer: &Tokenizer, room: usize) -> Result<Fitted> {
        self.document = "";
        loop {
            let (text, query_start, _) = self.text();
            let encoding = tokenizer.encode_spans(self.idx, &text)?;
            let ids = encoding.get_ids();
            if ids.len() <= room {
                return Ok(Fitted::Tokens(ids.to_vec()));
            }
            if self.query.is_empty() {
                return Ok(Fitted::Needs(ids.len()));
            }
            self.query = without_last(self.query, query_start, &encoding, ids.len() - room);
        }
    }

    /// The pair as text, and where the query and the document begin in it.
    fn text(self) -> (String, usize, usize) {
        pair_text(self.instruction, self.query, self.document)
    }
}

/// The text of a Jinja template, with [`EXPRESSION`] in the place of every expression. Nothing if there are
/// other statements than `set`.
///
/// # Source
///
/// The documentation of Jinja, *White Space Control*, with the settings of transformers: the first line feed
/// behind a statement and the last one of the template go.
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

/// `query`, which is not empty and begins at `query_start` of the text with this encoding, without its
/// last `n` tokens.
fn without_last<'a>(query: &'a str, query_start: usize, encoding: &Encoding, n: usize) -> &'a str {
    let range = query_start..query_start + query.len();
    let starts = encoding.get_offsets().iter().map(|span| span.0);
    let starts: Vec<usize> = starts.filter(|start| range.contains(start)).collect();
    let kept = starts.len().saturating_sub(n);
    let end = starts.get(kept).map_or(0, |start| start - query_start);
    // Tokens of a part of a character begin where it begins.
    let end = (0..=end).rev().find(|&at| query.is_char_boundary(at));
    &query[..end.unwrap_or(0)]
}
