//! Evaluates one batch of rows and writes its outputs.

use logits::{CrossEntropy, Device, Logits, Targets};

use super::batches::{Batch, Batches};
use super::outputs::{Filling, Outputs, Results};
use crate::CliError;
use crate::memory::resize;
use crate::npy::{Float, Reader, Selection};

/// The memory of a batch.
#[derive(Default)]
pub(super) struct Buffers<T> {
    logits: Vec<T>,
    probabilities: Vec<T>,
    target_probabilities: Vec<T>,
    integers: Vec<i128>,
    target_classes: Vec<i64>,
}

/// The inputs, options and outputs of a run, and the memory of one batch.
pub(super) struct Evaluation<'e, T: Float> {
    pub(super) device: &'e Device,
    pub(super) loss: CrossEntropy,
    /// The factor of each row's loss.
    pub(super) scale: f64,
    pub(super) top_k: Option<usize>,
    pub(super) logits: Reader,
    pub(super) targets: Reader,
    pub(super) outputs: Outputs,
    pub(super) results: Results<T::Row>,
    pub(super) buffers: Buffers<T>,
}

impl<T: Float> Evaluation<'_, T>
where
    T::Row: Float,
{
    /// Evaluates the rows of `batch` and writes them to each output.
    pub(super) fn evaluate(&mut self, batches: &Batches, batch: &Batch) -> Result<(), CliError> {
        let Self { device, loss, logits, targets, outputs, results, buffers, .. } = self;
        let Buffers { logits: x, probabilities, target_probabilities, integers, target_classes } =
            buffers;
        let of_logits =
            |is_fortran| Selection::new(batches.shape(), is_fortran, &batch.logit_ranges);
        let of_rows =
            |is_fortran| Selection::new(&batches.row_shape(), is_fortran, &batch.row_ranges);
        let (shape, rows) = (batch.shape, batch.shape.row_count());
        let elements = shape.elements()?;

        resize(x, "the rows of a batch", elements)?;
        logits.floats(&of_logits(logits.is_fortran()), x)?;
        let is_fortran = targets.is_fortran();
        let targets = if targets.is_float() {
            resize(target_probabilities, "the target probabilities of a batch", elements)?;
            targets.floats(&of_logits(is_fortran), target_probabilities)?;
            Targets::probabilities(target_probabilities)
        } else {
            resize(integers, "the targets of a batch", rows)?;
            targets.integers(&of_rows(is_fortran), integers)?;
            resize(target_classes, "the targets of a batch", rows)?;
            // Every counted target fits: `survey_targets` has checked them. No class has the number
            // of one that has changed since.
            let class_of = |&mut target: &mut i128| i64::try_from(target).unwrap_or(i64::MAX);
            target_classes
                .iter_mut()
                .zip(integers)
                .for_each(|(class, target)| *class = class_of(target));
            Targets::from(target_classes.as_slice())
        };

        let view = Logits::new(x, shape)?;
        let accuracy = device.cross_entropy(loss, view, targets).accuracy(1)?;
        let top_k = match self.top_k {
            Some(k) if k > 1 => device.cross_entropy(loss, view, targets).accuracy(k)?,
            _ => accuracy.clone(),
        };
        results.correct += accuracy.correct as u64;
        results.correct_in_top_k += top_k.correct as u64;
        results.note(accuracy.fell_back);
        results.note(top_k.fell_back);

        let filling = Filling {
            device,
            loss,
            scale: self.scale,
            shape,
            x,
            targets,
            of_logits: of_logits(false),
            of_rows: of_rows(false),
            elements: probabilities,
        };
        outputs.fill(filling, results)
    }
}
