//! The logit transform y(x), which every inner loop applies first: the identity, or a scale and a
//! soft cap, y = softcap * tanh(scale * x / softcap). The inner loops are compiled for each of the
//! two. Counterpart of `shaders/shared/transform.wgsl`.
//!
//! The trait [`LogitTransform`] comes first, then the exponent bases of rows ([`RowExpBases`],
//! [`ExpBaseLanes`]), which say what the exponentials of a row are relative to, and last the two
//! transforms.

use super::rows::Place;
use super::simd::{Exp, ExpBase, Isa, Lane, Number, Real, Vector, exp, expm1_lanes, tanh};
use crate::problem::transform::Transform;

/// A logit transform y(x), which increases with x, or decreases where the scale is negative.
pub(super) trait LogitTransform: Copy + Send + Sync {
    /// Whether y(x) = x for all x.
    const IS_IDENTITY: bool;
    /// Orients x: returns x, or -x where the scale is negative, so that y increases with the
    /// result.
    fn orient<I: Isa, W: Real>(self, isa: I, x: W::V<I>) -> W::V<I>;
    /// Returns the logit that is below all others once it is oriented.
    fn lowest<T: Number>(self) -> T;
    /// Returns whether the softmax of a row has a value if none of its logits is NaN; `max` is the
    /// largest oriented logit.
    fn is_regular<W: Real>(self, max: W) -> bool;
    /// Returns y(x).
    fn value<W: Real>(self, x: W) -> f64;
    /// Returns dy/dx.
    fn derivative<W: Real>(self, x: W) -> f64;
    /// Returns y(x) of sixteen logits.
    fn values<I: Isa, W: Exp>(self, isa: I, x: W::V<I>) -> I::F64;
    /// Returns dy/dx of sixteen logits, with an error of a few units in the last place of the
    /// steepest slope.
    fn derivatives<I: Isa, W: Exp>(self, isa: I, x: W::V<I>) -> W::V<I>;
    /// Returns the exponent base of a row whose largest oriented logit is `max`. Its offset is y of
    /// `max` as [`LogitTransform::values`] has it, so that their difference is 0 under any cap.
    fn exp_base<I: Isa, W: Exp>(self, isa: I, max: W) -> ExpBase<W>;
    /// Returns a base near the exponential of `y`, so that all finite exponentials exp(x - y) that
    /// are normal numbers can be stored.
    fn base_of_value<W: Exp>(self, y: W) -> ExpBase<W>;
    /// Returns exp(y(x) - log_base).
    fn exp<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, bases: &ExpBaseLanes<W, I>) -> W::V<I>;
    /// Returns exp(y(x) - log_base), and infinity where that is beyond the type.
    fn exp_or_infinity<I: Isa, W: Exp>(
        self,
        isa: I,
        x: W::V<I>,
        bases: &ExpBaseLanes<W, I>,
    ) -> W::V<I>;
    /// Returns exp(y(x) - log_base) relative to the fixed base; where y(x) is beyond its range, the
    /// result is beyond [`Exp::FIXED_SUMS`], or NaN.
    fn fixed_exp<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, fixed: &ExpBaseLanes<W, I>) -> W::V<I>;

    /// Returns y of the largest oriented logit.
    #[inline(always)]
    fn value_of_max<W: Real>(self, max: W) -> f64 {
        self.value(self.orient_one(max))
    }

    /// Orients one logit. Orienting the result again returns `x`.
    #[inline(always)]
    fn orient_one<W: Real>(self, x: W) -> W {
        let lowest: W = self.lowest();
        if lowest > W::ZERO { -x } else { x }
    }
}

/// Exponent bases in the lanes of a vector.
pub(super) struct ExpBaseLanes<W: Real, I: Isa> {
    base: ExpBase<W::V<I>>,
    wide_offset: I::F64,
}

impl<W: Exp, I: Isa> ExpBaseLanes<W, I> {
    /// Returns the base of one row in every lane.
    #[inline(always)]
    pub(super) fn of_row(isa: I, base: &ExpBase<W>) -> Self {
        let all = |value: W| W::V::splat(isa, value);
        let &ExpBase { offset, wide_offset, rounding_bias, underflow, log_power } = base;
        Self {
            base: ExpBase {
                offset: all(offset),
                wide_offset,
                rounding_bias: all(rounding_bias),
                underflow: all(underflow),
                log_power,
            },
            wide_offset: I::F64::splat(isa, wide_offset),
        }
    }

