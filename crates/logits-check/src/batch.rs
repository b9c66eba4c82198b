//! Batches in memory, and the noise that fills them.

use logits::{Element, Shape};

/// Elements of `[outer, classes, inner]`. A block of `classes * inner` may be followed by a gap.
pub struct Batch<T> {
    /// The shape, without gaps.
    pub shape: Shape,
    /// Elements from the start of a block to the start of the next.
    pub stride: usize,
    /// The elements, with the gap of the last block.
    pub values: Vec<T>,
}

impl<T: Element> Batch<T> {
    /// Makes a batch without gaps of a value for each row and class.
    pub fn new(shape: Shape, value: impl Fn(usize, usize) -> T) -> Self {
        let stride = shape.classes() * shape.inner();
        let mut batch = Self { shape, stride, values: vec![T::default(); stride * shape.outer()] };
        for row in 0..shape.row_count() {
            for class in 0..shape.classes() {
                let at = batch.place(row, class);
                batch.values[at] = value(row, class);
            }
        }
        batch
    }

    /// Elements of a block.
    pub fn block(&self) -> usize {
        self.shape.classes() * self.shape.inner()
    }

    /// The index of an element in an array of this shape without gaps.
    pub fn place(&self, row: usize, class: usize) -> usize {
        self.place_at(self.block(), row, class)
    }

    fn place_at(&self, stride: usize, row: usize, class: usize) -> usize {
        let inner = self.shape.inner();
        row / inner * stride + class * inner + row % inner
    }

    /// The logits of a row.
    pub fn row(&self, row: usize) -> Vec<f64> {
        (0..self.shape.classes())
            .map(|class| self.values[self.place_at(self.stride, row, class)].into())
            .collect()
    }

    /// The logits of each row.
    pub fn rows(&self) -> Vec<Vec<f64>> {
        (0..self.shape.row_count()).map(|row| self.row(row)).collect()
    }

    /// The elements without gaps.
    pub fn dense(&self) -> Vec<T> {
        self.values
            .chunks(self.stride)
            .flat_map(|whole| whole[..self.block()].iter().copied())
            .collect()
    }
}

/// A number between -1 and 1 that is not correlated with its neighbours.
pub fn noise(seed: usize, at: usize) -> f64 {
    let mixed = (at as u32 ^ (seed as u32).wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
    let mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    f64::from((mixed ^ (mixed >> 16)) >> 8) / f64::from(1 << 23) - 1.0
}
