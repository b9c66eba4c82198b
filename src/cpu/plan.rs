//! What the CPU path would do with a request: the plan that people and tools read.
//!
//! The layout, the groups, the tasks and the threads are found by the functions that a call uses.
//! The loops of each operation are listed here, in the order of `ops/`; a test counts those that an
//! operation really makes.

use super::groups::{RowKernel, rows_of_group};
use super::rows::{ROWS, SHORT_ROW_CLASSES, are_held, pieces_of};
use super::run::{Schedule, threads_for};
use super::simd::{LANES, simd_level};
use super::strided::gathered_rows;
use crate::ops::{Operand, Statistics, check_k};
use crate::plan::{ExecutionPlan, KernelProblem, PassWork, PlannedPass};
use crate::problem::operation::{Op, Operation};
use crate::problem::request::{Operands, RowTarget};
use crate::{DType, Error, Shape};

const ALONG_READ: &str = "src/cpu/rows/read.rs";
const ALONG_WRITE: &str = "src/cpu/rows/write.rs";
const ACROSS: &str = "src/cpu/rows/lanes_across_rows.rs";
const CONTIGUOUS: &str = "src/cpu/groups.rs";
const STRIDED: &str = "src/cpu/strided.rs";

const EXPONENTIAL_SUM: &str = "exponential_sum";

/// A loop of an operation over the classes of a group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Maximum,
    /// Sums the exponentials; `keeps` says that they are wanted again.
    ExponentialSum {
        keeps: bool,
    },
    /// A plain sum, over the operand and, where `reads_rows`, the row.
    Sum {
        reads_rows: bool,
    },
    /// Finds the class of the largest logit.
    Find,
    /// Finds the classes with the largest logits.
    Search,
    /// Draws a class.
    Draw,
    /// Writes a value of each exponential; of the logits where those are not kept.
    Scale,
    /// Writes a value of each logit.
    Map,
}

/// The loops of an operation with its default options, over rows that are ordinary numbers.
pub(super) fn steps(op: Op) -> &'static [Step] {
    use Step::{Draw, ExponentialSum, Find, Map, Maximum, Scale, Search, Sum};
    match op {
        Op::Softmax | Op::CrossEntropyGrad => &[Maximum, ExponentialSum { keeps: true }, Scale],
        Op::LogSoftmax => &[Maximum, ExponentialSum { keeps: false }, Map],
        Op::LogSumExp | Op::CrossEntropy => &[Maximum, ExponentialSum { keeps: false }],
        Op::CrossEntropyBackward => &[Map],
        Op::SoftmaxBackward => &[Sum { reads_rows: true }, Map],
        Op::LogSoftmaxBackward => &[Sum { reads_rows: false }, Map],
        Op::Predict => &[Maximum, ExponentialSum { keeps: false }, Find],
        Op::TopK => &[Search, Maximum, ExponentialSum { keeps: false }],
        Op::Sample => &[Maximum, ExponentialSum { keeps: false }, Draw],
    }
}

