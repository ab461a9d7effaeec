use std::fmt;
use std::str::FromStr;

use qwen3_embed_kernels::cpu::Kernels;
use qwen3_embed_kernels::{Error as KernelError, ops};

use crate::{Error, Result};

/// The device that a model runs on.
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
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA device with this number. Its compute capability must be 8.0 or later. Loading a model fails without the
    /// feature `cuda`, or if the machine has no CUDA driver.
    ///
    /// Calls from several threads run one after another. The last bits of a text's vector may depend on the other
    /// texts of the call.
    Cuda(usize),
}

impl Device {
    /// Opens the device for candle. Fails if the environment chooses a kernel set that the CPU does not support.
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

    /// Parses `cpu`, `cuda` (the first CUDA device), or `cuda:` and a number.
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
    fn rejects_unknown_device_names() {
        for name in ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0", "cuda:1 "] {
            let error = name.parse::<Device>().unwrap_err();
            assert!(matches!(&error, Error::DeviceName { got } if got == name), "{error}");
        }
    }

    /// Without the feature `cuda` there is no CUDA device. With the feature, no machine has a million devices.
    #[test]
    fn reports_why_a_device_cannot_be_opened() {
        let error = Device::Cuda(1_000_000).open().unwrap_err();
        let expected =
            if cfg!(feature = "cuda") { "cannot use CUDA device 1000000" } else { "`cuda`" };
        assert!(error.to_string().contains(expected), "{error}");
    }
}
