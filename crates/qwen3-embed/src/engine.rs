//! What every use of a model has in common: the model, its tokenizer, the threads that they run on, and
//! the settings with which they are loaded.

use std::path::PathBuf;

use qwen3_embed_model::{Adapter, Checkpoint, Device, LoadOptions, Model, Precision, Sharing};
use qwen3_embed_text::Tokenizer;

use crate::source::{Hub, Local};
use crate::{Error, Result, Source, warnings};

/// Tokens that are computed together unless something else is asked for.
pub(crate) const DEFAULT_BATCH_TOKENS: usize = 4096;

/// The settings that every builder has.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) source: Source,
    pub(crate) adapter: Option<Source>,
    pub(crate) hub: Option<Hub>,
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) threads: Option<usize>,
    pub(crate) batch_tokens: usize,
    pub(crate) sharing: Sharing,
    pub(crate) preload: bool,
}

/// The methods of a builder that set what every builder has, in its field `settings`.
macro_rules! setters {
    () => {
        /// Where a model that the source names by its id comes from, and where it is kept. Default:
        /// [`Hub::from_env`](crate::Hub::from_env).
        #[cfg(feature = "hub")]
        pub fn hub(mut self, hub: $crate::Hub) -> Self {
            self.settings.hub = Some(hub);
            self
        }

        /// A LoRA adapter, as PEFT writes it, that is added to the weights while they are loaded: its
        /// folder or its id. A source that is an adapter itself needs none: it is loaded together with
        /// the model that it names as its base.
        pub fn adapter(mut self, adapter: impl Into<$crate::Source>) -> Self {
            self.settings.adapter = Some(adapter.into());
            self
        }

        /// Where the model runs. Default: the CPU. A [CUDA device](crate::Device::Cuda) needs the
        /// feature `cuda`.
        pub fn device(mut self, device: $crate::Device) -> Self {
            self.settings.device = device;
            self
        }

        /// How weights are kept and multiplied. Default:
        /// [`Precision::Stored`](crate::Precision::Stored), the precision of the checkpoint.
        pub fn precision(mut self, precision: $crate::Precision) -> Self {
            self.settings.precision = precision;
            self
        }

        /// Runs on a pool of this many threads, 1 to 1024, that belongs to what is built. Default:
        /// rayon's global pool, with one thread for each core, or as many as the CPU quota of the container allows.
        pub fn threads(mut self, threads: usize) -> Self {
            self.settings.threads = Some(threads);
            self
        }

        /// Tokens that are computed together: it bounds the memory of a call, and is at least 1. A
        /// text that is longer is computed alone. Default: 4096.
        pub fn batch_tokens(mut self, batch_tokens: usize) -> Self {
            self.settings.batch_tokens = batch_tokens;
            self
        }

        /// Whether tokens that texts begin with, such as an instruction, are computed once, and how
        /// much memory keeps them for later calls. On the processor, results are the same either way, bit
        /// for bit. Default: they are, and 128 MiB.
        pub fn sharing(mut self, sharing: $crate::Sharing) -> Self {
            self.settings.sharing = sharing;
            self
        }

        /// Whether the token embeddings are copied into memory when the model is loaded, 0.3 GB of 0.6B and 1.2 GB
        /// of 8B, and the model's files are not needed any more. Otherwise the CPU reads them from the
        /// memory-mapped file: while memory is short, the system drops its pages, and a text waits for the disk.
        /// Vectors are the same. Default: they are not. On other devices they always are.
        pub fn preload(mut self, preload: bool) -> Self {
            self.settings.preload = preload;
            self
        }
    };
}
pub(crate) use setters;

/// A model that is loaded, and its tokenizer.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    /// The file that the tokenizer comes from.
    pub(crate) tokenizer_path: PathBuf,
    pub(crate) max_tokens: usize,
    pool: Option<rayon::ThreadPool>,
}

impl Settings {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            adapter: None,
            hub: None,
            device: Device::default(),
            precision: Precision::default(),
            max_tokens: None,
            threads: None,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            sharing: Sharing::default(),
            preload: false,
        }
    }

    /// Opens the model's files. They are downloaded if necessary.
    pub(crate) fn open(&self) -> Result<Checkpoint> {
        let hub = self.hub.as_ref();
        let Local { path, mut adapter } = self.source.locate(hub)?;
        if let Some(source) = &self.adapter {
            let dir = source.open_adapter(hub)?;
            if let Some(first) = adapter {
                return Err(Error::TwoAdapters { first: first.dir().into(), second: dir });
            }
            adapter = Some(Adapter::open(&dir)?);
        }
        let mut checkpoint = Checkpoint::open(&path)?;
        if let Some(adapter) = adapter {
            checkpoint = checkpoint.with_adapter(adapter)?;
        }
        warnings::of_left_over_adapter(&checkpoint);
        Ok(checkpoint)
    }

    /// Loads the model. Unless [`max_tokens`](Self::max_tokens) is set, a text may have `default_max_tokens`
    /// tokens, or as many as the model has positions if these are fewer. With `hidden_states`, the model returns
    /// the hidden states of last tokens, and no module after the decoder is loaded.
    pub(crate) fn load(
        self,
        checkpoint: &Checkpoint,
        (tokenizer, tokenizer_path): (Tokenizer, PathBuf),
        default_max_tokens: usize,
        hidden_states: bool,
    ) -> Result<Engine> {
        check("batch_tokens", self.batch_tokens, usize::MAX)?;
        let pool = match self.threads {
            Some(threads) => {
                check("threads", threads, 1024)?;
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                Some(pool.thread_name(|n| format!("model-{n}")).build()?)
            }
            None => None,
        };
        let options = LoadOptions {
            device: self.device,
            precision: self.precision,
            hidden_states,
            preload: self.preload,
            ..LoadOptions::default()
        };
        let model = install(pool.as_ref(), || Model::load_with(checkpoint, &options))?;
        let model = model.with_batch_tokens(self.batch_tokens).with_sharing(self.sharing);
        let limit = model.config().max_position_embeddings;
        let max_tokens = self.max_tokens.unwrap_or(limit.min(default_max_tokens));
        // Every text is made of the base vocabulary and ends with the end-of-text token. Other added
        // tokens may lie beyond the model's vocabulary; a text that spells one is then refused.
        let max_token =
            tokenizer.base_vocab_size().saturating_sub(1).max(tokenizer.end_of_text() as usize);
        let engine = Engine { model, tokenizer, tokenizer_path, max_tokens, pool };
        engine.check_vocabulary(max_token)?;
        check("max_tokens", max_tokens, limit)?;
        Ok(engine)
    }
}

impl Engine {
    /// Runs `work` on the engine's own threads, if it has any.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        install(self.pool.as_ref(), work)
    }

    /// Checks that a token that texts are made of is one of the model's.
    pub(crate) fn check_vocabulary(&self, max_token: usize) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        if max_token < vocab_size {
            return Ok(());
        }
        Err(Error::Vocabulary { path: self.tokenizer_path.clone(), max_token, vocab_size })
    }
}

fn install<R: Send>(pool: Option<&rayon::ThreadPool>, work: impl FnOnce() -> R + Send) -> R {
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// Checks a setting whose range begins at 1.
pub(crate) fn check(setting: &'static str, got: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&got) {
        Ok(())
    } else {
        Err(Error::Setting { setting, got, min: 1, max })
    }
}
