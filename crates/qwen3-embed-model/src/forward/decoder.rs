use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::Arithmetic;
use qwen3_embed_kernels::ops::{self, Recorder, ReleaseOnDrop};
use qwen3_embed_kernels::{Error as KernelError, Queries, Ragged};

use crate::batching::budget::in_batches;
use crate::batching::plan::{self, Given, Kept, Plan};
use crate::batching::prefix_cache::{Prefix, PrefixCache};
use crate::batching::sharing::{Sharing, SharingCounts};
use crate::forward::dense::Dense;
use crate::forward::layer::DecoderLayer;
use crate::forward::quantizer::round_to_int8;
use crate::forward::recordings::{PADDING, Recorded, Recordings, is_recorded};
use crate::forward::rope::RopeTable;
use crate::forward::token_embeddings::TokenEmbeddings;
use crate::forward::workspace::{self, Workspace};
use crate::numerics::Numerics;
use crate::precision::Precision;
use crate::{Config, Error, Pooling, Result};

/// A Qwen3 decoder with its pooling and its dense layers: computes a vector for each text.
///
/// The decoder is a stack of layers. Each layer computes `x += attention(norm(x))` and then `x += mlp(norm(x))` for a
/// ragged batch, in which the tokens of all texts are concatenated without padding. The residual stream x is f32.
///
/// # Source
///
/// `Qwen3Model` of transformers; *Qwen3 Embedding* (2025).
#[derive(Debug)]
pub struct Model {
    pub(super) config: Config,
    pub(super) embed_tokens: TokenEmbeddings,
    pub(super) layers: Vec<DecoderLayer>,
    pub(super) norm: Tensor,
    pub(super) rope: RopeTable,
    pub(super) pooling: Pooling,
    /// The layers after the pooling, in their order.
    pub(super) dense: Vec<Dense>,
    /// Whether vectors are rounded to 8-bit integers in the last step.
    pub(super) quantizes: bool,
    pub(super) numerics: Numerics,
    pub(super) device: candle_core::Device,
    /// Workspaces that no call uses at the moment. Concurrent calls use one each.
    pub(super) workspaces: Mutex<Vec<Workspace>>,
    pub(super) recordings: Mutex<Recordings>,
    /// Held while a batch is computed, on devices that compute one batch at a time.
    pub(super) turn: Mutex<()>,
    pub(super) batch_tokens: usize,
    pub(super) sharing: Sharing,
    pub(super) prefixes: PrefixCache,
    pub(super) n_tokens: AtomicU64,
    pub(super) n_computed: AtomicU64,
    /// The last field, so that it is dropped after all tensors.
    pub(super) _release: ReleaseOnDrop,
}

/// About how many texts of a batch the prefix cache remembers.
const NOTED_TEXTS: usize = 16;

