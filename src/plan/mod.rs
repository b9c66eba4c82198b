//! Plans a call on a GPU: chooses the kernels, the passes, and the parts of the buffers that each
//! pass touches. A plan is a pure function of the problem and of an adapter's limits.
//!
//! The kernel depends on the operation, its options, the type, the layout of a row, the number of
//! classes and the adapter, and never on the number of rows, so that the bits of a row do not
//! depend on its batch.

use std::ops::Range;

use crate::DType;
use crate::ops::Op;
use crate::problem::operands::Operands;
use crate::problem::sum::BLOCK_ROWS;

mod execution;
mod strategy;
mod traffic;
pub(crate) mod tuning;

pub(crate) use execution::{About, MOST_PASSES};
pub use execution::{ExecutionPlan, PassWork, PlannedPass};
pub(crate) use strategy::{Access, Kind, Strategy};
pub use traffic::Traffic;
pub use tuning::Tuning;

/// Threads of a workgroup, in every kernel.
pub(crate) const WORKGROUP: u32 = 256;
/// Bytes of a unit, which a thread reads or writes at once.
pub(crate) const UNIT_BYTES: u64 = 16;
/// Entries before a row's segments in `partials`; the shader's constant of the same name.
const ROW_ENTRIES: u64 = 2;
/// Rows of a group whose targets are counted or whose losses are summed: a block of
/// [`RowSum`](crate::RowSum), and the shader's constant of the same name.
const GROUP_ROWS: u64 = BLOCK_ROWS as u64;
/// Bytes of an entry of `partials`.
const PARTIAL_BYTES: u64 = 32;
/// Bytes of a prediction.
const PREDICTION_BYTES: u64 = 8;
/// The largest number of elements of one pass: kernels index with 32 bits, and look a few strides
/// ahead.
const PASS_ELEMENTS: u64 = 1 << 31;
/// The largest number of classes of a row, for the same reason.
const CLASSES: u64 = (1 << 32) - (1 << 16);

/// The limits of an adapter, as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of one binding.
    pub(crate) binding_bytes: u64,
    /// The largest number of bytes of logits that one pass may touch; a call may want less than a
    /// binding holds.
    pub(crate) part_bytes: u64,
    /// Bytes of one buffer.
    pub(crate) buffer_bytes: u64,
    pub(crate) workgroups_per_dimension: u32,
    /// The alignment of the offset of a binding, in bytes; at least `UNIT_BYTES`.
    pub(crate) offset_alignment: u32,
    /// Bytes of workgroup memory that rows may be staged in.
    pub(crate) tile_bytes: u64,
    pub(crate) tuning: Tuning,
}

/// The entry points of the shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    RegisterResident,
    Online,
    SplitReduce,
    SplitJoin,
    SplitWrite,
    CountTargets,
    TotalTargets,
    SumLosses,
    TotalLosses,
}

impl Entry {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RegisterResident => "register_resident_rows",
            Self::Online => "online_rows",
            Self::SplitReduce => "split_reduce",
            Self::SplitJoin => "split_join",
            Self::SplitWrite => "split_write",
            Self::CountTargets => "count_targets",
            Self::TotalTargets => "total_targets",
            Self::SumLosses => "sum_losses",
            Self::TotalLosses => "total_losses",
        }
    }

    /// The file that has it.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::RegisterResident => "shaders/strategies/register_resident.wgsl",
            Self::Online => "shaders/strategies/online.wgsl",
            Self::SplitReduce | Self::SplitJoin | Self::SplitWrite => {
                "shaders/strategies/split_row.wgsl"
            }
            Self::CountTargets | Self::TotalTargets | Self::SumLosses | Self::TotalLosses => {
                "shaders/totals.wgsl"
            }
        }
    }

    /// Whether it reads targets or losses of rows, and no logits.
    pub(crate) fn is_total(self) -> bool {
        matches!(
            self,
            Self::CountTargets | Self::TotalTargets | Self::SumLosses | Self::TotalLosses
        )
    }
}

