use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::Arithmetic;
use qwen3_embed_kernels::{Error as KernelError, Queries, ops};

use crate::batching::plan::{self, Given, Kept, Plan};
use crate::batching::prefix_cache::{Prefix, PrefixCache};
use crate::batching::sharing::{Sharing, SharingCounts};
use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::file::read_file;
use crate::checkpoint::modules::{Modules, quantize};
use crate::checkpoint::weights::Weights;
use crate::forward::calibration::Calibration;
use crate::forward::dense::Dense;
use crate::forward::layer::{DecoderLayer, LayerLoader};
use crate::forward::rope::RopeTable;
use crate::forward::token_embeddings::TokenEmbeddings;
use crate::forward::workspace::{self, Workspace};
use crate::numerics::Numerics;
use crate::{Config, Device, Error, Pooling, Precision, Result};

/// A Qwen3 decoder and what makes a vector of what it computes.
///
/// It is a stack of layers, each `x += attention(norm(x))` and then `x += mlp(norm(x))`, over a
/// ragged batch: the tokens of all texts end to end. The residual stream is f32.
///
/// # Source
///
/// `Qwen3Model` of transformers; *Qwen3 Embedding* (2025).
#[derive(Debug)]
pub struct Model {
    config: Config,
    embed_tokens: TokenEmbeddings,
    layers: Vec<DecoderLayer>,
    norm: Tensor,
    rope: RopeTable,
    pooling: Pooling,
    /// Behind the pooling, one after another.
    dense: Vec<Dense>,
    /// Whether vectors are brought into whole numbers of 8 bits in the end.
    quantizes: bool,
    numerics: Numerics,
    device: candle_core::Device,
    /// Room for activations, one for each call that has run at the same time as others.
    workspaces: Mutex<Vec<Workspace>>,
    /// Whose turn it is, on a device where callers take turns.
    turn: Mutex<()>,
    batch_tokens: usize,
    sharing: Sharing,
    prefixes: PrefixCache,
    n_tokens: AtomicU64,
    n_computed: AtomicU64,
}

/// Texts of a batch whose beginnings are remembered, about.
const NOTED_TEXTS: usize = 16;

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// How its weights are kept and multiplied.
    pub precision: Precision,
    /// The folder of a LoRA adapter, as PEFT writes it, that is added to the weights. A `modules.json` in
    /// it comes before the model's.
    pub adapter: Option<PathBuf>,
    /// Whether the CPU has a copy of the token embeddings in memory, in place of the pages of their file: see
    /// [`Model::load`].
    pub preload: bool,
    /// Whether vectors are hidden states of last tokens, whatever `modules.json` makes of them.
    pub hidden_states: bool,
    /// How products are computed, be it fast on this processor or not, so that tests see the arithmetic of
    /// others. It must be one that weights of this precision have.
    #[doc(hidden)]
    pub arithmetic: Option<Arithmetic>,
}

impl LoadOptions {
    /// This precision, with products computed so on any processor.
    #[doc(hidden)]
    pub fn multiplying(precision: Precision, arithmetic: Arithmetic) -> Self {
        Self { precision, arithmetic: Some(arithmetic), ..Self::default() }
    }
}

