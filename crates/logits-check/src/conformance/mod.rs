//! Every operation, option and type on one device, against float64: worst errors, in units of the
//! bounds that the crate's documentation states.

use logits::half::{bf16, f16};
use logits::{DType, Device, Element, Operation, Reduction, Shape, Targets};

use crate::operation::{self, Bounds, Inputs, Judge, Label, Results, Takes, variants};
use crate::{Batch, Options, noise};

mod matrix;

pub use matrix::matrix;

/// The worst error of an operation with an option, of one type. At most 1 is within the bound.
pub struct Finding {
    /// The operation, with the options that are its own.
    pub operation: String,
    /// The option of the logits or of the loss; empty where there is none.
    pub option: &'static str,
    /// The type of the logits.
    pub dtype: DType,
    /// In units of the bound.
    pub worst: f64,
    /// Where that was, or what went wrong.
    pub place: String,
}

impl Finding {
    /// Whether it is within the bound.
    pub fn passed(&self) -> bool {
        self.worst <= 1.0
    }
}

/// `[outer, classes, inner]`: one of each kernel and of each layout; and what is tried there, of
/// f32 and of other types. Each is a kernel to be compiled, which takes some drivers a second.
const SHAPES: [([usize; 3], What, What); 9] = [
    ([6, 1, 1], What::Operations, What::Nothing),
    ([300, 3, 1], What::Operations, What::Nothing),
    ([40, 10, 1], What::Operations, What::Operations),
    ([33, 100, 1], What::Operations, What::Options),
    ([9, 1000, 1], What::Options, What::Operations),
    ([5, 4099, 1], What::Operations, What::Nothing),
    ([2, 140_000, 1], What::Options, What::Operations),
    ([2, 21, 37], What::Operations, What::Operations),
    ([1, 3001, 5], What::Operations, What::Nothing),
];

#[derive(Clone, Copy, PartialEq)]
enum What {
    Nothing,
    Operations,
    /// Each operation with each option.
    Options,
}

/// Runs them all.
pub async fn run(device: &Device) -> Vec<Finding> {
    let mut suite = Suite { device, findings: Vec::new() };
    for ([outer, classes, inner], of_f32, of_others) in SHAPES {
        let shape = Shape::new(outer, classes, inner);
        suite.of_type(shape, of_f32, |x| x as f32).await;
        suite.of_type(shape, of_others, f16::from_f64).await;
        suite.of_type(shape, of_others, bf16::from_f64).await;
        if !device.is_gpu() {
            suite.of_type(shape, of_others, |x| x).await;
        }
    }
    suite.findings
}

struct Suite<'d> {
    device: &'d Device,
    findings: Vec<Finding>,
}

/// A logit of a row: some rows are confident, some far from 0, some wide.
fn logit(row: usize, class: usize, classes: usize) -> f64 {
    let top = if row % 4 == 1 && class == row * 7 % classes { 17.0 } else { 0.0 };
    let shift = if row % 4 == 2 { 300.0 } else { 0.0 };
    // Others reach as far below their largest as probabilities are normal numbers.
    let span = if row % 4 == 3 { 43.0 } else { 5.0 };
    span * noise(row + 1, class) + top + shift
}

/// The batches that operations of one type are run on.
struct Batches<T> {
    plain: Batch<T>,
    /// With what breaks softmax in some rows.
    special: Batch<T>,
    upstream: Batch<T>,
    classes: Vec<i64>,
    /// The same, and rows that do not count.
    some_ignored: Vec<i64>,
    probabilities: Batch<f32>,
}

impl<T: Element> Batches<T> {
    fn new(shape: Shape, narrow: fn(f64) -> T) -> Self {
        let (classes, rows) = (shape.classes(), shape.row_count());
        let target = |row| if row % 4 == 1 { row * 7 % classes } else { row * 13 % classes } as i64;
        let or_ignored = |row| if row % 3 == 2 { -100 } else { target(row) };
        Self {
            plain: Batch::new(shape, |row, class| narrow(logit(row, class, classes))),
            special: Batch::new(shape, |row, class| match row % 5 {
                0 if class == classes / 2 => narrow(f64::NEG_INFINITY),
                3 if class == classes - 1 => narrow(f64::NAN),
                4 if class == 0 => narrow(f64::INFINITY),
                _ => narrow(logit(row, class, classes)),
            }),
            upstream: Batch::new(shape, |row, class| narrow(noise(row + 99, class))),
            classes: (0..rows).map(target).collect(),
            some_ignored: (0..rows).map(or_ignored).collect(),
            probabilities: Batch::new(shape, |row, class| {
                (noise(row + 7, class) + 1.0) as f32 / classes as f32
            }),
        }
    }

    fn targets(&self, given: Given) -> Targets<'_> {
        match given {
            Given::Classes => Targets::from(&self.classes),
            Given::SomeIgnored => Targets::from(&self.some_ignored),
            Given::Probabilities => Targets::probabilities(&self.probabilities.values),
        }
    }

    fn label(&self, given: Given, row: usize) -> Label {
        match given {
            Given::Classes => Label::Class(self.classes[row]),
            Given::SomeIgnored => Label::Class(self.some_ignored[row]),
            Given::Probabilities => Label::Probabilities(self.probabilities.row(row)),
        }
    }
}

/// The options that a batch is run with.
struct Case {
    option: &'static str,
    /// The temperature of operations without targets.
    temperature: f32,
    options: Options,
    given: Given,
}

