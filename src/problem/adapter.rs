//! The choice of a device, and the descriptions of adapters: those that exist, those that were
//! rejected, and how fast one is.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The device that is wanted. It parses from `auto`, `cpu`, `gpu` or a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// A hardware GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The best adapter of any kind, software included.
    Gpu,
    /// The best adapter whose name contains this text, in any case; `vulkan:`, `gl:`, `metal:`,
    /// `dx12:` or `webgpu:` before it asks for that backend as well, and may stand alone. If it
    /// cannot be used, opening fails: no other adapter is tried, not even another whose name
    /// contains the text.
    Named(String),
}

impl FromStr for DeviceChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            _ => Self::Named(text.to_owned()),
        })
    }
}

/// A GPU of this machine, or software that acts as one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adapter {
    /// The adapter's name.
    pub name: String,
    /// Its backend: `vulkan`, `metal`, `dx12`, `gl` or `webgpu`.
    pub backend: &'static str,
    /// The kind of the adapter, and its driver.
    pub description: String,
}

/// An adapter that was examined and not used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectedAdapter {
    /// The adapter's name.
    pub name: String,
    /// Its backend: `vulkan`, `metal`, `dx12`, `gl` or `webgpu`.
    pub backend: &'static str,
    /// The reason why it was not used.
    pub reason: String,
}

impl fmt::Display for RejectedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.backend, self.reason)
    }
}

/// The size of a batch from which an operation is worth sending to the GPU.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Crossover {
    /// The operation, by its name in `logits bench --ops`: that of its method, and
    /// `cross_entropy_grad` for the loss with its gradient.
    pub operation: &'static str,
    /// Bytes of logits, in rows of 1024 classes, from which the GPU is expected to be faster;
    /// `None` if it never is.
    pub bytes: Option<u64>,
    /// The measured throughput of the CPU, in bytes of logits a second, without the fixed cost of a
    /// call.
    pub cpu_bytes_per_second: f64,
    /// The measured throughput of the GPU, in bytes of logits a second, transfers counted, without
    /// the fixed cost of a call.
    pub gpu_bytes_per_second: f64,
}
