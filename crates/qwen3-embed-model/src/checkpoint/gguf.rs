//! The header of a GGUF file: the metadata, and the positions of the tensors.
//!
//! ```text
//! magic "GGUF" · version u32 · number of tensors u64 · number of metadata entries u64
//! metadata:  key string · type u32 · value
//! tensors:   name string · number of dimensions u32 · dimensions u64… · type u32 · offset u64
//! padding to general.alignment · the tensors' data, each at its offset from here
//! ```
//!
//! Strings and arrays begin with their length. Everything is little-endian. Strings and arrays of the metadata stay in
//! the memory-mapped file, and the header keeps their positions.
//!
//! The parser does not trust the file. It compares a count with the number of bytes left before it allocates memory for
//! the count. A tensor must lie within the file, at a multiple of the alignment, and must not overlap another tensor.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Number, Value as Json};

use crate::checkpoint::file::MappedFile;
use crate::checkpoint::stored_type::{GGUF_TYPES, StoredType};
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";

/// The alignment of a file without `general.alignment`.
const DEFAULT_ALIGNMENT: usize = 32;

/// The most dimensions of a tensor in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// The smallest metadata entry in bytes: an empty key, a type and a value of one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;

/// The smallest description of a tensor in bytes: an empty name, one dimension, a type and an offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// The part of the file before the data of the tensors.
#[derive(Debug)]
pub(crate) struct Header {
    file: Arc<MappedFile>,
    metadata: HashMap<String, Value>,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// The description of a tensor.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    /// The number of rows first, as in safetensors files. GGUF files contain the dimensions in the opposite order.
    pub(crate) shape: Vec<usize>,
    pub(crate) stored_type: StoredType,
    /// The bytes of the file that contain the data.
    pub(crate) range: Range<usize>,
    /// The position of the description in the file.
    described_at: usize,
    /// The position of the data, counted from the end of the header.
    offset: u64,
}

