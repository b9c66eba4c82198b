//! Results on their way past the caches. Rows end anywhere, but memory is best written in whole lines: what is left of one
//! waits for the next rows.

use super::simd::{Isa, LANES, Number};
use crate::Error;
use crate::error::try_vec;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

pub(super) struct Stage<T> {
    buffer: Vec<T>,
    /// How much waits in it.
    filled: usize,
    /// How much of the output is written.
    done: usize,
}

impl<T: Number> Stage<T> {
    /// Elements that are written at once: a line, and whole vectors.
    const STEP: usize = if LINE / size_of::<T>() > LANES { LINE / size_of::<T>() } else { LANES };

    /// For so many elements at a time.
    pub(super) fn new(elements: usize) -> Result<Self, Error> {
        Ok(Self { buffer: try_vec("results on their way", elements + 2 * Self::STEP)?, filled: 0, done: 0 })
    }

    /// Where the next elements are to be put.
    #[inline(always)]
    pub(super) fn next(&mut self, elements: usize) -> &mut [T] {
        &mut self.buffer[self.filled..][..elements]
    }

    /// Writes what there is now of whole lines, of results that start at the start of `out`.
    #[inline(always)]
    pub(super) fn advance<I: Isa>(&mut self, isa: I, out: &mut [T], elements: usize) {
        self.filled += elements;
        let out = &mut out[self.done..][..self.filled];
        // Nothing but the first of all.
        let head = out.as_ptr().align_offset(LINE).min(self.filled);
        let (first, lines) = out.split_at_mut(head);
        first.copy_from_slice(&self.buffer[..head]);
        let whole = lines.len() / Self::STEP * Self::STEP;
        let (to, _) = lines[..whole].as_chunks_mut::<LANES>();
        for (to, from) in to.iter_mut().zip(self.buffer[head..].as_chunks::<LANES>().0) {
            // SAFETY: from the start of a line on, by whole vectors.
            unsafe { T::stream(isa, to, *from) };
        }
        self.buffer.copy_within(head + whole..self.filled, 0);
        self.filled -= head + whole;
        self.done += head + whole;
    }

    /// Writes what is left.
    pub(super) fn finish<I: Isa>(self, isa: I, out: &mut [T]) {
        out[self.done..][..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        isa.fence();
    }
}
