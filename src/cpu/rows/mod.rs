//! The loops over the classes of rows, whose classes lie side by side. Each operation is written
//! once, over the trait [`Rows`], which has two implementations:
//!
//! * `short.rs`, with `short_reduce.rs`: up to 32 short rows without gaps between them, as one
//!   stream of elements. A vector of exponentials or results may hold classes of several rows,
//!   so no lane is idle there; sums and maxima take the rows one by one.
//! * `long.rs`, with `read.rs` and `write.rs`: one long row, piece by piece.
//!
//! The logit transform makes y of a logit x. *Oriented* x is x, or -x where the scale is negative,
//! so that y increases with it. The exponential of a class is stored as exp(y - log_base), where
//! `log_base` is the logarithm of the exponent base of its row or piece, and cancels in every
//! result.
//!
//! The number of classes alone decides which one is used, and so the order of sums. Both compute
//! the exponentials of a row relative to the fixed base where the maximum of the row allows it
//! ([`Exp::FIXED_RANGE`]), before they know that maximum; the exponentials of other rows are
//! computed again. [`Stats`] is what both reduce rows to.

mod long;
mod read;
mod short;
mod short_reduce;
mod write;

pub(super) use long::{LongRow, LongScratch, keeps_exponentials, pieces_of};
pub(super) use short::{ShortRows, ShortScratch};

use super::simd::{Exp, Isa, LANES, Real, Vector, log1p};
use super::transform::LogitTransform;

/// The largest number of short rows that are computed together: two vectors of row values.
pub(super) const ROWS: usize = 2 * LANES;
/// Rows of up to this many classes are short.
pub(super) const SHORT_ROW_CLASSES: usize = 128;

/// Where the sixteen elements of a vector are.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The row of the elements; where they are of several rows, the first of the sixteen rows that
    /// `rows` counts from.
    pub(super) row: usize,
    /// The row of each lane, counted from the first of sixteen rows; `None` where all lanes are of
    /// one row.
    pub(super) rows: Option<&'a [u8; LANES]>,
    /// The place of the first element in an array of all elements of the rows.
    pub(super) at: usize,
    /// The place of the first element in an array that repeats a value of each class row by row.
    pub(super) class_at: usize,
}

impl Place<'_> {
    /// Returns the value of the row of each element.
    #[inline(always)]
    pub(super) fn of_row<I: Isa, V: Vector<I>, const N: usize>(
        self,
        isa: I,
        values: &[V::W; N],
    ) -> V {
        match (self.rows, values[self.row / LANES * LANES..].first_chunk()) {
            (Some(rows), Some(values)) => V::spread(isa, values, rows),
            _ => V::splat(isa, values[self.row]),
        }
    }

    /// Returns the value of the class of each element; `values` repeats them row by row.
    #[inline(always)]
    pub(super) fn of_class<I: Isa, V: Vector<I>>(self, isa: I, values: &[V::W]) -> V {
        load_at(isa, values, self.class_at)
    }

    /// Returns the elements of `values` at the same place.
    #[inline(always)]
    pub(super) fn of_element<I: Isa, V: Vector<I>>(self, isa: I, values: &[V::W]) -> V {
        load_at(isa, values, self.at)
    }
}

#[inline(always)]
fn load_at<I: Isa, V: Vector<I>>(isa: I, values: &[V::W], at: usize) -> V {
    let (values, _) = values[at..][..LANES].as_chunks();
    V::load(isa, &values[0])
}

/// The statistics that an operation needs from a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The sum of exponentials alone, for [`Rows::scale`]: the maximum may be unknown, and the rest
    /// of the sum may have lost its last bits.
    Sum,
    /// All of [`Stats`]; `keeps` says that [`Rows::scale`] or [`Rows::map_p`] will follow.
    Rest { keeps: bool },
    /// All of [`Stats`], and the class of each maximum.
    Class,
}

/// Up to `N` rows. Closures get the place of sixteen elements, and their logits.
pub(super) trait Rows<const N: usize> {
    /// The instruction set that these rows are computed with.
    type I: Isa;
    type W: Exp;
    type Y: LogitTransform;

