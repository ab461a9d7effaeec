//! Changed copies of small files.
//!
//! Reading must not panic. Every record has the text and the number that a simple reader of the same format gives for
//! its position, every record with an error is one that the simple reader refuses, too, and an error that ends the
//! reading names the file.
//!
//! The environment variable `QWEN3_EMBED_FUZZ_SECONDS` is the time for each format. The random numbers differ from run to
//! run. A failure prints the path of a file with the input. Files that have once violated a property are in
//! `crates/qwen3-embed-cli/regressions`, in a folder for each format.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use clap::Parser;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use qwen3_embed::Text;
use qwen3_embed_testing::mutate::mutated;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Carried, Names, ReadOptions, Reader, input_files};
use crate::embed::args::{InputFormat, Part};
use crate::lines::InputArgs;

/// Seconds for each format, if the environment variable is not set.
const SECONDS: f64 = 0.3;

/// What a record should be: its number in the file, and its text, or `None` if it should be an error.
type Expected = (u64, Option<Text<'static>>);

/// The records that a simple reader finds. `None` if it cannot read the file.
type Simple = fn(&Path, &Options) -> Option<Vec<Expected>>;

#[derive(Debug, Clone, Copy, PartialEq, Parser)]
struct Options {
    #[arg(long)]
    replace_invalid: bool,
    #[arg(long)]
    typed: bool,
    #[arg(long, default_value_t = 0)]
    first_record: u64,
}

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    input: InputArgs,
}

impl Options {
    fn random(rng: &mut SmallRng) -> Self {
        Self {
            replace_invalid: rng.random_bool(0.3),
            typed: rng.random_bool(0.3),
            first_record: if rng.random_bool(0.2) { rng.random_range(0..4) } else { 0 },
        }
    }

    fn read_options(self) -> ReadOptions {
        let replace = self.replace_invalid.then_some("--replace-invalid");
        let columns =
            Names { text: "text".to_owned(), instruction: "instruction".to_owned(), copied: None };
        ReadOptions {
            columns,
            invalid: Args::parse_from(["embed"].into_iter().chain(replace)).input,
            typed: self.typed,
            part: Part::default(),
            first_record: self.first_record,
        }
    }
}

