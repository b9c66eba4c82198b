//! The logit transform y(x), which every inner loop applies first: the identity, or a scale and a
//! soft cap, y = softcap * tanh(scale * x / softcap). The inner loops are compiled for each of the
//! two. Twin of `shaders/shared/transform.wgsl`.
//!
//! The trait [`LogitTransform`] comes first, then the exponent bases of rows ([`ExpBaseLanes`],
//! [`RowExpBases`]), which say what the exponentials of a row are relative to, and last the two
//! transforms.

use super::rows::ROWS;
use super::simd::{Exp, ExpBase, Isa, LANES, Number, Real, Vector, each, tanh};
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
    /// Returns the exponent base of a row whose largest oriented logit is `max`.
    fn exp_base<W: Exp>(self, max: W) -> ExpBase<W>;
    /// Returns the exponent bases of sixteen rows, and apart from them each `log_base`, in f64.
    fn exp_bases<I: Isa, W: Exp>(
        self,
        isa: I,
        max: &[W; LANES],
    ) -> (ExpBase<[W; LANES]>, [f64; LANES]);
    /// Returns exp(y(x) - log_base) of several vectors.
    fn exp<I: Isa, W: Exp, const N: usize>(
        self,
        isa: I,
        x: [W::V<I>; N],
        base_lanes: [&ExpBaseLanes<W, I>; N],
    ) -> [W::V<I>; N];

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

/// Exponent bases in the lanes of a vector: those of sixteen rows, or that of one row in every
/// lane.
pub(super) struct ExpBaseLanes<W: Real, I: Isa> {
    base: ExpBase<W::V<I>>,
    log_bases: [f64; LANES],
}

impl<W: Exp, I: Isa> ExpBaseLanes<W, I> {
    #[inline(always)]
    pub(super) fn of_row(
        isa: I,
        &ExpBase { offset, rounding_bias, underflow, log_base }: &ExpBase<W>,
    ) -> Self {
        let all = |value: W| W::V::splat(isa, value);
        Self {
            base: ExpBase {
                offset: all(offset),
                rounding_bias: all(rounding_bias),
                underflow: all(underflow),
                log_base,
            },
            log_bases: [log_base; LANES],
        }
    }

    #[inline(always)]
    pub(super) fn of_rows(isa: I, rows: &RowExpBases<W>, half: usize) -> Self {
        macro_rules! load {
            ($part:ident) => {
                W::V::load(isa, &rows.$part.as_chunks().0[half])
            };
        }
        let (offset, rounding_bias, underflow) =
            (load!(offset), load!(rounding_bias), load!(underflow));
        Self {
            base: ExpBase { offset, rounding_bias, underflow, log_base: 0.0 },
            log_bases: rows.log_bases.as_chunks().0[half],
        }
    }
}

/// The exponent bases of up to 32 rows, as a struct of arrays.
#[derive(Clone, Copy, Default)]
pub(super) struct RowExpBases<W> {
    offset: [W; ROWS],
    rounding_bias: [W; ROWS],
    underflow: [W; ROWS],
    log_bases: [f64; ROWS],
}

impl<W: Exp> RowExpBases<W> {
    /// Returns the exponent bases of rows whose largest oriented logits are `max`.
    #[inline(always)]
    pub(super) fn new<I: Isa, Y: LogitTransform>(isa: I, transform: Y, max: &[W; ROWS]) -> Self {
        let zero = [W::ZERO; ROWS];
        let mut rows =
            Self { offset: zero, rounding_bias: zero, underflow: zero, log_bases: [0.0; ROWS] };
        for (half, max) in max.as_chunks().0.iter().enumerate() {
            let (ExpBase { offset, rounding_bias, underflow, .. }, log_bases) =
                transform.exp_bases(isa, max);
            rows.offset.as_chunks_mut().0[half] = offset;
            rows.rounding_bias.as_chunks_mut().0[half] = rounding_bias;
            rows.underflow.as_chunks_mut().0[half] = underflow;
            rows.log_bases.as_chunks_mut().0[half] = log_bases;
        }
        rows
    }

    /// Returns the exponent bases with that of `row` for every row.
    pub(super) fn all(&self, row: usize) -> Self {
        let ExpBase { offset, rounding_bias, underflow, log_base } = self.at(row);
        Self {
            offset: [offset; ROWS],
            rounding_bias: [rounding_bias; ROWS],
            underflow: [underflow; ROWS],
            log_bases: [log_base; ROWS],
        }
    }

