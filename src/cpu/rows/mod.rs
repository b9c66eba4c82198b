//! Passes over the classes of up to 32 rows at a time: what of an operation touches elements. Each operation is
//! written once, over [`Rows`]; of that there are two kinds.
//!
//! `across.rs`, with `read.rs` and `write.rs`: lanes hold neighbouring classes of one row. `abreast.rs`: lanes hold the same class of 32 rows, for
//! rows so short that they would not fill lanes, and for those whose classes lie apart. Which one it is, and so the order
//! of sums, depends on the number of classes alone.

mod lanes_across_rows;
mod lanes_along_row;
mod read;
mod write;

pub(super) use lanes_across_rows::{LanesAcrossRows, Tiles, gather, scatter, transpose, transpose_back};
pub(super) use lanes_along_row::{Held, LanesAlongRow, pieces_of};

use super::simd::{Exp, Isa, LANES, Vector, log1p};
use super::transform::{ExpBaseLanes, LogitTransform, RowExpBases};

/// Rows that are computed at a time: two vectors of them, for one alone would wait for itself.
pub(super) const ROWS: usize = 2 * LANES;
/// Rows of up to so many classes are computed side by side.
pub(super) const SHORT_ROW_CLASSES: usize = 32;

/// Up to 32 rows. What a closure is given is the row among them, the class, and the logit.
pub(super) trait Rows {
    /// The instruction set that these rows are computed with.
    type I: Isa;
    type W: Exp;
    type Y: LogitTransform;

    /// The proof that this machine has it.
    fn isa(&self) -> Self::I;
    fn transform(&self) -> Self::Y;
    fn classes(&self) -> usize;
    /// How many rows there are.
    fn count(&self) -> usize;
    /// A logit, as long as nothing has been written.
    fn get(&self, row: usize, class: usize) -> Self::W;
    /// The first class for which something holds.
    fn find_where(&self, row: usize, holds: impl Fn(Self::W) -> bool) -> Option<usize>;
    /// The first class of that logit.
    fn find(&self, row: usize, logit: Self::W) -> Option<usize>;
    /// The largest logit of each row in order, NaN left out.
    fn maxima(&self) -> [Self::W; ROWS];
    /// The statistics of each row. `hold` says that [`Rows::scale`] or [`Rows::map_with`] will follow.
    fn reduce(&mut self, hold: bool) -> Stats<Self::W>;
    /// exp(y - unit) of one logit of each row.
    fn terms(&self, stats: &Stats<Self::W>, logits: &[Self::W; ROWS]) -> [f64; ROWS];
    /// The sum over the classes of a value.
    fn sums(&self, value: impl Fn(usize, usize, Self::W) -> f64 + Sync) -> [f64; ROWS];
    /// Writes exp(y - unit) times a factor of each row, wherever the product is a normal number.
    fn scale(&mut self, stats: &Stats<Self::W>, factors: &[f64; ROWS]);
    /// Writes a value of each logit.
    fn map(&mut self, value: impl Fn(usize, usize, Self::W) -> Self::W + Sync);
    /// Writes a value of each logit and of its exp(y - unit).
    fn map_with(&mut self, stats: &Stats<Self::W>, value: impl Fn(usize, usize, Self::W, Self::W) -> Self::W + Sync);
    /// The logit of a class of each row, as long as nothing has been written.
    fn pick(&self, classes: &[usize; ROWS]) -> [Self::W; ROWS];
    /// Writes one value of each row.
    fn put(&mut self, classes: &[usize; ROWS], values: &[Self::W; ROWS]);
}

/// Splits `factor * ratio` into two factors, by which the caller multiplies an exponential one after the other. The first is 1 where the product is
/// a normal number. A subnormal product would lose bits, or be flushed, although times an exponential, which may be as large as
/// [`Exp::LARGEST`], it may be normal again; then the first is `1 / LARGEST`, which is exact, and the second is the rest.
#[inline(always)]
fn split_factor<W: Exp>(factor: f64, ratio: f64) -> [W; 2] {
    let whole = factor * ratio;
    if whole.abs() < W::MIN_NORMAL {
        [W::of(1.0 / W::LARGEST), W::of(factor * W::LARGEST * ratio)]
    } else {
        [W::ONE, W::of(whole)]
    }
}

