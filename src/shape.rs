//! Shapes: how many rows, how many classes.

use crate::Error;

/// The shape of a batch of logits: rows that are each reduced over their classes.
///
/// `[rows, classes]` converts into it, so most calls never name it:
///
/// ```
/// use logits::{Logits, Shape};
/// let x = Logits::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// assert_eq!(x.shape(), Shape::rows(2, 3));
/// # Ok::<(), logits::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    rows: usize,
    classes: usize,
}

impl Shape {
    /// `rows` rows of `classes` classes, row after row in memory.
    #[must_use]
    pub const fn rows(rows: usize, classes: usize) -> Self {
        Self { rows, classes }
    }

    /// How many rows, each with its own softmax.
    #[must_use]
    pub const fn row_count(self) -> usize {
        self.rows
    }

    /// How many classes each row is reduced over.
    #[must_use]
    pub const fn classes(self) -> usize {
        self.classes
    }

    /// Elements in all.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`] without classes; [`Error::ShapeTooLarge`] where the count does not fit an address or
    /// a class index does not fit 32 bits.
    pub fn elements(self) -> Result<usize, Error> {
        let Self { rows, classes } = self;
        if classes == 0 {
            return Err(Error::ZeroClasses { rows, classes });
        }
        let count = rows.checked_mul(classes).filter(|&count| count <= isize::MAX as usize / size_of::<f32>());
        match count {
            // The largest index stands for "no class" inside the kernels.
            Some(count) if classes < u32::MAX as usize => Ok(count),
            _ => Err(Error::ShapeTooLarge { rows, classes }),
        }
    }
}

impl From<[usize; 2]> for Shape {
    fn from([rows, classes]: [usize; 2]) -> Self {
        Self::rows(rows, classes)
    }
}
