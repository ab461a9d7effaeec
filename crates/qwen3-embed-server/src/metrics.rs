use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fmt, iter};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};
use qwen3_embed::{BatchReport, SharingCounts, Timings};

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The metrics that `GET /metrics` returns.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Histograms<RouteLabels>,
    tokenize: Histograms<ModelLabels>,
    queue: Histograms<ModelLabels>,
    compute: Histograms<ModelLabels>,
    batch_texts: Histograms<ModelLabels>,
    batch_tokens: Histograms<ModelLabels>,
    batch_compute: Histograms<ModelLabels>,
    tokens: Family<ModelLabels, Counter>,
    waiting_texts: Family<ModelLabels, Gauge>,
    computed_tokens: Family<ModelLabels, Counter>,
    cache_hits: Family<ModelLabels, Counter>,
    cache_tokens: Family<ModelLabels, Counter>,
    cache_bytes: Family<ModelLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// `embedder` or `reranker`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: &'static str,
}

/// The state of a model's queue and prefix cache at the time of a request for metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelState {
    /// `embedder` or `reranker`.
    pub(crate) model: &'static str,
    pub(crate) n_waiting: usize,
    pub(crate) counts: SharingCounts,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("qwen3_embed");
        let r = &mut registry;
        let (seconds, counts) = (|| seconds_histograms(), || count_histograms());
        Self {
            requests: family(
                r,
                "requests",
                "Requests; the status is 499 if the client disconnected before the response",
            ),
            latency: timed(
                r,
                "request_duration",
                "Time from the head of a request to the head of its response",
                Family::new_with_constructor(seconds_histogram),
            ),
            tokenize: timed(
                r,
                "tokenize_duration",
                "Time from the arrival of a request until its texts were tokenized",
                seconds(),
            ),
            queue: timed(
                r,
                "queue_duration",
                "Time from the end of tokenization to the start of the first batch that contains texts of the request",
                seconds(),
            ),
            compute: timed(
                r,
                "compute_duration",
                "Time from the start of the first batch to the end of the last batch that contains texts of the request",
                seconds(),
            ),
            batch_texts: counted(r, "batch_texts", "Texts in a batch", counts()),
            batch_tokens: counted(r, "batch_tokens", "Tokens in a batch", counts()),
            batch_compute: timed(r, "batch_duration", "Compute time of a batch", seconds()),
            tokens: family(r, "tokens", "Tokens of all embedded and scored texts"),
            waiting_texts: family(r, "waiting_texts", "Texts waiting in the queue"),
            computed_tokens: family(
                r,
                "computed_tokens",
                "Tokens that the model computed; a token of a prefix that texts of a batch share counts once",
            ),
            cache_hits: family(
                r,
                "prefix_cache_hits",
                "Number of times that the prefix of a text was found in the prefix cache",
            ),
            cache_tokens: family(
                r,
                "prefix_cache_tokens",
                "Tokens that were not computed because they were in the prefix cache",
            ),
            cache_bytes: family(r, "prefix_cache_bytes", "Bytes in the prefix cache"),
            registry,
        }
    }

    /// Counts a request.
    pub(crate) fn request(&self, route: &str, status: u16, latency: Duration) {
        let route = route.to_owned();
        self.latency
            .get_or_create(&RouteLabels { route: route.clone() })
            .observe(latency.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// Records the durations of the stages of a request.
    pub(crate) fn stages(&self, model: &'static str, timings: Timings) {
        let labels = ModelLabels { model };
        let stages = [&self.tokenize, &self.queue, &self.compute];
        for (histograms, took) in
            stages.into_iter().zip([timings.tokenize, timings.queue, timings.compute])
        {
            histograms.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// A callback that records every batch of a model.
    pub(crate) fn on_batch(
        &self,
        model: &'static str,
    ) -> impl Fn(&BatchReport) + Send + Sync + use<> {
        let labels = ModelLabels { model };
        let n_texts = self.batch_texts.get_or_create_owned(&labels);
        let n_tokens = self.batch_tokens.get_or_create_owned(&labels);
        let compute = self.batch_compute.get_or_create_owned(&labels);
        let tokens = self.tokens.get_or_create_owned(&labels);
        move |report| {
            n_texts.observe(report.n_texts as f64);
            n_tokens.observe(report.n_tokens as f64);
            compute.observe(report.compute.as_secs_f64());
            tokens.inc_by(report.n_tokens as u64);
        }
    }

    /// All metrics in the OpenMetrics text format.
    pub(crate) fn text(
        &self,
        models: impl IntoIterator<Item = ModelState>,
    ) -> Result<String, fmt::Error> {
        for state in models {
            self.set(state);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn set(&self, ModelState { model, n_waiting, counts }: ModelState) {
        let labels = &ModelLabels { model };
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.waiting_texts.get_or_create(labels).set(gauge(n_waiting as u64));
        self.cache_bytes.get_or_create(labels).set(gauge(counts.cache_bytes));
        let totals = [
            (&self.computed_tokens, counts.n_computed),
            (&self.cache_hits, counts.cache_hits),
            (&self.cache_tokens, counts.cache_tokens),
        ];
        for (counter, total) in totals {
            // Two requests for metrics may run at the same time. The counter keeps the larger total.
            counter.get_or_create(labels).inner().fetch_max(total, Ordering::Relaxed);
        }
    }
}

fn family<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    counted(registry, name, help, M::default())
}

fn counted<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn timed<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn seconds_histograms() -> Histograms<ModelLabels> {
    Family::new_with_constructor(seconds_histogram)
}

fn count_histograms() -> Histograms<ModelLabels> {
    Family::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 2.0, 16)))
}

/// Buckets from 0.1 ms to almost two minutes.
fn seconds_histogram() -> Histogram {
    Histogram::new(iter::successors(Some(1e-4), |bound| Some(bound * 2.0)).take(21))
}
