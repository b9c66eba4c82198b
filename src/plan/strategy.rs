//! Chooses the strategy that computes a row, and how its threads access it.

use super::{Entry, KernelProblem, Limits, Plan, UNIT_BYTES, WORKGROUP};
use crate::plan::tuning::Tuning;

/// The widest row, in classes, that one workgroup computes: its second reading comes from a cache.
const MAX_ONLINE_CLASSES: u64 = 131_072;
/// The number of values that a thread of a short row takes; a row of more gets more threads.
const FEW_VALUES: u64 = 16;
/// The number of values that a thread takes where each value takes much arithmetic.
const HEAVY_VALUES: u64 = 8;
/// About the smallest number of bytes that memory moves at once.
const LINE_BYTES: u64 = 128;

/// How a row is spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Strategy {
    pub(crate) kind: Kind,
    /// Threads that share a row, or a segment of one: a power of two, at most `WORKGROUP`. A
    /// workgroup takes `WORKGROUP / lanes` rows or segments.
    pub(crate) lanes: u32,
    /// Units of the row that each of these threads holds, or has in flight, at a time.
    pub(crate) units: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Rows are held in registers, and read once.
    RegisterResident,
    /// Rows are reduced while they are read, and read again where elements are written.
    Online,
    /// Several workgroups share a row: segments of it are held in registers, and the row is joined
    /// from them.
    SplitRow,
}

/// Elements of workgroup memory are rounded up to a multiple of this (1 KiB), within the limit.
const TILE_STEP: u64 = 256;

/// How the register-resident strategy accesses its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// Each thread reads and writes its own units.
    Direct,
    /// Rows are staged in workgroup memory of `elements` elements, at least those of the
    /// workgroup's rows, which are read and written as one contiguous stretch.
    Staged { elements: u32 },
    /// Rows are strided, and neighbouring threads take neighbouring rows.
    LanesAcrossRows,
}

impl Strategy {
    /// Chooses by the operation, its options, the type, the classes and the adapter, and never by
    /// the number of rows.
    pub(super) fn of(problem: &KernelProblem, limits: &Limits) -> Self {
        let &KernelProblem { op, classes, size, heavy, .. } = problem;
        let Tuning { subgroup, lane_bytes, held_classes, long_lanes, stream_units, coalesces } =
            limits.tuning;
        let unit = UNIT_BYTES / size;
        let units = classes.div_ceil(unit);
        // The most units that a thread holds: the same number of values for every type.
        let most = (u64::from(lane_bytes) / 4 / unit).max(1);
        if op.spec().rereads_row || heavy {
            // Values take much arithmetic, or the row is read many times: many threads take few
            // values each.
            let most = (HEAVY_VALUES / unit).max(1);
            let lanes = units.div_ceil(most).next_power_of_two().min(WORKGROUP.into());
            let (kind, units) = match units.div_ceil(lanes) {
                units if units <= most => (Kind::RegisterResident, units),
                _ if classes <= MAX_ONLINE_CLASSES || op.spec().rereads_row => (Kind::Online, 1),
                _ => (Kind::SplitRow, most),
            };
            return Self { kind, lanes: lanes as u32, units: units as u32 };
        }
        // Short rows are spread over so many threads that each has a few units, within a subgroup
        // where possible, which needs no barrier.
        let few = (FEW_VALUES / unit).min(most);
        let lanes = units.div_ceil(few).next_power_of_two().min(subgroup.into());
        let mut lanes = lanes.max(units.div_ceil(most).next_power_of_two());
        // Where accesses need not coalesce, half as many threads may leave fewer units unused.
        let padded = |lanes: u64| lanes * units.div_ceil(lanes);
        if !coalesces
            && lanes > 1
            && padded(lanes / 2) < padded(lanes)
            && units.div_ceil(lanes / 2) <= most
        {
            lanes /= 2;
        }
        // A row that is not whole units is written efficiently only from workgroup memory.
        let fits = classes.is_multiple_of(unit)
            || !coalesces
            || Self::tile(classes, lanes, unit) * 4 <= limits.tile_bytes;
        if classes <= held_classes.into() && lanes <= WORKGROUP.into() && fits {
            return Self {
                kind: Kind::RegisterResident,
                lanes: lanes as u32,
                units: units.div_ceil(lanes) as u32,
            };
        }
        if classes <= MAX_ONLINE_CLASSES {
            return Self {
                kind: Kind::Online,
                lanes: long_lanes,
                units: Self::in_flight(stream_units, size),
            };
        }
        Self { kind: Kind::SplitRow, lanes: long_lanes, units: most as u32 }
    }

    /// Returns the units that a thread has in flight where a row is streamed: the same number of
    /// values for every type. With twice as many values of 16 bits, NVIDIA's compiler spills them
    /// to memory, and the kernel takes nearly twice as long.
    fn in_flight(stream_units: u32, size: u64) -> u32 {
        (u64::from(stream_units) * size / 4).max(1) as u32
    }

    /// Returns the elements of the rows of a workgroup, rounded up to whole units of `unit`
    /// elements.
    fn tile(classes: u64, lanes: u64, unit: u64) -> u64 {
        (u64::from(WORKGROUP) / lanes.clamp(1, WORKGROUP.into()) * classes).next_multiple_of(unit)
    }

    /// Returns the classes of a segment, where an element has `size` bytes.
    pub(super) fn segment(self, size: u64) -> u64 {
        u64::from(self.lanes) * u64::from(self.units) * (UNIT_BYTES / size)
    }
}

impl Plan {
    /// Returns the number of threads of a stripe: they take neighbouring units, and each stripe has
    /// a stretch of the row of its own.
    pub(crate) fn stripe(&self) -> u32 {
        self.limits.tuning.subgroup.min(self.strategy.lanes)
    }

    /// Returns the number of threads that sum over a group of rows.
    pub(crate) fn long_lanes(&self) -> u32 {
        self.limits.tuning.long_lanes
    }

    /// Returns the classes of a segment, or 0 where rows have no segments.
    pub(crate) fn segment_classes(&self) -> u32 {
        if self.is_split() { self.segment() as u32 } else { 0 }
    }

    /// Returns the units that a thread holds, or has in flight, at a time in a pass of `entry`.
    pub(crate) fn units(&self, entry: Entry) -> u32 {
        if entry == Entry::SplitWrite {
            return Strategy::in_flight(self.limits.tuning.stream_units, self.problem.size)
                .min(self.strategy.units);
        }
        self.strategy.units
    }

    /// Returns how rows are accessed; the bits of a row do not depend on it.
    pub(crate) fn access(&self) -> Access {
        let KernelProblem { classes, inner, size, .. } = self.problem;
        let lanes = u64::from(self.strategy.lanes);
        if self.strategy.kind != Kind::RegisterResident || !self.limits.tuning.coalesces {
            return Access::Direct;
        }
        if inner > 1 {
            return if lanes < WORKGROUP.into() { Access::LanesAcrossRows } else { Access::Direct };
        }
        let unit = UNIT_BYTES / size;
        let elements = Strategy::tile(classes, lanes, unit);
        // Where the threads of a row together span a memory line, direct access is as good.
        let is_short = lanes * UNIT_BYTES < LINE_BYTES || !classes.is_multiple_of(unit);
        if self.problem.is_dense() && is_short && elements * 4 <= self.limits.tile_bytes {
            // Sizes are rounded up, so that many numbers of classes share few pipelines.
            let most = self.limits.tile_bytes / UNIT_BYTES * 4;
            return Access::Staged {
                elements: elements.next_multiple_of(TILE_STEP).min(most) as u32,
            };
        }
        Access::Direct
    }
}