/// The plan of a call that writes its results to other memory, with the default options.
pub(crate) fn plan(
    operation: Operation,
    shape: Shape,
    dtype: DType,
) -> Result<ExecutionPlan, Error> {
    let op = operation.op();
    let mut operands = Operands::default();
    match operation {
        Operation::TopK(k) => {
            check_k(k, shape.classes())?;
            operands.k = k;
        }
        Operation::Sample(sampling) => operands.draws = sampling.draws()?,
        _ => {}
    }
    let elements = shape.elements()?;
    let (rows, classes) = (shape.row_count(), shape.classes());
    // No sum of bytes may overflow.
    if elements.checked_mul(64).is_none() {
        return Err(Error::ShapeTooLarge { rows, classes });
    }
    let inner = shape.inner().max(1);
    let problem = KernelProblem::lower(op, dtype, &operands, false, [rows, classes, inner]);
    let writes = op.spec().writes_elements;
    let schedule = Schedule::new(shape, if writes { elements * dtype.size() } else { 0 })?;
    let kernel = RowKernel::of(op, classes);
    let is_strided = inner > 1;
    let shares_rows = schedule.threads_share_rows && !is_strided;
    let group = if kernel == RowKernel::Selection { 1 } else { rows_of_group(classes) };

    let pieces = if kernel == RowKernel::AcrossRows { 1 } else { pieces_of(classes) };
    let parts = if rows == 0 { 0 } else { tasks(shape, schedule) };
    let most = if shares_rows { parts * pieces } else { parts };
    let threads = threads_for(elements).min(most.max(1)) as u64;

    // Whether a core's caches hold a group from one loop to the next.
    let is_cached = are_held(group.min(rows.max(1)) * classes, shares_rows);
    // Copies of rows are written and read again, of strided rows many at a time.
    let copied = match kernel {
        RowKernel::AcrossRows => 2 * ROWS * classes,
        _ if is_strided => gathered_rows(classes, inner) * classes,
        RowKernel::Selection => classes,
        _ if problem.operand_bytes > 0 => group * classes,
        _ => 0,
    };
    let copies_are_cached = are_held(copied, false);
    let mut listed = Listed {
        kernel,
        is_short: classes <= SHORT_ROW_CLASSES,
        is_strided,
        is_cached,
        streams: schedule.streams,
        passes: Vec::new(),
        again_from_caches: 0,
        again_from_memory: 0,
    };
    listed.list(op);
    let logit_bytes = elements as u64 * problem.size;
    let moved = problem.needed_bytes()
        + listed.again_from_memory * logit_bytes
        // The target of a row comes with the weight of its class.
        + match problem.target_bytes() {
            0 => 0,
            bytes => rows as u64 * (size_of::<RowTarget>() as u64 - bytes),
        };
    let passes = listed.passes.into_iter().map(|(name, file, reads, writes)| PlannedPass {
        name,
        file,
        rows: 0..rows as u64,
        classes: 0..classes as u64,
        threads,
        work: PassWork::Loop { reads, writes },
    });
    Ok(ExecutionPlan {
        operation: op.spec().name,
        shape,
        dtype,
        device: "CPU".to_owned(),
        backend: "cpu",
        strategy: match kernel {
            RowKernel::AcrossRows => "lanes across rows",
            RowKernel::AlongRow => "lanes along a row",
            RowKernel::Selection => "row to itself",
        },
        access: match (kernel, is_strided) {
            (RowKernel::AcrossRows, false) => "transposed tiles",
            (RowKernel::AcrossRows, true) => "gathered tiles",
            (_, true) => "gathered rows",
            (RowKernel::AlongRow, false) => "direct",
            (RowKernel::Selection, false) => "copied row",
        },
        lanes: LANES as u32,
        units: None,
        rows_at_once: group as u32,
        pieces: pieces as u64,
        simd: Some(simd_level()?),
        parts: parts as u64,
        passes: if rows == 0 { Vec::new() } else { passes.collect() },
        bytes_needed: problem.needed_bytes(),
        bytes_moved: copies_are_cached.then_some(moved),
        bytes_reread: copies_are_cached.then_some(listed.again_from_caches * logit_bytes),
    })
}

/// Returns how many tasks a request is halved into, as `run_parts` and `strided_rows` do.
fn tasks(shape: Shape, schedule: Schedule) -> usize {
    let (outer, classes, inner) = (shape.outer(), shape.classes(), shape.inner());
    if let Some(half) = schedule.half(shape) {
        return tasks(Shape::new(half, classes, inner), schedule)
            + tasks(Shape::new(outer - half, classes, inner), schedule);
    }
    if inner > 1 { of_block(inner, classes, schedule) } else { 1 }
}

fn of_block(rows: usize, classes: usize, schedule: Schedule) -> usize {
    match schedule.half_of_block(rows, classes) {
        Some(half) => of_block(half, classes, schedule) + of_block(rows - half, classes, schedule),
        None => 1,
    }
}

type Pass = (&'static str, &'static str, Vec<&'static str>, Vec<&'static str>);

/// Loops with what they read and write.
struct Listed {
    kernel: RowKernel,
    is_short: bool,
    is_strided: bool,
    is_cached: bool,
    streams: bool,
    passes: Vec<Pass>,
    /// How often the logits are read, after the first time.
    again_from_caches: u64,
    again_from_memory: u64,
}

