use std::fmt;
use std::marker::PhantomData;

use qwen3_embed::Text;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{ApiError, Field};

/// One or more texts, as strings or as token ids of the model's tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Input {
    /// A text.
    One(String),
    /// Texts.
    Many(Vec<String>),
    /// The token ids of one text. They are used unchanged. If the model's tokenizer appends an end-of-text token to
    /// texts, the last id must be the id of this token.
    Tokens(Vec<u32>),
    /// The token ids of several texts.
    ManyTokens(Vec<Vec<u32>>),
}

/// One or more texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Strings {
    /// A text.
    One(String),
    /// Texts.
    Many(Vec<String>),
}

/// The token ids of one or more texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Ids {
    /// The token ids of one text.
    One(Vec<u32>),
    /// The token ids of several texts.
    Many(Vec<Vec<u32>>),
}

impl Input {
    /// Returns the texts after checking that there are 1 to `limit` of them and that none is empty.
    pub(crate) fn into_texts(
        self,
        name: &'static str,
        limit: usize,
    ) -> Result<(Vec<Text<'static>>, Field), ApiError> {
        let (texts, field) = match self {
            Self::One(text) => (vec![text.into()], Field::single(name)),
            Self::Many(texts) => (texts.into_iter().map(Text::from).collect(), Field::list(name)),
            Self::Tokens(tokens) => (vec![tokens.into()], Field::single(name)),
            Self::ManyTokens(texts) => {
                (texts.into_iter().map(Text::from).collect(), Field::list(name))
            }
        };
        check_count(name, texts.len(), limit)?;
        check_not_empty(&texts, Text::is_empty, field)?;
        Ok((texts, field))
    }
}

impl Strings {
    /// Returns the texts after checking that there are 1 to `limit` of them.
    pub(crate) fn into_texts(
        self,
        name: &'static str,
        limit: usize,
    ) -> Result<(Vec<String>, Field), ApiError> {
        let (texts, field) = match self {
            Self::One(text) => (vec![text], Field::single(name)),
            Self::Many(texts) => (texts, Field::list(name)),
        };
        check_count(name, texts.len(), limit)?;
        Ok((texts, field))
    }
}

/// Checks that a field has 1 to `limit` items.
pub(crate) fn check_count(name: &str, got: usize, limit: usize) -> Result<(), ApiError> {
    if (1..=limit).contains(&got) {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("{name} has {got} items; expected 1 to {limit}")).about(name))
    }
}

/// Checks that no text of a field is empty.
pub(crate) fn check_not_empty<T>(
    texts: &[T],
    is_empty: impl Fn(&T) -> bool,
    field: Field,
) -> Result<(), ApiError> {
    match texts.iter().position(is_empty) {
        Some(index) => {
            let name = field.at(index);
            Err(ApiError::invalid(format!("{name} is empty")).about(name))
        }
        None => Ok(()),
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StringsVisitor)
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(IdsVisitor)? {
            Input::Tokens(tokens) => Ok(Self::One(tokens)),
            Input::ManyTokens(texts) => Ok(Self::Many(texts)),
            Input::Many(texts) if texts.is_empty() => Ok(Self::Many(Vec::new())),
            Input::One(_) | Input::Many(_) => {
                Err(D::Error::invalid_type(Unexpected::Other("strings"), &IdsVisitor))
            }
        }
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of token ids, or a list of such lists")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Input, A::Error> {
        InputVisitor.visit_seq(items)
    }
}

/// Deserializes a struct from a JSON object only. The derived implementation would also accept an array of the values
/// of its fields.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(ObjectVisitor(PhantomData))
}

/// [`object`] for a field that may be missing or null.
pub(crate) fn optional_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct Object<T>(T);
    impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            object(deserializer).map(Self)
        }
    }
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Strings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Strings, E> {
        Ok(Strings::One(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Strings, E> {
        Ok(Strings::One(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strings, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element()? {
            texts.push(text);
        }
        Ok(Strings::Many(texts))
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids, or a list of such lists")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input::One(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Input, E> {
        Ok(Input::One(text))
    }

    /// All items must have the same kind as the first item.
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        match items.next_element()? {
            None => Ok(Input::Many(Vec::new())),
            Some(Item::Text(first)) => Ok(Input::Many(rest(first, items)?)),
            Some(Item::Token(first)) => {
                let tokens = rest(TokenId(first), items)?;
                Ok(Input::Tokens(tokens.into_iter().map(|token| token.0).collect()))
            }
            Some(Item::Tokens(first)) => {
                let texts = rest(TokenIds(first), items)?;
                Ok(Input::ManyTokens(texts.into_iter().map(|tokens| tokens.0).collect()))
            }
        }
    }
}

/// Collects `first` and the remaining items.
fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    first: T,
    mut items: A,
) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(item) = items.next_element()? {
        all.push(item);
    }
    Ok(all)
}

/// The first item of a list. All other items must have the same kind.
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id, or a list of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
        TokenIdVisitor.visit_u64(id).map(|id| Item::Token(id.0))
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<Item, E> {
        Err(E::invalid_value(Unexpected::Signed(id), &TokenIdVisitor))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Item, A::Error> {
        TokenIdsVisitor.visit_seq(items).map(|tokens| Item::Tokens(tokens.0))
    }
}

/// A token id.
struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokenIdVisitor)
    }
}

struct TokenIdVisitor;

impl Visitor<'_> for TokenIdVisitor {
    type Value = TokenId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token id, 0 to 4294967295")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<TokenId, E> {
        let unexpected = Unexpected::Unsigned(id);
        u32::try_from(id).map(TokenId).map_err(|_| E::invalid_value(unexpected, &self))
    }
}

/// The token ids of one text.
struct TokenIds(Vec<u32>);

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokenIdsVisitor)
    }
}

struct TokenIdsVisitor;

impl<'de> Visitor<'de> for TokenIdsVisitor {
    type Value = TokenIds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<TokenIds, A::Error> {
        let mut tokens = Vec::new();
        while let Some(TokenId(id)) = items.next_element()? {
            tokens.push(id);
        }
        Ok(TokenIds(tokens))
    }
}
