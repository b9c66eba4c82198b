//! What is made of a logit before anything else, as the inner loops are specialised by it: nothing, or a scale and a soft
//! cap. Twin of `shaders/shared/transform.wgsl`.

use super::rows::ROWS;
use super::simd::{Exp, ExpBase, Isa, LANES, Number, Real, Vector, each, tanh};
use crate::problem::transform::Transform;

/// y(x), which is monotonic in x up to the sign of the scale.
pub(super) trait LogitTransform: Copy + Send + Sync {
    /// Whether y(x) = x.
    const IS_IDENTITY: bool;
    /// x, or -x where the scale is negative.
    fn orient<I: Isa, W: Real>(self, isa: I, x: W::V<I>) -> W::V<I>;
    /// What comes last in that order.
    fn lowest<T: Number>(self) -> T;
    /// Whether the softmax of a row of that largest logit in order has a value, if no logit is NaN.
    fn is_regular<W: Real>(self, max: W) -> bool;
    fn value<W: Real>(self, x: W) -> f64;
    /// The derivative of y.
    fn derivative<W: Real>(self, x: W) -> f64;
    /// Of a row whose largest logit in order is that.
    fn exp_base<W: Exp>(self, max: W) -> ExpBase<W>;
    /// Of sixteen rows; what their exponentials are relative to is apart.
    fn exp_bases<I: Isa, W: Exp>(self, isa: I, max: &[W; LANES]) -> (ExpBase<[W; LANES]>, [f64; LANES]);
    /// exp(y(x) - unit) of several vectors.
    fn exp<I: Isa, W: Exp, const N: usize>(
        self,
        isa: I,
        x: [W::V<I>; N],
        base_lanes: [&ExpBaseLanes<W, I>; N],
    ) -> [W::V<I>; N];

    /// y of the largest logit in order.
    #[inline(always)]
    fn value_of_max<W: Real>(self, max: W) -> f64 {
        self.value(self.orient_one(max))
    }

    /// In order, and back.
    #[inline(always)]
    fn orient_one<W: Real>(self, x: W) -> W {
        let lowest: W = self.lowest();
        if lowest > W::ZERO { -x } else { x }
    }
}

/// Anchors of sixteen rows, or sixteen times that of one.
pub(super) struct ExpBaseLanes<W: Real, I: Isa> {
    base: ExpBase<W::V<I>>,
    log_bases: [f64; LANES],
}

impl<W: Exp, I: Isa> ExpBaseLanes<W, I> {
    #[inline(always)]
    pub(super) fn of_row(isa: I, &ExpBase { offset, rounding_bias, underflow, log_base }: &ExpBase<W>) -> Self {
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
        let (offset, rounding_bias, underflow) = (load!(offset), load!(rounding_bias), load!(underflow));
        Self {
            base: ExpBase { offset, rounding_bias, underflow, log_base: 0.0 },
            log_bases: rows.log_bases.as_chunks().0[half],
        }
    }
}

/// Anchors of rows, each of their parts side by side.
#[derive(Clone, Copy, Default)]
pub(super) struct RowExpBases<W> {
    offset: [W; ROWS],
    rounding_bias: [W; ROWS],
    underflow: [W; ROWS],
    log_bases: [f64; ROWS],
}

impl<W: Exp> RowExpBases<W> {
    /// Of rows of those largest logits in order.
    #[inline(always)]
    pub(super) fn new<I: Isa, Y: LogitTransform>(isa: I, transform: Y, max: &[W; ROWS]) -> Self {
        let zero = [W::ZERO; ROWS];
        let mut rows = Self { offset: zero, rounding_bias: zero, underflow: zero, log_bases: [0.0; ROWS] };
        for (half, max) in max.as_chunks().0.iter().enumerate() {
            let (ExpBase { offset, rounding_bias, underflow, .. }, log_bases) = transform.exp_bases(isa, max);
            rows.offset.as_chunks_mut().0[half] = offset;
            rows.rounding_bias.as_chunks_mut().0[half] = rounding_bias;
            rows.underflow.as_chunks_mut().0[half] = underflow;
            rows.log_bases.as_chunks_mut().0[half] = log_bases;
        }
        rows
    }

    /// That of one for all.
    pub(super) fn all(&self, row: usize) -> Self {
        let ExpBase { offset, rounding_bias, underflow, log_base } = self.at(row);
        Self {
            offset: [offset; ROWS],
            rounding_bias: [rounding_bias; ROWS],
            underflow: [underflow; ROWS],
            log_bases: [log_base; ROWS],
        }
    }

    pub(super) fn set(&mut self, row: usize, ExpBase { offset, rounding_bias, underflow, log_base }: ExpBase<W>) {
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
    fn exp_bases<I: Isa, W: Exp>(self, isa: I, max: &[W; LANES]) -> (ExpBase<[W; LANES]>, [f64; LANES]) {
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

/// In f64, for a product rounded to f32 would be off by much of a logit of 80.
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
        // A cap makes numbers of infinities.
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
        ExpBase { log_base: if max_value.is_finite() { max_value } else { 0.0 }, ..ExpBase::default() }
    }

    #[inline(always)]
    fn exp_bases<I: Isa, W: Exp>(self, _: I, max: &[W; LANES]) -> (ExpBase<[W; LANES]>, [f64; LANES]) {
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
