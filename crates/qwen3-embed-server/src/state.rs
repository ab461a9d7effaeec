use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use qwen3_embed::{
    EmbedOptions, Embedder, Error, Reranker, ScoreOptions, Service, ServiceOptions, ServiceState,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, Field};
use crate::metrics::{Metrics, ModelState};
use crate::names::ModelNames;

/// The unit, in bytes, in which the memory for request bodies is counted. Smaller bodies are not counted.
pub(crate) const BODY_UNIT: usize = 64 * 1024;

/// How many bodies of the largest size may be in memory at the same time.
const MAX_LARGE_BODIES: usize = 32;

/// Settings of the server that apply to all requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// API key that clients must send, as `Authorization: Bearer KEY` or as the password of
    /// `Authorization: Basic`. `/livez`, `/readyz` and `/health` need no key, nor does `/metrics` with
    /// [`ServerOptions::public_metrics`]. Default: none.
    pub api_key: Option<String>,
    /// Whether `/metrics` needs no API key. Default: `false`.
    pub public_metrics: bool,
    /// Whether a request with an unknown model name is refused with 404. Default: `false`. The server then uses the
    /// model of the kind that the route needs, and the response contains the served name of this model.
    pub strict_model_names: bool,
    /// Origins whose web pages may use the server (CORS); `*` allows any. Default: none.
    pub cors_allow_origin: Vec<String>,
    /// Instruction for the texts of a request that has neither an instruction nor a prompt name. Default: none, so such
    /// texts are embedded as documents.
    pub default_instruct: Option<String>,
    /// Whether a text that is too long is truncated if its request does not set `truncate`. Default: `false`, so such a
    /// text is an error.
    pub truncate: bool,
    /// Maximum number of requests that are processed at the same time, at least 1. Further requests are refused with
    /// 429. Default: 512.
    pub max_concurrent_requests: usize,
    /// Maximum number of texts in one request. This should be several times smaller than
    /// [`ServiceOptions::max_waiting_texts`]. Default: 2048.
    pub max_client_batch_size: usize,
    /// Largest request body in bytes, after decompression. Default: 16 MiB.
    ///
    /// The bodies of all requests may take 32 times as much memory until they are parsed. Further requests with bodies
    /// of at least 64 KiB are refused with 429.
    pub payload_limit: usize,
    /// Time limit for receiving a request body. Default: 60 s.
    pub body_timeout: Duration,
    /// A sentence about the models for the users of the server. The playground shows it, and `/info` returns it.
    /// Default: none.
    pub notice: Option<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            api_key: None,
            public_metrics: false,
            strict_model_names: false,
            cors_allow_origin: Vec::new(),
            default_instruct: None,
            truncate: false,
            max_concurrent_requests: 512,
            max_client_batch_size: 2048,
            payload_limit: 16 << 20,
            body_timeout: Duration::from_secs(60),
            notice: None,
        }
    }
}

impl ServerOptions {
    /// How many bytes the bodies of all requests may take.
    pub(crate) fn bodies_limit(&self) -> usize {
        self.payload_limit.saturating_mul(MAX_LARGE_BODIES)
    }
}

/// The models of a server and their names: an embedder, a reranker, or both.
#[derive(Debug, Default)]
pub struct Models {
    /// The model for embeddings.
    pub embedder: Option<(ModelNames, Embedder)>,
    /// The model for ranks and scores.
    pub reranker: Option<(ModelNames, Reranker)>,
}

/// Allows one request to be processed. Each piece of work for the request holds a clone; when the last clone is
/// dropped, another request may begin.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// The memory of one request's body. It is free again when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct BodyPermit {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl BodyPermit {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }
}

/// State that all routes share. Clones share the same state.
///
/// A new state has no models: until [`AppState::start`], routes that need a model return 503.
#[derive(Debug, Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ServerOptions,
    permits: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    metrics: Metrics,
    served: OnceLock<Served>,
    is_draining: AtomicBool,
}

/// The models that are loaded, each behind a queue.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) embedder: Option<ServedModel<Embedder>>,
    pub(crate) reranker: Option<ServedModel<Reranker>>,
    pub(crate) options: ServiceOptions,
    /// When the models were loaded, in seconds since 1970.
    pub(crate) created: u64,
    /// See [`ServerOptions::strict_model_names`].
    strict_names: bool,
}

/// A model behind a queue, and its names.
#[derive(Debug)]
pub(crate) struct ServedModel<M> {
    /// The name in responses.
    pub(crate) name: String,
    names: ModelNames,
    pub(crate) service: Service<M>,
}