    /// Returns `e`, and infinity where `d`, the difference from the offset, is too large for it.
    #[inline(always)]
    fn or_infinity(&self, isa: I, e: W::V<I>, d: W::V<I>) -> W::V<I> {
        let highest = W::largest_difference(isa, self.base.rounding_bias);
        let beyond = d.at_least(highest) - highest;
        let all = |value| W::V::splat(isa, W::of(value));
        // `exp` may return any number for such differences.
        beyond.where_equal(all(0.0), e, beyond * all(f64::INFINITY))
    }
}

/// The exponent bases of `N` rows, as a struct of arrays.
#[derive(Clone, Copy)]
pub(super) struct RowExpBases<W, const N: usize> {
    offset: [W; N],
    wide_offset: [f64; N],
    rounding_bias: [W; N],
    underflow: [W; N],
    log_power: [f64; N],
}

impl<W: Exp, const N: usize> RowExpBases<W, N> {
    /// Returns `base` for every row.
    #[inline(always)]
    pub(super) fn all(base: &ExpBase<W>) -> Self {
        let &ExpBase { offset, wide_offset, rounding_bias, underflow, log_power } = base;
        Self {
            offset: [offset; N],
            wide_offset: [wide_offset; N],
            rounding_bias: [rounding_bias; N],
            underflow: [underflow; N],
            log_power: [log_power; N],
        }
    }

    #[inline(always)]
    pub(super) fn set(&mut self, row: usize, base: &ExpBase<W>) {
        let &ExpBase { offset, wide_offset, rounding_bias, underflow, log_power } = base;
        (self.offset[row], self.wide_offset[row]) = (offset, wide_offset);
        (self.rounding_bias[row], self.underflow[row]) = (rounding_bias, underflow);
        self.log_power[row] = log_power;
    }

    #[inline(always)]
    pub(super) fn at(&self, row: usize) -> ExpBase<W> {
        ExpBase {
            offset: self.offset[row],
            wide_offset: self.wide_offset[row],
            rounding_bias: self.rounding_bias[row],
            underflow: self.underflow[row],
            log_power: self.log_power[row],
        }
    }

    /// Returns the bases for probabilities exp(y - log_sum_exp), and the factors that turn the
    /// exponentials into them.
    #[inline(always)]
    pub(super) fn of_log_sum_exps<Y: LogitTransform>(
        transform: Y,
        log_sum_exps: &[W; N],
    ) -> (Self, [f64; N]) {
        let (mut bases, mut factors) = (Self::all(&W::FIXED_BASE), [0.0; N]);
        for row in 0..N {
            let base = transform.base_of_value(log_sum_exps[row]);
            factors[row] = exp(base.log_base_less(log_sum_exps[row].into()));
            bases.set(row, &base);
        }
        (bases, factors)
    }

    /// Returns the bases of the rows of a vector.
    #[inline(always)]
    pub(super) fn lanes<I: Isa>(&self, isa: I, place: Place<'_>) -> ExpBaseLanes<W, I> {
        ExpBaseLanes {
            base: ExpBase {
                offset: place.of_row(isa, &self.offset),
                wide_offset: 0.0,
                rounding_bias: place.of_row(isa, &self.rounding_bias),
                underflow: place.of_row(isa, &self.underflow),
                log_power: 0.0,
            },
            wide_offset: place.of_row(isa, &self.wide_offset),
        }
    }
}

/// y(x) = x.
#[derive(Clone, Copy)]
pub(super) struct Identity;

impl LogitTransform for Identity {
    const IS_IDENTITY: bool = true;

    #[inline(always)]
    fn orient<I: Isa, W: Real>(self, _: I, x: W::V<I>) -> W::V<I> {
        x
    }

    #[inline(always)]
    fn lowest<T: Number>(self) -> T {
        T::LOWEST
    }

    #[inline(always)]
    fn is_regular<W: Real>(self, max: W) -> bool {
        let max: f64 = max.into();
        max.is_finite()
    }

    #[inline(always)]
    fn value<W: Real>(self, x: W) -> f64 {
        x.into()
    }

    #[inline(always)]
    fn derivative<W: Real>(self, _: W) -> f64 {
        1.0
    }

    #[inline(always)]
    fn values<I: Isa, W: Exp>(self, isa: I, x: W::V<I>) -> I::F64 {
        x.wide(isa)
    }

