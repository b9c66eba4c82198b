//! From a request to rows: over threads, and whatever the type and the layout, to where up to sixteen at a time are computed.
//!
//! Rows are independent, so threads take halves of the batch until a half is small; no bit of a row depends on where
//! those cuts fall. Where there are fewer rows than threads, these share a row.

use super::RowOperands;
use super::lines::{self, Drain, LINE, Stage};
use super::ops::{backward, cross_entropy, log_sum_exp, predict, sample, softmax};
use super::rows::{Abreast, Across, Held, ROWS, Rows, SHORT, turn, turn_back};
use super::scratch::{Reserve, Scratch};
use super::simd::{Exp, Isa, LANES, Level, Number, Real, Vector, at_level, level, prefetch};
use super::strided::Planes;
#[cfg(feature = "parallel")]
use super::threads;
use super::transform::{Curved, Kind, Plain};
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::operation::Op;
use crate::problem::request::{self, Data, Request, RowsOut};
use crate::{Element, Error, Prediction, Shape};

/// Work below this many elements stays on the calling thread: waking another costs some 10 microseconds, in which one
/// core does about this much.
#[cfg(feature = "parallel")]
pub(super) const SMALL: usize = 32 * 1024;
/// A thread's work is cut into so many parts, for those that are done to take over from others.
#[cfg(feature = "parallel")]
const SHARES: usize = 8;
/// Threads share a row of so many classes where there are fewer rows than threads.
#[cfg(feature = "parallel")]
const SHARED: usize = 64 * 1024;
/// Results of so many bytes are written past the caches.
const LARGE: usize = 16 << 20;
/// Rows of fewer classes are put together before they are written past the caches, for lines to be written whole.
const STAGED: usize = 2048;
/// Elements of the rows that are computed at a time: they stay in a core's second cache.
pub(super) const GROUP: usize = 16384;
/// The most elements of strided rows that are gathered at a time, unless one row alone has more.
pub(super) const HUGE: usize = 1 << 24;

/// Finishes a whole request, on the threads of the current rayon pool where the feature `parallel` is on.
///
/// # Errors
/// [`Error::SimdLevel`] where the environment asks for a level that this machine lacks; [`Error::OutOfMemory`] where a row
/// that cannot be computed in place finds no memory to be computed in. Nothing is written then.
pub(crate) fn run(request: Request<'_>) -> Result<(), Error> {
    let how = How::of(&request)?;
    run_with(request, how)
}

/// Memory that is set aside before a GPU starts on a request in place, so that the CPU can finish the request without finding more.
pub(crate) struct Ready(Reserve);

impl Ready {
    /// Sets aside the memory of one row, or of as many short rows as are computed together.
    ///
    /// # Errors
    /// [`Error::SimdLevel`] and [`Error::OutOfMemory`], as from [`run`].
    pub(crate) fn new(request: &Request<'_>) -> Result<Self, Error> {
        // `finish` must not meet a bad `LOGITS_SIMD` after the GPU has written results.
        level()?;
        Reserve::new(request).map(Self)
    }

    /// Finishes what is left of the request.
    pub(crate) fn finish(&self, request: Request<'_>) -> Result<(), Error> {
        let how = How::of(&request)?;
        run_parts(request, how, Some(&self.0))
    }
}

/// What the parts of a request have in common.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub(super) level: Level,
    /// Whether results are written past the caches, where rows lie one after the other.
    pub(super) streams: bool,
    /// Whether threads share rows, where a row's classes lie side by side.
    pub(super) is_shared: bool,
    /// Elements that are not spread over threads any further.
    #[cfg_attr(not(feature = "parallel"), allow(dead_code))] // there are none
    pub(super) grain: usize,
}

