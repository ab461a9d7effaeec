mod signals;
mod values;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use qwen3_embed::{Device, Kernels, Precision, ServiceOptions, Source, SpecialTokens};
use qwen3_embed_server::{AppState, ModelNames, Models, ServeOptions, ServerOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::environment;
use crate::model::{self, ModelArgs, precision_help};
use signals::EndSignals;
use values::{count, model_name, origin, seconds, some_seconds};

/// Serve models over HTTP, with the APIs of OpenAI and text-embeddings-inference, and a playground for the browser
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Embedding model: a folder, a GGUF file, or an id on the Hugging Face Hub [default: a small model for
    /// demonstrations, which is part of this program, or no embedding model with --reranker-path]
    #[arg(
        long,
        visible_alias = "model",
        value_name = "PATH or ID",
        env = "QWEN3_EMBED_MODEL_PATH"
    )]
    model_path: Option<String>,
    /// Reranker, instead of an embedding model or in addition to one: a folder, a GGUF file, or an id. An id may be
    /// followed by @REVISION: a branch, a tag or a commit
    #[arg(long, value_name = "PATH or ID", env = "QWEN3_EMBED_RERANKER_PATH")]
    reranker_path: Option<String>,
    /// Folder or id of a LoRA adapter, which is merged into the embedding model
    #[arg(long, value_name = "PATH or ID", requires = "model_path", env = "QWEN3_EMBED_ADAPTER")]
    adapter: Option<String>,
    /// Branch, tag or commit of the embedding model, if --model-path is an id. For the reranker see --reranker-path
    #[arg(long, requires = "model_path", env = "QWEN3_EMBED_REVISION")]
    revision: Option<String>,
    /// Names of the embedding model, or of the reranker if there is no embedding model. For several names, repeat
    /// the flag, or separate them with spaces or commas. Responses contain the first name, and /v1/models lists all
    /// names [default: the path or id]
    #[arg(
        long,
        value_name = "NAME",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = model_name,
        env = "QWEN3_EMBED_SERVED_MODEL_NAME"
    )]
    served_model_name: Vec<String>,
    /// Names of the reranker, in the format of --served-model-name [default: its path or id]
    #[arg(
        long,
        value_name = "NAME",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = model_name,
        env = "QWEN3_EMBED_SERVED_RERANKER_NAME"
    )]
    served_reranker_name: Vec<String>,
    /// Reject requests whose model name is unknown, with status 404. Without this flag, an unknown name is ignored, and
    /// the path of the request determines the model
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_STRICT_MODEL_NAMES")]
    strict_model_names: bool,
    /// Address to listen on. 0.0.0.0 listens on all network interfaces
    #[arg(long, default_value = "127.0.0.1", env = "QWEN3_EMBED_HOST")]
    host: String,
    /// Port to listen on. 0 chooses a free port
    #[arg(long, default_value_t = 30000, env = "QWEN3_EMBED_PORT")]
    port: u16,
    /// API key that clients must send, except to /livez, /readyz and /health. For /metrics see --public-metrics
    #[arg(long, value_name = "KEY", env = "QWEN3_EMBED_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Serve /metrics without the API key. Without this flag, a scraper must send the key
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_PUBLIC_METRICS")]
    public_metrics: bool,
    #[arg(long, value_name = "PRECISION", default_value_t, env = "QWEN3_EMBED_PRECISION", help = precision_help())]
    precision: Precision,
    /// Precision by its name in SGLang, instead of --precision
    #[arg(long, value_enum, conflicts_with = "precision", env = "QWEN3_EMBED_DTYPE")]
    dtype: Option<Dtype>,
    /// Device that runs the models: cpu, cuda, or cuda:N for the CUDA device with index N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu, env = "QWEN3_EMBED_DEVICE")]
    device: Device,
    /// Copy the token embeddings into memory when the model is loaded. Otherwise they are read from the model's file,
    /// and texts wait for the disk when memory is short. On devices other than the CPU, this flag has no effect
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_PRELOAD")]
    preload: bool,
    /// Read all weights before the models are loaded, to check that none of them is NaN or infinite. Otherwise only
    /// samples are checked
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_VERIFY")]
    verify: bool,
    /// Number of threads that compute, and maximum number of threads that tokenize [default: one for each core, or
    /// fewer if the CPU quota of the container is smaller]
    #[arg(long, value_name = "N", value_parser = count(), env = "QWEN3_EMBED_THREADS")]
    threads: Option<usize>,
    /// Maximum number of tokens that are computed together. A larger number raises the throughput, a smaller number
    /// lowers the latency [default: 1024, or 8192 on a CUDA device]
    #[arg(long, visible_alias = "batch-tokens", value_name = "N", value_parser = count(), env = "QWEN3_EMBED_MAX_BATCH_TOKENS")]
    max_batch_tokens: Option<usize>,
    /// Size of the queue in texts. While this many texts wait, requests are rejected with status 429. Choose a few
    /// times --max-client-batch-size, because small requests are rejected while the texts of a large request fill the
    /// queue
    #[arg(long, value_name = "N", value_parser = count(), default_value_t = ServiceOptions::new().max_waiting_texts, env = "QWEN3_EMBED_MAX_QUEUED_TEXTS")]
    max_queued_texts: usize,
    /// Maximum number of concurrent requests. Further requests are rejected with status 429
    #[arg(long, value_name = "N", value_parser = count(), default_value_t = ServerOptions::default().max_concurrent_requests, env = "QWEN3_EMBED_MAX_CONCURRENT_REQUESTS")]
    max_concurrent_requests: usize,
    /// Maximum number of texts in a request
    #[arg(long, value_name = "N", value_parser = count(), default_value_t = ServerOptions::default().max_client_batch_size, env = "QWEN3_EMBED_MAX_CLIENT_BATCH_SIZE")]
    max_client_batch_size: usize,
    /// Maximum length of a text, or of a reranker's prompt, in tokens [default: the model's limit, but at most
    /// 32768, or 8192 for a reranker]
    #[arg(long, alias = "context-length", visible_alias = "max-tokens", value_name = "N", value_parser = count(), env = "QWEN3_EMBED_MAX_LENGTH")]
    max_length: Option<usize>,
    /// Cut off the end of a text that is too long, unless the request sets `truncate` or `truncation_side`. Without
    /// this flag, such a text is an error
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_TRUNCATE")]
    truncate: bool,
    /// Treat special tokens in texts, such as <|im_end|>, as plain text. For a reranker, they are always plain text
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_PLAIN_TEXT")]
    plain_text: bool,
    /// Instruction for requests with neither an instruction nor a prompt name. Without this flag, the texts of such
    /// requests are embedded as documents
    #[arg(long, value_name = "TEXT", env = "QWEN3_EMBED_DEFAULT_INSTRUCT")]
    default_instruct: Option<String>,
    /// Maximum size of a request body in bytes, after decompression
    #[arg(long, value_name = "BYTES", value_parser = count(), default_value_t = ServerOptions::default().payload_limit, env = "QWEN3_EMBED_PAYLOAD_LIMIT")]
    payload_limit: usize,
    /// Origins whose web pages may read responses (CORS), separated by commas. * allows every origin
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = origin,
        env = "QWEN3_EMBED_CORS_ALLOW_ORIGIN"
    )]
    cors_allow_origin: Vec<String>,
    /// Format of the log, which is written to standard error. RUST_LOG filters it
    #[arg(long, value_enum, default_value = "text", env = "QWEN3_EMBED_LOG_FORMAT")]
    log_format: LogFormat,
    /// Seconds that running requests may still take when the server shuts down
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30", env = "QWEN3_EMBED_DRAIN_TIMEOUT")]
    drain_timeout: Duration,
    /// Seconds that an idle connection is kept open. Choose a larger number than the idle timeout of the load balancer,
    /// which is 60 s for most, and 600 s for Google Cloud
    #[arg(long, value_name = "SECONDS", value_parser = some_seconds, default_value = "120", env = "QWEN3_EMBED_KEEP_ALIVE_TIMEOUT")]
    keep_alive_timeout: Duration,
    /// Has no effect. It is accepted for compatibility with command lines of SGLang
    #[arg(long)]
    is_embedding: bool,
    /// Has no effect: code in a model's repository is never run
    #[arg(long)]
    trust_remote_code: bool,
    /// Has no effect: there is only one tokenizer
    #[arg(long, value_name = "MODE")]
    tokenizer_mode: Option<String>,
}

