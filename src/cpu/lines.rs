//! A line buffer writes results to memory past the caches, in whole cache lines.
//!
//! Rows end anywhere, but stores past the caches are fast only as whole lines, and a core that only
//! writes waits for memory. So the results of one group of rows are kept in a buffer, and are
//! written line by line while the next group is computed:
//!
//! ```text
//! for each group of rows:
//!     (space, pending) = buffer.next_group()
//!     compute the group into `space`, writing some `pending` lines of the group before it
//!     buffer.advance()          // writes the rest of them, and makes this group's lines pending
//! buffer.finish()               // writes the last lines, and the last part of a line
//! ```
//!
//! The part of a line that a group ends with is carried over to the start of the next group.

use super::simd::Isa;
use crate::Element;
use crate::problem::error::try_vec;

/// Bytes of a cache line.
pub(super) const CACHE_LINE: usize = 64;
type CacheLine = [u8; CACHE_LINE];

pub(super) struct LineBuffer<'o, T> {
    /// The part of the output that is not written yet.
    out: &'o mut [T],
    /// The results of the last group: `written` elements, which have been written, then `waiting`
    /// elements of whole lines, which have not.
    ready: Vec<T>,
    written: usize,
    waiting: usize,
    /// The results of the group that is computed now, after `carried` elements of the group before
    /// it.
    next: Vec<T>,
    carried: usize,
}

/// Whole lines of the last group, and where they are to be written while the next group is
/// computed.
#[derive(Default)]
pub(super) struct PendingLines<'s> {
    from: &'s [CacheLine],
    to: &'s mut [CacheLine],
}

impl PendingLines<'_> {
    /// Writes the next `lines` lines, or as many as remain.
    #[inline(always)]
    pub(super) fn write_some<I: Isa>(&mut self, isa: I, lines: usize) {
        let lines = lines.min(self.from.len());
        let ((from, from_rest), (to, to_rest)) =
            (self.from.split_at(lines), std::mem::take(&mut self.to).split_at_mut(lines));
        for (from, to) in from.iter().zip(to) {
            // SAFETY: `LineBuffer::next_group` starts at a multiple of a line's size.
            unsafe { isa.stream(to.as_mut_ptr(), from) };
        }
        (self.from, self.to) = (from_rest, to_rest);
    }

    /// Returns how many lines have not been written yet.
    pub(super) fn remaining(&self) -> usize {
        self.from.len()
    }
}

/// Returns the two buffers of a [`LineBuffer`] for groups of up to `elements`, or `None` where
/// memory is short.
pub(super) fn buffers<T: Element>(elements: usize) -> Option<[Vec<T>; 2]> {
    let buffer = || try_vec("results on their way", elements + CACHE_LINE / size_of::<T>()).ok();
    Some([buffer()?, buffer()?])
}

impl<'o, T: Element> LineBuffer<'o, T> {
    /// The elements of a line.
    const LINE_ELEMENTS: usize = CACHE_LINE / size_of::<T>();

    /// Returns a line buffer that writes to `out` from its start on.
    pub(super) fn new(out: &'o mut [T], [ready, next]: [Vec<T>; 2]) -> Self {
        Self { out, ready, written: 0, waiting: 0, next, carried: 0 }
    }

    /// Returns the space for the next `elements` results, and the lines that can be written
    /// meanwhile.
    #[inline(always)]
    pub(super) fn next_group(&mut self, elements: usize) -> (&mut [T], PendingLines<'_>) {
        let from = bytemuck::cast_slice(&self.ready[self.written..][..self.waiting]).as_chunks().0;
        let to = bytemuck::cast_slice_mut(&mut self.out[..self.waiting]).as_chunks_mut().0;
        (&mut self.next[self.carried..][..elements], PendingLines { from, to })
    }

    /// Writes the `remaining` lines of the last group, and makes the whole lines of the group of
    /// `elements` that has just been computed the pending ones.
    #[inline(always)]
    pub(super) fn advance<I: Isa>(&mut self, isa: I, remaining: usize, elements: usize) {
        self.written += self.waiting - remaining * Self::LINE_ELEMENTS;
        self.skip_output(self.waiting - remaining * Self::LINE_ELEMENTS);
        self.waiting = remaining * Self::LINE_ELEMENTS;
        self.next_group(0).1.write_some(isa, remaining);
        self.skip_output(self.waiting);
        let there = self.carried + elements;
        // Only the first group can start before a line does.
        let head = self.out.as_ptr().align_offset(CACHE_LINE).min(there);
        self.out[..head].copy_from_slice(&self.next[..head]);
        self.skip_output(head);
        self.waiting = (there - head) / Self::LINE_ELEMENTS * Self::LINE_ELEMENTS;
        self.written = head;
        std::mem::swap(&mut self.ready, &mut self.next);
        self.carried = there - head - self.waiting;
        self.next[..self.carried].copy_from_slice(&self.ready[head + self.waiting..there]);
    }

    fn skip_output(&mut self, elements: usize) {
        self.out = &mut std::mem::take(&mut self.out)[elements..];
    }

    /// Writes all lines that are left, and the part of a line at the end.
    pub(super) fn finish<I: Isa>(mut self, isa: I) {
        self.advance(isa, self.waiting / Self::LINE_ELEMENTS, 0);
        self.out[..self.carried].copy_from_slice(&self.next[..self.carried]);
        isa.fence();
    }
}
