//! How the rows of files are cut into batches that fit into memory.

use std::ops::Range;

use logits::Shape;

/// Elements of the logits that are in memory at a time, but for a single row that is longer.
const BATCH_ELEMENTS: usize = 4 << 20;

/// The dimensions of logits without that of the classes.
pub(crate) fn rows_of<S: Copy>(dimensions: &[S]) -> Vec<S> {
    let classes_at = usize::from(dimensions.len() > 1);
    let others = dimensions.iter().enumerate().filter(|&(at, _)| at != classes_at);
    others.map(|(_, &size)| size).collect()
}

/// Logits of the dimensions `[n, classes, d1, ...]`, in batches of some of their rows. The rows have the dimensions `[n, d1, ...]`.
pub(crate) struct Batches {
    dimensions: Vec<usize>,
    /// Rows of a batch along each of their dimensions.
    sizes: Vec<usize>,
}

impl Batches {
    /// Of logits of the dimensions `[classes]` or `[n, classes, d1, ...]`. Where any of the files is in Fortran order, `has_fortran` must say so.
    pub(crate) fn new(dimensions: &[usize], has_fortran: bool) -> Self {
        let dimensions = match *dimensions {
            [classes] => vec![1, classes],
            // In C order they are as good as one.
            [n, classes, ref inner @ ..] if !has_fortran && inner.len() > 1 => vec![n, classes, inner.iter().product()],
            _ => dimensions.to_vec(),
        };
        let most = (BATCH_ELEMENTS / dimensions[1].max(1)).max(1);
        let sizes = sizes(&rows_of(&dimensions), most, has_fortran);
        Self { dimensions, sizes }
    }

    /// The dimensions of the logits, where several `d` may have become one.
    pub(crate) fn dimensions(&self) -> &[usize] {
        &self.dimensions
    }

    /// The dimensions of the rows.
    pub(crate) fn rows(&self) -> Vec<usize> {
        rows_of(&self.dimensions)
    }

    /// Every batch, in C order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Batch> {
        let (classes, rows) = (self.dimensions[1], self.rows());
        let counts: Vec<usize> = rows.iter().zip(&self.sizes).map(|(axis, size)| axis.div_ceil(*size)).collect();
        (0..counts.iter().product()).map(move |mut nth: usize| {
            let mut of_rows = vec![0..0; rows.len()];
            for (axis, range) in of_rows.iter_mut().enumerate().rev() {
                let start = nth % counts[axis] * self.sizes[axis];
                *range = start..(start + self.sizes[axis]).min(rows[axis]);
                nth /= counts[axis];
            }
            let mut of_elements = of_rows.clone();
            of_elements.insert(1, 0..classes);
            let inner = of_rows[1..].iter().map(Range::len).product();
            Batch { shape: Shape::new(of_rows[0].len(), classes, inner), of_rows, of_elements }
        })
    }
}

/// A batch, and where its rows and their elements are, as ranges along each dimension.
pub(crate) struct Batch {
    pub(crate) shape: Shape,
    pub(crate) of_rows: Vec<Range<usize>>,
    pub(crate) of_elements: Vec<Range<usize>>,
}

/// Rows of a batch along each of their dimensions, at most so many in all.
fn sizes(rows: &[usize], most: usize, has_fortran: bool) -> Vec<usize> {
    let mut sizes = vec![1; rows.len()];
    if !has_fortran || rows.len() == 1 {
        // Whole blocks, or where one is too large some of its columns.
        let mut left = most;
        for (size, &axis) in sizes.iter_mut().zip(rows).rev() {
            *size = left.min(axis).max(1);
            left /= *size;
        }
        return sizes;
    }
    // A file in Fortran order is read in runs along its first dimensions, and outputs are written in runs along their last.
    let mut is_first = true;
    loop {
        let has_room = |&axis: &usize| sizes[axis] < rows[axis];
        let mut axes = 0..rows.len();
        let axis = if is_first { axes.find(has_room) } else { axes.rfind(has_room) };
        let Some(axis) = axis.filter(|_| sizes.iter().product::<usize>() * 2 <= most) else {
            return sizes;
        };
        sizes[axis] = (2 * sizes[axis]).min(rows[axis]);
        is_first = !is_first;
    }
}

#[cfg(test)]
mod tests {
    use super::sizes;

    #[test]
    fn batches_are_blocks_columns_or_boxes() {
        assert_eq!(sizes(&[100], 7, false), [7]);
        assert_eq!(sizes(&[100], 7, true), [7]);
        assert_eq!(sizes(&[0], 7, false), [1]);
        assert_eq!(sizes(&[9, 10], 35, false), [3, 10]);
        assert_eq!(sizes(&[9, 10], 7, false), [1, 7]);
        assert_eq!(sizes(&[9, 5, 10], 16, true), [4, 1, 4]);
        assert_eq!(sizes(&[2, 5, 10], 1 << 20, true), [2, 5, 10]);
        assert_eq!(sizes(&[2, 0, 10], 1 << 20, true), [2, 1, 10]);
    }
}
