//! Vectors of sixteen lanes, of the two types that rows are computed in: f32 and f64.

use std::mem::MaybeUninit;
use std::ops::{Add, Div, Mul, Sub};
use std::sync::Mutex;

use super::exp::{Exp, ExpBase, exp_of};
use super::isa::Isa;
use super::memory::{Number, narrow_to_halves, widen_halves};
use crate::Element;
use crate::cpu::scratch::{Reserve, Scratch};
use crate::problem::dtype::{Elements, ElementsMut};

/// The number of lanes of a vector, for every instruction set and both types.
pub(in crate::cpu) const LANES: usize = 16;

/// Returns `value` of each element. (`map` of arrays is not always inlined, and is then not
/// compiled for the instruction set.)
#[inline(always)]
pub(in crate::cpu) fn each<A: Copy, B: Copy, const N: usize>(
    from: [A; N],
    value: impl Fn(A) -> B,
) -> [B; N] {
    let mut out = [value(from[0]); N];
    for at in 1..N {
        out[at] = value(from[at]);
    }
    out
}

/// The type that a row is computed in: f32, with f64 where sums are at stake, or f64 throughout.
pub(in crate::cpu) trait Real:
    Element<Row = Self> + Number<Wide = Self> + PartialOrd + std::ops::Neg<Output = Self>
{
    type V<I: Isa>: Vector<I, W = Self>;
    const ZERO: Self;
    const ONE: Self;
    const NAN: Self;
    const NEG_INFINITY: Self;
    /// The largest finite number, in f64.
    const LARGEST_NUMBER: f64;
    fn of(value: f64) -> Self;
    fn is_number(self) -> bool;
    /// Returns elements of this type as they are; `None` for another type.
    fn of_elements(elements: Elements<'_>) -> Option<&[Self]>;
    fn of_elements_mut(elements: ElementsMut<'_>) -> Option<&mut [Self]>;
    /// Converts halves, which are computed in f32, to that type; `to` has room for all of them.
    fn widen_halves<'b, I: Isa>(
        _: I,
        from: Elements<'_>,
        _: &'b mut [MaybeUninit<Self>],
    ) -> &'b mut [Self] {
        debug_assert!(false, "{} elements are not computed in f64", from.dtype());
        &mut []
    }
    /// Converts f32 values to halves, and writes them past the caches where `streams` is set.
    fn narrow_to_halves<I: Isa>(_: I, _: &[Self], to: ElementsMut<'_>, _: bool) {
        debug_assert!(false, "{} elements are not computed in f64", to.dtype());
    }
    /// Returns the memory that is set aside for rows of this type; `None` where it is for the other
    /// type.
    fn reserve(reserve: &Reserve) -> Option<&Mutex<Scratch<Self>>>;
}

macro_rules! real {
    ($ty:ident, $vector:ident, $reserve:ident, $dtype:ident, {$($halves:item)*}) => {
        impl Real for $ty {
            type V<I: Isa> = I::$vector;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NAN: Self = $ty::NAN;
            const NEG_INFINITY: Self = $ty::NEG_INFINITY;
            const LARGEST_NUMBER: f64 = $ty::MAX as f64;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $ty
            }

            fn of_elements(elements: Elements<'_>) -> Option<&[Self]> {
                if let Elements::$dtype(elements) = elements { Some(elements) } else { None }
            }

            fn of_elements_mut(elements: ElementsMut<'_>) -> Option<&mut [Self]> {
                if let ElementsMut::$dtype(elements) = elements { Some(elements) } else { None }
            }

            $($halves)*

            fn reserve(reserve: &Reserve) -> Option<&Mutex<Scratch<Self>>> {
                if let Reserve::$reserve(scratch) = reserve { Some(scratch) } else { None }
            }

            #[inline(always)]
            fn is_number(self) -> bool {
                !self.is_nan()
            }
        }
    };
}
real!(f32, F32, Single, F32, {
    fn widen_halves<'b, I: Isa>(
        isa: I,
        from: Elements<'_>,
        to: &'b mut [MaybeUninit<f32>],
    ) -> &'b mut [f32] {
        widen_halves(isa, from, to)
    }

    fn narrow_to_halves<I: Isa>(isa: I, from: &[f32], to: ElementsMut<'_>, streams: bool) {
        narrow_to_halves(isa, from, to, streams);
    }
});
real!(f64, F64, Double, F64, {});

