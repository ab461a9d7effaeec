//! A SQL shell with functions for Qwen3 embedding and reranking models.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use datafusion::config::ConfigOptions;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_cli::catalog::DynamicObjectStoreCatalog;
use qwen3_embed_datafusion::{Functions, Models, Server, ServerSettings};
use qwen3_embed_sql::{ModelArgs, ShellArgs};

/// Runs SQL over Parquet, CSV and JSON files, with functions for Qwen3 embedding and reranking models
///
/// Functions: embed(text), embed_query(query [, instruction]), rerank(query, document), cosine_similarity(a, b),
/// binary_quantize(vector), hamming(a, b).
///
/// Example: qwen3-embed-sql -c "COPY (SELECT id, embed(text) AS vector FROM 'docs.parquet') TO 'vectors.parquet'"
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    shell: ShellArgs,
    #[command(flatten)]
    models: ModelArgs,
    /// Number of dimensions of vectors [default: that of the model]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Base address of a server that computes instead of this process, such as http://localhost:8000/v1. --model and
    /// --reranker are then names of the server's models
    #[arg(long, value_name = "URL", requires = "model")]
    server: Option<String>,
    /// Key of the server
    #[arg(
        long,
        value_name = "KEY",
        env = "QWEN3_EMBED_API_KEY",
        requires = "server",
        hide_env_values = true
    )]
    api_key: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let functions = match &cli.server {
        None => Functions::local(Arc::new(Models::new(cli.models.settings()))),
        Some(url) => {
            let settings = ServerSettings {
                url: url.clone(),
                api_key: cli.api_key.clone(),
                model: cli.models.model.clone().unwrap_or_default(),
                reranker: cli.models.reranker.clone(),
                dimensions: cli.dimensions,
            };
            Functions::remote(&Arc::new(Server::connect(settings).await?))
        }
    };
    let mut options = ConfigOptions::from_env().context("DATAFUSION_ variables")?;
    options.format.null = "NULL".to_owned();
    let config = SessionConfig::from(options).with_information_schema(true);
    let mut config = Functions::configure(config);
    if let Some(dimensions) = cli.dimensions {
        config.options_mut().set("qwen3.dimensions", &dimensions.to_string())?;
    }
    let state = SessionStateBuilder::new_with_default_features().with_config(config);
    let context = SessionContext::new_with_state(functions.register(state).build());
    let context = context.enable_url_table();
    context.refresh_catalogs().await?;
    // Object stores of addresses such as s3://bucket/folder/ are found when a statement names them.
    let (catalogs, state) = (context.state().catalog_list().clone(), context.state_weak_ref());
    context.register_catalog_list(Arc::new(DynamicObjectStoreCatalog::new(catalogs, state)));
    cli.shell.run(&context).await
}
