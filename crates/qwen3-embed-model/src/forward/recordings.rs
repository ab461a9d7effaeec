use std::collections::HashSet;

use candle_core::{DType, Tensor};
use qwen3_embed_kernels::ops::{self, Recording};

use crate::batching::plan::Plan;
use crate::forward::workspace::Workspace;
use crate::{Model, Result};

/// The largest number of tokens of a text whose forward pass is recorded. The device needs longer for a longer text than
/// the host needs to start its operations.
const MAX_RECORDED: usize = 256;

/// The largest number of tokens in all recordings together, which limits their memory.
const MAX_TOKENS: usize = 2048;

/// The recorded forward passes of short texts, on devices that [record](ops::record): one for each number of tokens.
#[derive(Debug, Default)]
pub(crate) struct Recordings {
    /// The numbers of tokens for which a text was computed.
    seen: HashSet<usize>,
    /// The most recently used recording is the last one.
    recorded: Vec<Recorded>,
}

/// A recorded forward pass. The recording keeps the memory for the activations.
#[derive(Debug)]
struct Recorded {
    n_tokens: usize,
    /// The residual stream, [T, C]. It is overwritten with the token embeddings before each replay.
    x: Tensor,
    /// The hidden state of the last token, [1, C].
    hidden: Tensor,
    layers: Recording,
}

impl Recordings {
    /// Adds a recording, and removes those that were not used for the longest time.
    fn insert(&mut self, new: Recorded) {
        let mut n_tokens = new.n_tokens;
        self.recorded.push(new);
        let newest = self.recorded.iter().rev().skip(1);
        let kept = newest.take_while(|other| {
            n_tokens += other.n_tokens;
            n_tokens <= MAX_TOKENS
        });
        let n_kept = 1 + kept.count();
        self.recorded.drain(..self.recorded.len() - n_kept);
    }

    /// Makes the recording for this number of tokens the most recently used.
    fn last_used(&mut self, n_tokens: usize) -> Option<&mut Recorded> {
        let at = self.recorded.iter().position(|recorded| recorded.n_tokens == n_tokens)?;
        self.recorded[at..].rotate_left(1);
        self.recorded.last_mut()
    }
}

impl Model {
    /// Whether a text of `n_tokens` tokens that is computed alone is recorded.
    pub(super) fn records(&self, n_tokens: usize) -> bool {
        ops::records(&self.device) && n_tokens <= MAX_RECORDED
    }

    /// Whether a batch is a single text whose number of tokens determines its operations.
    pub(super) fn is_recorded(&self, plan: &Plan) -> bool {
        let Plan { batch, given, kept, .. } = plan;
        let is_alone = batch.n_segments() == 1 && batch.n_last() == 1;
        is_alone && given.is_empty() && kept.is_empty() && self.records(batch.n_tokens())
    }

    /// The hidden state of the only text of a batch, if there is a recorded forward pass for its number of tokens.
    /// Otherwise `None`. The second text with the same number of tokens is recorded.
    pub(super) fn replay(
        &self,
        plan: &Plan,
        recordings: &mut Recordings,
    ) -> Result<Option<Vec<f32>>> {
        let n_tokens = plan.ids.len();
        if let Some(Recorded { x, hidden, layers, .. }) = recordings.last_used(n_tokens) {
            self.embed_tokens.gather_to(&plan.ids, x)?;
            layers.replay()?;
            return Ok(Some(ops::to_f32(hidden)?));
        }
        if recordings.seen.insert(n_tokens) {
            return Ok(None);
        }
        let x = self.embed_tokens.gather(&plan.ids, &self.device)?;
        let rope = self.rope.gather(&plan.batch, &self.device)?;
        let hidden = Tensor::zeros((1, self.config.hidden_size), DType::F32, &self.device)?;
        let mut workspace = Workspace::default();
        let mut compute =
            || self.decode(plan, &x, &rope, &mut workspace, &mut None, &hidden).map(drop);
        // The first run allocates memory.
        compute()?;
        let values = ops::to_f32(&hidden)?;
        if let Some(layers) = ops::record(&self.device, compute)? {
            recordings.insert(Recorded { n_tokens, x, hidden, layers });
        }
        Ok(Some(values))
    }
}
