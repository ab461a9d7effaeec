//! `qwen3-embed embed` with files: formats of the input and of the output, and errors that name the place.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Int8Type, Int32Type, Int64Type, UInt8Type, UInt32Type,
};
use arrow_array::{ArrayRef, BinaryArray, DictionaryArray, Int64Array, RecordBatch, StringArray};
use arrow_ipc::reader::FileReader;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use qwen3_embed::{EmbedOptions, Embedder, Embeddings, Prompt};
use qwen3_embed_testing::fixtures;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const TEXTS: [&str; 5] =
    ["It rains.", "你好，世界", "She said \"yes\", and left", "tab\tand\nline", "The sun shines."];

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.arg("embed").arg("--model").arg(fixtures::model("base"));
    command
}

fn run_in(dir: &TempDir, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = program();
    command.args(arguments).current_dir(dir.path());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Writing fails if the child has rejected its arguments and ended.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Runs the command, which must succeed, and returns standard output.
fn succeed(dir: &TempDir, arguments: &[&str]) -> Vec<u8> {
    let output = run_in(dir, arguments, b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    output.stdout
}

/// Runs the command, which must fail with this status, and returns standard error.
fn fail(dir: &TempDir, arguments: &[&str], status: i32) -> String {
    let output = run_in(dir, arguments, b"");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
    errors
}

fn lines(json: &[u8]) -> Vec<Value> {
    let lines = str::from_utf8(json).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn embedder() -> Embedder {
    Embedder::builder(fixtures::model("base")).build().unwrap()
}

fn vectors() -> Embeddings {
    embedder().embed_documents(&TEXTS).unwrap()
}

/// Records with the texts and a number for each.
fn jsonl() -> String {
    let record = |(i, text): (usize, &&str)| json!({"id": i * 10, "text": text}).to_string() + "\n";
    TEXTS.iter().enumerate().map(record).collect()
}

fn write_csv(path: &Path, delimiter: u8) {
    let mut csv = csv::WriterBuilder::new().delimiter(delimiter).from_path(path).unwrap();
    csv.write_record(["id", "text"]).unwrap();
    for (i, text) in TEXTS.iter().enumerate() {
        csv.write_record([&(i * 10).to_string(), *text]).unwrap();
    }
    csv.flush().unwrap();
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let rows = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    );
    let rows = rows.unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

/// A folder with the texts in every format of the input.
fn inputs() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("texts.jsonl"), jsonl()).unwrap();
    fs::write(path("texts.txt"), "It rains.\n\nThe sun shines.\n").unwrap();
    write_csv(&path("texts.csv"), b',');
    write_csv(&path("texts.tsv"), b'\t');
    let ids = Int64Array::from_iter_values((0..TEXTS.len() as i64).map(|i| i * 10));
    let ids: ArrayRef = Arc::new(ids);
    let texts: ArrayRef = Arc::new(StringArray::from(TEXTS.to_vec()));
    write_parquet(&path("texts.parquet"), vec![("id", ids.clone()), ("text", texts)]);
    let categories: DictionaryArray<Int32Type> = TEXTS.into_iter().collect();
    let columns = vec![("id", ids), ("text", Arc::new(categories) as ArrayRef)];
    write_parquet(&path("categories.parquet"), columns);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(jsonl().as_bytes()).unwrap();
    fs::write(path("texts.jsonl.gz"), gzip.finish().unwrap()).unwrap();
    let csv = fs::read(path("texts.csv")).unwrap();
    fs::write(path("texts.csv.zst"), zstd::encode_all(&csv[..], 3).unwrap()).unwrap();
    dir
}

#[test]
fn reads_every_format() {
    let dir = inputs();
    let expected = vectors();
    for (name, is_typed) in [
        ("texts.jsonl", true),
        ("texts.jsonl.gz", true),
        ("texts.parquet", true),
        ("categories.parquet", true),
        ("texts.csv", false),
        ("texts.csv.zst", false),
        ("texts.tsv", false),
    ] {
        let rows = lines(&succeed(&dir, &[name]));
        assert_eq!(rows.len(), TEXTS.len(), "{name}");
        for (i, row) in rows.iter().enumerate() {
            // The values of a CSV file have no types.
            let id = if is_typed { json!(i * 10) } else { json!((i * 10).to_string()) };
            assert_eq!((&row["index"], &row["id"]), (&json!(i), &id), "{name}");
            let vector: Vec<f32> = serde_json::from_value(row["embedding"].clone()).unwrap();
            assert_eq!(vector, expected.row(i), "{name}");
            assert_eq!(row["n_tokens"], expected.n_tokens()[i], "{name}");
            assert_eq!(row.as_object().unwrap().len(), 4, "{name}");
        }
    }
    let rows = lines(&succeed(&dir, &["texts.txt"]));
    let [first, last] = [&rows[0]["embedding"], &rows[1]["embedding"]]
        .map(|vector| serde_json::from_value::<Vec<f32>>(vector.clone()).unwrap());
    assert_eq!((first.as_slice(), last.as_slice()), (expected.row(0), expected.row(4)));
}

#[test]
fn standard_input_has_any_format() {
    let dir = inputs();
    let expected = lines(&succeed(&dir, &["texts.jsonl"]));
    for (name, format) in
        [("texts.parquet", "parquet"), ("texts.jsonl.gz", "jsonl"), ("texts.csv.zst", "csv")]
    {
        let input = fs::read(dir.path().join(name)).unwrap();
        let output = run_in(&dir, &["--format", format, "-"], &input);
        let rows = lines(&output.stdout);
        assert_eq!(rows.len(), expected.len(), "{name}");
        for (row, expected) in rows.iter().zip(&expected) {
            assert_eq!(row["embedding"], expected["embedding"], "{name}");
        }
    }
}

#[test]
fn patterns_name_files_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("b.txt", "two\n"), ("a.txt", "one\n"), ("c.csv", "text\nthree\n")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let rows = lines(&succeed(&dir, &["*.txt", "c.csv"]));
    let texts = embedder().embed_documents(&["one", "two", "three"]).unwrap();
    for (i, row) in rows.iter().enumerate() {
        let vector: Vec<f32> = serde_json::from_value(row["embedding"].clone()).unwrap();
        assert_eq!((vector.as_slice(), &row["index"]), (texts.row(i), &json!(i)));
    }
    assert_eq!(rows.len(), 3);
    assert!(fail(&dir, &["*.parquet"], 1).contains("no file matches `*.parquet`"));
    assert!(fail(&dir, &["d.txt"], 1).contains("cannot open d.txt"));
    assert!(fail(&dir, &["d.doc"], 2).contains("does not tell its format: use --format"));
}

