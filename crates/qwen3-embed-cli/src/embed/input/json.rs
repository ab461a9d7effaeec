//! JSON lines and lines of text.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use arrow_array::RecordBatch;
use arrow_json::ReaderBuilder;
use arrow_json::reader::infer_json_schema;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use qwen3_embed::Text;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::batch::{BATCH_BYTES, BATCH_RECORDS, Batch, Carried, Cursor, Record, no_columns};
use super::columns::Names;
use super::file::{BytesRead, InputFile};
use super::options::ReadOptions;
use crate::lines::{Format, Lines, parse_with};

pub(super) struct JsonSource {
    lines: Lines<Box<dyn Read>>,
    bytes_read: BytesRead,
    name: Arc<str>,
    format: Format,
    names: Names,
    /// Whether fields become columns with types.
    typed: bool,
    /// Whether another program may write a line and wait.
    is_live: bool,
    /// The types of fields.
    schema: Option<SchemaRef>,
}

impl JsonSource {
    /// Opens a file. `schema` has the types of the fields, if the files before it had fields.
    pub(super) fn open(
        file: &InputFile,
        format: Format,
        options: &ReadOptions,
        schema: Option<SchemaRef>,
    ) -> Result<Self> {
        let (reader, bytes_read) = file.open()?;
        let name = file.path.is_some().then(|| file.name.to_string());
        let lines = Lines::new(reader, format, options.invalid, name);
        let (names, typed, name) = (options.columns.clone(), options.typed, file.name.clone());
        let is_live = file.path.is_none();
        Ok(Self { lines, bytes_read, name, format, names, typed, is_live, schema })
    }

    /// The types of fields, which are those of the first batch.
    pub(super) fn schema(&self) -> Option<SchemaRef> {
        self.schema.clone()
    }

    /// Reads the next batch. From standard input, waits for a record, and returns it with all records on complete lines
    /// that were read together with it. So a program that writes one line and waits for its embedding is not blocked.
    pub(super) fn next(&mut self, cursor: &mut Cursor) -> Result<Option<Batch>> {
        let mut batch = Batch::new(self.name.clone(), "line");
        let (mut fields, mut sample, mut n_records, mut n_bytes) = (Vec::new(), Vec::new(), 0, 0);
        let is_first = self.typed && self.schema.is_none();
        while n_records == 0
            || (n_records < BATCH_RECORDS
                && n_bytes < BATCH_BYTES
                && (!self.is_live || self.lines.has_line()))
        {
            let Some(number) = self.lines.read()? else { break };
            let text = self.lines.text();
            if matches!(text, Ok(None)) {
                continue;
            }
            let (index, is_embedded) = cursor.advance();
            // The types come from the first records of the file, even if these records are not embedded.
            if !is_embedded && !is_first {
                continue;
            }
            let parsed = text.and_then(|text| {
                let text = text.unwrap_or_default();
                n_bytes += text.len();
                match self.format {
                    Format::Text => Ok(Parsed::from(text.into_owned())),
                    Format::Jsonl => parse_with(text.trim(), Fields(&self.names)),
                }
            });
            n_records += 1;
            if is_first && let Ok(parsed) = &parsed {
                sample.push(parsed.fields.clone());
            }
            if is_embedded {
                let (record, other) = match parsed {
                    Ok(mut parsed) => {
                        let other = std::mem::take(&mut parsed.fields);
                        (parsed.into_record(&self.names), other)
                    }
                    Err(error) => (Err(error), String::new()),
                };
                batch.push(number as u64, index, record);
                fields.push(other);
            }
        }
        if n_records == 0 {
            return Ok(None);
        }
        batch.bytes_read = self.bytes_read.get();
        if is_first {
            self.schema = Some(infer(&sample).with_context(|| self.name.to_string())?);
        }
        batch.carried = match &self.schema {
            Some(schema) if self.typed => {
                Carried::Columns(columns(schema, &fields, &mut batch.records)?)
            }
            _ => Carried::Json(fields),
        };
        Ok(Some(batch))
    }
}

