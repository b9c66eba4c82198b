//! What is made of a logit before anything else, as the inner loops are specialised by it: nothing, or a scale and a soft
//! cap. Twin of `shaders/shared/transform.wgsl`.

use super::rows::ROWS;
use super::simd::{Anchor, Exp, Isa, LANES, Number, Real, Vector, each, tanh};
use crate::problem::transform::Transform;

/// y(x), which is monotonic in x up to the sign of the scale.
pub(super) trait Kind: Copy + Send + Sync {
    /// Whether y(x) = x.
    const PLAIN: bool;
    /// x, or -x where the scale is negative.
    fn in_order<I: Isa, W: Real>(self, isa: I, x: W::V<I>) -> W::V<I>;
    /// What comes last in that order.
    fn last<T: Number>(self) -> T;
    /// Whether the softmax of a row of that largest logit in order has a value, if no logit is NaN.
    fn is_regular<W: Real>(self, max: W) -> bool;
    fn value<W: Real>(self, x: W) -> f64;
    /// The derivative of y.
    fn slope<W: Real>(self, x: W) -> f64;
    /// Of a row whose largest logit in order is that.
    fn anchor<W: Exp>(self, max: W) -> Anchor<W>;
    /// Of sixteen rows; what their exponentials are relative to is apart.
    fn anchors<I: Isa, W: Exp>(self, isa: I, max: &[W; LANES]) -> (Anchor<[W; LANES]>, [f64; LANES]);
    /// exp(y(x) - unit) of several vectors.
    fn exp<I: Isa, W: Exp, const N: usize>(self, isa: I, x: [W::V<I>; N], about: [&About<W, I>; N]) -> [W::V<I>; N];

    /// y of the largest logit in order.
    #[inline(always)]
    fn top<W: Real>(self, max: W) -> f64 {
        self.value(self.in_order_one(max))
    }

    /// In order, and back.
    #[inline(always)]
    fn in_order_one<W: Real>(self, x: W) -> W {
        let last: W = self.last();
        if last > W::ZERO { -x } else { x }
    }
}

/// Anchors of sixteen rows, or sixteen times that of one.
pub(super) struct About<W: Real, I: Isa> {
    anchor: Anchor<W::V<I>>,
    units: [f64; LANES],
}

impl<W: Exp, I: Isa> About<W, I> {
    #[inline(always)]
    pub(super) fn of_row(isa: I, &Anchor { from, round, low, unit }: &Anchor<W>) -> Self {
        let all = |value: W| W::V::splat(isa, value);
        Self { anchor: Anchor { from: all(from), round: all(round), low: all(low), unit }, units: [unit; LANES] }
    }

    #[inline(always)]
    pub(super) fn of_rows(isa: I, rows: &Anchors<W>, half: usize) -> Self {
        macro_rules! load {
            ($part:ident) => {
                W::V::load(isa, &rows.$part.as_chunks().0[half])
            };
        }
        let (from, round, low) = (load!(from), load!(round), load!(low));
        Self { anchor: Anchor { from, round, low, unit: 0.0 }, units: rows.units.as_chunks().0[half] }
    }
}

/// Anchors of rows, each of their parts side by side.
#[derive(Clone, Copy, Default)]
pub(super) struct Anchors<W> {
    from: [W; ROWS],
    round: [W; ROWS],
    low: [W; ROWS],
    units: [f64; ROWS],
}

impl<W: Exp> Anchors<W> {
    /// Of rows of those largest logits in order.
    #[inline(always)]
    pub(super) fn new<I: Isa, K: Kind>(isa: I, kind: K, max: &[W; ROWS]) -> Self {
        let zero = [W::ZERO; ROWS];
        let mut rows = Self { from: zero, round: zero, low: zero, units: [0.0; ROWS] };
        for (half, max) in max.as_chunks().0.iter().enumerate() {
            let (Anchor { from, round, low, .. }, units) = kind.anchors(isa, max);
            rows.from.as_chunks_mut().0[half] = from;
            rows.round.as_chunks_mut().0[half] = round;
            rows.low.as_chunks_mut().0[half] = low;
            rows.units.as_chunks_mut().0[half] = units;
        }
        rows
    }