#[test]
fn fields_are_carried_through_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let record =
        r#"{"big": 12345678901234567890123, "text": "a", "nested": {"x": [1, null]}, "index": 7}"#;
    let output = run_in(&dir, &[], format!("{record}\n").as_bytes());
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.contains(r#""big":12345678901234567890123,"nested":{"x": [1, null]}}"#), "{line}");
    assert!(line.starts_with(r#"{"index":0,"#) && !line.contains("\"index\":7"), "{line}");
    let arguments = ["--columns", "text,nested"];
    let output = run_in(&dir, &arguments, format!("{record}\n").as_bytes());
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.contains(r#""text":"a","nested":{"x": [1, null]}}"#), "{line}");
}

#[test]
fn a_record_has_its_own_instruction() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "text,instruct\nrain,Find weather\nrain,\n").unwrap();
    fs::write(
        dir.path().join("a.jsonl"),
        "{\"text\":\"rain\",\"instruct\":\"Find weather\"}\n\"rain\"",
    )
    .unwrap();
    let options = EmbedOptions::new().prompt(Prompt::Instruction("Find weather".to_owned()));
    let embedder = embedder();
    let with = embedder.embed_with(["rain"], &options).unwrap();
    let without = embedder.embed_queries(&["rain"]).unwrap();
    for name in ["a.csv", "a.jsonl"] {
        let rows = lines(&succeed(&dir, &["--query", name]));
        for (row, expected) in rows.iter().zip([&with, &without]) {
            let vector: Vec<f32> = serde_json::from_value(row["embedding"].clone()).unwrap();
            assert_eq!(vector, expected.as_slice(), "{name}");
            assert_eq!(row.as_object().unwrap().len(), 3, "{name}");
        }
    }
}

/// The values of a column of lists, and for bits the bytes.
fn values(column: &ArrayRef) -> Vec<f64> {
    let list = column.as_fixed_size_list();
    let values = list.values();
    let floats = |n: usize, value: &dyn Fn(usize) -> f64| (0..n).map(value).collect();
    if let Some(values) = values.as_primitive_opt::<Float32Type>() {
        return floats(values.len(), &|i| values.value(i).into());
    }
    if let Some(values) = values.as_primitive_opt::<Float16Type>() {
        return floats(values.len(), &|i| values.value(i).into());
    }
    if let Some(values) = values.as_primitive_opt::<Int8Type>() {
        return floats(values.len(), &|i| values.value(i).into());
    }
    let values = values.as_primitive::<UInt8Type>();
    floats(values.len(), &|i| values.value(i).into())
}

/// A format of vectors, the expected values, and the scales.
type Expected = (&'static str, Vec<f64>, Option<Vec<f32>>);

fn expected() -> [Expected; 4] {
    let f32 = vectors();
    let int8 = f32.to_int8_per_vector();
    let scales = int8.scales().as_slice().to_vec();
    [
        ("f32", f32.as_slice().iter().map(|&v| v.into()).collect(), None),
        ("f16", f32.to_f16().as_slice().iter().map(|&v| v.into()).collect(), None),
        ("int8", int8.as_slice().iter().map(|&v| v.into()).collect(), Some(scales)),
        ("binary", f32.to_binary().as_slice().iter().map(|&v| v.into()).collect(), None),
    ]
}

fn read_columns(path: &Path) -> RecordBatch {
    let file = File::open(path).unwrap();
    if path.extension().unwrap() == "arrow" {
        return FileReader::try_new(file, None).unwrap().next().unwrap().unwrap();
    }
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build();
    reader.unwrap().next().unwrap().unwrap()
}

#[test]
fn writes_columns_in_every_vector_format() {
    let dir = inputs();
    for (vectors, expected, scales) in expected() {
        for name in ["out.arrow", "out.parquet"] {
            let arguments = ["texts.jsonl", "--overwrite", "--vectors", vectors, "-o", name];
            succeed(&dir, &arguments);
            let rows = read_columns(&dir.path().join(name));
            let column = |name: &str| rows.column_by_name(name).unwrap();
            assert_eq!(values(column("embedding")), expected, "{vectors} {name}");
            let n = TEXTS.len();
            let indices = column("index").as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(indices, (0..n as i64).collect::<Vec<_>>());
            let ids = column("id").as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(ids, (0..n as i64).map(|i| i * 10).collect::<Vec<_>>());
            assert_eq!(column("n_tokens").as_primitive::<UInt32Type>().len(), n);
            let got = rows.column_by_name("scale");
            let got = got.map(|scale| scale.as_primitive::<Float32Type>().values().to_vec());
            assert_eq!(got, scales, "{vectors} {name}");
        }
    }
}

#[test]
fn writes_json_in_every_vector_format() {
    let dir = inputs();
    for (vectors, expected, scales) in expected() {
        let rows = lines(&succeed(&dir, &["texts.parquet", "--vectors", vectors]));
        let got = rows.iter().flat_map(|row| row["embedding"].as_array().unwrap());
        let got: Vec<f64> = got.map(|value| value.as_f64().unwrap()).collect();
        let close = got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-7);
        assert!(close && got.len() == expected.len(), "{vectors}");
        for (i, row) in rows.iter().enumerate() {
            let scale = row.get("scale").map(|scale| scale.as_f64().unwrap() as f32);
            assert_eq!(scale, scales.as_ref().map(|scales| scales[i]), "{vectors}");
        }
    }
}

/// The type, the shape and the values of an array of NumPy.
fn read_npy(path: &Path) -> (String, String, Vec<f64>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(start.is_multiple_of(64) && bytes[start - 1] == b'\n');
    let header = str::from_utf8(&bytes[10..start]).unwrap();
    let between = |from: &str, to: &str| {
        let rest = header.split_once(from).unwrap().1;
        rest.split_once(to).unwrap().0.to_owned()
    };
    assert!(header.contains("'fortran_order': False"));
    let data_type = between("'descr': '", "'");
    (data_type.clone(), between("'shape': (", ")"), decode(&bytes[start..], &data_type))
}

fn decode(bytes: &[u8], data_type: &str) -> Vec<f64> {
    match data_type {
        "<f4" | "F32" => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
            .collect(),
        "<f2" | "F16" => bytes
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).into())
            .collect(),
        "|i1" | "I8" => bytes.iter().map(|&b| f64::from(b.cast_signed())).collect(),
        _ => bytes.iter().map(|&b| b.into()).collect(),
    }
}