/// The types of fields. Each element of `sample` has the fields of a JSON object without its braces.
fn infer(sample: &[String]) -> Result<SchemaRef> {
    let objects: String = sample.iter().map(|fields| format!("{{{fields}}}\n")).collect();
    let (schema, _) = infer_json_schema(objects.as_bytes(), None)?;
    // A field that is null in the whole sample may have values later.
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Null => Field::new(field.name(), DataType::Utf8, true),
        data_type => Field::new(field.name(), data_type.clone(), true),
    });
    Ok(Schema::new(fields.collect::<Vec<_>>()).into())
}

/// The fields of records as columns. A record with other fields or types becomes an error.
fn columns(
    schema: &SchemaRef,
    fields: &[String],
    records: &mut [Result<Record>],
) -> Result<RecordBatch> {
    if let Ok(columns) = decode(schema, fields) {
        return Ok(columns);
    }
    let mut fields = fields.to_vec();
    for (fields, record) in fields.iter_mut().zip(records) {
        if let Err(error) = decode(schema, std::slice::from_ref(fields)) {
            if record.is_ok() {
                *record = Err(error.context(
                    "the fields differ from those of the first records, which determine the columns of the output",
                ));
            }
            fields.clear();
        }
    }
    decode(schema, &fields)
}

fn decode(schema: &SchemaRef, fields: &[String]) -> Result<RecordBatch> {
    if schema.fields().is_empty() && fields.iter().all(String::is_empty) {
        return Ok(no_columns(fields.len())?);
    }
    if fields.is_empty() {
        return Ok(RecordBatch::new_empty(schema.clone()));
    }
    let objects: String = fields.iter().map(|fields| format!("{{{fields}}}\n")).collect();
    let reader = ReaderBuilder::new(schema.clone()).with_batch_size(fields.len());
    let mut decoder = reader.with_strict_mode(true).with_coerce_primitive(true).build_decoder()?;
    decoder.decode(objects.as_bytes())?;
    let columns = decoder.flush()?;
    columns.filter(|columns| columns.num_rows() == fields.len()).context("a record is missing")
}

/// The contents of a line.
struct Parsed {
    text: Option<String>,
    tokens: Option<Vec<u32>>,
    instruction: Option<String>,
    /// The fields that are copied: a JSON object without its braces.
    fields: String,
}

impl From<String> for Parsed {
    fn from(text: String) -> Self {
        Self { text: Some(text), tokens: None, instruction: None, fields: String::new() }
    }
}

impl Parsed {
    fn into_record(self, names: &Names) -> Result<Record> {
        let (name, instruction) = (&names.text, self.instruction);
        let text: Text = match (self.text, self.tokens) {
            (Some(text), None) => text.into(),
            (None, Some(tokens)) => tokens.into(),
            (Some(_), Some(_)) => bail!("expected `{name}` or `tokens`, got both"),
            (None, None) => bail!("expected `{name}` or `tokens`, got neither"),
        };
        if matches!(text, Text::Tokens(_)) && instruction.is_some() {
            return Err(anyhow!(
                "expected no instruction, because tokens are embedded as they are"
            ));
        }
        Ok(Record { text, instruction })
    }
}

/// Parses an object.
struct Fields<'a>(&'a Names);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Parsed, M::Error> {
        let names = self.0;
        let mut parsed = Parsed { text: None, ..Parsed::from(String::new()) };
        while let Some(key) = map.next_key::<String>()? {
            let mut value = None;
            if key == names.text {
                parsed.text = map.next_value()?;
                value = parsed.text.as_ref().map(serde_json::to_string);
            } else if key == "tokens" {
                parsed.tokens = map.next_value()?;
                value = parsed.tokens.as_ref().map(serde_json::to_string);
            } else if key == names.instruction {
                parsed.instruction = map.next_value()?;
                value = parsed.instruction.as_ref().map(serde_json::to_string);
            } else if names.copies(&key) {
                value = Some(Ok(map.next_value::<Box<RawValue>>()?.get().to_owned()));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            let is_copied = names.copies(&key) && (key != "tokens" || names.copied.is_some());
            if let Some(value) = value.filter(|_| is_copied) {
                let value = value.map_err(serde::de::Error::custom)?;
                let key = serde_json::to_string(&key).map_err(serde::de::Error::custom)?;
                let comma = if parsed.fields.is_empty() { "" } else { "," };
                parsed.fields += &format!("{comma}{key}:{value}");
            }
        }
        Ok(parsed)
    }
}
