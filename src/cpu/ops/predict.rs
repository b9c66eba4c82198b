//! The classes with the largest logits, and their probabilities. Twins of `shaders/predict.wgsl`
//! and `shaders/top_k.wgsl`.

use crate::Prediction;
use crate::cpu::rows::{ROWS, Rows, Stats};
use crate::cpu::simd::Real;
use crate::cpu::transform::LogitTransform;
use crate::ops::MAX_K;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R) -> [Prediction; ROWS] {
    let stats = rows.reduce(false);
    let mut predictions = [Prediction::default(); ROWS];
    for row in 0..rows.count() {
        predictions[row] = best(rows, &stats, row);
    }
    predictions
}

/// Returns the class of the largest logit of `row`, and its probability.
#[inline(always)]
pub(in crate::cpu) fn best<R: Rows>(rows: &R, stats: &Stats<R::W>, row: usize) -> Prediction {
    // A NaN counts as the largest.
    let nan = if stats.is_regular(row) { None } else { rows.find_where(row, |x| !x.is_number()) };
    let class =
        nan.or_else(|| rows.find(row, rows.transform().orient_one(stats.max[row]))).unwrap_or(0);
    Prediction { class: class as u32, probability: stats.max_probability(row) as f32 }
}

/// Writes the classes of the `out.len()` largest logits of the first row, whose logits are `x`, in
/// descending order; the lower of two classes with equal logits comes first. `out` is no longer
/// than `x`.
#[inline(always)]
pub(in crate::cpu) fn top_row<R: Rows>(rows: &mut R, x: &[R::W], out: &mut [Prediction]) {
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
    let stats = rows.reduce(false);
    for (out, best) in out.chunks_mut(ROWS).zip(best.chunks(ROWS)) {
        let mut logits = [R::W::ZERO; ROWS];
        logits.iter_mut().zip(best).for_each(|(logit, &(x, _))| *logit = transform.orient_one(x));
        // All of these logits are of the first row.
        let terms = rows.terms(&stats.of_row(0), &logits);
        for ((out, &(_, class)), term) in out.iter_mut().zip(best).zip(terms) {
            *out = Prediction { class, probability: (term * stats.inverse_sum(0)) as f32 };
        }
    }
}
