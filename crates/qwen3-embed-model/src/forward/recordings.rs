use std::sync::PoisonError;

use candle_core::{DType, Tensor};
use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::ops::{self, Recorder, Recording};

use crate::batching::plan::Plan;
use crate::forward::workspace::Workspace;
use crate::{Config, Model, Result};

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
const PADDING: u32 = 0;

/// The forward passes of short texts, recorded on a device: see decision 0055.
#[derive(Debug, Default)]
pub(crate) struct Recordings {
    recorder: Option<Recorder>,
    /// A recording for each number of steps, from one on.
    recorded: Vec<Option<Recorded>>,
    /// How often the device could not record, for example because it had no memory left.
    n_failed: usize,
}

/// A recorded forward pass. The recording keeps all other memory that it uses.
#[derive(Debug)]
struct Recorded {
    /// The residual stream, [T, C]. It begins with the token embeddings.
    x: Tensor,
    /// The hidden states after the final norm, [T, C].
    hidden: Tensor,
    /// The hidden state of the last token of a text, [1, C].
    last: Tensor,
    layers: Recording,
}

impl Recordings {
    /// Frees the memory of all recordings.
    pub(super) fn clear(&mut self) {
        self.recorded.clear();
        self.recorder = None;
    }
}

/// Whether forward passes for a text of `n_tokens` tokens are recorded.
fn is_recorded(config: &Config, n_tokens: usize) -> bool {
    let heads = config.heads();
    let attention = heads.qkv_columns() + heads.q_columns();
    let n_weights = config.hidden_size * (attention + 3 * config.intermediate_size);
    n_tokens <= MAX_TOKENS && n_weights <= MAX_WEIGHTS
}

impl Model {
    /// The hidden state of the last token of a text, from a recorded forward pass. A forward pass is recorded before it
    /// is first used. `None` if the text or the model is too large, or if the device cannot record.
    ///
    /// The model must be causal.
    pub(super) fn forward_recorded(&self, text: &[u32]) -> Option<Vec<f32>> {
        if ops::reads_host_memory(&self.device) || !is_recorded(&self.config, text.len()) {
            return None;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let recordings = &mut self.recordings.lock().unwrap_or_else(PoisonError::into_inner);
        if recordings.n_failed == MAX_FAILED {
            return None;
        }
        let computed = self.replay(text, recordings);
        if computed.is_err() {
            // The text can be computed without a recording. If the device fails there, too, that error is reported.
            recordings.n_failed += 1;
            recordings.clear();
        }
        computed.ok().flatten()
    }

    fn replay(&self, text: &[u32], recordings: &mut Recordings) -> Result<Option<Vec<f32>>> {
        let n_steps = text.len().div_ceil(STEP);
        let Recordings { recorder, recorded, .. } = recordings;
        if recorder.is_none() {
            *recorder = Recorder::new(&self.device)?;
        }
        let Some(recorder) = recorder else { return Ok(None) };
        if recorded.len() <= n_steps {
            recorded.resize_with(n_steps + 1, || None);
        }
        let recorded = match &mut recorded[n_steps] {
            Some(known) => known,
            new => new.insert(self.record(n_steps * STEP, recorder)?),
        };
        let Recorded { x, hidden, last, layers } = recorded;
        let mut ids = text.to_vec();
        ids.resize(n_steps * STEP, PADDING);
        self.embed_tokens.gather_to(&ids, x)?;
        layers.replay()?;
        // `check_tokens` has checked that the text is not empty, and that its length fits in u32.
        ops::gather_rows_to(hidden, &[text.len() as u32 - 1], last)?;
        Ok(Some(ops::to_f32(last)?))
    }

    /// Records the forward pass of a text of `n_tokens` tokens.
    fn record(&self, n_tokens: usize, recorder: &Recorder) -> Result<Recorded> {
        let (c, ids) = (self.config.hidden_size, vec![PADDING; n_tokens]);
        let (batch, texts) = (Ragged::from_lengths([n_tokens])?, Vec::new());
        let x = self.embed_tokens.gather(&ids, &self.device)?;
        let rope = self.rope.gather(&batch, &self.device)?;
        let [hidden, last] =
            [n_tokens, 1].map(|n_rows| Tensor::zeros((n_rows, c), DType::F32, &self.device));
        let (hidden, last) = (hidden?, last?);
        let plan = Plan { batch, ids, texts, given: Vec::new(), kept: Vec::new() };
        let mut workspace = Workspace::default();
        let mut compute =
            || self.decode(&plan, &x, &rope, &mut workspace, &mut None, &hidden).map(drop);
        // The first run allocates memory.
        compute()?;
        let layers = recorder.record(compute)?;
        Ok(Recorded { x, hidden, last, layers })
    }
}
