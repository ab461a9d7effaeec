//! Responses with vectors. The JSON is written piece by piece while the client reads it, so the JSON of a large
//! response is never in memory as a whole.

use std::io::Write;
use std::{convert, mem, vec};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use qwen3_embed::{Embeddings, pack_signs, quantize_int8};
use serde::Serialize;

/// Size of a piece in bytes. A piece is encoded in less than a millisecond, so that the other connections of the thread
/// are not delayed.
const PIECE: usize = 64 * 1024;

/// The JSON form of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// OpenAI's objects around the values.
    Objects(Format),
    /// The values alone.
    Bare(Format),
}

/// The JSON form of the values of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A list of numbers.
    Floats,
    /// Base64 of little-endian f32 bytes.
    Base64,
    /// A list of integers from −127 to 127: `round(127 · v / max|v|)`.
    Int8,
    /// The integers of `Int8` plus 128.
    Uint8,
    /// The bytes of `Ubinary` minus 128.
    Binary,
    /// A list of bytes with eight bits each, the first in the highest bit. A bit is 1 if the value is greater than 0.
    Ubinary,
}

/// A part of a response: a text before the vectors, and the form of the vectors.
pub(crate) type Section = (String, Rows);

/// A JSON response that consists of sections and `tail`. Each section has all vectors, with commas between them.
pub(crate) fn json(
    sections: impl IntoIterator<Item = Section>,
    embeddings: Embeddings,
    tail: String,
) -> Response {
    let sections = sections.into_iter().collect::<Vec<_>>().into_iter();
    let mut pieces = Pieces {
        next: embeddings.len(),
        embeddings,
        rows: None,
        sections,
        buffer: Vec::new(),
        tail: Some(tail),
    };
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
    /// The form of the vectors of the current section. `None` before the first section.
    rows: Option<Rows>,
    /// The index of the next vector of the current section.
    next: usize,
    /// The sections after the current one.
    sections: vec::IntoIter<Section>,
    buffer: Vec<u8>,
    /// `None` after the tail has been written. The response is then complete.
    tail: Option<String>,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.tail.as_ref()?;
        self.buffer.reserve(PIECE + PIECE / 4);
        loop {
            if let Some(rows) = self.rows {
                while self.next < self.embeddings.len() {
                    if self.buffer.len() >= PIECE {
                        return Some(mem::take(&mut self.buffer).into());
                    }
                    self.write_row(rows);
                    self.next += 1;
                }
            }
            let Some((head, rows)) = self.sections.next() else { break };
            self.buffer.extend_from_slice(head.as_bytes());
            (self.rows, self.next) = (Some(rows), 0);
        }
        self.buffer.extend_from_slice(self.tail.take()?.as_bytes());
        Some(mem::take(&mut self.buffer).into())
    }
}

