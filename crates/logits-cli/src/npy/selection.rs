//! A rectangular part of an array: where its elements are, in the file and in memory.

use std::ops::Range;

/// A rectangular part of an array, as runs of elements that are contiguous in the file. In memory
/// the selection is in C order, and the elements of a run are `memory_stride` apart. Offsets and
/// strides count elements.
pub(crate) struct Selection {
    file_start: usize,
    run_length: usize,
    memory_stride: usize,
    /// The axes from one run to the next, the one of the smallest file stride first.
    axes: Vec<Axis>,
}

#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    file_stride: usize,
    memory_stride: usize,
}

impl Selection {
    /// Selects a range of indices along each axis of an array, which the file holds in C or in
    /// Fortran order.
    pub(crate) fn new(shape: &[usize], is_fortran: bool, ranges: &[Range<usize>]) -> Self {
        if ranges.iter().any(Range::is_empty) {
            return Self::flat(0..0);
        }
        let mut axes: Vec<Axis> = ranges
            .iter()
            .map(|range| Axis { size: range.len(), file_stride: 1, memory_stride: 1 })
            .collect();
        // The stride of an axis is the product of the sizes of the axes that vary faster.
        for nth in 0..axes.len() {
            axes[nth].memory_stride = axes[nth + 1..].iter().map(|axis| axis.size).product();
            axes[nth].file_stride =
                if is_fortran { &shape[..nth] } else { &shape[nth + 1..] }.iter().product();
        }
        let file_start =
            ranges.iter().zip(&axes).map(|(range, axis)| range.start * axis.file_stride).sum();
        axes.retain(|axis| axis.size > 1);
        axes.sort_by_key(|axis| axis.file_stride);
        let (mut run_length, mut memory_stride, mut joined) = (1, 1, 0);
        // Axes that are contiguous in the file and in memory are joined into one run.
        while axes
            .get(joined)
            .is_some_and(|axis| axis.file_stride == run_length && axis.memory_stride == run_length)
        {
            run_length *= axes[joined].size;
            joined += 1;
        }
        // Otherwise a run is the axis that is contiguous in the file alone.
        if let Some(axis) = axes.first().filter(|axis| joined == 0 && axis.file_stride == 1) {
            (run_length, memory_stride, joined) = (axis.size, axis.memory_stride, 1);
        }
        Self { file_start, run_length, memory_stride, axes: axes.split_off(joined) }
    }

    /// Selects elements by their index in the order of the file.
    pub(crate) fn flat(range: Range<usize>) -> Self {
        Self {
            file_start: range.start,
            run_length: range.len(),
            memory_stride: 1,
            axes: Vec::new(),
        }
    }

    /// Elements of a run.
    pub(crate) fn run_length(&self) -> usize {
        self.run_length
    }

    pub(crate) fn memory_stride(&self) -> usize {
        self.memory_stride
    }

    /// Calls `visit` with the file offset and the memory offset of each run, in the order of the
    /// file. An empty selection is one run of no elements.
    pub(crate) fn for_each_run<E>(
        &self,
        mut visit: impl FnMut(usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut index = vec![0; self.axes.len()];
        let (mut file_offset, mut memory_offset) = (self.file_start, 0);
        // for each index over `axes`, the first axis fastest:
        //     visit(file_start + sum(index * file_stride), sum(index * memory_stride))
        for _ in 0..self.axes.iter().map(|axis| axis.size).product() {
            visit(file_offset, memory_offset)?;
            for (axis, at) in self.axes.iter().zip(&mut index) {
                *at += 1;
                file_offset += axis.file_stride;
                memory_offset += axis.memory_stride;
                if *at < axis.size {
                    break;
                }
                *at = 0;
                file_offset -= axis.size * axis.file_stride;
                memory_offset -= axis.size * axis.memory_stride;
            }
        }
        Ok(())
    }
}