/// A kernel problem: an operation, the shape and layout of its logits, and the options that choose
/// its kernels and passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelProblem {
    pub(crate) op: Op,
    pub(crate) rows: u64,
    pub(crate) classes: u64,
    /// The number of values of one class that lie next to each other, one for each row of a block;
    /// 1 where the classes of a row do.
    pub(crate) inner: u64,
    /// Elements from the start of one block to the next, in the input and in the output.
    pub(crate) strides: [u64; 2],
    /// Bytes of an element.
    pub(crate) size: u64,
    /// Bytes of an element of the operand that has the shape of the logits (soft targets, or the
    /// upstream gradient of a backward); 0 where there is none.
    pub(crate) operand_bytes: u64,
    /// The number of predictions of each row; 0 counts as 1.
    pub(crate) predictions: u64,
    /// Whether elements take much arithmetic: under a logit transform, with smoothed labels, or
    /// with an operand that has the shape of the logits.
    pub(crate) heavy: bool,
    /// Whether classes have weights.
    pub(crate) weighted: bool,
    /// Whether the device counts and weighs the targets before a loss, because the host has not.
    pub(crate) count: bool,
    /// Whether the device adds up the losses of the rows.
    pub(crate) sum: bool,
}

impl KernelProblem {
    /// Returns the problem for f32 rows without gaps.
    pub(crate) fn dense(op: Op, rows: u64, classes: u64) -> Self {
        Self {
            op,
            rows,
            classes,
            inner: 1,
            strides: [classes; 2],
            size: 4,
            operand_bytes: 0,
            predictions: 1,
            heavy: false,
            weighted: false,
            count: false,
            sum: false,
        }
    }

    /// Returns the problem of an operation and its operands, over `[rows / inner, classes, inner]`
    /// logits without gaps. Targets are probabilities where `has_soft_targets`; their values need
    /// not be known yet.
    pub(crate) fn lower(
        op: Op,
        dtype: DType,
        operands: &Operands<'_>,
        has_soft_targets: bool,
        [rows, classes, inner]: [usize; 3],
    ) -> Self {
        let operand_bytes = op.operand_bytes(dtype, has_soft_targets);
        Self {
            size: dtype.size() as u64,
            operand_bytes,
            heavy: op.is_heavy(operands, operand_bytes),
            predictions: operands.k as u64,
            weighted: operands.coefficients.weight.is_some(),
            ..Self::dense(op, rows as u64, classes as u64).in_blocks(inner as u64)
        }
    }

    /// Returns the same problem in blocks of `inner` rows without gaps.
    pub(crate) fn in_blocks(self, inner: u64) -> Self {
        Self { inner, strides: [self.classes * inner; 2], ..self }
    }

    /// Returns the same problem with the results in place of the logits.
    pub(crate) fn in_place(self) -> Self {
        Self { strides: [self.strides[0]; 2], ..self }
    }

    /// Whether rows follow each other without gaps, in the input and in the output.
    pub(crate) fn is_dense(&self) -> bool {
        self.inner == 1 && self.strides == [self.classes; 2]
    }

    /// Returns the bytes of the predictions of a row, at least one; no other values of a row take
    /// more.
    fn most_row_bytes(&self) -> u64 {
        PREDICTION_BYTES * self.predictions.max(1)
    }

    /// Returns the bytes of the values of a row: predictions, a loss, an entropy or a
    /// log-sum-exp; 0 where there are none.
    pub(crate) fn bytes_of_a_row(&self) -> u64 {
        match self.op {
            op if op.predicts() => self.most_row_bytes(),
            // Values of rows are f32, and of f64, which is computed on the CPU alone, f64.
            op if op.reads_log_sum_exps() || op.has_values() => self.size.max(4),
            _ => 0,
        }
    }
}

/// One dispatch, and the parts of the buffers that it touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) entry: Entry,
    /// The rows of the batch that the pass covers.
    pub(crate) rows: Range<u64>,
    /// The classes of these rows that it reads or writes; empty where it touches no logits.
    pub(crate) classes: Range<u64>,
    /// The segments of each row that it covers, in the split strategy.
    pub(crate) segments: Range<u32>,
    /// The workgroups in each dimension of the grid.
    pub(crate) groups: [u32; 3],
}

impl Pass {
    /// Returns the elements that the pass touches in an array of the shape of the logits, whose
    /// blocks start `stride` elements apart.
    pub(crate) fn elements(&self, inner: u64, stride: u64) -> Range<u64> {
        if self.classes.is_empty() || self.rows.is_empty() {
            return 0..0;
        }
        let (first, last) = (self.rows.start / inner, self.rows.end.div_ceil(inner) - 1);
        first * stride + self.classes.start * inner..last * stride + self.classes.end * inner
    }
}

