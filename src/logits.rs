//! Borrowed views of a batch of logits.

use crate::{Error, Shape};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
}

/// A type that logits may have in memory; arithmetic is in `f32` whatever the type.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {}
impl Element for f32 {}

/// The types that logits may have, by name: what [`Element`] is to a slice, this is to a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// `f32`.
    #[default]
    F32,
}

/// A borrowed, read-only batch of logits of shape `[rows, classes]`.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a, T: Element = f32> {
    data: &'a [T],
    shape: Shape,
    row_stride: usize,
}

impl<'a, T: Element> Logits<'a, T> {
    /// Rows that follow each other without gaps: `data.len()` is `rows * classes`.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`], [`Error::ShapeTooLarge`], or [`Error::Length`] where `data` is not that long.
    pub fn new(data: &'a [T], shape: impl Into<Shape>) -> Result<Self, Error> {
        let shape = shape.into();
        check_contiguous(data.len(), shape)?;
        Ok(Self { data, shape, row_stride: shape.classes() })
    }

    /// Rows that start `row_stride` elements apart, as in a padded matrix. What lies between rows is never read.
    ///
    /// # Errors
    /// As [`Logits::new`], where `data` must reach the end of the last row; [`Error::RowStride`] where the stride is
    /// shorter than a row.
    pub fn with_row_stride(data: &'a [T], shape: impl Into<Shape>, row_stride: usize) -> Result<Self, Error> {
        let shape = shape.into();
        check_strided(data.len(), shape, row_stride)?;
        Ok(Self { data, shape, row_stride })
    }

    /// The shape given.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn parts(&self) -> (&'a [T], usize) {
        (self.data, self.row_stride)
    }
}

/// A batch of logits that an operation may overwrite with its result.
#[derive(Debug)]
pub struct LogitsMut<'a, T: Element = f32> {
    data: &'a mut [T],
    shape: Shape,
    row_stride: usize,
}

impl<'a, T: Element> LogitsMut<'a, T> {
    /// As [`Logits::new`], over memory that may be written.
    ///
    /// # Errors
    /// As [`Logits::new`].
    pub fn new(data: &'a mut [T], shape: impl Into<Shape>) -> Result<Self, Error> {
        let shape = shape.into();
        check_contiguous(data.len(), shape)?;
        Ok(Self { data, shape, row_stride: shape.classes() })
    }

    /// As [`Logits::with_row_stride`]; what lies between rows is neither read nor written.
    ///
    /// # Errors
    /// As [`Logits::with_row_stride`].
    pub fn with_row_stride(data: &'a mut [T], shape: impl Into<Shape>, row_stride: usize) -> Result<Self, Error> {
        let shape = shape.into();
        check_strided(data.len(), shape, row_stride)?;
        Ok(Self { data, shape, row_stride })
    }

    /// The shape given.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn into_parts(self) -> (&'a mut [T], usize) {
        (self.data, self.row_stride)
    }
}

fn check_contiguous(length: usize, shape: Shape) -> Result<(), Error> {
    check_length("logits", shape.elements()?, length)
}

fn check_strided(length: usize, shape: Shape, stride: usize) -> Result<(), Error> {
    let (rows, classes) = (shape.row_count(), shape.classes());
    shape.elements()?;
    if stride < classes {
        return Err(Error::RowStride { stride, classes });
    }
    let expected = match rows.checked_sub(1) {
        None => 0,
        Some(gaps) => gaps
            .checked_mul(stride)
            .and_then(|start| start.checked_add(classes))
            .ok_or(Error::ShapeTooLarge { rows, classes })?,
    };
    if length < expected { Err(Error::Length { what: "logits", expected, found: length }) } else { Ok(()) }
}

pub(crate) fn check_length(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}
