//! Responses with vectors. The JSON is written piece by piece while the client reads it, so the JSON of a large
//! response is never in memory as a whole.

use std::io::Write;
use std::{convert, mem};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use qwen3_embed::Embeddings;
use serde::Serialize;

/// Size of a piece in bytes. A piece is encoded in less than a millisecond, so that the other connections of the thread
/// are not delayed.
const PIECE: usize = 64 * 1024;

/// The JSON form of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// OpenAI's objects with lists of numbers.
    Floats,
    /// OpenAI's objects with base64 of little-endian f32 bytes.
    Base64,
    /// Lists of numbers without objects around them.
    Bare,
}

/// A JSON response that consists of `head`, the vectors with commas between them, and `tail`.
pub(crate) fn json(head: &str, embeddings: Embeddings, rows: Rows, tail: String) -> Response {
    let mut pieces = Pieces { embeddings, rows, next: 0, buffer: head.into(), tail: Some(tail) };
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    let first = pieces.next().unwrap_or_default();
    if pieces.tail.is_none() {
        // The response is complete, so its length is known.
        return (content_type, first).into_response();
    }
    let rest = [first].into_iter().chain(pieces);
    let body = Body::from_stream(stream::iter(rest.map(Ok::<_, convert::Infallible>)));
    (content_type, body).into_response()
}

struct Pieces {
    embeddings: Embeddings,
    rows: Rows,
    next: usize,
    buffer: Vec<u8>,
    /// `None` after the tail has been written. The response is then complete.
    tail: Option<String>,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.tail.as_ref()?;
        self.buffer.reserve(PIECE + PIECE / 4);
        while self.next < self.embeddings.len() {
            if self.buffer.len() >= PIECE {
                return Some(mem::take(&mut self.buffer).into());
            }
            self.write_row();
            self.next += 1;
        }
        self.buffer.extend_from_slice(self.tail.take()?.as_bytes());
        Some(mem::take(&mut self.buffer).into())
    }
}

impl Pieces {
    fn write_row(&mut self) {
        let (index, buffer) = (self.next, &mut self.buffer);
        let row = self.embeddings.row(index);
        if index > 0 {
            buffer.push(b',');
        }
        // Writing to memory and serializing numbers cannot fail.
        if self.rows != Rows::Bare {
            let _ = write!(buffer, r#"{{"object":"embedding","index":{index},"embedding":"#);
        }
        if self.rows == Rows::Base64 {
            buffer.push(b'"');
            let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
            let start = buffer.len();
            buffer.resize(start + bytes.len().div_ceil(3) * 4, 0);
            let _ = BASE64_STANDARD.encode_slice(&bytes, &mut buffer[start..]);
            buffer.push(b'"');
        } else {
            let _ = row.serialize(&mut serde_json::Serializer::new(&mut *buffer));
        }
        if self.rows != Rows::Bare {
            buffer.push(b'}');
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::HttpBody;
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    /// The declared length of a response, and its JSON.
    fn written(n: usize, dim: usize, rows: Rows) -> (Option<u64>, Value) {
        let values = (0..n * dim).map(|i| (i as f32).sin() * 1e-3).collect();
        let embeddings = Embeddings::new(values, dim).unwrap();
        let response = json("{\"data\":[", embeddings, rows, "]}".to_owned());
        let length = response.body().size_hint().exact();
        let body = futures_executor::block_on(response.into_body().collect()).unwrap().to_bytes();
        (length, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn writes_every_value_bit_for_bit() {
        for (n, dim) in [(0, 4), (1, 1), (3, 1024), (100, 1024), (700, 33)] {
            let expected = |i: usize| (i as f32).sin() * 1e-3;
            for rows in [Rows::Floats, Rows::Base64, Rows::Bare] {
                let (_, body) = written(n, dim, rows);
                let data = body["data"].as_array().unwrap();
                assert_eq!(data.len(), n);
                for (index, item) in data.iter().enumerate() {
                    let row = if rows == Rows::Bare { item } else { &item["embedding"] };
                    let values: Vec<f32> = match row.as_str() {
                        Some(text) => {
                            let bytes = BASE64_STANDARD.decode(text).unwrap();
                            let (values, rest) = bytes.as_chunks::<4>();
                            assert!(rest.is_empty() && rows == Rows::Base64);
                            values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
                        }
                        None => serde_json::from_value(row.clone()).unwrap(),
                    };
                    let expected: Vec<f32> = (index * dim..).take(dim).map(expected).collect();
                    assert_eq!(values, expected);
                    assert!(rows == Rows::Bare || item["index"] == index);
                }
            }
        }
    }

    #[test]
    fn short_response_has_length_and_long_response_is_streamed() {
        assert!(written(1, 1024, Rows::Base64).0.is_some());
        assert!(written(1000, 1024, Rows::Base64).0.is_none());
    }
}
