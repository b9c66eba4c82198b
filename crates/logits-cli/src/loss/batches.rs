//! How the rows of files are cut into batches that fit into memory.

use std::ops::Range;

use logits::Shape;

/// Elements of the logits that are in memory at a time, but for a single row that is longer.
const BATCH_ELEMENTS: usize = 4 << 20;

/// The shape of the rows: that of the logits, `[classes]` or `[n, classes, d1, ...]`, without the
/// classes.
pub(crate) fn row_shape(dimensions: &[usize]) -> Vec<usize> {
    let classes_at = usize::from(dimensions.len() > 1);
    let others = dimensions.iter().enumerate().filter(|&(at, _)| at != classes_at);
    others.map(|(_, &size)| size).collect()
}

/// Logits `[n, classes, d1, ...]`, cut into batches of some of their rows `[n, d1, ...]`.
pub(crate) struct Batches {
    shape: Vec<usize>,
    /// Rows of a batch along each axis.
    batch_shape: Vec<usize>,
    in_order: bool,
}

impl Batches {
    /// Cuts logits `[classes]` or `[n, classes, d1, ...]` into batches. `any_fortran`: whether the
    /// logits or the targets are in Fortran order.
    pub(crate) fn new(shape: &[usize], any_fortran: bool) -> Self {
        let shape = match *shape {
            [classes] => vec![1, classes],
            // In C order the inner dimensions are contiguous, so they are one.
            [n, classes, ref inner @ ..] if !any_fortran && inner.len() > 1 => {
                vec![n, classes, inner.iter().product()]
            }
            _ => shape.to_vec(),
        };
        let max_rows = (BATCH_ELEMENTS / shape[1].max(1)).max(1);
        let rows = row_shape(&shape);
        let batch_shape = batch_shape(&rows, max_rows, any_fortran);
        Self { shape, batch_shape, in_order: !any_fortran || rows.len() == 1 }
    }

    /// The shape of the logits that the ranges of a batch index; several inner dimensions may have
    /// become one.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The shape of the rows.
    pub(crate) fn row_shape(&self) -> Vec<usize> {
        row_shape(&self.shape)
    }

    /// Whether one batch after the other holds the rows in C order.
    pub(crate) fn in_order(&self) -> bool {
        self.in_order
    }

    /// Every batch, in C order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Batch> {
        let (classes, rows) = (self.shape[1], self.row_shape());
        let counts: Vec<usize> =
            rows.iter().zip(&self.batch_shape).map(|(axis, size)| axis.div_ceil(*size)).collect();
        // The digits of `nth` are the batch's index along each axis, the last axis fastest.
        (0..counts.iter().product()).map(move |mut nth: usize| {
            let mut row_ranges = vec![0..0; rows.len()];
            for (axis, range) in row_ranges.iter_mut().enumerate().rev() {
                let start = nth % counts[axis] * self.batch_shape[axis];
                *range = start..(start + self.batch_shape[axis]).min(rows[axis]);
                nth /= counts[axis];
            }
            let mut logit_ranges = row_ranges.clone();
            logit_ranges.insert(1, 0..classes);
            let inner = row_ranges[1..].iter().map(Range::len).product();
            Batch {
                shape: Shape::new(row_ranges[0].len(), classes, inner),
                row_ranges,
                logit_ranges,
            }
        })
    }
}

/// A batch: its shape in memory, and the ranges of its rows and of their logits along each axis.
pub(crate) struct Batch {
    pub(crate) shape: Shape,
    pub(crate) row_ranges: Vec<Range<usize>>,
    pub(crate) logit_ranges: Vec<Range<usize>>,
}

/// Returns the rows of a batch along each axis, at most `max_rows` in all.
fn batch_shape(rows: &[usize], max_rows: usize, any_fortran: bool) -> Vec<usize> {
    let mut sizes = vec![1; rows.len()];
    if !any_fortran || rows.len() == 1 {
        // Fill the last axis, then the one before it, as long as rows are left.
        let mut left = max_rows;
        for (size, &axis) in sizes.iter_mut().zip(rows).rev() {
            *size = left.min(axis).max(1);
            left /= *size;
        }
        return sizes;
    }
    // Inputs are contiguous along the first axes, outputs along the last ones: double one of each
    // in turn.
    let mut is_first = true;
    loop {
        let has_room = |&axis: &usize| sizes[axis] < rows[axis];
        let mut axes = 0..rows.len();
        let axis = if is_first { axes.find(has_room) } else { axes.rfind(has_room) };
        let Some(axis) = axis.filter(|_| sizes.iter().product::<usize>() * 2 <= max_rows) else {
            return sizes;
        };
        sizes[axis] = (2 * sizes[axis]).min(rows[axis]);
        is_first = !is_first;
    }
}

#[cfg(test)]
mod tests {
    use super::batch_shape;

    #[test]
    fn batches_are_blocks_columns_or_boxes() {
        assert_eq!(batch_shape(&[100], 7, false), [7]);
        assert_eq!(batch_shape(&[100], 7, true), [7]);
        assert_eq!(batch_shape(&[0], 7, false), [1]);
        assert_eq!(batch_shape(&[9, 10], 35, false), [3, 10]);
        assert_eq!(batch_shape(&[9, 10], 7, false), [1, 7]);
        assert_eq!(batch_shape(&[9, 5, 10], 16, true), [4, 1, 4]);
        assert_eq!(batch_shape(&[2, 5, 10], 1 << 20, true), [2, 5, 10]);
        assert_eq!(batch_shape(&[2, 0, 10], 1 << 20, true), [2, 1, 10]);
    }
}
