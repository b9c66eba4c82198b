//! Lanes along the row: writes the results of rows, in place, into other memory, or past the
//! caches.
//!
//! `LanesAlongRow::write` calls a closure for every two vectors of logits; `scaled` is the pass of
//! softmax. The inner loop is at the end, in `written`.

use super::lanes_along_row::{Held, LanesAlongRow};
use super::read::BLOCK;
use super::{ROWS, split_factor};
use crate::cpu::lines::CACHE_LINE;
use crate::cpu::simd::{Exp, Isa, LANES, Number, Real, Vector, each};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};

/// Where a piece of a row starts.
#[derive(Clone, Copy)]
pub(super) struct PieceStart {
    pub(super) row: usize,
    pub(super) piece: usize,
    /// The class of its first element.
    pub(super) class: usize,
}

impl<I: Isa, Y: LogitTransform, T: Number> LanesAlongRow<'_, I, Y, T>
where
    T::Wide: Exp,
{
    /// Writes the elements of each row, piece by piece. `of_piece` makes a closure for each piece,
    /// with the values that are the same for all of it; that closure gets the place of two vectors
    /// in the piece and their logits, and returns what replaces them.
    #[inline(always)]
    pub(super) fn write<F>(&mut self, of_piece: impl Fn(PieceStart) -> F + Sync)
    where
        F: Fn(usize, [<T::Wide as Real>::V<I>; 2]) -> [<T::Wide as Real>::V<I>; 2],
    {
        let (isa, classes, cut, streams) = (self.isa, self.classes, self.cut(), self.streams);
        let Some((output, out_stride)) = &mut self.output else { return };
        for row in 0..self.count {
            let mut rest = &mut output[row * *out_stride..][..classes];
            let input = self.input.map(
                #[inline(always)]
                |(x, stride)| &x[row * stride..][..classes],
            );
            if classes < BLOCK {
                write_piece(
                    isa,
                    input,
                    rest,
                    streams,
                    &of_piece,
                    PieceStart { row, piece: 0, class: 0 },
                );
                continue;
            }
            let write = |piece: usize, out: &mut [T]| {
                let class = cut.at(piece);
                let input = input.map(|x| &x[class..][..out.len()]);
                write_piece(isa, input, out, streams, &of_piece, PieceStart { row, piece, class });
            };
            let mut pieces = Vec::new();
            // Where memory is short, threads do not share the row.
            if self.threads_share_rows && pieces.try_reserve_exact(cut.pieces).is_ok() {
                for piece in 0..cut.pieces {
                    let (out, after) = rest.split_at_mut(cut.piece(piece).len());
                    (rest, _) = (after, pieces.push(out));
                }
                threads::for_each(&mut pieces, &|piece, out| {
                    write(piece, out);
                    if streams {
                        isa.fence();
                    }
                });
                continue;
            }
            for piece in 0..cut.pieces {
                let (out, after) = rest.split_at_mut(cut.piece(piece).len());
                rest = after;
                write(piece, out);
            }
        }
    }

    /// Writes exp(y - log_base) * ratio * factor, from the exponentials that were held or from the
    /// logits.
    #[inline(always)]
    pub(super) fn scaled(&mut self, factors: &[f64; ROWS]) {
        let (isa, transform, classes, per_row, is_held) =
            (self.isa, self.transform, self.classes, self.cut().pieces, self.is_held());
        let held = std::mem::take(self.held);
        let Held { exponentials, pieces } = &held;
        if is_held {
            self.write(
                #[inline(always)]
                |start| {
                    let piece = &pieces[start.row * per_row + start.piece];
                    let factors = splat_factors::<I, T::Wide>(isa, factors[start.row], piece.ratio);
                    let held = &exponentials[start.row * classes + start.class..];
                    #[inline(always)]
                    move |at, _| {
                        each(
                            two::<I, T::Wide>(isa, &held[at..]),
                            #[inline(always)]
                            |e| e * factors[0] * factors[1],
                        )
                    }
                },
            );
        } else {
            self.write(
                #[inline(always)]
                |start| {
                    let piece = &pieces[start.row * per_row + start.piece];
                    let factors = splat_factors::<I, T::Wide>(isa, factors[start.row], piece.ratio);
                    let base_lanes = ExpBaseLanes::of_row(isa, &piece.base);
                    #[inline(always)]
                    move |_, x| {
                        each(
                            transform.exp(isa, x, [&base_lanes; 2]),
                            #[inline(always)]
                            |e| e * factors[0] * factors[1],
                        )
                    }
                },
            );
        }
        *self.held = held;
    }
}