/// The arithmetic of exponentials, on one value or on a vector.
pub(in crate::cpu) trait Lane:
    Copy
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// Whether [`Lane::mul_add`] rounds once.
    const IS_FUSED: bool;
    /// Returns self * b + c.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Returns the larger of self and `low`, which is not NaN; NaN where self is NaN. Either of two
    /// zeros may be the larger.
    fn at_least(self, low: Self) -> Self;
    /// Returns the smaller of self and `high`, which is not NaN; NaN where self is NaN. Either of
    /// two zeros may be the smaller.
    fn at_most(self, high: Self) -> Self;
    /// Returns the power of two whose biased exponent is in the lowest bits of self.
    fn power(self) -> Self;
}

/// [`Vector::paired`] of arrays.
#[inline(always)]
pub(super) fn paired_arrays<W: Copy, const STEP: usize>(
    a: [W; LANES],
    b: [W; LANES],
) -> ([W; LANES], [W; LANES]) {
    let (mut own, mut across) = (a, a);
    for lane in 0..LANES {
        let from = if lane & STEP == 0 { &a } else { &b };
        (own[lane], across[lane]) = (from[lane], from[lane ^ STEP]);
    }
    (own, across)
}

/// A vector of sixteen lanes.
pub(in crate::cpu) trait Vector<I: Isa>: Lane {
    type W: Exp;
    fn splat(isa: I, value: Self::W) -> Self;
    fn load(isa: I, values: &[Self::W; LANES]) -> Self;
    fn array(self) -> [Self::W; LANES];
    /// Returns the larger of self and `best`, which is not NaN; `best` where self is NaN, and where
    /// both are zeros.
    fn larger(self, best: Self) -> Self;
    /// Returns `then` in lanes where self equals `value`, else `otherwise`.
    fn where_equal(self, value: Self, then: Self, otherwise: Self) -> Self;
    /// Returns a bit for each lane, from the lowest on: whether it equals `value`.
    fn equal(self, value: Self) -> u32;
    /// Interleaves two vectors lane by lane; returns the first sixteen of the thirty-two lanes, and
    /// the last.
    fn interleave(self, other: Self) -> (Self, Self);
    /// Returns the even lanes of two vectors, one vector after the other, and the odd lanes.
    fn deinterleave(self, other: Self) -> (Self, Self);
    /// Returns the lanes in f64.
    fn wide(self, isa: I) -> I::F64;
    /// Returns lanes of f64 rounded to this type.
    fn of_wide(isa: I, wide: I::F64) -> Self;
    /// Returns the first `count` lanes of self, and those of `otherwise` after them.
    fn first_lanes(self, isa: I, count: usize, otherwise: Self) -> Self;
    /// Returns `values[places[lane]]` in each lane. Places are below sixteen.
    fn spread(isa: I, values: &[Self::W; LANES], places: &[u8; LANES]) -> Self;

    /// Returns two vectors of the lanes of self and `other`. In the first, lanes whose number has
    /// the bit `STEP` are those of `other`, and the rest are those of self. The second has the lane
    /// `STEP` away from each of them, of the same vector. `STEP` is 8, 4, 2 or 1.
    #[inline(always)]
    fn paired<const STEP: usize>(self, isa: I, other: Self) -> (Self, Self) {
        let (own, across) = paired_arrays::<_, STEP>(self.array(), other.array());
        (Self::load(isa, &own), Self::load(isa, &across))
    }

    /// Folds the sixteen lanes of each of sixteen rows to one value, which is returned in the lane
    /// of that row: `with` folds lanes that are eight apart, then four, two and one. It must give
    /// the same for both orders of its operands.
    #[inline(always)]
    fn fold_rows(isa: I, rows: [Self; LANES], with: impl Fn(Self, Self) -> Self) -> Self {
        let mut rows = rows;
        macro_rules! fold {
            ($step:literal) => {
                for at in 0..$step {
                    let (own, across) = rows[at].paired::<$step>(isa, rows[at + $step]);
                    rows[at] = with(own, across);
                }
            };
        }
        fold!(8);
        fold!(4);
        fold!(2);
        fold!(1);
        rows[0]
    }

    /// Returns the sum of all lanes, added as a tree.
    #[inline(always)]
    fn total(self) -> Self::W {
        let mut sum = self;
        for _ in 0..LANES.ilog2() {
            let (even, odd) = sum.deinterleave(sum);
            sum = even + odd;
        }
        sum.array()[0]
    }

    /// Returns the largest of all lanes, none of which is NaN.
    #[inline(always)]
    fn largest(self) -> Self::W {
        let mut largest = self;
        for _ in 0..LANES.ilog2() {
            let (even, odd) = largest.deinterleave(largest);
            largest = even.larger(odd);
        }
        largest.array()[0]
    }

    /// Returns exp(x - log_base), NaN for NaN.
    #[inline(always)]
    fn exp(isa: I, x: Self, base: &ExpBase<Self>) -> Self {
        exp_of(
            #[inline(always)]
            |value| Self::splat(isa, value),
            x,
            base,
        )
    }
}
