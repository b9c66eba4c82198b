//! A request: one validated call, as the CPU path and the GPU path take it. It names the operation,
//! the rows and the destination.

use super::Op;
use crate::problem::dtype::ElementsMut;
use crate::problem::logits::View;
use crate::problem::operands::{Data, Operands, RowsOut};
use crate::{DType, Shape};

/// A validated piece of work. Splitting it by blocks yields pieces that are themselves whole
/// requests.
pub(crate) struct Request<'a> {
    pub(crate) op: Op,
    pub(crate) shape: Shape,
    pub(crate) data: Data<'a>,
    pub(crate) operands: Operands<'a>,
    /// Which row of the whole batch this request's first is.
    pub(crate) first_row: usize,
    /// How many of its first rows have been done already; fewer than a block has.
    pub(crate) skip: usize,
    pub(crate) rows_out: RowsOut<'a>,
}

impl<'a> Request<'a> {
    /// A whole batch.
    pub(crate) fn new(
        op: Op,
        view: View,
        data: Data<'a>,
        operands: Operands<'a>,
        rows_out: RowsOut<'a>,
    ) -> Self {
        Self { op, shape: view.shape, data, operands, first_row: 0, skip: 0, rows_out }
    }

    pub(crate) fn rows(&self) -> usize {
        self.shape.row_count()
    }

    pub(crate) fn classes(&self) -> usize {
        self.shape.classes()
    }

    /// The first `outer` blocks, or all if there are fewer, and the rest.
    pub(crate) fn split_at(self, outer: usize) -> (Request<'a>, Request<'a>) {
        let Self { op, shape, data, operands, first_row, skip, rows_out } = self;
        let outer = outer.min(shape.outer());
        let (block, inner) = (shape.block(), shape.inner());
        // The last block need not reach to the end of its stride.
        let cut = |length: usize, stride: usize| length.min(outer.saturating_mul(stride));
        let (data, data_rest) = match data {
            Data::Read { input, stride } => {
                let (a, b) = input.split_at(cut(input.len(), stride));
                (Data::Read { input: a, stride }, Data::Read { input: b, stride })
            }
            Data::Write { input, stride, output } => {
                let (a, b) = input.split_at(cut(input.len(), stride));
                let at = cut(output.len(), block);
                let (out_a, out_b) = output.split_at(at);
                (
                    Data::Write { input: a, stride, output: out_a },
                    Data::Write { input: b, stride, output: out_b },
                )
            }
            Data::Over { data, stride } => {
                let at = cut(data.len(), stride);
                let (a, b) = data.split_at(at);
                (Data::Over { data: a, stride }, Data::Over { data: b, stride })
            }
        };
        let rows = outer * inner;
        let (rows_out, rows_rest) = rows_out.split_at(rows);
        let shape_of = |outer| Shape::new(outer, shape.classes(), inner);
        let rest = shape.outer() - outer;
        (
            Request {
                op,
                shape: shape_of(outer),
                data,
                operands,
                first_row,
                skip: skip.min(rows),
                rows_out,
            },
            Request {
                op,
                shape: shape_of(rest),
                data: data_rest,
                operands,
                first_row: first_row + rows,
                skip: skip.saturating_sub(rows),
                rows_out: rows_rest,
            },
        )
    }

    /// Returns the part of the request that follows its first `rows` rows.
    pub(crate) fn after(self, rows: usize) -> Request<'a> {
        let inner = self.shape.inner().max(1);
        let (_, rest) = self.split_at(rows / inner);
        Request { skip: rows % inner, ..rest }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.data.dtype()
    }
}

impl Request<'_> {
    /// Where results of elements go, and how far apart its blocks start.
    pub(crate) fn output(&mut self) -> Option<(ElementsMut<'_>, usize)> {
        let block = self.shape.block();
        match &mut self.data {
            Data::Read { .. } => None,
            Data::Write { output, .. } => Some((output.reborrow(), block)),
            Data::Over { data, stride } => Some((data.reborrow(), *stride)),
        }
    }
}
