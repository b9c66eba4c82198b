//! Borrowed views of a batch of logits.

use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::transform::Transform;
use crate::{CrossEntropy, Element, Error, Shape};

/// A borrowed, read-only batch of logits of shape `[rows, classes]` or `[outer, classes, inner]`.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a, T: Element = f32> {
    data: &'a [T],
    shape: Shape,
    stride: usize,
    transform: Transform,
}

/// A batch of logits that an operation may overwrite with its result.
#[derive(Debug)]
pub struct LogitsMut<'a, T: Element = f32> {
    data: &'a mut [T],
    shape: Shape,
    stride: usize,
    transform: Transform,
}

/// How rows are read: where they are, and what is made of them first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) shape: Shape,
    pub(crate) stride: usize,
    pub(crate) transform: Transform,
}

macro_rules! views {
    ($($view:ident($data:ty)),*) => {$(
        impl<'a, T: Element> $view<'a, T> {
            /// Values that follow each other without gaps: `data.len()` is the number of elements of the shape.
            ///
            /// # Errors
            /// [`Error::ZeroClasses`], [`Error::ShapeTooLarge`], or [`Error::Length`] where `data` is not that long.
            pub fn new(data: $data, shape: impl Into<Shape>) -> Result<Self, Error> {
                let shape = shape.into();
                check_length("logits", shape.elements()?, data.len())?;
                Ok(Self { data, shape, stride: shape.block(), transform: Transform::default() })
            }

            /// Rows that start `row_stride` elements apart, as in a padded matrix; of a shape `[outer, classes, inner]`, blocks
            /// of `classes * inner`. What lies between them is neither read nor written.
            ///
            /// # Errors
            /// As `new`, where `data` must reach the end of the last row; [`Error::RowStride`] where the stride is shorter
            /// than a row.
            pub fn with_row_stride(data: $data, shape: impl Into<Shape>, row_stride: usize) -> Result<Self, Error> {
                let shape = shape.into();
                check_strided(data.len(), shape, row_stride)?;
                Ok(Self { data, shape, stride: row_stride, transform: Transform::default() })
            }

            /// The same logits, each divided by `temperature` as it is read: above 1 the softmax is flatter, below 1 steeper.
            /// What a gradient is taken with respect to are the logits before that.
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
            /// [`Error::OptionValue`] where it is not between 1e-9 and 1e9, or all scales together not between 1e-18 and 1e18.
            pub fn temperature(self, temperature: f32) -> Result<Self, Error> {
                Ok(Self { transform: self.transform.at_temperature(temperature)?, ..self })
            }

            /// The same logits as a loss sees them: through its [`logit_scale`](CrossEntropy::logit_scale), and under its
            /// [`softcap`](CrossEntropy::softcap). For probabilities and decisions that go with that loss, and for the
            /// log-sum-exps of [`Device::cross_entropy_backward`](crate::Device::cross_entropy_backward); the loss itself
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
                Ok(Self { transform: loss.transform(self.transform)?, ..self })
            }

            /// The shape given.
            #[must_use]
            pub fn shape(&self) -> Shape {
                self.shape
            }

            pub(crate) fn view(&self) -> View {
                View { shape: self.shape, stride: self.stride, transform: self.transform }
            }
        }
    )*};
}

views!(Logits(&'a [T]), LogitsMut(&'a mut [T]));

impl<'a, T: Element> Logits<'a, T> {
    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }

    pub(crate) fn elements(&self) -> Elements<'a> {
        T::erase(self.data)
    }
}

impl<'a, T: Element> LogitsMut<'a, T> {
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
    if length < expected { Err(Error::Length { what: "logits", expected, found: length }) } else { Ok(()) }
}

pub(crate) fn check_length(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}
