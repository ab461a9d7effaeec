use std::sync::Arc;

use anyhow::{Context, Result};
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::BallistaPhysicalExtensionCodec;
use ballista_executor::config::Config;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use datafusion::execution::TaskContext;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use prometheus::{Counter, register_counter};
use qwen3_embed_datafusion::{Functions, Models, Qwen3Options, RegroupRows};
use qwen3_embed_sql::ModelArgs;

use crate::logging::Logging;
use crate::{http, session};

/// Computes the tasks of queries
///
/// Probes: /livez, /readyz and /metrics on the port of --bind-health-port. The models are loaded when a query first
/// needs them, unless --preload is given.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    models: ModelArgs,
    /// Load the embedding model before the executor takes tasks
    #[arg(long)]
    preload: bool,
    #[command(flatten)]
    ballista: Config,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let Config { bind_host, bind_port, bind_health_port, .. } = &args.ballista;
    let host = args.ballista.external_host.as_deref().unwrap_or("localhost");
    let log = Logging {
        levels: &args.ballista.log_level_setting,
        dir: args.ballista.log_dir.as_deref(),
        rotation: &args.ballista.log_rotation_policy,
        file_prefix: &format!("executor_{host}_{bind_port}"),
        threads: args.ballista.print_thread_info,
    };
    log.start()?;
    let http_address = format!("{bind_host}:{bind_health_port}");
    let http_address =
        http_address.parse().with_context(|| format!("not an address: {http_address}"))?;
    let models = Arc::new(Models::new(args.models.settings()));
    if args.preload {
        models.embedder(&Qwen3Options::default())?;
    }
    let functions = Functions::local(models.clone());
    let state = session::state(&functions, session::config())?;
    let mut config = ExecutorProcessConfig::try_from(args.ballista)?;
    config.override_config_producer = Some(Arc::new(session::config));
    config.override_runtime_producer = Some(Arc::new(session::runtime_env));
    config.override_function_registry = Some(Arc::new(BallistaFunctionRegistry::from(&state)));
    config.override_physical_codec = Some(Arc::new(Codec(Default::default())));
    let health = config.health.clone();
    let metrics = Metrics::register()?;
    http::serve(http_address, Some(move || health.is_ready()), move || metrics.update(&models))
        .await?;
    Ok(start_executor_process(Arc::new(config)).await?)
}

/// Ballista's codec of plans, which applies [`RegroupRows`] to the plans that it decodes.
#[derive(Debug)]
struct Codec(BallistaPhysicalExtensionCodec);

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        // The plan of a task is the input of an operator of Ballista, which writes its rows.
        let config = ctx.session_config().options();
        let inputs = inputs.iter().map(|input| RegroupRows.optimize(input.clone(), config));
        let inputs: Vec<_> = inputs.collect::<datafusion::error::Result<_>>()?;
        self.0.try_decode(buf, &inputs, ctx, proto_converter)
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> datafusion::error::Result<()> {
        self.0.try_encode(node, buf, proto_converter)
    }
}

/// The metrics of an executor.
#[derive(Clone)]
struct Metrics {
    texts: Counter,
    pairs: Counter,
    tokens: Counter,
    seconds: Counter,
}

impl Metrics {
    fn register() -> Result<Self> {
        Ok(Self {
            texts: register_counter!("qwen3_embed_texts_total", "Texts that were embedded")?,
            pairs: register_counter!("qwen3_embed_pairs_total", "Pairs that were scored")?,
            tokens: register_counter!("qwen3_embed_tokens_total", "Tokens of the texts and pairs")?,
            seconds: register_counter!("qwen3_embed_model_seconds_total", "Time in the models")?,
        })
    }

    fn update(&self, models: &Models) {
        let counts = models.counts();
        let set = |counter: &Counter, value: f64| counter.inc_by((value - counter.get()).max(0.0));
        set(&self.texts, counts.texts as f64);
        set(&self.pairs, counts.pairs as f64);
        set(&self.tokens, counts.tokens as f64);
        set(&self.seconds, counts.seconds);
    }
}
