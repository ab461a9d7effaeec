use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{Device, Tensor};
use qwen3_embed_kernels::ops::{self, Recorder, Recording};

use crate::forward::token_embeddings::TokenEmbeddings;
use crate::{Config, Result};

/// Texts are padded to a multiple of this number of tokens, so that one recording is for several lengths.
const STEP: usize = 32;

/// The largest number of tokens, with padding, of a recorded forward pass. For a longer text, a device needs longer than
/// the host needs to launch the operations: see `bench/GPU.md`.
const MAX_TOKENS: usize = 512;

/// The largest number of weights of a layer for which forward passes are recorded. Reading more weights takes longer than
/// launching the operations of a layer, also on the fastest devices. A layer of a 0.6B model has 16 million weights, and a
/// layer of a 4B model 100 million.
const MAX_WEIGHTS: usize = 32 << 20;

/// After so many failures, texts are computed like other batches. A single one may be the fault of another thread, which
/// has closed a device at that moment.
const MAX_FAILED: usize = 3;

/// Any token of the vocabulary. Padding comes after the text, so the text does not see it.
pub(super) const PADDING: u32 = 0;

/// The forward passes of short texts, recorded on a device: see decision 0055.
#[derive(Debug, Default)]
pub(crate) struct Recordings {
    recorder: Option<Recorder>,
    /// A recording for each number of tokens with padding.
    recorded: BTreeMap<usize, Recorded>,
    /// How often the device could not record, for example because it had no memory left.
    n_failed: usize,
}

/// A recorded forward pass. The recording keeps all other memory that it uses.
#[derive(Debug)]
pub(super) struct Recorded {
    /// The residual stream, [T, C]. It begins with the token embeddings.
    pub(super) x: Tensor,
    /// The hidden states after the final norm, [T, C].
    pub(super) hidden: Tensor,
    /// The hidden state of the last token of a text, [1, C].
    pub(super) last: Tensor,
    pub(super) layers: Recording,
}

/// Whether forward passes for a text of `n_tokens` tokens are recorded.
pub(super) fn is_recorded(config: &Config, n_tokens: usize) -> bool {
    let heads = config.heads();
    let attention = heads.qkv_columns() + heads.q_columns();
    let n_weights = config.hidden_size * (attention + 3 * config.intermediate_size);
    n_tokens <= MAX_TOKENS && n_weights <= MAX_WEIGHTS
}

impl Recordings {
    /// The hidden state of the last token of a text, from a recorded forward pass. `None` if the device cannot record.
    ///
    /// `record` records the forward pass of a text with a number of tokens. It is called before a recording is first
    /// used.
    pub(super) fn replay(
        &mut self,
        text: &[u32],
        embed_tokens: &TokenEmbeddings,
        device: &Device,
        record: impl FnOnce(usize, &Recorder) -> Result<Recorded>,
    ) -> Option<Vec<f32>> {
        if self.n_failed == MAX_FAILED {
            return None;
        }
        let computed = self.try_replay(text, embed_tokens, device, record);
        if computed.is_err() {
            // The text can be computed without a recording. If the device fails there, too, that error is reported.
            self.n_failed += 1;
            self.clear();
        }
        computed.ok().flatten()
    }

    fn try_replay(
        &mut self,
        text: &[u32],
        embed_tokens: &TokenEmbeddings,
        device: &Device,
        record: impl FnOnce(usize, &Recorder) -> Result<Recorded>,
    ) -> Result<Option<Vec<f32>>> {
        let n_tokens = text.len().next_multiple_of(STEP);
        if self.recorder.is_none() {
            self.recorder = Recorder::new(device)?;
        }
        let Some(recorder) = &self.recorder else { return Ok(None) };
        let recorded = match self.recorded.entry(n_tokens) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(record(n_tokens, recorder)?),
        };
        let Recorded { x, hidden, last, layers } = recorded;
        let mut ids = text.to_vec();
        ids.resize(n_tokens, PADDING);
        embed_tokens.gather_to(&ids, x)?;
        layers.replay()?;
        // `check_tokens` has checked that the text is not empty, and that its length fits in u32.
        ops::gather_rows_to(hidden, &[text.len() as u32 - 1], last)?;
        Ok(Some(ops::to_f32(last)?))
    }

    /// Frees the memory of all recordings.
    pub(super) fn clear(&mut self) {
        self.recorded.clear();
        self.recorder = None;
    }
}
