//! Short rows without gaps between them, as one stream of elements.
//!
//! Sixteen rows of `classes` classes are `classes` whole vectors, whatever the number of classes,
//! so exponentials are computed and results are written without idle lanes:
//!
//! ```text
//! for each vector of the stream:  e = exp(y(x) - log_base)                  // exponentials
//! for each row:                   sum = sum of its e                        // row_sums
//!     where the maximum is wanted:  max = largest oriented x                // largest
//!                                   rest = sum of its e that are not max's  // row_sums
//! for each vector of the stream:  out = value(x, e, values of its rows)     // write
//! ```
//!
//! Exponentials are relative to the fixed base first. If that does not suit the maximum of a row,
//! the group is computed again, each row relative to its own base. A group after such a group
//! begins with the maxima instead. Neither changes the bits of a row, as its maximum alone decides
//! on its base.
//!
//! A value of each row is spread over the lanes of a vector by a table of the rows of its elements
//! ([`Flat::resize`]). Sums and maxima take the rows one by one, and fold the lanes of sixteen rows
//! together ([`Vector::fold_rows`]).

use std::ops::Range;

use super::Place;
use super::{Lanes, ROWS, Rows, SHORT_ROW_CLASSES, Stats, Wanted, split_factor};
use crate::Error;
use crate::cpu::simd::{Exp, Isa, LANES, Real, Vector};
use crate::cpu::transform::{ExpBaseLanes, LogitTransform, RowExpBases};
use crate::problem::error::try_reserve;

/// The memory of a thread for short rows.
#[derive(Default)]
pub(in crate::cpu) struct Flat<W> {
    /// The exponentials of the rows, and room for a vector beyond them.
    exponentials: Vec<W>,
    /// The row of each lane of the vectors of sixteen rows.
    row_of_lane: Vec<[u8; LANES]>,
    /// One element: the exponent bases of the rows of the last group that needed bases of their
    /// own; those of all other groups are the fixed base.
    bases: Vec<RowExpBases<W, ROWS>>,
    /// Whether `bases` are those of the last group.
    is_careful: bool,
}

impl<W: Exp> Flat<W> {
    /// Makes room for rows of `classes` classes.
    pub(in crate::cpu) fn reserve(&mut self, classes: usize) -> Result<(), Error> {
        try_reserve("exponentials of rows", &mut self.exponentials, Self::length(classes))?;
        try_reserve("exponentials of rows", &mut self.row_of_lane, classes)?;
        try_reserve("exponentials of rows", &mut self.bases, 1)
    }

    fn length(classes: usize) -> usize {
        if classes == 0 { 0 } else { ROWS * classes + LANES }
    }

    /// Sets the length for rows of `classes` classes; 0 for none.
    pub(in crate::cpu) fn resize(&mut self, classes: usize) {
        self.exponentials.resize(Self::length(classes), W::ZERO);
        self.row_of_lane.resize(classes, [0; LANES]);
        self.bases.resize(1, RowExpBases::all(&W::FIXED_BASE));
        if classes > 0 {
            let lanes = self.row_of_lane.as_flattened_mut();
            lanes.chunks_mut(classes).zip(0..).for_each(|(lanes, row)| lanes.fill(row));
        }
    }
}

/// Up to 32 short rows, one after the other.
pub(in crate::cpu) struct FlatRows<'a, I, Y, W> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) transform: Y,
    pub(in crate::cpu) classes: usize,
    pub(in crate::cpu) count: usize,
    /// The logits; `None` where they are in `output`.
    pub(in crate::cpu) input: Option<&'a [W]>,
    /// The results; `None` where the operation writes no elements.
    pub(in crate::cpu) output: Option<&'a mut [W]>,
    pub(in crate::cpu) flat: &'a mut Flat<W>,
}

/// The rows of the lanes of a vector that holds a value of each of sixteen rows.
const EACH_ROW: [u8; LANES] = {
    let mut rows = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        rows[lane] = lane as u8;
        lane += 1;
    }
    rows
};