impl<M> ServedModel<M> {
    fn new(names: ModelNames, service: Service<M>) -> Self {
        Self { name: names.served().to_owned(), names, service }
    }
}

/// Whether the server can process requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Models are still being loaded.
    Loading,
    /// Requests are processed.
    Ready,
    /// The server is shutting down. Requests that were accepted are finished.
    Draining,
    /// A model's worker thread has panicked.
    Dead,
}

impl AppState {
    /// Creates a state without models.
    pub fn new(options: ServerOptions) -> Self {
        let permits = options.max_concurrent_requests.clamp(1, Semaphore::MAX_PERMITS);
        // A single body always fits.
        let bodies = (options.bodies_limit() / BODY_UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let inner = Inner {
            options,
            permits: Arc::new(Semaphore::new(permits)),
            bodies: Arc::new(Semaphore::new(bodies)),
            metrics: Metrics::new(),
            served: OnceLock::new(),
            is_draining: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts a queue for each model. Each model computes one short text first, to check that the model works. Requests
    /// are processed after this function has returned.
    ///
    /// [`ServiceOptions::on_batch`] is ignored, because the server uses this callback for its metrics. If models have
    /// been started before, the state keeps those models, and the new ones are dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`Embedder::into_service`], [`Service::embed`] and [`Service::score`].
    pub async fn start(&self, models: Models, options: ServiceOptions) -> qwen3_embed::Result<()> {
        let of_kind = |kind| options.clone().on_batch(self.inner.metrics.on_batch(kind));
        let embedder = match models.embedder {
            Some((names, embedder)) => {
                let service = embedder.into_service(of_kind("embedder"))?;
                service.embed(["warm"], EmbedOptions::new()).await?;
                Some(ServedModel::new(names, service))
            }
            None => None,
        };
        let reranker = match models.reranker {
            Some((names, reranker)) => {
                let service = reranker.into_service(of_kind("reranker"))?;
                let [query, document] = ["warm", "up"].map(|text| vec![text.to_owned()]);
                service.score(query, document, ScoreOptions::new()).await?;
                Some(ServedModel::new(names, service))
            }
            None => None,
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let created = now.map_or(0, |since| since.as_secs());
        let strict_names = self.options().strict_model_names;
        let served = Served { embedder, reranker, options, created, strict_names };
        // Fails only if models have been started before. The new models are then dropped.
        let _ = self.inner.served.set(served);
        Ok(())
    }

    /// Whether requests are processed, or the reason why they are not.
    pub fn readiness(&self) -> Readiness {
        let Some(served) = self.inner.served.get() else { return Readiness::Loading };
        if served.states().any(|state| state == ServiceState::Stopped) && !self.is_draining() {
            Readiness::Dead
        } else if self.is_draining() || served.states().any(|state| state != ServiceState::Running)
        {
            Readiness::Draining
        } else {
            Readiness::Ready
        }
    }

    /// Makes [`AppState::readiness`] return [`Readiness::Draining`] from now on. Requests are still processed.
    pub fn announce_shutdown(&self) {
        self.inner.is_draining.store(true, Ordering::Relaxed);
    }

    /// Refuses new requests, and waits until the texts in the queues are computed.
    pub async fn drain(&self) {
        self.announce_shutdown();
        let Some(served) = self.inner.served.get() else { return };
        // Both queues start to drain before the function waits for one of them.
        let embedder = served.embedder.as_ref().map(|model| model.service.drain());
        let reranker = served.reranker.as_ref().map(|model| model.service.drain());
        if let Some(drained) = embedder {
            drained.await;
        }
        if let Some(drained) = reranker {
            drained.await;
        }
    }

    /// The queue of the embedder. `None` if the embedder is not loaded yet, or if the server has no embedder.
    pub fn embedder(&self) -> Option<&Service<Embedder>> {
        Some(&self.inner.served.get()?.embedder.as_ref()?.service)
    }

    /// The queue of the reranker. `None` if the reranker is not loaded yet, or if the server has no reranker.
    pub fn reranker(&self) -> Option<&Service<Reranker>> {
        Some(&self.inner.served.get()?.reranker.as_ref()?.service)
    }

    pub(crate) fn options(&self) -> &ServerOptions {
        &self.inner.options
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Whether [`AppState::try_permit`] would return `None`.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.inner.permits.available_permits() == 0
    }

    /// A permit to process one request; `None` if `max_concurrent_requests` are being processed.
    pub(crate) fn try_permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.inner.permits).try_acquire_owned().ok()?;
        Some(Permit { _permit: Arc::new(permit) })
    }

    /// The memory for request bodies, with one permit for each [`BODY_UNIT`].
    pub(crate) fn bodies(&self) -> Arc<Semaphore> {
        Arc::clone(&self.inner.bodies)
    }

    pub(crate) fn served_if_loaded(&self) -> Option<&Served> {
        self.inner.served.get()
    }

    pub(crate) fn served(&self) -> Result<&Served, ApiError> {
        self.inner.served.get().ok_or_else(ApiError::loading)
    }

    /// Converts an error of the model about the texts in `field`.
    pub(crate) fn api_error(&self, error: Error, field: Field) -> ApiError {
        match error {
            // The service has stopped because it was drained, not because its worker thread panicked.
            Error::ServiceStopped if self.is_draining() => {
                ApiError::not_running(ServiceState::Draining)
            }
            error => ApiError::from_model(error, field),
        }
    }

    fn is_draining(&self) -> bool {
        self.inner.is_draining.load(Ordering::Relaxed)
    }
}

impl Served {
    fn states(&self) -> impl Iterator<Item = ServiceState> {
        let embedder = self.embedder.as_ref().map(|model| model.service.state());
        let reranker = self.reranker.as_ref().map(|model| model.service.state());
        embedder.into_iter().chain(reranker)
    }

    /// The current state of each model, for metrics.
    pub(crate) fn model_states(&self) -> impl Iterator<Item = ModelState> {
        let embedder = self.embedder.as_ref().map(|model| ModelState {
            model: "embedder",
            n_waiting: model.service.waiting_texts(),
            counts: model.service.model().sharing_counts(),
        });
        let reranker = self.reranker.as_ref().map(|model| ModelState {
            model: "reranker",
            n_waiting: model.service.waiting_texts(),
            counts: model.service.model().sharing_counts(),
        });
        embedder.into_iter().chain(reranker)
    }

    /// All names of all models, those of the embedder first.
    pub(crate) fn names(&self) -> Vec<&str> {
        let embedder = self.embedder.iter().flat_map(|model| model.names.all());
        let reranker = self.reranker.iter().flat_map(|model| model.names.all());
        embedder.chain(reranker).collect()
    }

    /// Whether the server has a reranker and no embedder.
    pub(crate) fn serves_only_reranker(&self) -> bool {
        self.embedder.is_none() && self.reranker.is_some()
    }

    /// The embedder, for a request that names the model `name`.
    pub(crate) fn embedder(&self, name: Option<&str>) -> Result<&ServedModel<Embedder>, ApiError> {
        self.choose(self.embedder.as_ref(), name, |other| {
            format!("`{other}` is a reranker and computes no embeddings")
        })
    }

    /// The reranker, for a request that names the model `name`.
    pub(crate) fn reranker(&self, name: Option<&str>) -> Result<&ServedModel<Reranker>, ApiError> {
        self.choose(self.reranker.as_ref(), name, |other| {
            format!(
                "`{other}` is an embedding model, loaded with `--model-path`; a reranker is loaded with \
                 `--reranker-path`"
            )
        })
    }

    /// Returns `model`. It is an error if `name` is a name of the model of the other kind, if `name` is unknown and
    /// names are strict, or if there is no `model`. `describe_other` describes the model of the other kind in the
    /// error.
    fn choose<'a, M>(
        &self,
        model: Option<&'a ServedModel<M>>,
        name: Option<&str>,
        describe_other: impl Fn(&str) -> String,
    ) -> Result<&'a ServedModel<M>, ApiError> {
        let names = self.names();
        let name = name.filter(|name| !name.is_empty());
        let known = name.filter(|name| names.contains(name));
        match (model, name) {
            (_, Some(name)) if known.is_none() && self.strict_names => {
                Err(ApiError::no_such_model(name, &names))
            }
            (Some(model), _) => match known.filter(|name| !model.names.has(name)) {
                None => Ok(model),
                Some(other) => {
                    let message =
                        format!("{}; use the model `{}`", describe_other(other), model.name);
                    Err(ApiError::wrong_model(message))
                }
            },
            (None, _) => Err(ApiError::wrong_model(match known.or(names.first().copied()) {
                Some(other) => {
                    format!("{}; it is the only model that is loaded", describe_other(other))
                }
                None => "no model is loaded".to_owned(),
            })),
        }
    }
}
