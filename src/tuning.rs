//! What kernels are shaped by, beyond what they must do: numbers of an adapter.

use crate::plan::WORKGROUP;

/// How kernels are shaped to an adapter. The defaults follow from its limits and features.
///
/// A row's results depend on its logits and on these numbers, in their last bits, so one device has one set of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Threads that are taken to exchange values without a barrier: a power of two up to 256.
    pub subgroup: u32,
    /// Bytes of a row that a thread holds in its registers at most, as f32: a multiple of 16.
    pub lane_bytes: u32,
    /// Widest row that is held in registers.
    pub held_classes: u32,
    /// Threads that share a longer row, or a segment of one.
    pub long_lanes: u32,
    /// Loads of 16 bytes that a thread has on their way where a row is streamed.
    pub stream_units: u32,
    /// Whether neighbouring threads had better read neighbouring places, as on every GPU; a CPU that acts as one does not mind.
    pub coalesces: bool,
}

impl Tuning {
    /// From the size of the adapter's subgroups, or 1 where it has none, and whether it is software.
    pub(crate) fn new(subgroup: u32, is_software: bool) -> Self {
        let subgroup = if subgroup > 1 { subgroup.next_power_of_two().clamp(4, 64) } else { 32 };
        Self {
            subgroup,
            // The registers of a subgroup hold about as much however many threads it has.
            lane_bytes: (4096 / subgroup).clamp(128, 512),
            held_classes: 8192,
            // On a CPU a barrier is dear, and nobody waits for a row.
            long_lanes: if is_software { subgroup } else { WORKGROUP },
            stream_units: 4,
            coalesces: !is_software,
        }
    }
}
