//! Rows whose classes lie side by side: lanes hold neighbouring classes of one row.
//!
//! A row is cut into pieces that stay in a core's caches, each with an anchor of its own, so that it comes from memory once
//! however long it is, while what comes next is asked for. Pieces are joined in order. So the bits of a row depend on
//! neither whose thread takes which piece, nor on whether exponentials were held or computed again.

use super::{Rows, Stats};
use crate::cpu::curve::{About, Kind};
use crate::cpu::simd::{Anchor, Exp, Isa, LANES, Number, Real, Vector, each, exp, prefetch};

/// Vectors that are added as a tree before f64 is brought in, and their elements.
const TREE: usize = 8;
const BLOCK: usize = TREE * LANES;
/// Elements of a piece.
pub(in crate::cpu) const PIECE: usize = 8192;
/// Exponentials that are kept from one pass to the next, in elements: they share a core's second cache with the logits.
pub(in crate::cpu) const HELD: usize = 1 << 17;

/// A part of a row, reduced.
#[derive(Clone, Copy, Default)]
pub(in crate::cpu) struct Piece<W> {
    max: W,
    anchor: Anchor<W>,
    /// Of the largest logit.
    top_term: f64,
    others: f64,
    /// The unit of the piece in that of the row.
    ratio: W,
}

/// Memory of a thread.
#[derive(Default)]
pub(in crate::cpu) struct Held<W> {
    exponentials: Vec<W>,
    pieces: Vec<Piece<W>>,
}

