use candle_core::{Device, Tensor};
use qwen3_embed_kernels::ops;

use crate::Result;
use crate::checkpoint::matrix::MappedRows;

/// The embedding of each token of the vocabulary, [V, C].
#[derive(Debug)]
pub(crate) enum TokenEmbeddings {
    /// As they are stored: in the memory-mapped file, of which only the rows of tokens that occur are ever read, or
    /// in a copy.
    Stored(MappedRows),
    /// On a device, all of them: sending rows there for each batch would take as long as computing it.
    OnDevice(Tensor),
}

impl TokenEmbeddings {
    /// With `preload`, the CPU has a copy of them in memory and does not need the file.
    pub(crate) fn new(rows: MappedRows, device: &Device, preload: bool) -> Result<Self> {
        Ok(match ops::reads_host_memory(device) {
            true => Self::Stored(if preload { rows.copied()? } else { rows }),
            false => Self::OnDevice(rows.to_tensor(device)?),
        })
    }

    /// The embeddings of `ids` in f32, [ids, C]. Every id must be below V.
    pub(crate) fn gather(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::Stored(rows) => {
                Tensor::from_vec(rows.gather(ids), (ids.len(), rows.n_columns), device)?
            }
            Self::OnDevice(table) => ops::gather_rows(table, ids)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::forward::decoder::open;

    /// In every type that a file may have: what lies in memory or on a device loses nothing.
    #[test]
    fn rows_in_memory_and_on_a_device_are_those_of_the_file() {
        for name in ["base", "causal-lm-tied", "gguf-q8-0/model.gguf", "gguf-float/model.gguf"] {
            let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
            let (config, weights) = open(&models.join(name)).unwrap();
            let shape = [config.vocab_size, config.hidden_size];
            let rows = || weights.rows("embed_tokens.weight", shape).unwrap();
            let [mapped, copied] = [false, true]
                .map(|preload| TokenEmbeddings::new(rows(), &Device::Cpu, preload).unwrap());
            let there = TokenEmbeddings::OnDevice(rows().to_tensor(&Device::Cpu).unwrap());
            let ids = [7, 0, config.vocab_size as u32 - 1, 7];
            let [mapped, others @ ..] =
                [mapped, copied, there].map(|rows| rows.gather(&ids, &Device::Cpu).unwrap());
            for other in others {
                assert_eq!(other.dims(), mapped.dims());
                assert_eq!(ops::to_f32(&other).unwrap(), ops::to_f32(&mapped).unwrap(), "{name}");
            }
        }
    }
}