/// Passes over buffers of their own, which hold this part of the batch and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) rows: Range<u64>,
    pub(crate) classes: Range<u64>,
    /// Rows of a block of the part: fewer than in the batch where the part is less than a block.
    pub(crate) inner: u64,
    /// The passes, whose ranges are relative to the part.
    pub(crate) passes: Vec<Pass>,
    /// Whether the passes write the elements of the part.
    pub(crate) writes_elements: bool,
    /// Whether they write the values of its rows.
    pub(crate) writes_rows: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    problem: KernelProblem,
    limits: Limits,
    pub(crate) strategy: Strategy,
    /// Rows of one pass; at least 1, and whole blocks or less than one.
    rows_per_pass: u64,
    /// Segments of one pass; fewer than a row has where a binding cannot hold a row.
    segments_per_pass: u64,
}

/// The reason why there is no plan, with both numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unplannable {
    #[error("it can bind {0} bytes at once, where {1} are needed at the least")]
    Binding(u64, u64),
    #[error("a row of {0} classes is beyond the {CLASSES} that a kernel can index")]
    Classes(u64),
    #[error("{0} bytes of class weights are beyond the {1} that it can bind at once")]
    Weights(u64, u64),
    #[error("a block of {0} rows of {1} classes is beyond what it can bind at once")]
    Block(u64, u64),
    #[error("{0} rows are beyond the {1} whose statistics it can bind at once")]
    Rows(u64, u64),
}

impl Plan {
    /// The smallest binding that a problem is planned for, in bytes: it holds a row of one
    /// workgroup.
    pub(crate) const LEAST_BINDING: u64 = 1 << 20;

    /// Plans `problem`, which has at least one class.
    pub(crate) fn new(problem: KernelProblem, limits: Limits) -> Result<Self, Unplannable> {
        let KernelProblem { rows, classes, inner, .. } = problem;
        let strategy = Strategy::of(&problem, &limits);
        let part = limits.part_bytes.min(limits.binding_bytes);
        if part < Self::LEAST_BINDING {
            return Err(Unplannable::Binding(part, Self::LEAST_BINDING));
        }
        if classes > CLASSES {
            return Err(Unplannable::Classes(classes));
        }
        if problem.weighted && classes * 4 > limits.binding_bytes {
            return Err(Unplannable::Weights(classes * 4, limits.binding_bytes));
        }
        let is_split = strategy.kind == Kind::SplitRow;
        let segment = strategy.segment(problem.size);
        let segments = if is_split { classes.div_ceil(segment) } else { 1 };
        // A part of a buffer may start anywhere. Its binding starts at the aligned offset before
        // that.
        let alignment = u64::from(limits.offset_alignment);
        let reach = limits.binding_bytes - alignment;
        let size = problem.size.max(problem.operand_bytes);
        let elements = ((part - alignment) / size).min(PASS_ELEMENTS);
        let groups = u64::from(limits.workgroups_per_dimension).pow(2).min(u64::from(u32::MAX));
        let partials = reach / PARTIAL_BYTES;
        if segments + ROW_ENTRIES > partials {
            return Err(Unplannable::Classes(classes));
        }
        if (problem.count || problem.sum)
            && (rows.div_ceil(GROUP_ROWS) > partials || rows > u64::from(u32::MAX))
        {
            return Err(Unplannable::Rows(rows, (partials * GROUP_ROWS).min(u64::from(u32::MAX))));
        }
        // The elements from one row to the next, including the row's part of the gap between
        // blocks.
        let stride = (problem.strides[0].max(problem.strides[1])).div_ceil(inner.max(1)).max(1);
        let mut rows_per_pass = (elements / stride)
            .min(reach / problem.most_row_bytes())
            .min(groups / segments)
            .min(if is_split { partials / (segments + ROW_ENTRIES) } else { u64::MAX })
            .clamp(1, rows.max(1));
        let is_whole = rows_per_pass >= inner;
        // Passes have about the same size, so that none is a small remainder.
        let (all, unit) = if is_whole { (rows / inner.max(1), inner.max(1)) } else { (inner, 1) };
        rows_per_pass /= unit;
        rows_per_pass = all.div_ceil(all.div_ceil(rows_per_pass.max(1)).max(1)).max(1) * unit;
        let whole = classes <= elements && segments <= groups;
        let segments_per_pass = if whole { segments } else { (elements / segment).min(groups) };
        if !whole && !is_split {
            return Err(Unplannable::Classes(classes));
        }
        Ok(Self { problem, limits, strategy, rows_per_pass, segments_per_pass })
    }

