mod signals;
mod values;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use qwen3_embed::{Device, Embedder, Kernels, Precision, Reranker, ServiceOptions, SpecialTokens};
use qwen3_embed_server::{AppState, ModelNames, Models, ServeOptions, ServerOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::{download, environment};
use signals::EndSignals;
use values::{count, model_name, origin, seconds, some_seconds};

/// Serve a model over HTTP, to clients of OpenAI and text-embeddings-inference and to browsers
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The embedding model: a folder, a GGUF file, or an id of the hub
    #[arg(
        long,
        alias = "model",
        value_name = "PATH or ID",
        required_unless_present = "reranker_path",
        env = "QWEN3_EMBED_MODEL_PATH"
    )]
    model_path: Option<String>,
    /// The reranker, alone or beside an embedding model; of an id of the hub, @REVISION behind it names the
    /// branch, tag or commit
    #[arg(long, value_name = "PATH or ID", env = "QWEN3_EMBED_RERANKER_PATH")]
    reranker_path: Option<String>,
    /// Folder or id of a LoRA adapter that is added to the embedding model
    #[arg(long, value_name = "PATH or ID", requires = "model_path", env = "QWEN3_EMBED_ADAPTER")]
    adapter: Option<String>,
    /// Branch, tag or commit of the embedding model, if that is an id of the hub; for the reranker see
    /// --reranker-path
    #[arg(long, requires = "model_path", env = "QWEN3_EMBED_REVISION")]
    revision: Option<String>,
    /// Names of the embedding model, or of the reranker if that is alone: several are given by repeating the
    /// flag, or with spaces or commas between them. Responses have the first one, /v1/models lists all
    /// [default: the path or id]
    #[arg(
        long,
        value_name = "NAME",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = model_name,
        env = "QWEN3_EMBED_SERVED_MODEL_NAME"
    )]
    served_model_name: Vec<String>,
    /// Names of the reranker, given likewise [default: its path or id]
    #[arg(
        long,
        value_name = "NAME",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = model_name,
        env = "QWEN3_EMBED_SERVED_RERANKER_NAME"
    )]
    served_reranker_name: Vec<String>,
    /// Refuse requests for a model of any other name with 404; otherwise the model of the kind that the route
    /// needs answers them
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_STRICT_MODEL_NAMES")]
    strict_model_names: bool,
    /// Address to listen at; 0.0.0.0 is every one of this machine
    #[arg(long, default_value = "127.0.0.1", env = "QWEN3_EMBED_HOST")]
    host: String,
    /// Port to listen at; 0 is any that is free
    #[arg(long, default_value_t = 30000, env = "QWEN3_EMBED_PORT")]
    port: u16,
    /// Key that clients have to send, except to /livez, /readyz and /health; for /metrics see --public-metrics
    #[arg(long, value_name = "KEY", env = "QWEN3_EMBED_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Answer /metrics without the key; otherwise a scraper has to send the key
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_PUBLIC_METRICS")]
    public_metrics: bool,
    /// How weights are stored and multiplied. `stored`, also called `auto`: as the checkpoint stores them, bf16 (f16
    /// too), f32, or int8 for GGUF files in few bits. `f32`: exact, 4 bytes for each weight. `bf16`: 2 bytes. `int8`:
    /// about 1 byte, or less for GGUF files in few bits
    #[arg(long, value_name = "PRECISION", default_value_t, env = "QWEN3_EMBED_PRECISION")]
    precision: Precision,
    /// The precision by the name that SGLang has for it: auto, bfloat16 or float32
    #[arg(long, value_enum, conflicts_with = "precision", env = "QWEN3_EMBED_DTYPE")]
    dtype: Option<Dtype>,
    /// Where it runs: cpu, cuda, or cuda:N for the CUDA device of that number
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu, env = "QWEN3_EMBED_DEVICE")]
    device: Device,
    /// Copy the token embeddings into memory, so that no text waits for the disk when memory is short
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_PRELOAD")]
    preload: bool,
    /// Threads that compute, and at most as many that tokenize [default: one for each core, or as many as the CPU
    /// quota of the container allows]
    #[arg(long, value_name = "N", value_parser = count(), env = "QWEN3_EMBED_THREADS")]
    threads: Option<usize>,
    /// Tokens that are computed together [default: 1024, or 8192 on a CUDA device]
    #[arg(long, value_name = "N", value_parser = count(), env = "QWEN3_EMBED_MAX_BATCH_TOKENS")]
    max_batch_tokens: Option<usize>,
    /// Texts that may wait; while so many do, requests are refused with 429. Should be a few times
    /// --max-client-batch-size, or one large request has the small ones refused
    #[arg(long, value_name = "N", value_parser = count(), default_value_t = ServiceOptions::default().max_waiting_texts, env = "QWEN3_EMBED_MAX_QUEUED_TEXTS")]
    max_queued_texts: usize,
    /// Requests that are worked on at once; further ones are refused with 429
    #[arg(long, value_name = "N", value_parser = count(), default_value_t = ServerOptions::default().max_concurrent_requests, env = "QWEN3_EMBED_MAX_CONCURRENT_REQUESTS")]
    max_concurrent_requests: usize,
    /// Texts that one request may have
    #[arg(long, value_name = "N", value_parser = count(), default_value_t = ServerOptions::default().max_client_batch_size, env = "QWEN3_EMBED_MAX_CLIENT_BATCH_SIZE")]
    max_client_batch_size: usize,
    /// The longest text, or the longest prompt of a reranker, in tokens [default: what the model is made for]
    #[arg(long, alias = "context-length", value_name = "N", value_parser = count(), env = "QWEN3_EMBED_MAX_LENGTH")]
    max_length: Option<usize>,
    /// Cut longer texts where a request does not say; otherwise they are errors
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_TRUNCATE")]
    truncate: bool,
    /// Take what spells a special token, such as <|im_end|>, as plain text, as a reranker always does
    #[arg(long, value_parser = BoolishValueParser::new(), env = "QWEN3_EMBED_PLAIN_TEXT")]
    plain_text: bool,
    /// Instruction of texts whose request names none; otherwise they are embedded as documents
    #[arg(long, value_name = "TEXT", env = "QWEN3_EMBED_DEFAULT_INSTRUCT")]
    default_instruct: Option<String>,
    /// The largest body of a request, in bytes, after it is decompressed
    #[arg(long, value_name = "BYTES", value_parser = count(), default_value_t = ServerOptions::default().payload_limit, env = "QWEN3_EMBED_PAYLOAD_LIMIT")]
    payload_limit: usize,
    /// Origins, divided by commas, whose pages may read the answers; * is any
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = origin,
        env = "QWEN3_EMBED_CORS_ALLOW_ORIGIN"
    )]
    cors_allow_origin: Vec<String>,
    /// How log lines are written, to standard error; RUST_LOG says which
    #[arg(long, value_enum, default_value = "text", env = "QWEN3_EMBED_LOG_FORMAT")]
    log_format: LogFormat,
    /// Seconds that requests have to finish when the server is told to end
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30", env = "QWEN3_EMBED_DRAIN_TIMEOUT")]
    drain_timeout: Duration,
    /// Seconds that a connection is kept open without a request. It has to be longer than load balancers keep
    /// connections: 60 s for most, 600 s for those of Google Cloud
    #[arg(long, value_name = "SECONDS", value_parser = some_seconds, default_value = "120", env = "QWEN3_EMBED_KEEP_ALIVE_TIMEOUT")]
    keep_alive_timeout: Duration,
    /// Does nothing: for command lines that were written for SGLang
    #[arg(long)]
    is_embedding: bool,
    /// Does nothing: no code of a model's repository is ever run
    #[arg(long)]
    trust_remote_code: bool,
    /// Does nothing: there is one tokenizer, and it is fast
    #[arg(long, value_name = "MODE")]
    tokenizer_mode: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    /// As the weights are stored
    Auto,
    Bfloat16,
    #[value(alias = "float")]
    Float32,
    // Refused with the reason.
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
        tracing::warn!("--trust-remote-code does nothing: no code of a repository is ever run");
    }
    if args.tokenizer_mode.is_some() {
        tracing::warn!("--tokenizer-mode does nothing: there is one tokenizer, and it is fast");
    }
    let precision = args.precision()?;
    raise_file_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = runtime.block_on(serve(args, precision));
    // What is still loading does not keep the process.
    runtime.shutdown_background();
    result
}

