use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use qwen3_embed::{
    EmbedOptions, Embedder, Error, Reranker, ScoreOptions, Service, ServiceOptions, ServiceState,
};
use tokio::sync::Semaphore;

use crate::error::{ApiError, Field};
use crate::metrics::Metrics;
use crate::names::ModelNames;

/// Within which limits requests are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// The key that clients have to send, as `Authorization: Bearer KEY` or as the password of
    /// `Authorization: Basic`; only `/livez`, `/readyz` and `/health` are answered without, and `/metrics` if
    /// [`ServerOptions::public_metrics`] says so. Default: none.
    pub api_key: Option<String>,
    /// Whether `/metrics` is answered without the key. Default: it is not.
    pub public_metrics: bool,
    /// Whether a request that names a model by a name that no model has is refused with 404. Default: the
    /// model of the kind that the route needs answers such a request, under its own name.
    pub strict_model_names: bool,
    /// Origins whose pages may read the answers in a browser; `*` is any. Default: none but the server's own.
    pub cors_allow_origin: Vec<String>,
    /// The instruction that stands before texts whose request names none and no prompt. Default: none,
    /// so that such texts are embedded as documents.
    pub default_instruct: Option<String>,
    /// Whether a text that is too long is cut where its request does not say. Default: it is an error.
    pub truncate: bool,
    /// Requests that are worked on at once, 1 or more; further ones are refused. Default: 512.
    pub max_concurrent_requests: usize,
    /// Texts that one request may have. Should be a few times less than what may wait,
    /// [`ServiceOptions::max_waiting_texts`]. Default: 2048.
    pub max_client_batch_size: usize,
    /// The largest body, in bytes, after it is decompressed. Default: 16 MiB.
    pub payload_limit: usize,
    /// How long a body may take to arrive. Default: 60 s.
    pub body_timeout: Duration,
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
        }
    }
}

/// The models that a server has, each with the names that clients call it by.
#[derive(Debug, Default)]
pub struct Models {
    /// Answers requests for embeddings.
    pub embedder: Option<(ModelNames, Embedder)>,
    /// Answers requests for ranks and scores.
    pub reranker: Option<(ModelNames, Reranker)>,
}

/// What the server's routes share. A clone shares it too.
///
/// A state begins without models: the router answers already, and says that it is loading.
#[derive(Debug, Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ServerOptions,
    permits: Arc<Semaphore>,
    metrics: Metrics,
    served: OnceLock<Served>,
    is_draining: AtomicBool,
}

/// The models behind their queues.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) embedder: Option<Named<Embedder>>,
    pub(crate) reranker: Option<Named<Reranker>>,
    pub(crate) options: ServiceOptions,
    /// When they were loaded, in seconds since 1970.
    pub(crate) created: u64,
    /// See [`ServerOptions::strict_model_names`].
    strict_names: bool,
}

/// A model behind its queue, and its names.
#[derive(Debug)]
pub(crate) struct Named<M> {
    /// The name in responses.
    pub(crate) name: String,
    names: ModelNames,
    pub(crate) service: Service<M>,
}

impl<M> Named<M> {
    fn new(names: ModelNames, service: Service<M>) -> Self {
        Self { name: names.served().to_owned(), names, service }
    }
}

/// Whether requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The models are not there yet.
    Loading,
    /// They are.
    Ready,
    /// The server is about to end.
    Draining,
    /// A thread that computes has died.
    Dead,
}