    /// Cuts `rows` rows, in blocks of `inner`, into the largest parts of at most `most` rows: whole
    /// blocks, or parts of one block.
    pub(crate) fn row_pieces(rows: u64, inner: u64, most: u64) -> impl Iterator<Item = Range<u64>> {
        let (all, step) =
            if most >= inner { (rows, most / inner.max(1) * inner.max(1)) } else { (inner, most) };
        let outer = rows.checked_div(all).unwrap_or(0);
        (0..outer).flat_map(move |nth| pieces(nth * all..(nth + 1) * all, step.max(1)))
    }

    fn is_split(&self) -> bool {
        self.strategy.kind == Kind::SplitRow
    }

    /// Returns the classes of a segment, in the split strategy.
    fn segment(&self) -> u64 {
        self.strategy.segment(self.problem.size)
    }

    fn segments_per_row(&self) -> u64 {
        if self.is_split() { self.problem.classes.div_ceil(self.segment()) } else { 1 }
    }

    /// Whether a row is cut into several passes.
    pub(crate) fn cuts_rows(&self) -> bool {
        self.segments_per_pass < self.segments_per_row()
    }

    /// Returns the number of segments of a whole row, a parameter of the kernels.
    pub(crate) fn segments(&self) -> u32 {
        self.segments_per_row() as u32
    }

    /// Returns the number of groups of rows whose targets are counted or losses summed.
    pub(crate) fn row_groups(&self) -> u32 {
        self.problem.rows.div_ceil(GROUP_ROWS) as u32
    }

    /// Returns the first such group of `pass`.
    pub(crate) fn first_group(pass: &Pass) -> u32 {
        (pass.rows.start / GROUP_ROWS) as u32
    }

    /// Returns the bytes of `partials`, the statistics that passes leave for later ones.
    pub(crate) fn partial_bytes(&self) -> u64 {
        let split = if self.is_split() {
            self.rows_per_pass * (self.segments_per_row() + ROW_ENTRIES)
        } else {
            0
        };
        let groups = if self.problem.count || self.problem.sum {
            self.problem.rows.div_ceil(GROUP_ROWS)
        } else {
            0
        };
        split.max(groups) * PARTIAL_BYTES
    }

    /// Whether a block is cut into several passes, which then need buffers of their own.
    fn cuts_blocks(&self) -> bool {
        self.problem.inner > 1
            && (self.rows_per_pass < self.problem.inner.min(self.problem.rows) || self.cuts_rows())
    }

    /// Returns an error where the plan cuts blocks, and so cannot run over buffers that hold the
    /// whole batch.
    pub(crate) fn check_whole(&self) -> Result<(), Unplannable> {
        if self.cuts_blocks() {
            Err(Unplannable::Block(self.problem.inner, self.problem.classes))
        } else {
            Ok(())
        }
    }

    /// Returns all passes in order, over buffers that hold the whole batch.
    pub(crate) fn passes(&self) -> Vec<Pass> {
        let KernelProblem { rows, count, sum, .. } = self.problem;
        let mut passes = Vec::new();
        if rows == 0 && !(count || sum) {
            return passes;
        }
        if count {
            // Where targets are probabilities, every row is counted.
            if self.problem.operand_bytes == 0 {
                self.over_groups(Entry::CountTargets, &mut passes);
            }
            passes.push(self.pass(Entry::TotalTargets, 0..0, 0..0, 1));
        }
        for rows in pieces(0..rows, self.rows_per_pass) {
            self.main_passes(rows, &mut passes);
        }
        if sum {
            self.over_groups(Entry::SumLosses, &mut passes);
            passes.push(self.pass(Entry::TotalLosses, 0..0, 0..0, 1));
        }
        passes
    }

    /// Returns the number of passes over rows in [`Plan::passes`], without a list of them; those
    /// over counted targets and summed losses come in addition.
    pub(crate) fn row_passes(&self) -> u64 {
        let per_rows = match self.strategy.kind {
            Kind::RegisterResident | Kind::Online => 1,
            Kind::SplitRow => {
                let writes = u64::from(self.problem.op.spec().writes_elements);
                1 + (1 + writes) * self.segments_per_row().div_ceil(self.segments_per_pass)
            }
        };
        self.problem.rows.div_ceil(self.rows_per_pass).saturating_mul(per_rows)
    }