/// A value of the metadata. Strings are checked to be UTF-8 when they are read.
#[derive(Debug)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// The position of the bytes in the file.
    String(Range<usize>),
    /// The type of the elements, their number, and their position in the file.
    Array {
        of: u32,
        n: usize,
        range: Range<usize>,
    },
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Header {
    /// Parses the header of a file.
    pub(crate) fn parse(file: &Arc<MappedFile>) -> Result<Self> {
        let mut reader = Reader { path: &file.path, bytes: file.bytes(), at: 0 };
        reader.magic_and_version()?;
        let n_tensors = reader.count("the number of tensors", MIN_TENSOR_BYTES)?;
        let n_entries = reader.count("the number of metadata entries", MIN_ENTRY_BYTES)?;
        let mut metadata = HashMap::new();
        for _ in 0..n_entries {
            let at = reader.at;
            let key = reader.text("a metadata key")?;
            let value = reader.value(key)?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(reader.error(at, format!("key `{key}`"), "one", "two"));
            }
        }
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..n_tensors {
            let tensor = reader.tensor()?;
            if !names.insert(tensor.name.clone()) {
                let what = format!("tensor `{}`", tensor.name);
                return Err(reader.error(tensor.described_at, what, "one", "two"));
            }
            tensors.push(tensor);
        }
        let mut header = Self { file: file.clone(), metadata, tensors };
        header.place_tensors(&reader)?;
        Ok(header)
    }

    /// The file.
    pub(crate) fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// The tensor with this name in the file.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The value at `key` as JSON. An array is only described by its length. An f32 becomes the f64 with the same
    /// shortest decimal: 1e-6, not 9.99999997e-7.
    pub(crate) fn json(&self, key: &str) -> Option<Json> {
        let number =
            |value: f64| Number::from_f64(value).map_or(value.to_string().into(), Json::from);
        Some(match *self.metadata.get(key)? {
            Value::Unsigned(value) => value.into(),
            Value::Signed(value) => value.into(),
            Value::F32(value) => number(value.to_string().parse().unwrap_or(f64::NAN)),
            Value::F64(value) => number(value),
            Value::Bool(value) => value.into(),
            Value::String(ref range) => String::from_utf8_lossy(self.bytes(range)).into(),
            Value::Array { n, .. } => format!("an array of {n}").into(),
        })
    }

    /// The string at `key`.
    pub(crate) fn string(&self, key: &str) -> Result<&str> {
        match self.metadata.get(key) {
            Some(Value::String(range)) => str::from_utf8(self.bytes(range)).ok(),
            _ => None,
        }
        .ok_or_else(|| self.field(key, "a string of UTF-8"))
    }

    /// The array of strings at `key`.
    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>> {
        let not_strings = || self.field(key, "an array of UTF-8 strings");
        let Some(&Value::Array { of: STRING, n, ref range }) = self.metadata.get(key) else {
            return Err(not_strings());
        };
        let bytes = &self.file.bytes()[..range.end];
        let mut reader = Reader { path: self.path(), bytes, at: range.start };
        let mut strings = Vec::new();
        for _ in 0..n {
            let string = str::from_utf8(reader.string(key)?).map_err(|_| not_strings())?;
            strings.push(string.to_owned());
        }
        Ok(strings)
    }

    /// The array of 32-bit integers at `key`.
    pub(crate) fn integers(&self, key: &str) -> Result<Vec<i32>> {
        match self.metadata.get(key) {
            // Converters write i32 or u32. The bytes are the same, because no value is negative or above i32::MAX.
            Some(&Value::Array { of: 4 | 5, ref range, .. }) => {
                let bytes = self.bytes(range);
                Ok(bytes.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect())
            }
            _ => Err(self.field(key, "an array of 32-bit integers")),
        }
    }

    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.file.bytes()[range.clone()]
    }

    /// An error that says which value is at `key`, and which value was expected.
    pub(crate) fn field(&self, key: &str, expected: &str) -> Error {
        let got = self.json(key).map_or_else(|| "nothing".to_owned(), |value| value.to_string());
        let (path, expected) = (self.path().to_path_buf(), expected.to_owned());
        Error::Field { path, field: key.to_owned(), expected, got }
    }

    /// Computes and checks the position of each tensor's data. `reader` is at the end of the header.
    fn place_tensors(&mut self, reader: &Reader<'_>) -> Result<()> {
        let alignment = self.alignment()?;
        // In u64, because usize may have 32 bits.
        let data = (reader.at as u64).next_multiple_of(alignment as u64);
        for tensor in &mut self.tensors {
            let what = format!("the data of tensor `{}`", tensor.name);
            let error = |expected: String, got: String| {
                reader.error(tensor.described_at, what.clone(), expected, got)
            };
            if !tensor.offset.is_multiple_of(alignment as u64) {
                let expected = format!("an offset that is a multiple of {alignment}");
                return Err(error(expected, tensor.offset.to_string()));
            }
            let start = data.checked_add(tensor.offset);
            let end = start.and_then(|start| start.checked_add(tensor.range.len() as u64));
            match (start, end) {
                (Some(start), Some(end)) if end <= reader.bytes.len() as u64 => {
                    tensor.range = start as usize..end as usize;
                }
                _ => {
                    let expected = format!("{} bytes within the file", tensor.range.len());
                    let file = reader.bytes.len();
                    let got = format!("offset {} after byte {data} of {file} bytes", tensor.offset);
                    return Err(error(expected, got));
                }
            }
        }
        self.check_overlaps(reader)
    }

    fn check_overlaps(&self, reader: &Reader<'_>) -> Result<()> {
        let mut by_place: Vec<&TensorInfo> = self.tensors.iter().collect();
        by_place.sort_unstable_by_key(|tensor| tensor.range.start);
        for pair in by_place.windows(2) {
            if pair[1].range.start < pair[0].range.end {
                let what = format!("the data of tensor `{}`", pair[1].name);
                let expected = format!("data after those of `{}`", pair[0].name);
                return Err(reader.error(pair[1].described_at, what, expected, "overlapping data"));
            }
        }
        Ok(())
    }

    fn alignment(&self) -> Result<usize> {
        const KEY: &str = "general.alignment";
        match self.metadata.get(KEY) {
            None => Ok(DEFAULT_ALIGNMENT),
            Some(&Value::Unsigned(value)) if value.is_power_of_two() && value <= 1 << 31 => {
                Ok(value as usize)
            }
            Some(_) => Err(self.field(KEY, "a power of two, as u32")),
        }
    }
}

