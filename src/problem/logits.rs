//! Borrowed views of a batch of logits.

use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::transform::Transform;
use crate::{CrossEntropy, Element, Error, Shape};

/// A borrowed, read-only batch of logits of shape `[rows, classes]` or `[outer, classes, inner]`.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a, T: Element = f32> {
    data: &'a [T],
    view: View,
}

/// A batch of logits that an operation may overwrite with its result.
#[derive(Debug)]
pub struct LogitsMut<'a, T: Element = f32> {
    data: &'a mut [T],
    view: View,
}

/// The layout of the rows in memory, and the logit transform with which they are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) shape: Shape,
    /// Elements from the start of one block to the start of the next.
    pub(crate) stride: usize,
    pub(crate) transform: Transform,
}

impl View {
    /// Returns a view of `length` values without gaps.
    fn contiguous(length: usize, shape: Shape) -> Result<Self, Error> {
        check_length("logits", shape.elements()?, length)?;
        Ok(Self { shape, stride: shape.block(), transform: Transform::default() })
    }

    /// Returns a view of `length` values whose blocks start `stride` elements apart.
    fn strided(length: usize, shape: Shape, stride: usize) -> Result<Self, Error> {
        check_strided(length, shape, stride)?;
        Ok(Self { shape, stride, transform: Transform::default() })
    }

    fn at_temperature(self, temperature: f32) -> Result<Self, Error> {
        Ok(Self { transform: self.transform.at_temperature(temperature)?, ..self })
    }

    fn as_seen_by(self, loss: &CrossEntropy) -> Result<Self, Error> {
        Ok(Self { transform: loss.transform(self.transform)?, ..self })
    }
}

impl<'a, T: Element> Logits<'a, T> {
    /// Views `data` as rows that follow each other without gaps: `data.len()` is the number of
    /// elements of the shape.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`], [`Error::ShapeTooLarge`], or [`Error::Length`] where `data` has
    /// another length.
    pub fn new(data: &'a [T], shape: impl Into<Shape>) -> Result<Self, Error> {
        Ok(Self { view: View::contiguous(data.len(), shape.into())?, data })
    }

    /// Views `data` as rows that start `row_stride` elements apart, as in a padded matrix. In a
    /// shape `[outer, classes, inner]`, blocks of `classes * inner` elements start `row_stride`
    /// elements apart. The elements between them are neither read nor written.
    ///
    /// # Errors
    /// Fails as [`Logits::new`] does, but `data` need only reach the end of the last row; with
    /// [`Error::RowStride`] where the stride is shorter than a row.
    pub fn with_row_stride(
        data: &'a [T],
        shape: impl Into<Shape>,
        row_stride: usize,
    ) -> Result<Self, Error> {
        Ok(Self { view: View::strided(data.len(), shape.into(), row_stride)?, data })
    }

    /// Returns the same logits, each divided by `temperature` as it is read: above 1 the softmax is
    /// flatter, below 1 steeper. A gradient is taken with respect to the logits before that
    /// division.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let x = Logits::new(&[2.0_f32, 0.0], [1, 2])?.temperature(2.0)?;
    /// let p = Device::cpu().softmax(x).to_vec()?.values;
    /// assert!((p[0] - 1.0 / (1.0 + (-1.0_f32).exp())).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OptionValue`] where `temperature` is not between 1e-9 and 1e9, or all scales
    /// together are not between 1e-18 and 1e18.
    pub fn temperature(self, temperature: f32) -> Result<Self, Error> {
        Ok(Self { view: self.view.at_temperature(temperature)?, ..self })
    }

    /// Returns the same logits as a loss sees them: multiplied by its
    /// [`logit_scale`](CrossEntropy::logit_scale), and capped by its
    /// [`softcap`](CrossEntropy::softcap). They give the probabilities and decisions that go with
    /// that loss, and the log-sum-exps for
    /// [`Device::cross_entropy_backward`](crate::Device::cross_entropy_backward); the loss itself
    /// is given the logits as they are.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (loss, x) = (CrossEntropy::default().softcap(2.0), [9.0_f32, 0.0]);
    /// let p = Device::cpu().softmax(Logits::new(&x, [1, 2])?.as_seen_by(&loss)?).to_vec()?.values;
    /// let y = 2.0 * (9.0_f64 / 2.0).tanh();
    /// assert!((f64::from(p[0]) - 1.0 / (1.0 + (-y).exp())).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OptionValue`] where these options are out of range, or a cap is set already.
    pub fn as_seen_by(self, loss: &CrossEntropy) -> Result<Self, Error> {
        Ok(Self { view: self.view.as_seen_by(loss)?, ..self })
    }

    /// Returns the shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.view.shape
    }

    pub(crate) fn view(&self) -> View {
        self.view
    }

    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }

    pub(crate) fn elements(&self) -> Elements<'a> {
        T::erase(self.data)
    }
}

impl<'a, T: Element> LogitsMut<'a, T> {
    /// Views `data` as rows that follow each other without gaps, as [`Logits::new`] does.
    ///
    /// # Errors
    /// Fails as [`Logits::new`] does.
    pub fn new(data: &'a mut [T], shape: impl Into<Shape>) -> Result<Self, Error> {
        Ok(Self { view: View::contiguous(data.len(), shape.into())?, data })
    }

    /// Views `data` as rows that start `row_stride` elements apart, as [`Logits::with_row_stride`]
    /// does.
    ///
    /// # Errors
    /// Fails as [`Logits::with_row_stride`] does.
    pub fn with_row_stride(
        data: &'a mut [T],
        shape: impl Into<Shape>,
        row_stride: usize,
    ) -> Result<Self, Error> {
        Ok(Self { view: View::strided(data.len(), shape.into(), row_stride)?, data })
    }

    /// Returns the same logits, each divided by `temperature` as it is read:
    /// [`Logits::temperature`].
    ///
    /// # Errors
    /// Fails as [`Logits::temperature`] does.
    pub fn temperature(self, temperature: f32) -> Result<Self, Error> {
        Ok(Self { view: self.view.at_temperature(temperature)?, ..self })
    }

    /// Returns the same logits as a loss sees them: [`Logits::as_seen_by`].
    ///
    /// # Errors
    /// Fails as [`Logits::as_seen_by`] does.
    pub fn as_seen_by(self, loss: &CrossEntropy) -> Result<Self, Error> {
        Ok(Self { view: self.view.as_seen_by(loss)?, ..self })
    }

    /// Returns the shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.view.shape
    }

    pub(crate) fn view(&self) -> View {
        self.view
    }

    pub(crate) fn into_elements(self) -> ElementsMut<'a> {
        T::erase_mut(self.data)
    }
}

fn check_strided(length: usize, shape: Shape, stride: usize) -> Result<(), Error> {
    let (rows, classes) = (shape.row_count(), shape.classes());
    shape.elements()?;
    if stride < shape.block() {
        return Err(Error::RowStride { stride, classes: shape.block() });
    }
    let expected = match shape.outer().checked_sub(1) {
        None => 0,
        Some(_) if shape.inner() == 0 => 0,
        Some(gaps) => gaps
            .checked_mul(stride)
            .and_then(|start| start.checked_add(shape.block()))
            .ok_or(Error::ShapeTooLarge { rows, classes })?,
    };
    if length < expected {
        Err(Error::Length { what: "logits", expected, found: length })
    } else {
        Ok(())
    }
}

pub(crate) fn check_length(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}