#[test]
fn writes_arrays_in_every_vector_format() {
    let dir = inputs();
    let types = [("<f4", "F32"), ("<f2", "F16"), ("|i1", "I8"), ("|u1", "U8")];
    for ((vectors, expected, scales), (npy_type, tensor_type)) in expected().into_iter().zip(types)
    {
        let out = |name: &str| dir.path().join(name);
        for name in ["out.npy", "out.safetensors"] {
            succeed(&dir, &["texts.csv", "--overwrite", "--vectors", vectors, "--output", name]);
        }
        let width = expected.len() / TEXTS.len();
        let shape = format!("{}, {width}", TEXTS.len());
        let npy = read_npy(&out("out.npy"));
        assert_eq!(npy, (npy_type.to_owned(), shape, expected.clone()), "{vectors}");
        let bytes = fs::read(out("out.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("embeddings").unwrap();
        assert_eq!(tensor.shape(), [TEXTS.len(), width]);
        assert_eq!(decode(tensor.data(), tensor_type), expected, "{vectors}");
        if let Some(scales) = scales {
            let scales: Vec<f64> = scales.into_iter().map(f64::from).collect();
            let tensor = file.tensor("scales").unwrap();
            assert_eq!(decode(tensor.data(), "F32"), scales);
            let npy = read_npy(&out("out.scales.npy"));
            assert_eq!(npy, ("<f4".to_owned(), "5,".to_owned(), scales));
        }
    }
}

#[test]
fn empty_input_gives_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.jsonl"), "\n\n").unwrap();
    for name in ["out.parquet", "out.arrow", "out.npy", "out.safetensors", "out.jsonl"] {
        succeed(&dir, &["empty.jsonl", "--output", name]);
    }
    let file = File::open(dir.path().join("out.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    assert_eq!(read_npy(&dir.path().join("out.npy")).1, "0, 64");
    assert_eq!(fs::read(dir.path().join("out.jsonl")).unwrap(), b"");
}

/// Files with records that are not valid, as a name, the contents, and the message.
fn invalid_files(dir: &Path) -> Vec<(&'static str, &'static str)> {
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
    write("a.csv", b"text,id\nfine,1\nshort\nfine,2\n");
    write("b.csv", b"text,id\nfine,1\nbad \xff,2\nfine,2\n");
    write("c.jsonl", b"\"fine\"\n{\"text\": 5}\n\"fine\"\n");
    write("d.jsonl", b"\"fine\"\n\"bad \xff\"\n\"fine\"\n");
    let texts = StringArray::from(vec![Some("fine"), None, Some("fine")]);
    write_parquet(&dir.join("e.parquet"), vec![("text", Arc::new(texts))]);
    let bytes = BinaryArray::from(vec![&b"fine"[..], b"bad \xff", b"fine"]);
    write_parquet(&dir.join("f.parquet"), vec![("text", Arc::new(bytes))]);
    vec![
        ("a.csv", "line 3 of a.csv: expected 2 values, got 1"),
        ("b.csv", "line 3 of b.csv: column `text` is not UTF-8"),
        ("c.jsonl", "line 2 of c.jsonl: invalid type: integer `5`, expected a string"),
        ("d.jsonl", "line 2 of d.jsonl: stream did not contain valid UTF-8"),
        ("e.parquet", "row 2 of e.parquet: column `text` is null, expected a text"),
        ("f.parquet", "row 2 of f.parquet: column `text` is not UTF-8"),
    ]
}

#[test]
fn invalid_record_fails_with_its_place_and_keeps_the_rows_before_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, message) in invalid_files(dir.path()) {
        let errors = fail(&dir, &[name, "--output", "out.npy"], 1);
        assert!(errors.contains(&format!("error: {message}")), "{errors}");
        assert!(errors.contains("the first 1 rows are in out.npy.partial"), "{errors}");
        assert!(!dir.path().join("out.npy").exists());
        assert_eq!(read_npy(&dir.path().join("out.npy.partial")).1, "1, 64");
        let output = run_in(&dir, &[name], b"");
        assert_eq!((lines(&output.stdout).len(), output.status.code()), (1, Some(1)));
    }
}

#[test]
fn invalid_records_are_skipped_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    for (name, message) in invalid_files(dir.path()) {
        let arguments = [name, "--on-error", "skip", "--errors", "list.jsonl", "--quiet"];
        let rows = lines(&succeed(&dir, &arguments));
        let indices: Vec<_> = rows.iter().map(|row| row["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [0, 2], "{name}");
        let list = lines(&fs::read(dir.path().join("list.jsonl")).unwrap());
        let [error] = &list[..] else { panic!("{list:?}") };
        let (place, message) = message.split_once(": ").unwrap();
        let (unit, number) = place.split_once(' ').unwrap();
        let number: u64 = number.split_once(' ').unwrap().0.parse().unwrap();
        assert_eq!((&error["index"], &error[unit]), (&json!(1), &json!(number)), "{error}");
        assert_eq!(error["file"], name);
        assert!(error["error"].as_str().unwrap().contains(message), "{error}");
        let output = run_in(&dir, &[name, "--on-error", "skip", "--quiet"], b"");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.starts_with(&format!("skipped {place}: ")), "{errors}");
        assert!(errors.ends_with("1 records were skipped\n"), "{errors}");
    }
}

#[test]
fn wrong_columns_fail_and_are_named() {
    let dir = inputs();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("other.csv", "text,title\nx,y\n");
    write("types.jsonl", "{\"text\":\"a\",\"n\":1}\n{\"text\":\"b\",\"n\":\"x\"}\n");
    write("fields.jsonl", &("{\"text\":\"a\"}\n".repeat(1024) + "{\"text\":\"b\",\"n\":\"x\"}\n"));
    write("broken.parquet", "PAR1 no parquet");
    write("broken.jsonl.gz", "\x1f\u{8b}");
    let cases: [(&[&str], &str); 7] = [
        (
            &["texts.csv", "--text-column", "body"],
            "texts.csv has no column `body`: its columns are `id`, `text`",
        ),
        (&["texts.parquet", "--columns", "x"], "texts.parquet has no column `x`"),
        (
            &["texts.parquet", "--text-column", "id"],
            "column `id` of texts.parquet has the type Int64, expected strings",
        ),
        (
            &["texts.csv", "other.csv", "-o", "out.parquet"],
            "the columns of other.csv are title (Utf8), expected those of texts.csv: id (Utf8)",
        ),
        (&["fields.jsonl", "-o", "out.arrow"], "line 1025 of fields.jsonl: the fields differ"),
        (&["broken.parquet"], "cannot read broken.parquet"),
        (&[".", "--format", "csv"], ". is a folder"),
    ];
    for (arguments, message) in cases {
        let errors = fail(&dir, arguments, 1);
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn wrong_usage_has_its_own_status() {
    let dir = inputs();
    fs::write(dir.path().join("there.npy"), "old").unwrap();
    let cases: [(&[&str], i32, &str); 7] = [
        (&["texts.jsonl", "-o", "out.xyz"], 2, "does not tell the format"),
        (&["texts.jsonl", "--output-format", "npy"], 2, "cannot be written to standard output"),
        (&["--output-dir", "out", "--resume"], 2, "--resume needs files"),
        (&["texts.jsonl", "--resume"], 2, "--output-dir"),
        (&["texts.jsonl", "--shard", "3/2"], 2, "expected I/N"),
        (&["texts.jsonl", "-o", "there.npy"], 1, "there.npy exists: use --overwrite"),
        (&["texts.jsonl", "-o", "missing/out.npy"], 1, "cannot create missing/out.npy.partial"),
    ];
    for (arguments, status, message) in cases {
        let errors = fail(&dir, arguments, status);
        assert!(errors.contains(message), "{errors}");
    }
    assert_eq!(fs::read(dir.path().join("there.npy")).unwrap(), b"old");
    succeed(&dir, &["texts.jsonl", "-o", "there.npy", "--overwrite"]);
    assert_eq!(read_npy(&dir.path().join("there.npy")).1, "5, 64");
}

#[test]
fn parts_of_the_input_are_the_whole_input() {
    let dir = tempfile::tempdir().unwrap();
    let texts: String = (0..2500).map(|i| format!("{}\n", TEXTS[i % 3])).collect();
    fs::write(dir.path().join("a.txt"), &texts).unwrap();
    let mut rows = lines(&succeed(&dir, &["a.txt", "--shard", "1/2"]));
    assert_eq!(rows.len(), 1024 + 2500 - 2048);
    rows.extend(lines(&succeed(&dir, &["a.txt", "--shard", "2/2"])));
    rows.sort_by_key(|row| row["index"].as_u64());
    assert_eq!(rows, lines(&succeed(&dir, &["a.txt"])));
}

#[cfg(target_os = "linux")]
#[test]
fn full_disk_and_closed_pipe_are_reported() {
    let dir = inputs();
    let mut command = program();
    command.arg("texts.jsonl").current_dir(dir.path()).stderr(Stdio::piped());
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("cannot write standard output: No space left on device"), "{errors}");
    for format in ["jsonl", "arrow", "parquet"] {
        let mut command = program();
        command.args(["texts.jsonl", "--output-format", format, "--quiet"]);
        let mut child = command
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{format}: {errors}");
    }
}

#[test]
fn prints_completions_and_manual_pages() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qwen3-embed")).args(arguments).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (status, script) = run(&["completions", shell]);
        assert!(status == Some(0) && script.contains("output-dir"), "{shell}");
    }
    let (status, page) = run(&["man"]);
    assert!(status == Some(0) && page.contains(".TH qwen3-embed 1"), "{page}");
    let (status, page) = run(&["man", "embed"]);
    assert!(status == Some(0) && page.contains(".TH qwen3-embed-embed 1"), "{page}");
    assert!(page.contains("output\\-dir"), "{page}");
    assert_eq!(run(&["man", "nonsense"]).0, Some(2));
}
