//! Every operation of `Operation::ALL` in each form in which it is called: with data of the host,
//! with resident data, and as a step over the caller's own buffers. Each result is within the
//! bounds that the documentation promises, and on one device the forms agree to the bit.
//!
//! There is no list of operations here: `logits_check::operation` says what each takes and gives.

use logits::half::{bf16, f16};
use logits::{DType, Device, Element, Operation, Prediction, Reduction, Shape, Targets};
use logits_check::operation::{self, Bounds, Inputs, Judge, Label, PerRow, Results, Takes};
use logits_check::operation::{Variant, variants};
use logits_check::{Batch, Options, noise};
use pollster::block_on;

use crate::common::{self, Share};

/// `[outer, classes, inner]`: short rows, long ones, streamed ones, a split one, strided ones, rows
/// that start within a unit of memory, no rows, and rows of one class.
const SHAPES: [[usize; 3]; 8] = [
    [40, 10, 1],
    [9, 1000, 1],
    [3, 20_000, 1],
    [1, 140_000, 1],
    [2, 21, 37],
    [7, 33, 1],
    [0, 5, 1],
    [4, 1, 1],
];

/// The options that an operation is run with.
struct Case {
    name: &'static str,
    /// The temperature of operations without targets.
    temperature: f32,
    options: Options,
}

impl Case {
    /// Without options; at a temperature, where a loss is a mean; and with a transform of the
    /// logits.
    fn all() -> [Self; 3] {
        let plain = Options::default;
        [
            Self { name: "no option", temperature: 1.0, options: plain() },
            Self {
                name: "temperature, mean",
                temperature: 0.7,
                options: Options { reduction: Reduction::Mean, ..plain() },
            },
            Self {
                name: "softcap, logit_scale, focal_gamma",
                temperature: 1.0,
                options: Options {
                    softcap: Some(30.0),
                    logit_scale: 0.75,
                    focal_gamma: 2.0,
                    ..plain()
                },
            },
        ]
    }
}

/// One operation on one batch.
struct Run<'c> {
    variant: Variant,
    shape: Shape,
    case: &'c Case,
    dtype: DType,
}

/// Returns what a device runs. In the default tier the first GPU runs each operation in a third of
/// the shapes, with a type and a case that take turns, and any other GPU in one of them.
fn runs<'c>(device: &Device, cases: &'c [Case]) -> Vec<Run<'c>> {
    let share = common::share(device);
    let mut runs = Vec::new();
    for (nth_shape, [outer, classes, inner]) in SHAPES.into_iter().enumerate() {
        let shape = Shape::new(outer, classes, inner);
        let all = Operation::ALL.iter().flat_map(|&operation| variants(operation, classes));
        for (nth, variant) in all.enumerate() {
            let mut forms = Vec::new();
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
                let is_taken = match dtype {
                    DType::F32 => true,
                    DType::F64 => !device.is_gpu() && classes < 100_000,
                    _ => classes < 100_000,
                };
                let takes_cap = Takes::of(variant.operation).cap;
                let cases = cases.iter().filter(|case| takes_cap || case.options.softcap.is_none());
                let of_dtype = cases.map(|case| Run { variant, shape, case, dtype });
                forms.extend(of_dtype.filter(|_| is_taken));
            }
            match share {
                Share::All => runs.extend(forms),
                Share::Pairs if !(nth + nth_shape).is_multiple_of(3) => {}
                Share::Values if nth % SHAPES.len() != nth_shape => {}
                _ => {
                    // 5 is prime to how many forms there are, so each has its turn.
                    let turn = (nth + nth_shape) / 3 * 5 % forms.len();
                    runs.push(forms.swap_remove(turn));
                }
            }
        }
    }
    runs
}

/// A form in which an operation is called beside those with data of the host and resident data,
/// starting from what the resident one started from.
trait Form {
    fn run<T: Element>(
        &self,
        operation: Operation,
        inputs: &Inputs<'_, T>,
        started: &Results<T>,
    ) -> Option<Results<T>>;
}

/// There is no other form.
struct Nothing;

impl Form for Nothing {
    fn run<T: Element>(
        &self,
        _: Operation,
        _: &Inputs<'_, T>,
        _: &Results<T>,
    ) -> Option<Results<T>> {
        None
    }
}

fn check_all(device: &Device, form: &impl Form) {
    let cases = Case::all();
    let runs = runs(device, &cases);
    println!("{device}: {} runs", runs.len());
    for run in &runs {
        match run.dtype {
            DType::F16 => run.check(device, form, f16::from_f64),
            DType::BF16 => run.check(device, form, bf16::from_f64),
            DType::F64 => run.check(device, form, |x| x),
            _ => run.check(device, form, |x| x as f32),
        }
    }
}