    #[inline(always)]
    fn derivatives<I: Isa, W: Exp>(self, isa: I, _: W::V<I>) -> W::V<I> {
        W::V::splat(isa, W::ONE)
    }

    #[inline(always)]
    fn exp_base<I: Isa, W: Exp>(self, _: I, max: W) -> ExpBase<W> {
        W::exp_base(max)
    }

    #[inline(always)]
    fn base_of_value<W: Exp>(self, y: W) -> ExpBase<W> {
        W::base_near(y, 0)
    }

    #[inline(always)]
    fn exp_or_infinity<I: Isa, W: Exp>(
        self,
        isa: I,
        x: W::V<I>,
        bases: &ExpBaseLanes<W, I>,
    ) -> W::V<I> {
        let e = W::V::exp(isa, x, &bases.base);
        bases.or_infinity(isa, e, x - bases.base.offset)
    }

    #[inline(always)]
    fn exp<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, bases: &ExpBaseLanes<W, I>) -> W::V<I> {
        W::V::exp(isa, x, &bases.base)
    }

    #[inline(always)]
    fn fixed_exp<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, fixed: &ExpBaseLanes<W, I>) -> W::V<I> {
        W::V::exp(isa, x.at_most(W::V::splat(isa, W::FIXED_LIMIT)), &fixed.base)
    }
}

/// y(x) = softcap * tanh(scale * x / softcap), or scale * x without a cap. It is computed in f64:
/// the rounding of a product to f32 would be a large error in the exponential of a logit of 80.
#[derive(Clone, Copy)]
pub(super) struct ScaledCapped {
    scale: f64,
    cap: Option<Cap>,
    /// Whether differences of y may be below -1000, the exponentials of which are 0.
    is_unbounded: bool,
}

/// A soft cap, with what inner loops need of it: a division or a rounding there would delay all
/// that follows it.
#[derive(Clone, Copy)]
struct Cap {
    softcap: f64,
    /// The factor of x in 2 u, where tanh(u) is wanted, and four times the scale, for slopes.
    slopes: [f64; 2],
    single_slopes: [f32; 2],
    /// The factor of x in 2 u log2(e): exp(2 u) = 2^(doublings * x).
    doublings: f64,
    /// The |x| from which on tanh is 1 in f64: doublings * x is 60.
    limit: f32,
}

impl ScaledCapped {
    pub(super) fn new(transform: Transform) -> Self {
        let Transform { scale, softcap } = transform;
        let cap = softcap.map(|softcap| {
            let slopes = [2.0 * scale / softcap, 4.0 * scale];
            let doublings = slopes[0] * std::f64::consts::LOG2_E;
            Cap {
                softcap,
                slopes,
                single_slopes: slopes.map(|factor| factor as f32),
                doublings,
                limit: (60.0 / doublings.abs()) as f32,
            }
        });
        let is_unbounded = softcap.is_none_or(|softcap| softcap > 500.0);
        Self { scale, cap, is_unbounded }
    }
}

impl LogitTransform for ScaledCapped {
    const IS_IDENTITY: bool = false;

    #[inline(always)]
    fn orient<I: Isa, W: Real>(self, isa: I, x: W::V<I>) -> W::V<I> {
        x * W::V::splat(isa, self.orient_one(W::ONE))
    }

    #[inline(always)]
    fn lowest<T: Number>(self) -> T {
        if self.scale < 0.0 { T::HIGHEST } else { T::LOWEST }
    }

    #[inline(always)]
    fn is_regular<W: Real>(self, max: W) -> bool {
        // A cap turns infinities into numbers.
        let max: f64 = max.into();
        if self.cap.is_some() { !max.is_nan() } else { max.is_finite() }
    }

    #[inline(always)]
    fn value<W: Real>(self, x: W) -> f64 {
        let x = self.scale * x.into();
        match self.cap {
            None => x,
            Some(Cap { softcap, .. }) => softcap * tanh(x / softcap).0,
        }
    }

    #[inline(always)]
    fn derivative<W: Real>(self, x: W) -> f64 {
        let x = self.scale * x.into();
        self.scale * self.cap.map_or(1.0, |cap| tanh(x / cap.softcap).1)
    }

    #[inline(always)]
    fn values<I: Isa, W: Exp>(self, isa: I, x: W::V<I>) -> I::F64 {
        self.difference::<I, W>(isa, x, I::F64::splat(isa, 0.0))
    }

