//! The inputs of a timed operation: logits, targets and options, the same in every run.

use logits::{CrossEntropy, Element, Error, Operation, Reduction, Shape, Targets};
use logits_check::operation::{Kept, Label, Variant};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Options;
use crate::memory::resize;

/// A batch of a shape `[rows, classes]`.
pub(super) struct Inputs<'o, T> {
    pub(super) options: &'o Options,
    pub(super) shape: [usize; 2],
    pub(super) logits: Vec<T>,
    classes: Vec<u32>,
    /// Target probabilities, of the shape of the logits; empty where the targets are classes.
    probabilities: Vec<T>,
    /// The options of the loss, which is a sum: in a mean over many rows a half type would keep few
    /// digits of the gradient.
    pub(super) of_sum: logits_check::Options,
    /// The loss that is timed, with the same options and a mean.
    pub(super) loss: CrossEntropy,
}

impl<'o, T: Element<Row = f32>> Inputs<'o, T> {
    /// Drawn from a seed, and brought to the type by `narrow`.
    pub(super) fn new(
        options: &'o Options,
        shape: [usize; 2],
        narrow: fn(f32) -> T,
    ) -> Result<Self, Error> {
        let [rows, classes] = shape;
        let elements = Shape::from(shape).elements()?;
        let mut inputs = Self::empty(options, classes)?;
        inputs.shape = shape;
        let mut rng = StdRng::seed_from_u64(elements as u64);
        let mut draw = |what, values: &mut Vec<T>, from, to| {
            resize(values, what, elements)?;
            values.fill_with(|| narrow(rng.random_range(from..to)));
            Ok::<_, Error>(())
        };
        draw("logits", &mut inputs.logits, -8.0, 8.0)?;
        if options.soft_targets {
            // Probabilities of about the same size, which add up to about 1.
            draw("target probabilities", &mut inputs.probabilities, 0.0, 2.0 / classes as f32)?;
        }
        resize(&mut inputs.classes, "targets", rows)?;
        inputs.classes.fill_with(|| rng.random_range(0..classes as u32));
        Ok(inputs)
    }

    /// Inputs of no rows and `classes` classes, to check the options with.
    pub(super) fn empty(options: &'o Options, classes: usize) -> Result<Self, Error> {
        let mut of_sum = logits_check::Options {
            label_smoothing: options.label_smoothing,
            z_loss: options.z_loss,
            softcap: options.softcap,
            logit_scale: options.logit_scale,
            reduction: Reduction::Sum,
            ..logits_check::Options::default()
        };
        if options.weight {
            let mut weights = Vec::new();
            resize(&mut weights, "class weights", classes)?;
            // From 0.5 to 2, in turn.
            let weight = |class| 0.5 + 0.25 * (class % 7) as f32;
            weights.iter_mut().enumerate().for_each(|(class, value)| *value = weight(class));
            of_sum.weight = Some(weights);
        }
        let loss = of_sum.loss().reduction(Reduction::Mean);
        let (shape, logits, probabilities) = ([0, classes], Vec::new(), Vec::new());
        Ok(Self { options, shape, logits, classes: Vec::new(), probabilities, of_sum, loss })
    }

    pub(super) fn targets(&self) -> Targets<'_> {
        match self.options.soft_targets {
            true => Targets::probabilities(&self.probabilities),
            false => Targets::from(&self.classes),
        }
    }

    /// The target of a row.
    pub(super) fn label(&self, row: usize) -> Label {
        match self.options.soft_targets {
            true => {
                let classes = self.shape[1];
                let q = &self.probabilities[row * classes..][..classes];
                Label::Probabilities(q.iter().map(|&q| q.into()).collect())
            }
            false => Label::Class(self.classes[row].into()),
        }
    }

    /// The operation, with the options of the command.
    pub(super) fn timed(&self, operation: Operation) -> Variant {
        let Options { k, top_p, .. } = *self.options;
        let kept = Kept { top_k: k.unwrap_or(usize::MAX), top_p };
        let operation = match operation {
            Operation::TopK(_) => Operation::TopK(k.unwrap_or(self.shape[1].min(super::TOP_K))),
            Operation::Sample(_) => Operation::Sample(kept.sampling(7)),
            other => other,
        };
        Variant { operation, option: "", kept }
    }
}