impl Run<'_> {
    fn check<T: Element>(&self, device: &Device, form: &impl Form, narrow: fn(f64) -> T) {
        let &Self { variant, shape, case, .. } = self;
        let (rows, classes) = (shape.row_count(), shape.classes());
        // Log-sum-exps are far from 0, where those of a GPU have few digits. Every fourth row is
        // confident.
        let logit = |row: usize, class: usize| {
            let top = if row % 4 == 1 && class == row * 7 % classes { 17.0 } else { 0.0 };
            8.0 + top + 5.0 * noise(row + 1, class)
        };
        let logits = Batch::new(shape, |row, class| narrow(logit(row, class)));
        let upstream = Batch::new(shape, |row, class| narrow(noise(row + 99, class)));
        let target = |row| if row % 3 == 2 { -100 } else { (row * 7 % classes) as i64 };
        let targets: Vec<i64> = (0..rows).map(target).collect();
        let inputs = &Inputs {
            shape,
            logits: &logits.values,
            temperature: case.temperature,
            options: &case.options,
            targets: Targets::from(&targets),
            label: &|row| Label::Class(targets[row]),
            upstream: &upstream.values,
            reference: Some(&Device::cpu()),
        };
        let operation = variant.operation;
        let judge = Judge::new(inputs, Bounds::PROMISED, 0..rows);
        let check = |form: &str, results: &Results<T>| {
            let place = format!(
                "{:?} of {shape:?} {}, {}, {form} on {device}",
                variant.operation,
                T::DTYPE,
                case.name
            );
            assert_eq!(results.fell_back, None, "{place}");
            let Takes { elements, rows: per_row, .. } = Takes::of(operation);
            let [values, predictions] = match per_row {
                PerRow::None => [0, 0],
                PerRow::Number | PerRow::Loss => [rows, 0],
                PerRow::Predictions(k) => [0, rows * k],
            };
            let found = [results.elements.len(), results.rows.len(), results.predictions.len()];
            let wanted = [logits.values.len() * usize::from(elements), values, predictions];
            assert_eq!(found, wanted, "elements, values and predictions of {place}");
            let worst = judge.worst(&variant, results);
            assert!(worst <= 1.0, "{worst:.2} of its bound: {place}");
            place
        };
        let host = block_on(operation::run(device, operation, inputs)).unwrap();
        check("host data", &host);
        let resident = block_on(operation::run_resident(device, operation, inputs)).unwrap();
        let place = check("resident data", &resident);
        // From other log-sum-exps there are other gradients.
        assert_same(&host, &resident, operation, host.saved == resident.saved, &place);
        if let Some(other) = form.run(operation, inputs, &resident) {
            let place = check("a step", &other);
            // It divides a mean by a pair of f32, and the other forms by an f64.
            let is_sum = case.options.reduction != Reduction::Mean;
            let same_elements = is_sum || !Takes::of(operation).targets;
            assert_same(&resident, &other, operation, same_elements, &place);
        }
    }
}

/// Checks that two results have the same bits, their elements only where `same_elements`; any two
/// NaN are equal.
fn assert_same<T: Element>(
    a: &Results<T>,
    b: &Results<T>,
    operation: Operation,
    same_elements: bool,
    place: &str,
) {
    let differ = |a: f64, b: f64| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    let elements = a.elements.iter().zip(&b.elements).filter(|_| same_elements);
    for (nth, (&a, &b)) in elements.enumerate() {
        assert!(!differ(a.into(), b.into()), "element {nth}: {a:?} and {b:?} of {place}");
    }
    if Takes::of(operation).rows != PerRow::Number {
        for (nth, (&a, &b)) in a.rows.iter().zip(&b.rows).enumerate() {
            assert!(!differ(a.into(), b.into()), "row {nth}: {a:?} and {b:?} of {place}");
        }
    }
    let (of_a, of_b) = (a.loss.unwrap_or_default(), b.loss.unwrap_or_default());
    assert!(!differ(of_a, of_b), "loss: {of_a:?} and {of_b:?} of {place}");
    let bits = |predictions: &[Prediction]| -> Vec<(u32, u32)> {
        predictions.iter().map(|found| (found.class, found.probability.to_bits())).collect()
    };
    assert_eq!(bits(&a.predictions), bits(&b.predictions), "{place}");
}

#[test]
fn every_operation_is_right_in_every_form_on_the_cpu() {
    check_all(&Device::cpu(), &Nothing);
}

