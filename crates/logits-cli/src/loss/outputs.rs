//! The files that `logits loss` writes: their options, and how each is filled. A further output is
//! a field of [`OutputFiles`] and one of [`Outputs`], and a part of [`Outputs::fill`].

use std::path::{Path, PathBuf};

use logits::{CrossEntropy, Device, Logits, LogitsMut, Shape, Targets};

use super::batches::row_shape;
use super::sum::SumOfRows;
use crate::CliError;
use crate::memory::resize;
use crate::npy::{Float, Selection, Writer};
use crate::output::{self, Output};

/// How files are read and written, for `logits loss --help`.
pub(super) const FILES: &str = "\
Files are .npy files, in C or Fortran order and either byte order. They are read in parts, so pipes are refused. Outputs are float32 in C order: \
--grad, --probs and --log-probs have the shape of the logits, --per-row and --entropy have that of the targets. All of them appear at the end, or none does; \
existing files are replaced then. A file that is an input, or is given twice, is refused.";

// clap would take a doc comment here for the description of the command.
#[derive(clap::Args)]
pub(super) struct OutputFiles {
    /// Write the gradient with respect to the logits to this file
    #[arg(long, value_name = "G.npy")]
    grad: Option<PathBuf>,
    /// Write the probabilities, after scale and cap, to this file
    #[arg(long, value_name = "P.npy")]
    probs: Option<PathBuf>,
    /// Write the log-probabilities, after scale and cap, to this file
    #[arg(long, value_name = "L.npy")]
    log_probs: Option<PathBuf>,
    /// Write the loss of each row to this file: 0 for an ignored row, times its target's weight
    #[arg(long, value_name = "R.npy")]
    per_row: Option<PathBuf>,
    /// Write the entropy of the softmax of each row in nats, after scale and cap, to this file;
    /// ignored rows have theirs too
    #[arg(long, value_name = "E.npy")]
    entropy: Option<PathBuf>,
}

impl OutputFiles {
    /// Makes the files asked for, with their headers. `shape`: that of the logits. None may be one
    /// of `inputs`.
    pub(super) fn create(&self, shape: &[usize], inputs: &[&Path]) -> Result<Outputs, CliError> {
        let Self { grad, probs, log_probs, per_row, entropy } = self;
        let paths = [grad, probs, log_probs, per_row, entropy].map(Option::as_deref);
        let [grad, probs, log_probs, per_row, entropy] = output::create(paths, inputs)?;
        let writer = |output: Option<_>, shape: &[usize]| {
            output.map(|output| Writer::new(output, shape)).transpose()
        };
        Ok(Outputs {
            grad: writer(grad, shape)?,
            probs: writer(probs, shape)?,
            log_probs: writer(log_probs, shape)?,
            per_row: writer(per_row, &row_shape(shape))?,
            entropy: writer(entropy, &row_shape(shape))?,
        })
    }
}

/// Sums over the batches so far, that of the losses times their factor.
#[derive(Default)]
pub(super) struct Results<S> {
    pub(super) losses: SumOfRows<S>,
    pub(super) correct: u64,
    pub(super) correct_in_top_k: u64,
    pub(super) fell_back: Option<String>,
}

impl<S> Results<S> {
    pub(super) fn note(&mut self, fell_back: Option<String>) {
        self.fell_back = self.fell_back.take().or(fell_back);
    }
}

/// The files asked for.
pub(super) struct Outputs {
    grad: Option<Writer>,
    probs: Option<Writer>,
    log_probs: Option<Writer>,
    per_row: Option<Writer>,
    entropy: Option<Writer>,
}

/// A batch in memory, and where its parts stand in the outputs.
pub(super) struct Filling<'a, T> {
    pub(super) device: &'a Device,
    pub(super) loss: &'a CrossEntropy,
    /// The factor of each row's loss.
    pub(super) scale: f64,
    pub(super) shape: Shape,
    pub(super) x: &'a mut [T],
    pub(super) targets: Targets<'a>,
    pub(super) of_logits: Selection,
    pub(super) of_rows: Selection,
    /// Memory for an output of the shape of the logits.
    pub(super) elements: &'a mut Vec<T>,
}

impl Outputs {
    /// Writes the results of a batch to each file, and adds its losses to `results`. The logits are
    /// overwritten where there is a file of gradients.
    pub(super) fn fill<T: Float>(
        &mut self,
        batch: Filling<'_, T>,
        results: &mut Results<T::Row>,
    ) -> Result<(), CliError>
    where
        T::Row: Float,
    {
        let Filling { device, loss, scale, shape, x, targets, of_logits, of_rows, elements } =
            batch;
        let view = Logits::new(x, shape)?;
        let seen = view.as_seen_by(loss)?;
        if self.probs.is_some() || self.log_probs.is_some() {
            resize(elements, "the probabilities of a batch", shape.elements()?)?;
        }
        if let Some(file) = &mut self.probs {
            results.note(device.softmax(seen).write_to(elements)?.fell_back);
            file.write(&of_logits, elements)?;
        }
        if let Some(file) = &mut self.log_probs {
            results.note(device.log_softmax(seen).write_to(elements)?.fell_back);
            file.write(&of_logits, elements)?;
        }
        if let Some(file) = &mut self.entropy {
            let out = device.entropy(seen).to_vec()?;
            file.write(&of_rows, &out.values)?;
            results.note(out.fell_back);
        }
        let mut out = match &mut self.grad {
            None => device.cross_entropy(loss, view, targets).loss()?,
            // The gradient comes last: it overwrites the logits.
            Some(file) => {
                let x_mut = LogitsMut::new(x, shape)?;
                let out = device.cross_entropy(loss, x_mut, targets).with_gradient_in_place()?;
                file.write(&of_logits, x)?;
                out
            }
        };
        results.losses.add(&out.per_row, &of_rows)?;
        if let Some(file) = &mut self.per_row {
            out.per_row.iter_mut().for_each(|loss| *loss = T::Row::of((*loss).into() / scale));
            file.write(&of_rows, &out.per_row)?;
        }
        results.note(out.fell_back);
        Ok(())
    }

    /// Writes what is still in memory.
    pub(super) fn finish(self) -> Result<Vec<Output>, CliError> {
        let Self { grad, probs, log_probs, per_row, entropy } = self;
        let files = [grad, probs, log_probs, per_row, entropy];
        files.into_iter().flatten().map(Writer::finish).collect()
    }
}
