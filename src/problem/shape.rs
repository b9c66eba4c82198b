//! Shapes: the number of rows and of classes, and their order in memory.

use crate::Error;

/// The shape of a batch of logits, `[outer, classes, inner]`: each of its `outer * inner` rows is
/// reduced over `classes`.
///
/// An image classifier is `[batch, 10, 1]`, a language model `[tokens, 128256, 1]`, a segmentation
/// network `[batch, 21, height * width]`. `[rows, classes]` and `[outer, classes, inner]` convert
/// into it, so most calls never name it. Rows are numbered as targets of the shape `[outer, inner]`
/// lie in memory: row `o * inner + i` has class `c` at `(o * classes + c) * inner + i`.
///
/// ```
/// use logits::{Logits, Shape};
/// let x = Logits::new(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// assert_eq!(x.shape(), Shape::rows(2, 3));
/// // PyTorch's [n, classes, height, width].
/// assert_eq!(Shape::of_dimensions(&[8, 21, 64, 48])?, Shape::new(8, 21, 64 * 48));
/// # Ok::<(), logits::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    outer: usize,
    classes: usize,
    inner: usize,
}

impl Shape {
    /// Returns the shape of `rows` rows of `classes` classes, row after row in memory.
    #[must_use]
    pub const fn rows(rows: usize, classes: usize) -> Self {
        Self::new(rows, classes, 1)
    }

    /// Returns the shape of `outer` blocks, each `[classes, inner]`: the reduction is over the
    /// dimension in the middle.
    #[must_use]
    pub const fn new(outer: usize, classes: usize, inner: usize) -> Self {
        Self { outer, classes, inner }
    }

    /// Returns the shape of PyTorch's `[n, classes, d1, d2, ...]`; a single dimension is the
    /// classes of one row.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`] without dimensions; [`Error::ShapeTooLarge`] where the product of
    /// `d1, d2, ...` is beyond `usize`.
    pub fn of_dimensions(dimensions: &[usize]) -> Result<Self, Error> {
        match *dimensions {
            [] => Err(Error::ZeroClasses { rows: 1, classes: 0 }),
            [classes] => Ok(Self::rows(1, classes)),
            [outer, classes, ref rest @ ..] => {
                // With a dimension of 0, the product is 0 however large the others are.
                if rest.contains(&0) {
                    return Ok(Self::new(outer, classes, 0));
                }
                let inner =
                    rest.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
                let inner = inner.ok_or(Error::ShapeTooLarge { rows: outer, classes })?;
                Ok(Self::new(outer, classes, inner))
            }
        }
    }

    /// Returns the number of rows, each with its own softmax: `outer * inner`.
    #[must_use]
    pub const fn row_count(self) -> usize {
        self.outer.saturating_mul(self.inner)
    }

    /// Returns the number of classes that each row is reduced over.
    #[must_use]
    pub const fn classes(self) -> usize {
        self.classes
    }

    /// Returns the number of blocks of `classes * inner` values.
    #[must_use]
    pub const fn outer(self) -> usize {
        self.outer
    }

    /// Returns the number of values of one class that lie next to each other; 1 where the classes
    /// of a row do.
    #[must_use]
    pub const fn inner(self) -> usize {
        self.inner
    }

    /// Returns the number of elements of a block.
    pub(crate) const fn block(self) -> usize {
        self.classes * self.inner
    }

    /// Returns the number of elements: `outer * classes * inner`.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`] without classes; [`Error::ShapeTooLarge`] where the count does not
    /// fit an address or a class index does not fit 32 bits.
    pub fn elements(self) -> Result<usize, Error> {
        let Self { outer, classes, inner } = self;
        let rows = self.row_count();
        if classes == 0 {
            return Err(Error::ZeroClasses { rows, classes });
        }
        let count = outer.checked_mul(inner).and_then(|rows| rows.checked_mul(classes));
        let count = count.filter(|&count| count <= isize::MAX as usize / size_of::<f64>());
        // The size of a block must not overflow even where there are no blocks.
        let block = classes.checked_mul(inner);
        match count {
            // The largest index stands for "no class" inside the kernels.
            Some(count) if classes < u32::MAX as usize && block.is_some() => Ok(count),
            _ => Err(Error::ShapeTooLarge { rows, classes }),
        }
    }
}

impl From<[usize; 2]> for Shape {
    fn from([rows, classes]: [usize; 2]) -> Self {
        Self::rows(rows, classes)
    }
}

impl From<[usize; 3]> for Shape {
    fn from([outer, classes, inner]: [usize; 3]) -> Self {
        Self::new(outer, classes, inner)
    }
}
