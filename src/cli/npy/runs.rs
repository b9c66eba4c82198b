//! Where the elements of a part of an array are, in its file and in memory.

use std::ops::Range;

/// A part of an array as runs of elements that follow each other in the file. In memory the part is in C order, and the elements of a run are
/// `step` apart.
pub(crate) struct Runs {
    /// The first element's place in the file.
    first: usize,
    length: usize,
    step: usize,
    /// The axes from one run to the next, from the nearest in the file to the furthest.
    axes: Vec<Axis>,
}

#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    /// The distance between neighbours.
    in_file: usize,
    in_memory: usize,
}

impl Runs {
    /// The part at these indices of an array, which the file holds in C or in Fortran order.
    pub(crate) fn new(shape: &[usize], is_fortran: bool, part: &[Range<usize>]) -> Self {
        if part.iter().any(Range::is_empty) {
            return Self::flat(0..0);
        }
        let mut axes: Vec<Axis> =
            part.iter().map(|range| Axis { size: range.len(), in_file: 1, in_memory: 1 }).collect();
        // What lies between neighbours: all axes after theirs, or before it in a file in Fortran order.
        for nth in 0..axes.len() {
            axes[nth].in_memory = axes[nth + 1..].iter().map(|axis| axis.size).product();
            axes[nth].in_file = if is_fortran { &shape[..nth] } else { &shape[nth + 1..] }.iter().product();
        }
        let first = part.iter().zip(&axes).map(|(range, axis)| range.start * axis.in_file).sum();
        axes.retain(|axis| axis.size > 1);
        axes.sort_by_key(|axis| axis.in_file);
        let (mut length, mut step, mut joined) = (1, 1, 0);
        // Axes that have no gaps between them, in the file or in memory, make one run.
        while axes.get(joined).is_some_and(|axis| axis.in_file == length && axis.in_memory == length) {
            length *= axes[joined].size;
            joined += 1;
        }
        if let Some(axis) = axes.first().filter(|axis| joined == 0 && axis.in_file == 1) {
            (length, step, joined) = (axis.size, axis.in_memory, 1);
        }
        Self { first, length, step, axes: axes.split_off(joined) }
    }

    /// Elements in the order of the file, counted from its first.
    pub(crate) fn flat(range: Range<usize>) -> Self {
        Self { first: range.start, length: range.len(), step: 1, axes: Vec::new() }
    }

    /// Elements of a run.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The distance of a run's elements in memory.
    pub(crate) fn step(&self) -> usize {
        self.step
    }

    /// Calls `visit` with each run's place in the file and in memory, in the order of the file.
    pub(crate) fn each<E>(&self, mut visit: impl FnMut(usize, usize) -> Result<(), E>) -> Result<(), E> {
        let mut index = vec![0; self.axes.len()];
        let (mut in_file, mut in_memory) = (self.first, 0);
        for _ in 0..self.axes.iter().map(|axis| axis.size).product() {
            visit(in_file, in_memory)?;
            for (axis, at) in self.axes.iter().zip(&mut index) {
                *at += 1;
                in_file += axis.in_file;
                in_memory += axis.in_memory;
                if *at < axis.size {
                    break;
                }
                *at = 0;
                in_file -= axis.size * axis.in_file;
                in_memory -= axis.size * axis.in_memory;
            }
        }
        Ok(())
    }
}
