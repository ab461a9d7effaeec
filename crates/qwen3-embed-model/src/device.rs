use std::fmt;
use std::str::FromStr;

use qwen3_embed_kernels::cpu::Kernels;
use qwen3_embed_kernels::{Error as KernelError, ops};

use crate::{Error, Result};

/// Where a model runs.
///
/// # Examples
///
/// ```
/// use qwen3_embed_model::Device;
///
/// assert_eq!("cpu".parse::<Device>()?, Device::Cpu);
/// assert_eq!("cuda".parse::<Device>()?, Device::Cuda(0));
/// assert_eq!("cuda:1".parse::<Device>()?.to_string(), "cuda:1");
/// # Ok::<(), qwen3_embed_model::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number, of compute capability 8.0 or later. It needs the feature `cuda`, and
    /// a driver on the machine that it runs on: without one of them, loading a model is an error.
    ///
    /// Calls of several threads take turns. A text's vector may differ in its last bits with what else is
    /// in the call.
    Cuda(usize),
}

impl Device {
    /// The device as candle knows it. The CPU has to have the kernel set that the environment asks for.
    pub(crate) fn open(self) -> Result<candle_core::Device> {
        match self {
            Self::Cpu => {
                Kernels::chosen().map_err(KernelError::from)?;
                Ok(candle_core::Device::Cpu)
            }
            Self::Cuda(ordinal) => Ok(ops::open_cuda(ordinal)?),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda`, which is the first CUDA device, or `cuda:` and a number.
    fn from_str(name: &str) -> Result<Self> {
        let ordinal = match name {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
        };
        ordinal.map(Self::Cuda).ok_or_else(|| Error::DeviceName { got: name.to_owned() })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_refused() {
        for name in ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0", "cuda:1 "] {
            let error = name.parse::<Device>().unwrap_err();
            assert!(matches!(&error, Error::DeviceName { got } if got == name), "{error}");
        }
    }

    /// Without the feature there is no CUDA device; with it, the machine may or may not have a million.
    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_why() {
        let error = Device::Cuda(1_000_000).open().unwrap_err();
        let expected =
            if cfg!(feature = "cuda") { "cannot use CUDA device 1000000" } else { "`cuda`" };
        assert!(error.to_string().contains(expected), "{error}");
    }
}
