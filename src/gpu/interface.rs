//! The types that the device and the GPU path exchange. They are the same in a build without the
//! feature `gpu`, where [`Gpu`], [`DeviceArray`] and [`DeviceTargets`] have no values.

use super::{DeviceArray, DeviceTargets, Gpu};
use crate::{Error, RejectedAdapter};

/// A GPU, and how it came to be chosen.
pub(crate) struct Opened {
    pub(crate) gpu: Gpu,
    pub(crate) reason: String,
    pub(crate) rejected_adapters: Vec<RejectedAdapter>,
}

/// The reason why no GPU was opened.
pub(crate) struct Refused {
    pub(crate) reason: String,
    pub(crate) rejected_adapters: Vec<RejectedAdapter>,
}

/// An attempt that failed: its first `rows_done` rows have their results, and the logits of the
/// others are intact.
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) rows_done: usize,
}

/// The resident operands of an operation over resident logits; `Operands` holds the rest.
#[derive(Clone, Copy, Default)]
pub(crate) struct DeviceOperands<'h> {
    pub(crate) targets: Option<&'h DeviceTargets>,
    /// The gradient that a backward starts from.
    pub(crate) upstream: Option<&'h DeviceArray>,
    pub(crate) log_sum_exps: Option<&'h DeviceArray>,
}

/// The results of an operation over resident logits.
pub(crate) struct Results {
    pub(crate) elements: Option<DeviceArray>,
    pub(crate) rows: Option<DeviceArray>,
    /// The summary of a loss over logits in one chunk. If there are several, the host sums the
    /// losses of the rows.
    pub(crate) summary: Option<DeviceArray>,
}

/// Everything that one timed run reads.
pub(crate) struct DeviceInputs {
    /// The logits, or the results that a backward starts from.
    pub(crate) logits: DeviceArray,
    pub(crate) targets: Option<DeviceTargets>,
    /// The gradient that a backward starts from.
    pub(crate) upstream: Option<DeviceArray>,
    pub(crate) log_sum_exps: Option<DeviceArray>,
}
