//! The plan of the CPU path for a request, for people and tools.
//!
//! The layout, the groups, the tasks and the threads are found by the functions that a call uses.
//! [`class_loops`] lists the loops of each operation; a test compares the list with the loops
//! that each operation makes, except `top_k` and `sample`.

use super::groups::{RowKernel, STREAMED_CLASSES};
use super::ops::{ClassLoop, class_loops};
use super::rows::{ROWS, SHORT_ROW_CLASSES, keeps_exponentials, pieces_of};
use super::run::{Schedule, threads_for};
use super::simd::{LANES, simd_level};
use super::strided::gathered_rows;
use crate::ops::{Op, Operand, Operation, Statistics, check_k};
use crate::plan::{ExecutionPlan, KernelProblem, PassWork, PlannedPass};
use crate::problem::operands::{Operands, RowTarget};
use crate::{DType, Error, Shape};

const LONG_READ: &str = "src/cpu/rows/read.rs";
const LONG_WRITE: &str = "src/cpu/rows/write.rs";
const SHORT: &str = "src/cpu/rows/short.rs";
const SHORT_REDUCE: &str = "src/cpu/rows/short_reduce.rs";
const CONTIGUOUS: &str = "src/cpu/groups.rs";
const STRIDED: &str = "src/cpu/strided.rs";

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
    if (elements as u64).checked_mul(64).is_none() {
        return Err(Error::ShapeTooLarge { rows, classes });
    }
    let inner = shape.inner().max(1);
    let problem = KernelProblem::lower(op, dtype, &operands, false, [rows, classes, inner]);
    let writes = op.spec().writes_elements;
    let schedule = Schedule::new(shape, if writes { elements * dtype.size() } else { 0 })?;
    let kernel = RowKernel::of(op, classes);
    let is_strided = inner > 1;
    let shares_rows = schedule.threads_share_rows;
    let group = kernel.rows();
    let is_half = !matches!(dtype, DType::F32 | DType::F64);

    let pieces = if classes <= SHORT_ROW_CLASSES { 1 } else { pieces_of(classes) };
    let parts = if rows == 0 { 0 } else { tasks(shape, schedule) };
    let threads = |most: usize| threads_for(elements).min(most.max(1)) as u64;
    // Threads share the loops over a long row alone: the thread of a task copies a row, and selects
    // classes of it.
    let threads_of = |file| match [LONG_READ, LONG_WRITE].contains(&file) && shares_rows {
        true => threads(parts * pieces),
        false => threads(parts),
    };

    // Whether a core's caches hold a group from one loop to the next.
    let is_cached = keeps_exponentials(group.min(rows.max(1)) * classes, shares_rows);
    // Copies of rows are written and read again, of strided rows many at a time.
    let copied = match kernel {
        _ if is_strided => gathered_rows(classes, inner) * classes,
        RowKernel::Selection => classes,
        RowKernel::Short => {
            ROWS * classes * (usize::from(is_half) + usize::from(problem.operand_bytes > 0))
        }
        RowKernel::Long if copies_operand(op, dtype) => classes,
        RowKernel::Long => 0,
    };
    let copies_are_cached = keeps_exponentials(copied, false);
    let mut listed = Listed {
        kernel,
        is_short: classes <= SHORT_ROW_CLASSES,
        is_strided,
        is_half,
        is_cached,
        copies_operand: classes <= SHORT_ROW_CLASSES || is_strided || copies_operand(op, dtype),
        streams: schedule.streams && classes >= STREAMED_CLASSES,
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
        threads: threads_of(file),
        work: PassWork::Loop { reads, writes },
    });
    Ok(ExecutionPlan {
        operation: op.spec().name,
        shape,
        dtype,
        device: "CPU".to_owned(),
        backend: "cpu",
        strategy: match kernel {
            RowKernel::Short => "rows as one stream",
            RowKernel::Long => "one long row",
            RowKernel::Selection => "row to itself",
        },
        access: match (kernel, is_strided) {
            (_, true) => "gathered rows",
            (RowKernel::Selection, false) => "copied row",
            (RowKernel::Short, false) if is_half => "copied rows",
            (RowKernel::Short | RowKernel::Long, false) => "direct",
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

/// Whether the upstream gradient of long rows is copied, because it has another type than they are
/// computed in.
fn copies_operand(op: Op, dtype: DType) -> bool {
    op.spec().operand == Operand::UpstreamGradient && !matches!(dtype, DType::F32 | DType::F64)
}

/// Returns the number of tasks that a request is halved into, as `run_parts` and `strided_rows` do.
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
    is_half: bool,
    is_cached: bool,
    copies_operand: bool,
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
            _ if spec.row_upstream => ("logits", "the gradient"),
            (_, false) => ("logits", "probabilities"),
            (_, true) => ("logits", "log-probabilities"),
        };
        let results = match (self.streams && !self.is_strided, results) {
            (true, "the gradient") => "the gradient past the caches",
            (true, "probabilities") => "probabilities past the caches",
            (true, _) => "log-probabilities past the caches",
            (false, results) => results,
        };
        // Memory of the thread that the rows are in while they are computed. Long rows of half
        // types are converted piece by piece in the loops themselves.
        let copy = match (self.kernel, self.is_strided) {
            (RowKernel::Selection, _) | (_, true) => Some("a copy of the row"),
            (RowKernel::Short, false) if self.is_half => Some("a copy of the rows"),
            (RowKernel::Short | RowKernel::Long, false) => None,
        };
        if let Some(copy) = copy {
            let (name, file) =
                if self.is_strided { ("gather", STRIDED) } else { ("copy", CONTIGUOUS) };
            self.passes.push((name, file, vec![logits], vec![copy]));
        }
        let operand = match (spec.operand == Operand::UpstreamGradient, self.copies_operand) {
            (true, true) => Some("a copy of the upstream gradient"),
            (true, false) => Some("the upstream gradient"),
            (false, _) => None,
        };
        if let (Some(copy), true) = (operand, self.copies_operand) {
            let from = vec!["the upstream gradient"];
            self.passes.push(("copy_operand", CONTIGUOUS, from, vec![copy]));
        }
        let (reduce_file, sum_file, write_file) = match self.is_short {
            true => (SHORT_REDUCE, SHORT, SHORT),
            false => (LONG_READ, LONG_READ, LONG_WRITE),
        };
        let mut has_read_logits = copy.is_some();
        let rows = copy.unwrap_or(logits);
        let to = if copy.is_some() { COPY_OF_RESULTS } else { results };
        let mut keeps = false;
        for step in class_loops(op) {
            let (name, file, reads, writes) = match *step {
                ClassLoop::ExponentialSum { keeps: is_wanted } => {
                    keeps = self.is_short || (is_wanted && self.is_cached);
                    let kept = if keeps { vec!["exponentials"] } else { vec![] };
                    ("exponential_sum", reduce_file, vec![rows], kept)
                }
                ClassLoop::Sum => {
                    ("sum", sum_file, [rows].into_iter().chain(operand).collect(), vec![])
                }
                ClassLoop::Search => ("search", "src/cpu/ops/predict.rs", vec![rows], vec![]),
                ClassLoop::Draw => ("draw", "src/cpu/ops/sample.rs", vec![rows], vec![]),
                ClassLoop::Exponentials if self.is_short => {
                    ("exponentials", reduce_file, vec![rows], vec!["exponentials"])
                }
                ClassLoop::Exponentials => continue,
                ClassLoop::Scale if keeps => ("write", write_file, vec!["exponentials"], vec![to]),
                ClassLoop::Scale => ("write", write_file, vec![rows], vec![to]),
                ClassLoop::Map => {
                    ("write", write_file, [rows].into_iter().chain(operand).collect(), vec![to])
                }
            };
            if copy.is_none() && reads.contains(&logits) {
                match (has_read_logits, self.is_cached) {
                    (false, _) => {}
                    (true, true) => self.again_from_caches += 1,
                    (true, false) => self.again_from_memory += 1,
                }
                has_read_logits = true;
            }
            self.passes.push((name, file, reads, writes));
        }
        if spec.writes_elements && copy.is_some() {
            let (name, file) =
                if self.is_strided { ("scatter", STRIDED) } else { ("store", CONTIGUOUS) };
            self.passes.push((name, file, vec![COPY_OF_RESULTS], vec![results]));
        }
    }
}

