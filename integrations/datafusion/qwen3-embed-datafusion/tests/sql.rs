//! The functions in queries, with the bundled model and with a reranker of the fixtures.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, FixedSizeListArray, Float32Array, LargeStringArray,
    RecordBatch, StringArray, StringViewArray, UInt32Array,
};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{Float32Type, Int32Type, UInt32Type};
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use qwen3_embed::{EmbedOptions, Embedder, Prompt, Reranker, Source};
use qwen3_embed_datafusion::{Functions, ModelSettings, Models};

const RERANKER: &str = "../../../fixtures/rerankers/tied";

fn context(functions: &Functions) -> SessionContext {
    let state = SessionStateBuilder::new_with_default_features();
    SessionContext::new_with_state(functions.register(state).build())
}

fn local() -> SessionContext {
    context(&Functions::local(Arc::new(Models::new(ModelSettings::default()))))
}

/// The rows of a query.
async fn rows(context: &SessionContext, sql: &str) -> Result<RecordBatch> {
    let frame = context.sql(sql).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    Ok(concat_batches(&schema, &frame.collect().await?)?)
}

/// The message of a query that fails.
async fn error(context: &SessionContext, sql: &str) -> String {
    rows(context, sql).await.unwrap_err().to_string()
}

/// A table with a column of texts.
fn table(context: &SessionContext, texts: ArrayRef) {
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    context.register_batch("documents", batch).unwrap();
}

fn vectors(batch: &RecordBatch, column: usize) -> &FixedSizeListArray {
    batch.column(column).as_fixed_size_list()
}

fn floats(vectors: &FixedSizeListArray, row: usize) -> Vec<f32> {
    vectors.value(row).as_primitive::<Float32Type>().values().to_vec()
}

const TEXTS: [Option<&str>; 6] =
    [Some("It rains."), None, Some("雨が降っています。"), Some(""), Some("It rains."), None];

/// The same texts in each type of strings.
fn columns() -> Vec<ArrayRef> {
    let large: LargeStringArray = TEXTS.into_iter().collect();
    vec![
        Arc::new(StringArray::from_iter(TEXTS)),
        Arc::new(StringViewArray::from_iter(TEXTS)),
        Arc::new(TEXTS.into_iter().collect::<DictionaryArray<Int32Type>>()),
        Arc::new(
            DictionaryArray::<UInt32Type>::try_new(
                vec![Some(0), None, Some(2), Some(3), Some(0), Some(1)].into(),
                Arc::new(LargeStringArray::from(vec![TEXTS[0], None, TEXTS[2], TEXTS[3]])),
            )
            .unwrap(),
        ),
        Arc::new(large),
    ]
}

#[tokio::test]
async fn vectors_are_those_of_the_library_for_each_type_of_strings() {
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let texts: Vec<&str> = TEXTS.into_iter().flatten().collect();
    let documents = embedder.embed_documents(&texts).unwrap();
    let queries = embedder.embed_queries(&texts).unwrap();
    let task = EmbedOptions::new().prompt(Prompt::Instruction("Find the weather".to_owned()));
    let instructed = embedder.embed_with(texts.iter().copied(), &task).unwrap();
    for column in columns() {
        let context = local();
        table(&context, column);
        let sql = "SELECT embed(text), embed_query(text), embed_query(text, 'Find the weather') FROM documents";
        let got = rows(&context, sql).await.unwrap();
        for (column, expected) in [&documents, &queries, &instructed].into_iter().enumerate() {
            let got = vectors(&got, column);
            assert_eq!(got.value_length() as usize, embedder.dimensions());
            let mut expected = expected.iter();
            for (row, text) in TEXTS.iter().enumerate() {
                assert_eq!(got.is_null(row), text.is_none());
                if text.is_some() {
                    assert_eq!(floats(got, row), expected.next().unwrap());
                }
            }
        }
    }
}

#[tokio::test]
async fn instructions_can_differ_between_rows() {
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let sql = "SELECT embed_query(q, i) FROM (VALUES ('rain', 'Find the weather'), ('rain', 'Find a song'),
        ('rain', NULL), ('sun', 'Find the weather')) AS queries(q, i)";
    let got = rows(&local(), sql).await.unwrap();
    let got = vectors(&got, 0);
    let cases = [
        ("rain", "Find the weather", 0),
        ("rain", "Find a song", 1),
        ("sun", "Find the weather", 3),
    ];
    for (query, instruction, row) in cases {
        let options = EmbedOptions::new().prompt(Prompt::Instruction(instruction.to_owned()));
        let expected = embedder.embed_with([query], &options).unwrap();
        assert_eq!(floats(got, row), expected.row(0));
    }
    assert!(got.is_null(2));
}