/// The embedding model that is served.
struct EmbedderSource {
    source: Source,
    /// The default served name.
    name: String,
    /// A sentence about the model for the users of the server.
    notice: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    /// The precision of the checkpoint
    Auto,
    Bfloat16,
    #[value(alias = "float")]
    Float32,
    // Accepted by the parser, so that the error can explain why it is not supported.
    #[value(alias = "half", hide = true)]
    Float16,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(crate) fn run(args: Args) -> Result<()> {
    log(args.log_format);
    for (variable, value) in environment::ignored::<Args>() {
        tracing::warn!(
            "{variable}={value} is ignored: it is the address of a Kubernetes service, not a port"
        );
    }
    if args.trust_remote_code {
        tracing::warn!("`--trust-remote-code` has no effect: code in a repository is never run");
    }
    if args.tokenizer_mode.is_some() {
        tracing::warn!("`--tokenizer-mode` has no effect: there is only one tokenizer");
    }
    let precision = args.precision()?;
    let embedder = args.embedder()?;
    if let Some(notice) = embedder.as_ref().and_then(|embedder| embedder.notice.as_ref()) {
        tracing::info!("{notice}");
    }
    raise_file_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = runtime.block_on(serve(args, embedder, precision));
    // Do not wait for a model that is still being loaded.
    runtime.shutdown_background();
    result
}

async fn serve(args: Args, embedder: Option<EmbedderSource>, precision: Precision) -> Result<()> {
    let address = (args.host.as_str(), args.port);
    let mut signals = EndSignals::new()?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("{}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let notice = embedder.as_ref().and_then(|embedder| embedder.notice.clone());
    let state = AppState::new(ServerOptions { notice, ..args.server_options() });
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        // Dropping the sender has the same effect as sending.
        let _ = stopped.await;
    };
    let Args { drain_timeout, keep_alive_timeout, .. } = args;
    let options = ServeOptions { drain_timeout, keep_alive_timeout, ..ServeOptions::default() };
    let server = qwen3_embed_server::serve(listener, state.clone(), options, shutdown);
    let server = tokio::spawn(server);
    // While the models are loaded, the server already responds to probes and to clients.
    writeln!(io::stdout(), "listening on http://{address}")?;
    let start = async {
        let (options, device) = (args.service_options(), args.device);
        let models = tokio::task::spawn_blocking(move || args.load(embedder, precision)).await??;
        let described = describe(&models, device);
        state.start(models, options).await?;
        tracing::info!("ready: {described}");
        anyhow::Ok(())
    };
    tokio::select! {
        started = start => if let Err(error) = started {
            server.abort();
            return Err(error);
        },
        // A signal during loading ends the server at once, because no request has been accepted yet.
        () = signals.next() => return Ok(()),
    }
    signals.next().await;
    drop(stop);
    tokio::spawn(async move {
        signals.next().await;
        // A second signal ends the process without waiting for requests.
        process::exit(130);
    });
    Ok(server.await??)
}

impl Args {
    fn server_options(&self) -> ServerOptions {
        ServerOptions {
            // A key that comes from a file may end with a line break, but the value of a header cannot.
            api_key: self
                .api_key
                .as_deref()
                .map(str::trim)
                .filter(|key| !key.is_empty())
                .map(Into::into),
            public_metrics: self.public_metrics,
            strict_model_names: self.strict_model_names,
            cors_allow_origin: self.cors_allow_origin.clone(),
            default_instruct: self.default_instruct.clone(),
            truncate: self.truncate,
            max_concurrent_requests: self.max_concurrent_requests,
            max_client_batch_size: self.max_client_batch_size,
            payload_limit: self.payload_limit,
            ..ServerOptions::default()
        }
    }

