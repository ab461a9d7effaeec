//! The parts that embedders and rerankers share: the settings of their builders, and the loaded model with its
//! tokenizer and threads.

use std::path::{Path, PathBuf};

use qwen3_embed_model::{Adapter, Checkpoint, Device, LoadOptions, Model, Precision, Sharing};
use qwen3_embed_text::Tokenizer;

use crate::limits::{BATCH_TOKENS, check_setting};
use crate::source::{Hub, Local};
use crate::{Error, Result, Source, warnings};

/// The settings that both builders have.
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
    pub(crate) verify: bool,
}

/// The builder methods that set the field `settings`.
macro_rules! setters {
    () => {
        /// The hub that a model is downloaded from if the source is an id. Default:
        /// [`Hub::from_env`](crate::Hub::from_env).
        #[cfg(feature = "hub")]
        pub fn hub(mut self, hub: $crate::Hub) -> Self {
            self.settings.hub = Some(hub);
            self
        }

        /// A LoRA adapter in the format of PEFT: a folder or an id on the hub. It is merged into the weights while they
        /// are loaded. Do not set an adapter if the source is an adapter itself: a source that is an adapter is loaded
        /// together with the base model that it names.
        pub fn adapter(mut self, adapter: impl Into<$crate::Source>) -> Self {
            self.settings.adapter = Some(adapter.into());
            self
        }

        /// The device that runs the model. Default: the CPU. A [CUDA device](crate::Device::Cuda) needs the feature
        /// `cuda`.
        pub fn device(mut self, device: $crate::Device) -> Self {
            self.settings.device = device;
            self
        }

        /// The precision in which weights are kept and multiplied. Default:
        /// [`Precision::Stored`](crate::Precision::Stored), the precision of the checkpoint.
        pub fn precision(mut self, precision: $crate::Precision) -> Self {
            self.settings.precision = precision;
            self
        }

        /// The number of threads, 1 to 1024, of a thread pool that only this model uses. Default: rayon's global pool,
        /// which has one thread for each core, or fewer if the CPU quota of the container is smaller.
        pub fn threads(mut self, threads: usize) -> Self {
            self.settings.threads = Some(threads);
            self
        }

        /// The batch budget: the maximum number of tokens that are computed together, at least 1. A smaller budget
        /// needs less memory for activations. A text with more tokens is a batch by itself. Default: 4096.
        pub fn batch_tokens(mut self, batch_tokens: usize) -> Self {
            self.settings.batch_tokens = batch_tokens;
            self
        }

        /// Whether a prefix that several texts have in common, such as an instruction, is computed only once, and the
        /// size of the prefix cache, which keeps prefixes for later calls. On the CPU, sharing does not change results.
        /// Default: on, with a prefix cache of 128 MiB.
        pub fn sharing(mut self, sharing: $crate::Sharing) -> Self {
            self.settings.sharing = sharing;
            self
        }

        /// Whether the token embeddings are copied into memory when the model is loaded: 0.3 GB for 0.6B, 1.2 GB for
        /// 8B. Without `preload`, the CPU reads them from the memory-mapped file; when memory is short, the operating
        /// system drops pages of that file, and calls wait for the disk. With `preload`, the files are not needed after
        /// the model is loaded. The setting does not change results. Default: false. Devices other than the CPU always
        /// have a copy.
        pub fn preload(mut self, preload: bool) -> Self {
            self.settings.preload = preload;
            self
        }

        /// Whether all weights are read before the model is loaded, to check that none of them is NaN or infinite.
        /// Without `verify`, samples of each matrix are checked. It takes as long as reading the files once more.
        /// Default: false.
        pub fn verify(mut self, verify: bool) -> Self {
            self.settings.verify = verify;
            self
        }
    };
}
pub(crate) use setters;

/// A loaded model with its tokenizer and threads.
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
            batch_tokens: BATCH_TOKENS,
            sharing: Sharing::default(),
            preload: false,
            verify: false,
        }
    }

    /// Opens the files of the model and of its adapter. Files that are neither local nor in the cache are downloaded.
    pub(crate) fn open(&self) -> Result<Checkpoint> {
        let hub = self.hub.as_ref();
        let Local { place, mut adapter } = self.source.locate(hub)?;
        if let Some(source) = &self.adapter {
            let folder = source.open_adapter(hub)?;
            if let Some(first) = adapter {
                let [first, second] = [first.path(), folder.path()].map(Path::to_path_buf);
                return Err(Error::TwoAdapters { first, second });
            }
            adapter = Some(Adapter::open(folder)?);
        }
        let mut checkpoint = place.checkpoint()?;
        if let Some(adapter) = adapter {
            checkpoint = checkpoint.with_adapter(adapter)?;
        }
        warnings::of_left_over_adapter(&checkpoint);
        Ok(checkpoint)
    }

    /// Loads the model. If `max_tokens` is not set, it is `default_max_tokens`, but at most the number of positions of
    /// the model. With `hidden_states`, the model returns the hidden state of each text's last token, and pooling and
    /// dense layers are not loaded.
    pub(crate) fn load(
        self,
        checkpoint: &Checkpoint,
        (tokenizer, tokenizer_path): (Tokenizer, PathBuf),
        default_max_tokens: usize,
        hidden_states: bool,
    ) -> Result<Engine> {
        check_setting("batch_tokens", self.batch_tokens, usize::MAX)?;
        let pool = match self.threads {
            Some(threads) => {
                check_setting("threads", threads, 1024)?;
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
            verify: self.verify,
            ..LoadOptions::default()
        };
        let model = install(pool.as_ref(), || Model::load_with(checkpoint, &options))?;
        let model = model.with_batch_tokens(self.batch_tokens).with_sharing(self.sharing);
        let limit = model.config().max_position_embeddings;
        let max_tokens = self.max_tokens.unwrap_or(limit.min(default_max_tokens));
        // Every text consists of tokens of the base vocabulary and ends with the end-of-text token. The ids of other
        // added tokens may be outside the model's vocabulary: a text that contains such a token is refused later.
        let max_token =
            tokenizer.base_vocab_size().saturating_sub(1).max(tokenizer.end_of_text() as usize);
        let engine = Engine { model, tokenizer, tokenizer_path, max_tokens, pool };
        engine.check_vocabulary(max_token)?;
        check_setting("max_tokens", max_tokens, limit)?;
        Ok(engine)
    }
}

impl Engine {
    /// Runs `work` on the pool of [`Settings::threads`], or on rayon's current pool if `threads` is not set.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        install(self.pool.as_ref(), work)
    }

    /// Runs `work`, which computes texts with the model. If threads of the CPU compute, this is [`install`](Self::install).
    /// Otherwise `work` runs on this thread, and does not wait until a thread of the pool wakes up.
    pub(crate) fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.model.uses_threads() { self.install(work) } else { work() }
    }

    /// Checks that `max_token`, the largest token id that texts can contain, is in the model's vocabulary.
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