impl How {
    fn of(request: &Request<'_>) -> Result<Self, Error> {
        let streams = match &request.data {
            Data::Write { output, .. } => output.bytes_len() >= LARGE,
            Data::Read { .. } | Data::Over { .. } => false,
        };
        #[cfg(feature = "parallel")]
        let elements = request.rows() * request.classes();
        #[cfg(feature = "parallel")]
        let threads = if elements > SMALL { threads::count() } else { 1 };
        #[cfg(feature = "parallel")]
        let (is_shared, grain) = if threads > 1 {
            (request.classes() >= SHARED && request.rows() < threads, (elements / (SHARES * threads)).max(SMALL))
        } else {
            (false, usize::MAX)
        };
        #[cfg(not(feature = "parallel"))]
        let (is_shared, grain) = (false, usize::MAX);
        Ok(Self { level: level()?, streams, is_shared, grain })
    }
}

/// As [`run`], told how.
pub(super) fn run_with(request: Request<'_>, how: How) -> Result<(), Error> {
    // The only part of a request takes its memory before it writes; of several the last may find none.
    let (rows, is_large) = (request.rows(), request.rows() * request.shape.classes() > how.grain);
    let is_divided = rows > 1 && (is_large || request.shape.outer() > 1 && request.shape.inner() > 1);
    let reserve = if is_divided { Some(Reserve::new(&request)?) } else { None };
    run_parts(request, how, reserve.as_ref())
}

fn run_parts(request: Request<'_>, how: How, reserve: Option<&Reserve>) -> Result<(), Error> {
    #[cfg(feature = "parallel")]
    if request.shape.outer() > 1 && request.rows() * request.classes() > how.grain {
        let half = request.shape.outer() / 2;
        // As many as go together where that does not leave a thread without.
        let half = if half > 8 * ROWS { half.next_multiple_of(ROWS) } else { half };
        let (a, b) = request.split_at(half);
        let (a, b) = rayon::join(|| run_parts(a, how, reserve), || run_parts(b, how, reserve));
        return a.and(b);
    }
    if request.rows() <= request.skip {
        return Ok(());
    }
    let Request { op, shape, data, operands, first_row, skip, rows_out } = request;
    let part = Part { op, shape, operands, first_row, skip, how, reserve };
    let (input, output, in_stride, out_stride) = match data {
        Data::Read { input, stride } => (Some(input), None, stride, 0),
        Data::Write { input, stride, output } => (Some(input), Some(output), stride, shape.block()),
        Data::Over { data, stride } => (None, Some(data), stride, stride),
    };
    macro_rules! typed {
        ($($variant:ident),*) => {
            match (input, output) {
                $(
                    (Some(Elements::$variant(x)), None) => {
                        part.transformed(Place { input: Some((x, in_stride)), output: None }, rows_out)
                    }
                    (Some(Elements::$variant(x)), Some(ElementsMut::$variant(out))) => {
                        part.transformed(Place { input: Some((x, in_stride)), output: Some((out, out_stride)) }, rows_out)
                    }
                    (None, Some(ElementsMut::$variant(out))) => {
                        part.transformed(Place { input: None, output: Some((out, out_stride)) }, rows_out)
                    }
                )*
                _ => {
                    debug_assert!(false, "results of another type than the logits");
                    Ok(())
                }
            }
        };
    }
    typed!(F32, F16, BF16, F64)
}

/// Logits, unless they stand where results go, and results; each with what lies between blocks' starts.
struct Place<'a, T> {
    input: Option<(&'a [T], usize)>,
    output: Option<(&'a mut [T], usize)>,
}

impl<T> Place<'_, T> {
    /// Logits from an element of a block on, so many of them.
    #[inline(always)]
    fn logits(&self, block: usize, at: usize, length: usize) -> &[T] {
        match (&self.input, &self.output) {
            (Some((x, stride)), _) => &x[block * stride + at..][..length],
            (None, Some((x, stride))) => &x[block * stride + at..][..length],
            (None, None) => &[],
        }
    }

    #[inline(always)]
    fn results(&mut self, block: usize, length: usize) -> Option<&mut [T]> {
        self.output.as_mut().map(|(out, stride)| &mut out[block * *stride..][..length])
    }

    fn is_dense(&self, block: usize) -> bool {
        let input = self.input.as_ref().is_none_or(|&(_, stride)| stride == block);
        input && self.output.as_ref().is_none_or(|&(_, stride)| stride == block)
    }
}