/// What the reader finds in a file: the number, the index and the text of each record, and whether it has read the file to
/// its end.
fn read(
    path: &Path,
    format: InputFormat,
    options: Options,
) -> (Vec<(u64, u64, Option<Text<'static>>)>, bool) {
    let name = path.display().to_string();
    let files = input_files(std::slice::from_ref(&name), Some(format)).unwrap();
    let mut reader = Reader::new(files, options.read_options());
    let mut records = Vec::new();
    let result: Result<()> = loop {
        match reader.next() {
            Ok(Some(batch)) => {
                let n_carried = match &batch.carried {
                    Carried::Json(fields) => fields.len(),
                    Carried::Columns(columns) => columns.num_rows(),
                };
                assert_eq!(n_carried, batch.records.len());
                for at in 0..batch.records.len() {
                    let (number, place) = (batch.numbers[at], batch.place(at));
                    assert!(
                        place.contains(&name) && place.contains(&number.to_string()),
                        "{place}"
                    );
                    let text = batch.records[at].as_ref().ok().map(|record| record.text.clone());
                    records.push((number, batch.indices[at], text));
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = &result {
        let message = format!("{error:#}");
        assert!(message.contains(&name), "an error without the name of the file: {message}");
    }
    (records, result.is_ok())
}

/// Checks one file.
fn check(path: &Path, format: InputFormat, simple: Simple, data: &[u8], options: Options) {
    fs::write(path, data).unwrap();
    let (records, is_whole) = read(path, format, options);
    // The parquet crate allocates sizes that damaged files claim, in some cases.
    if !is_whole && format == InputFormat::Parquet {
        return;
    }
    let Some(expected) = simple(path, &options) else { return };
    // A text may be refused for another reason if all records must have the same columns.
    for (number, index, text) in records {
        let Some((expected_number, expected)) = expected.get(index as usize) else {
            panic!("record {index} of {} records", expected.len());
        };
        assert!(index >= options.first_record);
        assert_eq!(number, *expected_number, "the number of record {index}");
        if text.is_some() || !options.typed {
            assert_eq!(text, *expected, "record {index}, number {number}");
        }
    }
}

/// Checks the seeds with the reader `valid`, and changed copies of them with the reader `damaged` until the time is over.
fn run(format: InputFormat, name: &str, seeds: &[Vec<u8>], [valid, damaged]: [Simple; 2]) {
    let mut seeds = seeds.to_vec();
    let regressions: Vec<Vec<u8>> = regressions(name).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    let check = |data: &[u8], options: Options, simple: Simple| {
        let attempt = || check(&path, format, simple, data, options);
        if let Err(failure) = panic::catch_unwind(AssertUnwindSafe(attempt)) {
            let kept = env::temp_dir().join(format!("qwen3-embed-damaged-{name}"));
            fs::write(&kept, data).unwrap();
            eprintln!("the input is in {}, {options:?}", kept.display());
            panic::resume_unwind(failure);
        }
    };
    for first_record in 0..4 {
        for [replace_invalid, typed] in [[false, false], [true, false], [false, true]] {
            let options = Options { replace_invalid, typed, first_record };
            seeds.iter().for_each(|seed| check(seed, options, valid));
            regressions.iter().for_each(|file| check(file, options, damaged));
        }
    }
    seeds.extend(regressions);
    let seconds = env::var("QWEN3_EMBED_FUZZ_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    let (start, mut n_checked) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let data = mutated(&mut rng, &seeds);
        check(&data, Options::random(&mut rng), damaged);
        n_checked += 1;
    }
    println!("{name}: {n_checked} files");
}

/// Files that have once violated a property.
fn regressions(name: &str) -> impl Iterator<Item = Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    fs::read_dir(folder).into_iter().flatten().map(|entry| fs::read(entry.unwrap().path()).unwrap())
}

/// The string of bytes, or `None` if it is not UTF-8 and invalid bytes are not replaced.
fn string(bytes: &[u8], options: &Options) -> Option<String> {
    if options.replace_invalid {
        return Some(String::from_utf8_lossy(bytes).into_owned());
    }
    String::from_utf8(bytes.to_vec()).ok()
}

/// The line of each record, the header included: where its first byte is.
fn csv_lines(data: &[u8], delimiter: u8) -> Vec<u64> {
    #[derive(PartialEq)]
    enum At {
        Record,
        Field,
        Bare,
        Quoted,
        Quote,
    }
    let (mut lines, mut line, mut at) = (Vec::new(), 1, At::Record);
    for &byte in data {
        let is_break = byte == b'\n' || byte == b'\r';
        if at == At::Record && !is_break {
            lines.push(line);
            at = At::Field;
        }
        at = match at {
            At::Record => At::Record,
            At::Quoted if byte == b'"' => At::Quote,
            At::Quoted => At::Quoted,
            At::Field | At::Quote if byte == b'"' => At::Quoted,
            _ if is_break => At::Record,
            _ if byte == delimiter => At::Field,
            _ => At::Bare,
        };
        line += u64::from(byte == b'\n');
    }
    lines
}

/// The records of the csv crate.
fn simple_csv(path: &Path, options: &Options) -> Option<Vec<Expected>> {
    let data = fs::read(path).unwrap();
    let data = data.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&data);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(data);
    let rows: Vec<csv::ByteRecord> = reader.byte_records().collect::<Result<_, _>>().ok()?;
    let lines = csv_lines(data.strip_prefix("\u{feff}".as_bytes()).unwrap_or(data), b',');
    assert_eq!(lines.len(), rows.len(), "records");
    let header: Vec<&str> =
        rows.first()?.iter().map(str::from_utf8).collect::<Result<_, _>>().ok()?;
    let position = |name| header.iter().position(|&column| column == name);
    let text = position("text")?;
    let rows = rows.iter().zip(lines).skip(1).map(|(row, line)| {
        let is_whole = row.len() == header.len();
        // Other columns are copied, so they must be strings, too.
        let strings: Option<Vec<String>> = row.iter().map(|value| string(value, options)).collect();
        let value = strings.filter(|_| is_whole).map(|mut row| row.swap_remove(text));
        (line, value.map(Text::from))
    });
    Some(rows.collect())
}

/// The records of serde_json, line by line.
fn simple_jsonl(path: &Path, options: &Options) -> Option<Vec<Expected>> {
    let data = fs::read(path).unwrap();
    if options.replace_invalid && data.contains(&b'\\') {
        // Halves of surrogate pairs are replaced, which serde_json does not do.
        return None;
    }
    let data = data.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&data);
    let mut records = Vec::new();
    for (number, line) in (1..).zip(data.split(|&byte| byte == b'\n')) {
        let Some(line) = string(line, options) else {
            records.push((number, None));
            continue;
        };
        if !line.trim().is_empty() {
            records.push((number, simple_object(line.trim())));
        }
    }
    Some(records)
}

/// The text or the tokens of a line.
fn simple_object(line: &str) -> Option<Text<'static>> {
    if line.starts_with('"') {
        return serde_json::from_str::<String>(line).ok().map(Text::from);
    }
    let Fields(fields) = serde_json::from_str(line).ok()?;
    let text = last::<String>(&fields, "text")?;
    let tokens = last::<Vec<u32>>(&fields, "tokens")?;
    let instruction = last::<String>(&fields, "instruction")?;
    match (text, tokens) {
        (Some(text), None) => Some(text.into()),
        (None, Some(tokens)) if instruction.is_none() => Some(tokens.into()),
        _ => None,
    }
}

/// The fields of an object in their order. A name may occur several times.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The value of the last field with this name. `None` if a field with this name has another type.
fn last<T: DeserializeOwned>(fields: &[(String, Box<RawValue>)], name: &str) -> Option<Option<T>> {
    let mut last = None;
    for (_, value) in fields.iter().filter(|(key, _)| key == name) {
        last = serde_json::from_str(value.get()).ok()?;
    }
    Some(last)
}

/// The rows of the record reader of the parquet crate. It panics for some damaged files.
fn simple_parquet(path: &Path, options: &Options) -> Option<Vec<Expected>> {
    let rows = || -> Option<Vec<Option<Text<'static>>>> {
        let reader = SerializedFileReader::new(File::open(path).unwrap()).ok()?;
        let text = |row: Row| {
            Some(match row.get_column_iter().find(|(name, _)| *name == "text")?.1 {
                Field::Str(text) => Some(text.clone().into()),
                Field::Bytes(bytes) => string(bytes.data(), options).map(Text::from),
                _ => None,
            })
        };
        reader.get_row_iter(None).ok()?.map(|row| row.ok().and_then(text)).collect()
    };
    let rows = panic::catch_unwind(AssertUnwindSafe(rows)).ok()??;
    Some((1..).zip(rows).collect())
}

