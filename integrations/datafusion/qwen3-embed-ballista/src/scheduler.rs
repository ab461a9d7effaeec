use std::sync::Arc;

use anyhow::{Context, Result};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::{Config, SchedulerConfig};
use ballista_scheduler::scheduler_process::start_server;
use qwen3_embed_datafusion::Functions;

use crate::logging::Logging;
use crate::{http, session};

/// Plans queries and gives their tasks to executors
///
/// Probes: /livez and /metrics on the port of --http-port, /healthz, /readyz and the REST API of Ballista on the port
/// of --bind-port. The scheduler needs no model.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    ballista: Config,
    /// Port of /livez and /metrics
    #[arg(long, value_name = "PORT", default_value_t = 50054)]
    http_port: u16,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let Config { bind_host, bind_port, namespace, external_host, .. } = &args.ballista;
    let log = Logging {
        levels: &args.ballista.log_level_setting,
        dir: args.ballista.log_dir.as_deref(),
        rotation: &args.ballista.log_rotation_policy,
        file_prefix: &format!("scheduler_{namespace}_{external_host}_{bind_port}"),
        threads: args.ballista.print_thread_info,
    };
    log.start()?;
    let address = |port| {
        let address = format!("{bind_host}:{port}");
        address.parse().with_context(|| format!("not an address: {address}"))
    };
    let (grpc, http_address) = (address(*bind_port)?, address(args.http_port)?);
    let functions = Functions::on_executors();
    let config = SchedulerConfig::try_from(args.ballista)?
        .with_override_config_producer(Arc::new(session::config))
        .with_override_session_builder(Arc::new(move |config| session::state(&functions, config)));
    let cluster = BallistaCluster::new_from_config(&config).await?;
    http::serve(http_address, None::<fn() -> bool>, || {}).await?;
    Ok(start_server(cluster, grpc, Arc::new(config)).await?)
}