/// Sees the residual stream as it passes: called with `i` and the input of layer `i`, then with the
/// number of layers and the output of the last. Values are row-major [T, C].
pub type Trace<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl Model {
    /// Loads the checkpoint at `path`. In a folder: `config.json` and `model.safetensors`, or the
    /// shards that `model.safetensors.index.json` lists, and the pooling and the dense layers that
    /// `modules.json` lists, if there is one. Anything else is read as a GGUF file, which holds all of
    /// it.
    ///
    /// The files are memory-mapped. Token embeddings are read from the map as they are needed, so
    /// the files must not be truncated or rewritten in place while the model lives; replacing them
    /// by renaming, as package managers and git do, is safe. When memory is short, the system drops pages of the map
    /// and reads them again from disk. With [`preload`](LoadOptions::preload), token embeddings are copied into
    /// memory, and no file is needed once the model is loaded.
    ///
    /// # Errors
    ///
    /// A missing or damaged file, a configuration that is not supported, or a tensor that does not
    /// fit it: each variant of [`Error`] names the file and what is wrong in it.
    pub fn load(path: &Path, device: Device, precision: Precision) -> Result<Self> {
        Self::load_with(path, &LoadOptions { device, precision, ..LoadOptions::default() })
    }

    /// [`load`](Self::load) with more to choose.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and what is wrong with an adapter.
    pub fn load_with(path: &Path, options: &LoadOptions) -> Result<Self> {
        let &LoadOptions { device, precision, arithmetic, .. } = options;
        let device = device.open()?;
        let (config, mut weights) = open(path)?;
        if let Some(dir) = &options.adapter {
            weights = weights.with_adapter(Adapter::open(dir, &config)?);
        }
        let modules = match options.hidden_states {
            true => Modules::default(),
            false => read_modules(path, options)?.unwrap_or(Modules::plain(config.pooling)),
        };
        modules.check_class(path, &config)?;
        let projection = match options.hidden_states {
            true => None,
            false => Dense::projection(&weights, &config)?,
        };
        let dense = modules.load_dense(projection, config.hidden_size)?;
        let mut numerics = Numerics::choose(precision, weights.layer_types(), &device);
        if let Some(arithmetic) = arithmetic {
            numerics = Numerics::new(numerics.precision, arithmetic, &device);
        }
        let shape = [config.vocab_size, config.hidden_size];
        let embed_tokens = TokenEmbeddings::new(
            weights.rows("embed_tokens.weight", shape)?,
            &device,
            options.preload,
        )?;
        let norm = weights.vector("norm.weight", config.hidden_size)?;
        let norm = Tensor::from_vec(norm, config.hidden_size, &device)?;
        let rope =
            RopeTable::new(config.head_dim, config.rope_theta, config.max_position_embeddings);
        let mut calibration = match numerics.needs_calibration(weights.are_q8_0()) {
            true => Some(Calibration::new(&config, &embed_tokens, &rope, &device)?),
            false => None,
        };
        let mut layers = Vec::new();
        for layer_idx in 0..config.num_hidden_layers {
            let (weights, config, device) = (&weights, &config, &device);
            let loader = LayerLoader { weights, config, layer_idx, numerics, device };
            layers.push(loader.load(calibration.as_mut())?);
        }
        let (n_tokens, n_computed) = Default::default();
        let model = Self {
            config,
            embed_tokens,
            layers,
            norm,
            rope,
            pooling: modules.pooling,
            dense,
            quantizes: modules.quantizes,
            numerics,
            device,
            workspaces: Mutex::default(),
            turn: Mutex::default(),
            batch_tokens: usize::MAX,
            sharing: Sharing::Off,
            prefixes: PrefixCache::new(0, 0),
            n_tokens,
            n_computed,
        };
        Ok(model.with_sharing(Sharing::default()))
    }

    /// Computes calls in batches of about this many tokens, which bounds the memory that they take;
    /// a longer text is computed alone. A batch has fewer where many short texts share a beginning, because
    /// attention's keys are packed for each. Default: no limit.
    pub fn with_batch_tokens(self, batch_tokens: usize) -> Self {
        Self { batch_tokens, ..self }
    }

    /// Shares what texts have in common, or not. Default: [`Sharing::default`].
    pub fn with_sharing(self, sharing: Sharing) -> Self {
        let capacity = match sharing {
            Sharing::On { cache_bytes } => cache_bytes,
            Sharing::Off => 0,
        };
        let kv_type = ops::attention_type(&self.device, self.numerics.activations);
        let bytes_per_token = self.layers.len() * self.kv_columns().len() * kv_type.size_in_bytes();
        Self { sharing, prefixes: PrefixCache::new(capacity, bytes_per_token), ..self }
    }

    /// What was computed so far, and what sharing has saved.
    pub fn sharing_counts(&self) -> SharingCounts {
        let [cache_hits, cache_tokens, cache_bytes] = self.prefixes.counts();
        let [n_tokens, n_computed] =
            [&self.n_tokens, &self.n_computed].map(|count| count.load(Relaxed));
        SharingCounts { n_tokens, n_computed, cache_hits, cache_tokens, cache_bytes }
    }

    /// The columns of keys and values behind those of queries.
    fn kv_columns(&self) -> Range<usize> {
        let heads = self.config.heads();
        heads.q_columns()..heads.qkv_columns()
    }

    /// How products are computed, most of them if they are in whole numbers: those whose input does not fit are
    /// computed otherwise.
    pub fn arithmetic(&self) -> Arithmetic {
        self.numerics.arithmetic
    }

    /// The precision of the weights: never [`Precision::Stored`], which is resolved when a model is loaded.
    pub fn precision(&self) -> Precision {
        self.numerics.precision
    }

    /// Bytes of the packed weights.
    #[cfg(test)]
    pub(crate) fn weight_bytes(&self) -> usize {
        let vectors = size_of::<f32>() * self.norm.elem_count();
        vectors + self.layers.iter().map(DecoderLayer::weight_bytes).sum::<usize>()
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Dimensions of a text's vector, E: the hidden size, unless a dense layer changes it.
    pub fn embedding_size(&self) -> usize {
        self.dense.last().map_or(self.config.hidden_size, Dense::n_out)
    }

    /// How a text's vector is made of its tokens'.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The vector of each text, row-major [N, E], neither truncated nor normalised: the hidden state of its
    /// last token after the final norm, or what the repository's modules make of its tokens' hidden
    /// states.
    ///
    /// On the processor, a text's row is the same, bit for bit, whatever else is in the call, and whatever
    /// earlier calls were.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`], [`Error::TooManyTokens`] or [`Error::TokenOutOfRange`] before anything
    /// is computed; [`Error::NotFinite`] if the result is not finite; [`Error::OutOfMemory`] if a device
    /// has no room for a batch, nor for one of half the tokens.
    pub fn forward(&self, texts: &[impl AsRef<[u32]>]) -> Result<Vec<f32>> {
        let n = self.embedding_size();
        let mut vectors = vec![0f32; texts.len() * n];
        self.forward_each(texts, |text, row| vectors[text * n..][..n].copy_from_slice(row))?;
        Ok(vectors)
    }

    /// [`forward`](Self::forward) without sharing, in one batch, showing the residual stream to `trace`
    /// before and after every layer: for comparing with another implementation layer by layer.
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

    /// [`forward`](Self::forward) for many texts: calls `each` with a text's index and its vector as soon as its
    /// batch is computed, in any order.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward); with [`Error::NotFinite`] `each` was called for the texts of
    /// earlier batches.
    pub fn forward_each(
        &self,
        texts: &[impl AsRef<[u32]>],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check_tokens(texts)?;
        // Only what comes before a token may be shared, and only where it is not itself asked for.
        let can_share = self.config.is_causal && self.pooling == Pooling::LastToken;
        let is_shared = can_share && self.sharing != Sharing::Off;
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

    /// The next batch of whole texts, from `start` on.
    fn plan_whole(&self, texts: &[impl AsRef<[u32]>], start: usize, budget: usize) -> Result<Plan> {
        let mut plan = plan::whole(texts, start, budget)?;
        if !self.config.is_causal {
            plan.batch = plan.batch.bidirectional()?;
        }
        Ok(plan)
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
        let (vectors, n) = (self.vectors(hidden, plan)?, self.embedding_size());
        let rows = plan.texts.iter().map(|&(text, row)| (text, &vectors[row * n..][..n]));
        for (text, row) in rows.clone() {
            check_finite(text, row)?;
        }
        // What is not finite would spoil the texts of later calls.
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

    /// Computes a batch in a workspace of its own, where it is one at a time on the device if that has to be.
    ///
    /// Whoever holds the turn waits for no other thread: a thread of rayon's that did might take up another
    /// call meanwhile, which would wait for the turn for ever.
    fn take_turn(
        &self,
        plan: &Plan,
        trace: &mut Option<Trace<'_>>,
    ) -> Result<(Vec<f32>, Vec<Prefix>)> {
        let turn = || self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _turn = ops::takes_turns(&self.device).then(turn);
        let mut workspace = self.workspace();
        match self.forward_batch(plan, &mut workspace, trace) {
            Err(Error::Kernel(source @ KernelError::OutOfMemory(_))) => {
                // What was kept for calls is given back, before it is seen how much there is.
                drop(workspace);
                self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Err(self.out_of_memory(plan.batch.n_rows(), source))
            }
            computed => {
                self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
                computed
            }
        }
    }

    /// The error of a batch of so many tokens that the device has no room for.
    fn out_of_memory(&self, n_tokens: usize, source: KernelError) -> Error {
        let bytes_per_token = workspace::bytes_per_token(&self.config, self.numerics, &self.device);
        // A device that does not say has nothing left.
        let free_bytes = ops::free_bytes(&self.device).ok().flatten().unwrap_or(0);
        let needed_bytes = n_tokens.saturating_mul(bytes_per_token);
        let fitting_tokens = (free_bytes / bytes_per_token).min(n_tokens / 2);
        let source = Box::new(source);
        Error::OutOfMemory { n_tokens, needed_bytes, free_bytes, fitting_tokens, source }
    }

    /// A workspace that no other call uses.
    fn workspace(&self) -> Workspace {
        let mut free = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    /// The hidden states that the texts' vectors are made of, and the prefixes that are to be kept. With
    /// last-token pooling there is a hidden state for each text that ends in the batch, or for each segment if
    /// none does, else for each token.
    fn forward_batch(
        &self,
        plan: &Plan,
        workspace: &mut Workspace,
        trace: &mut Option<Trace<'_>>,
    ) -> Result<(Vec<f32>, Vec<Prefix>)> {
        let batch = &plan.batch;
        let mut x = self.embed_tokens.gather(&plan.ids, &self.device)?;
        let (cos, sin) = self.rope.gather(batch, &self.device)?;
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
            x = layer.forward(&x, [&cos, &sin], batch, queries, &room)?;
            for (layers, kept) in kept.iter_mut().zip(&plan.kept) {
                layers.push(self.keep(kept, &room.qkv)?);
            }
        }
        show(self.layers.len(), &x)?;
        let prefixes = kept.into_iter().zip(&plan.kept);
        let prefixes =
            prefixes.map(|(layers, kept)| Prefix { tokens: kept.tokens.clone(), layers });
        if self.pooling == Pooling::LastToken && batch.n_last() == 0 {
            x = ops::gather_rows(&x, &batch.last_rows())?;
        }
        let hidden = x.zeros_like()?;
        ops::rms_norm(&x, &self.norm, self.config.rms_norm_eps, &hidden)?;
        Ok((ops::to_f32(&hidden)?, prefixes.collect()))
    }

    /// The vectors that are made of a batch's hidden states.
    fn vectors(&self, hidden: Vec<f32>, plan: &Plan) -> Result<Vec<f32>> {
        let mut vectors = match self.pooling {
            Pooling::LastToken => hidden,
            pooling => pooling.pool(&hidden, &plan.batch, self.config.hidden_size),
        };
        for dense in &self.dense {
            vectors = dense.forward(vectors)?;
        }
        if self.quantizes {
            quantize(&mut vectors);
        }
        Ok(vectors)
    }

    /// Writes the keys and values of a layer that are known to their rows.
    fn give(&self, given: &[Given], layer_idx: usize, qkv: &Tensor) -> Result<()> {
        let Range { start, end } = self.kv_columns();
        for Given { prefix, tokens, row } in given {
            let known = prefix.layers[layer_idx].narrow(0, tokens.start, tokens.len())?;
            let rows = qkv.narrow(0, *row, tokens.len())?.narrow(1, start, end - start)?;
            ops::copy_rows(&known, &rows)?;
        }
        Ok(())
    }

    /// A copy of a layer's keys and values of what is to be kept.
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

    /// Checks every text's tokens as [`forward`](Self::forward) does, without computing anything.
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

/// The modules that the adapter's folder lists, or else the model's.
fn read_modules(path: &Path, options: &LoadOptions) -> Result<Option<Modules>> {
    let of_adapter = options.adapter.as_deref().map(Modules::read).transpose()?;
    match of_adapter.flatten() {
        Some(modules) => Ok(Some(modules)),
        None => Modules::read(path),
    }
}

/// The configuration and the weights of a checkpoint's folder or of a GGUF file.
pub(crate) fn open(path: &Path) -> Result<(Config, Weights)> {
    let (config, weights) = if path.is_dir() {
        let config_path = path.join("config.json");
        let config = Config::from_json(&read_file(&config_path)?, &config_path)?;
        (config, Weights::open(path)?)
    } else {
        Weights::open_gguf(path)?
    };
    weights.check_names(&config)?;
    // Tables of this width are made before the layers are read.
    weights.vector("layers.0.self_attn.q_norm.weight", config.head_dim)?;
    Ok((config, weights))
}

/// Computes `n_texts` in batches: `compute` is called with how many texts are done and the tokens that the
/// next batch may have, and returns how many it has computed. Where a device has no room for a batch, all
/// that are left have half of its tokens.
fn in_batches(
    n_texts: usize,
    mut budget: usize,
    mut compute: impl FnMut(usize, usize) -> Result<usize>,
) -> Result<()> {
    let (mut n_done, mut was_halved) = (0, false);
    while n_done < n_texts {
        match compute(n_done, budget) {
            Ok(n) => n_done += n,
            Err(Error::OutOfMemory { n_tokens, .. }) if !was_halved && n_tokens > 1 => {
                (budget, was_halved) = (n_tokens / 2, true);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check_finite(text: usize, row: &[f32]) -> Result<()> {
    match row.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(dimension) => Err(Error::NotFinite { text, dimension, value: row[dimension] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_memory(n_tokens: usize) -> Error {
        let source = candle_core::Error::Msg("no memory".into());
        Error::OutOfMemory {
            n_tokens,
            needed_bytes: n_tokens << 20,
            free_bytes: 3 << 20,
            fitting_tokens: 3,
            source: Box::new(KernelError::OutOfMemory(source)),
        }
    }

    /// Texts of one token each, on a device that has room for `room` of them.
    fn batches(n_texts: usize, budget: usize, room: usize) -> (Vec<usize>, Result<()>) {
        let mut batches = Vec::new();
        let result = in_batches(n_texts, budget, |n_done, budget| {
            let n = budget.min(n_texts - n_done);
            if n > room {
                return Err(out_of_memory(n));
            }
            batches.push(n);
            Ok(n)
        });
        (batches, result)
    }

    #[test]
    fn a_batch_without_room_is_halved_once_and_so_are_those_behind_it() {
        for (budget, room, expected) in
            [(10, 10, vec![10, 10, 5]), (10, 9, vec![5; 5]), (usize::MAX, 12, vec![12, 12, 1])]
        {
            let (batches, result) = batches(25, budget, room);
            result.unwrap();
            assert_eq!(batches, expected);
        }
        let (batches, result) = batches(25, 10, 4);
        let error = result.unwrap_err();
        assert!(batches.is_empty() && matches!(error, Error::OutOfMemory { n_tokens: 5, .. }));
        let expected = "a batch of 5 tokens takes about 5 MiB on the device, which has 3 MiB left: a \
                        budget of 3 tokens would fit";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_single_token_without_room_is_an_error() {
        let (batches, result) = batches(3, 1, 0);
        assert!(batches.is_empty());
        assert!(matches!(result, Err(Error::OutOfMemory { n_tokens: 1, .. })));
    }
}
