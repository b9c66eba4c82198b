//! Which kernels run a row, and how its threads get at it.

use super::{Entry, KernelProblem, Limits, Plan, UNIT_BYTES, WORKGROUP};
use crate::plan::tuning::Tuning;

/// Widest row that one workgroup reads again from a cache.
const MAX_ONLINE_CLASSES: u64 = 131_072;
/// Values of a row that make it worth another thread.
const FEW_VALUES: u64 = 16;
/// The same where much is done to each of them.
const HEAVY_VALUES: u64 = 8;
/// Bytes that memory moves at once at the least, about.
const LINE_BYTES: u64 = 128;

/// How a row is spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Strategy {
    pub(crate) kind: Kind,
    /// Threads that share a row, or a segment of one: a power of two up to those of a workgroup,
    /// which takes as many as it has threads for.
    pub(crate) lanes: u32,
    /// Units of it that each of them holds, or has on their way, at a time.
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

/// How the register-resident strategy gets at its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// Each thread for itself.
    Direct,
    /// Through workgroup memory of `elements` elements, at least those of the workgroup's rows, in
    /// one unbroken stream.
    Staged { elements: u32 },
    /// Lanes across rows: rows are strided, and neighbouring threads take neighbouring rows.
    LanesAcrossRows,
}

impl Strategy {
    /// Chooses by the operation, its options, the type, the classes and the adapter; the number of
    /// rows plays no part.
    pub(super) fn of(problem: &KernelProblem, limits: &Limits) -> Self {
        let &KernelProblem { op, classes, size, heavy, .. } = problem;
        let Tuning { subgroup, lane_bytes, held_classes, long_lanes, stream_units, coalesces } =
            limits.tuning;
        let unit = UNIT_BYTES / size;
        let units = classes.div_ceil(unit);
        // Of the same number of values, whatever their type.
        let most = (u64::from(lane_bytes) / 4 / unit).max(1);
        if op.spec().rereads_row || heavy {
            // Much is done to each value, or the row is gone through again and again: many threads
            // with little each.
            let most = (HEAVY_VALUES / unit).max(1);
            let lanes = units.div_ceil(most).next_power_of_two().min(WORKGROUP.into());
            let (kind, units) = match units.div_ceil(lanes) {
                units if units <= most => (Kind::RegisterResident, units),
                _ if classes <= MAX_ONLINE_CLASSES || op.spec().rereads_row => (Kind::Online, 1),
                _ => (Kind::SplitRow, most),
            };
            return Self { kind, lanes: lanes as u32, units: units as u32 };
        }
        // Short rows are spread over as many threads as have a few units each, and take no barrier
        // where they can.
        let few = (FEW_VALUES / unit).min(most);
        let lanes = units.div_ceil(few).next_power_of_two().min(subgroup.into());
        let mut lanes = lanes.max(units.div_ceil(most).next_power_of_two());
        // Where neighbours need not be read together, fewer threads may have fewer units that are
        // none.
        let padded = |lanes: u64| lanes * units.div_ceil(lanes);
        if !coalesces
            && lanes > 1
            && padded(lanes / 2) < padded(lanes)
            && units.div_ceil(lanes / 2) <= most
        {
            lanes /= 2;
        }
        // Without whole units a row is not written well but from workgroup memory.
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

    /// Units that a thread has on their way where a row is streamed: of each type as many values.
    /// With twice as many of 16 bits, NVIDIA's compiler keeps them in memory, and takes nearly
    /// twice as long.
    fn in_flight(stream_units: u32, size: u64) -> u32 {
        (u64::from(stream_units) * size / 4).max(1) as u32
    }

    /// Elements of the rows of a workgroup, in whole units.
    fn tile(classes: u64, lanes: u64, unit: u64) -> u64 {
        (u64::from(WORKGROUP) / lanes.clamp(1, WORKGROUP.into()) * classes).next_multiple_of(unit)
    }

    /// Classes of a segment, of elements of so many bytes.
    pub(super) fn segment(self, size: u64) -> u64 {
        u64::from(self.lanes) * u64::from(self.units) * (UNIT_BYTES / size)
    }
}

impl Plan {
    /// Threads that take what lies next to each other; those after them have a stretch of their
    /// own.
    pub(crate) fn stripe(&self) -> u32 {
        self.limits.tuning.subgroup.min(self.strategy.lanes)
    }

    /// Threads that sum over a group of rows.
    pub(crate) fn long_lanes(&self) -> u32 {
        self.limits.tuning.long_lanes
    }

    /// Classes of a segment, or 0 where there are none.
    pub(crate) fn segment_classes(&self) -> u32 {
        if self.is_split() { self.segment() as u32 } else { 0 }
    }

    /// Units that a thread has at a time in a pass.
    pub(crate) fn units(&self, entry: Entry) -> u32 {
        if entry == Entry::SplitWrite {
            return Strategy::in_flight(self.limits.tuning.stream_units, self.problem.size)
                .min(self.strategy.units);
        }
        self.strategy.units
    }

    /// How the register-resident strategy gets at its rows; a row's bits are the same either way.
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
        // Threads of a row that reach over a line of a cache together need no help.
        let is_short = lanes * UNIT_BYTES < LINE_BYTES || !classes.is_multiple_of(unit);
        if self.problem.is_dense() && is_short && elements * 4 <= self.limits.tile_bytes {
            // Few sizes make few pipelines, whatever numbers of classes a process meets.
            let most = self.limits.tile_bytes / UNIT_BYTES * 4;
            return Access::Staged {
                elements: elements.next_multiple_of(TILE_STEP).min(most) as u32,
            };
        }
        Access::Direct
    }
}
