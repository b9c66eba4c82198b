//! Across a row: what writes it, whether in place, apart, or past the caches.

use super::ROWS;
use super::across::{Across, Held, PIECE};
use crate::cpu::curve::{About, Kind};
use crate::cpu::simd::{Exp, Isa, LANES, Number, Real, Vector, each};

/// Where in the rows something is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) piece: usize,
    /// Of the first of the elements.
    pub(super) class: usize,
}

impl Place {
    #[inline(always)]
    pub(super) fn new(row: usize, piece: usize, at: usize) -> Self {
        Self { row, piece, class: piece * PIECE + at }
    }
}

impl<I: Isa, K: Kind, T: Number> Across<'_, I, K, T>
where
    T::Wide: Exp,
{
    /// Writes the elements of each row, piece by piece: of two vectors of logits, what stands in their places. The
    /// closure also gets where that is.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        value: impl Fn(&Held<T::Wide>, Place, [<T::Wide as Real>::V<I>; 2]) -> [<T::Wide as Real>::V<I>; 2] + Sync,
    ) {
        let (isa, classes, per_row, streams) = (self.isa, self.classes, self.pieces(), self.streams);
        let held = &*self.held;
        let Some((output, out_stride)) = &mut self.output else { return };
        for row in 0..self.count {
            let mut rest = &mut output[row * *out_stride..][..classes];
            let input = self.input.map(|(x, stride)| &x[row * stride..][..classes]);
            #[cfg(feature = "parallel")]
            if self.is_shared {
                use rayon::prelude::*;
                let (whole, last) = rest.split_at_mut((per_row - 1) * PIECE);
                let pieces = whole.par_chunks_mut(PIECE).chain([last]).enumerate();
                pieces.for_each(|(nth, out)| {
                    let input = input.map(|x| &x[nth * PIECE..][..out.len()]);
                    isa.vectorize(
                        #[inline(always)]
                        || {
                            write_piece(
                                isa,
                                input,
                                out,
                                streams,
                                #[inline(always)]
                                |at, x| value(held, Place::new(row, nth, at), x),
                            );
                            if streams {
                                isa.fence();
                            }
                        },
                    );
                });
                continue;
            }
            for nth in 0..per_row {
                let out = rest;
                let end = if nth + 1 == per_row { out.len() } else { PIECE };
                let (out, after) = out.split_at_mut(end);
                rest = after;
                let input = input.map(
                    #[inline(always)]
                    |x| &x[nth * PIECE..][..out.len()],
                );
                write_piece(
                    isa,
                    input,
                    out,
                    streams,
                    #[inline(always)]
                    |at, x| value(held, Place::new(row, nth, at), x),
                );
            }
        }
    }

    #[inline(always)]
    pub(super) fn scaled(&mut self, factors: &[f64; ROWS]) {
        let (isa, kind, classes, per_row, is_held) = (self.isa, self.kind, self.classes, self.pieces(), self.is_held());
        self.write(
            #[inline(always)]
            |held, place, x| {
                let piece = &held.pieces[place.row * per_row + place.piece];
                let factor = T::Wide::of(factors[place.row] * piece.ratio.into());
                let factor = <T::Wide as Real>::V::splat(isa, factor);
                let e = if is_held {
                    let held = &held.exponentials[place.row * classes + place.class..][..2 * LANES];
                    two::<I, T::Wide>(isa, held)
                } else {
                    kind.exp(isa, x, [&About::of_row(isa, &piece.anchor); 2])
                };
                each(
                    e,
                    #[inline(always)]
                    |e| e * factor,
                )
            },
        );
    }
}

/// Two vectors.
#[inline(always)]
pub(super) fn two<I: Isa, W: Real>(isa: I, x: &[W]) -> [W::V<I>; 2] {
    let (x, _) = x.as_chunks();
    [W::V::load(isa, &x[0]), W::V::load(isa, &x[1])]
}

/// Replaces `out` by what a closure makes of the logits, which stand in `input` or there; it gets their place and number.
#[inline(always)]
fn write_piece<I: Isa, T: Number>(
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
    // The last pair before anything is written, for it may overlap with what comes before it.
    let end = values!(last, input.unwrap_or(out)[last..]);
    // Up to where whole lines begin.
    let head = if streams { out.as_ptr().align_offset(size_of::<[T; LANES]>().min(64)) } else { 0 };
    let (head, streams) = if head <= last { (head, streams) } else { (0, false) };
    if head > 0 {
        let values = values!(0, input.unwrap_or(out));
        out[..PAIR].copy_from_slice(values.as_flattened());
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
    if !(out.len() - head).is_multiple_of(PAIR) {
        out[last..].copy_from_slice(end.as_flattened());
    }
}
