//! The inputs of a timed operation: logits, targets and options, the same in every run.

use logits::{CrossEntropy, Element, Error, Logits, Operation, Sampling, Shape, Targets};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{OpName, Options};
use crate::memory::resize;

/// A batch of a shape `[rows, classes]`.
pub(super) struct Inputs<'o, T> {
    pub(super) options: &'o Options,
    pub(super) shape: [usize; 2],
    pub(super) logits: Vec<T>,
    classes: Vec<u32>,
    /// Target probabilities, of the shape of the logits; empty where the targets are classes.
    probabilities: Vec<T>,
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
        let mut loss = CrossEntropy::default()
            .label_smoothing(options.label_smoothing)
            .z_loss(options.z_loss)
            .logit_scale(options.logit_scale);
        if let Some(cap) = options.softcap {
            loss = loss.softcap(cap);
        }
        if options.weight {
            let mut weights = Vec::new();
            resize(&mut weights, "class weights", classes)?;
            weights.iter_mut().enumerate().for_each(|(class, value)| *value = weight(class));
            loss = loss.weight(weights);
        }
        let (shape, logits, probabilities) = ([0, classes], Vec::new(), Vec::new());
        Ok(Self { options, shape, logits, classes: Vec::new(), probabilities, loss })
    }

    pub(super) fn x(&self) -> Result<Logits<'_, T>, Error> {
        Logits::new(&self.logits, self.shape)
    }

    pub(super) fn targets(&self) -> Targets<'_> {
        match self.options.soft_targets {
            true => Targets::probabilities(&self.probabilities),
            false => Targets::from(&self.classes),
        }
    }

    /// How probable a class was to be.
    pub(super) fn target(&self, row: usize, class: usize) -> f64 {
        match self.options.soft_targets {
            true => self.probabilities[row * self.shape[1] + class].into(),
            false => f64::from(u8::from(self.classes[row] as usize == class)),
        }
    }

    /// The weight of a class; 1 where there are none.
    pub(super) fn weight(&self, class: usize) -> f64 {
        if self.options.weight { weight(class).into() } else { 1.0 }
    }

    pub(super) fn timed(&self, op: OpName) -> Operation {
        match op {
            OpName::Softmax => Operation::Softmax,
            OpName::LogSoftmax => Operation::LogSoftmax,
            OpName::LogSumExp => Operation::LogSumExp,
            OpName::SoftmaxBackward => Operation::SoftmaxBackward,
            OpName::LogSoftmaxBackward => Operation::LogSoftmaxBackward,
            OpName::CrossEntropy => Operation::CrossEntropy,
            OpName::CrossEntropyGrad => Operation::CrossEntropyGrad,
            OpName::CrossEntropyBackward => Operation::CrossEntropyBackward,
            OpName::Predict => Operation::Predict,
            OpName::TopK => Operation::TopK(self.options.k.unwrap_or(self.shape[1].min(5))),
            OpName::Sample => Operation::Sample(self.sampling()),
        }
    }

    fn sampling(&self) -> Sampling {
        let sampling = Sampling::new(7).top_p(self.options.top_p);
        self.options.k.map_or(sampling, |k| sampling.top_k(k))
    }
}

/// From 0.5 to 2, in turn.
fn weight(class: usize) -> f32 {
    0.5 + 0.25 * (class % 7) as f32
}