    pub(super) fn set(
        &mut self,
        row: usize,
        ExpBase { offset, rounding_bias, underflow, log_base }: ExpBase<W>,
    ) {
        (self.offset[row], self.rounding_bias[row], self.underflow[row], self.log_bases[row]) =
            (offset, rounding_bias, underflow, log_base);
    }

    #[inline(always)]
    pub(super) fn at(&self, row: usize) -> ExpBase<W> {
        ExpBase {
            offset: self.offset[row],
            rounding_bias: self.rounding_bias[row],
            underflow: self.underflow[row],
            log_base: self.log_bases[row],
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
    fn exp_base<W: Exp>(self, max: W) -> ExpBase<W> {
        W::exp_base(max)
    }

    #[inline(always)]
    fn exp_bases<I: Isa, W: Exp>(
        self,
        isa: I,
        max: &[W; LANES],
    ) -> (ExpBase<[W; LANES]>, [f64; LANES]) {
        W::exp_bases(isa, max)
    }

    #[inline(always)]
    fn exp<I: Isa, W: Exp, const N: usize>(
        self,
        isa: I,
        x: [W::V<I>; N],
        base_lanes: [&ExpBaseLanes<W, I>; N],
    ) -> [W::V<I>; N] {
        let mut bases = [&base_lanes[0].base; N];
        for at in 1..N {
            bases[at] = &base_lanes[at].base;
        }
        W::V::exp(isa, x, bases)
    }
}

/// y(x) = softcap * tanh(scale * x / softcap), or scale * x without a cap. It is computed in f64:
/// the rounding of a product to f32 would be a large error in the exponential of a logit of 80.
#[derive(Clone, Copy)]
pub(super) struct ScaledCapped(pub(super) Transform);

impl LogitTransform for ScaledCapped {
    const IS_IDENTITY: bool = false;

    #[inline(always)]
    fn orient<I: Isa, W: Real>(self, isa: I, x: W::V<I>) -> W::V<I> {
        x * W::V::splat(isa, self.orient_one(W::ONE))
    }

    #[inline(always)]
    fn lowest<T: Number>(self) -> T {
        if self.0.scale < 0.0 { T::HIGHEST } else { T::LOWEST }
    }

    #[inline(always)]
    fn is_regular<W: Real>(self, max: W) -> bool {
        // A cap turns infinities into numbers.
        let max: f64 = max.into();
        if self.0.softcap.is_some() { !max.is_nan() } else { max.is_finite() }
    }

    #[inline(always)]
    fn value<W: Real>(self, x: W) -> f64 {
        let x = self.0.scale * x.into();
        match self.0.softcap {
            None => x,
            Some(cap) => cap * tanh(x / cap).0,
        }
    }

    #[inline(always)]
    fn derivative<W: Real>(self, x: W) -> f64 {
        let x = self.0.scale * x.into();
        self.0.scale * self.0.softcap.map_or(1.0, |cap| tanh(x / cap).1)
    }

    #[inline(always)]
    fn exp_base<W: Exp>(self, max: W) -> ExpBase<W> {
        let max_value = self.value_of_max(max);
        ExpBase {
            log_base: if max_value.is_finite() { max_value } else { 0.0 },
            ..ExpBase::default()
        }
    }

    #[inline(always)]
    fn exp_bases<I: Isa, W: Exp>(
        self,
        _: I,
        max: &[W; LANES],
    ) -> (ExpBase<[W; LANES]>, [f64; LANES]) {
        let log_bases = each(
            *max,
            #[inline(always)]
            |max| self.exp_base(max).log_base,
        );
        (ExpBase::default(), log_bases)
    }

    #[inline(always)]
    fn exp<I: Isa, W: Exp, const N: usize>(
        self,
        isa: I,
        mut x: [W::V<I>; N],
        base_lanes: [&ExpBaseLanes<W, I>; N],
    ) -> [W::V<I>; N] {
        // exp(y - log_base) = exp_wide(y(x) - log_base), lane by lane
        for (x, base_lanes) in x.iter_mut().zip(base_lanes) {
            let mut values = x.array();
            for (value, log_base) in values.iter_mut().zip(&base_lanes.log_bases) {
                *value = W::exp_wide(self.value(*value) - log_base);
            }
            *x = W::V::load(isa, &values);
        }
        x
    }
}