#[inline(always)]
pub(super) fn splat_factors<I: Isa, W: Exp>(isa: I, factor: f64, ratio: f64) -> [W::V<I>; 2] {
    let [first, second] = split_factor(factor, ratio);
    [W::V::splat(isa, first), W::V::splat(isa, second)]
}

/// Loads two vectors.
#[inline(always)]
pub(super) fn two<I: Isa, W: Real>(isa: I, x: &[W]) -> [W::V<I>; 2] {
    let (x, _) = x.as_chunks();
    [W::V::load(isa, &x[0]), W::V::load(isa, &x[1])]
}

/// Writes one piece to `out`; its logits are in `input`, or in `out` itself. Not inlined, so that
/// values that are constant over the piece stay in registers.
#[inline(never)]
fn write_piece<I: Isa, T: Number, F>(
    isa: I,
    input: Option<&[T]>,
    out: &mut [T],
    streams: bool,
    of_piece: &impl Fn(PieceStart) -> F,
    start: PieceStart,
) where
    F: Fn(usize, [<T::Wide as Real>::V<I>; 2]) -> [<T::Wide as Real>::V<I>; 2],
{
    isa.vectorize(
        #[inline(always)]
        || written(isa, input, out, streams, of_piece(start)),
    );
}

#[inline(always)]
fn written<I: Isa, T: Number>(
    isa: I,
    input: Option<&[T]>,
    out: &mut [T],
    streams: bool,
    value: impl Fn(usize, [<T::Wide as Real>::V<I>; 2]) -> [<T::Wide as Real>::V<I>; 2],
) {
    const PAIR: usize = 2 * LANES;
    macro_rules! values {
        ($at:expr, $x:expr) => {{
            let (x, _): (&[[T; LANES]], _) = $x.as_chunks();
            let values = value($at, [T::load(isa, &x[0]), T::load(isa, &x[1])]);
            each(
                values,
                #[inline(always)]
                |v| T::store(isa, v),
            )
        }};
    }
    let last = out.len() - PAIR;
    // The number of elements before the first whole line.
    let head = if streams { out.as_ptr().align_offset(CACHE_LINE) } else { 0 };
    let (head, streams) = if head <= last { (head, streams) } else { (0, false) };
    // The last pair, and the first one where whole lines begin after it starts, overlap the pairs
    // between them, so both are computed before anything is written. The loop makes `values!`
    // expand once for both.
    let mut ends = [[[T::default(); LANES]; 2]; 2];
    for (end, at) in ends.iter_mut().zip([last, 0]).take(1 + usize::from(head > 0)) {
        *end = values!(at, input.unwrap_or(out)[at..]);
    }
    let [end, start] = ends;
    if head > 0 {
        // Nothing beyond `head` is copied: a line is written either past the caches or through
        // them.
        out[..head].copy_from_slice(&start.as_flattened()[..head]);
    }
    let (pairs, _) = out[head..].as_chunks_mut::<PAIR>();
    let from = input.map(
        #[inline(always)]
        |x| x[head..].as_chunks::<PAIR>().0,
    );
    // for each pair of vectors:  out[pair] = value(place, x[pair])
    for (nth, out) in pairs.iter_mut().enumerate() {
        let x = match from {
            Some(x) => &x[nth],
            None => &*out,
        };
        let values = values!(head + nth * PAIR, x);
        let (out, _) = out.as_chunks_mut::<LANES>();
        for at in 0..2 {
            if streams {
                // SAFETY: `out[head]` is at the start of a cache line, and this is whole vectors
                // after it.
                unsafe { T::stream(isa, &mut out[at], values[at]) };
            } else {
                out[at] = values[at];
            }
        }
    }
    let rest = (out.len() - head) % PAIR;
    if rest > 0 {
        match out.last_chunk_mut::<PAIR>() {
            Some(out) if !streams => out.copy_from_slice(end.as_flattened()),
            _ => out[last + PAIR - rest..].copy_from_slice(&end.as_flattened()[PAIR - rest..]),
        }
    }
}