impl AppState {
    /// The state of a server that has no model yet.
    pub fn new(options: ServerOptions) -> Self {
        let permits = options.max_concurrent_requests.clamp(1, Semaphore::MAX_PERMITS);
        let inner = Inner {
            options,
            permits: Arc::new(Semaphore::new(permits)),
            metrics: Metrics::new(),
            served: OnceLock::new(),
            is_draining: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Puts models behind their queues, has each compute one short text, and answers requests from then on.
    /// What is called behind a batch is the server's own and takes the place of
    /// [`ServiceOptions::on_batch`]. A state that has models already keeps those.
    ///
    /// # Errors
    ///
    /// Those of [`Embedder::into_service`], [`Service::embed`] and [`Service::score`].
    pub async fn start(&self, models: Models, options: ServiceOptions) -> qwen3_embed::Result<()> {
        let of_kind = |kind| options.clone().on_batch(self.inner.metrics.on_batch(kind));
        let embedder = match models.embedder {
            Some((names, embedder)) => {
                let service = embedder.into_service(of_kind("embedder"))?;
                service.embed(["warm"], EmbedOptions::new()).await?;
                Some(Named::new(names, service))
            }
            None => None,
        };
        let reranker = match models.reranker {
            Some((names, reranker)) => {
                let service = reranker.into_service(of_kind("reranker"))?;
                let [query, document] = ["warm", "up"].map(|text| vec![text.to_owned()]);
                service.score(query, document, ScoreOptions::new()).await?;
                Some(Named::new(names, service))
            }
            None => None,
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let created = now.map_or(0, |since| since.as_secs());
        // Whoever comes second has loaded in vain.
        let strict_names = self.options().strict_model_names;
        let served = Served { embedder, reranker, options, created, strict_names };
        let _ = self.inner.served.set(served);
        Ok(())
    }

    /// Whether requests are answered, and if not, why.
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

    /// Says from now on that the server is about to end. Requests are still answered.
    pub fn announce_end(&self) {
        self.inner.is_draining.store(true, Ordering::Relaxed);
    }

    /// Accepts no more texts, and waits until those that were accepted are computed.
    pub async fn drain(&self) {
        self.announce_end();
        let Some(served) = self.inner.served.get() else { return };
        // Both begin to drain before one is waited for.
        let embedder = served.embedder.as_ref().map(|model| model.service.drain());
        let reranker = served.reranker.as_ref().map(|model| model.service.drain());
        if let Some(drained) = embedder {
            drained.await;
        }
        if let Some(drained) = reranker {
            drained.await;
        }
    }

    /// The queue in front of the embedder, once there is one.
    pub fn embedder(&self) -> Option<&Service<Embedder>> {
        Some(&self.inner.served.get()?.embedder.as_ref()?.service)
    }

    /// The queue in front of the reranker, once there is one.
    pub fn reranker(&self) -> Option<&Service<Reranker>> {
        Some(&self.inner.served.get()?.reranker.as_ref()?.service)
    }

    pub(crate) fn options(&self) -> &ServerOptions {
        &self.inner.options
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(crate) fn permits(&self) -> &Arc<Semaphore> {
        &self.inner.permits
    }

    pub(crate) fn served_if_loaded(&self) -> Option<&Served> {
        self.inner.served.get()
    }

    pub(crate) fn served(&self) -> Result<&Served, ApiError> {
        self.inner.served.get().ok_or_else(ApiError::loading)
    }

    /// What a client is told of an error about the texts of `field`.
    pub(crate) fn explain(&self, error: Error, field: Field) -> ApiError {
        match error {
            // It was drained, and has not died.
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

    /// Every name of every model, the embedder's first.
    pub(crate) fn names(&self) -> Vec<&str> {
        let embedder = self.embedder.iter().flat_map(|model| model.names.all());
        let reranker = self.reranker.iter().flat_map(|model| model.names.all());
        embedder.chain(reranker).collect()
    }

    /// Whether only a reranker is served.
    pub(crate) fn only_ranks(&self) -> bool {
        self.embedder.is_none() && self.reranker.is_some()
    }

    /// The embedder, for a request that names a model so, if it names one at all.
    pub(crate) fn embedder(&self, name: Option<&str>) -> Result<&Named<Embedder>, ApiError> {
        self.choose(self.embedder.as_ref(), name, |other| {
            format!("`{other}` is a reranker, which gives no embeddings")
        })
    }

    /// The reranker, for a request that names a model so, if it names one at all.
    pub(crate) fn reranker(&self, name: Option<&str>) -> Result<&Named<Reranker>, ApiError> {
        self.choose(self.reranker.as_ref(), name, |other| {
            format!(
                "`{other}` was loaded as an embedding model (`--model-path`), and a reranker is loaded \
                 with `--reranker-path`"
            )
        })
    }

    /// The model of one kind, unless the name is that of a model of the other kind, or of no model where
    /// such names are refused.
    fn choose<'a, M>(
        &self,
        model: Option<&'a Named<M>>,
        name: Option<&str>,
        is_other: impl Fn(&str) -> String,
    ) -> Result<&'a Named<M>, ApiError> {
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
                        format!("{}; the model for it is `{}`", is_other(other), model.name);
                    Err(ApiError::wrong_model(message))
                }
            },
            (None, _) => Err(ApiError::wrong_model(match known.or(names.first().copied()) {
                Some(other) => {
                    format!("{}; it is the only model that is loaded", is_other(other))
                }
                None => "no model is loaded".to_owned(),
            })),
        }
    }
}
