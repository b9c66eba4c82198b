//! One long row: writes its results, in place, into other memory, or past the caches.
//!
//! `LongRow::write` calls a closure for every vector of logits; `write_scaled` gives it the
//! exponentials too, from those that were kept or from the logits. The inner loop is at the end, in
//! `written`.

use std::mem::MaybeUninit;

use super::long::{BLOCK, LONGEST_PIECE, LongRow, LongScratch, Piece, at_class};
use super::{Place, split_factor};
use crate::cpu::simd::{CACHE_LINE, Exp, Isa, LANES, Vector};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};
use crate::problem::dtype::{Elements, ElementsMut};

impl<I: Isa, Y: LogitTransform, W: Exp> LongRow<'_, I, Y, W> {
    /// Writes the elements of the row, piece by piece. `of_piece` gets the number of a piece and
    /// its first class, and makes a closure with the values that are the same for all of it; that
    /// closure gets the place of a vector in the piece and its logits, and returns what replaces
    /// them.
    #[inline(always)]
    pub(super) fn write<F>(&mut self, of_piece: impl Fn(usize, usize) -> F + Sync)
    where
        F: Fn(usize, W::V<I>) -> W::V<I>,
    {
        let (isa, cut, streams, input) = (self.isa, self.cut(), self.streams, self.input);
        let Some(output) = &mut self.output else { return };
        let write = |piece: usize, out: ElementsMut<'_>| {
            let class = cut.at(piece);
            let input = input.map(|x| x.range(cut.piece(piece)));
            write_piece::<I, W, F>(isa, input, out, streams, &of_piece, (piece, class));
        };
        let (mut pieces, mut rest) = (Vec::new(), output.reborrow());
        // Where memory is short, threads do not share the row.
        if self.threads_share_rows && pieces.try_reserve_exact(cut.pieces).is_ok() {
            for piece in 0..cut.pieces {
                let (out, after) = rest.split_at(cut.piece(piece).len());
                (rest, _) = (after, pieces.push(out));
            }
            threads::for_each(&mut pieces, &|piece, out| {
                write(piece, out.reborrow());
                if streams {
                    isa.fence();
                }
            });
            return;
        }
        for piece in 0..cut.pieces {
            let (out, after) = rest.split_at(cut.piece(piece).len());
            rest = after;
            write(piece, out);
        }
    }

    /// Writes `value` of the place, the logits, and exp(y - log_base) * ratio * factor.
    #[inline(always)]
    pub(super) fn write_scaled(
        &mut self,
        factor: f64,
        value: impl Fn(Place<'_>, W::V<I>, W::V<I>) -> W::V<I> + Sync,
    ) {
        let (isa, transform, value) = (self.isa, self.transform, &value);
        let scratch = std::mem::take(self.scratch);
        let LongScratch { exponentials, pieces, keeps_row, .. } = &scratch;
        self.write(
            #[inline(always)]
            |piece, class| {
                let Piece { base, ratio, .. } = &pieces[piece];
                let [first, second] = split_factor::<W>(factor, *ratio);
                let first = W::V::splat(isa, first);
                let second = W::V::splat(isa, second);
                let bases = ExpBaseLanes::of_row(isa, base);
                #[inline(always)]
                move |at, x| {
                    let place = at_class(class + at);
                    let e = if *keeps_row {
                        place.of_element(isa, exponentials)
                    } else {
                        transform.exp_or_infinity(isa, x, &bases)
                    };
                    value(place, x, e * first * second)
                }
            },
        );
        *self.scratch = scratch;
    }
}

/// Writes one piece to `out`; its logits are in `input`, or in `out` itself. Those of half types
/// are computed in a converted copy.
fn write_piece<I: Isa, W: Exp, F>(
    isa: I,
    input: Option<Elements<'_>>,
    out: ElementsMut<'_>,
    streams: bool,
    of_piece: &impl Fn(usize, usize) -> F,
    (piece, class): (usize, usize),
) where
    F: Fn(usize, W::V<I>) -> W::V<I>,
{
    if out.dtype() == W::DTYPE {
        let input = input.and_then(W::of_elements);
        let Some(out) = W::of_elements_mut(out) else { return };
        write_wide::<I, W, F>(isa, input, out, streams, of_piece, (piece, class));
    } else {
        let mut buffer = [const { MaybeUninit::uninit() }; LONGEST_PIECE];
        let x = W::widen_halves(isa, input.unwrap_or(out.as_read()), &mut buffer);
        write_wide::<I, W, F>(isa, None, x, false, of_piece, (piece, class));
        W::narrow_to_halves(isa, x, out, streams);
    }
}

/// Writes one piece of the type that rows are computed in. Not inlined, so that values that are
/// constant over the piece stay in registers.
#[inline(never)]
fn write_wide<I: Isa, W: Exp, F>(
    isa: I,
    input: Option<&[W]>,
    out: &mut [W],
    streams: bool,
    of_piece: &impl Fn(usize, usize) -> F,
    (piece, class): (usize, usize),
) where
    F: Fn(usize, W::V<I>) -> W::V<I>,
{
    isa.vectorize(
        #[inline(always)]
        || written(isa, input, out, streams, of_piece(piece, class)),
    );
}

#[inline(always)]
fn written<I: Isa, W: Exp>(
    isa: I,
    input: Option<&[W]>,
    out: &mut [W],
    streams: bool,
    value: impl Fn(usize, W::V<I>) -> W::V<I>,
) {
    debug_assert!(out.len() >= BLOCK, "{} elements", out.len());
    macro_rules! value {
        ($at:expr, $x:expr) => {
            value($at, Vector::load(isa, $x)).array()
        };
    }
    let last = out.len() - LANES;
    // The number of elements before the first whole line, which is less than a vector.
    let alignment = size_of::<[W; LANES]>().min(CACHE_LINE);
    let head = if streams { out.as_ptr().align_offset(alignment) } else { 0 };
    let (head, streams) = if head < LANES { (head, streams) } else { (0, false) };
    // The last vector, and the first one where lines begin after it starts, overlap the
    // vectors between them, so both are computed before anything is written. The loop makes
    // `value!` expand once for both.
    let mut ends = [[W::ZERO; LANES]; 2];
    for (end, at) in ends.iter_mut().zip([last, 0]).take(1 + usize::from(head > 0)) {
        let (x, _) = input.unwrap_or(out)[at..][..LANES].as_chunks();
        *end = value!(at, &x[0]);
    }
    let [end, start] = ends;
    if head > 0 {
        // Nothing beyond `head` is copied, for what is written past the caches not to be written
        // through them as well.
        out[..head].copy_from_slice(&start[..head]);
    }
    let (vectors, _) = out[head..].as_chunks_mut::<LANES>();
    let from = input.map(
        #[inline(always)]
        |x| x[head..].as_chunks::<LANES>().0,
    );
    // for each vector:  out[vector] = value(place, x[vector])
    for (nth, out) in vectors.iter_mut().enumerate() {
        let x = match from {
            Some(x) => &x[nth],
            None => &*out,
        };
        let values = value!(head + nth * LANES, x);
        if streams {
            // SAFETY: `out[head]` is at a multiple of a cache line or of a vector, and this is
            // whole vectors after it. `LongRow::write` calls the fence on each thread that shares
            // the row, `RowTask::contiguous_rows` after its last row, and `LongRow::put` before it
            // stores to the row.
            unsafe { W::stream(isa, out, values) };
        } else {
            *out = values;
        }
    }
    let rest = (out.len() - head) % LANES;
    if rest > 0 {
        out[last + LANES - rest..].copy_from_slice(&end[LANES - rest..]);
    }
}