/// What a part of a request is, without its data.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) op: Op,
    pub(super) shape: Shape,
    pub(super) operands: request::Operands<'a>,
    pub(super) first_row: usize,
    pub(super) skip: usize,
    pub(super) how: How,
    pub(super) reserve: Option<&'a Reserve>,
}

impl<'a> Part<'a> {
    fn transformed<T: Number<Wide: Exp>>(self, place: Place<'_, T>, rows_out: RowsOut<'_>) -> Result<(), Error> {
        if self.operands.transform.is_identity() {
            self.laid_out(Plain, place, rows_out)
        } else {
            self.laid_out(Curved(self.operands.transform), place, rows_out)
        }
    }

    fn laid_out<T: Number<Wide: Exp>, K: Kind>(
        self,
        kind: K,
        mut place: Place<'_, T>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let (inner, block) = (self.shape.inner(), self.shape.block());
        if inner == 1 {
            return at_level!(self.how.level, isa => self.rows(isa, kind, place, rows_out));
        }
        for outer in 0..self.shape.outer() {
            let (here, rest) = rows_out.split_at(inner);
            rows_out = rest;
            let first = self.skip.saturating_sub(outer * inner).min(inner);
            let (_, here) = here.split_at(first);
            let input = place.input.map(|(x, stride)| &x[outer * stride..][..block]);
            let planes = place.results(outer, block).map(|planes| Planes::new(planes, inner).split_at(first).1);
            self.columns(kind, outer, input, planes, first..inner, here)?;
        }
        Ok(())
    }

    /// Rows whose classes lie side by side.
    #[inline(always)]
    fn rows<I: Isa, T: Number<Wide: Exp>, K: Kind>(
        mut self,
        isa: I,
        kind: K,
        mut place: Place<'_, T>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let (classes, end) = (self.shape.classes(), self.shape.outer());
        let (mut source, group) = self.scratch(usize::from(self.op.spec().rereads_row))?;
        let scratch = source.get();
        if self.op.spec().rereads_row {
            for at in self.skip..end {
                let row = &mut scratch.rows[..];
                row.iter_mut().zip(place.logits(at, 0, classes)).for_each(|(to, x)| *to = x.widen());
                self.look(isa, kind, row, &mut scratch.held, at, &mut rows_out, at);
            }
            return Ok(());
        }
        let is_short = classes <= SHORT;
        // Long rows are streamed as they are.
        let buffers = if self.how.streams && classes < STAGED { lines::buffers(group * classes) } else { None };
        let is_staged = buffers.is_some();
        // Where memory is short, short rows go through the caches.
        self.how.streams &= is_staged || classes >= STAGED;
        let first = self.skip;
        let staged = place.output.take_if(|_| is_staged).map(|(out, _)| &mut out[first * classes..]);
        let mut stage = staged.zip(buffers).map(|(out, buffers)| Stage::new(out, buffers));
        for at in (first..end).step_by(group) {
            let count = group.min(end - at);
            let (staged, drain) = match &mut stage {
                Some(stage) => {
                    let (staged, drain) = stage.parts(count * classes);
                    (Some(staged), drain)
                }
                None => (None, Drain::default()),
            };
            let left = if is_short {
                self.short_rows(isa, kind, &mut place, (staged, drain), scratch, at, count, &mut rows_out)
            } else {
                let Place { input, output } = &mut place;
                let input = input.map(|(x, stride)| (&x[at * stride..], stride));
                let output = match staged {
                    Some(staged) => Some((staged, classes)),
                    None => output.as_mut().map(|(out, stride)| (&mut out[at * *stride..], *stride)),
                };
                let How { streams, is_shared, .. } = self.how;
                let (streams, held) = (streams && !is_staged, &mut scratch.held);
                let mut rows = Across { isa, kind, classes, count, input, output, streams, drain, is_shared, held };
                let operands = self.operands(isa, at, count, &mut scratch.beside);
                self.operate(&mut rows, &operands, &mut rows_out, at);
                rows.drain.left()
            };
            if let Some(stage) = &mut stage {
                stage.advance(isa, left, count * classes);
            }
        }
        match stage {
            Some(stage) => stage.finish(isa),
            None if self.how.streams => isa.fence(),
            None => {}
        }
        Ok(())
    }

