//! Short rows without gaps between them, as one stream of elements.
//!
//! Sixteen rows of `classes` classes are `classes` whole vectors, whatever the number of classes,
//! so exponentials are computed and results are written without idle lanes:
//!
//! ```text
//! for each vector of the stream:  e = exp(y(x) - log_base)               // short_reduce.rs
//! for each row:                   sum, max, rest of the sum               // short_reduce.rs
//! for each vector of the stream:  out = value(x, e, values of its rows)  // write
//! ```
//!
//! A value of each row is spread over the lanes of a vector by a table of the rows of its elements
//! ([`ShortScratch::resize`]). Sums and maxima take the rows one by one, and fold the lanes of
//! sixteen rows together ([`Vector::fold_rows`]).

use super::Place;
use super::{Lanes, ROWS, Rows, Stats, Wanted, split_factor};
use crate::Error;
use crate::cpu::simd::{Exp, Isa, LANES, Real, Vector};
use crate::cpu::transform::{LogitTransform, RowExpBases};
use crate::problem::error::try_reserve;

/// The memory of a thread for short rows.
#[derive(Default)]
pub(in crate::cpu) struct ShortScratch<W> {
    /// The exponentials of the rows, and room for a vector beyond them.
    pub(super) exponentials: Vec<W>,
    /// The row of each lane of the vectors of sixteen rows.
    pub(super) row_of_lane: Vec<[u8; LANES]>,
    /// One element, in a vector that can be reserved without aborting: the exponent bases of the
    /// rows of the last group that needed bases of their own; those of all others are the fixed
    /// base.
    pub(super) bases: Vec<RowExpBases<W, ROWS>>,
    /// Whether the exponentials of the last group are relative to `bases`, else to the fixed base.
    /// The next group then finds its maxima first, instead of exponentials that it would probably
    /// compute again. That decides on the order of the work, not on any bit.
    pub(super) has_own_bases: bool,
}

impl<W: Exp> ShortScratch<W> {
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
pub(in crate::cpu) struct ShortRows<'a, I, Y, W> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) transform: Y,
    pub(in crate::cpu) classes: usize,
    pub(in crate::cpu) count: usize,
    /// The logits; `None` where they are in `output`.
    pub(in crate::cpu) input: Option<&'a [W]>,
    /// The results; `None` where the operation writes no elements.
    pub(in crate::cpu) output: Option<&'a mut [W]>,
    pub(in crate::cpu) scratch: &'a mut ShortScratch<W>,
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
pub(super) fn of_rows(half: usize) -> Place<'static> {
    Place { row: half * LANES, rows: Some(&EACH_ROW), at: 0, class_at: 0 }
}

/// Loads up to sixteen elements, and `fill` into the other lanes.
#[inline(always)]
pub(super) fn load_some<I: Isa, W: Real>(isa: I, x: &[W], fill: W) -> W::V<I> {
    let mut all = [fill; LANES];
    all.iter_mut().zip(x).for_each(|(to, &from)| *to = from);
    Vector::load(isa, &all)
}

/// Calls `work` with the place and the logits of each vector of the stream `x`.
#[inline(always)]
pub(super) fn for_each_vector<I: Isa, W: Real>(
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

impl<I: Isa, Y: LogitTransform, W: Exp> ShortRows<'_, I, Y, W> {
    #[inline(always)]
    pub(super) fn logits(&self) -> &[W] {
        match (&self.input, &self.output) {
            (Some(x), _) => x,
            (None, Some(x)) => x,
            (None, None) => &[],
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[W] {
        &self.logits()[row * self.classes..][..self.classes]
    }

    /// Returns the logits of `row` from class `16 * nth` on, and what is below all logits in lanes
    /// beyond the row.
    #[inline(always)]
    pub(super) fn vector(&self, row: usize, nth: usize) -> W::V<I> {
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

    /// Writes `value` of the place and the logits of each vector.
    #[inline(always)]
    fn write(&mut self, value: impl Fn(Place<'_>, W::V<I>) -> W::V<I>) {
        let (isa, fill) = (self.isa, self.transform.lowest());
        let rows = &self.scratch.row_of_lane;
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
        let rows = &self.scratch.row_of_lane;
        let Some(output) = &mut self.output else { return };
        let half_length = (rows.len() * LANES).max(1);
        let (exponentials, _) = self.scratch.exponentials.as_chunks::<LANES>();
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
        let exponentials = std::mem::take(&mut self.scratch.exponentials);
        self.write(
            #[inline(always)]
            |place, x| {
                let e: W::V<I> = place.of_element(isa, &exponentials);
                let factors: [W::V<I>; 2] = [place.of_row(isa, &first), place.of_row(isa, &second)];
                value(place, x, e * factors[0] * factors[1])
            },
        );
        self.scratch.exponentials = exponentials;
    }
}

impl<I: Isa, Y: LogitTransform, W: Exp> Rows<ROWS> for ShortRows<'_, I, Y, W> {
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
                (self.scratch.bases[0], self.scratch.has_own_bases) = (bases, true);
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
        self.transform.exp::<I, W>(self.isa, logits, &self.bases(place))
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
