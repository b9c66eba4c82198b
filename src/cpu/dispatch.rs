//! Dispatches a part of a request to the code that was compiled for it.
//!
//! The inner loops are generic, and each property of a part selects one instance of them. In the
//! order of this file:
//!
//! 1. [`run_part`] selects the type of the logits: f32, f16, bf16 or f64.
//! 2. [`RowTask::with_transform`] selects the logit transform: the identity, or a scale and a soft
//!    cap.
//! 3. [`RowTask::with_layout`] selects the layout. Where a row's classes lie side by side (`inner`
//!    is 1), `groups.rs` takes over; else the classes of a row are `inner` elements apart, and
//!    `strided.rs` takes over.
//! 4. `at_level!` selects the instruction set, in `with_layout` or in `strided.rs`.
//!
//! After that `groups.rs` selects the code by the number of classes, and `ops/mod.rs` by the
//! operation.

use super::run::Schedule;
use super::scratch::Reserve;
use super::simd::{Exp, Number, at_level};
use super::strided::{StridedBlock, StridedRows};
use super::transform::{Identity, LogitTransform, ScaledCapped};
use crate::ops::Request;
use crate::ops::{Op, Statistics};
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::operands::{self, Data, RowsOut};
use crate::{Error, Shape};

/// A part of a request that one thread computes, without its data.
#[derive(Clone, Copy)]
pub(super) struct RowTask<'a> {
    pub(super) op: Op,
    pub(super) shape: Shape,
    pub(super) operands: operands::Operands<'a>,
    /// The row of the whole batch that is the first of this task.
    pub(super) first_row: usize,
    /// The number of its first rows that have been computed already.
    pub(super) skip: usize,
    pub(super) schedule: Schedule,
    pub(super) reserve: Option<&'a Reserve>,
}

/// The variant of the inner loops: what they are compiled for besides the type of the logits.
#[derive(Clone, Copy)]
pub(super) struct Variant<I, Y> {
    pub(super) isa: I,
    pub(super) transform: Y,
}

/// The logits (`None` where they are in `output`) and the results of a task (`None` where the
/// operation writes no elements), each with its stride: the elements from the start of one block to
/// the start of the next.
pub(super) struct Buffers<'a, T> {
    pub(super) input: Option<(&'a [T], usize)>,
    pub(super) output: Option<(&'a mut [T], usize)>,
}

impl<T> Buffers<'_, T> {
    /// Returns `length` logits of block number `block`, from its element `at` on.
    #[inline(always)]
    pub(super) fn logits(&self, block: usize, at: usize, length: usize) -> &[T] {
        match (&self.input, &self.output) {
            (Some((x, stride)), _) => &x[block * stride + at..][..length],
            (None, Some((x, stride))) => &x[block * stride + at..][..length],
            (None, None) => &[],
        }
    }

    /// Returns the first `length` results of block number `block`.
    #[inline(always)]
    pub(super) fn results(&mut self, block: usize, length: usize) -> Option<&mut [T]> {
        self.output.as_mut().map(|(out, stride)| &mut out[block * *stride..][..length])
    }

    /// Returns whether blocks of `block` elements have no gaps between them.
    pub(super) fn is_dense(&self, block: usize) -> bool {
        let input = self.input.as_ref().is_none_or(|&(_, stride)| stride == block);
        input && self.output.as_ref().is_none_or(|&(_, stride)| stride == block)
    }
}

/// Computes a part of a request on this thread: selects the type of the logits.
pub(super) fn run_part(
    request: Request<'_>,
    schedule: Schedule,
    reserve: Option<&Reserve>,
) -> Result<(), Error> {
    let Request { op, shape, data, operands, first_row, skip, rows_out } = request;
    let task = RowTask { op, shape, operands, first_row, skip, schedule, reserve };
    let (input, output, in_stride, out_stride) = match data {
        Data::Read { input, stride } => (Some(input), None, stride, 0),
        Data::Write { input, stride, output } => (Some(input), Some(output), stride, shape.block()),
        Data::Over { data, stride } => (None, Some(data), stride, stride),
    };
    macro_rules! with_type {
        ($($dtype:ident),*) => {
            match (input, output) {
                $(
                    (Some(Elements::$dtype(x)), None) => {
                        task.with_transform(Buffers { input: Some((x, in_stride)), output: None }, rows_out)
                    }
                    (Some(Elements::$dtype(x)), Some(ElementsMut::$dtype(out))) => {
                        let (input, output) = (Some((x, in_stride)), Some((out, out_stride)));
                        task.with_transform(Buffers { input, output }, rows_out)
                    }
                    (None, Some(ElementsMut::$dtype(out))) => {
                        task.with_transform(Buffers { input: None, output: Some((out, out_stride)) }, rows_out)
                    }
                )*
                _ => {
                    debug_assert!(false, "results of another type than the logits");
                    Ok(())
                }
            }
        };
    }
    with_type!(F32, F16, BF16, F64)
}

impl RowTask<'_> {
    /// Selects the logit transform.
    fn with_transform<T: Number<Wide: Exp>>(
        self,
        buffers: Buffers<'_, T>,
        rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        // A backward reads probabilities, and its scale is a factor of the gradient alone.
        let is_backward = self.op.spec().statistics == Statistics::GradientSum;
        if is_backward || self.operands.transform.is_identity() {
            self.with_layout(Identity, buffers, rows_out)
        } else {
            self.with_layout(ScaledCapped::new(self.operands.transform), buffers, rows_out)
        }
    }

    /// Selects the layout, and the instruction set for rows whose classes lie side by side.
    fn with_layout<T: Number<Wide: Exp>, Y: LogitTransform>(
        self,
        transform: Y,
        mut buffers: Buffers<'_, T>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let (inner, block) = (self.shape.inner(), self.shape.block());
        if inner == 1 {
            return at_level!(
                self.schedule.level,
                isa => self.contiguous_rows(Variant { isa, transform }, buffers, rows_out)
            );
        }
        for outer in 0..self.shape.outer() {
            let (here, rest) = rows_out.split_at(inner);
            rows_out = rest;
            let first = self.skip.saturating_sub(outer * inner).min(inner);
            let (_, here) = here.split_at(first);
            let input = buffers.input.map(|(x, stride)| &x[outer * stride..][..block]);
            let output = buffers
                .results(outer, block)
                .map(|block| StridedRows::new(block, inner).split_at(first).1);
            self.strided_rows(
                transform,
                StridedBlock { outer, input, output },
                first..inner,
                here,
            )?;
        }
        Ok(())
    }
}