    /// As many short rows as go together, or what there are. Returns how many lines are left to be written.
    #[allow(clippy::too_many_arguments)] // two of them say which rows these are
    #[inline(always)]
    fn short_rows<I: Isa, T: Number<Wide: Exp>, K: Kind>(
        &self,
        isa: I,
        kind: K,
        place: &mut Place<'_, T>,
        (mut staged, drain): (Option<&mut [T]>, Drain<'_>),
        scratch: &mut Scratch<T::Wide>,
        at: usize,
        count: usize,
        rows_out: &mut RowsOut<'_>,
    ) -> usize {
        let classes = self.shape.classes();
        let is_dense = place.is_dense(classes);
        let [logits, results] = scratch.tiles.halves();
        for (half, (logits, other)) in logits.into_iter().zip(results).enumerate() {
            // As many rows as lie side by side.
            let there = count.saturating_sub(half * LANES).min(LANES);
            let run = if is_dense { there.max(1) } else { 1 };
            for row in (0..there).step_by(run) {
                let from = place.logits(at + half * LANES + row, 0, run * classes);
                // Those of the next ones but one.
                from.chunks(LINE / size_of::<T>())
                    .for_each(|line| prefetch(line.as_ptr().wrapping_add(2 * ROWS * classes)));
                let (whole, rest) = from.as_chunks::<LANES>();
                let (to, last) = logits[row * classes..][..from.len()].as_chunks_mut::<LANES>();
                for (from, to) in whole.iter().zip(to) {
                    *to = T::load(isa, from).array();
                }
                rest.iter().zip(last).for_each(|(from, to)| *to = from.widen());
            }
            turn(isa, logits, other, classes);
        }
        let left = self.tile(isa, kind, scratch, drain, at, count, rows_out, at);
        if !self.op.spec().writes_elements {
            return left;
        }
        let [logits, results] = scratch.tiles.halves();
        for (half, (results, other)) in results.into_iter().zip(logits).enumerate() {
            let there = count.saturating_sub(half * LANES).min(LANES);
            turn_back(isa, results, other, classes);
            let run = if is_dense { there.max(1) } else { 1 };
            for row in (0..there).step_by(run) {
                let start = half * LANES + row;
                let to = match &mut staged {
                    Some(to) => &mut to[start * classes..][..run * classes],
                    None => place.results(at + start, run * classes).unwrap_or_default(),
                };
                let (whole, rest) = to.as_chunks_mut::<LANES>();
                let (from, last) = results[row * classes..][..run * classes].as_chunks::<LANES>();
                for (from, to) in from.iter().zip(whole) {
                    *to = T::store(isa, Vector::load(isa, from));
                }
                last.iter().zip(rest).for_each(|(from, to)| *to = T::narrow(*from));
            }
        }
        left
    }

    /// How many rows are computed together: as many as have so many elements, and one at least.
    pub(super) fn group(&self) -> usize {
        let classes = self.shape.classes();
        if classes <= SHORT { ROWS } else { (GROUP / classes).clamp(1, ROWS) }
    }

    /// Returns what the operation needs beside the logits of `count` rows from `at` on: targets, gradients, log-sum-exps, and soft targets
    /// or upstream gradients, which are copied into `beside`.
    #[inline(always)]
    pub(super) fn operands<'s, I: Isa, W: Real>(
        &self,
        isa: I,
        at: usize,
        count: usize,
        beside: &'s mut [W],
    ) -> RowOperands<'s, W>
    where
        'a: 's,
    {
        let request::Operands { transform, coefficients, targets, log_sum_exps, .. } = self.operands;
        let first = self.first_row + at;
        let mut operands = RowOperands {
            transform,
            coefficients,
            targets: [Default::default(); ROWS],
            gradients: [1.0; ROWS],
            log_sum_exps: [W::ZERO; ROWS],
            classes: self.shape.classes(),
            beside: &[],
        };
        if let Some(targets) = targets.get(first..first + count) {
            operands.targets[..count].copy_from_slice(targets);
        }
        if let Some(gradients) = coefficients.row_upstream {
            operands.gradients.iter_mut().zip(&gradients[first..]).for_each(|(to, &from)| *to = f64::from(from));
        }
        if let Some(values) = log_sum_exps {
            operands.log_sum_exps[..count]
                .iter_mut()
                .enumerate()
                .for_each(|(row, to)| *to = W::of(values.at(first + row)));
        }
        let Some(values) = self.operands.elementwise() else { return operands };
        let beside = &mut beside[..count * operands.classes];
        self.copy_rows(isa, values, first, beside);
        RowOperands { beside, ..operands }
    }

