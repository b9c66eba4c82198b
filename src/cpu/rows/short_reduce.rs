//! Short rows: reduces them to their maxima and sums of exponentials.
//!
//! Exponentials are relative to the fixed base first. If that does not suit the maximum of a row,
//! the group is computed again, each row relative to the base that its maximum decides on. The next
//! group then begins with the maxima. Neither changes the bits of a row, because its maximum alone
//! decides on its base.
//!
//! ```text
//! for each vector of the stream:  e = exp(y(x) - log_base)             // fixed_exponentials
//! for each row:                   sum = sum of its e                   // row_sums
//!     where the maximum is wanted:  max = largest oriented x           // largest
//!                                   rest = sum less that of the maximum  // take_out_max
//! ```

use std::ops::Range;

use super::short::{ShortRows, for_each_vector, load_some, of_rows};
use super::{Place, ROWS, SHORT_ROW_CLASSES, Stats, Wanted};
use crate::cpu::simd::{Exp, Isa, LANES, Vector};
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};

impl<I: Isa, Y: LogitTransform, W: Exp> ShortRows<'_, I, Y, W> {
    #[inline(always)]
    pub(super) fn reduced(&mut self, wanted: Wanted) -> Stats<W, ROWS> {
        let needs_max = wanted != Wanted::Sum;
        let tried = if self.scratch.has_own_bases { None } else { Some(self.fixed_sums()) };
        let fits = match &tried {
            Some(sums) => self.fit_fixed_base(sums),
            None => false,
        };
        let max = if needs_max || !fits { self.largest() } else { [W::ZERO; ROWS] };
        let sums = match tried {
            Some(sums) if fits => sums,
            _ => self.sums_by_maxima(&max, tried),
        };
        let (mut max_exps, mut rest_sums) = ([0.0; ROWS], [0.0; ROWS]);
        for row in 0..ROWS {
            rest_sums[row] = sums[row].into();
        }
        if needs_max {
            max_exps = self.take_out_max(&max, &mut rest_sums);
        }
        let mut stats = Stats::new(self.transform, max, max_exps, rest_sums);
        if wanted == Wanted::Class {
            stats.classes = self.classes_of(&stats.max);
        }
        stats
    }

    /// Returns the sums of exponentials relative to the fixed base.
    #[inline(always)]
    fn fixed_sums(&mut self) -> [W; ROWS] {
        self.fixed_exponentials();
        self.row_sums::<false>(&[W::ZERO; ROWS])
    }

    /// Returns whether sums relative to the fixed base say that it suits all rows.
    #[inline(always)]
    fn fit_fixed_base(&self, sums: &[W; ROWS]) -> bool {
        let [low, high] = W::FIXED_SUMS;
        let low = low * self.classes as f64;
        let mut fits = true;
        for &sum in &sums[..self.count] {
            let sum: f64 = sum.into();
            // False where the sum is NaN.
            fits &= sum >= low && sum <= high;
        }
        fits
    }

    /// Returns the sums of exponentials relative to the bases that the maxima decide on; `tried` is
    /// the sums relative to the fixed base, where they are known.
    #[inline(always)]
    fn sums_by_maxima(&mut self, max: &[W; ROWS], tried: Option<[W; ROWS]>) -> [W; ROWS] {
        let mut all_fixed = true;
        for row in 0..self.count {
            let base = self.transform.exp_base(self.isa, max[row]);
            all_fixed &= base == W::FIXED_BASE;
            self.scratch.bases[0].set(row, &base);
        }
        self.scratch.has_own_bases = !all_fixed;
        match (all_fixed, tried) {
            (true, Some(sums)) => sums,
            (true, None) => self.fixed_sums(),
            (false, _) => {
                self.exponentials();
                self.row_sums::<false>(&[W::ZERO; ROWS])
            }
        }
    }

    /// Takes the exponential of the maximum of each row out of its sum once, and returns it. Unlike
    /// [`LongRow`](super::LongRow), a group of rows adds the other exponentials again for all of
    /// its rows where one of them needs it, but uses those sums for that row alone.
    ///
    /// ```text
    /// for each row:  rest_sum = sum - max_exp, or, where that is less than max_exp, the sum of all e
    ///                but max_exp
    /// ```
    #[inline(always)]
    fn take_out_max(&self, max: &[W; ROWS], sums: &mut [f64; ROWS]) -> [f64; ROWS] {
        let mut logits = *max;
        for row in 0..ROWS {
            logits[row] = self.transform.orient_one(max[row]);
        }
        let terms = self.terms_of(&logits);
        let (mut max_exps, mut is_confident) = ([0.0; ROWS], false);
        for row in 0..ROWS {
            max_exps[row] = terms[row].into();
            sums[row] -= max_exps[row];
            is_confident |= (sums[row] < max_exps[row]) & (row < self.count);
        }
        if is_confident {
            let without = self.row_sums::<true>(&terms);
            for row in 0..ROWS {
                // The maximum has more than half of the sum, so it occurs once. Rounding cannot
                // take the sum of two such exponentials below twice their value.
                if sums[row] < max_exps[row] {
                    sums[row] = without[row].into();
                }
            }
        }
        max_exps
    }

    /// Computes the exponentials relative to the fixed base; those of rows that it does not suit
    /// are wrong, and make their sums so small or large that they are recognized.
    #[inline(always)]
    fn fixed_exponentials(&mut self) {
        let (isa, transform) = (self.isa, self.transform);
        let fixed = ExpBaseLanes::of_row(isa, &W::FIXED_BASE);
        let mut exponentials = std::mem::take(&mut self.scratch.exponentials);
        let (out, _) = exponentials.as_chunks_mut::<LANES>();
        // Sixteen rows are whole vectors, so the rows of both halves are one stream.
        let (vectors, rest) = self.logits().as_chunks::<LANES>();
        // for each vector:  e = exp(y(x) - log_base)
        for (x, out) in vectors.iter().zip(&mut *out) {
            *out = transform.fixed_exp(isa, Vector::load(isa, x), &fixed).array();
        }
        if !rest.is_empty() {
            let x = load_some(isa, rest, transform.lowest());
            out[vectors.len()] = transform.fixed_exp(isa, x, &fixed).array();
        }
        self.scratch.exponentials = exponentials;
    }

    /// Computes the exponentials relative to the bases of their rows.
    #[inline(always)]
    pub(super) fn exponentials(&mut self) {
        let (isa, transform) = (self.isa, self.transform);
        let mut exponentials = std::mem::take(&mut self.scratch.exponentials);
        let (out, _) = exponentials.as_chunks_mut::<LANES>();
        let bases = &self.scratch.bases[0];
        // for each vector:  e = exp(y(x) - log_base of its row)
        for_each_vector(
            isa,
            self.logits(),
            &self.scratch.row_of_lane,
            transform.lowest(),
            #[inline(always)]
            |place, x| {
                let e = transform.exp_or_infinity(isa, x, &bases.lanes(isa, place));
                out[place.at / LANES] = e.array();
            },
        );
        self.scratch.exponentials = exponentials;
    }

    /// Folds `value` of each row to one element; rows beyond the last repeat it.
    #[inline(always)]
    fn fold_each(
        &self,
        value: impl Fn(usize) -> W::V<I>,
        with: impl Fn(W::V<I>, W::V<I>) -> W::V<I> + Copy,
    ) -> [W; ROWS] {
        let mut folded = [W::ZERO; ROWS];
        for (half, folded) in folded.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let (first, last) = (half * LANES, self.count.saturating_sub(1));
            if first > last {
                break;
            }
            let mut lanes = [W::V::splat(self.isa, W::ZERO); LANES];
            // for each of sixteen rows:  lanes[row] = value(row)
            for nth in 0..LANES {
                lanes[nth] = value((first + nth).min(last));
            }
            *folded = Vector::fold_rows(self.isa, lanes, with).array();
        }
        folded
    }

    /// Returns the sum of the exponentials of each row, without those that equal `left_out` if
    /// `LEAVES_OUT` is set. A sum is rounded in f32 at most five times in lanes and four times in
    /// `fold_rows`.
    #[inline(always)]
    fn row_sums<const LEAVES_OUT: bool>(&self, left_out: &[W; ROWS]) -> [W; ROWS] {
        macro_rules! sums {
            ($is_part:literal) => {
                self.fold_each(
                    #[inline(always)]
                    |row| self.row_sum::<LEAVES_OUT, $is_part>(row, left_out),
                    #[inline(always)]
                    |a, b| a + b,
                )
            };
        }
        if self.classes < LANES { sums!(true) } else { sums!(false) }
    }

    /// Returns the sum of the vectors of a row; `IS_PART` says that it is less than one vector.
    #[inline(always)]
    fn row_sum<const LEAVES_OUT: bool, const IS_PART: bool>(
        &self,
        row: usize,
        left_out: &[W; ROWS],
    ) -> W::V<I> {
        let (isa, classes) = (self.isa, self.classes);
        let (zero, left_out) = (W::V::splat(isa, W::ZERO), W::V::splat(isa, left_out[row]));
        let vectors = self.scratch.exponentials[row * classes..][..classes + LANES].as_chunks().0;
        let (whole, rest) = if IS_PART { (0, classes) } else { (classes / LANES, classes % LANES) };
        // for each vector of the row:  sums[vector % 2] += e
        let mut sums = [zero; 2];
        for e in &vectors[..whole] {
            let e = kept::<I, _, LEAVES_OUT>(Vector::load(isa, e), left_out, zero);
            sums = [sums[1], sums[0] + e];
        }
        if rest > 0 {
            let e = kept::<I, _, LEAVES_OUT>(Vector::load(isa, &vectors[whole]), left_out, zero);
            sums[0] = sums[0] + e.first_lanes(isa, rest, zero);
        }
        sums[0] + sums[1]
    }

    /// Returns the largest oriented logit of each row, NaN left out.
    #[inline(always)]
    pub(super) fn largest(&self) -> [W; ROWS] {
        let (isa, transform) = (self.isa, self.transform);
        let lowest = W::V::splat(isa, W::NEG_INFINITY);
        let vectors = self.classes.div_ceil(LANES);
        self.fold_each(
            #[inline(always)]
            |row| {
                let mut best = lowest;
                // for each vector of the row:  best = max(best, oriented x)
                for vector in 0..vectors {
                    best = transform.orient::<I, W>(isa, self.vector(row, vector)).larger(best);
                }
                best
            },
            #[inline(always)]
            |a, b| a.larger(b),
        )
    }

    /// Returns the first class of each row that has the logit of its maximum.
    #[inline(always)]
    fn classes_of(&self, max: &[W; ROWS]) -> [usize; ROWS] {
        let mut classes = [0; ROWS];
        for row in 0..self.count {
            let wanted = Vector::splat(self.isa, self.transform.orient_one(max[row]));
            // No branch depends on where the maximum is, which processors could not predict.
            let vectors = self.classes.div_ceil(LANES);
            let low = self.lanes_equal(row, 0..vectors.min(4), wanted);
            let high = self.lanes_equal(row, 4..vectors.max(4), wanted);
            let place = if low != 0 { low.trailing_zeros() } else { 64 + high.trailing_zeros() };
            // Where all logits are NaN, the caller takes the class of one of them instead.
            classes[row] = place as usize % SHORT_ROW_CLASSES;
        }
        classes
    }

    /// Returns a bit for each lane of up to four vectors of a row: whether it equals `wanted`.
    /// Lanes beyond the row may.
    #[inline(always)]
    fn lanes_equal(&self, row: usize, vectors: Range<usize>, wanted: W::V<I>) -> u64 {
        let (start, mut found) = (vectors.start, 0);
        // for each vector:  found |= bits of its lanes
        for nth in vectors {
            found |= u64::from(self.vector(row, nth).equal(wanted)) << ((nth - start) * LANES);
        }
        found
    }

    /// Returns the exponent bases of the rows of a vector.
    #[inline(always)]
    pub(super) fn bases(&self, place: Place<'_>) -> ExpBaseLanes<W, I> {
        if self.scratch.has_own_bases {
            self.scratch.bases[0].lanes(self.isa, place)
        } else {
            ExpBaseLanes::of_row(self.isa, &W::FIXED_BASE)
        }
    }

    /// Returns the exponentials of `logits`, one of each row.
    #[inline(always)]
    pub(super) fn terms_of(&self, logits: &[W; ROWS]) -> [W; ROWS] {
        let mut terms = [W::ZERO; ROWS];
        for (half, (to, x)) in terms
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(logits.as_chunks::<LANES>().0)
            .enumerate()
        {
            let lanes = self.bases(of_rows(half));
            let x = Vector::load(self.isa, x);
            *to = self.transform.exp::<I, W>(self.isa, x, &lanes).array();
        }
        terms
    }
}

/// Returns `e`, and 0 where `LEAVES_OUT` is set and it equals `left_out`.
#[inline(always)]
fn kept<I: Isa, V: Vector<I>, const LEAVES_OUT: bool>(e: V, left_out: V, zero: V) -> V {
    if LEAVES_OUT { e.where_equal(left_out, zero, e) } else { e }
}
