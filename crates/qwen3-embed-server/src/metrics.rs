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

use crate::state::Served;

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What `GET /metrics` tells.
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

/// Which of the two models.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: &'static str,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("qwen3_embed");
        let r = &mut registry;
        let (seconds, counts) = (|| seconds_histograms(), || count_histograms());
        Self {
            requests: counted(
                r,
                "requests",
                "Requests that were answered, or given up by their clients: status 499",
                Family::default(),
            ),
            latency: timed(
                r,
                "request_duration",
                "From a request's head to its answer's head",
                Family::new_with_constructor(seconds_histogram),
            ),
            tokenize: timed(
                r,
                "tokenize_duration",
                "From a request's arrival until its texts were tokens",
                seconds(),
            ),
            queue: timed(r, "queue_duration", "From then until its first batch began", seconds()),
            compute: timed(
                r,
                "compute_duration",
                "From then until its last batch ended",
                seconds(),
            ),
            batch_texts: counted(r, "batch_texts", "Texts in a batch", counts()),
            batch_tokens: counted(r, "batch_tokens", "Tokens in a batch", counts()),
            batch_compute: timed(r, "batch_duration", "How long a batch took", seconds()),
            tokens: counted(
                r,
                "tokens",
                "Tokens of the texts that were computed",
                Family::default(),
            ),
            waiting_texts: counted(
                r,
                "waiting_texts",
                "Texts that wait to be computed",
                Family::default(),
            ),
            computed_tokens: counted(
                r,
                "computed_tokens",
                "Tokens that were computed: those that texts share are computed once",
                Family::default(),
            ),
            cache_hits: counted(
                r,
                "prefix_cache_hits",
                "Times that the beginning of texts was found in the prefix cache",
                Family::default(),
            ),
            cache_tokens: counted(
                r,
                "prefix_cache_tokens",
                "Tokens that were not computed because they were found there",
                Family::default(),
            ),
            cache_bytes: counted(r, "prefix_cache_bytes", "Bytes that it takes", Family::default()),
            registry,
        }
    }

    /// Notes a request.
    pub(crate) fn request(&self, route: &str, status: u16, latency: Duration) {
        let route = route.to_owned();
        self.latency
            .get_or_create(&RouteLabels { route: route.clone() })
            .observe(latency.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// Notes how long the stages of a request took.
    pub(crate) fn stages(&self, model: &'static str, timings: Timings) {
        let labels = ModelLabels { model };
        let stages = [&self.tokenize, &self.queue, &self.compute];
        for (histograms, took) in
            stages.into_iter().zip([timings.tokenize, timings.queue, timings.compute])
        {
            histograms.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// Notes every batch of a model.
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

    /// The text of the metrics, in the format of OpenMetrics.
    pub(crate) fn text(&self, served: Option<&Served>) -> Result<String, fmt::Error> {
        let embedder = served.and_then(|served| served.embedder.as_ref()).map(|model| {
            let service = &model.service;
            ("embedder", service.waiting_texts(), service.model().sharing_counts())
        });
        let reranker = served.and_then(|served| served.reranker.as_ref()).map(|model| {
            let service = &model.service;
            ("reranker", service.waiting_texts(), service.model().sharing_counts())
        });
        for (model, n_waiting, counts) in embedder.into_iter().chain(reranker) {
            self.set(&ModelLabels { model }, n_waiting, counts);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn set(&self, labels: &ModelLabels, n_waiting: usize, counts: SharingCounts) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.waiting_texts.get_or_create(labels).set(gauge(n_waiting as u64));
        self.cache_bytes.get_or_create(labels).set(gauge(counts.cache_bytes));
        let totals = [
            (&self.computed_tokens, counts.n_computed),
            (&self.cache_hits, counts.cache_hits),
            (&self.cache_tokens, counts.cache_tokens),
        ];
        for (counter, total) in totals {
            // Of two that are asked at once, the later total stays.
            counter.get_or_create(labels).inner().fetch_max(total, Ordering::Relaxed);
        }
    }
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

/// From a tenth of a millisecond to almost two minutes.
fn seconds_histogram() -> Histogram {
    Histogram::new(iter::successors(Some(1e-4), |bound| Some(bound * 2.0)).take(21))
}
