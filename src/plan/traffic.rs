//! How many bytes the kernels of a plan move, beside how many they must.

use super::{GROUP_ROWS, Kind, PARTIAL_BYTES, Plan, ROW_ENTRIES, Work};
use crate::problem::operation::Op;

/// Bytes between a GPU's memory, its caches included, and the registers of its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// What must be moved: inputs once in, results once out.
    pub needed: u64,
    /// What the kernels move. What they read again soon after may come from a cache.
    pub moved: u64,
}

impl Plan {
    /// What all passes together move. `curved` where logits are scaled or capped first.
    pub(crate) fn traffic(&self, curved: bool) -> Traffic {
        let Work { op, rows, classes, size, second, .. } = self.work;
        let elements = rows * classes;
        let writes = u64::from(op.spec().writes_elements);
        let target = if op.has_targets() && second == 0 { 4 } else { 0 };
        let of_rows = rows * (target + self.work.bytes_of_a_row());
        let needed = elements * (size * (1 + writes) + second) + of_rows;

        // How often logits are read, and what stands beside them.
        let is_known = op == Op::CrossEntropyBackward;
        let is_sum = matches!(op, Op::SoftmaxBackward | Op::LogSoftmaxBackward);
        let first = match self.regime.kind {
            Kind::Rows | Kind::Split => 1,
            Kind::Stream if is_known => u64::from(second > 0),
            Kind::Stream if is_sum => 1,
            // Under a curve, and where classes are asked for, the largest logit is looked for before.
            Kind::Stream => 1 + u64::from(curved || op.predicts()),
        };
        let again = if self.regime.kind == Kind::Rows { 0 } else { writes };
        let reads = first + again;
        // Each class is asked for what stands beside it when sums are made, and when elements are.
        let second_reads = if second > 0 { 1 + writes } else { 0 };
        let mut moved = elements * (size * (reads + writes) + second * second_reads) + of_rows;
        // The label's own logit.
        if target > 0 {
            moved += rows * size;
        }
        if self.is_split() {
            let segments = rows * self.segments_per_row();
            let entries = rows * ROW_ENTRIES;
            moved += PARTIAL_BYTES * (3 * segments + entries + writes * 2 * segments);
        }
        if self.work.count {
            moved += rows * target + 2 * PARTIAL_BYTES * rows.div_ceil(GROUP_ROWS);
        }
        if self.work.sum {
            moved += rows * 4 + 2 * PARTIAL_BYTES * rows.div_ceil(GROUP_ROWS);
        }
        Traffic { needed, moved }
    }
}
