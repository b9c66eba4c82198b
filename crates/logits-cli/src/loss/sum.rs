//! The sum of values of rows that may come in another order than that of the rows.

use logits::{Element, Error, RowSum};

use crate::memory::resize;
use crate::npy::Selection;

/// A [`RowSum`] of losses or weights. Where files are in Fortran order, rows of several dimensions
/// come in another order than their own, which the sum needs: all values are held until the end
/// then.
#[derive(Default)]
pub(super) struct SumOfRows<S> {
    sum: RowSum<S>,
    held: Option<Vec<S>>,
}

impl<S: Element> SumOfRows<S> {
    /// `rows`: how many rows there are. `in_order`: whether they come in C order.
    pub(super) fn new(what: &'static str, rows: usize, in_order: bool) -> Result<Self, Error> {
        let mut values = Self { sum: RowSum::new(), held: None };
        if !in_order {
            let mut held = Vec::new();
            resize(&mut held, what, rows)?;
            values.held = Some(held);
        }
        Ok(values)
    }

    /// Adds the values of the rows that `rows` selects from an array of all rows in C order.
    pub(super) fn add(&mut self, values: &[S], rows: &Selection) -> Result<(), Error> {
        let Some(held) = &mut self.held else { return self.sum.push(values) };
        let (length, stride) = (rows.run_length(), rows.memory_stride());
        let Ok(()) = rows.for_each_run(|row, first| {
            held[row..row + length]
                .iter_mut()
                .zip(values[first..].iter().step_by(stride))
                .for_each(|(to, value)| *to = *value);
            Ok::<_, std::convert::Infallible>(())
        });
        Ok(())
    }

    /// Adds the values of the next rows of the file, of which the row with the place `nth` has the
    /// C index `c_index(nth)`.
    pub(super) fn add_at(
        &mut self,
        values: &[S],
        c_index: impl Fn(usize) -> usize,
    ) -> Result<(), Error> {
        let Some(held) = &mut self.held else { return self.sum.push(values) };
        values.iter().enumerate().for_each(|(nth, &value)| held[c_index(nth)] = value);
        Ok(())
    }

    pub(super) fn total(mut self) -> Result<f64, Error> {
        if let Some(held) = self.held {
            self.sum.push(&held)?;
        }
        Ok(self.sum.total())
    }
}
