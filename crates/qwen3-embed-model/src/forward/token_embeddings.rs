use candle_core::{Device, Tensor};
use qwen3_embed_kernels::ops;

use crate::Result;
use crate::checkpoint::matrix::MappedRows;

/// The embeddings of all tokens of the vocabulary, [V, C].
#[derive(Debug)]
pub(crate) enum TokenEmbeddings {
    /// In their stored type, in the memory-mapped file or in a copy. Only the rows of tokens that occur in texts are
    /// read.
    Stored(MappedRows),
    /// On a device. Copying the rows of each batch to the device would take as long as computing the batch.
    OnDevice(Tensor),
}

impl TokenEmbeddings {
    /// Prepares the embeddings for a device. With `preload`, the CPU uses a copy in memory and not the file.
    pub(crate) fn new(rows: MappedRows, device: &Device, preload: bool) -> Result<Self> {
        Ok(match ops::reads_host_memory(device) {
            true => Self::Stored(if preload { rows.copied()? } else { rows }),
            false => Self::OnDevice(rows.to_tensor(device)?),
        })
    }

    /// The embeddings of `ids` in f32, with the shape [ids, C]. Every id must be below V.
    pub(crate) fn gather(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::Stored(rows) => {
                Tensor::from_vec(rows.gather(ids), (ids.len(), rows.n_columns), device)?
            }
            Self::OnDevice(table) => {
                let [rows] = ops::gather_rows(device, [table], ids)?;
                rows
            }
        })
    }

    /// Writes the embeddings of `ids` in f32 to `out`, [ids, C]. Every id must be below V.
    pub(crate) fn gather_to(&self, ids: &[u32], out: &Tensor) -> Result<()> {
        match self {
            Self::Stored(_) => ops::copy_rows(&self.gather(ids, out.device())?, out)?,
            Self::OnDevice(table) => ops::gather_rows_to(table, ids, out)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use qwen3_embed_testing::fixtures;

    use super::*;
    use crate::Checkpoint;

    /// Covers every type in which files store embeddings.
    #[test]
    fn copies_in_memory_and_on_a_device_equal_the_file() {
        for name in ["base", "causal-lm-tied", "gguf-q8-0", "gguf-float"] {
            let checkpoint = Checkpoint::open(&fixtures::model(name)).unwrap();
            let (config, weights) = (checkpoint.config(), checkpoint.weights());
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
