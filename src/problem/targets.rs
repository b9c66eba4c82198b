//! Targets: the correct class of each row, or the probability of each class.

use crate::Element;
use crate::problem::dtype::Elements;

use sealed::Sealed;

mod sealed {
    pub trait Sealed {
        /// Returns the same number in a type that loses no value of any type.
        fn widened(self) -> i128;

        /// Returns whether the number is in `0..classes`.
        fn is_class(&self, classes: usize) -> bool;
    }
}

/// An integer that can name a class.
pub trait ClassIndex: Sealed + Copy {
    #[doc(hidden)]
    fn targets(values: &[Self]) -> Targets<'_>;
}

/// The targets of a batch, borrowed: one class index for each row, of any integer type, or one
/// probability for each logit.
///
/// Indices are made from a slice, an array or a `Vec`; whether each is a class of the logits is
/// checked by the operation, which knows their shape and the ignored index. Probabilities are made
/// by [`Targets::probabilities`].
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a>(pub(crate) Kind<'a>);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind<'a> {
    Classes(Indices<'a>),
    Probabilities(Elements<'a>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Indices<'a> {
    U8(&'a [u8]),
    I8(&'a [i8]),
    U16(&'a [u16]),
    I16(&'a [i16]),
    U32(&'a [u32]),
    I32(&'a [i32]),
    U64(&'a [u64]),
    I64(&'a [i64]),
    Usize(&'a [usize]),
    Isize(&'a [isize]),
}

/// Evaluates `$body` with `$values` bound to the slice of `$indices`, whatever its type.
macro_rules! with_indices {
    ($indices:expr, $values:ident => $body:expr) => {
        match $indices {
            Indices::U8($values) => $body,
            Indices::I8($values) => $body,
            Indices::U16($values) => $body,
            Indices::I16($values) => $body,
            Indices::U32($values) => $body,
            Indices::I32($values) => $body,
            Indices::U64($values) => $body,
            Indices::I64($values) => $body,
            Indices::Usize($values) => $body,
            Indices::Isize($values) => $body,
        }
    };
}

impl Indices<'_> {
    pub(crate) fn len(&self) -> usize {
        with_indices!(self, values => values.len())
    }

    /// Calls `visit` for every target in order, with its row, its value widened so that no type's
    /// value is lost, and whether it is a class in `0..classes`.
    pub(crate) fn for_each<E>(
        &self,
        classes: usize,
        mut visit: impl FnMut(usize, i128, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        with_indices!(self, values => values.iter().enumerate().try_for_each(|(row, &value)| {
            visit(row, value.widened(), value.is_class(classes))
        }))
    }
}

/// Implements [`ClassIndex`] for primitive integers.
macro_rules! class_indices {
    ($($integer:ty => $variant:ident),*) => {$(
        impl Sealed for $integer {
            fn widened(self) -> i128 {
                self as i128
            }

            fn is_class(&self, classes: usize) -> bool {
                // A negative value becomes larger than any number of classes.
                (*self as u64) < classes as u64
            }
        }
        impl ClassIndex for $integer {
            fn targets(values: &[Self]) -> Targets<'_> {
                Targets(Kind::Classes(Indices::$variant(values)))
            }
        }
    )*};
}

class_indices!(
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, usize => Usize, isize => Isize
);

impl<'a> Targets<'a> {
    /// Returns targets that are probabilities, one for each logit, in the same order. They must lie
    /// between 0 and the largest f32. As in PyTorch, the caller ensures that those of a row sum to
    /// 1.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits, Targets};
    /// let (x, q) = ([2.0, 0.0, 1.0], [0.7, 0.1, 0.2]);
    /// let out = Device::cpu().cross_entropy(&CrossEntropy::default(), Logits::new(&x, [1, 3])?, Targets::probabilities(&q)).loss()?;
    /// let log_sum_exp = (2.0_f64.exp() + 1.0 + 1.0_f64.exp()).ln();
    /// assert!((out.loss - (log_sum_exp - 0.7 * 2.0 - 0.2 * 1.0)).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn probabilities<T: Element>(values: &'a [T]) -> Self {
        Self(Kind::Probabilities(T::erase(values)))
    }
}

impl<'a, I: ClassIndex> From<&'a [I]> for Targets<'a> {
    fn from(values: &'a [I]) -> Self {
        I::targets(values)
    }
}

impl<'a, I: ClassIndex, const N: usize> From<&'a [I; N]> for Targets<'a> {
    fn from(values: &'a [I; N]) -> Self {
        I::targets(values)
    }
}

impl<'a, I: ClassIndex> From<&'a Vec<I>> for Targets<'a> {
    fn from(values: &'a Vec<I>) -> Self {
        I::targets(values)
    }
}