    /// ```text
    /// z = exp(-2 |u|)
    /// slope = scale * 4 z / (1 + z)^2
    /// ```
    #[inline(always)]
    fn derivatives<I: Isa, W: Exp>(self, isa: I, x: W::V<I>) -> W::V<I> {
        let all = |value| W::V::splat(isa, value);
        let Some(cap) = self.cap else { return all(W::of(self.scale)) };
        // No scale and cap make a factor 0 or infinite, so that no number becomes NaN.
        let [twice, steepest] = cap.slopes;
        let [single_twice, single_steepest] = cap.single_slopes;
        let u = x * all(W::either(single_twice, twice));
        let lanes = ExpBaseLanes::of_row(isa, &W::base_near(W::ZERO, 0));
        let z = W::V::exp(isa, u.at_most(all(W::ZERO) - u), &lanes.base);
        let whole = all(W::ONE) + z;
        all(W::either(single_steepest, steepest)) * z / (whole * whole)
    }

    #[inline(always)]
    fn exp_base<I: Isa, W: Exp>(self, isa: I, max: W) -> ExpBase<W> {
        let logit = W::V::splat(isa, self.orient_one(max));
        let y = self.values::<I, W>(isa, logit).array()[0];
        let [low, high] = W::FIXED_RANGE;
        if y >= low.into() && y <= high.into() { W::FIXED_BASE } else { base_at(y, W::EXCESS) }
    }

    #[inline(always)]
    fn base_of_value<W: Exp>(self, y: W) -> ExpBase<W> {
        base_at(y.into(), 0)
    }

    #[inline(always)]
    fn exp_or_infinity<I: Isa, W: Exp>(
        self,
        isa: I,
        x: W::V<I>,
        bases: &ExpBaseLanes<W, I>,
    ) -> W::V<I> {
        let d = self.exponent(isa, x, bases);
        let e = W::exp_of_wide(isa, d, &bases.base);
        bases.or_infinity(isa, e, W::V::of_wide(isa, d))
    }

    #[inline(always)]
    fn exp<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, bases: &ExpBaseLanes<W, I>) -> W::V<I> {
        W::exp_of_wide(isa, self.exponent(isa, x, bases), &bases.base)
    }

    #[inline(always)]
    fn fixed_exp<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, fixed: &ExpBaseLanes<W, I>) -> W::V<I> {
        let limit: f64 = W::FIXED_LIMIT.into();
        let y = self.exponent(isa, x, fixed).at_most(I::F64::splat(isa, limit));
        W::exp_of_wide(isa, y, &fixed.base)
    }
}

impl ScaledCapped {
    /// Returns y(x) - offset, by [`Exp::quickly_capped`] or by
    ///
    /// ```text
    /// m = exp(2 u) - 1, u = scale * x / softcap, between -20 and 20, where tanh is -1 and 1 in f64
    /// y = softcap * m / (m + 2)
    /// ```
    #[inline(always)]
    fn difference<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, offset: I::F64) -> I::F64 {
        let all = |value| I::F64::splat(isa, value);
        let Some(cap) = self.cap else { return x.wide(isa) * all(self.scale) - offset };
        let factors = [cap.softcap, cap.doublings];
        if let Some(difference) = W::quickly_capped(isa, x, factors, cap.limit, offset) {
            return difference;
        }
        let twice = x.wide(isa) * all(cap.slopes[0]);
        let minus_one = expm1_lanes(isa, twice.at_least(all(-40.0)).at_most(all(40.0)));
        all(cap.softcap) * (minus_one / (minus_one + all(2.0))) - offset
    }

    /// Returns y(x) - offset, or -2000, whose exponential is 0 too, where that is larger.
    #[inline(always)]
    fn exponent<I: Isa, W: Exp>(self, isa: I, x: W::V<I>, bases: &ExpBaseLanes<W, I>) -> I::F64 {
        let d = self.difference::<I, W>(isa, x, bases.wide_offset);
        if self.is_unbounded { d.at_least(I::F64::splat(isa, -2000.0)) } else { d }
    }
}

/// Returns the base of a row whose largest transformed logit is `y`, which may be any number.
#[inline(always)]
fn base_at<W: Exp>(y: f64, excess: i32) -> ExpBase<W> {
    let base = W::base_near(W::ZERO, excess);
    let offset = if y.is_finite() { y } else { 0.0 };
    ExpBase { wide_offset: offset, ..base }
}