/// Returns the place of a vector that holds a value of each row of a half.
fn of_rows(half: usize) -> Place<'static> {
    Place { row: half * LANES, rows: Some(&EACH_ROW), at: 0, class_at: 0 }
}

/// Loads up to sixteen elements, and `fill` into the other lanes.
#[inline(always)]
fn load_some<I: Isa, W: Real>(isa: I, x: &[W], fill: W) -> W::V<I> {
    let mut all = [fill; LANES];
    all.iter_mut().zip(x).for_each(|(to, &from)| *to = from);
    Vector::load(isa, &all)
}

/// Calls `work` with the place and the logits of each vector of the stream `x`.
#[inline(always)]
fn for_each_vector<I: Isa, W: Real>(
    isa: I,
    x: &[W],
    row_of_lane: &[[u8; LANES]],
    fill: W,
    mut work: impl FnMut(Place<'_>, W::V<I>),
) {
    // for each half of the rows, for each vector of it:  work(place, x)
    for (half, x) in x.chunks((row_of_lane.len() * LANES).max(1)).enumerate() {
        let (vectors, rest) = x.as_chunks::<LANES>();
        let place = |nth: usize, rows| Place {
            row: half * LANES,
            rows: Some(rows),
            at: (half * row_of_lane.len() + nth) * LANES,
            class_at: nth * LANES,
        };
        for (nth, (x, rows)) in vectors.iter().zip(row_of_lane).enumerate() {
            work(place(nth, rows), Vector::load(isa, x));
        }
        if let (false, Some(rows)) = (rest.is_empty(), row_of_lane.get(vectors.len())) {
            work(place(vectors.len(), rows), load_some(isa, rest, fill));
        }
    }
}

impl<I: Isa, Y: LogitTransform, W: Exp> FlatRows<'_, I, Y, W> {
    #[inline(always)]
    fn logits(&self) -> &[W] {
        match (&self.input, &self.output) {
            (Some(x), _) => x,
            (None, Some(x)) => x,
            (None, None) => &[],
        }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[W] {
        &self.logits()[row * self.classes..][..self.classes]
    }

    /// Computes the exponentials relative to the fixed base; those of rows that it does not suit
    /// are wrong, and make their sums so small or large that they are recognized.
    #[inline(always)]
    fn fixed_exponentials(&mut self) {
        let (isa, transform) = (self.isa, self.transform);
        let fixed = ExpBaseLanes::of_row(isa, &W::FIXED_BASE);
        let mut exponentials = std::mem::take(&mut self.flat.exponentials);
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
        self.flat.exponentials = exponentials;
    }

    /// Computes the exponentials relative to the bases of their rows.
    #[inline(always)]
    fn exponentials(&mut self) {
        let (isa, transform) = (self.isa, self.transform);
        let mut exponentials = std::mem::take(&mut self.flat.exponentials);
        let (out, _) = exponentials.as_chunks_mut::<LANES>();
        let bases = &self.flat.bases[0];
        // for each vector:  e = exp(y(x) - log_base of its row)
        for_each_vector(
            isa,
            self.logits(),
            &self.flat.row_of_lane,
            transform.lowest(),
            #[inline(always)]
            |place, x| {
                let e = transform.exp_or_infinity(isa, x, &bases.lanes(isa, place));
                out[place.at / LANES] = e.array();
            },
        );
        self.flat.exponentials = exponentials;
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
        let vectors = self.flat.exponentials[row * classes..][..classes + LANES].as_chunks().0;
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

    /// Returns the logits of `row` from class `16 * nth` on, and what is below all logits in lanes
    /// beyond the row.
    #[inline(always)]
    fn vector(&self, row: usize, nth: usize) -> W::V<I> {
        let (isa, start, count) = (self.isa, nth * LANES, self.classes - nth * LANES);
        let lowest: W = self.transform.lowest();
        let x = &self.logits()[row * self.classes + start..];
        match x.first_chunk() {
            Some(x) if count >= LANES => Vector::load(isa, x),
            Some(x) => {
                let lowest = W::V::splat(isa, lowest);
                W::V::load(isa, x).first_lanes(isa, count, lowest)
            }
            None => load_some(isa, &x[..count.min(x.len())], lowest),
        }
    }

    /// Returns the largest oriented logit of each row, NaN left out.
    #[inline(always)]
    fn largest(&self) -> [W; ROWS] {
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
            // Nothing depends on where the maximum is, which processors could not predict.
            let vectors = self.classes.div_ceil(LANES);
            let low = self.lanes_equal(row, 0..vectors.min(4), wanted);
            let high = self.lanes_equal(row, 4..vectors.max(4), wanted);
            let place = if low != 0 { low.trailing_zeros() } else { 64 + high.trailing_zeros() };
            // Class 0 where all logits are NaN.
            classes[row] = place as usize % SHORT_ROW_CLASSES;
        }
        classes
    }

    /// Returns a bit for each lane of up to four vectors of a row: whether it equals `wanted`. Lanes
    /// beyond the row may.
    #[inline(always)]
    fn lanes_equal(&self, row: usize, vectors: Range<usize>, wanted: W::V<I>) -> u64 {
        let (start, mut found) = (vectors.start, 0);
        // for each vector:  found |= bits of its lanes
        for nth in vectors {
            found |= u64::from(self.vector(row, nth).equal(wanted)) << ((nth - start) * LANES);
        }
        found
    }

    #[inline(always)]
    fn reduced(&mut self, wanted: Wanted) -> Stats<W, ROWS> {
        let (transform, count) = (self.transform, self.count);
        let unknown = [W::ZERO; ROWS];
        let mut max = unknown;
        let mut sums = unknown;
        let needs_max = wanted != Wanted::Sum;
        let mut is_fixed = !self.flat.is_careful;
        if is_fixed {
            self.fixed_exponentials();
            sums = self.row_sums::<false>(&unknown);
            let [low, high] = W::FIXED_SUMS;
            let low = low * self.classes as f64;
            for &sum in &sums[..count] {
                let sum: f64 = sum.into();
                // False where the sum is NaN.
                is_fixed &= sum >= low && sum <= high;
            }
        }
        let has_max = needs_max || !is_fixed;
        if has_max {
            max = self.largest();
        }
        if !is_fixed {
            let mut all_fixed = true;
            for row in 0..count {
                let base = transform.exp_base(max[row]);
                all_fixed &= base == W::FIXED_BASE;
                self.flat.bases[0].set(row, &base);
            }
            if !all_fixed {
                self.exponentials();
            } else if self.flat.is_careful {
                self.fixed_exponentials();
            }
            if self.flat.is_careful || !all_fixed {
                sums = self.row_sums::<false>(&unknown);
            }
            self.flat.is_careful = !all_fixed;
        }
        let (mut max_exps, mut rest_sums) = ([0.0; ROWS], [0.0; ROWS]);
        if needs_max {
            let mut logits = max;
            for row in 0..ROWS {
                logits[row] = transform.orient_one(max[row]);
            }
            let terms = self.terms_of(&logits);
            let mut is_confident = false;
            for row in 0..ROWS {
                max_exps[row] = terms[row].into();
                let sum: f64 = sums[row].into();
                rest_sums[row] = sum - max_exps[row];
                is_confident |= (rest_sums[row] < max_exps[row]) & (row < count);
            }
            if is_confident {
                let without = self.row_sums::<true>(&terms);
                for row in 0..ROWS {
                    // The maximum has more than half of the sum, so it occurs once. Rounding cannot
                    // take the sum of two such exponentials below twice their value.
                    if rest_sums[row] < max_exps[row] {
                        rest_sums[row] = without[row].into();
                    }
                }
            }
        } else {
            for row in 0..ROWS {
                rest_sums[row] = sums[row].into();
            }
        }
        let mut stats = Stats::new(transform, max, max_exps, rest_sums);
        if wanted == Wanted::Class {
            stats.classes = self.classes_of(&stats.max);
        }
        stats
    }

    /// Returns the exponent bases of the rows of a vector.
    #[inline(always)]
    fn bases(&self, place: Place<'_>) -> ExpBaseLanes<W, I> {
        if self.flat.is_careful {
            self.flat.bases[0].lanes(self.isa, place)
        } else {
            ExpBaseLanes::of_row(self.isa, &W::FIXED_BASE)
        }
    }

    /// Returns the exponentials of `logits`, one of each row.
    #[inline(always)]
    fn terms_of(&self, logits: &[W; ROWS]) -> [W; ROWS] {
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
            *to = self.transform.exp(self.isa, [x], [&lanes])[0].array();
        }
        terms
    }

    /// Writes `value` of the place and the logits of each vector.
    #[inline(always)]
    fn write(&mut self, value: impl Fn(Place<'_>, W::V<I>) -> W::V<I>) {
        let (isa, fill) = (self.isa, self.transform.lowest());
        let rows = &self.flat.row_of_lane;
        let Some(output) = &mut self.output else { return };
        let half = (rows.len() * LANES).max(1);
        // for each vector:  out = value(place, x)
        for (nth, out) in output.chunks_mut(half).enumerate() {
            let x = self.input.map(
                #[inline(always)]
                |x| &x[nth * half..][..out.len()],
            );
            let place = |vector: usize| Place {
                row: nth * LANES,
                rows: Some(&rows[vector]),
                at: nth * half + vector * LANES,
                class_at: vector * LANES,
            };
            let whole = out.len() / LANES;
            let (vectors, rest) = out.as_chunks_mut::<LANES>();
            let from = x.map(
                #[inline(always)]
                |x| x.as_chunks::<LANES>().0,
            );
            for (vector, out) in vectors.iter_mut().enumerate() {
                let x = match from {
                    Some(x) => &x[vector],
                    None => &*out,
                };
                *out = value(place(vector), Vector::load(isa, x)).array();
            }
            if !rest.is_empty() {
                let x = x.map_or(&*rest, |x| &x[whole * LANES..]);
                let values = value(place(whole), load_some(isa, x, fill)).array();
                rest.copy_from_slice(&values[..rest.len()]);
            }
        }
    }

    /// Writes the exponentials times the factors of the rows.
    #[inline(always)]
    fn scaled(&mut self, factors: &[f64; ROWS]) {
        let isa = self.isa;
        let Split { first, second, is_split } = Split::new(factors, self.count);
        let rows = &self.flat.row_of_lane;
        let Some(output) = &mut self.output else { return };
        let half_length = (rows.len() * LANES).max(1);
        let (exponentials, _) = self.flat.exponentials.as_chunks::<LANES>();
        let halves = output.chunks_mut(half_length).zip(exponentials.chunks(rows.len().max(1)));
        for (half, (out, exponentials)) in halves.enumerate() {
            let (first, second) =
                (&first.as_chunks::<LANES>().0[half], &second.as_chunks::<LANES>().0[half]);
            let factors = (is_split.then_some(first), second);
            let (vectors, rest) = out.as_chunks_mut::<LANES>();
            let whole = vectors.len();
            // for each vector:  out = e * factors of its row
            for ((out, e), rows) in vectors.iter_mut().zip(exponentials).zip(rows) {
                *out = scaled(isa, e, factors, rows);
            }
            if !rest.is_empty() {
                let values = scaled(isa, &exponentials[whole], factors, &rows[whole]);
                rest.copy_from_slice(&values[..rest.len()]);
            }
        }
    }

    /// Writes `value` of the place, the logits, and the exponentials times the factors of the rows.
    #[inline(always)]
    fn write_scaled(
        &mut self,
        factors: &[f64; ROWS],
        value: impl Fn(Place<'_>, W::V<I>, W::V<I>) -> W::V<I>,
    ) {
        let isa = self.isa;
        let Split { first, second, .. } = Split::new(factors, self.count);
        let exponentials = std::mem::take(&mut self.flat.exponentials);
        self.write(
            #[inline(always)]
            |place, x| {
                let e: W::V<I> = place.of_element(isa, &exponentials);
                let factors: [W::V<I>; 2] = [place.of_row(isa, &first), place.of_row(isa, &second)];
                value(place, x, e * factors[0] * factors[1])
            },
        );
        self.flat.exponentials = exponentials;
    }
}

impl<I: Isa, Y: LogitTransform, W: Exp> Rows<ROWS> for FlatRows<'_, I, Y, W> {
    type I = I;
    type W = W;
    type Y = Y;

    fn isa(&self) -> I {
        self.isa
    }

    fn transform(&self) -> Y {
        self.transform
    }

    fn count(&self) -> usize {
        self.count
    }

    fn find_nan(&self, row: usize) -> Option<usize> {
        self.row(row).iter().position(|x| !x.is_number())
    }

    #[inline(never)]
    fn maxima(&self) -> [W; ROWS] {
        self.isa.vectorize(
            #[inline(always)]
            || self.largest(),
        )
    }

    #[inline(never)]
    fn reduce(&mut self, wanted: Wanted) -> Stats<W, ROWS> {
        self.isa.vectorize(
            #[inline(always)]
            || self.reduced(wanted),
        )
    }

    #[inline(never)]
    fn normalize(&mut self, log_sum_exps: &[W; ROWS]) -> [f64; ROWS] {
        self.isa.vectorize(
            #[inline(always)]
            || {
                let (bases, factors) = RowExpBases::of_log_sum_exps(self.transform, log_sum_exps);
                (self.flat.bases[0], self.flat.is_careful) = (bases, true);
                self.exponentials();
                factors
            },
        )
    }

    #[inline(never)]
    fn terms(&self, logits: &[W; ROWS]) -> [f64; ROWS] {
        self.isa.vectorize(
            #[inline(always)]
            || {
                let (found, mut terms) = (self.terms_of(logits), [0.0; ROWS]);
                for row in 0..ROWS {
                    terms[row] = found[row].into();
                }
                terms
            },
        )
    }

    #[inline(always)]
    fn terms_of_first(&self, logits: Lanes<Self, ROWS>) -> Lanes<Self, ROWS> {
        let place = Place { row: 0, rows: None, at: 0, class_at: 0 };
        self.transform.exp(self.isa, [logits], [&self.bases(place)])[0]
    }

    #[inline(always)]
    fn sums<V: Vector<I>, const K: usize>(
        &self,
        values: impl Fn(Place<'_>, Lanes<Self, ROWS>) -> [V; K] + Sync,
    ) -> [[f64; ROWS]; K] {
        let (isa, classes) = (self.isa, self.classes);
        let zero = V::splat(isa, V::W::ZERO);
        let mut sums = [[0.0; ROWS]; K];
        for first in (0..self.count).step_by(LANES) {
            let mut of_rows = [[I::F64::splat(isa, 0.0); LANES]; K];
            for nth in 0..LANES.min(self.count - first) {
                let row = first + nth;
                let place = |vector: usize| {
                    let class_at = vector * LANES;
                    Place { row, rows: None, at: row * classes + class_at, class_at }
                };
                let mut lanes = [zero; K];
                let (vectors, rest) = self.row(row).as_chunks::<LANES>();
                // for each vector of the row:  lanes += values(place, x)
                for (vector, x) in vectors.iter().enumerate() {
                    let found = values(place(vector), Vector::load(isa, x));
                    for (lanes, found) in lanes.iter_mut().zip(found) {
                        *lanes = *lanes + found;
                    }
                }
                if !rest.is_empty() {
                    let vector = vectors.len();
                    let found = values(place(vector), self.vector(row, vector));
                    for (lanes, found) in lanes.iter_mut().zip(found) {
                        *lanes = *lanes + found.first_lanes(isa, rest.len(), zero);
                    }
                }
                for (of_rows, lanes) in of_rows.iter_mut().zip(lanes) {
                    of_rows[nth] = lanes.wide(isa);
                }
            }
            for (sums, of_rows) in sums.iter_mut().zip(of_rows) {
                let folded = Vector::fold_rows(
                    isa,
                    of_rows,
                    #[inline(always)]
                    |a, b| a + b,
                );
                sums[first..][..LANES].copy_from_slice(&folded.array());
            }
        }
        sums
    }

    #[inline(never)]
    fn scale(&mut self, factors: &[f64; ROWS]) {
        self.isa.vectorize(
            #[inline(always)]
            || self.scaled(factors),
        );
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(Place<'_>, Lanes<Self, ROWS>) -> Lanes<Self, ROWS> + Sync) {
        self.write(value);
    }

    #[inline(always)]
    fn map_p(
        &mut self,
        factors: &[f64; ROWS],
        value: impl Fn(Place<'_>, Lanes<Self, ROWS>, Lanes<Self, ROWS>) -> Lanes<Self, ROWS> + Sync,
    ) {
        self.write_scaled(factors, value);
    }

    #[inline(always)]
    fn pick(&self, classes: &[usize; ROWS]) -> [W; ROWS] {
        let mut logits = [W::ZERO; ROWS];
        for row in 0..self.count {
            logits[row] = self.row(row)[classes[row]];
        }
        logits
    }

    #[inline(always)]
    fn put(&mut self, classes: &[usize; ROWS], values: &[W; ROWS]) {
        let Some(output) = &mut self.output else { return };
        for (row, out) in output.chunks_mut(self.classes).enumerate().take(self.count) {
            out[classes[row]] = values[row];
        }
    }
}

/// Returns exponentials times the factors of their rows.
#[inline(always)]
fn scaled<I: Isa, W: Real>(
    isa: I,
    e: &[W; LANES],
    (first, second): (Option<&[W; LANES]>, &[W; LANES]),
    rows: &[u8; LANES],
) -> [W; LANES] {
    let mut e = W::V::load(isa, e);
    if let Some(first) = first {
        e = e * Vector::spread(isa, first, rows);
    }
    (e * Vector::spread(isa, second, rows)).array()
}

/// The factors of rows, split by [`split_factor`].
struct Split<W> {
    first: [W; ROWS],
    second: [W; ROWS],
    /// Whether a first factor is not 1.
    is_split: bool,
}

impl<W: Exp> Split<W> {
    #[inline(always)]
    fn new(factors: &[f64; ROWS], count: usize) -> Self {
        let (mut first, mut second, mut is_split) = ([W::ONE; ROWS], [W::ONE; ROWS], false);
        for row in 0..ROWS {
            let magnitude = factors[row].abs();
            let is_small = magnitude < W::MIN_NORMAL && magnitude != 0.0;
            is_split |= (row < count) & (is_small | (magnitude > W::LARGEST_NUMBER));
            second[row] = W::of(factors[row]);
        }
        if is_split {
            for row in 0..ROWS {
                [first[row], second[row]] = split_factor(factors[row], 1.0);
            }
        }
        Self { first, second, is_split }
    }
}

/// Returns `e`, and 0 where `LEAVES_OUT` is set and it equals `left_out`.
#[inline(always)]
fn kept<I: Isa, V: Vector<I>, const LEAVES_OUT: bool>(e: V, left_out: V, zero: V) -> V {
    if LEAVES_OUT { e.where_equal(left_out, zero, e) } else { e }
}

/// Transposes sixteen rows of sixteen elements: interleaving the first half of the rows with the
/// second half, four times over.
#[inline(always)]
pub(in crate::cpu) fn transpose<I: Isa, V: Vector<I>>(rows: &mut [V; LANES]) {
    for _ in 0..LANES.ilog2() {
        let from = *rows;
        for at in 0..LANES / 2 {
            (rows[2 * at], rows[2 * at + 1]) = from[at].interleave(from[at + LANES / 2]);
        }
    }
}