const COPY_OF_RESULTS: &str = "a copy of the results";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use std::cell::RefCell;
    use std::mem::discriminant;

    use super::*;
    use crate::cpu::dispatch::RowTask;
    use crate::cpu::rows::{Lanes, LongRow, Place, Rows, Stats, Wanted};
    use crate::cpu::scratch::Scratch;
    use crate::cpu::simd::{Portable, Vector, level};
    use crate::cpu::transform::Identity;
    use crate::problem::dtype::{Elements, ElementsMut};
    use crate::problem::operands::{LossCoefficients, RowsOut};
    use crate::{Prediction, Sampling};

    /// Rows that write down which loops an operation makes over them.
    struct Recorder<R> {
        rows: R,
        steps: RefCell<Vec<ClassLoop>>,
    }

    impl<R> Recorder<R> {
        fn note(&self, steps: &[ClassLoop]) {
            self.steps.borrow_mut().extend(steps);
        }
    }

    impl<R: Rows<1>> Rows<1> for Recorder<R> {
        type I = R::I;
        type W = R::W;
        type Y = R::Y;

        fn isa(&self) -> R::I {
            self.rows.isa()
        }
        fn transform(&self) -> R::Y {
            self.rows.transform()
        }
        fn count(&self) -> usize {
            self.rows.count()
        }
        fn find_nan(&self, row: usize) -> Option<usize> {
            self.note(&[ClassLoop::Search]);
            self.rows.find_nan(row)
        }
        fn maxima(&self) -> [R::W; 1] {
            self.note(&[ClassLoop::Search]);
            self.rows.maxima()
        }
        fn reduce(&mut self, wanted: Wanted) -> Stats<R::W, 1> {
            let keeps = matches!(wanted, Wanted::Sum | Wanted::Rest { keeps: true });
            self.note(&[ClassLoop::ExponentialSum { keeps }]);
            self.rows.reduce(wanted)
        }
        fn normalize(&mut self, log_sum_exps: &[R::W; 1]) -> [f64; 1] {
            self.note(&[ClassLoop::Exponentials]);
            self.rows.normalize(log_sum_exps)
        }
        fn terms(&self, logits: &[R::W; 1]) -> [f64; 1] {
            self.rows.terms(logits)
        }
        fn terms_of_first(&self, logits: Lanes<R, 1>) -> Lanes<R, 1> {
            self.rows.terms_of_first(logits)
        }
        fn sums<V: Vector<R::I>, const K: usize>(
            &self,
            values: impl Fn(Place<'_>, Lanes<Self, 1>) -> [V; K] + Sync,
        ) -> [[f64; 1]; K] {
            self.note(&[ClassLoop::Sum]);
            self.rows.sums(values)
        }
        fn scale(&mut self, factors: &[f64; 1]) {
            self.note(&[ClassLoop::Scale]);
            self.rows.scale(factors);
        }
        fn map(&mut self, value: impl Fn(Place<'_>, Lanes<Self, 1>) -> Lanes<Self, 1> + Sync) {
            self.note(&[ClassLoop::Map]);
            self.rows.map(value);
        }
        fn map_p(
            &mut self,
            factors: &[f64; 1],
            value: impl Fn(Place<'_>, Lanes<Self, 1>, Lanes<Self, 1>) -> Lanes<Self, 1> + Sync,
        ) {
            self.note(&[ClassLoop::Map]);
            self.rows.map_p(factors, value);
        }
        fn pick(&self, classes: &[usize; 1]) -> [R::W; 1] {
            self.rows.pick(classes)
        }
        fn put(&mut self, classes: &[usize; 1], values: &[R::W; 1]) {
            self.rows.put(classes, values);
        }
    }

    /// The loops that are listed are those that an operation makes.
    #[test]
    fn operations_make_the_loops_that_are_listed() {
        let classes = 1000;
        let x: Vec<f32> = (0..classes).map(|class| (class * 7 % 31) as f32 * 0.3).collect();
        let target = RowTarget { class: 3, weight: 1.0 };
        for op in Op::ALL.into_iter().filter(|op| !op.spec().rereads_row) {
            let operands = Operands {
                coefficients: LossCoefficients {
                    class_weight: classes as f64,
                    factor: 1.0,
                    on_value: 1.0,
                    ..LossCoefficients::default()
                },
                targets: &[target],
                upstream_gradient: op.spec().forward.map(|_| Elements::F32(&x)),
                log_sum_exps: op.reads_log_sum_exps().then_some(Elements::F32(&[12.0])),
                ..Operands::default()
            };
            let schedule = Schedule {
                level: level().unwrap(),
                streams: false,
                threads_share_rows: false,
                grain: usize::MAX,
            };
            let shape = Shape::rows(1, classes);
            let task =
                RowTask { op, shape, operands, first_row: 0, skip: 0, schedule, reserve: None };
            let mut out = vec![0.0_f32; classes];
            let mut scratch = Scratch::<f32>::default();
            let Scratch { long, elementwise, weights, .. } = &mut scratch;
            let rows = LongRow {
                isa: Portable,
                transform: Identity,
                input: Some(Elements::F32(&x)),
                output: op.spec().writes_elements.then_some(ElementsMut::F32(&mut out)),
                streams: false,
                threads_share_rows: false,
                scratch: long,
            };
            let mut recorder = Recorder { rows, steps: RefCell::default() };
            let (mut values, mut predictions) = ([0.0_f32], [Prediction::default()]);
            let mut rows_out = match op.predicts() {
                true => RowsOut::Predictions(&mut predictions, 1),
                false => RowsOut::Values(ElementsMut::F32(&mut values)),
            };
            let of_rows = task.operands(Portable, 0, 1, elementwise, weights);
            task.run_op(&mut recorder, &of_rows, &mut rows_out, 0);
            let made = recorder.steps.into_inner();
            let kinds = |steps: &[ClassLoop]| steps.iter().map(discriminant).collect::<Vec<_>>();
            assert_eq!(kinds(&made), kinds(class_loops(op)), "{op:?}: {made:?}");
            // Whether exponentials are kept, which the discriminant leaves out.
            let keeps =
                |steps: &[ClassLoop]| steps.contains(&ClassLoop::ExponentialSum { keeps: true });
            assert_eq!(keeps(&made), keeps(class_loops(op)), "{op:?}");
        }
    }

    fn of(operation: Operation, shape: impl Into<Shape>, dtype: DType) -> ExecutionPlan {
        plan(operation, shape.into(), dtype).unwrap()
    }

    /// Read once and written once, while the caches of a core hold a group of rows.
    #[test]
    fn bytes_are_those_that_the_loops_move() {
        let elements = 64 * 1000;
        let plan = of(Operation::Softmax, [64, 1000], DType::BF16);
        assert_eq!((plan.bytes_needed, plan.bytes_moved), (4 * elements, Some(4 * elements)));
        // Probabilities are written from the exponentials that were kept.
        assert_eq!((plan.bytes_reread, plan.rows_at_once), (Some(0), 1));
        let plan = of(Operation::LogSoftmax, [64, 1000], DType::F64);
        assert_eq!(plan.bytes_reread, Some(8 * elements));
        // Exponentials of longer rows are not kept.
        let long = 3 * 140_000;
        let plan = of(Operation::Softmax, [3, 140_000], DType::F32);
        assert_eq!((plan.bytes_needed, plan.bytes_moved), (8 * long, Some(12 * long)));
        assert_eq!((plan.strategy, plan.pieces), ("one long row", 35));
        assert_eq!(
            plan.passes.last().unwrap().work,
            PassWork::Loop { reads: vec!["logits"], writes: vec!["probabilities"] }
        );
        // A loss in f64 is f64, its target 4 bytes, and 8 with the weight of its class.
        let plan = of(Operation::CrossEntropy, [10, 7], DType::F64);
        assert_eq!((plan.bytes_needed, plan.bytes_moved), (560 + 120, Some(560 + 160)));
        assert_eq!((plan.strategy, plan.access), ("rows as one stream", "direct"));
        assert_eq!((plan.bytes_reread, plan.rows_at_once), (Some(0), 32));
        // Copies of long rows are in no cache of a core.
        let plan = of(Operation::TopK(5), [2, 140_000], DType::F32);
        assert_eq!((plan.strategy, plan.bytes_moved), ("row to itself", None));
        assert_eq!((plan.access, plan.bytes_reread), ("copied row", None));
        let plan = of(Operation::Sample(Sampling::new(1)), [2, 21, 5], DType::F32);
        assert_eq!((plan.strategy, plan.access), ("row to itself", "gathered rows"));
        let plan = of(Operation::SoftmaxBackward, [2, 21, 5], DType::F32);
        assert_eq!((plan.strategy, plan.access), ("rows as one stream", "gathered rows"));
        // Short rows of half types are computed in a converted copy.
        let elements = 2 * 640 * 100;
        let plan = of(Operation::LogSoftmax, [640, 100], DType::F16);
        assert_eq!((plan.strategy, plan.access), ("rows as one stream", "copied rows"));
        assert_eq!((plan.bytes_moved, plan.bytes_reread), (Some(2 * elements), Some(0)));
        assert_eq!(loops(&plan), ["copy", "exponential_sum", "write", "store"]);
        let plan = of(Operation::LogSumExp, [640, 100], DType::BF16);
        assert_eq!(loops(&plan), ["copy", "exponential_sum"]);
        let plan = of(Operation::LogSoftmax, [640, 129], DType::F16);
        assert_eq!((plan.access, loops(&plan)), ("direct", vec!["exponential_sum", "write"]));
    }

    fn loops(plan: &ExecutionPlan) -> Vec<&'static str> {
        plan.passes.iter().map(|pass| pass.name).collect()
    }

    /// Threads share long rows that are gathered or copied too, but not the copying.
    #[test]
    #[cfg(feature = "parallel")]
    fn threads_share_gathered_rows() {
        let of_four_threads = |operation, shape: Shape| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
            let plan = pool.install(|| of(operation, shape, DType::F32));
            let threads: Vec<_> =
                plan.passes.iter().map(|pass| (pass.name, pass.threads)).collect();
            (threads, plan)
        };
        let (threads, plan) = of_four_threads(Operation::Softmax, Shape::new(1, 70_000, 2));
        let wanted = [("gather", 1), ("exponential_sum", 4), ("write", 4), ("scatter", 1)];
        assert_eq!((threads, plan.parts), (wanted.to_vec(), 1));
        // Exponentials of shared rows are not kept.
        let work = PassWork::Loop { reads: vec!["a copy of the row"], writes: vec![] };
        assert_eq!(plan.passes[1].work, work);
        assert!(plan.to_string().contains("4, for 1 task; they share each row"), "{plan}");
        let (threads, _) = of_four_threads(Operation::TopK(5), Shape::rows(1, 70_000));
        assert_eq!(threads, [("copy", 1), ("search", 1), ("exponential_sum", 4)]);
        // Rows of fewer classes are not shared, and neither are as many rows as threads.
        for shape in [Shape::new(1, 60_000, 2), Shape::new(1, 70_000, 4)] {
            let (threads, _) = of_four_threads(Operation::Softmax, shape);
            assert!(threads.iter().all(|&(_, threads)| threads == 1), "{threads:?}");
        }
    }

    /// The files that loops are said to be in are there.
    #[test]
    fn files_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for &op in Operation::ALL {
            for shape in [Shape::rows(3, 5), Shape::rows(3, 100), Shape::new(2, 100, 3)] {
                for dtype in [DType::F32, DType::F16] {
                    for pass in of(op, shape, dtype).passes {
                        assert!(root.join(pass.file).is_file(), "{pass}");
                    }
                }
            }
        }
    }
}
