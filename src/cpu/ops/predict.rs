//! The classes with the largest logits, and their probabilities. Counterparts of
//! `shaders/predict.wgsl` and `shaders/top_k.wgsl`.

use crate::Prediction;
use crate::cpu::rows::{ROWS, Rows, Stats, Wanted};
use crate::cpu::simd::{LANES, Real, Vector};
use crate::cpu::transform::LogitTransform;
use crate::ops::MAX_K;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(rows: &mut R) -> [Prediction; N] {
    let stats = rows.reduce(Wanted::Class);
    let mut predictions = [Prediction::default(); N];
    for row in 0..rows.count() {
        predictions[row] = best(rows, &stats, row);
    }
    predictions
}

/// Returns the class of the largest logit of `row`, and its probability. The statistics have the
/// classes of the maxima.
#[inline(always)]
pub(in crate::cpu) fn best<R: Rows<N>, const N: usize>(
    rows: &R,
    stats: &Stats<R::W, N>,
    row: usize,
) -> Prediction {
    // A NaN counts as the largest.
    let nan = if stats.is_regular(row) { None } else { rows.find_nan(row) };
    let class = nan.unwrap_or(stats.classes[row]);
    Prediction { class: class as u32, probability: stats.max_probability(row) as f32 }
}

/// Writes the classes of the `out.len()` largest logits of the first row, whose logits are `x`, in
/// descending order; the lower of two classes with equal logits comes first. `out` is no longer
/// than `x`.
///
/// ```text
/// for each class:           where x is above the worst of best: insert (x, class) into best, by x
/// for each 16 of the best:  p = exp(y - log_base) / sum
/// ```
#[inline(always)]
pub(in crate::cpu) fn top_row<R: Rows<N>, const N: usize>(
    rows: &mut R,
    x: &[R::W],
    out: &mut [Prediction],
) {
    let transform = rows.transform();
    // The logits and classes that have been found so far, best first. NaN counts as the largest.
    let mut best = [(R::W::ZERO, 0); MAX_K];
    let (k, mut found) = (out.len().min(MAX_K), 0);
    let is_above = |a: R::W, b: R::W| a > b || (!a.is_number() && b.is_number());
    for (nth, chunk) in x.chunks(ROWS).enumerate() {
        // Most chunks have no logit among the best.
        if found == k
            && !chunk
                .iter()
                .fold(false, |any, &x| any | is_above(transform.orient_one(x), best[k - 1].0))
        {
            continue;
        }
        for (lane, &x) in chunk.iter().enumerate() {
            let x = transform.orient_one(x);
            if found == k && !is_above(x, best[k - 1].0) {
                continue;
            }
            // The place of a new class is mostly near the end.
            let mut at = found.min(k - 1);
            while at > 0 && is_above(x, best[at - 1].0) {
                best[at] = best[at - 1];
                at -= 1;
            }
            best[at] = (x, (nth * ROWS + lane) as u32);
            found = k.min(found + 1);
        }
    }
    let stats = rows.reduce(Wanted::Rest { keeps: false });
    for (out, best) in out.chunks_mut(LANES).zip(best.chunks(LANES)) {
        let mut logits = [R::W::ZERO; LANES];
        logits.iter_mut().zip(best).for_each(|(logit, &(x, _))| *logit = transform.orient_one(x));
        // All of these logits are of the first row.
        let terms = rows.terms_of_first(Vector::load(rows.isa(), &logits)).array();
        for ((out, &(_, class)), term) in out.iter_mut().zip(best).zip(terms) {
            *out = Prediction { class, probability: (term.into() * stats.inverse_sum(0)) as f32 };
        }
    }
}
