use std::borrow::Cow;

/// A text to embed: a string or a list of token ids.
///
/// Methods that embed many texts accept every type that converts into a `Text`: `&str`, `String` and `&String`,
/// `&[u32]`, `Vec<u32>` and `&Vec<u32>`, `Text` and `&Text`.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Text;
///
/// assert_eq!(Text::from("a query"), Text::String("a query".into()));
/// assert_eq!(Text::from(vec![5, 6]), Text::Tokens(vec![5, 6].into()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text<'a> {
    /// A string. The prompt of [`EmbedOptions::prompt`](crate::EmbedOptions::prompt) is put before the string, both are
    /// tokenized together, and the end-of-text token is appended.
    String(Cow<'a, str>),
    /// Token ids, which are embedded as they are: no prompt is put before them, and no end-of-text token is appended.
    /// The last id should be the tokenizer's end-of-text token.
    Tokens(Cow<'a, [u32]>),
}

impl Text<'_> {
    /// Whether the string has no characters, or the list no tokens.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::String(text) => text.is_empty(),
            Self::Tokens(tokens) => tokens.is_empty(),
        }
    }

    /// The size in bytes of the string in UTF-8, or of the token ids.
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            Self::Tokens(tokens) => size_of_val::<[u32]>(tokens),
        }
    }

    /// The same text, borrowed.
    pub fn as_borrowed(&self) -> Text<'_> {
        match self {
            Self::String(text) => Text::String(Cow::Borrowed(text)),
            Self::Tokens(tokens) => Text::Tokens(Cow::Borrowed(tokens)),
        }
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(text.into())
    }
}

impl<'a> From<&&'a str> for Text<'a> {
    fn from(text: &&'a str) -> Self {
        Self::String((*text).into())
    }
}

impl<'a> From<&'a String> for Text<'a> {
    fn from(text: &'a String) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl<'a> From<&'a [u32]> for Text<'a> {
    fn from(tokens: &'a [u32]) -> Self {
        Self::Tokens(tokens.into())
    }
}

impl<'a> From<&'a Vec<u32>> for Text<'a> {
    fn from(tokens: &'a Vec<u32>) -> Self {
        Self::Tokens(tokens.into())
    }
}

impl From<Vec<u32>> for Text<'_> {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens.into())
    }
}

impl<'a> From<&'a Text<'_>> for Text<'a> {
    fn from(text: &'a Text<'_>) -> Self {
        text.as_borrowed()
    }
}
