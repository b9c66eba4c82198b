//! Rows, whatever their type and layout, brought to where they are computed, and over the threads.
//!
//! Rows are independent, so threads take halves of the batch until a half is small; no bit of a row depends on where
//! those cuts fall. A row of f32 or f64 is computed where its result goes; of a half type in a copy of the row; where
//! rows lie across each other a few at a time are gathered from their planes, and scattered.

use std::ops::Range;

use super::curve::{About, Curved, Plain};
use super::real::Number;
use super::{Row, backward, cross_entropy, log_sum_exp, predict, sample, softmax};
use crate::elements::{Elements, ElementsMut};
use crate::error::try_vec;
use crate::job::{Data, Given, Job, Op, RowsOut};
use crate::{Element, Error, Prediction, Shape};

/// Work below this many elements stays on the calling thread: waking another costs some 10 microseconds, in which one
/// core does about this much.
#[cfg(feature = "parallel")]
const SMALL: usize = 16 * 1024;
/// Elements of the rows that are gathered at a time, for them to stay in a cache.
const GATHERED: usize = 32 * 1024;
/// Rows that are gathered at least, for a cache line to be used whole, unless they are huge.
const ABREAST: usize = 16;
const HUGE: usize = 1 << 22;

/// Finishes a whole job, on the threads of the current rayon pool where the feature `parallel` is on.
///
/// # Errors
/// [`Error::OutOfMemory`] where a row that cannot be computed in place finds no memory to be computed in.
pub(crate) fn run(job: Job<'_>) -> Result<(), Error> {
    #[cfg(feature = "parallel")]
    if job.shape.outer() > 1 && job.rows() * job.classes() > SMALL {
        let half = job.shape.outer() / 2;
        let (a, b) = job.split_at(half);
        let (a, b) = rayon::join(|| run(a), || run(b));
        return a.and(b);
    }
    if job.rows() <= job.skip {
        return Ok(());
    }
    let Job { op, shape, data, given, first_row, skip, rows_out } = job;
    let piece = Piece { op, shape, given, first_row, skip };
    let (input, output, in_stride, out_stride) = match data {
        Data::Read { input, stride } => (Some(input), None, stride, 0),
        Data::Write { input, stride, output } => (Some(input), Some(output), stride, shape.block()),
        Data::Over { data, stride } => (None, Some(data), stride, stride),
    };
    macro_rules! typed {
        ($($variant:ident),*) => {
            match (input, output) {
                $(
                    (Some(Elements::$variant(x)), None) => piece.curved(Some(x), None, [in_stride, out_stride], rows_out),
                    (Some(Elements::$variant(x)), Some(ElementsMut::$variant(out))) => {
                        piece.curved(Some(x), Some(out), [in_stride, out_stride], rows_out)
                    }
                    (None, Some(ElementsMut::$variant(out))) => {
                        piece.curved(None, Some(out), [in_stride, out_stride], rows_out)
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

/// What a job is, without its data.
#[derive(Clone, Copy)]
struct Piece<'a> {
    op: Op,
    shape: Shape,
    given: Given<'a>,
    first_row: usize,
    skip: usize,
}

/// Memory of a thread for rows on their way.
struct Scratch<W> {
    rows: Vec<W>,
    second: Vec<W>,
}

impl<'a> Piece<'a> {
    fn curved<T: Number>(
        self,
        input: Option<&[T]>,
        output: Option<&mut [T]>,
        strides: [usize; 2],
        rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        if self.given.curve.is_plain() {
            self.blocks::<T, Plain<T::Wide>>(input, output, strides, rows_out)
        } else {
            self.blocks::<T, Curved<T::Wide>>(input, output, strides, rows_out)
        }
    }

    fn blocks<T: Number, A: About<T::Wide>>(
        self,
        input: Option<&[T]>,
        mut output: Option<&mut [T]>,
        [in_stride, out_stride]: [usize; 2],
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let (inner, block) = (self.shape.inner(), self.shape.block());
        if inner > 1 {
            for outer in 0..self.shape.outer() {
                let (here, rest) = rows_out.split_at(inner);
                rows_out = rest;
                let first = self.skip.saturating_sub(outer * inner).min(inner);
                let (_, here) = here.split_at(first);
                let input = input.map(|input| &input[outer * in_stride..][..block]);
                let planes = output.as_mut().map(|output| &mut output[outer * out_stride..][..block]);
                let planes = planes.map(|planes| planes.chunks_mut(inner).map(|plane| &mut plane[first..]).collect());
                self.columns::<T, A>(outer, input, planes.unwrap_or_default(), first..inner, here)?;
            }
            return Ok(());
        }
        let classes = self.shape.classes();
        let is_wide = T::as_wide(&[]).is_some();
        let mut scratch = self.scratch::<T>(if is_wide { 0 } else { classes })?;
        for at in self.skip..self.shape.outer() {
            let input = input.map(|input| &input[at * in_stride..][..classes]);
            let row = self.row(at, &mut scratch.second);
            let out = Out::of(&mut rows_out, at);
            let Some(output) = &mut output else {
                let Some(x) = input else { continue };
                match T::as_wide(x) {
                    Some(x) => self.reduce::<T, A>(x, &row, out),
                    None => {
                        T::widen_all(x, &mut scratch.rows);
                        self.reduce::<T, A>(&scratch.rows, &row, out);
                    }
                }
                continue;
            };
            let output = &mut output[at * out_stride..][..classes];
            if let Some(input) = input.filter(|_| is_wide) {
                output.copy_from_slice(input);
            }
            match T::as_wide_mut(output) {
                Some(x) => self.transform::<T, A>(x, &row, out),
                None => {
                    T::widen_all(input.unwrap_or(output), &mut scratch.rows);
                    self.transform::<T, A>(&mut scratch.rows, &row, out);
                    T::narrow_all(&scratch.rows, output);
                }
            }
        }
        Ok(())
    }

    /// The rows of a block that is planes, each a class: some of the columns.
    fn columns<T: Number, A: About<T::Wide>>(
        self,
        outer: usize,
        input: Option<&[T]>,
        mut planes: Vec<&mut [T]>,
        columns: Range<usize>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let (classes, inner) = (self.shape.classes(), self.shape.inner());
        #[cfg(feature = "parallel")]
        if columns.len() > ABREAST && columns.len() * classes > SMALL {
            // Whole cache lines to each.
            let half = (columns.len() / 2).next_multiple_of(ABREAST);
            let middle = columns.start + half;
            let (out_a, out_b) = rows_out.split_at(half);
            let (planes_a, planes_b) = planes.into_iter().map(|plane| plane.split_at_mut(half)).unzip();
            let (a, b) = rayon::join(
                || self.columns::<T, A>(outer, input, planes_a, columns.start..middle, out_a),
                || self.columns::<T, A>(outer, input, planes_b, middle..columns.end, out_b),
            );
            return a.and(b);
        }
        let abreast = (GATHERED / classes).max(ABREAST.min(HUGE / classes)).clamp(1, columns.len());
        let mut scratch = self.scratch::<T>(abreast.saturating_mul(classes))?;
        for start in columns.clone().step_by(abreast) {
            let width = abreast.min(columns.end - start);
            let at = start - columns.start;
            for class in 0..classes {
                let plane = match input {
                    Some(input) => &input[class * inner + start..][..width],
                    None => &planes[class][at..at + width],
                };
                for (nth, &x) in plane.iter().enumerate() {
                    scratch.rows[nth * classes + class] = x.widen();
                }
            }
            for (nth, x) in scratch.rows.chunks_exact_mut(classes).take(width).enumerate() {
                let row = self.row(outer * inner + start + nth, &mut scratch.second);
                let out = Out::of(&mut rows_out, at + nth);
                if self.op.writes_elements() {
                    self.transform::<T, A>(x, &row, out);
                } else {
                    self.reduce::<T, A>(x, &row, out);
                }
            }
            for (class, plane) in planes.iter_mut().enumerate() {
                for (nth, out) in plane[at..at + width].iter_mut().enumerate() {
                    *out = T::narrow(scratch.rows[nth * classes + class]);
                }
            }
        }
        Ok(())
    }

    fn scratch<T: Number>(&self, elements: usize) -> Result<Scratch<T::Wide>, Error> {
        let second = if self.given.second.is_some() { self.shape.classes() } else { 0 };
        Ok(Scratch { rows: try_vec("rows on their way", elements)?, second: try_vec("rows on their way", second)? })
    }

    /// What a row of this piece is given.
    fn row<'s, W: super::Real>(&self, at: usize, second: &'s mut [W]) -> Row<'s, W> {
        let index = self.first_row + at;
        let Given { scaling, targets, log_sum_exps, .. } = self.given;
        let gradient = scaling.row_gradients.map_or(1.0, |gradients| f64::from(gradients[index]));
        let target = targets.get(index).copied().unwrap_or_default();
        let log_sum_exp = W::of(log_sum_exps.map_or(0.0, |values| values.at(index)));
        let Some(values) = self.given.second else {
            return Row { index, target, second: None, gradient, log_sum_exp };
        };
        let (classes, inner) = (self.shape.classes(), self.shape.inner());
        let start = index / inner * self.shape.block() + index % inner;
        macro_rules! gathered {
            ($($variant:ident),*) => {
                match values {
                    $(Elements::$variant(values) => {
                        let from = values[start..].iter().step_by(inner);
                        second.iter_mut().zip(from).take(classes).for_each(|(to, &from)| *to = W::of(f64::from(from)));
                    })*
                }
            };
        }
        gathered!(F32, F16, BF16, F64);
        Row { index, target, second: Some(second), gradient, log_sum_exp }
    }

    fn reduce<T: Number, A: About<T::Wide>>(&self, x: &[T::Wide], row: &Row<'_, T::Wide>, out: Out<'_>) {
        let Given { curve, scaling, draws, .. } = &self.given;
        match (self.op, out) {
            (Op::CrossEntropy, out) => out.put(cross_entropy::row::<_, A>(x, row, scaling, curve)),
            (Op::LogSumExp, out) => out.put(log_sum_exp::row::<_, A>(x, curve)),
            (Op::Predict, Out::Predictions([out])) => *out = predict::row::<_, A>(x, curve),
            (Op::TopK, Out::Predictions(out)) => predict::top_row::<_, A>(x, curve, out),
            (Op::Sample, Out::Predictions([out])) => *out = sample::row::<_, A>(x, row.index, curve, draws),
            (op, _) => debug_assert!(false, "{op:?} was given nowhere to write"),
        }
    }

    fn transform<T: Number, A: About<T::Wide>>(&self, x: &mut [T::Wide], row: &Row<'_, T::Wide>, out: Out<'_>) {
        let Given { curve, scaling, .. } = &self.given;
        let second = row.second.unwrap_or_default();
        match self.op {
            Op::Softmax => softmax::row::<_, A>(x, curve),
            Op::LogSoftmax => softmax::log_row::<_, A>(x, curve),
            Op::CrossEntropyGrad => out.put(cross_entropy::gradient_row::<_, A>(x, row, scaling, curve)),
            Op::CrossEntropyBackward => cross_entropy::backward_row::<_, A>(x, row, scaling, curve),
            Op::SoftmaxBackward => backward::row(x, second, curve.scale),
            Op::LogSoftmaxBackward => backward::log_row(x, second, curve.scale),
            op => debug_assert!(false, "{op:?} was asked to write"),
        }
    }
}

/// Where one row's own results go.
enum Out<'o> {
    None,
    Single(&'o mut f32),
    Double(&'o mut f64),
    Predictions(&'o mut [Prediction]),
}

impl<'o> Out<'o> {
    fn of(rows_out: &'o mut RowsOut<'_>, at: usize) -> Self {
        match rows_out {
            RowsOut::Values(ElementsMut::F32(values)) => Self::Single(&mut values[at]),
            RowsOut::Values(ElementsMut::F64(values)) => Self::Double(&mut values[at]),
            RowsOut::Predictions(values, each) => Self::Predictions(&mut values[at * *each..][..*each]),
            RowsOut::Values(_) | RowsOut::None => Self::None,
        }
    }

    fn put(self, value: impl Element) {
        match self {
            Self::Single(out) => *out = value.into() as f32,
            Self::Double(out) => *out = value.into(),
            Self::None | Self::Predictions(_) => debug_assert!(false, "nowhere to write a value"),
        }
    }
}
