use candle_core::{Device, Tensor};
use qwen3_embed_kernels::ops;

use crate::Result;
use crate::matrix::MappedRows;

/// The embedding of each token of the vocabulary, [V, C].
#[derive(Debug)]
pub(crate) enum TokenEmbeddings {
    /// In the memory-mapped file, of which only the rows of tokens that occur are ever read.
    Mapped(MappedRows),
    /// On a device, all of them: sending rows there for each batch would take as long as computing it.
    OnDevice(Tensor),
}

impl TokenEmbeddings {
    pub(crate) fn new(rows: MappedRows, device: &Device) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Mapped(rows),
            device => Self::OnDevice(rows.to_tensor(device)?),
        })
    }

    /// The embeddings of `ids` in f32, [ids, C]. Every id must be below V.
    pub(crate) fn gather(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::Mapped(rows) => {
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
    use crate::decoder::open;

    /// In every type that a file may have: what lies on a device loses nothing.
    #[test]
    fn rows_on_a_device_are_those_of_the_file() {
        for name in ["base", "causal-lm-tied", "gguf-q8-0/model.gguf", "gguf-float/model.gguf"] {
            let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
            let (config, weights) = open(&models.join(name)).unwrap();
            let shape = [config.vocab_size, config.hidden_size];
            let rows = || weights.rows("embed_tokens.weight", shape).unwrap();
            let mapped = TokenEmbeddings::new(rows(), &Device::Cpu).unwrap();
            let there = TokenEmbeddings::OnDevice(rows().to_tensor(&Device::Cpu).unwrap());
            let ids = [7, 0, config.vocab_size as u32 - 1, 7];
            let [mapped, there] =
                [mapped, there].map(|rows| rows.gather(&ids, &Device::Cpu).unwrap());
            assert_eq!(there.dims(), mapped.dims());
            assert_eq!(ops::to_f32(&there).unwrap(), ops::to_f32(&mapped).unwrap(), "{name}");
        }
    }
}