    /// Returns the parts in which a batch in host memory is computed, in order.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Batch> + use<> {
        let (plan, problem, cuts_rows) = (*self, self.problem, self.cuts_rows());
        Self::row_pieces(problem.rows, problem.inner, self.rows_per_pass).flat_map(move |rows| {
            let count = rows.end - rows.start;
            let mut passes = Vec::new();
            plan.main_passes(0..count, &mut passes);
            let writes = problem.op.spec().writes_elements;
            let (classes, inner) = (problem.classes, problem.inner.min(count));
            if !cuts_rows {
                let classes = 0..classes;
                return vec![Batch {
                    rows,
                    classes,
                    inner,
                    passes,
                    writes_elements: writes,
                    writes_rows: true,
                }];
            }
            passes
                .into_iter()
                .map(|pass| {
                    let classes = pass.classes.clone();
                    let (is_write, is_join) =
                        (pass.entry == Entry::SplitWrite, pass.entry == Entry::SplitJoin);
                    let pass = Pass { classes: 0..classes.end - classes.start, ..pass };
                    let (rows, passes) = (rows.clone(), vec![pass]);
                    Batch {
                        rows,
                        classes,
                        inner,
                        passes,
                        writes_elements: is_write,
                        writes_rows: is_join,
                    }
                })
                .collect()
        })
    }

    fn main_passes(&self, rows: Range<u64>, passes: &mut Vec<Pass>) {
        let count = rows.end - rows.start;
        let whole = 0..self.problem.classes;
        let segments = self.segments_per_row();
        let at_once = u64::from(WORKGROUP / self.strategy.lanes);
        match self.strategy.kind {
            Kind::RegisterResident | Kind::Online => {
                let entry = if self.strategy.kind == Kind::RegisterResident {
                    Entry::RegisterResident
                } else {
                    Entry::Online
                };
                passes.push(Pass {
                    classes: whole,
                    ..self.pass(entry, rows, 0..1, count.div_ceil(at_once))
                });
            }
            Kind::SplitRow => {
                let segment = self.segment();
                let part = |entry, part: Range<u64>| {
                    let classes = part.start * segment..whole.end.min(part.end * segment);
                    let groups = (count * (part.end - part.start)).div_ceil(at_once);
                    let segments = part.start as u32..part.end as u32;
                    Pass { classes, ..self.pass(entry, rows.clone(), segments, groups) }
                };
                passes.extend(
                    pieces(0..segments, self.segments_per_pass)
                        .map(|piece| part(Entry::SplitReduce, piece)),
                );
                passes.push(self.pass(
                    Entry::SplitJoin,
                    rows.clone(),
                    0..segments as u32,
                    count.div_ceil(at_once),
                ));
                if self.problem.op.spec().writes_elements {
                    let writes = pieces(0..segments, self.segments_per_pass);
                    passes.extend(writes.map(|piece| part(Entry::SplitWrite, piece)));
                }
            }
        }
    }

    /// Adds the passes of `entry` over all rows, in whole groups.
    fn over_groups(&self, entry: Entry, passes: &mut Vec<Pass>) {
        let reach = self.limits.binding_bytes - u64::from(self.limits.offset_alignment);
        let groups = u64::from(self.limits.workgroups_per_dimension).pow(2);
        let most = (reach / PREDICTION_BYTES / GROUP_ROWS).min(groups) * GROUP_ROWS;
        passes.extend(pieces(0..self.problem.rows, most).map(|rows| {
            let groups = (rows.end - rows.start).div_ceil(GROUP_ROWS);
            self.pass(entry, rows, 0..0, groups.div_ceil((WORKGROUP / self.long_lanes()).into()))
        }));
    }

    fn pass(&self, entry: Entry, rows: Range<u64>, segments: Range<u32>, groups: u64) -> Pass {
        Pass { entry, rows, classes: 0..0, segments, groups: self.grid(groups) }
    }

    /// Returns a grid of at least `groups` workgroups, in two dimensions where one is too small;
    /// kernels ignore the surplus.
    fn grid(&self, groups: u64) -> [u32; 3] {
        let lines = groups.div_ceil(u64::from(self.limits.workgroups_per_dimension)).max(1);
        [groups.div_ceil(lines) as u32, lines as u32, 1]
    }
}

/// Cuts a range into pieces of at most `size`.
fn pieces(Range { start, end }: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..(end - start).div_ceil(size))
        .map(move |nth| start + nth * size..end.min(start + (nth + 1) * size))
}

#[cfg(test)]
pub(crate) mod tests;