/// Up to sixteen rows.
pub(in crate::cpu) struct Across<'a, I, K, T: Number> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) kind: K,
    pub(in crate::cpu) classes: usize,
    pub(in crate::cpu) count: usize,
    /// The logits, unless they stand where results go, and from row to row.
    pub(in crate::cpu) input: Option<(&'a [T], usize)>,
    pub(in crate::cpu) output: Option<(&'a mut [T], usize)>,
    /// Whether results are written past the caches.
    pub(in crate::cpu) streams: bool,
    /// Whether threads share the row.
    pub(in crate::cpu) is_shared: bool,
    pub(in crate::cpu) held: &'a mut Held<T::Wide>,
}

impl<I: Isa, K: Kind, T: Number> Across<'_, I, K, T>
where
    T::Wide: Exp,
{
    #[inline(always)]
    fn row(&self, row: usize) -> &[T] {
        let (x, stride) = match (&self.input, &self.output) {
            (Some((x, stride)), _) => (*x, *stride),
            (None, Some((x, stride))) => (&**x, *stride),
            (None, None) => (&[][..], 0),
        };
        &x[row * stride..][..self.classes]
    }

    fn pieces(&self) -> usize {
        self.classes.div_ceil(PIECE)
    }

    /// Whether the exponentials of all rows are kept.
    fn is_held(&self) -> bool {
        self.held.exponentials.len() == self.count * self.classes
    }

    #[inline(always)]
    fn piece(&self, x: &[T], held: &mut [T::Wide], ahead: usize) -> Piece<T::Wide> {
        let max = self.max(x);
        let anchor = self.kind.anchor(max);
        let about = About::of_row(self.isa, &anchor);
        let [terms] = self.kind.exp(self.isa, [Vector::splat(self.isa, self.kind.in_order_one(max))], &about);
        let top_term = terms.array()[0].into();
        let others = self.others(x, &about, max, top_term, held, ahead);
        Piece { max, anchor, top_term, others, ratio: T::Wide::ONE }
    }

    /// The largest logit in order, NaN left out.
    #[inline(always)]
    fn max(&self, x: &[T]) -> T::Wide {
        let Self { isa, kind, .. } = *self;
        let mut best = [<T::Wide as Real>::V::splat(isa, T::Wide::NEG_INFINITY); 4];
        let (vectors, rest) = x.as_chunks::<LANES>();
        let (fours, singles) = vectors.as_chunks::<4>();
        for four in fours {
            for (best, x) in best.iter_mut().zip(four) {
                *best = kind.in_order::<I, T::Wide>(isa, T::load(isa, x)).larger(*best);
            }
        }
        for x in singles {
            best[0] = kind.in_order::<I, T::Wide>(isa, T::load(isa, x)).larger(best[0]);
        }
        if !rest.is_empty() {
            best[1] = kind.in_order::<I, T::Wide>(isa, T::load(isa, &self.padded(rest))).larger(best[1]);
        }
        let best = best[0].larger(best[1]).larger(best[2].larger(best[3])).array();
        fold(best, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn padded(&self, x: &[T]) -> [T; LANES] {
        let mut padded = [self.kind.last(); LANES];
        padded[..x.len()].copy_from_slice(x);
        padded
    }

    /// The sum of all exponentials but one of the largest; where `held` is not empty it gets them all.
    #[inline(always)]
    fn others(
        &self,
        x: &[T],
        about: &About<T::Wide, I>,
        max: T::Wide,
        top_term: f64,
        held: &mut [T::Wide],
        ahead: usize,
    ) -> f64 {
        let Self { isa, kind, .. } = *self;
        let holds = !held.is_empty();
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        let at_most = x.len() - rest.len();
        let (held_blocks, held_rest) = held.split_at_mut(if holds { at_most } else { 0 });
        let top_at = if blocks.is_empty() { None } else { self.position(&x[..at_most], kind.in_order_one(max)) };
        let (top_block, top_place) = top_at.map_or((usize::MAX, 0), |at| (at / BLOCK, at % BLOCK));
        let mut sums = I::F64::splat(isa, 0.0);
        for (nth, block) in blocks.iter().enumerate() {
            let (vectors, _) = block.as_chunks::<LANES>();
            let mut e = [<T::Wide as Real>::V::splat(isa, T::Wide::ZERO); TREE];
            for pair in 0..TREE / 2 {
                let at = 2 * pair;
                prefetch(vectors[at].as_ptr().wrapping_add(ahead));
                if size_of::<[T; LANES]>() >= 64 {
                    prefetch(vectors[at + 1].as_ptr().wrapping_add(ahead));
                }
                let x = [T::load(isa, &vectors[at]), T::load(isa, &vectors[at + 1])];
                [e[at], e[at + 1]] = kind.exp(isa, x, about);
            }
            if holds {
                let (vectors, _) = held_blocks[nth * BLOCK..][..BLOCK].as_chunks_mut::<LANES>();
                for (held, e) in vectors.iter_mut().zip(e) {
                    *held = e.array();
                }
            }
            if nth == top_block {
                e = without::<I, T::Wide>(isa, e, top_place);
            }
            let tree = ((e[0] + e[1]) + (e[2] + e[3])) + ((e[4] + e[5]) + (e[6] + e[7]));
            sums = sums + tree.wide(isa);
        }
        // The rest has its largest left out, however often it is there, and they are counted.
        let all = |value| <T::Wide as Real>::V::splat(isa, value);
        let (zero, one, top) = (all(T::Wide::ZERO), all(T::Wide::ONE), all(kind.in_order_one(max)));
        let (mut sum, mut count) = (zero, zero);
        macro_rules! add {
            ($x:expr, $length:expr, $held:expr) => {
                let (x, length) = (T::load(isa, $x), $length);
                let [mut e] = kind.exp(isa, [x], about);
                let mut is_top = x.where_equal(top, one, zero);
                if length < LANES {
                    (e, is_top) = (first::<I, T::Wide>(isa, e, length), first::<I, T::Wide>(isa, is_top, length));
                }
                if holds {
                    $held.copy_from_slice(&e.array()[..length]);
                }
                sum = sum + x.where_equal(top, zero, e);
                count = count + is_top;
            };
        }
        let (vectors, last) = rest.as_chunks::<LANES>();
        for (nth, x) in vectors.iter().enumerate() {
            prefetch(x.as_ptr().wrapping_add(ahead));
            add!(x, LANES, held_rest[nth * LANES..][..LANES]);
        }
        if !last.is_empty() {
            add!(&self.padded(last), last.len(), held_rest[vectors.len() * LANES..]);
        }
        let sum = fold((sums + sum.wide(isa)).array(), |a, b| a + b);
        let count: f64 = fold(count.array(), |a, b| T::Wide::of(a.into() + b.into())).into();
        let extra = if top_at.is_some() { count } else { count - 1.0 };
        sum + extra * top_term
    }

    /// Where a logit is first, in whole blocks.
    #[inline(always)]
    fn position(&self, x: &[T], logit: T::Wide) -> Option<usize> {
        let isa = self.isa;
        let top = Vector::splat(isa, logit);
        let (fours, _) = x.as_chunks::<{ 4 * LANES }>();
        let four = fours.iter().position(
            #[inline(always)]
            |four| {
                let (vectors, _) = four.as_chunks::<LANES>();
                let equal = |nth: usize| T::load(isa, &vectors[nth]).has_equal(top);
                equal(0) | equal(1) | equal(2) | equal(3)
            },
        )?;
        let start = four * 4 * LANES;
        Some(start + x[start..].iter().position(|x| x.widen() == logit)?)
    }

    /// Writes the elements of each row, piece by piece: of two vectors of logits, what stands in their places. The
    /// closure also gets the row, which piece of it, and where in the row it is, and how many elements there are.
    #[inline(always)]
    fn write(
        &mut self,
        value: impl Fn(&Held<T::Wide>, Place, [<T::Wide as Real>::V<I>; 2]) -> [<T::Wide as Real>::V<I>; 2] + Sync,
    ) {
        let Self { isa, classes, count, input, output, streams, is_shared, .. } = self;
        let (isa, classes, streams) = (*isa, *classes, *streams);
        let held = &*self.held;
        let Some((output, out_stride)) = output else { return };
        for row in 0..*count {
            let out = &mut output[row * *out_stride..][..classes];
            let input = input.as_ref().map(|&(x, stride)| &x[row * stride..][..classes]);
            macro_rules! work {
                ($nth:expr, $out:expr) => {{
                    let (nth, out): (usize, &mut [T]) = ($nth, $out);
                    let start = nth * PIECE;
                    write_piece(
                        isa,
                        input.map(
                            #[inline(always)]
                            |x| &x[start..][..out.len()],
                        ),
                        out,
                        streams,
                        #[inline(always)]
                        |at, length, x| value(held, Place { row, piece: nth, class: start + at, length }, x),
                    );
                }};
            }
            #[cfg(feature = "parallel")]
            if *is_shared {
                use rayon::prelude::*;
                let pieces = out.par_chunks_mut(PIECE).enumerate();
                pieces.for_each(|(nth, out)| {
                    isa.vectorize(
                        #[inline(always)]
                        || work!(nth, out),
                    )
                });
                continue;
            }
            let _ = &is_shared;
            for (nth, out) in out.chunks_mut(PIECE).enumerate() {
                work!(nth, out);
            }
        }
    }

    /// Of a piece of a row the sum of a value.
    #[inline(always)]
    fn sum(&self, row: usize, nth: usize, x: &[T], value: &impl Fn(usize, usize, T::Wide) -> f64) -> f64 {
        let mut lanes = [0.0; LANES];
        let (vectors, rest) = x.as_chunks::<LANES>();
        for (at, x) in vectors.iter().enumerate() {
            let class = nth * PIECE + at * LANES;
            let x = T::load(self.isa, x).array();
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += value(row, class + lane, x[lane]);
            }
        }
        let class = nth * PIECE + vectors.len() * LANES;
        for (lane, (sum, x)) in lanes.iter_mut().zip(rest).enumerate() {
            *sum += value(row, class + lane, x.widen());
        }
        fold(lanes, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(&self) -> [T::Wide; LANES] {
        let mut maxima = [T::Wide::NEG_INFINITY; LANES];
        for row in 0..self.count {
            maxima[row] = self.max(self.row(row));
        }
        maxima
    }

    #[inline(always)]
    fn reduced(&mut self, hold: bool) -> Stats<T::Wide> {
        let (count, classes, per_row) = (self.count, self.classes, self.pieces());
        let Held { mut exponentials, mut pieces } = std::mem::take(self.held);
        let holds = hold && !self.is_shared && count * classes <= HELD;
        exponentials.resize(if holds { count * classes } else { 0 }, T::Wide::ZERO);
        pieces.clear();
        pieces.resize(count * per_row, Piece::default());
        let mut max = [T::Wide::NEG_INFINITY; LANES];
        let mut anchors = [Anchor::default(); LANES];
        let (mut top_terms, mut others) = ([1.0; LANES], [0.0; LANES]);
        if per_row == 1 {
            // Rows one step after the other, for none has to wait for its own.
            max = self.largest();
            anchors = each(max, #[inline(always)] |max| self.kind.anchor(max));
            let tops = each(max, #[inline(always)] |max| self.kind.in_order_one(max));
            let about = About::of_rows(self.isa, &anchors);
            let [terms] = self.kind.exp(self.isa, [Vector::load(self.isa, &tops)], &about);
            top_terms = each(terms.array(), #[inline(always)] |term| term.into());
            for row in 0..count {
                let about = About::of_row(self.isa, &anchors[row]);
                let held = if holds { &mut exponentials[row * classes..][..classes] } else { &mut [][..] };
                others[row] = self.others(self.row(row), &about, max[row], top_terms[row], held, count * classes);
                pieces[row] = Piece { max: max[row], anchor: anchors[row], ratio: T::Wide::ONE, ..Piece::default() };
            }
        } else {
            for row in 0..count {
                let x = self.row(row);
                let pieces = &mut pieces[row * per_row..][..per_row];
                #[cfg(feature = "parallel")]
                if self.is_shared {
                    use rayon::prelude::*;
                    let isa = self.isa;
                    pieces.par_iter_mut().zip(x.par_chunks(PIECE)).for_each(|(piece, x)| {
                        *piece = isa.vectorize(
                            #[inline(always)]
                            || self.piece(x, &mut [], PIECE),
                        );
                    });
                }
                if !self.is_shared {
                    let held = if holds { &mut exponentials[row * classes..][..classes] } else { &mut [][..] };
                    let mut held = held.chunks_mut(PIECE);
                    for (piece, x) in pieces.iter_mut().zip(x.chunks(PIECE)) {
                        *piece = self.piece(x, held.next().unwrap_or_default(), PIECE);
                    }
                }
                (max[row], anchors[row], top_terms[row], others[row]) = join(pieces);
            }
        }
        *self.held = Held { exponentials, pieces };
        Stats::new(self.kind, max, anchors, top_terms, others)
    }

    #[inline(always)]
    fn scaled(&mut self, factors: &[f64; LANES]) {
        let (isa, kind, classes, per_row, is_held) = (self.isa, self.kind, self.classes, self.pieces(), self.is_held());
        self.write(
            #[inline(always)]
            |held, place, x| {
                let piece = &held.pieces[place.row * per_row + place.piece];
                let factor = T::Wide::of(factors[place.row] * piece.ratio.into());
                let factor = <T::Wide as Real>::V::splat(isa, factor);
                let e = if is_held {
                    let held = &held.exponentials[place.row * classes + place.class..][..place.length];
                    two::<I, T::Wide>(isa, held)
                } else {
                    kind.exp(isa, x, &About::of_row(isa, &piece.anchor))
                };
                each(e, #[inline(always)] |e| e * factor)
            },
        );
    }
}

/// Where in the rows something is.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    piece: usize,
    class: usize,
    /// Of thirty-two elements so many are there.
    length: usize,
}

impl<I: Isa, K: Kind, T: Number> Rows for Across<'_, I, K, T>
where
    T::Wide: Exp,
{
    type W = T::Wide;
    type K = K;

    fn kind(&self) -> K {
        self.kind
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn get(&self, row: usize, class: usize) -> T::Wide {
        self.row(row)[class].widen()
    }

    #[inline(always)]
    fn first(&self, row: usize, holds: impl Fn(T::Wide) -> bool) -> Option<usize> {
        self.row(row).iter().position(|x| holds(x.widen()))
    }

    #[inline(always)]
    fn place(&self, row: usize, logit: T::Wide) -> Option<usize> {
        let x = self.row(row);
        let (whole, rest) = x.split_at(x.len() - x.len() % BLOCK);
        self.position(whole, logit).or_else(|| Some(whole.len() + rest.iter().position(|x| x.widen() == logit)?))
    }

    #[inline(never)]
    fn maxima(&self) -> [T::Wide; LANES] {
        self.isa.vectorize(
            #[inline(always)]
            || self.largest(),
        )
    }

    #[inline(never)]
    fn reduce(&mut self, hold: bool) -> Stats<T::Wide> {
        self.isa.vectorize(
            #[inline(always)]
            || self.reduced(hold),
        )
    }

    fn terms(&self, stats: &Stats<T::Wide>, logits: &[T::Wide; LANES]) -> [f64; LANES] {
        stats.terms(self.isa, self.kind, logits)
    }

    #[inline(always)]
    fn sums(&self, value: impl Fn(usize, usize, T::Wide) -> f64 + Sync) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        for (row, sum) in sums.iter_mut().enumerate().take(self.count) {
            #[cfg(feature = "parallel")]
            if self.is_shared {
                use rayon::prelude::*;
                let isa = self.isa;
                let pieces = self.row(row).par_chunks(PIECE).enumerate();
                let pieces: Vec<f64> = pieces
                    .map(|(nth, x)| {
                        isa.vectorize(
                            #[inline(always)]
                            || self.sum(row, nth, x, &value),
                        )
                    })
                    .collect();
                *sum = pieces.iter().sum();
                continue;
            }
            for (nth, x) in self.row(row).chunks(PIECE).enumerate() {
                *sum += self.sum(row, nth, x, &value);
            }
        }
        sums
    }

    #[inline(never)]
    fn scale(&mut self, _: &Stats<T::Wide>, factors: &[f64; LANES]) {
        self.isa.vectorize(
            #[inline(always)]
            || self.scaled(factors),
        );
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(usize, usize, T::Wide) -> T::Wide + Sync) {
        let isa = self.isa;
        self.write(
            #[inline(always)]
            |_, Place { row, class, length, .. }, x| {
                let mut x: [[T::Wide; LANES]; 2] = each(x, #[inline(always)] |x| x.array());
                let x_all = x.as_flattened_mut();
                if length == 2 * LANES {
                    x_all.iter_mut().enumerate().for_each(|(at, x)| *x = value(row, class + at, *x));
                } else {
                    x_all.iter_mut().enumerate().take(length).for_each(|(at, x)| *x = value(row, class + at, *x));
                }
                each(x, #[inline(always)] |x| Vector::load(isa, &x))
            },
        );
    }

    #[inline(always)]
    fn map_with(&mut self, stats: &Stats<T::Wide>, value: impl Fn(usize, usize, T::Wide, T::Wide) -> T::Wide + Sync) {
        let _ = stats;
        let (isa, kind, classes, per_row, is_held) = (self.isa, self.kind, self.classes, self.pieces(), self.is_held());
        self.write(
            #[inline(always)]
            |held, Place { row, piece, class, length }, x| {
                let piece = &held.pieces[row * per_row + piece];
                let e = if is_held {
                    two::<I, T::Wide>(isa, &held.exponentials[row * classes + class..][..length])
                } else {
                    kind.exp(isa, x, &About::of_row(isa, &piece.anchor))
                };
                let ratio = <T::Wide as Real>::V::splat(isa, piece.ratio);
                let e = each(e, #[inline(always)] |e| (e * ratio).array());
                let mut x: [[T::Wide; LANES]; 2] = each(x, #[inline(always)] |x| x.array());
                let (x_all, e_all) = (x.as_flattened_mut(), e.as_flattened());
                if length == 2 * LANES {
                    for at in 0..2 * LANES {
                        x_all[at] = value(row, class + at, x_all[at], e_all[at]);
                    }
                } else {
                    for at in 0..length {
                        x_all[at] = value(row, class + at, x_all[at], e_all[at]);
                    }
                }
                each(x, #[inline(always)] |x| Vector::load(isa, &x))
            },
        );
    }

    #[inline(always)]
    fn set(&mut self, row: usize, class: usize, value: T::Wide) {
        if let Some((output, stride)) = &mut self.output {
            output[row * *stride + class] = T::narrow(value);
        }
    }
}

/// Two vectors, of what there is.
#[inline(always)]
fn two<I: Isa, T: Number>(isa: I, x: &[T]) -> [<T::Wide as Real>::V<I>; 2] {
    if let (&[a, b], []) = x.as_chunks::<LANES>() {
        return [T::load(isa, &a), T::load(isa, &b)];
    }
    let mut padded = [[T::default(); LANES]; 2];
    padded.as_flattened_mut()[..x.len()].copy_from_slice(x);
    [T::load(isa, &padded[0]), T::load(isa, &padded[1])]
}

/// Replaces `out` by what a closure makes of the logits, which stand in `input` or there; it gets their place and number.
#[inline(always)]
fn write_piece<I: Isa, T: Number>(
    isa: I,
    input: Option<&[T]>,
    out: &mut [T],
    streams: bool,
    value: impl Fn(usize, usize, [<T::Wide as Real>::V<I>; 2]) -> [<T::Wide as Real>::V<I>; 2],
) {
    let bytes = size_of::<[T; LANES]>();
    // Up to where whole lines begin.
    let head = if streams { out.as_ptr().align_offset(bytes.min(64)).min(out.len()) } else { 0 };
    macro_rules! some {
        ($at:expr, $out:expr) => {
            let (at, out): (usize, &mut [T]) = ($at, $out);
            let input = match input {
                Some(x) => &x[at..][..out.len()],
                None => &*out,
            };
            let values = value(at, out.len(), two::<I, T>(isa, input));
            let [a, b] = each(values, #[inline(always)] |v| T::store(isa, v));
            out.copy_from_slice(&[a, b].as_flattened()[..out.len()]);
        };
    }
    let (first, rest) = out.split_at_mut(head);
    if !first.is_empty() {
        some!(0, first);
    }
    let (pairs, last) = rest.as_chunks_mut::<{ 2 * LANES }>();
    for (nth, out) in pairs.iter_mut().enumerate() {
        let at = head + nth * 2 * LANES;
        let x: &[T; 2 * LANES] = match input {
            Some(x) => x[at..].first_chunk().unwrap_or(out),
            None => out,
        };
        let (x, _) = x.as_chunks::<LANES>();
        let values = value(at, 2 * LANES, [T::load(isa, &x[0]), T::load(isa, &x[1])]);
        let values = each(values, #[inline(always)] |v| T::store(isa, v));
        let (out, _) = out.as_chunks_mut::<LANES>();
        for (out, values) in out.iter_mut().zip(values) {
            if streams {
                // SAFETY: it is there, and `head` elements after a start that is as aligned as its type.
                unsafe { T::stream(isa, out, values) };
            } else {
                *out = values;
            }
        }
    }
    if !last.is_empty() {
        some!(head + pairs.len() * 2 * LANES, last);
    }
}

/// The first elements of a vector, and zeros.
#[inline(always)]
fn first<I: Isa, W: Real>(isa: I, v: W::V<I>, length: usize) -> W::V<I> {
    let mut lanes = v.array();
    lanes[length..].fill(W::ZERO);
    W::V::load(isa, &lanes)
}

/// The vectors with one of their elements made zero.
#[cold]
#[inline(never)]
fn without<I: Isa, W: Real>(isa: I, mut e: [W::V<I>; TREE], place: usize) -> [W::V<I>; TREE] {
    let mut lanes = e[place / LANES].array();
    lanes[place % LANES] = W::ZERO;
    e[place / LANES] = W::V::load(isa, &lanes);
    e
}

/// Sixteen to one, as a tree.
#[inline(always)]
fn fold<W: Copy>(mut lanes: [W; LANES], with: impl Fn(W, W) -> W) -> W {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = with(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

/// Of a row in pieces its maximum with its anchor and exponential, and the sum of the others relative to that unit.
fn join<W: Exp>(pieces: &mut [Piece<W>]) -> (W, Anchor<W>, f64, f64) {
    let mut top = 0;
    for nth in 1..pieces.len() {
        if pieces[nth].max > pieces[top].max {
            top = nth;
        }
    }
    let Piece { max, anchor, top_term, .. } = pieces[top];
    let mut others = 0.0;
    for (nth, piece) in pieces.iter_mut().enumerate() {
        let ratio = exp(piece.anchor.unit - anchor.unit);
        // What was left out of this piece is one of the others but where the row's maximum is.
        let left_out = if nth == top { 0.0 } else { piece.top_term };
        others += (piece.others + left_out) * ratio;
        piece.ratio = W::of(ratio);
    }
    (max, anchor, top_term, others)
}