async fn serve(args: Args, precision: Precision) -> Result<()> {
    let address = (args.host.as_str(), args.port);
    let mut signals = EndSignals::new()?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("{}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let state = AppState::new(args.server_options());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        // A sender that is dropped says the same.
        let _ = stopped.await;
    };
    let Args { drain_timeout, keep_alive_timeout, .. } = args;
    let options = ServeOptions { drain_timeout, keep_alive_timeout, ..ServeOptions::default() };
    let server = qwen3_embed_server::serve(listener, state.clone(), options, shutdown);
    let server = tokio::spawn(server);
    // Probes and clients that come now are told that it is loading.
    writeln!(io::stdout(), "listening on http://{address}")?;
    let start = async {
        let (options, device) = (args.service_options(), args.device);
        let models = tokio::task::spawn_blocking(move || args.load(precision)).await??;
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
        // Nothing was accepted yet.
        () = signals.next() => return Ok(()),
    }
    signals.next().await;
    drop(stop);
    tokio::spawn(async move {
        signals.next().await;
        // Whoever asks twice does not want to wait.
        process::exit(130);
    });
    Ok(server.await??)
}

impl Args {
    fn server_options(&self) -> ServerOptions {
        ServerOptions {
            // A key from a file may end with its line; no header has white space around what it says.
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
        let default = ServiceOptions::default();
        ServiceOptions {
            batch_tokens: self.batch_tokens(),
            max_waiting_texts: self.max_queued_texts,
            tokenizer_threads: self
                .threads
                .map_or(default.tokenizer_threads, |n| n.min(default.tokenizer_threads)),
            ..default
        }
    }

    fn batch_tokens(&self) -> usize {
        self.max_batch_tokens.unwrap_or(match self.device {
            Device::Cpu => ServiceOptions::default().batch_tokens,
            // A device has more to fill, and is done with it sooner.
            _ => 8192,
        })
    }

    fn load(&self, precision: Precision) -> Result<Models> {
        let embedder = match &self.model_path {
            Some(path) => {
                let source = match &self.revision {
                    Some(revision) if !Path::new(path).exists() => format!("{path}@{revision}"),
                    Some(_) => {
                        bail!("--revision is for ids of the hub, and {path} is on this machine")
                    }
                    None => path.clone(),
                };
                let mut builder = Embedder::builder(source.as_str()).hub(download::hub());
                builder = builder.precision(precision).device(self.device);
                builder = builder.batch_tokens(self.batch_tokens()).preload(self.preload);
                if self.plain_text {
                    builder = builder.special_tokens(SpecialTokens::PlainText);
                }
                if let Some(adapter) = &self.adapter {
                    builder = builder.adapter(adapter.as_str());
                }
                if let Some(max_length) = self.max_length {
                    builder = builder.max_tokens(max_length);
                }
                if let Some(threads) = self.threads {
                    builder = builder.threads(threads);
                }
                tracing::info!("loading {path}");
                Some((names(&self.served_model_name, path), builder.build()?))
            }
            None => None,
        };
        let reranker = match &self.reranker_path {
            Some(path) => {
                let mut builder = Reranker::builder(path.as_str()).hub(download::hub());
                builder = builder.precision(precision).device(self.device);
                builder = builder.batch_tokens(self.batch_tokens()).preload(self.preload);
                if let Some(max_length) = self.max_length {
                    builder = builder.max_tokens(max_length);
                }
                if let Some(threads) = self.threads {
                    builder = builder.threads(threads);
                }
                tracing::info!("loading {path}");
                let of_this = !self.served_reranker_name.is_empty() || embedder.is_some();
                let given =
                    if of_this { &self.served_reranker_name } else { &self.served_model_name };
                Some((names(given, path), builder.build()?))
            }
            None => None,
        };
        if let (Some((embedder, _)), Some((reranker, _))) = (&embedder, &reranker) {
            let shared = embedder.all().find(|name| reranker.has(name));
            ensure!(shared.is_none(), "both models would be called {}", shared.unwrap_or_default());
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
                bail!("float16 is no precision here: choose bfloat16, which the models are made in")
            }
        })
    }
}

/// The names that a model was given, or else its path or id.
fn names(given: &[String], path: &str) -> ModelNames {
    match given {
        [served, others @ ..] => ModelNames::new(served).with_others(others.to_vec()),
        [] => path.into(),
    }
}

/// What runs, and how.
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

/// Each connection takes a file descriptor, and the usual limit is low.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