/// The rows of a damaged file, in which definition levels may be wrong. Two readers need not agree on such a file, so this
/// is the reader of the crate, but for all columns and rows.
fn whole_parquet(path: &Path, options: &Options) -> Option<Vec<Expected>> {
    let rows = || -> Option<Vec<Option<Text<'static>>>> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).ok()?;
        let mut rows = Vec::new();
        for batch in builder.build().ok()? {
            let batch = batch.ok()?;
            let column = batch.column_by_name("text")?;
            if let Some(column) = column.as_string_opt::<i32>() {
                rows.extend(column.iter().map(|text| Some(text?.to_owned().into())));
            } else {
                let column = column.as_binary_opt::<i32>()?;
                rows.extend(column.iter().map(|text| string(text?, options).map(Text::from)));
            }
        }
        Some(rows)
    };
    // Rows that are skipped are not decoded, so their damage has no effect.
    let rows =
        if options.first_record == 0 { panic::catch_unwind(rows).ok()?? } else { return None };
    Some((1..).zip(rows).collect())
}

#[test]
fn changed_csv_files_give_the_records_of_a_simple_reader() {
    let seeds: [&[u8]; 7] = [
        b"text,id\nfirst,1\nsecond,2\n",
        b"id,text,instruction\r\n1,\"with, comma\",\r\n2,\"two\r\nlines\",Find it\r\n3,\"a \"\"quote\"\"\",x",
        "\u{feff}\"text\",\"id\"\n\"ü, ö\",\"1\"\n".as_bytes(),
        "\u{feff}text\n\nfirst\n\n\nsecond\n".as_bytes(),
        b"text,id\nbytes \xff that are not UTF-8,1\n\"open",
        b"title,text\n1,2,3\n4\n5,6\n",
        b"text\n\"\"\n \n",
    ];
    run(InputFormat::Csv, "records.csv", &seeds.map(<[u8]>::to_vec), [simple_csv; 2]);
}

