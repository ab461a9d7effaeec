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
    /// Embedding model of the executors, of which only the configuration is read here [default: a small model for
    /// demonstrations, which is part of this program]
    #[arg(long, value_name = "PATH or ID", env = "QWEN3_EMBED_MODEL")]
    model: Option<String>,
    #[command(flatten)]
    shell: ShellArgs,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let dimensions = match args.dimensions {
        Some(dimensions) => dimensions,
        None => {
            let model = args.model.map_or_else(Source::demo, Source::from);
            let [_, most] = tokio::task::spawn_blocking(move || model.info()).await??.dimensions();
            most
        }
    };
    let mut config = session::config();
    let options = config.options_mut();
    options.set("qwen3.dimensions", &dimensions.to_string())?;
    options.format.null = "NULL".to_owned();
    let functions = Functions::on_executors();
    let state = session::state(&functions, config)?;
    let context = SessionContext::remote_with_state(&args.scheduler, state).await?;
    // The call above replaces the functions of the session by those of DataFusion.
    functions.add_to(&context);
    args.shell.run(&context).await
}