    /// That of one for all.
    pub(super) fn all(&self, row: usize) -> Self {
        let Anchor { from, round, low, unit } = self.at(row);
        Self { from: [from; ROWS], round: [round; ROWS], low: [low; ROWS], units: [unit; ROWS] }
    }

    pub(super) fn set(&mut self, row: usize, Anchor { from, round, low, unit }: Anchor<W>) {
        (self.from[row], self.round[row], self.low[row], self.units[row]) = (from, round, low, unit);
    }

    #[inline(always)]
    pub(super) fn at(&self, row: usize) -> Anchor<W> {
        Anchor { from: self.from[row], round: self.round[row], low: self.low[row], unit: self.units[row] }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Kind for Plain {
    const PLAIN: bool = true;

    #[inline(always)]
    fn in_order<I: Isa, W: Real>(self, _: I, x: W::V<I>) -> W::V<I> {
        x
    }

    #[inline(always)]
    fn last<T: Number>(self) -> T {
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
    fn slope<W: Real>(self, _: W) -> f64 {
        1.0
    }

    #[inline(always)]
    fn anchor<W: Exp>(self, max: W) -> Anchor<W> {
        W::anchor(max)
    }

    #[inline(always)]
    fn anchors<I: Isa, W: Exp>(self, isa: I, max: &[W; LANES]) -> (Anchor<[W; LANES]>, [f64; LANES]) {
        W::anchors(isa, max)
    }

    #[inline(always)]
    fn exp<I: Isa, W: Exp, const N: usize>(self, isa: I, x: [W::V<I>; N], about: [&About<W, I>; N]) -> [W::V<I>; N] {
        let mut anchors = [&about[0].anchor; N];
        for at in 1..N {
            anchors[at] = &about[at].anchor;
        }
        W::V::exp(isa, x, anchors)
    }
}

/// In f64, for a product rounded to f32 would be off by much of a logit of 80.
#[derive(Clone, Copy)]
pub(super) struct Curved(pub(super) Transform);

impl Kind for Curved {
    const PLAIN: bool = false;

    #[inline(always)]
    fn in_order<I: Isa, W: Real>(self, isa: I, x: W::V<I>) -> W::V<I> {
        x * W::V::splat(isa, self.in_order_one(W::ONE))
    }

    #[inline(always)]
    fn last<T: Number>(self) -> T {
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
    fn slope<W: Real>(self, x: W) -> f64 {
        let x = self.0.scale * x.into();
        self.0.scale * self.0.softcap.map_or(1.0, |cap| tanh(x / cap).1)
    }

    #[inline(always)]
    fn anchor<W: Exp>(self, max: W) -> Anchor<W> {
        let top = self.top(max);
        Anchor { unit: if top.is_finite() { top } else { 0.0 }, ..Anchor::default() }
    }

    #[inline(always)]
    fn anchors<I: Isa, W: Exp>(self, _: I, max: &[W; LANES]) -> (Anchor<[W; LANES]>, [f64; LANES]) {
        let units = each(
            *max,
            #[inline(always)]
            |max| self.anchor(max).unit,
        );
        (Anchor::default(), units)
    }

    #[inline(always)]
    fn exp<I: Isa, W: Exp, const N: usize>(
        self,
        isa: I,
        mut x: [W::V<I>; N],
        about: [&About<W, I>; N],
    ) -> [W::V<I>; N] {
        for (x, about) in x.iter_mut().zip(about) {
            let mut values = x.array();
            for (value, unit) in values.iter_mut().zip(&about.units) {
                *value = W::exp_wide(self.value(*value) - unit);
            }
            *x = W::V::load(isa, &values);
        }
        x
    }
}