impl Pieces {
    fn write_row(&mut self, rows: Rows) {
        let (index, buffer) = (self.next, &mut self.buffer);
        let row = self.embeddings.row(index);
        if index > 0 {
            buffer.push(b',');
        }
        match rows {
            Rows::Objects(format) => {
                // Writing to memory cannot fail.
                let _ = write!(buffer, r#"{{"object":"embedding","index":{index},"embedding":"#);
                format.write(row, buffer);
                buffer.push(b'}');
            }
            Rows::Bare(format) => format.write(row, buffer),
        }
    }
}

impl Format {
    /// Writes the values of a vector.
    fn write(self, row: &[f32], buffer: &mut Vec<u8>) {
        match self {
            Self::Floats => write_list(row, buffer),
            Self::Base64 => {
                buffer.push(b'"');
                let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
                let start = buffer.len();
                buffer.resize(start + bytes.len().div_ceil(3) * 4, 0);
                let _ = BASE64_STANDARD.encode_slice(&bytes, &mut buffer[start..]);
                buffer.push(b'"');
            }
            Self::Int8 => write_list(&quantize_int8(row).0, buffer),
            Self::Uint8 => {
                let shifted = quantize_int8(row).0.into_iter().map(|value| i16::from(value) + 128);
                write_list(&shifted.collect::<Vec<_>>(), buffer);
            }
            Self::Binary => {
                let shifted = pack_signs(row).into_iter().map(|byte| i16::from(byte) - 128);
                write_list(&shifted.collect::<Vec<_>>(), buffer);
            }
            Self::Ubinary => write_list(&pack_signs(row), buffer),
        }
    }
}

/// Writes a list of numbers. Serializing numbers to memory cannot fail.
fn write_list(values: &[impl Serialize], buffer: &mut Vec<u8>) {
    let _ = values.serialize(&mut serde_json::Serializer::new(buffer));
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
        let sections = [("{\"data\":[".to_owned(), rows)];
        let response = json(sections, embeddings, "]}".to_owned());
        let length = response.body().size_hint().exact();
        let body = futures_executor::block_on(response.into_body().collect()).unwrap().to_bytes();
        (length, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn writes_every_value_bit_for_bit() {
        for (n, dim) in [(0, 4), (1, 1), (3, 1024), (100, 1024), (700, 33)] {
            let expected = |i: usize| (i as f32).sin() * 1e-3;
            for rows in [
                Rows::Objects(Format::Floats),
                Rows::Objects(Format::Base64),
                Rows::Bare(Format::Floats),
                Rows::Bare(Format::Base64),
            ] {
                let is_bare = matches!(rows, Rows::Bare(_));
                let is_base64 =
                    matches!(rows, Rows::Objects(Format::Base64) | Rows::Bare(Format::Base64));
                let (_, body) = written(n, dim, rows);
                let data = body["data"].as_array().unwrap();
                assert_eq!(data.len(), n);
                for (index, item) in data.iter().enumerate() {
                    let row = if is_bare { item } else { &item["embedding"] };
                    let values: Vec<f32> = match row.as_str() {
                        Some(text) => {
                            let bytes = BASE64_STANDARD.decode(text).unwrap();
                            let (values, rest) = bytes.as_chunks::<4>();
                            assert!(rest.is_empty() && is_base64);
                            values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
                        }
                        None => serde_json::from_value(row.clone()).unwrap(),
                    };
                    let expected: Vec<f32> = (index * dim..).take(dim).map(expected).collect();
                    assert_eq!(values, expected);
                    assert!(is_bare || item["index"] == index);
                }
            }
        }
    }

    #[test]
    fn short_response_has_length_and_long_response_is_streamed() {
        assert!(written(1, 1024, Rows::Objects(Format::Base64)).0.is_some());
        assert!(written(1000, 1024, Rows::Objects(Format::Base64)).0.is_none());
    }

    #[test]
    fn integers_and_bits_are_those_of_the_library() {
        let mut values: Vec<f32> = (0..500 * 33).map(|i| (i as f32).sin() * 3.0).collect();
        values[..33].fill(0.0);
        values[33..66].fill(-1e-30);
        let embeddings = Embeddings::new(values, 33).unwrap();
        let (integers, bytes) = (embeddings.to_int8_per_vector(), embeddings.to_binary());
        for (index, row) in embeddings.iter().enumerate() {
            assert_eq!(quantize_int8(row).0, integers.row(index));
            assert_eq!(pack_signs(row), bytes.row(index));
        }
        // A response with several sections, which is streamed in several pieces.
        let formats =
            [Format::Int8, Format::Uint8, Format::Binary, Format::Ubinary, Format::Floats];
        let section = |(index, format)| {
            let head = format!("{}\"{index}\":[", if index == 0 { "{" } else { "]," });
            (head, Rows::Bare(format))
        };
        let sections: Vec<Section> = formats.into_iter().enumerate().map(section).collect();
        let response = json(sections, embeddings.clone(), "]}".to_owned());
        assert!(response.body().size_hint().exact().is_none());
        let body = futures_executor::block_on(response.into_body().collect()).unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        for (index, row) in embeddings.iter().enumerate() {
            let written = |format: usize| body[format.to_string()][index].clone();
            let (int8, bits) = (integers.row(index), bytes.row(index));
            assert_eq!(written(0), serde_json::json!(int8));
            let shifted: Vec<u8> = int8.iter().map(|v| (i16::from(*v) + 128) as u8).collect();
            assert_eq!(written(1), serde_json::json!(shifted));
            let shifted: Vec<i8> = bits.iter().map(|v| (i16::from(*v) - 128) as i8).collect();
            assert_eq!(written(2), serde_json::json!(shifted));
            assert_eq!(written(3), serde_json::json!(bits));
            let values: Vec<f32> = serde_json::from_value(written(4)).unwrap();
            assert_eq!(values, row);
        }
    }
}
