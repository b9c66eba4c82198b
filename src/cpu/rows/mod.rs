//! The loops over the classes of up to 32 rows at a time. Each operation is written once, over the
//! trait [`Rows`], which has two implementations:
//!
//! * `lanes_along_row.rs`, with `read.rs` and `write.rs`: the lanes of a vector hold neighbouring
//!   classes of one row.
//! * `lanes_across_rows.rs`: the lanes hold the same class of sixteen rows, for rows that are too
//!   short to fill lanes.
//!
//! The number of classes alone decides which one is used, and so the order of sums. [`Stats`] is
//! what both reduce rows to.

mod lanes_across_rows;
mod lanes_along_row;
mod read;
mod write;

pub(super) use lanes_across_rows::{
    LanesAcrossRows, Tiles, gather, scatter, transpose, transpose_back,
};
pub(super) use lanes_along_row::{Held, LanesAlongRow, are_held, pieces_of};

use super::simd::{Exp, Isa, LANES, Vector, log1p};
use super::transform::{ExpBaseLanes, LogitTransform, RowExpBases};

/// The largest number of rows of a group: two vectors, so that the steps of one overlap with those
/// of the other.
pub(super) const ROWS: usize = 2 * LANES;
/// Rows of up to this many classes are computed with lanes across rows.
pub(super) const SHORT_ROW_CLASSES: usize = 32;

/// Up to 32 rows. Closures get the row (its number in the group), the class, and the logit.
pub(super) trait Rows {
    /// The instruction set that these rows are computed with.
    type I: Isa;
    type W: Exp;
    type Y: LogitTransform;

    /// Returns the proof that this machine has the instruction set.
    fn isa(&self) -> Self::I;
    fn transform(&self) -> Self::Y;
    fn classes(&self) -> usize;
    /// Returns the number of rows.
    fn count(&self) -> usize;
    /// Returns the logit of `class` in `row`, as long as nothing has been written.
    fn get(&self, row: usize, class: usize) -> Self::W;
    /// Returns the first class of `row` for whose logit `holds` is true.
    fn find_where(&self, row: usize, holds: impl Fn(Self::W) -> bool) -> Option<usize>;
    /// Returns the first class of `row` that has the logit `logit`.
    fn find(&self, row: usize, logit: Self::W) -> Option<usize>;
    /// Returns the largest oriented logit of each row, NaN left out.
    fn maxima(&self) -> [Self::W; ROWS];
    /// Returns the statistics of each row. `hold` says that [`Rows::scale`] or [`Rows::map_with`]
    /// will follow.
    fn reduce(&mut self, hold: bool) -> Stats<Self::W>;
    /// Returns exp(y - log_base) of `logits`, one of each row.
    fn terms(&self, stats: &Stats<Self::W>, logits: &[Self::W; ROWS]) -> [f64; ROWS];
    /// Returns the sum of `value` over the classes of each row.
    fn sums(&self, value: impl Fn(usize, usize, Self::W) -> f64 + Sync) -> [f64; ROWS];
    /// Writes exp(y - log_base) times the factor of each row, wherever the product is a normal
    /// number.
    fn scale(&mut self, stats: &Stats<Self::W>, factors: &[f64; ROWS]);
    /// Writes `value` of each logit.
    fn map(&mut self, value: impl Fn(usize, usize, Self::W) -> Self::W + Sync);
    /// Writes `value` of each logit and its exp(y - log_base).
    fn map_with(
        &mut self,
        stats: &Stats<Self::W>,
        value: impl Fn(usize, usize, Self::W, Self::W) -> Self::W + Sync,
    );
    /// Returns the logit of one class of each row, as long as nothing has been written.
    fn pick(&self, classes: &[usize; ROWS]) -> [Self::W; ROWS];
    /// Writes the values of one class of each row.
    fn put(&mut self, classes: &[usize; ROWS], values: &[Self::W; ROWS]);
}

