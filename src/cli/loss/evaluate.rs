//! The loss of a batch of rows, and the files that are written of it.

use logits::{CrossEntropy, Device, Logits, LogitsMut, Targets};

use crate::batches::{Batch, Batches};
use crate::npy::{Float, Reader, Runs, Writer};
use crate::output::Output;
use crate::{CliError, resize};

/// The files asked for.
pub(super) struct Outputs {
    pub(super) grad: Option<Writer>,
    pub(super) probs: Option<Writer>,
    pub(super) log_probs: Option<Writer>,
    pub(super) per_row: Option<Writer>,
}

impl Outputs {
    /// Writes what is still in memory.
    pub(super) fn finish(self) -> Result<Vec<Output>, CliError> {
        [self.grad, self.probs, self.log_probs, self.per_row].into_iter().flatten().map(Writer::finish).collect()
    }
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Found {
    pub(super) sum: f64,
    pub(super) correct: u64,
    pub(super) among: u64,
    pub(super) fell_back: Option<String>,
}

impl Found {
    fn note(&mut self, fell_back: Option<String>) {
        self.fell_back = self.fell_back.take().or(fell_back);
    }
}

/// What is evaluated, and the memory of a batch.
pub(super) struct Evaluation<'e, T> {
    pub(super) device: &'e Device,
    /// With weights that are multiplied by `unit_of_rows`, by `unit` of it after their total was taken.
    pub(super) loss: CrossEntropy,
    pub(super) unit: f64,
    pub(super) unit_of_rows: f64,
    pub(super) top_k: Option<usize>,
    pub(super) logits: Reader,
    pub(super) targets: Reader,
    pub(super) outputs: Outputs,
    pub(super) found: Found,
    pub(super) x: Vec<T>,
    pub(super) elements: Vec<T>,
    pub(super) probabilities: Vec<T>,
    pub(super) integers: Vec<i128>,
}

impl<T: Float> Evaluation<'_, T>
where
    T::Row: Float,
{
    /// Evaluates some of the rows, and writes what is asked for of them.
    pub(super) fn batch(&mut self, batches: &Batches, batch: &Batch) -> Result<(), CliError> {
        let Self { device, loss, unit, unit_of_rows, logits, outputs, found, x, elements, .. } = self;
        let of_elements = |is_fortran| Runs::new(batches.dimensions(), is_fortran, &batch.of_elements);
        let of_rows = |is_fortran| Runs::new(&batches.rows(), is_fortran, &batch.of_rows);
        let (shape, rows) = (batch.shape, batch.shape.row_count());
        resize(x, "the rows of a batch", shape.elements()?)?;
        logits.floats(&of_elements(logits.is_fortran()), x)?;
        let mut classes_of: Vec<i64> = Vec::new();
        let is_fortran = self.targets.is_fortran();
        let targets = if self.targets.is_float() {
            resize(&mut self.probabilities, "the target probabilities of a batch", shape.elements()?)?;
            self.targets.floats(&of_elements(is_fortran), &mut self.probabilities)?;
            Targets::probabilities(&self.probabilities)
        } else {
            resize(&mut self.integers, "the targets of a batch", rows)?;
            self.targets.integers(&of_rows(is_fortran), &mut self.integers)?;
            // Those that do not fit were refused by the survey.
            classes_of.extend(self.integers.iter().map(|&target| target as i64));
            Targets::from(&classes_of)
        };
        let view = Logits::new(x, shape)?;
        let k = self.top_k.unwrap_or(1);
        let accuracy = device.accuracy(loss, view, targets, 1)?;
        found.correct += accuracy.correct as u64;
        found.note(accuracy.fell_back);
        if k > 1 {
            let accuracy = device.accuracy(loss, view, targets, k)?;
            found.among += accuracy.correct as u64;
            found.note(accuracy.fell_back);
        } else {
            found.among = found.correct;
        }

        let seen = view.as_seen_by(loss)?;
        let needs_elements = outputs.probs.is_some() || outputs.log_probs.is_some();
        resize(elements, "the probabilities of a batch", if needs_elements { x.len() } else { 0 })?;
        if let Some(file) = &mut outputs.probs {
            found.note(device.softmax(seen, elements)?.fell_back);
            file.write(&of_elements(false), elements)?;
        }
        if let Some(file) = &mut outputs.log_probs {
            found.note(device.log_softmax(seen, elements)?.fell_back);
            file.write(&of_elements(false), elements)?;
        }
        let mut out = match &mut outputs.grad {
            None => device.cross_entropy(loss, view, targets)?,
            // Last, for it takes the place of the logits.
            Some(file) => {
                let out = device.cross_entropy_grad_in_place(loss, LogitsMut::new(x, shape)?, targets)?;
                file.write(&of_elements(false), x)?;
                out
            }
        };
        if let Some(file) = &mut outputs.per_row {
            out.per_row.iter_mut().for_each(|loss| *loss = T::Row::of((*loss).into() / *unit_of_rows));
            file.write(&of_rows(false), &out.per_row)?;
        }
        found.sum += out.loss / *unit;
        found.note(out.fell_back);
        Ok(())
    }
}