    fn service_options(&self) -> ServiceOptions {
        let mut options =
            ServiceOptions::for_device(self.device).max_waiting_texts(self.max_queued_texts);
        if let Some(batch_tokens) = self.max_batch_tokens {
            options.batch_tokens = batch_tokens;
        }
        if let Some(threads) = self.threads {
            options.tokenizer_threads = options.tokenizer_threads.min(threads);
        }
        options
    }

    /// The embedding model: the one that `--model-path` names, none if there is only a reranker, and otherwise the
    /// bundled model.
    fn embedder(&self) -> Result<Option<EmbedderSource>> {
        let (source, name, notice) = match (&self.model_path, &self.revision) {
            (None, _) if self.reranker_path.is_some() => return Ok(None),
            (None, _) => {
                let (source, about) = model::bundled("--model-path Qwen/Qwen3-Embedding-0.6B")?;
                let name = source.to_string();
                (source, name, Some(about))
            }
            (Some(path), Some(_)) if Path::new(path).exists() => {
                bail!("`--revision` is for ids on the hub, but {path} is on this machine")
            }
            (Some(path), Some(revision)) => {
                (format!("{path}@{revision}").into(), path.clone(), None)
            }
            (Some(path), None) => (path.into(), path.clone(), None),
        };
        Ok(Some(EmbedderSource { source, name, notice }))
    }

