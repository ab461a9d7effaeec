//! A load test of the server on the loopback interface: the overhead of serving, latencies, and behavior under
//! overload.
//!
//! ```text
//! cargo bench --package qwen3-embed-server --bench load -- --model FOLDER [--precision bf16] [--words 8] [--seconds 20]
//! ```
//!
//! The server, the model and the clients run in one process and share its cores. Texts consist of random words, eight
//! words by default, so they have almost no common prefixes. Each round measures all variants that are compared, and
//! ratios are computed within a round.

#![expect(clippy::print_stdout, reason = "the benchmark reports to the terminal")]

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use qwen3_embed::{Embedder, Precision, ServiceOptions};
use qwen3_embed_server::{AppState, Models, ServeOptions, ServerOptions, serve};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

type Error = Box<dyn std::error::Error + Send + Sync>;

const CLIENTS: usize = 32;
const ROUNDS: usize = 3;

/// Maximum number of waiting texts. It is small, so that requests are refused after a few seconds of overload.
const MAX_WAITING: usize = 64;

struct Load {
    state: AppState,
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Number of words of a text.
    words: usize,
    /// Counts texts, so that every text is different.
    next_text: AtomicUsize,
}

fn main() -> Result<(), Error> {
    let mut args = env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut model, mut precision, mut words, mut seconds) = (None, Precision::Bf16, 8, 20.0);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} has no value"))?;
        match (arg.as_str(), value.as_str()) {
            ("--model", _) => model = Some(PathBuf::from(value)),
            ("--precision", "f32") => precision = Precision::F32,
            ("--precision", "bf16") => precision = Precision::Bf16,
            ("--precision", "int8") => precision = Precision::Int8,
            ("--words", _) => words = value.parse()?,
            ("--seconds", _) => seconds = value.parse()?,
            _ => return Err(format!("unknown option: {arg} {value}").into()),
        }
    }
    let Some(model) = model else {
        println!("nothing is measured without `--model FOLDER`");
        return Ok(());
    };
    let embedder = Embedder::builder(model).precision(precision).build()?;
    let runtime = Runtime::new()?;
    let load = Arc::new(runtime.block_on(Load::start(embedder, words))?);
    let seconds = Duration::from_secs_f64(seconds);
    let served = saturation(&runtime, &load, seconds)?;
    runtime.block_on(open_loop(&load, served / 2.0, seconds, "half load"))?;
    runtime.block_on(open_loop(&load, served * 3.0, seconds, "overload"))?;
    runtime.block_on(large_response(&load))
}

/// Measures texts per second in three ways: the engine without the server, with as many texts per call as there are
/// clients; one client; and all clients at the same time. Returns the median of the last value.
fn saturation(runtime: &Runtime, load: &Arc<Load>, seconds: Duration) -> Result<f64, Error> {
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let direct = load.direct(seconds)?;
        let one = runtime.block_on(closed_loop(load, 1, seconds))?;
        let all = runtime.block_on(closed_loop(load, CLIENTS, seconds))?;
        println!(
            "round {round}: engine {direct:.2} texts/s; {CLIENTS} clients {all:.2} texts/s, {:.3} of the engine; \
             one client {one:.2} texts/s; {CLIENTS} clients are {:.2} times as fast as one",
            all / direct,
            all / one,
        );
        rounds.push((all / direct, all / one, all));
    }
    let cost = median(rounds.iter().map(|round| round.0));
    let batching = median(rounds.iter().map(|round| round.1));
    println!(
        "median: {CLIENTS} clients have {cost:.3} of the engine's throughput, and {batching:.2} times that of one client"
    );
    Ok(median(rounds.iter().map(|round| round.2)))
}

