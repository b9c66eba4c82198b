//! One long row: writes its results, in place, into other memory, or past the caches.
//!
//! `LongRow::write` calls a closure for every vector of logits; `write_scaled` gives it the
//! exponentials too, from those that were held or from the logits. The inner loop is at the end, in
//! `written`.

use super::long::{Held, LongRow, at_class};
use super::read::BLOCK;
use super::{Place, split_factor};
use crate::cpu::simd::{Exp, Isa, LANES, Number, Real, Vector, each};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

impl<I: Isa, Y: LogitTransform, T: Number> LongRow<'_, I, Y, T>
where
    T::Wide: Exp,
{
    /// Writes the elements of the row, piece by piece. `of_piece` gets the number of a piece and
    /// its first class, and makes a closure with the values that are the same for all of it; that
    /// closure gets the place of a vector in the piece and its logits, and returns what replaces
    /// them.
    #[inline(always)]
    pub(super) fn write<F>(&mut self, of_piece: impl Fn(usize, usize) -> F + Sync)
    where
        F: Fn(usize, <T::Wide as Real>::V<I>) -> <T::Wide as Real>::V<I>,
    {
        let (isa, cut, streams, input) = (self.isa, self.cut(), self.streams, self.input);
        let Some(output) = &mut self.output else { return };
        let write = |piece: usize, out: &mut [T]| {
            let class = cut.at(piece);
            let input = input.map(|x| &x[class..][..out.len()]);
            write_piece(isa, input, out, streams, &of_piece, (piece, class));
        };
        let (mut pieces, mut rest) = (Vec::new(), &mut **output);
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
            return;
        }
        for piece in 0..cut.pieces {
            let (out, after) = rest.split_at_mut(cut.piece(piece).len());
            rest = after;
            write(piece, out);
        }
    }

    /// Writes `value` of the place, the logits, and exp(y - log_base) * ratio * factor.
    #[inline(always)]
    pub(super) fn write_scaled(
        &mut self,
        factor: f64,
        value: impl Fn(
            Place<'_>,
            <T::Wide as Real>::V<I>,
            <T::Wide as Real>::V<I>,
        ) -> <T::Wide as Real>::V<I>
        + Sync,
    ) {
        let (isa, transform, value) = (self.isa, self.transform, &value);
        let held = std::mem::take(self.held);
        let Held { exponentials, pieces, holds_row, .. } = &held;
        if *holds_row {
            self.write(
                #[inline(always)]
                |piece, class| {
                    let [first, second] = split_factor::<T::Wide>(factor, pieces[piece].ratio);
                    let first = <T::Wide as Real>::V::splat(isa, first);
                    let second = <T::Wide as Real>::V::splat(isa, second);
                    #[inline(always)]
                    move |at, x| {
                        let place = at_class(class + at);
                        let e: <T::Wide as Real>::V<I> = place.of_element(isa, exponentials);
                        value(place, x, e * first * second)
                    }
                },
            );
        } else {
            self.write(
                #[inline(always)]
                |piece, class| {
                    let [first, second] = split_factor::<T::Wide>(factor, pieces[piece].ratio);
                    let first = <T::Wide as Real>::V::splat(isa, first);
                    let second = <T::Wide as Real>::V::splat(isa, second);
                    let bases = ExpBaseLanes::of_row(isa, &pieces[piece].base);
                    #[inline(always)]
                    move |at, x| {
                        let e = transform.exp_or_infinity(isa, x, &bases);
                        value(at_class(class + at), x, e * first * second)
                    }
                },
            );
        }
        *self.held = held;
    }
}

/// Writes one piece to `out`; its logits are in `input`, or in `out` itself. Not inlined, so that
/// values that are constant over the piece stay in registers.
#[inline(never)]
fn write_piece<I: Isa, T: Number, F>(
    isa: I,
    input: Option<&[T]>,
    out: &mut [T],
    streams: bool,
    of_piece: &impl Fn(usize, usize) -> F,
    (piece, class): (usize, usize),
) where
    F: Fn(usize, <T::Wide as Real>::V<I>) -> <T::Wide as Real>::V<I>,
{
    isa.vectorize(
        #[inline(always)]
        || written(isa, input, out, streams, of_piece(piece, class)),
    );
}

#[inline(always)]
fn written<I: Isa, T: Number>(
    isa: I,
    input: Option<&[T]>,
    out: &mut [T],
    streams: bool,
    value: impl Fn(usize, <T::Wide as Real>::V<I>) -> <T::Wide as Real>::V<I>,
) {
    /// Two vectors are a cache line of half types, and two of f32.
    const PAIR: usize = 2 * LANES;
    debug_assert!(out.len() >= BLOCK, "{} elements", out.len());
    macro_rules! values {
        ($at:expr, $x:expr) => {{
            let (x, _): (&[[T; LANES]], _) = $x.as_chunks();
            let (a, b) = (value($at, T::load(isa, &x[0])), value($at + LANES, T::load(isa, &x[1])));
            each(
                [a, b],
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
