use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use qwen3_embed::{Device, Embedder, Kernels, Precision, Reranker, ServiceOptions, SpecialTokens};
use qwen3_embed_server::{AppState, Models, ServeOptions, ServerOptions};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::download;
use crate::model::PrecisionArg;

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
    /// What clients call the embedding model, or the reranker if that is alone [default: its path or id]
    #[arg(long, value_name = "NAME", env = "QWEN3_EMBED_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// What clients call the reranker [default: its path or id]
    #[arg(long, value_name = "NAME", env = "QWEN3_EMBED_SERVED_RERANKER_NAME")]
    served_reranker_name: Option<String>,
    /// Address to listen at; 0.0.0.0 is every one of this machine
    #[arg(long, default_value = "127.0.0.1", env = "QWEN3_EMBED_HOST")]
    host: String,
    /// Port to listen at; 0 is any that is free
    #[arg(long, default_value_t = 30000, env = "QWEN3_EMBED_PORT")]
    port: u16,
    /// Key that clients have to send
    #[arg(long, value_name = "KEY", env = "QWEN3_EMBED_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// How weights are kept and multiplied
    #[arg(long, value_enum, default_value = "stored", env = "QWEN3_EMBED_PRECISION")]
    precision: PrecisionArg,
    /// The precision by the name that SGLang has for it: auto, bfloat16 or float32
    #[arg(long, value_enum, conflicts_with = "precision", env = "QWEN3_EMBED_DTYPE")]
    dtype: Option<Dtype>,
    /// Where it runs: cpu, cuda, or cuda:N for the CUDA device of that number
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu, env = "QWEN3_EMBED_DEVICE")]
    device: Device,
    /// Threads that compute [default: one for each core]
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
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, env = "QWEN3_EMBED_DRAIN_TIMEOUT")]
    drain_timeout: f64,
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

/// Reads a number from 1 on.
fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Reads an origin, or a `*`, as a browser sends it.
fn origin(text: &str) -> Result<String, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty()
            && !host.is_empty()
            && text.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
            && !host.contains(['/', '?', '#', '@'])
    });
    if is_origin || ["*", "null"].contains(&text) {
        return Ok(text.to_owned());
    }
    Err("expected *, or an origin in lower case without a path, such as https://example.org"
        .to_owned())
}

pub(crate) fn run(args: Args) -> Result<()> {
    log(args.log_format);
    if args.trust_remote_code {
        tracing::warn!("--trust-remote-code does nothing: no code of a repository is ever run");
    }
    if args.tokenizer_mode.is_some() {
        tracing::warn!("--tokenizer-mode does nothing: there is one tokenizer, and it is fast");
    }
    let drain_timeout = Duration::try_from_secs_f64(args.drain_timeout);
    let drain_timeout = drain_timeout.context("--drain-timeout")?;
    let precision = args.precision()?;
    raise_file_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = runtime.block_on(serve(args, precision, drain_timeout));
    // What is still loading does not keep the process.
    runtime.shutdown_background();
    result
}

async fn serve(args: Args, precision: Precision, drain_timeout: Duration) -> Result<()> {
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
    let options = ServeOptions { drain_timeout, ..ServeOptions::default() };
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
        ServiceOptions {
            batch_tokens: self.batch_tokens(),
            max_waiting_texts: self.max_queued_texts,
            ..ServiceOptions::default()
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
                builder = builder.batch_tokens(self.batch_tokens());
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
                let name = self.served_model_name.as_ref().unwrap_or(path).clone();
                Some((name, builder.build()?))
            }
            None => None,
        };
        let reranker = match &self.reranker_path {
            Some(path) => {
                let mut builder = Reranker::builder(path.as_str()).hub(download::hub());
                builder = builder.precision(precision).device(self.device);
                builder = builder.batch_tokens(self.batch_tokens());
                if let Some(max_length) = self.max_length {
                    builder = builder.max_tokens(max_length);
                }
                if let Some(threads) = self.threads {
                    builder = builder.threads(threads);
                }
                tracing::info!("loading {path}");
                let name = self.served_reranker_name.as_ref();
                let of_both = self.served_model_name.as_ref().filter(|_| embedder.is_none());
                Some((name.or(of_both).unwrap_or(path).clone(), builder.build()?))
            }
            None => None,
        };
        if let (Some((embedder, _)), Some((reranker, _))) = (&embedder, &reranker) {
            ensure!(embedder != reranker, "both models would be called {embedder}");
        }
        Ok(Models { embedder, reranker })
    }

    fn precision(&self) -> Result<Precision> {
        Ok(match self.dtype {
            None => self.precision.into(),
            Some(Dtype::Auto) => Precision::Stored,
            Some(Dtype::Bfloat16) => Precision::Bf16,
            Some(Dtype::Float32) => Precision::F32,
            Some(Dtype::Float16) => {
                bail!("float16 is no precision here: choose bfloat16, which the models are made in")
            }
        })
    }
}

/// What runs, and how.
fn describe(models: &Models, device: Device) -> String {
    let place = match device {
        Device::Cpu => format!("{} kernels", Kernels::current().name),
        device => device.to_string(),
    };
    let embedder = models.embedder.as_ref().map(|(name, model)| {
        let (dimensions, precision) = (model.dimensions(), model.precision());
        let (threads, max_tokens) = (model.threads(), model.max_tokens());
        format!(
            "{name}, {dimensions} dimensions, {precision} on {place}, {threads} threads, texts of at most \
             {max_tokens} tokens"
        )
    });
    let reranker = models.reranker.as_ref().map(|(name, model)| {
        let (precision, threads) = (model.precision(), model.threads());
        let max_tokens = model.max_tokens();
        format!(
            "reranker {name}, {precision} on {place}, {threads} threads, prompts of at most {max_tokens} \
             tokens"
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

/// What tells the process to end: SIGTERM and SIGINT.
#[cfg(unix)]
struct EndSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl EndSignals {
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (terminate, interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What tells the process to end: Ctrl-C.
#[cfg(not(unix))]
struct EndSignals;

#[cfg(not(unix))]
impl EndSignals {
    fn new() -> Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
