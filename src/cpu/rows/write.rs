//! Across a row: what writes it, whether in place, apart, or past the caches.

use super::lanes_along_row::{Held, LanesAlongRow};
use super::read::BLOCK;
use super::{ROWS, split_factor};
use crate::cpu::lines::CACHE_LINE;
use crate::cpu::simd::{Exp, Isa, LANES, Number, Real, Vector, each};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};

/// A piece of a row.
#[derive(Clone, Copy)]
pub(super) struct PieceStart {
    pub(super) row: usize,
    pub(super) piece: usize,
    /// Of its first element.
    pub(super) class: usize,
}

impl<I: Isa, Y: LogitTransform, T: Number> LanesAlongRow<'_, I, Y, T>
where
    T::Wide: Exp,
{
    /// Writes the elements of each row, piece by piece: of two vectors of logits, what stands in their places. What is
    /// given makes a closure of each piece, with what is the same for all of it; that gets where in the piece they are.
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
                write_piece(isa, input, rest, streams, &of_piece, PieceStart { row, piece: 0, class: 0 });
                continue;
            }
            let write = |piece: usize, out: &mut [T]| {
                let class = cut.at(piece);
                let input = input.map(|x| &x[class..][..out.len()]);
                write_piece(isa, input, out, streams, &of_piece, PieceStart { row, piece, class });
            };
            let mut pieces = Vec::new();
            // Where memory is short, no row is shared.
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

/// Two vectors.
#[inline(always)]
pub(super) fn two<I: Isa, W: Real>(isa: I, x: &[W]) -> [W::V<I>; 2] {
    let (x, _) = x.as_chunks();
    [W::V::load(isa, &x[0]), W::V::load(isa, &x[1])]
}

/// Replaces `out` by what a closure makes of the logits, which stand in `input` or there; it gets their place and them.
/// A function of its own, for what is the same for all to stay in registers.
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
    // Up to where whole lines begin.
    let head = if streams { out.as_ptr().align_offset(CACHE_LINE) } else { 0 };
    let (head, streams) = if head <= last { (head, streams) } else { (0, false) };
    // The last pair, and the first one where whole lines begin after it starts, overlap the pairs between them, so both are computed
    // before anything is written. The loop makes `values!` expand once for both.
    let mut ends = [[[T::default(); LANES]; 2]; 2];
    for (end, at) in ends.iter_mut().zip([last, 0]).take(1 + usize::from(head > 0)) {
        *end = values!(at, input.unwrap_or(out)[at..]);
    }
    let [end, start] = ends;
    if head > 0 {
        // No more than that: a line is written past the caches or into them.
        out[..head].copy_from_slice(&start.as_flattened()[..head]);
    }
    let (pairs, _) = out[head..].as_chunks_mut::<PAIR>();
    let from = input.map(
        #[inline(always)]
        |x| x[head..].as_chunks::<PAIR>().0,
    );
    for (nth, out) in pairs.iter_mut().enumerate() {
        let x = match from {
            Some(x) => &x[nth],
            None => &*out,
        };
        let values = values!(head + nth * PAIR, x);
        let (out, _) = out.as_chunks_mut::<LANES>();
        for at in 0..2 {
            if streams {
                // SAFETY: it is `head` elements and whole vectors after a start that is as aligned as its type.
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