#[tokio::test]
async fn a_session_chooses_the_number_of_dimensions() {
    let context = local();
    let embedder = Embedder::builder(Source::demo()).dimensions(32).build().unwrap();
    context.sql("SET qwen3.dimensions = 32").await.unwrap();
    let got = rows(&context, "SELECT embed('It rains.')").await.unwrap();
    assert_eq!(floats(vectors(&got, 0), 0), embedder.embed_document("It rains.").unwrap());
    context.sql("SET qwen3.dimensions = ''").await.unwrap();
    let got = rows(&context, "SELECT embed('It rains.')").await.unwrap();
    assert_eq!(vectors(&got, 0).value_length() as usize, embedder.max_dimensions());

    let message = context.sql("SET qwen3.dimensions = 'many'").await.unwrap_err().to_string();
    assert!(message.contains("qwen3.dimensions must be a number of dimensions"), "{message}");
    context.sql("SET qwen3.dimensions = 100000").await.unwrap();
    let message = error(&context, "SELECT embed('It rains.')").await;
    assert!(message.contains("100000"), "{message}");
    let message = context.sql("SET qwen3.size = 1").await.unwrap_err().to_string();
    assert!(message.contains("there is no option qwen3.size"), "{message}");
    let shown = rows(&context, "SHOW qwen3.dimensions").await;
    // `SHOW` needs the information schema, which this session does not have.
    assert!(shown.is_err());
}

#[tokio::test]
async fn vectors_have_similarities_and_distances() {
    let context = local();
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let (a, b) = ("It rains.", "The sun shines.");
    let sql = format!(
        "SELECT cosine_similarity(embed('{a}'), embed('{b}')), \
         hamming(binary_quantize(embed('{a}')), binary_quantize(embed('{b}')))"
    );
    let got = rows(&context, &sql).await.unwrap();
    let [a, b] = [a, b].map(|text| embedder.embed_document(text).unwrap());
    let expected = qwen3_embed::cosine(&a, &b).unwrap();
    assert_eq!(got.column(0).as_primitive::<Float32Type>().value(0), expected);
    let different = a.iter().zip(&b).filter(|(a, b)| (**a > 0.0) != (**b > 0.0)).count();
    assert_eq!(got.column(1).as_primitive::<UInt32Type>().value(0) as usize, different);

    let sql =
        "SELECT cosine_similarity(a, b) FROM (VALUES ([1.0, 0.0], [2.0, 2.0]), ([3.0, 4.0], NULL),
        ([1.0, NULL], [1.0, 1.0])) AS pairs(a, b)";
    let got = rows(&context, sql).await.unwrap();
    let expected = Float32Array::from(vec![Some(0.5f32.sqrt()), None, None]);
    assert_eq!(got.column(0).as_primitive::<Float32Type>(), &expected);

    let sql = "SELECT hamming(binary_quantize(a), X'80'), binary_quantize(NULL) FROM (VALUES ([1.0, 1.0]),
        ([-1.0, 1.0]), (NULL)) AS vectors(a)";
    let got = rows(&context, sql).await.unwrap();
    let expected = UInt32Array::from(vec![Some(1), Some(2), None]);
    assert_eq!(got.column(0).as_primitive::<UInt32Type>(), &expected);
    assert_eq!(got.column(1).null_count(), 3);

    for (sql, part) in [
        ("SELECT cosine_similarity([1.0], [1.0, 2.0])", "different lengths, 1 and 2"),
        ("SELECT cosine_similarity([1.0], 'a')", "argument 2 must be a vector"),
        ("SELECT hamming(X'00', X'0000')", "different lengths, 8 and 16"),
        ("SELECT embed(7)", "'embed' expects String but received Int64"),
        ("SELECT embed('a', 'b')", "'embed' expects 1 arguments but received 2"),
        ("SELECT rerank('a', 'b')", "no reranker is set"),
    ] {
        let message = error(&context, sql).await;
        assert!(message.contains(part), "{sql}: {message}");
    }
}

#[tokio::test]
async fn scores_are_those_of_the_library() {
    let context = local();
    context.sql(&format!("SET qwen3.reranker = '{RERANKER}'")).await.unwrap();
    let sql = "SELECT rerank(q, d) FROM (VALUES ('rain', 'It rains.'), ('sun', 'It rains.'),
        ('rain', 'The sun shines.'), (NULL, 'It rains.'), ('rain', 'It rains.')) AS pairs(q, d)";
    let got = rows(&context, sql).await.unwrap();
    let reranker = Reranker::builder(RERANKER).build().unwrap();
    let pairs = [("rain", "It rains."), ("sun", "It rains."), ("rain", "The sun shines.")];
    let scores = reranker.scores(&pairs).unwrap();
    let expected = vec![Some(scores[0]), Some(scores[1]), Some(scores[2]), None, Some(scores[0])];
    assert_eq!(got.column(0).as_primitive::<Float32Type>(), &Float32Array::from(expected));
    assert!(scores[0] != scores[1]);
}

