//! Views of `ndarray` as batches of logits: the feature `ndarray`.
//!
//! ```
//! use logits::{Device, Logits};
//! use ndarray::array;
//!
//! let activations = array![[0.5_f32, 2.0, -1.0], [1.5, 0.0, 0.3]];
//! let x = Logits::try_from(activations.view())?;
//! assert_eq!(Device::cpu().predict(x).to_vec()?.values[0].class, 1);
//! // The transposed array, three rows of two classes, without a copy.
//! let x = Logits::try_from(activations.t())?;
//! assert_eq!((x.shape().row_count(), x.shape().classes()), (3, 2));
//! # Ok::<(), logits::Error>(())
//! ```

use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::{Element, Error, Logits, LogitsMut, Shape};

fn refused(dimensions: &[usize], strides: &[isize]) -> Error {
    Error::Strides { dimensions: dimensions.to_vec(), strides: strides.to_vec() }
}

/// Returns the shape of a column-major matrix `[rows, classes]`: one block with `inner` = `rows`.
fn column_major(dimensions: &[usize]) -> Option<Shape> {
    match *dimensions {
        [rows, classes] => Some(Shape::new(1, classes, rows)),
        _ => None,
    }
}

impl<'a, T: Element, D: Dimension> TryFrom<ArrayView<'a, T, D>> for Logits<'a, T> {
    type Error = Error;

    /// Views an array `[rows, classes]` or `[n, classes, d1, ...]` without gaps, in row-major
    /// order; with two dimensions also in column-major order.
    fn try_from(array: ArrayView<'a, T, D>) -> Result<Self, Error> {
        let (dimensions, strides) = (array.shape().to_vec(), array.strides().to_vec());
        if let Some(data) = array.to_slice() {
            return Self::new(data, Shape::of_dimensions(&dimensions)?);
        }
        match (column_major(&dimensions), array.reversed_axes().to_slice()) {
            (Some(shape), Some(data)) => Self::new(data, shape),
            _ => Err(refused(&dimensions, &strides)),
        }
    }
}

impl<'a, T: Element, D: Dimension> TryFrom<ArrayViewMut<'a, T, D>> for LogitsMut<'a, T> {
    type Error = Error;

    /// Views an array as the conversion to [`Logits`] does.
    fn try_from(array: ArrayViewMut<'a, T, D>) -> Result<Self, Error> {
        let (dimensions, strides) = (array.shape().to_vec(), array.strides().to_vec());
        let refused = || refused(&dimensions, &strides);
        if array.is_standard_layout() {
            let data = array.into_slice().ok_or_else(refused)?;
            return Self::new(data, Shape::of_dimensions(&dimensions)?);
        }
        let shape = column_major(&dimensions).ok_or_else(refused)?;
        Self::new(array.reversed_axes().into_slice().ok_or_else(refused)?, shape)
    }
}
