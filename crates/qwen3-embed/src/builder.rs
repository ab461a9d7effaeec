use qwen3_embed_model::{Device, Model, Precision, Sharing};
use qwen3_embed_text::SpecialTokens;

use crate::source::read_tokenizer;
use crate::{Embedder, Error, Result, Source};

/// What becomes of a text with more tokens than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// The call fails with [`Error::TextTooLong`].
    #[default]
    Error,
    /// The beginning of the text is cut, the instruction of a query with it.
    TruncateLeft,
    /// The end of the text is cut.
    TruncateRight,
}

/// The longest text, in tokens, that is embedded without being asked for.
const DEFAULT_MAX_TOKENS: usize = 32_768;

/// Tokens that are computed together unless something else is asked for.
const DEFAULT_BATCH_TOKENS: usize = 4096;

/// The fewest dimensions of a vector, and the hidden size from which on they are the fewest.
const MIN_DIMENSIONS: (usize, usize) = (32, 1024);

/// Settings of an [`Embedder`], see [`Embedder::builder`].
#[derive(Debug, Clone)]
pub struct EmbedderBuilder {
    source: Source,
    device: Device,
    precision: Precision,
    dimensions: Option<usize>,
    max_tokens: Option<usize>,
    overflow: Overflow,
    special_tokens: SpecialTokens,
    threads: Option<usize>,
    batch_tokens: usize,
    sharing: Sharing,
}

impl EmbedderBuilder {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            device: Device::default(),
            precision: Precision::default(),
            dimensions: None,
            max_tokens: None,
            overflow: Overflow::default(),
            special_tokens: SpecialTokens::default(),
            threads: None,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            sharing: Sharing::default(),
        }
    }

    /// Where the model runs. Default: the CPU. A [CUDA device](Device::Cuda) needs the feature `cuda`.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How weights are kept and multiplied. Default: [`Precision::F32`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Dimensions of the vectors: 32 to the model's hidden size, or 1 to the hidden size for models
    /// narrower than 1024, which are not published ones. Default: the hidden size.
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// The longest text, in tokens, its instruction and the end-of-text token included: 1 to the
    /// model's `max_position_embeddings`. Default: 32,768, or what the model has if that is less.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// What becomes of a longer text. Default: [`Overflow::Error`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// What becomes of text that spells a special token. Default: [`SpecialTokens::Parse`], as
    /// transformers does; choose [`SpecialTokens::PlainText`] for texts that you do not trust.
    pub fn special_tokens(mut self, special_tokens: SpecialTokens) -> Self {
        self.special_tokens = special_tokens;
        self
    }

    /// Runs on a pool of this many threads, 1 to 1024, that belongs to the embedder. Default: rayon's
    /// global pool, with one thread for each core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Tokens that are computed together: it bounds the memory of a call, and is at least 1. A text
    /// that is longer is computed alone. Default: 4096.
    pub fn batch_tokens(mut self, batch_tokens: usize) -> Self {
        self.batch_tokens = batch_tokens;
        self
    }

    /// Whether tokens that texts begin with, such as an instruction, are computed once, and how much
    /// memory keeps them for later calls. On the processor, vectors are the same either way, bit for bit. Default: they
    /// are, and 128 MiB.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// Loads the model and its tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchModel`] or [`Error::Io`]; [`Error::Model`] or [`Error::Text`] if a file is
    /// missing, damaged or of another architecture, or if the device is not there; [`Error::Vocabulary`] if the tokenizer is not the
    /// model's; [`Error::Dimensions`] or [`Error::Setting`] if a setting is out of range.
    pub fn build(self) -> Result<Embedder> {
        let path = self.source.model()?;
        check("batch_tokens", self.batch_tokens, usize::MAX)?;
        let pool = match self.threads {
            Some(threads) => {
                check("threads", threads, 1024)?;
                Some(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?)
            }
            None => None,
        };
        let tokenizer_path = self.source.tokenizer();
        let load = || -> Result<_> {
            let tokenizer = read_tokenizer(&tokenizer_path)?;
            let model = Model::load(path, self.device, self.precision)?;
            let model = model.with_batch_tokens(self.batch_tokens).with_sharing(self.sharing);
            Ok((tokenizer, model))
        };
        let (tokenizer, model) = match &pool {
            Some(pool) => pool.install(load)?,
            None => load()?,
        };
        let config = model.config();
        let vocab_size = config.vocab_size;
        // Every text is made of the base vocabulary and ends with the end-of-text token. Other added
        // tokens may lie beyond the model's vocabulary; a text that spells one is then refused.
        let max_token =
            tokenizer.base_vocab_size().saturating_sub(1).max(tokenizer.end_of_text() as usize);
        if max_token >= vocab_size {
            return Err(Error::Vocabulary { path: tokenizer_path, max_token, vocab_size });
        }
        let limit = config.max_position_embeddings;
        let max_tokens = self.max_tokens.unwrap_or(limit.min(DEFAULT_MAX_TOKENS));
        check("max_tokens", max_tokens, limit)?;
        let dimensions = self.dimensions.unwrap_or(config.hidden_size);
        check_dimensions(dimensions, config.hidden_size)?;
        Ok(Embedder {
            model,
            tokenizer,
            dimensions,
            max_tokens,
            overflow: self.overflow,
            special_tokens: self.special_tokens,
            pool,
        })
    }
}

fn check(setting: &'static str, got: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&got) {
        Ok(())
    } else {
        Err(Error::Setting { setting, got, min: 1, max })
    }
}

fn check_dimensions(got: usize, hidden_size: usize) -> Result<()> {
    let (fewest, published) = MIN_DIMENSIONS;
    let min = if hidden_size >= published { fewest } else { 1 };
    if (min..=hidden_size).contains(&got) {
        Ok(())
    } else {
        Err(Error::Dimensions { got, min, max: hidden_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_32_to_hidden_for_published_sizes_and_any_for_smaller_models() {
        for (hidden_size, min) in [(1024, 32), (2560, 32), (4096, 32), (512, 1), (64, 1)] {
            for got in [min, min + 1, hidden_size - 1, hidden_size] {
                check_dimensions(got, hidden_size).unwrap();
            }
            for got in [0, min - 1, hidden_size + 1, usize::MAX] {
                let error = check_dimensions(got, hidden_size).unwrap_err();
                let range =
                    format!("{got} dimensions were asked for, there can be {min}..={hidden_size}");
                assert_eq!(error.to_string(), range);
            }
        }
    }
}