/// Rows reduced: of each its maximum and the sum of the other exponentials.
///
/// `others` is the sum over j of exp(y_j - unit) less one instance of the maximum's. Keeping the two apart is what lets a
/// confident row have a loss of 2e-9 instead of 0: log-sum-exp is `max + log1p(others / exp(max - unit))`.
pub(super) struct Stats<W> {
    /// The largest logits in order.
    pub(super) max: [W; ROWS],
    /// What exponentials are relative to.
    bases: RowExpBases<W>,
    /// The exponentials of the largest.
    max_exps: [f64; ROWS],
    rest_sums: [f64; ROWS],
    /// What makes probabilities of exponentials; NaN where the softmax has no value.
    inverse_sums: [f64; ROWS],
}

/// log-sum-exps in two parts, for neither to lose what is little beside the other.
pub(super) struct LogSumExps {
    /// y of the largest logits; NaN where the softmax has no value.
    pub(super) max: [f64; ROWS],
    /// log1p of the others relative to those.
    pub(super) log1p_rest: [f64; ROWS],
}

impl LogSumExps {
    #[inline(always)]
    pub(super) fn total(&self, row: usize) -> f64 {
        self.max[row] + self.log1p_rest[row]
    }
}

impl<W: Exp> Stats<W> {
    #[inline(always)]
    fn new<Y: LogitTransform>(
        transform: Y,
        max: [W; ROWS],
        bases: RowExpBases<W>,
        max_exps: [f64; ROWS],
        rest_sums: [f64; ROWS],
    ) -> Self {
        let mut inverse_sums = [0.0; ROWS];
        for row in 0..ROWS {
            // NaN among the logits has come through to the sum.
            let is_regular = transform.is_regular(max[row]);
            inverse_sums[row] = if is_regular { 1.0 / (max_exps[row] + rest_sums[row]) } else { f64::NAN };
        }
        Self { max, bases, max_exps, rest_sums, inverse_sums }
    }

    #[inline(always)]
    pub(super) fn log_sum_exps<Y: LogitTransform>(&self, transform: Y) -> LogSumExps {
        let (mut max, mut log1p_rest) = ([0.0; ROWS], [0.0; ROWS]);
        for row in 0..ROWS {
            max[row] = if self.is_regular(row) { transform.value_of_max(self.max[row]) } else { f64::NAN };
            log1p_rest[row] = log1p(self.rest_sums[row] / self.max_exps[row]);
        }
        LogSumExps { max, log1p_rest }
    }

    /// exp(y - unit) of one logit of each row.
    #[inline(never)]
    fn terms<I: Isa, Y: LogitTransform>(&self, isa: I, transform: Y, logits: &[W; ROWS]) -> [f64; ROWS] {
        isa.vectorize(
            #[inline(always)]
            || {
                let mut terms = [0.0; ROWS];
                let base_lanes =
                    [ExpBaseLanes::of_rows(isa, &self.bases, 0), ExpBaseLanes::of_rows(isa, &self.bases, 1)];
                let (halves, _) = logits.as_chunks();
                let x = [W::V::load(isa, &halves[0]), W::V::load(isa, &halves[1])];
                let [a, b] = transform.exp(isa, x, [&base_lanes[0], &base_lanes[1]]);
                for (to, from) in terms.iter_mut().zip([a.array(), b.array()].as_flattened()) {
                    *to = (*from).into();
                }
                terms
            },
        )
    }

    /// Those of one row for all, for as many of its logits.
    pub(super) fn of_row(&self, row: usize) -> Self {
        Self {
            max: [self.max[row]; ROWS],
            bases: self.bases.all(row),
            max_exps: [self.max_exps[row]; ROWS],
            rest_sums: [self.rest_sums[row]; ROWS],
            inverse_sums: [self.inverse_sums[row]; ROWS],
        }
    }

    #[inline(always)]
    pub(super) fn is_regular(&self, row: usize) -> bool {
        !self.inverse_sums[row].is_nan()
    }

    /// What [`Rows::scale`] makes probabilities by; NaN where there are none.
    #[inline(always)]
    pub(super) fn inverse_sum(&self, row: usize) -> f64 {
        self.inverse_sums[row]
    }

    /// The probability of the largest logit.
    #[inline(always)]
    pub(super) fn max_probability(&self, row: usize) -> f64 {
        self.max_exps[row] * self.inverse_sums[row]
    }

    /// 1 - p of a logit, from the sum of the others and so without cancellation, of its exp(y - unit).
    #[inline(always)]
    pub(super) fn complement(&self, row: usize, is_top: bool, term: f64) -> f64 {
        let rest_sums = self.rest_sums[row] + if is_top { 0.0 } else { self.max_exps[row] - term };
        rest_sums * self.inverse_sums[row]
    }
}
