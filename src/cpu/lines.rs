//! Results on their way past the caches. Rows end anywhere, but memory is best written in whole lines, and not in haste: a
//! core that has nothing to do but to write waits for memory. So the results of a group of rows are written, line by
//! line, while the next group's are computed; what is left of a line waits for those.

use super::simd::Isa;
use crate::Element;
use crate::problem::error::try_vec;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
type Line = [u8; LINE];

pub(super) struct Stage<'o, T> {
    /// What is not written yet, from where the first result waits on.
    out: &'o mut [T],
    /// Results, of which the first so many elements are written already and so many wait.
    ready: Vec<T>,
    written: usize,
    waiting: usize,
    /// What is computed now, after so many elements of the group before it.
    next: Vec<T>,
    carried: usize,
}

/// Lines that are to be written meanwhile.
#[derive(Default)]
pub(super) struct Drain<'s> {
    from: &'s [Line],
    to: &'s mut [Line],
}

impl Drain<'_> {
    /// Writes some lines, if there are so many still.
    #[inline(always)]
    pub(super) fn some<I: Isa>(&mut self, isa: I, lines: usize) {
        let lines = lines.min(self.from.len());
        let ((from, from_rest), (to, to_rest)) =
            (self.from.split_at(lines), std::mem::take(&mut self.to).split_at_mut(lines));
        for (from, to) in from.iter().zip(to) {
            // SAFETY: `Stage::parts` starts at a multiple of a line's size.
            unsafe { isa.stream(to.as_mut_ptr(), from) };
        }
        (self.from, self.to) = (from_rest, to_rest);
    }

    /// How many are left.
    pub(super) fn left(&self) -> usize {
        self.from.len()
    }
}

/// Returns the buffers of a stage for so many elements at a time, or `None` where memory is short.
pub(super) fn buffers<T: Element>(elements: usize) -> Option<[Vec<T>; 2]> {
    let buffer = || try_vec("results on their way", elements + LINE / size_of::<T>()).ok();
    Some([buffer()?, buffer()?])
}

impl<'o, T: Element> Stage<'o, T> {
    /// Of a line, or one.
    const STEP: usize = LINE / size_of::<T>();

    /// Results go to the start of `out` and on.
    pub(super) fn new(out: &'o mut [T], [ready, next]: [Vec<T>; 2]) -> Self {
        Self { out, ready, written: 0, waiting: 0, next, carried: 0 }
    }

    /// Where the next elements are to be put, and what can be written until they are there.
    #[inline(always)]
    pub(super) fn parts(&mut self, elements: usize) -> (&mut [T], Drain<'_>) {
        let from = bytemuck::cast_slice(&self.ready[self.written..][..self.waiting]).as_chunks().0;
        let to = bytemuck::cast_slice_mut(&mut self.out[..self.waiting]).as_chunks_mut().0;
        (&mut self.next[self.carried..][..elements], Drain { from, to })
    }

    /// Makes ready what there is now of whole lines, after all but so many lines of what was ready before.
    #[inline(always)]
    pub(super) fn advance<I: Isa>(&mut self, isa: I, left: usize, elements: usize) {
        self.written += self.waiting - left * Self::STEP;
        self.skip(self.waiting - left * Self::STEP);
        self.waiting = left * Self::STEP;
        self.parts(0).1.some(isa, left);
        self.skip(self.waiting);
        let there = self.carried + elements;
        // Nothing but the first of all.
        let head = self.out.as_ptr().align_offset(LINE).min(there);
        self.out[..head].copy_from_slice(&self.next[..head]);
        self.skip(head);
        self.waiting = (there - head) / Self::STEP * Self::STEP;
        self.written = head;
        std::mem::swap(&mut self.ready, &mut self.next);
        self.carried = there - head - self.waiting;
        self.next[..self.carried].copy_from_slice(&self.ready[head + self.waiting..there]);
    }

    fn skip(&mut self, elements: usize) {
        self.out = &mut std::mem::take(&mut self.out)[elements..];
    }

    /// Writes what is left.
    pub(super) fn finish<I: Isa>(mut self, isa: I) {
        self.advance(isa, self.waiting / Self::STEP, 0);
        self.out[..self.carried].copy_from_slice(&self.next[..self.carried]);
        isa.fence();
    }
}