/// The changes of the logits before an operation without targets: the name of the option, the
/// temperature, and the cap and scale of a loss that sees them.
fn transforms() -> [(&'static str, f32, Options); 3] {
    let capped = Options { softcap: Some(30.0), logit_scale: -0.75, ..Options::default() };
    [
        ("", 1.0, Options::default()),
        ("temperature", 0.7, Options::default()),
        ("softcap, logit_scale", 1.0, capped),
    ]
}

/// The targets that a loss is taken with.
#[derive(Clone, Copy)]
enum Given {
    Classes,
    SomeIgnored,
    Probabilities,
}

/// Each option of a loss, then all of them: the name, the options and the targets.
fn losses(shape: Shape) -> [(&'static str, Options, Given); 15] {
    let (classes, rows) = (shape.classes(), shape.row_count());
    let weight: Vec<f32> = (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
    let weight = Some(weight);
    let row_gradients = Some((0..rows).map(|row| noise(3, row) as f32).collect());
    let plain = Options::default();
    let mean = Options { reduction: Reduction::Mean, ..Options::default() };
    let every = Options {
        weight: weight.clone(),
        label_smoothing: 0.1,
        z_loss: 1e-3,
        softcap: Some(20.0),
        logit_scale: 0.5,
        reduction: Reduction::None,
        row_gradients,
        ..plain.clone()
    };
    let focal = Options { label_smoothing: 0.0, focal_gamma: 0.5, ..every.clone() };
    let by_rows = Options { row_gradients: every.row_gradients.clone(), ..plain.clone() };
    let classes = Given::Classes;
    [
        ("", plain.clone(), classes),
        ("mean", mean.clone(), classes),
        ("ignore_index", mean.clone(), Given::SomeIgnored),
        ("weight", Options { weight, ..mean.clone() }, classes),
        ("label_smoothing", Options { label_smoothing: 0.1, ..mean.clone() }, classes),
        ("z_loss", Options { z_loss: 1e-2, ..plain.clone() }, classes),
        ("focal_gamma", Options { focal_gamma: 2.0, ..mean.clone() }, classes),
        ("focal_gamma, every option", focal, Given::SomeIgnored),
        ("softcap", Options { softcap: Some(30.0), ..plain.clone() }, classes),
        ("logit_scale", Options { logit_scale: -0.75, ..plain }, classes),
        ("upstream_gradient", Options { upstream: -2.5, ..mean.clone() }, classes),
        ("upstream_gradients", by_rows, classes),
        ("probabilities", mean, Given::Probabilities),
        ("every option", every.clone(), Given::SomeIgnored),
        ("every option, probabilities", every, Given::Probabilities),
    ]
}

impl Suite<'_> {
    fn note(&mut self, found: Finding) {
        let is_same = |seen: &&mut Finding| {
            (&seen.operation, seen.option, seen.dtype)
                == (&found.operation, found.option, found.dtype)
        };
        match self.findings.iter_mut().find(is_same) {
            Some(seen) if found.worst > seen.worst => *seen = found,
            Some(_) => {}
            None => self.findings.push(found),
        }
    }

    async fn of_type<T: Element>(&mut self, shape: Shape, what: What, narrow: fn(f64) -> T) {
        if what == What::Nothing {
            return;
        }
        let batches = &Batches::new(shape, narrow);
        let most = if what == What::Options { usize::MAX } else { 1 };
        for (option, temperature, options) in transforms().into_iter().take(most) {
            let is_capped = options.softcap.is_some();
            let takes = |takes: Takes| !takes.targets && (takes.cap || !is_capped);
            // Under a cap the logits are finite.
            let has_specials = |takes: Takes| takes.specials && !is_capped;
            let case = Case { option, temperature, options, given: Given::Classes };
            self.operations(&case, batches, &batches.plain, |of| takes(of) && !has_specials(of))
                .await;
            self.operations(&case, batches, &batches.special, |of| takes(of) && has_specials(of))
                .await;
        }
        for (option, options, given) in losses(shape).into_iter().take(most) {
            let case = Case { option, temperature: 1.0, options, given };
            self.operations(&case, batches, &batches.plain, |takes| takes.targets).await;
        }
    }

    /// Runs, in each of their variants, the operations whose description `takes` accepts.
    async fn operations<T: Element>(
        &mut self,
        case: &Case,
        batches: &Batches<T>,
        logits: &Batch<T>,
        takes: impl Fn(Takes) -> bool,
    ) {
        let (shape, option) = (logits.shape, case.option);
        let label = |row| batches.label(case.given, row);
        let inputs = &Inputs {
            shape,
            logits: &logits.values,
            temperature: case.temperature,
            options: &case.options,
            targets: batches.targets(case.given),
            label: &label,
            upstream: &batches.upstream.values,
            reference: Some(&Device::cpu()),
        };
        let judge = Judge::new(inputs, Bounds::PROMISED, 0..shape.row_count());
        let taken = Operation::ALL.iter().filter(|&&operation| takes(Takes::of(operation)));
        for variant in taken.flat_map(|&operation| variants(operation, shape.classes())) {
            let results = operation::run(self.device, variant.operation, inputs).await;
            let (worst, why) = match &results {
                Err(error) => (f64::INFINITY, error.to_string()),
                Ok(Results { fell_back: Some(reason), .. }) => {
                    (f64::INFINITY, format!("finished on the CPU: {reason}"))
                }
                Ok(results) => (judge.worst(&variant, results), String::new()),
            };
            let name = variant.operation.to_string();
            let operation = if variant.option.is_empty() {
                name
            } else {
                format!("{name}, {}", variant.option)
            };
            let place = format!("{shape:?} {why}");
            self.note(Finding { operation, option, dtype: T::DTYPE, worst, place });
        }
    }
}