/// The engine's batches are of 10 rows, and those of the model of 1,024.
#[tokio::test]
async fn rows_are_regrouped_for_the_model() {
    let models = Arc::new(Models::new(ModelSettings::default()));
    let context = context(&Functions::local(models.clone()));
    context.sql("SET datafusion.execution.batch_size = 10").await.unwrap();
    context.sql("SET datafusion.execution.target_partitions = 1").await.unwrap();
    context.sql("SET qwen3.dimensions = 32").await.unwrap();
    let texts: StringArray = (0..2500).map(|n| Some(format!("number {}", n % 1500))).collect();
    table(&context, Arc::new(texts));
    let sql = "SELECT text, embed(text) FROM documents WHERE text <> 'number 3'";
    let mut batches = context.sql(sql).await.unwrap().execute_stream().await.unwrap();
    let mut sizes = Vec::new();
    while let Some(batch) = batches.next().await {
        sizes.push(batch.unwrap().num_rows());
    }
    assert_eq!(sizes, [1024, 1024, 450]);
    // Equal texts of a batch are computed once: rows 1500 to 2047 are in the second batch, with rows 1024 to 1499.
    assert_eq!(models.counts().texts, 2498);
    let plan = rows(&context, &format!("EXPLAIN {sql}")).await.unwrap();
    let plan = format!("{plan:?}");
    assert!(plan.contains("RegroupExec: rows=1024"), "{plan}");
}

#[tokio::test]
async fn a_failed_query_does_not_hinder_the_next() {
    let context = local();
    context.sql("SET qwen3.model = '/no/such/model'").await.unwrap();
    let message = error(&context, "SELECT embed('It rains.')").await;
    assert!(message.contains("there is no model at `/no/such/model`"), "{message}");
    context.sql("SET qwen3.model = ''").await.unwrap();
    context.sql("SET qwen3.max_tokens = 16").await.unwrap();
    let long = format!("SELECT embed('{}')", "rain ".repeat(100));
    let message = error(&context, &long).await;
    assert!(message.contains("the limit is 16") && message.contains("rain rain"), "{message}");
    context.sql("SET qwen3.truncate = true").await.unwrap();
    assert_eq!(rows(&context, &long).await.unwrap().num_rows(), 1);
    // The process has a model now.
    context.sql("SET qwen3.model = 'another'").await.unwrap();
    let message = error(&context, "SELECT embed('It rains.')").await;
    assert!(message.contains("this process uses the model `qwen3-embed-demo`"), "{message}");
}

#[tokio::test]
async fn a_process_that_only_plans_needs_the_number_of_dimensions() {
    let context = context(&Functions::on_executors());
    let message = error(&context, "SELECT embed('It rains.')").await;
    assert!(message.contains("SET qwen3.dimensions = 1024"), "{message}");
    context.sql("SET qwen3.dimensions = 64").await.unwrap();
    let frame = context.sql("SELECT embed('It rains.') AS v").await.unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    assert_eq!(plan.schema().field(0).data_type().to_string().matches("64").count(), 1);
    let message = error(&context, "SELECT embed('It rains.')").await;
    assert!(message.contains("executors compute the functions"), "{message}");
}

/// DataFusion moves projections below sorts and into scans. A model is called for the rows of the result only.
#[tokio::test]
async fn sorted_and_limited_queries_compute_few_rows() {
    let models = Arc::new(Models::new(ModelSettings::default()));
    let context = context(&Functions::local(models.clone()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("texts.parquet");
    let copy = format!(
        "COPY (SELECT n, n % 97 AS d, concat('number ', CAST(n AS VARCHAR)) AS text \
         FROM generate_series(1, 3000) AS numbers(n)) TO '{}'",
        path.display()
    );
    context.sql(&copy).await.unwrap().collect().await.unwrap();
    context.register_parquet("texts", path.to_str().unwrap(), Default::default()).await.unwrap();
    let sorted = "SELECT n, embed(text) AS v FROM (SELECT * FROM texts ORDER BY d DESC, n LIMIT 3)";
    assert_eq!(rows(&context, sorted).await.unwrap().num_rows(), 3);
    assert_eq!(models.counts().texts, 3);
    let limited = "SELECT n, embed(text) AS v FROM texts LIMIT 5";
    assert_eq!(rows(&context, limited).await.unwrap().num_rows(), 5);
    assert_eq!(models.counts().texts, 8);
    // All rows, in batches of the model.
    let all = context.sql("SELECT n, embed(text) AS v FROM texts").await.unwrap();
    let plan = all.create_physical_plan().await.unwrap();
    let plan = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
    assert!(plan.contains("RegroupExec: rows=1024\n"), "{plan}");
}