#[test]
fn changed_jsonl_files_give_the_records_of_a_simple_reader() {
    let seeds: [&[u8]; 6] = [
        b"{\"text\": \"first\", \"id\": 1}\n{\"text\": \"second\", \"id\": 2}\n",
        b"\"a string\"\r\n\r\n{\"tokens\": [1, 2, 4294967295], \"more\": {\"a\": [null, 1.5e3]}}\r\n",
        "\u{feff}{\"id\":\"ü\",\"text\":\"\\ud83d\\ude00 \\\"\",\"instruction\":\"Find\"}".as_bytes(),
        b"{\"text\": \"cut \\ud83d\"}\n{\"text\": \"\xff\"}\n[\"text\"]\n",
        b"{\"text\": null, \"tokens\": [7]}\n{\"text\": \"a\", \"tokens\": null}\n{}\n",
        b"{\"text\": \"a\", \"instruction\": null}\n{\"tokens\": [1], \"instruction\": \"x\"}\n",
    ];
    run(InputFormat::Jsonl, "records.jsonl", &seeds.map(<[u8]>::to_vec), [simple_jsonl; 2]);
}

/// A file with a few rows in two row groups.
fn parquet_file(text: ArrayRef, compression: Compression) -> Vec<u8> {
    let n_rows = text.len();
    let id = Arc::new(Int64Array::from_iter_values(0..n_rows as i64)) as ArrayRef;
    let instruction = (0..n_rows).map(|row| (row % 2 == 0).then(|| format!("Find {row}")));
    let instruction = Arc::new(StringArray::from_iter(instruction)) as ArrayRef;
    let columns = [("id", id), ("text", text), ("instruction", instruction)];
    let rows = RecordBatch::try_from_iter_with_nullable(
        columns.map(|(name, column)| (name, column, true)),
    );
    let rows = rows.unwrap();
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(3))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn changed_parquet_files_give_the_records_of_a_simple_reader() {
    let strings = StringArray::from(vec![Some("first"), None, Some("ü"), Some("first"), Some("")]);
    let bytes = BinaryArray::from(vec![&b"bytes"[..], b"\xff", b"more"]);
    let seeds = [
        parquet_file(Arc::new(strings.clone()), Compression::UNCOMPRESSED),
        parquet_file(Arc::new(bytes), Compression::UNCOMPRESSED),
        parquet_file(Arc::new(strings), Compression::SNAPPY),
    ];
    run(InputFormat::Parquet, "records.parquet", &seeds, [simple_parquet, whole_parquet]);
}

/// The numbers and the texts of the records of a CSV file.
fn csv_records(data: &str) -> Vec<(u64, String)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.csv");
    fs::write(&path, data).unwrap();
    let options = Options { replace_invalid: false, typed: false, first_record: 0 };
    let (records, _) = read(&path, InputFormat::Csv, options);
    let text = |text: Option<Text<'static>>| match text {
        Some(Text::String(text)) => text.into_owned(),
        other => format!("{other:?}"),
    };
    records.into_iter().map(|(number, _, record)| (number, text(record))).collect()
}

#[test]
fn csv_records_have_the_number_of_the_line_on_which_they_begin() {
    let expected = |records: &[(u64, &str)]| -> Vec<(u64, String)> {
        records.iter().map(|&(number, text)| (number, text.to_owned())).collect()
    };
    assert_eq!(csv_records("text\r\na\r\nb"), expected(&[(2, "a"), (3, "b")]));
    assert_eq!(
        csv_records("text\n\n\na\n\"b\nc\"\nd\n"),
        expected(&[(4, "a"), (5, "b\nc"), (7, "d")])
    );
    assert_eq!(csv_records("text\r\n\r\n\"a\r\n\"\r\nb,c\r\n")[1], (5, "None".to_owned()));
}

#[test]
fn csv_header_may_be_quoted_after_a_byte_order_mark() {
    assert_eq!(csv_records("\u{feff}\"text\"\na"), [(2, "a".to_owned())]);
}

/// The parquet crate panics for this file.
#[test]
fn damaged_parquet_file_is_an_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.parquet");
    fs::write(&path, regressions("records.parquet").next().unwrap()).unwrap();
    let files = input_files(&[path.display().to_string()], None).unwrap();
    let options = Options { replace_invalid: false, typed: false, first_record: 0 };
    let Err(error) = Reader::new(files, options.read_options()).next() else {
        panic!("the file was read");
    };
    let expected = format!("rows 1 to 5 of {}: the file is damaged", path.display());
    assert!(format!("{error:#}").starts_with(&expected), "{error:#}");
}
