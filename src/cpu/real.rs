//! The two types that rows are computed in, and how the others come to them.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::exp;
use crate::Element;

/// What a row is computed in: f32, with f64 where sums are at stake, or f64 throughout.
pub(super) trait Real: Element<Row = Self> + PartialOrd + std::ops::Neg<Output = Self> {
    const ZERO: Self;
    const NAN: Self;
    const NEG_INFINITY: Self;
    fn of(value: f64) -> Self;
    /// exp(self - max) for a finite max that is no smaller.
    fn exp_below(self, max: Self) -> Self;
    /// exp of a difference that is known in f64.
    fn exp(difference: f64) -> Self;
    /// (self - max) - log_sum, rounded once.
    fn log_below(self, max: Self, log_sum: Self) -> Self;
    fn is_number(self) -> bool;
    fn add(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const NAN: Self = f32::NAN;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn exp_below(self, max: Self) -> Self {
        exp::exp_difference(self, max)
    }

    #[inline(always)]
    fn exp(difference: f64) -> Self {
        let d = difference.clamp(-1000.0, 100.0);
        let high = d as f32;
        exp::exp_pair(high, (d - f64::from(high)) as f32)
    }

    #[inline(always)]
    fn log_below(self, max: Self, log_sum: Self) -> Self {
        let (d, lost) = exp::difference(self, max);
        (d - log_sum) + lost
    }

    #[inline(always)]
    fn is_number(self) -> bool {
        !self.is_nan()
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self * other
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const NAN: Self = f64::NAN;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn exp_below(self, max: Self) -> Self {
        exp::exp(self - max)
    }

    #[inline(always)]
    fn exp(difference: f64) -> Self {
        exp::exp(difference)
    }

    #[inline(always)]
    fn log_below(self, max: Self, log_sum: Self) -> Self {
        (self - max) - log_sum
    }

    #[inline(always)]
    fn is_number(self) -> bool {
        !self.is_nan()
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self * other
    }
}

/// A type of logits, and the one that they are computed in.
pub(super) trait Number: Element<Row = Self::Wide> {
    type Wide: Real;
    fn widen(self) -> Self::Wide;
    fn narrow(value: Self::Wide) -> Self;

    /// The row as it is, where that will do.
    fn as_wide(_row: &[Self]) -> Option<&[Self::Wide]> {
        None
    }

    fn as_wide_mut(_row: &mut [Self]) -> Option<&mut [Self::Wide]> {
        None
    }

    fn widen_all(from: &[Self], to: &mut [Self::Wide]) {
        from.iter().zip(to).for_each(|(&from, to)| *to = from.widen());
    }

    fn narrow_all(from: &[Self::Wide], to: &mut [Self]) {
        from.iter().zip(to).for_each(|(&from, to)| *to = Self::narrow(from));
    }
}

macro_rules! wide {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            type Wide = $ty;

            fn widen(self) -> $ty {
                self
            }

            fn narrow(value: $ty) -> $ty {
                value
            }

            fn as_wide(row: &[$ty]) -> Option<&[$ty]> {
                Some(row)
            }

            fn as_wide_mut(row: &mut [$ty]) -> Option<&mut [$ty]> {
                Some(row)
            }
        }
    )*};
}

macro_rules! halves {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            type Wide = f32;

            fn widen(self) -> f32 {
                self.to_f32()
            }

            fn narrow(value: f32) -> Self {
                Self::from_f32(value)
            }

            fn widen_all(from: &[Self], to: &mut [f32]) {
                from.convert_to_f32_slice(to);
            }

            fn narrow_all(from: &[f32], to: &mut [Self]) {
                to.convert_from_f32_slice(from);
            }
        }
    )*};
}

wide!(f32, f64);
halves!(f16, bf16);
