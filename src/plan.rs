//! Which kernel runs a shape, in how many pieces: a pure function of the shape and of an adapter's limits.
//!
//! The kernel depends on the number of classes alone, so that a row's bits do not depend on the batch it came in.

use crate::Shape;
use crate::job::Op;

/// Threads of a workgroup, in every kernel.
pub(crate) const WORKGROUP: u32 = 256;
/// Widest row of the tile regime: eight elements a thread.
const TILE: usize = 2048;
/// Widest row that one workgroup reads again from a cache.
const STREAM: usize = 131_072;
/// Elements of a row that one workgroup takes in the split regime; the shader's constant of the same name.
const SEGMENT: usize = 8192;
/// Logits of one chunk: enough to keep a GPU busy, little enough for its memory.
const CHUNK_BYTES: u64 = 256 << 20;
/// Bytes of one segment's statistics.
const PARTIAL_BYTES: u64 = 16;

/// What an adapter allows, as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) binding_bytes: u64,
    pub(crate) buffer_bytes: u64,
    pub(crate) workgroups_per_dimension: u32,
}

/// How a row is spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Regime {
    /// Many short rows a workgroup, each with this many threads.
    Tile { threads_per_row: u32 },
    /// One workgroup a row.
    Stream,
    /// This many workgroups a row.
    Split { segments: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) regime: Regime,
    /// Rows of one submission; at least 1.
    pub(crate) rows_per_chunk: usize,
    workgroups_per_dimension: u32,
}

/// The row alone is beyond what one binding can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowTooLong {
    pub(crate) row_bytes: u64,
    pub(crate) limit: u64,
}

impl Plan {
    /// `shape` has at least one class.
    pub(crate) fn new(shape: Shape, limits: Limits) -> Result<Self, RowTooLong> {
        let classes = shape.classes();
        let regime = if classes <= TILE {
            Regime::Tile { threads_per_row: (classes.div_ceil(8) as u32).next_power_of_two() }
        } else if classes <= STREAM {
            Regime::Stream
        } else {
            Regime::Split { segments: classes.div_ceil(SEGMENT) as u32 }
        };

        let limit = limits.binding_bytes.min(limits.buffer_bytes);
        let row_bytes = classes as u64 * 4;
        if row_bytes > limit {
            return Err(RowTooLong { row_bytes, limit });
        }
        // Every buffer of a chunk must fit a binding, the widest value a row being 8 bytes.
        let groups = u64::from(limits.workgroups_per_dimension).pow(2).min(u64::from(u32::MAX));
        let rows = (limit.min(CHUNK_BYTES) / row_bytes)
            .min(limit / 8)
            .min(u64::from(u32::MAX))
            .min(groups / u64::from(regime.segments()))
            .min(limit / (PARTIAL_BYTES * u64::from(regime.segments())))
            .max(1);
        Ok(Self {
            regime,
            rows_per_chunk: (rows as usize).min(shape.row_count().max(1)),
            workgroups_per_dimension: limits.workgroups_per_dimension,
        })
    }

    /// The dispatches of a chunk, in order: entry point and workgroups.
    pub(crate) fn dispatches(&self, op: Op, rows: u32) -> Vec<(&'static str, [u32; 3])> {
        let writes = matches!(op, Op::Softmax | Op::LogSoftmax | Op::CrossEntropyGrad);
        match self.regime {
            Regime::Tile { threads_per_row } => {
                vec![("tile_rows", self.grid(rows.div_ceil(WORKGROUP / threads_per_row)))]
            }
            Regime::Stream => vec![("stream_row", self.grid(rows))],
            Regime::Split { segments } => vec![
                ("split_reduce", self.grid(rows * segments)),
                ("split_finish", self.grid(if writes { rows * segments } else { rows })),
            ],
        }
    }

    /// Bytes of the statistics that the segments of a chunk leave for each other.
    pub(crate) fn partial_bytes(&self, rows: u32) -> u64 {
        match self.regime {
            Regime::Split { segments } => u64::from(rows) * u64::from(segments) * PARTIAL_BYTES,
            _ => 0,
        }
    }

    /// At least so many workgroups, in two dimensions where one does not reach; kernels ignore the surplus.
    fn grid(&self, groups: u32) -> [u32; 3] {
        let lines = groups.div_ceil(self.workgroups_per_dimension).max(1);
        [groups.div_ceil(lines), lines, 1]
    }
}

impl Regime {
    pub(crate) fn segments(self) -> u32 {
        if let Regime::Split { segments } = self { segments } else { 1 }
    }

    pub(crate) fn threads_per_row(self) -> u32 {
        if let Regime::Tile { threads_per_row } = self { threads_per_row } else { WORKGROUP }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEBGPU: Limits =
        Limits { binding_bytes: 128 << 20, buffer_bytes: 256 << 20, workgroups_per_dimension: 65_535 };
    const H100: Limits =
        Limits { binding_bytes: (2 << 30) - 4, buffer_bytes: 1 << 40, workgroups_per_dimension: 65_535 };

    #[test]
    fn nothing_crosses_a_limit() {
        for limits in [WEBGPU, H100] {
            for classes in [1, 2, 7, 8, 9, 10, 100, 2048, 2049, 32_000, 131_072, 131_073, 1_000_003, 1 << 25] {
                for rows in [1, 2, 65_535, 65_536, 300_000, 1 << 31] {
                    let plan = Plan::new(Shape::rows(rows, classes), limits).unwrap();
                    let chunk = plan.rows_per_chunk.min(rows) as u64;
                    assert!(chunk >= 1 && chunk <= rows as u64);
                    assert!(chunk * classes as u64 * 4 <= limits.binding_bytes, "{rows}x{classes}: {plan:?}");
                    assert!(plan.partial_bytes(chunk as u32) <= limits.binding_bytes);
                    for (entry, [x, y, z]) in plan.dispatches(Op::Softmax, chunk as u32) {
                        assert!(x <= 65_535 && y <= 65_535 && z == 1);
                        let threads = u64::from(x) * u64::from(y) * u64::from(WORKGROUP);
                        let per_row = u64::from(plan.regime.threads_per_row() * plan.regime.segments());
                        assert!(threads >= chunk * per_row, "{entry} leaves rows out of {rows}x{classes}");
                    }
                    if let Regime::Tile { threads_per_row } = plan.regime {
                        assert!((WORKGROUP / threads_per_row) as usize * classes <= TILE);
                    }
                }
            }
        }
    }

    #[test]
    fn the_kernel_depends_on_the_classes_alone() {
        for classes in [1, 10, 1000, 50_000, 1_000_003] {
            let regimes = [1, 17, 1 << 20].map(|rows| Plan::new(Shape::rows(rows, classes), WEBGPU).unwrap().regime);
            assert!(regimes.iter().all(|regime| *regime == regimes[0]));
        }
    }

    #[test]
    fn a_row_beyond_a_binding_is_refused() {
        let refused = Plan::new(Shape::rows(1, (128 << 20) / 4 + 1), WEBGPU);
        assert_eq!(refused, Err(RowTooLong { row_bytes: (128 << 20) + 4, limit: 128 << 20 }));
    }
}
