use anyhow::Result;
use ballista::prelude::SessionContextExt;
use datafusion::prelude::SessionContext;
use qwen3_embed::Source;
use qwen3_embed_datafusion::Functions;
use qwen3_embed_sql::ShellArgs;

use crate::session;

/// Runs SQL on a cluster
///
/// Functions: embed(text), embed_query(query [, instruction]), rerank(query, document), cosine_similarity(a, b),
/// binary_quantize(vector), hamming(a, b).
///
/// Files that statements name must be at the same place for all executors: in an object store, or in a folder that all
/// of them have.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address of the scheduler
    #[arg(long, value_name = "URL", default_value = "df://localhost:50050")]
    scheduler: String,
    /// Number of dimensions of vectors [default: that of the model]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Embedding model of the executors, by the same name. Only its configuration is read here. Without this flag,
    /// but with --dimensions, any model of the executors is accepted [default: a small model for demonstrations, which
    /// is part of this program]
    #[arg(long, value_name = "PATH or ID", env = "QWEN3_EMBED_MODEL")]
    model: Option<String>,
    #[command(flatten)]
    shell: ShellArgs,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let model = args.model.filter(|model| !model.is_empty());
    let mut config = session::config();
    let options = config.options_mut();
    // Executors with another model refuse the statement.
    let checked = match (&model, args.dimensions) {
        (None, Some(_)) => String::new(),
        (None, None) => Source::demo().to_string(),
        (Some(model), _) => model.clone(),
    };
    options.set("qwen3.model", &checked)?;
    let dimensions = match args.dimensions {
        Some(dimensions) => dimensions,
        None => {
            let model = model.map_or_else(Source::demo, Source::from);
            let [_, most] = tokio::task::spawn_blocking(move || model.info()).await??.dimensions();
            most
        }
    };
    options.set("qwen3.dimensions", &dimensions.to_string())?;
    options.format.null = "NULL".to_owned();
    let functions = Functions::on_executors();
    let state = session::state(&functions, config)?;
    let context = SessionContext::remote_with_state(&args.scheduler, state).await?;
    // The call above replaces the functions of the session by those of DataFusion.
    functions.add_to(&context);
    args.shell.run(&context).await
}