    /// The settings of a model. The model and the service have the same batch budget.
    fn model_args(&self, precision: Precision) -> ModelArgs {
        ModelArgs {
            adapter: None,
            precision,
            preload: self.preload,
            verify: self.verify,
            device: self.device,
            threads: self.threads,
            max_tokens: self.max_length,
            batch_tokens: Some(self.service_options().batch_tokens),
        }
    }

    fn load(&self, embedder: Option<EmbedderSource>, precision: Precision) -> Result<Models> {
        let embedder = match embedder {
            Some(EmbedderSource { source, name, .. }) => {
                let adapter = self.adapter.clone();
                let settings = ModelArgs { adapter, ..self.model_args(precision) };
                let mut builder = settings.embedder(source);
                if self.plain_text {
                    builder = builder.special_tokens(SpecialTokens::PlainText);
                }
                tracing::info!("loading {name}");
                Some((names(&self.served_model_name, &name), builder.build()?))
            }
            None => None,
        };
        let reranker = match &self.reranker_path {
            Some(path) => {
                tracing::info!("loading {path}");
                let has_own_names = !self.served_reranker_name.is_empty() || embedder.is_some();
                let given = if has_own_names {
                    &self.served_reranker_name
                } else {
                    &self.served_model_name
                };
                let reranker = self.model_args(precision).reranker(path).build()?;
                Some((names(given, path), reranker))
            }
            None => None,
        };
        if let (Some((embedder, _)), Some((reranker, _))) = (&embedder, &reranker) {
            let shared = embedder.all().find(|name| reranker.has(name));
            ensure!(
                shared.is_none(),
                "both models would have the name {}: set other names with `--served-model-name` or \
                 `--served-reranker-name`",
                shared.unwrap_or_default()
            );
        }
        Ok(Models { embedder, reranker })
    }

    fn precision(&self) -> Result<Precision> {
        Ok(match self.dtype {
            None => self.precision,
            Some(Dtype::Auto) => Precision::Stored,
            Some(Dtype::Bfloat16) => Precision::Bf16,
            Some(Dtype::Float32) => Precision::F32,
            Some(Dtype::Float16) => {
                bail!("float16 is not supported: use bfloat16, in which the models were trained")
            }
        })
    }
}

/// The names of a model: the given names, or the path or id of the model if no name is given.
fn names(given: &[String], path: &str) -> ModelNames {
    match given {
        [served, others @ ..] => ModelNames::new(served).with_others(others.to_vec()),
        [] => path.into(),
    }
}

/// Describes the loaded models, for the log.
fn describe(models: &Models, device: Device) -> String {
    let place = match device {
        Device::Cpu => format!("{} kernels", Kernels::current().name),
        device => device.to_string(),
    };
    let embedder = models.embedder.as_ref().map(|(names, model)| {
        let (dimensions, precision) = (model.dimensions(), model.precision());
        let (threads, max_tokens) = (model.threads(), model.max_tokens());
        format!(
            "{}, {dimensions} dimensions, {precision} on {place}, {threads} threads, texts of at most \
             {max_tokens} tokens",
            names.served()
        )
    });
    let reranker = models.reranker.as_ref().map(|(names, model)| {
        let (precision, threads) = (model.precision(), model.threads());
        let max_tokens = model.max_tokens();
        format!(
            "reranker {}, {precision} on {place}, {threads} threads, prompts of at most {max_tokens} \
             tokens",
            names.served()
        )
    });
    let described: Vec<String> = embedder.into_iter().chain(reranker).collect();
    described.join("; ")
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Raises the limit of open files, because each connection needs a file descriptor and the usual limit is low.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