impl Listed {
    fn list(&mut self, op: Op) {
        let spec = op.spec();
        let (logits, results) = match (spec.statistics, spec.is_log) {
            (Statistics::GradientSum, false) => ("probabilities", "the gradient"),
            (Statistics::GradientSum, true) => ("log-probabilities", "the gradient"),
            _ if op.has_targets() => ("logits", "the gradient"),
            (_, false) => ("logits", "probabilities"),
            (_, true) => ("logits", "log-probabilities"),
        };
        let results = match (self.streams && !self.is_strided, results) {
            (true, "the gradient") => "the gradient past the caches",
            (true, "probabilities") => "probabilities past the caches",
            (true, _) => "log-probabilities past the caches",
            (false, results) => results,
        };
        let is_across = self.kernel == RowKernel::AcrossRows;
        // Memory of the thread that the rows are in while they are computed.
        let copy = match (self.kernel, self.is_strided) {
            (RowKernel::AcrossRows, _) => Some("a tile"),
            (RowKernel::Selection, _) | (_, true) => Some("a copy of the row"),
            (RowKernel::AlongRow, false) => None,
        };
        if let Some(copy) = copy {
            let (name, file) = match (self.is_strided, is_across) {
                (true, _) => ("gather", STRIDED),
                (false, true) => ("transpose", CONTIGUOUS),
                (false, false) => ("copy", CONTIGUOUS),
            };
            self.passes.push((name, file, vec![logits], vec![copy]));
        }
        if spec.operand == Operand::UpstreamGradient {
            self.passes.push((
                "copy_operand",
                CONTIGUOUS,
                vec!["the upstream gradient"],
                vec!["a copy of it"],
            ));
        }
        let (read_file, write_file) =
            if self.is_short { (ACROSS, ACROSS) } else { (ALONG_READ, ALONG_WRITE) };
        let mut has_read_logits = copy.is_some();
        for step in steps(op) {
            let operand = (spec.operand == Operand::UpstreamGradient)
                .then_some("the copy of the upstream gradient");
            let rows = copy.unwrap_or(logits);
            // Tiles keep exponentials in any case.
            let keeps = is_across || self.is_cached;
            let to = if copy.is_some() { copy_of_results(is_across) } else { results };
            let (name, file, reads, writes) = match *step {
                Step::Maximum => ("maximum", read_file, vec![rows], vec![]),
                Step::ExponentialSum { keeps: is_wanted } => {
                    let writes = is_across || (is_wanted && keeps);
                    let kept = if writes { vec!["exponentials"] } else { vec![] };
                    (EXPONENTIAL_SUM, read_file, vec![rows], kept)
                }
                Step::Sum { reads_rows } => {
                    let rows = reads_rows.then_some(rows);
                    ("sum", read_file, rows.into_iter().chain(operand).collect(), vec![])
                }
                Step::Find => ("find", read_file, vec![rows], vec![]),
                Step::Search => ("search", "src/cpu/ops/predict.rs", vec![rows], vec![]),
                Step::Draw => ("draw", "src/cpu/ops/sample.rs", vec![rows], vec![]),
                Step::Scale if keeps => ("write", write_file, vec!["exponentials"], vec![to]),
                Step::Scale => ("write", write_file, vec![rows], vec![to]),
                Step::Map => {
                    ("write", write_file, [rows].into_iter().chain(operand).collect(), vec![to])
                }
            };
            if copy.is_none() && reads.contains(&logits) {
                // The first loop of a reduction is over a piece that is still in a cache when the
                // second one reads it.
                match (has_read_logits, name == EXPONENTIAL_SUM || self.is_cached) {
                    (false, _) => {}
                    (true, true) => self.again_from_caches += 1,
                    (true, false) => self.again_from_memory += 1,
                }
                has_read_logits = true;
            }
            self.passes.push((name, file, reads, writes));
        }
        if let (true, Some(_)) = (spec.writes_elements, copy) {
            let (name, file) = match (self.is_strided, is_across) {
                (true, _) => ("scatter", STRIDED),
                _ => ("transpose_back", CONTIGUOUS),
            };
            self.passes.push((name, file, vec![copy_of_results(is_across)], vec![results]));
        }
    }
}

fn copy_of_results(is_across: bool) -> &'static str {
    if is_across { "a tile of results" } else { "a copy of the results" }
}