impl Load {
    async fn start(embedder: Embedder, words: usize) -> Result<Self, Error> {
        let state = AppState::new(ServerOptions::default());
        let models = Models { embedder: Some(("model".into(), embedder)), reranker: None };
        let options = ServiceOptions::new().max_waiting_texts(MAX_WAITING);
        state.start(models, options).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/v1/embeddings", listener.local_addr()?);
        tokio::spawn(serve(
            listener,
            state.clone(),
            ServeOptions::default(),
            std::future::pending(),
        ));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { state, url, client, words, next_text: AtomicUsize::new(0) })
    }

    fn text(&self) -> String {
        let mut seed = self.next_text.fetch_add(1, Ordering::Relaxed) as u64;
        let words = (0..self.words).map(|_| {
            // The finalizer of splitmix64.
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            WORDS[(mixed >> 32) as usize % WORDS.len()]
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Throughput of the engine without the server.
    fn direct(&self, seconds: Duration) -> Result<f64, Error> {
        let embedder = self.state.embedder().ok_or("no embedder")?.model();
        let (began, mut n) = (Instant::now(), 0);
        while began.elapsed() < seconds {
            let texts: Vec<String> = (0..CLIENTS).map(|_| self.text()).collect();
            n += embedder.embed_documents(&texts)?.len();
        }
        Ok(n as f64 / began.elapsed().as_secs_f64())
    }

    /// Sends a request for these texts. Returns the status, the time until the head of the response, the time from the
    /// head to the last byte, and the number of bytes of the body.
    async fn ask(
        &self,
        input: serde_json::Value,
    ) -> Result<(u16, Duration, Duration, usize), Error> {
        let body = serde_json::json!({ "input": input, "encoding_format": "base64" }).to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        let began = Instant::now();
        let response = self.client.request(request).await?;
        let (status, first) = (response.status().as_u16(), began.elapsed());
        let n_bytes = response.into_body().collect().await?.to_bytes().len();
        Ok((status, first, began.elapsed() - first, n_bytes))
    }
}

/// Texts per second of clients that each send the next text after they have received the vector of the previous text.
async fn closed_loop(load: &Arc<Load>, clients: usize, seconds: Duration) -> Result<f64, Error> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let load = Arc::clone(load);
        tasks.spawn(async move {
            let mut n = 0;
            while began.elapsed() < seconds {
                let (status, ..) = load.ask(load.text().into()).await?;
                if status != 200 {
                    return Err(Error::from(format!("status {status}")));
                }
                n += 1;
            }
            Ok(n)
        });
    }
    let mut n = 0;
    while let Some(done) = tasks.join_next().await {
        n += done??;
    }
    Ok(f64::from(n) / began.elapsed().as_secs_f64())
}

/// Sends requests with one text each at this rate, whether or not earlier requests have been answered.
async fn open_loop(
    load: &Arc<Load>,
    rate: f64,
    seconds: Duration,
    name: &str,
) -> Result<(), Error> {
    let began = tokio::time::Instant::now();
    let n = (rate * seconds.as_secs_f64()).ceil() as usize;
    let mut tasks = JoinSet::new();
    for i in 0..n {
        // The requests are evenly spaced, except for a pseudorandom part.
        let jitter = (i * 7919 % 1000) as f64 / 1000.0;
        sleep_until(began + Duration::from_secs_f64((i as f64 + jitter) / rate)).await;
        let load = Arc::clone(load);
        tasks.spawn(async move { load.ask(load.text().into()).await });
    }
    let (mut latencies, mut n_refused, mut refusals) = (Vec::new(), 0, Vec::new());
    while let Some(done) = tasks.join_next().await {
        match done?? {
            (200, first, rest, _) => latencies.push((first + rest).as_secs_f64()),
            (429, first, ..) => {
                n_refused += 1;
                refusals.push(first.as_secs_f64());
            }
            (status, ..) => return Err(format!("status {status}").into()),
        }
    }
    let took = began.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    refusals.sort_by(f64::total_cmp);
    println!(
        "{name}: {rate:.1} requests/s, {} successful ({:.1}/s), p50 {:.0} ms, p99 {:.0} ms; \
         {n_refused} refused with 429, p99 {:.1} ms",
        latencies.len(),
        latencies.len() as f64 / took,
        quantile(&latencies, 0.5) * 1e3,
        quantile(&latencies, 0.99) * 1e3,
        quantile(&refusals, 0.99) * 1e3,
    );
    Ok(())
}

/// Measures a response with 2,048 vectors in base64. The texts are equal and are computed once, so most of the time is
/// spent on writing the response.
async fn large_response(load: &Load) -> Result<(), Error> {
    let texts = vec![load.text(); 2048];
    let mut writes = Vec::new();
    for _ in 0..9 {
        let (status, _, write, n_bytes) = load.ask(texts.clone().into()).await?;
        if status != 200 {
            return Err(format!("status {status}").into());
        }
        writes.push((write.as_secs_f64() * 1e3, n_bytes));
    }
    let n_bytes = writes[0].1;
    let milliseconds = median(writes.iter().map(|write| write.0));
    println!(
        "2048 vectors in base64, {n_bytes} bytes: from first to last byte {milliseconds:.1} ms"
    );
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The quantile `q` of sorted values.
fn quantile(values: &[f64], q: f64) -> f64 {
    let at = (values.len() as f64 * q) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

const WORDS: [&str; 64] = [
    "weather", "river", "market", "silver", "garden", "window", "paper", "stone", "music",
    "winter", "summer", "letter", "bridge", "forest", "island", "engine", "doctor", "police",
    "station", "village", "kitchen", "ocean", "desert", "mountain", "teacher", "student",
    "picture", "number", "history", "science", "football", "holiday", "morning", "evening",
    "animal", "flower", "color", "shadow", "castle", "harbor", "train", "ticket", "coffee",
    "bread", "butter", "orange", "apple", "pepper", "salt", "sugar", "copper", "iron", "cotton",
    "leather", "mirror", "hammer", "needle", "thread", "candle", "lantern", "compass", "anchor",
    "sailor", "captain",
];