/// A callback that receives the residual stream: for each layer its index and its input, then the number of layers and
/// the output of the last layer. Values are row-major [T, C].
pub type Trace<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl Model {
    /// Sets the number of tokens that a batch may have, which limits the memory of a call. A longer text is computed in
    /// a batch of its own. Batches are smaller if many short texts share a beginning, because attention packs the
    /// shared keys for each text. Default: no limit.
    pub fn with_batch_tokens(self, batch_tokens: usize) -> Self {
        Self { batch_tokens, ..self }
    }

    /// Sets whether tokens that texts have in common are computed once. Default: [`Sharing::default`].
    pub fn with_sharing(self, sharing: Sharing) -> Self {
        let capacity = match sharing {
            Sharing::On { cache_bytes } => cache_bytes,
            Sharing::Off => 0,
        };
        let kv_type = ops::attention_type(&self.device, self.numerics.activations);
        let bytes_per_token = self.layers.len() * self.kv_columns().len() * kv_type.size_in_bytes();
        Self { sharing, prefixes: PrefixCache::new(capacity, bytes_per_token), ..self }
    }

    /// The numbers of tokens that were computed and that sharing has saved, since the model was loaded.
    pub fn sharing_counts(&self) -> SharingCounts {
        let [cache_hits, cache_tokens, cache_bytes] = self.prefixes.counts();
        let [n_tokens, n_computed] =
            [&self.n_tokens, &self.n_computed].map(|count| count.load(Relaxed));
        SharingCounts { n_tokens, n_computed, cache_hits, cache_tokens, cache_bytes }
    }

    /// The columns of keys and values in the output of `qkv_proj`. They come after the columns of queries.
    fn kv_columns(&self) -> Range<usize> {
        let heads = self.config.heads();
        heads.q_columns()..heads.qkv_columns()
    }

    /// The arithmetic of the matrix multiplications. In integer arithmetic, a matrix multiplication whose input would
    /// lose too much accuracy uses another arithmetic.
    pub fn arithmetic(&self) -> Arithmetic {
        self.numerics.arithmetic
    }

    /// The precision of the weights. [`Precision::Stored`] is resolved when the model is loaded.
    pub fn precision(&self) -> Precision {
        self.numerics.precision
    }

    /// The size of the packed weights in bytes.
    #[cfg(test)]
    pub(crate) fn weight_bytes(&self) -> usize {
        let vectors = size_of::<f32>() * self.norm.elem_count();
        vectors + self.layers.iter().map(DecoderLayer::weight_bytes).sum::<usize>()
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The dimensions of a text's vector, E: the hidden size, or the width of the last dense layer.
    pub fn embedding_size(&self) -> usize {
        self.dense.last().map_or(self.config.hidden_size, Dense::n_out)
    }

    /// How the hidden states of a text's tokens are combined.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Computes the vector of each text, row-major [N, E]. Vectors are neither truncated nor normalized.
    ///
    /// A vector is the hidden state of the text's last token after the final norm, or the result of the modules in
    /// `modules.json`. On the CPU, the vector of a text is the same, bit for bit, whatever other texts are in the call
    /// and whatever calls came before.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`], [`Error::TooManyTokens`] or [`Error::TokenOutOfRange`] before anything is computed;
    /// [`Error::NotFinite`] if a vector is not finite; [`Error::OutOfMemory`] if the device has no memory for a batch,
    /// nor for a batch of half the tokens.
    pub fn forward(&self, texts: &[impl AsRef<[u32]>]) -> Result<Vec<f32>> {
        let n = self.embedding_size();
        let mut vectors = vec![0f32; texts.len() * n];
        self.forward_each(texts, |text, row| vectors[text * n..][..n].copy_from_slice(row))?;
        Ok(vectors)
    }

    /// Computes texts as [`forward`](Self::forward) does, in one batch and without sharing, and calls `trace` before
    /// each layer and after the last one. Use it to compare with another implementation layer by layer.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_traced(
        &self,
        texts: &[impl AsRef<[u32]>],
        trace: Trace<'_>,
    ) -> Result<Vec<f32>> {
        self.check_tokens(texts)?;
        let mut vectors = Vec::with_capacity(texts.len() * self.embedding_size());
        if !texts.is_empty() {
            let plan = self.plan_whole(texts, 0, usize::MAX)?;
            self.run(&plan, texts, &mut Some(trace), |_, row| vectors.extend_from_slice(row))?;
        }
        Ok(vectors)
    }

    /// Computes texts as [`forward`](Self::forward) does, and calls `each` with the index and the vector of a text as
    /// soon as its batch is computed. Texts may come in any order.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward). Before [`Error::NotFinite`] and [`Error::OutOfMemory`], `each` may have been
    /// called for the texts of earlier batches.
    pub fn forward_each(
        &self,
        texts: &[impl AsRef<[u32]>],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check_tokens(texts)?;
        // A shared token must not depend on later tokens, and its hidden state must not be part of the result.
        let can_share = self.config.is_causal && self.pooling == Pooling::LastToken;
        let is_shared = can_share && self.sharing != Sharing::Off;
        if let [text] = texts
            && can_share
            && let Some(hidden) = self.forward_recorded(text.as_ref())
        {
            let plan = self.plan_whole(texts, 0, usize::MAX)?;
            return self.finish(hidden, &plan, texts, Vec::new(), &mut each);
        }
        let order = if is_shared { plan::order(texts) } else { Vec::new() };
        in_batches(texts.len(), self.batch_tokens, |start, budget| {
            let plan = if is_shared {
                let (known, max_kept) = (self.prefixes.known(), self.prefixes.max_tokens());
                plan::shared(texts, &order[start..], budget, &known, max_kept)?.0
            } else {
                self.plan_whole(texts, start, budget)?
            };
            self.run(&plan, texts, &mut None, &mut each)?;
            Ok(plan.texts.len())
        })
    }

    /// Plans the next batch without sharing, from text `start` on.
    fn plan_whole(&self, texts: &[impl AsRef<[u32]>], start: usize, budget: usize) -> Result<Plan> {
        let mut plan = plan::whole(texts, start, budget)?;
        if !self.config.is_causal {
            plan.batch = plan.batch.bidirectional()?;
        }
        Ok(plan)
    }

    /// Whether forward passes compute on the threads of rayon's current pool. On other devices than the CPU, they do so
    /// only for dense layers after the pooling.
    pub fn uses_threads(&self) -> bool {
        ops::reads_host_memory(&self.device) || !self.dense.is_empty()
    }

    /// Computes a batch, and calls `each` for its texts.
    fn run(
        &self,
        plan: &Plan,
        texts: &[impl AsRef<[u32]>],
        trace: &mut Option<Trace<'_>>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (hidden, prefixes) = self.take_turn(plan, trace)?;
        self.finish(hidden, plan, texts, prefixes, &mut each)
    }

    /// Computes the vectors of a batch from its hidden states, and calls `each` for its texts.
    fn finish(
        &self,
        hidden: Vec<f32>,
        plan: &Plan,
        texts: &[impl AsRef<[u32]>],
        prefixes: Vec<Prefix>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (vectors, n) = (self.vectors(hidden, plan)?, self.embedding_size());
        let rows = plan.texts.iter().map(|&(text, row)| (text, &vectors[row * n..][..n]));
        for (text, row) in rows.clone() {
            check_finite(text, row)?;
        }
        // Prefixes are kept only after the check: values that are not finite would spoil later calls.
        prefixes.into_iter().for_each(|prefix| self.prefixes.insert(prefix));
        rows.for_each(|(text, row)| each(text, row));
        let tokens = plan.texts.iter().map(|&(text, _)| texts[text].as_ref());
        let n_tokens: usize = tokens.clone().map(<[u32]>::len).sum();
        self.n_tokens.fetch_add(n_tokens as u64, Relaxed);
        self.n_computed.fetch_add(plan.ids.len() as u64, Relaxed);
        for Given { prefix, tokens, .. } in &plan.given {
            self.prefixes.note_use(prefix, tokens.len());
        }
        self.prefixes.note_texts(tokens.step_by(plan.texts.len() / NOTED_TEXTS + 1));
        Ok(())
    }

    /// Computes a batch in a workspace of its own. On some devices, only one batch is computed at a time.
    ///
    /// No code that runs under the lock may wait for other threads: a waiting thread of rayon might start another call,
    /// which would then wait for the lock forever.
    fn take_turn(
        &self,
        plan: &Plan,
        trace: &mut Option<Trace<'_>>,
    ) -> Result<(Vec<f32>, Vec<Prefix>)> {
        let turn = || self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _turn = ops::takes_turns(&self.device).then(turn);
        let mut workspace = self.workspace();
        self.check_memory(&plan.batch, &mut workspace)?;
        match self.forward_batch(plan, &mut workspace, trace) {
            Err(Error::Kernel(source @ KernelError::OutOfMemory(_))) => {
                // The workspaces and the recordings are freed before the free memory is measured.
                drop(workspace);
                self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.recordings.lock().unwrap_or_else(PoisonError::into_inner).clear();
                // A device that does not report its free memory is assumed to have none.
                let free_bytes = ops::free_bytes(&self.device).ok().flatten().unwrap_or(0);
                Err(self.out_of_memory(plan.batch.n_rows(), free_bytes, Some(Box::new(source))))
            }
            computed => {
                self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
                computed
            }
        }
    }

    /// Fails if a batch needs more host memory than this process can still use. Systems grant more memory than they
    /// have, and end the process when it uses the memory. Free memory is measured only if a large workspace would have
    /// to be allocated.
    fn check_memory(&self, batch: &Ragged, workspace: &mut Workspace) -> Result<()> {
        const UNCHECKED_BYTES: usize = 16 << 20;
        let needed_bytes = self.bytes_per_token().saturating_mul(batch.n_rows());
        let is_host = ops::reads_host_memory(&self.device);
        if !is_host || needed_bytes <= UNCHECKED_BYTES || workspace.has_room(batch) {
            return Ok(());
        }
        // The smaller workspace is freed before the free memory is measured.
        *workspace = Workspace::default();
        match ops::free_bytes(&self.device)? {
            Some(free_bytes) if free_bytes < needed_bytes => {
                Err(self.out_of_memory(batch.n_rows(), free_bytes, None))
            }
            _ => Ok(()),
        }
    }

    /// The memory of a token's activations in bytes, estimated.
    fn bytes_per_token(&self) -> usize {
        workspace::bytes_per_token(&self.config, self.numerics, &self.device)
    }

    /// The error that the device has no memory for a batch of `n_tokens` tokens.
    fn out_of_memory(
        &self,
        n_tokens: usize,
        free_bytes: usize,
        source: Option<Box<KernelError>>,
    ) -> Error {
        let bytes_per_token = self.bytes_per_token();
        let needed_bytes = n_tokens.saturating_mul(bytes_per_token);
        let fitting_tokens = (free_bytes / bytes_per_token).min(n_tokens / 2);
        Error::OutOfMemory { n_tokens, needed_bytes, free_bytes, fitting_tokens, source }
    }

    /// Takes a workspace that no other call uses.
    fn workspace(&self) -> Workspace {
        let mut free = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    /// Runs the decoder. Returns hidden states after the final norm, and the prefixes for the cache.
    ///
    /// With last-token pooling, only hidden states of last tokens are returned: a hidden state for each text that ends
    /// in the batch, or for each segment in a batch without sharing. With other poolings, there is a hidden state for
    /// each token.
    fn forward_batch(
        &self,
        plan: &Plan,
        workspace: &mut Workspace,
        trace: &mut Option<Trace<'_>>,
    ) -> Result<(Vec<f32>, Vec<Prefix>)> {
        let x = self.embed_tokens.gather(&plan.ids, &self.device)?;
        let rope = self.rope.gather(&plan.batch, &self.device)?;
        let (batch, device) = (&plan.batch, &self.device);
        let n_hidden = match (self.pooling, batch.n_last()) {
            (Pooling::LastToken, 0) => batch.n_segments(),
            (Pooling::LastToken, n_last) => n_last,
            _ => batch.n_tokens(),
        };
        let hidden = Tensor::zeros((n_hidden, self.config.hidden_size), x.dtype(), device)?;
        let prefixes = self.decode(plan, &x, &rope, workspace, trace, &hidden)?;
        Ok((ops::to_f32(&hidden)?, prefixes))
    }

    /// The hidden state of the last token of a short text, from a recorded forward pass. `None` if the text or the model
    /// is too large, or if the device cannot record. The model must be causal.
    fn forward_recorded(&self, text: &[u32]) -> Option<Vec<f32>> {
        if ops::reads_host_memory(&self.device) || !is_recorded(&self.config, text.len()) {
            return None;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recordings = self.recordings.lock().unwrap_or_else(PoisonError::into_inner);
        let record = |n_tokens, recorder: &Recorder| self.record(n_tokens, recorder);
        recordings.replay(text, &self.embed_tokens, &self.device, record)
    }

    /// Records the forward pass of a text of `n_tokens` tokens.
    fn record(&self, n_tokens: usize, recorder: &Recorder) -> Result<Recorded> {
        let plan = self.plan_whole(&[vec![PADDING; n_tokens]], 0, usize::MAX)?;
        let x = self.embed_tokens.gather(&plan.ids, &self.device)?;
        let rope = self.rope.gather(&plan.batch, &self.device)?;
        let rows = |n_rows| Tensor::zeros((n_rows, x.dim(1)?), x.dtype(), &self.device);
        let (hidden, last) = (rows(n_tokens)?, rows(1)?);
        let mut workspace = Workspace::default();
        let mut decode =
            || self.decode(&plan, &x, &rope, &mut workspace, &mut None, &hidden).map(drop);
        // The first run allocates memory.
        decode()?;
        let layers = recorder.record(decode)?;
        Ok(Recorded { x, hidden, last, layers })
    }

    /// Runs the layers and the final norm on the residual stream `x`, [T, C]. Writes hidden states to `hidden`. In a batch
    /// without sharing, it has a row for each token, or for the last token of each segment. Otherwise, it has a row for
    /// each text that ends in the batch. Returns the prefixes for the cache.
    fn decode(
        &self,
        plan: &Plan,
        x: &Tensor,
        [cos, sin]: &[Tensor; 2],
        workspace: &mut Workspace,
        trace: &mut Option<Trace<'_>>,
        hidden: &Tensor,
    ) -> Result<Vec<Prefix>> {
        let batch = &plan.batch;
        let mut x = x.clone();
        let mut show = |layer_idx: usize, x: &Tensor| -> Result<()> {
            if let Some(trace) = trace {
                trace(layer_idx, &ops::to_f32(x)?);
            }
            Ok(())
        };
        let room = workspace.room(batch, &self.config, self.numerics.activations, &self.device)?;
        let mut kept: Vec<Vec<Tensor>> = vec![Vec::new(); plan.kept.len()];
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            show(layer_idx, &x)?;
            self.give(&plan.given, layer_idx, &room.qkv)?;
            let is_last = layer_idx + 1 == self.layers.len() && batch.n_last() > 0;
            let queries = if is_last { Queries::Last } else { Queries::All };
            x = layer.forward(&x, [cos, sin], batch, queries, &room)?;
            for (layers, kept) in kept.iter_mut().zip(&plan.kept) {
                layers.push(self.keep(kept, &room.qkv)?);
            }
        }
        show(self.layers.len(), &x)?;
        if hidden.dims()[0] < x.dims()[0] {
            [x] = ops::gather_rows(&self.device, [&x], &batch.last_rows())?;
        }
        ops::rms_norm(&x, &self.norm, self.config.rms_norm_eps, hidden)?;
        let prefixes = kept.into_iter().zip(&plan.kept);
        let prefixes =
            prefixes.map(|(layers, kept)| Prefix { tokens: kept.tokens.clone(), layers });
        Ok(prefixes.collect())
    }

    /// Computes the texts' vectors from the hidden states of a batch.
    fn vectors(&self, hidden: Vec<f32>, plan: &Plan) -> Result<Vec<f32>> {
        let mut vectors = match self.pooling {
            Pooling::LastToken => hidden,
            pooling => pooling.pool(&hidden, &plan.batch, self.config.hidden_size),
        };
        for dense in &self.dense {
            vectors = dense.forward(vectors)?;
        }
        if self.quantizes {
            round_to_int8(&mut vectors);
        }
        Ok(vectors)
    }

    /// Copies the keys and values of one layer from prefixes in the cache to the given rows of `qkv`.
    fn give(&self, given: &[Given], layer_idx: usize, qkv: &Tensor) -> Result<()> {
        let Range { start, end } = self.kv_columns();
        for Given { prefix, tokens, row } in given {
            let known = prefix.layers[layer_idx].narrow(0, tokens.start, tokens.len())?;
            let rows = qkv.narrow(0, *row, tokens.len())?.narrow(1, start, end - start)?;
            ops::copy_rows(&known, &rows)?;
        }
        Ok(())
    }

    /// Copies the keys and values of one layer from `qkv`, for a prefix that is put into the cache.
    fn keep(&self, kept: &Kept, qkv: &Tensor) -> Result<Tensor> {
        let Range { start, end } = self.kv_columns();
        let copy = Tensor::zeros((kept.rows.len(), end - start), qkv.dtype(), &self.device)?;
        let mut n_copied = 0;
        for rows in kept.rows.chunk_by(|row, next| row + 1 == *next) {
            let from = qkv.narrow(0, rows[0], rows.len())?.narrow(1, start, end - start)?;
            ops::copy_rows(&from, &copy.narrow(0, n_copied, rows.len())?)?;
            n_copied += rows.len();
        }
        Ok(copy)
    }

    /// Checks the tokens of all texts, as [`forward`](Self::forward) does before it computes.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`], [`Error::TooManyTokens`] or [`Error::TokenOutOfRange`].
    pub fn check_tokens(&self, texts: &[impl AsRef<[u32]>]) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        let limit = self.config.max_position_embeddings;
        for (text, tokens) in texts.iter().enumerate() {
            let tokens = tokens.as_ref();
            if tokens.is_empty() {
                return Err(Error::EmptyText { text });
            }
            if tokens.len() > limit {
                return Err(Error::TooManyTokens { text, n_tokens: tokens.len(), limit });
            }
            if let Some(position) = tokens.iter().position(|&id| id as usize >= vocab_size) {
                let id = tokens[position];
                return Err(Error::TokenOutOfRange { text, position, id, vocab_size });
            }
        }
        Ok(())
    }
}

fn check_finite(text: usize, row: &[f32]) -> Result<()> {
    match row.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(dimension) => Err(Error::NotFinite { text, dimension, value: row[dimension] }),
    }
}