/// Reads a header from its beginning to its end.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn magic_and_version(&mut self) -> Result<()> {
        if !self.bytes.starts_with(MAGIC) {
            let got = self.bytes[..self.bytes.len().min(MAGIC.len())].escape_ascii().to_string();
            return Err(Error::NotGguf { path: self.path.to_path_buf(), got });
        }
        self.at = MAGIC.len();
        let at = self.at;
        match self.u32("the version")? {
            2 | 3 => Ok(()),
            other if matches!(other.swap_bytes(), 1..=3) => {
                Err(self.error(at, "the version", "2 or 3, little-endian", "a big-endian file"))
            }
            other => Err(self.error(at, "the version", "2 or 3", other.to_string())),
        }
    }

    /// Reads a number of items, each of which has at least `min_bytes` bytes. Fails if the rest of the file is too
    /// short for them.
    fn count(&mut self, what: &str, min_bytes: u64) -> Result<usize> {
        let at = self.at;
        let count = self.u64(what)?;
        let limit = (self.bytes.len() - self.at) as u64 / min_bytes;
        if count > limit {
            let expected = format!("at most {limit}, which would fill the rest of the file");
            return Err(self.error(at, what, expected, count.to_string()));
        }
        Ok(count as usize)
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let (what, at) = (format!("the value of `{key}`"), self.at);
        let value_type = self.u32(&what)?;
        if value_type == ARRAY {
            return self.elements(&what);
        }
        match self.scalar(value_type, &what)? {
            Some(value) => Ok(value),
            None => {
                let got = format!("type {value_type}");
                Err(self.error(at, what, "one of the types 0 to 12", got))
            }
        }
    }

    /// Reads a value that is not an array. `None` if there is no such type.
    fn scalar(&mut self, value_type: u32, what: &str) -> Result<Option<Value>> {
        Ok(Some(match value_type {
            0 => Value::Unsigned(u8::from_le_bytes(*self.array(what)?).into()),
            1 => Value::Signed(i8::from_le_bytes(*self.array(what)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(*self.array(what)?).into()),
            3 => Value::Signed(i16::from_le_bytes(*self.array(what)?).into()),
            4 => Value::Unsigned(self.u32(what)?.into()),
            5 => Value::Signed(i32::from_le_bytes(*self.array(what)?).into()),
            6 => Value::F32(f32::from_le_bytes(*self.array(what)?)),
            7 => Value::Bool(self.array::<1>(what)? != &[0]),
            STRING => {
                let n = self.string(what)?.len();
                Value::String(self.at - n..self.at)
            }
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(*self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(*self.array(what)?)),
            _ => return Ok(None),
        }))
    }

    fn elements(&mut self, what: &str) -> Result<Value> {
        let at = self.at;
        let of = self.u32(what)?;
        let size = match of {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            // A string begins with its length, a u64.
            STRING | 10..=12 => 8,
            // No converter writes arrays of arrays, and ggml rejects them, too.
            _ => {
                let got = format!("an array of type {of}");
                return Err(self.error(
                    at,
                    what,
                    "an array of one of the types 0 to 8 or 10 to 12",
                    got,
                ));
            }
        };
        let n = self.count(what, size)?;
        let start = self.at;
        if of == STRING {
            for _ in 0..n {
                self.string(what)?;
            }
        } else {
            self.take(n * size as usize, what)?;
        }
        Ok(Value::Array { of, n, range: start..self.at })
    }

    /// Reads the description of a tensor. The range of its data has the right length, but begins at 0 until
    /// [`Header::place_tensors`] moves it.
    fn tensor(&mut self) -> Result<TensorInfo> {
        let described_at = self.at;
        let name = self.text("a tensor's name")?;
        let what = format!("tensor `{name}`");
        let n_dimensions = self.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
            let expected = format!("1 to {MAX_DIMENSIONS} dimensions");
            return Err(self.error(described_at, what, expected, n_dimensions.to_string()));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            shape.push(self.u64(&what)?);
        }
        let id = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let Some(stored_type) = StoredType::of_gguf(id) else {
            return Err(Error::TensorType {
                path: self.path.to_path_buf(),
                name: name.to_owned(),
                expected: GGUF_TYPES,
                got: format!("type {id}"),
            });
        };
        let per_block = stored_type.values_per_block();
        if !shape[0].is_multiple_of(per_block as u64) {
            let expected = format!("rows of whole blocks of {per_block} {stored_type:?} values");
            return Err(self.error(described_at, what, expected, format!("rows of {}", shape[0])));
        }
        let rows_first: Option<Vec<usize>> =
            shape.iter().rev().map(|&dimension| usize::try_from(dimension).ok()).collect();
        let n_bytes = n_bytes(&shape, stored_type).filter(|&n_bytes| n_bytes > 0);
        let (Some(n_bytes), Some(rows_first)) = (n_bytes, rows_first) else {
            let file = self.bytes.len();
            let expected = format!("dimensions of at most {file} bytes, none of them 0");
            return Err(self.error(described_at, what, expected, format!("{shape:?}")));
        };
        let (name, range) = (name.to_owned(), 0..n_bytes);
        Ok(TensorInfo { name, shape: rows_first, stored_type, range, described_at, offset })
    }

    /// Reads a key or a name, which must be UTF-8.
    fn text(&mut self, what: &str) -> Result<&'a str> {
        let at = self.at;
        let bytes = self.string(what)?;
        str::from_utf8(bytes).map_err(|_| {
            let got = bytes[..bytes.len().min(64)].escape_ascii().to_string();
            self.error(at, what, "a string of UTF-8", got)
        })
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let n = self.count(what, 1)?;
        self.take(n, what)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(*self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(*self.array(what)?))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<&'a [u8; N]> {
        match self.bytes[self.at..].first_chunk() {
            Some(array) => {
                self.at += N;
                Ok(array)
            }
            None => Err(self.truncated(N, what)),
        }
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let Some(bytes) = self.bytes[self.at..].get(..n) else {
            return Err(self.truncated(n, what));
        };
        self.at += n;
        Ok(bytes)
    }

    fn truncated(&self, n: usize, what: &str) -> Error {
        let left = self.bytes.len() - self.at;
        self.error(
            self.at,
            what,
            format!("{n} bytes"),
            format!("{left} before the end of the file"),
        )
    }

    fn error(
        &self,
        at: usize,
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Error {
        Error::Gguf {
            path: self.path.to_path_buf(),
            offset: at as u64,
            what: what.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }
}

/// The bytes of a tensor with these dimensions. The first dimension is a multiple of the block size. `None` if the
/// number overflows.
fn n_bytes(dimensions: &[u64], stored_type: StoredType) -> Option<usize> {
    let blocks = dimensions[0] / stored_type.values_per_block() as u64;
    let bytes =
        dimensions[1..].iter().try_fold(blocks, |n, &dimension| n.checked_mul(dimension))?;
    usize::try_from(bytes.checked_mul(stored_type.bytes_per_block() as u64)?).ok()
}

/// The name in a GGUF file of the tensor `name`.
pub(crate) fn name_in_file(name: &str) -> String {
    let (layer, rest) = match name.strip_prefix("layers.").and_then(|name| name.split_once('.')) {
        Some((layer, rest)) => (format!("blk.{layer}."), rest),
        None => (String::new(), name),
    };
    let (module, what) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let module = match module {
        "embed_tokens" => "token_embd",
        "norm" => "output_norm",
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "lm_head" => "output",
        "score" => "cls.output",
        other => other,
    };
    format!("{layer}{module}.{what}")
}