    /// Returns the proof that this machine has the instruction set.
    fn isa(&self) -> Self::I;
    /// Returns the logit transform, which closures apply to the logits that they get.
    fn transform(&self) -> Self::Y;
    /// Returns the number of rows.
    fn count(&self) -> usize;
    /// Returns the first class of `row` whose logit is NaN, as long as nothing has been written.
    fn find_nan(&self, row: usize) -> Option<usize>;
    /// Returns the largest oriented logit of each row, NaN left out.
    fn maxima(&self) -> [Self::W; N];
    /// Returns the statistics of each row.
    fn reduce(&mut self, wanted: Wanted) -> Stats<Self::W, N>;
    /// Makes [`Rows::map_p`] compute probabilities exp(y - log_sum_exp), and returns the factors
    /// for it.
    fn normalize(&mut self, log_sum_exps: &[Self::W; N]) -> [f64; N];
    /// Returns exp(y - log_base) of `logits`, one of each row, after a reduction.
    fn terms(&self, logits: &[Self::W; N]) -> [f64; N];
    /// Returns exp(y - log_base) of logits of the first row, after a reduction.
    fn terms_of_first(&self, logits: Lanes<Self, N>) -> Lanes<Self, N>;
    /// Returns the sums of `K` values over the classes of each row. Values in lanes of another type
    /// than f64 are added in that type up to eight at a time, which rounds no more than eight
    /// times, and all else in f64.
    fn sums<V: Vector<Self::I>, const K: usize>(
        &self,
        values: impl Fn(Place<'_>, Lanes<Self, N>) -> [V; K] + Sync,
    ) -> [[f64; N]; K];
    /// Returns the sums of `narrow` values. A row gets the sums of `wide` values instead where one
    /// of its sums is NaN, beyond the type, or below `least` and not 0, and so does every row
    /// unless `is_narrow` is set.
    #[inline(always)]
    fn narrow_sums<const K: usize>(
        &self,
        (is_narrow, least): (bool, f64),
        narrow: impl Fn(Place<'_>, Lanes<Self, N>) -> [Lanes<Self, N>; K] + Sync,
        wide: impl Fn(Place<'_>, Lanes<Self, N>) -> [Wide<Self, N>; K] + Sync,
    ) -> [[f64; N]; K] {
        let mut sums = if is_narrow { self.sums(narrow) } else { [[f64::NAN; N]; K] };
        let (mut is_lost, mut any_lost) = ([false; N], false);
        for row in 0..N {
            is_lost[row] = sums.iter().any(
                #[inline(always)]
                |sums| {
                    let size = sums[row].abs();
                    !size.is_finite() || (size != 0.0 && size < least)
                },
            );
            any_lost |= is_lost[row];
        }
        if any_lost {
            for (sums, found) in sums.iter_mut().zip(self.sums(wide)) {
                for row in 0..N {
                    sums[row] = if is_lost[row] { found[row] } else { sums[row] };
                }
            }
        }
        sums
    }
    /// Writes exp(y - log_base) times the factor of each row, wherever the product is a normal
    /// number.
    fn scale(&mut self, factors: &[f64; N]);
    /// Writes `value` of the logits.
    fn map(&mut self, value: impl Fn(Place<'_>, Lanes<Self, N>) -> Lanes<Self, N> + Sync);
    /// Writes `value` of the logits and their probabilities, which are exp(y - log_base) times the
    /// factor of each row.
    fn map_p(
        &mut self,
        factors: &[f64; N],
        value: impl Fn(Place<'_>, Lanes<Self, N>, Lanes<Self, N>) -> Lanes<Self, N> + Sync,
    );
    /// Returns the logit of one class of each row, as long as nothing has been written.
    fn pick(&self, classes: &[usize; N]) -> [Self::W; N];
    /// Writes the values of one class of each row.
    fn put(&mut self, classes: &[usize; N], values: &[Self::W; N]);
}

/// A vector of the type that `R` computes in.
pub(super) type Lanes<R, const N: usize> = <<R as Rows<N>>::W as Real>::V<<R as Rows<N>>::I>;
/// A vector of f64.
pub(super) type Wide<R, const N: usize> = <<R as Rows<N>>::I as Isa>::F64;

/// Splits `factor * ratio` into two factors, by which the caller multiplies an exponential one
/// after the other. The first is 1 where the product is a normal number. A subnormal product would
/// lose bits, or be flushed to 0, although its product with an exponential may be normal; an
/// infinite one would make an exponential of 0 NaN. In these cases the first is `1 / SPLIT` or
/// `SPLIT`, and the second is the rest.
#[inline(always)]
pub(super) fn split_factor<W: Exp>(factor: f64, ratio: f64) -> [W; 2] {
    let (whole, root) = (factor * ratio, W::SPLIT.sqrt());
    let of = |value: f64| W::of(value.clamp(-W::LARGEST_NUMBER, W::LARGEST_NUMBER));
    if whole.abs() < W::MIN_NORMAL {
        [W::of(1.0 / W::SPLIT), of((factor * root) * (ratio * root))]
    } else if whole.abs() > W::LARGEST_NUMBER {
        [W::of(W::SPLIT), of(factor / W::SPLIT * ratio)]
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
pub(super) struct Stats<W, const N: usize> {
    /// The largest oriented logit of each row.
    pub(super) max: [W; N],
    /// The first class of each maximum, where it was asked for.
    pub(super) classes: [usize; N],
    /// exp(y - log_base) of the maximum of each row.
    max_exps: [f64; N],
    rest_sums: [f64; N],
    /// 1 / (max_exp + rest_sum): an exponential times this is a probability. NaN where the softmax
    /// has no value.
    inverse_sums: [f64; N],
}

/// Returns y of logits, one of each row, computed as the y of all classes are, so that equal logits
/// have equal y.
#[inline(always)]
pub(super) fn values_of<I: Isa, Y: LogitTransform, W: Exp, const N: usize>(
    isa: I,
    transform: Y,
    logits: &[W; N],
) -> [f64; N] {
    let mut values = [0.0; N];
    for (values, logits) in values.chunks_mut(LANES).zip(logits.chunks(LANES)) {
        let x = match logits.first_chunk() {
            Some(logits) => W::V::load(isa, logits),
            None => W::V::splat(isa, logits[0]),
        };
        let y = transform.values::<I, W>(isa, x).array();
        values.iter_mut().zip(y).for_each(|(value, y)| *value = y);
    }
    values
}

/// The log-sum-exp of each row, in two parts, so that a small part is not lost beside a large one.
pub(super) struct LogSumExps<const N: usize> {
    /// y of the maximum; NaN where the softmax has no value.
    pub(super) max: [f64; N],
    /// log1p(rest_sum / max_exp).
    pub(super) log1p_rest: [f64; N],
}

impl<const N: usize> LogSumExps<N> {
    /// Returns the log-sum-exp of `row`.
    #[inline(always)]
    pub(super) fn total(&self, row: usize) -> f64 {
        self.max[row] + self.log1p_rest[row]
    }
}

impl<W: Exp, const N: usize> Stats<W, N> {
    #[inline(always)]
    fn new<Y: LogitTransform>(
        transform: Y,
        max: [W; N],
        max_exps: [f64; N],
        rest_sums: [f64; N],
    ) -> Self {
        let mut inverse_sums = [0.0; N];
        for row in 0..N {
            // A NaN among the logits has made the sum NaN.
            let is_regular = transform.is_regular(max[row]);
            inverse_sums[row] =
                if is_regular { 1.0 / (max_exps[row] + rest_sums[row]) } else { f64::NAN };
        }
        Self { max, classes: [0; N], max_exps, rest_sums, inverse_sums }
    }

    #[inline(always)]
    pub(super) fn log_sum_exps<I: Isa, Y: LogitTransform>(
        &self,
        isa: I,
        transform: Y,
    ) -> LogSumExps<N> {
        let mut log1p_rest = [0.0; N];
        let mut max = values_of(isa, transform, &self.max_logits(transform));
        for row in 0..N {
            max[row] = if self.is_regular(row) { max[row] } else { f64::NAN };
            log1p_rest[row] = log1p(self.rest_sums[row] / self.max_exps[row]);
        }
        LogSumExps { max, log1p_rest }
    }

    /// Returns the logits of the maxima.
    #[inline(always)]
    pub(super) fn max_logits<Y: LogitTransform>(&self, transform: Y) -> [W; N] {
        let mut logits = self.max;
        for row in 0..N {
            logits[row] = transform.orient_one(self.max[row]);
        }
        logits
    }

    #[inline(always)]
    pub(super) fn is_regular(&self, row: usize) -> bool {
        !self.inverse_sums[row].is_nan()
    }

    /// Returns the factors that turn exponentials into probabilities.
    #[inline(always)]
    pub(super) fn inverse_sums(&self) -> &[f64; N] {
        &self.inverse_sums
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

    /// Returns 1 - p of a logit of `row` whose exponential is `term`. The result is the sum of all
    /// other exponentials times `inverse_sum`, so nothing cancels.
    #[inline(always)]
    pub(super) fn complement<Y: LogitTransform>(
        &self,
        transform: Y,
        row: usize,
        logit: W,
        term: f64,
    ) -> f64 {
        let is_max = transform.orient_one(logit) == self.max[row];
        let rest_sum = self.rest_sums[row] + if is_max { 0.0 } else { self.max_exps[row] - term };
        rest_sum * self.inverse_sums[row]
    }

    /// Returns 1 - p of the maximum of `row`.
    #[inline(always)]
    pub(super) fn max_complement(&self, row: usize) -> f64 {
        self.rest_sums[row] * self.inverse_sums[row]
    }
}
