//! The models of a process.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use qwen3_embed::{Device, Embedder, Precision, Reranker, Source};

use crate::{Error, Qwen3Options};

/// Which models a process uses, and how. A model that is not named here is chosen by the first query that needs one.
#[derive(Debug, Clone, Default)]
pub struct ModelSettings {
    /// The embedding model: a folder, a GGUF file or an id on the hub. Default: the option `qwen3.model` of the first
    /// query, or else the bundled model, `qwen3-embed-demo`.
    pub model: Option<String>,
    /// The reranker. Default: the option `qwen3.reranker` of the first query.
    pub reranker: Option<String>,
    /// The precision of weights and matrix multiplications.
    pub precision: Precision,
    /// The device that runs the models.
    pub device: Device,
    /// The number of threads that compute. Default: one for each core.
    pub threads: Option<usize>,
}

/// The models of a process: at most one embedding model and one reranker, which are loaded when the first query needs
/// them and shared by all queries and tasks.
#[derive(Debug)]
pub struct Models {
    settings: ModelSettings,
    embedder: Slot<Embedder>,
    reranker: Slot<Reranker>,
    counts: Mutex<Counts>,
}

/// What the models of a process have computed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// The number of texts that were embedded. Equal texts of a batch count once.
    pub texts: u64,
    /// The number of pairs of a query and a document that were scored.
    pub pairs: u64,
    /// The number of tokens of the texts and the pairs, with their prompts.
    pub tokens: u64,
    /// The time in the models, in seconds, as the sum over all calls.
    pub seconds: f64,
}

impl Models {
    /// The models that these settings name. None is loaded yet.
    pub fn new(settings: ModelSettings) -> Self {
        let embedder = Slot::new("qwen3.model", settings.model.clone());
        let reranker = Slot::new("qwen3.reranker", settings.reranker.clone());
        Self { settings, embedder, reranker, counts: Mutex::default() }
    }

    /// What the models have computed since the process started.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a model and counts what it does.
    pub(crate) fn counted<R>(
        &self,
        call: impl FnOnce() -> R,
        count: impl FnOnce(&R, &mut Counts),
    ) -> R {
        let start = Instant::now();
        let result = call();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.seconds += start.elapsed().as_secs_f64();
        count(&result, &mut counts);
        result
    }

    /// The embedding model, loaded if it is not.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if it cannot be loaded. The next call tries again. [`Error::AnotherModel`] if the options name
    /// another model than this process uses.
    pub fn embedder(&self, options: &Qwen3Options) -> Result<Arc<Embedder>, Error> {
        self.embedder.get_or_load(options.model.as_deref(), |model| {
            let demo = Source::demo();
            let source = match model {
                Some(model) if model != demo.to_string() => Source::from(model),
                _ => demo,
            };
            let name = source.to_string();
            let settings = &self.settings;
            let builder =
                Embedder::builder(source).precision(settings.precision).device(settings.device);
            let builder = match settings.threads {
                Some(threads) => builder.threads(threads),
                None => builder,
            };
            let load = builder.build();
            Ok((name, load.map_err(|error| Error::of_model("embed", error, |_| None))?))
        })
    }

    /// The reranker, loaded if it is not.
    ///
    /// # Errors
    ///
    /// As [`embedder`](Self::embedder); [`Error::NoReranker`] if none is named.
    pub fn reranker(&self, options: &Qwen3Options) -> Result<Arc<Reranker>, Error> {
        self.reranker.get_or_load(options.reranker.as_deref(), |model| {
            let model = model.ok_or(Error::NoReranker)?;
            let settings = &self.settings;
            let builder =
                Reranker::builder(model).precision(settings.precision).device(settings.device);
            let builder = match settings.threads {
                Some(threads) => builder.threads(threads),
                None => builder,
            };
            let load = builder.build();
            let reranker = load.map_err(|error| Error::of_model("rerank", error, |_| None))?;
            Ok((model.to_owned(), reranker))
        })
    }
}

/// A model that is loaded when it is first needed.
#[derive(Debug)]
struct Slot<M> {
    /// The option of the session that names the model.
    option: &'static str,
    /// The model of the settings.
    default: Option<String>,
    loaded: Mutex<Option<(String, Arc<M>)>>,
}

impl<M> Slot<M> {
    fn new(option: &'static str, default: Option<String>) -> Self {
        Self { option, default, loaded: Mutex::new(None) }
    }

    /// The model, if it is the one that the session asks for. `load` gets the name of the model and returns the model
    /// with its name. Other calls wait while it runs.
    fn get_or_load(
        &self,
        asked: Option<&str>,
        load: impl FnOnce(Option<&str>) -> Result<(String, M), Error>,
    ) -> Result<Arc<M>, Error> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let used = loaded.as_ref().map(|(name, _)| name.as_str()).or(self.default.as_deref());
        if let (Some(asked), Some(used)) = (asked, used)
            && asked != used
        {
            let (expected, got) = (asked.to_owned(), used.to_owned());
            return Err(Error::AnotherModel { option: self.option, expected, got });
        }
        if let Some((_, model)) = &*loaded {
            return Ok(model.clone());
        }
        let (name, model) = load(asked.or(used))?;
        let model = Arc::new(model);
        *loaded = Some((name, model.clone()));
        Ok(model)
    }
}