#[cfg(feature = "gpu")]
mod on_gpus {
    use super::*;

    use bytemuck::Pod;
    use logits::{StepBuffers, Summary};
    use logits_check::operation::Upstream;

    use crate::engine::{Engine, engines};
    use crate::tier;

    #[test]
    fn every_operation_is_right_in_every_form_on_gpus() {
        for engine in engines() {
            check_all(&Device::on(&engine.gpu), &engine);
        }
        // Devices of the crate's own have features that the engines lack.
        for device in common::gpus().iter().filter(|_| tier::is_full()) {
            check_all(device, &Nothing);
        }
    }

    /// The bytes of values, and more than one word.
    fn words<T: Pod>(values: &[T]) -> Vec<u8> {
        let mut bytes: Vec<u8> = bytemuck::cast_slice(values).to_vec();
        bytes.resize(bytes.len().next_multiple_of(4) + 4, 0xff);
        bytes
    }

    /// A step over buffers, most of which it starts within.
    impl Form for Engine {
        fn run<T: Element>(
            &self,
            operation: Operation,
            inputs: &Inputs<'_, T>,
            started: &Results<T>,
        ) -> Option<Results<T>> {
            let (takes, loss) = (Takes::of(operation), inputs.options.loss());
            let (shape, count) = (inputs.shape, inputs.shape.row_count());
            let step = self.gpu.prepare(operation, shape, T::DTYPE);
            let step = match takes.targets {
                true => step.loss(&loss),
                false => step.temperature(inputs.temperature).unwrap().as_seen_by(&loss).unwrap(),
            };
            let logits = if started.start.is_empty() { inputs.logits } else { &started.start };
            let target = |row| match (inputs.label)(row) {
                Label::Class(class) => class as i32,
                Label::Probabilities(_) => unreachable!("no case has target probabilities"),
            };
            let targets: Vec<i32> = (0..count).map(target).collect();
            let upstream = match takes.upstream {
                Upstream::None => None,
                Upstream::Elements => Some(words(inputs.upstream)),
                Upstream::Rows => Some(words(&inputs.row_upstream())),
            };
            let upstream = upstream.map(|bytes| self.buffer(8, &bytes));
            let (x, t) = (self.buffer(12, &words(logits)), self.buffer(4, &words(&targets)));
            let output = self.buffer(4, &words(&vec![0xff_u8; size_of_val(logits)]));
            let row_words = match takes.rows {
                PerRow::None => 0,
                PerRow::Number | PerRow::Loss => 1,
                PerRow::Predictions(k) => 2 * k,
            };
            let rows = match takes.log_sum_exps {
                true => self.buffer(12, &words(&started.saved)),
                false => self.buffer(12, &words(&vec![u32::MAX; count * row_words])),
            };
            let summary = self.poisoned(8);
            let mut buffers = StepBuffers::new(x.slice(12..));
            if takes.targets {
                buffers = buffers.targets(t.slice(4..));
            }
            if let Some(upstream) = &upstream {
                buffers = buffers.upstream(upstream.slice(8..));
            }
            if takes.elements {
                buffers = buffers.output(output.slice(4..));
            }
            if takes.rows != PerRow::None || takes.log_sum_exps {
                buffers = buffers.rows(rows.slice(12..));
            }
            if takes.rows == PerRow::Loss {
                buffers = buffers.loss(summary.slice(..));
            }
            Engine::run(self, &step.build().unwrap(), &buffers);

            let mut results = Results {
                start: started.start.clone(),
                saved: started.saved.clone(),
                drawn: started.drawn.clone(),
                ..Results::default()
            };
            if takes.elements {
                results.elements = self.read(output.slice(4..));
                results.elements.truncate(logits.len());
            }
            match takes.rows {
                PerRow::None => {}
                PerRow::Number | PerRow::Loss => {
                    results.rows = self.read(rows.slice(12..));
                    results.rows.truncate(count);
                }
                PerRow::Predictions(k) => {
                    results.predictions = self.read(rows.slice(12..));
                    results.predictions.truncate(count * k);
                }
            }
            if takes.rows == PerRow::Loss {
                let Summary { sum, weight, .. } = self.read(summary.slice(..))[0];
                let [sum, weight] =
                    [sum, weight].map(|pair| f64::from(pair[0]) + f64::from(pair[1]));
                let is_mean = inputs.options.reduction == Reduction::Mean;
                results.loss = Some(if is_mean { sum / weight } else { sum });
            }
            Some(results)
        }
    }
}