    /// Copies the rows of `values` from the row `first` of the batch on. Not inlined: all callers of [`Part::given`] share one copy.
    #[inline(never)]
    fn copy_rows<I: Isa, W: Real>(&self, isa: I, values: Elements<'_>, first: usize, rows: &mut [W]) {
        let (classes, inner, block) = (self.shape.classes(), self.shape.inner(), self.shape.block());
        macro_rules! copy {
            ($($variant:ident),*) => {
                match values {
                    $(Elements::$variant(values) => {
                        for (row, to) in rows.chunks_mut(classes).enumerate() {
                            let index = first + row;
                            let from = values[index / inner * block + index % inner..].iter().step_by(inner);
                            to.iter_mut().zip(from).for_each(|(to, &from)| *to = W::of(f64::from(from)));
                        }
                    })*
                }
            };
        }
        isa.vectorize(
            #[inline(always)]
            || copy!(F32, F16, BF16, F64),
        );
    }

    /// Rows of a tile. Returns how many lines are left to be written.
    #[allow(clippy::too_many_arguments)] // three of them say which rows these are
    #[inline(always)]
    pub(super) fn tile<I: Isa, K: Kind, W: Exp>(
        &self,
        isa: I,
        kind: K,
        scratch: &mut Scratch<W>,
        drain: Drain<'_>,
        at: usize,
        count: usize,
        rows_out: &mut RowsOut<'_>,
        out_at: usize,
    ) -> usize {
        let Scratch { tiles, beside, .. } = scratch;
        let operands = self.operands(isa, at, count, beside);
        let whole = self.shape.classes() * LANES;
        let [[a, b], [c, d]] = tiles.halves();
        let logits = [a[..whole].as_chunks().0, b[..whole].as_chunks().0];
        let results = [c[..whole].as_chunks_mut().0, d[..whole].as_chunks_mut().0];
        let mut rows = Abreast { isa, kind, count, logits, results, drain };
        self.operate(&mut rows, &operands, rows_out, out_at);
        rows.drain.left()
    }