/// Splits `factor * ratio` into two factors, by which the caller multiplies an exponential one
/// after the other. The first is 1 where the product is a normal number. A subnormal product would
/// lose bits, or be flushed to 0, although its product with an exponential of up to
/// [`Exp::LARGEST`] may be normal. In that case the first is `1 / LARGEST`, which is exact, and the
/// second is the rest.
#[inline(always)]
fn split_factor<W: Exp>(factor: f64, ratio: f64) -> [W; 2] {
    let whole = factor * ratio;
    if whole.abs() < W::MIN_NORMAL {
        [W::of(1.0 / W::LARGEST), W::of(factor * W::LARGEST * ratio)]
    } else {
        [W::ONE, W::of(whole)]
    }
}

/// The statistics of each row: its maximum, and the rest of its exponential sum.
///
/// `rest_sum` is the sum over j of exp(y_j - log_base) less one instance of the maximum's
/// exponential, `max_exp`. Keeping the two apart is what lets a confident row have a loss of 2e-9
/// instead of 0:
///
/// ```text
/// log-sum-exp = y(max) + log1p(rest_sum / max_exp)
/// p_j = exp(y_j - log_base) / (max_exp + rest_sum)
/// ```
pub(super) struct Stats<W> {
    /// The largest oriented logit of each row.
    pub(super) max: [W; ROWS],
    /// The exponent base of each row.
    bases: RowExpBases<W>,
    /// exp(y - log_base) of the maximum of each row.
    max_exps: [f64; ROWS],
    rest_sums: [f64; ROWS],
    /// 1 / (max_exp + rest_sum): an exponential times this is a probability. NaN where the softmax
    /// has no value.
    inverse_sums: [f64; ROWS],
}

/// The log-sum-exp of each row, in two parts, so that a small part is not lost beside a large one.
pub(super) struct LogSumExps {
    /// y of the maximum; NaN where the softmax has no value.
    pub(super) max: [f64; ROWS],
    /// log1p(rest_sum / max_exp).
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
            // A NaN among the logits has made the sum NaN.
            let is_regular = transform.is_regular(max[row]);
            inverse_sums[row] =
                if is_regular { 1.0 / (max_exps[row] + rest_sums[row]) } else { f64::NAN };
        }
        Self { max, bases, max_exps, rest_sums, inverse_sums }
    }

    #[inline(always)]
    pub(super) fn log_sum_exps<Y: LogitTransform>(&self, transform: Y) -> LogSumExps {
        let (mut max, mut log1p_rest) = ([0.0; ROWS], [0.0; ROWS]);
        for row in 0..ROWS {
            max[row] =
                if self.is_regular(row) { transform.value_of_max(self.max[row]) } else { f64::NAN };
            log1p_rest[row] = log1p(self.rest_sums[row] / self.max_exps[row]);
        }
        LogSumExps { max, log1p_rest }
    }

    /// Returns exp(y - log_base) of `logits`, one of each row.
    #[inline(never)]
    fn terms<I: Isa, Y: LogitTransform>(
        &self,
        isa: I,
        transform: Y,
        logits: &[W; ROWS],
    ) -> [f64; ROWS] {
        isa.vectorize(
            #[inline(always)]
            || {
                let mut terms = [0.0; ROWS];
                let base_lanes = [
                    ExpBaseLanes::of_rows(isa, &self.bases, 0),
                    ExpBaseLanes::of_rows(isa, &self.bases, 1),
                ];
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

    /// Returns the statistics of one row as those of all rows, so that `terms` takes 32 logits of
    /// that row.
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

    /// Returns the factor that turns the exponentials of `row` into probabilities; NaN where the
    /// softmax has no value.
    #[inline(always)]
    pub(super) fn inverse_sum(&self, row: usize) -> f64 {
        self.inverse_sums[row]
    }

    /// Returns the probability of the largest logit of `row`.
    #[inline(always)]
    pub(super) fn max_probability(&self, row: usize) -> f64 {
        self.max_exps[row] * self.inverse_sums[row]
    }

    /// Returns 1 - p of a logit of `row` whose exponential is `term`; `is_max` says that it is the
    /// maximum. The result is the sum of all other exponentials times `inverse_sum`, so nothing
    /// cancels.
    #[inline(always)]
    pub(super) fn complement(&self, row: usize, is_max: bool, term: f64) -> f64 {
        let rest_sum = self.rest_sums[row] + if is_max { 0.0 } else { self.max_exps[row] - term };
        rest_sum * self.inverse_sums[row]
    }
}
