//! Counts the bytes that the kernels of a plan move, and the bytes that any kernel must move.

use super::{GROUP_ROWS, KernelProblem, Kind, PARTIAL_BYTES, Plan, ROW_ENTRIES};
use crate::ops::Statistics;

/// Bytes that are moved between a GPU's memory, its caches included, and the registers of its
/// kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// The bytes that must be moved: every input is read once, and every result written once.
    pub needed: u64,
    /// The bytes that the kernels move. Data that they read again soon may come from a cache.
    pub moved: u64,
}

impl KernelProblem {
    /// Bytes of what is read for a row beside its logits: the target that is a class, or the
    /// upstream gradient of an operation without targets. A loss need not have one.
    fn row_input_bytes(&self) -> u64 {
        let has_factor = self.op.spec().row_upstream && !self.op.has_targets();
        self.target_bytes() + if has_factor { 4 } else { 0 }
    }

    /// Bytes of the target of a row that is a class; 0 where there is none.
    pub(crate) fn target_bytes(&self) -> u64 {
        if self.op.has_targets() && self.operand_bytes == 0 { 4 } else { 0 }
    }

    /// Bytes that any kernel must move: inputs once in, results once out.
    pub(crate) fn needed_bytes(&self) -> u64 {
        let &Self { op, rows, classes, size, operand_bytes, .. } = self;
        let writes = u64::from(op.spec().writes_elements);
        rows * classes * (size * (1 + writes) + operand_bytes)
            + rows * (self.row_input_bytes() + self.bytes_of_a_row())
    }
}

impl Plan {
    /// Returns the bytes that all passes together move. `transformed` says that logits are scaled
    /// or capped first.
    pub(crate) fn traffic(&self, transformed: bool) -> Traffic {
        let KernelProblem { op, rows, classes, size, operand_bytes, .. } = self.problem;
        let elements = rows * classes;
        let writes = u64::from(op.spec().writes_elements);
        let target = self.problem.target_bytes();
        let of_rows = rows * (self.problem.row_input_bytes() + self.problem.bytes_of_a_row());
        let needed = self.problem.needed_bytes();

        // How often the logits are read to reduce rows.
        let statistics = op.spec().statistics;
        let first = match self.strategy.kind {
            Kind::RegisterResident | Kind::SplitRow => 1,
            Kind::Online if statistics == Statistics::Saved => u64::from(operand_bytes > 0),
            Kind::Online if statistics == Statistics::GradientSum => 1,
            // Under a logit transform, and for predictions, the maximum is found in a reading of
            // its own.
            Kind::Online => 1 + u64::from(transformed || op.predicts()),
        };
        let again = if self.strategy.kind == Kind::RegisterResident { 0 } else { writes };
        let reads = first + again;
        // The operand of the logits' shape is read when sums are made, and when elements are
        // written.
        let operand_reads = if operand_bytes > 0 { 1 + writes } else { 0 };
        let mut moved =
            elements * (size * (reads + writes) + operand_bytes * operand_reads) + of_rows;
        // The logit of the target.
        if target > 0 {
            moved += rows * size;
        }
        if self.is_split() {
            let segments = rows * self.segments_per_row();
            let entries = rows * ROW_ENTRIES;
            moved += PARTIAL_BYTES * (3 * segments + entries + writes * 2 * segments);
        }
        if self.problem.count {
            moved += rows * target + 2 * PARTIAL_BYTES * rows.div_ceil(GROUP_ROWS);
        }
        if self.problem.sum {
            moved += rows * 4 + 2 * PARTIAL_BYTES * rows.div_ceil(GROUP_ROWS);
        }
        Traffic { needed, moved }
    }
}