    /// Runs the operation on `rows`.
    #[inline(never)]
    pub(super) fn operate<R: Rows>(
        &self,
        rows: &mut R,
        operands: &RowOperands<'_, R::W>,
        rows_out: &mut RowsOut<'_>,
        at: usize,
    ) {
        let isa = rows.isa();
        macro_rules! apart {
            ($value:expr) => {
                // A function of its own at the same level.
                isa.vectorize(
                    #[inline(always)]
                    || $value,
                )
            };
        }
        match self.op {
            Op::Softmax => apart!(softmax::rows(rows)),
            Op::LogSoftmax => apart!(softmax::log_rows(rows)),
            Op::CrossEntropy => put(rows_out, at, rows.count(), apart!(cross_entropy::rows(rows, operands))),
            Op::CrossEntropyGrad => {
                put(rows_out, at, rows.count(), apart!(cross_entropy::gradient_rows(rows, operands)))
            }
            Op::CrossEntropyBackward => apart!(cross_entropy::backward_rows(rows, operands)),
            Op::SoftmaxBackward => apart!(backward::rows(rows, operands)),
            Op::LogSoftmaxBackward => apart!(backward::log_rows(rows, operands)),
            Op::LogSumExp => put(rows_out, at, rows.count(), apart!(log_sum_exp::rows(rows))),
            Op::Predict => {
                let predictions = apart!(predict::rows(rows));
                if let RowsOut::Predictions(out, _) = rows_out {
                    out[at..][..rows.count()].copy_from_slice(&predictions[..rows.count()]);
                }
            }
            op @ (Op::TopK | Op::Sample) => debug_assert!(false, "{op:?} has a row to itself"),
        }
    }

    /// Finds classes in a row.
    #[allow(clippy::too_many_arguments)] // two of them say which row it is
    #[inline(never)]
    pub(super) fn look<I: Isa, K: Kind, W: Exp>(
        &self,
        isa: I,
        kind: K,
        x: &[W],
        held: &mut Held<W>,
        index: usize,
        rows_out: &mut RowsOut<'_>,
        at: usize,
    ) {
        let RowsOut::Predictions(out, each) = rows_out else { return };
        let out: &mut [Prediction] = &mut out[at * *each..][..*each];
        let classes = x.len();
        let (draws, scale, index) = (&self.operands.draws, self.operands.transform.scale, self.first_row + index);
        macro_rules! look {
            ($rows:expr) => {
                match (self.op, out) {
                    (Op::Sample, [out]) => *out = sample::row(&mut $rows, x, index, scale, draws),
                    (_, out) => predict::top_row(&mut $rows, x, out),
                }
            };
        }
        isa.vectorize(
            #[inline(always)]
            || {
                if classes <= SHORT {
                    let mut tiles = [[[W::ZERO; LANES]; SHORT]; 4];
                    tiles[0].iter_mut().zip(x).for_each(|(to, &x)| to[0] = x);
                    let [a, b, c, d] = &mut tiles;
                    let logits = [&a[..classes], &b[..classes]];
                    let results = [&mut c[..classes], &mut d[..classes]];
                    look!(Abreast { isa, kind, count: 1, logits, results, drain: Drain::default() })
                } else {
                    let (input, is_shared) = (Some((x, classes)), self.how.is_shared);
                    let (output, streams, drain) = (None, false, Drain::default());
                    look!(Across { isa, kind, classes, count: 1, input, output, streams, drain, is_shared, held })
                }
            },
        );
    }
}

/// Writes values of rows.
#[inline(always)]
fn put<W: Element>(rows_out: &mut RowsOut<'_>, at: usize, count: usize, values: [W; ROWS]) {
    let values = &values[..count];
    match rows_out {
        RowsOut::Values(ElementsMut::F32(out)) => {
            out[at..][..count].iter_mut().zip(values).for_each(|(out, &value)| *out = value.into() as f32);
        }
        RowsOut::Values(ElementsMut::F64(out)) => {
            out[at..][..count].iter_mut().zip(values).for_each(|(out, &value)| *out = value.into());
        }
        RowsOut::Values(_) | RowsOut::None | RowsOut::Predictions(..) => {
            debug_assert!(false, "nowhere to write a value")
        }
    }
}
