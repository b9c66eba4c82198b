//! Every operation, option and type on one device, against float64: worst errors, in units of the
//! bounds that the crate's documentation states.

use logits::half::{bf16, f16};
use logits::{
    CrossEntropy, DType, Device, Element, Error, Logits, Prediction, Reduction, Sampling, Shape,
    Targets,
};

use crate::oracle::{self, Gradient, Labels, Row};
use crate::{Batch, Options, excess, noise};

mod matrix;

pub use matrix::matrix;

/// The worst error of an operation with an option, of one type. At most 1 is within the bound.
pub struct Finding {
    /// A method of `Device`, without `_vec`.
    pub operation: &'static str,
    /// Its option; empty where there is none.
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

/// The oracle's backward of a row, from the results of its forward and the upstream gradient.
type Backward = fn(&[f64], &[f64]) -> Vec<Gradient>;

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
    let mut suite = Suite { device, cpu: Device::cpu(), findings: Vec::new() };
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
    cpu: Device,
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

impl Suite<'_> {
    fn note<T: Element>(
        &mut self,
        operation: &'static str,
        option: &'static str,
        worst: f64,
        place: String,
    ) {
        let same = |seen: &&mut Finding| {
            (seen.operation, seen.option, seen.dtype) == (operation, option, T::DTYPE)
        };
        match self.findings.iter_mut().find(same) {
            Some(seen) if worst > seen.worst => (seen.worst, seen.place) = (worst, place),
            Some(_) => {}
            None => {
                self.findings.push(Finding { operation, option, dtype: T::DTYPE, worst, place })
            }
        }
    }

    /// Notes what came of an operation: an error of it, that the CPU had to finish it, or how far
    /// off its results are.
    fn judge<T: Element, R>(
        &mut self,
        operation: &'static str,
        option: &'static str,
        shape: Shape,
        result: Result<(R, Option<String>), Error>,
        judge: impl FnOnce(R) -> f64,
    ) {
        let (worst, why) = match result {
            Err(error) => (f64::INFINITY, error.to_string()),
            Ok((_, Some(reason))) => (f64::INFINITY, format!("finished on the CPU: {reason}")),
            Ok((values, None)) => (judge(values), String::new()),
        };
        self.note::<T>(operation, option, worst, format!("{shape:?} {why}"));
    }

    async fn of_type<T: Element>(&mut self, shape: Shape, what: What, narrow: fn(f64) -> T) {
        if what == What::Nothing {
            return;
        }
        let (classes, options) = (shape.classes(), what == What::Options);
        let plain = Batch::new(shape, |row, class| narrow(logit(row, class, classes)));
        // With what breaks softmax in some rows.
        let special = Batch::new(shape, |row, class| match row % 5 {
            0 if class == classes / 2 => narrow(f64::NEG_INFINITY),
            3 if class == classes - 1 => narrow(f64::NAN),
            4 if class == 0 => narrow(f64::INFINITY),
            _ => narrow(logit(row, class, classes)),
        });
        let capped = CrossEntropy::default().softcap(30.0).logit_scale(-0.75);
        let cap = |x: f64| 30.0 * (-0.75 * x / 30.0).tanh();
        // The factor is that f32.
        let cold = |x: f64| x / f64::from(0.7_f32);
        let view = |batch| Logits::new(batch, shape);
        self.rows::<T>("", &special, view(&special.values), |x| x).await;
        if options {
            self.rows::<T>(
                "temperature",
                &special,
                view(&special.values).and_then(|x| x.temperature(0.7)),
                cold,
            )
            .await;
            self.rows::<T>(
                "softcap, logit_scale",
                &plain,
                view(&plain.values).and_then(|x| x.as_seen_by(&capped)),
                cap,
            )
            .await;
        }
        self.backwards::<T>(&plain, narrow).await;
        self.losses::<T>(&plain, options).await;
    }

    /// Checks the operations that need logits alone. `transform` is the logit transform of `x`, on
    /// which the oracle is taken.
    async fn rows<T: Element>(
        &mut self,
        option: &'static str,
        batch: &Batch<T>,
        x: Result<Logits<'_, T>, Error>,
        transform: impl Fn(f64) -> f64,
    ) {
        let (device, shape) = (self.device, batch.shape);
        let x = match x {
            Ok(x) => x,
            Err(error) => {
                return self.note::<T>("logits", option, f64::INFINITY, error.to_string());
            }
        };
        let classes = shape.classes();
        let y: Vec<Vec<f64>> =
            batch.rows().iter().map(|x| x.iter().map(|&x| transform(x)).collect()).collect();
        let reduced: Vec<_> = y.iter().map(|y| Row::new(y)).collect();
        let elements = |values: &[T], wanted: &dyn Fn(usize, usize) -> f64, bound: f64| {
            let mut worst = 0.0_f64;
            for row in 0..y.len() {
                for class in 0..classes {
                    let wanted = wanted(row, class);
                    worst = worst.max(excess(
                        values[batch.place(row, class)],
                        wanted,
                        bound * wanted.abs(),
                    ));
                }
            }
            worst
        };
        let log_probability = |row: usize, class: usize| reduced[row].log_probability(class);

        let out = device.softmax(x).to_vec_async().await.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("softmax", option, shape, out, |p| {
            elements(&p, &|row, class| reduced[row].probability(class), 2e-6)
        });
        let out = device.log_softmax(x).to_vec_async().await.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("log_softmax", option, shape, out, |p| {
            elements(&p, &log_probability, 1e-6)
        });
        let out = device.log_sum_exp(x).to_vec_async().await.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("log_sum_exp", option, shape, out, |values| {
            let of = |(row, &got): (&Row<'_>, &T::Row)| {
                // Of rows without a softmax, the battery of `logits check` knows which of NaN and
                // infinities it is.
                let wanted = row.log_sum_exp();
                if row.is_regular() { excess(got, wanted, 1e-6 * wanted.abs()) } else { 0.0 }
            };
            reduced.iter().zip(&values).map(of).fold(0.0, f64::max)
        });

        let of_prediction = |row: usize, found: &Prediction, wanted: f64| {
            let class = found.class as usize;
            let is_right = class < classes && y[row][class] == wanted;
            let p = if is_right { reduced[row].probability(class) } else { f64::NAN };
            if is_right { excess(found.probability, p, 2e-6 * p) } else { f64::INFINITY }
        };
        let out = device.predict(x).to_vec_async().await.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("predict", option, shape, out, |found| {
            let of = |(row, found): (usize, &Prediction)| {
                if reduced[row].is_regular() {
                    of_prediction(row, found, reduced[row].max())
                } else {
                    0.0
                }
            };
            found.iter().enumerate().map(of).fold(0.0, f64::max)
        });
        let k = classes.min(5);
        let out = device.top_k(x, k).to_vec_async().await.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("top_k", option, shape, out, |found| {
            let mut worst = 0.0_f64;
            for (row, found) in
                found.chunks(k).enumerate().filter(|&(row, _)| reduced[row].is_regular())
            {
                let mut sorted = y[row].clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                for (found, &wanted) in found.iter().zip(&sorted) {
                    worst = worst.max(of_prediction(row, found, wanted));
                }
            }
            worst
        });
        if option.starts_with("softcap") {
            // No draws under a cap.
            return;
        }
        for (name, sampling) in [
            ("sample", Sampling::new(7)),
            ("sample, top_k", Sampling::new(8).top_k(3)),
            ("sample, top_p", Sampling::new(9).top_p(0.8)),
        ] {
            let out = device
                .sample(&sampling, x)
                .to_vec_async()
                .await
                .map(|out| (out.values, out.fell_back));
            let twin = self.cpu.sample(&sampling, x).to_vec_async().await.map(|out| out.values);
            self.judge::<T, _>(name, option, shape, out, |found| {
                let classes = |found: &[Prediction]| {
                    found.iter().map(|found| found.class).collect::<Vec<_>>()
                };
                // A draw is the same on every device.
                if twin.is_ok_and(|twin| classes(&twin) == classes(&found)) {
                    0.0
                } else {
                    f64::INFINITY
                }
            });
        }
    }

    /// Gradients through softmax and its logarithm, from values as exact as the type has them.
    async fn backwards<T: Element>(&mut self, batch: &Batch<T>, narrow: fn(f64) -> T) {
        let (device, shape) = (self.device, batch.shape);
        let rows = batch.rows();
        let reduced: Vec<_> = rows.iter().map(|x| Row::new(x)).collect();
        let logs = Batch::new(shape, |row, class| narrow(reduced[row].log_probability(class)));
        let shares = Batch::new(shape, |row, class| narrow(reduced[row].probability(class)));
        let upstream = Batch::new(shape, |row, class| narrow(noise(row + 99, class)));
        let judged = |out: &[T], of: &Batch<T>, backward: Backward| {
            let mut worst = 0.0_f64;
            for (row, (y, g)) in of.rows().iter().zip(upstream.rows()).enumerate() {
                for (class, Gradient { value, scale, .. }) in
                    backward(y, &g).into_iter().enumerate()
                {
                    worst = worst.max(excess(out[of.place(row, class)], value, 1e-6 * scale));
                }
            }
            worst
        };
        let out = match Logits::new(&shares.values, shape) {
            Ok(p) => device.softmax_backward(p, &upstream.values).to_vec_async().await,
            Err(error) => Err(error),
        };
        let out = out.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("softmax_backward", "", shape, out, |out| {
            judged(&out, &shares, oracle::softmax_backward)
        });
        let out = match Logits::new(&logs.values, shape) {
            Ok(l) => device.log_softmax_backward(l, &upstream.values).to_vec_async().await,
            Err(error) => Err(error),
        };
        let out = out.map(|out| (out.values, out.fell_back));
        self.judge::<T, _>("log_softmax_backward", "", shape, out, |out| {
            judged(&out, &logs, oracle::log_softmax_backward)
        });
    }

    async fn losses<T: Element>(&mut self, batch: &Batch<T>, with_options: bool) {
        let (shape, classes, rows) = (batch.shape, batch.shape.classes(), batch.shape.row_count());
        let values = batch.rows();
        let targets: Vec<i64> = (0..rows)
            .map(|row| if row % 4 == 1 { row * 7 % classes } else { row * 13 % classes } as i64)
            .collect();
        let ignored: Vec<i64> = targets
            .iter()
            .enumerate()
            .map(|(row, &class)| if row % 3 == 2 { -100 } else { class })
            .collect();
        let soft: Vec<Vec<f64>> = (0..rows)
            .map(|row| {
                (0..classes)
                    .map(|class| f64::from((noise(row + 7, class) + 1.0) as f32 / classes as f32))
                    .collect()
            })
            .collect();
        let probabilities = Batch::new(shape, |row, class| soft[row][class] as f32);
        let weight: Vec<f32> = (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
        let factors: Vec<f32> = (0..rows).map(|row| noise(3, row) as f32).collect();

        let plain = Options::default();
        let mean = Options { reduction: Reduction::Mean, ..Options::default() };
        let every = Options {
            weight: Some(weight.clone()),
            label_smoothing: 0.1,
            z_loss: 1e-3,
            softcap: Some(20.0),
            logit_scale: 0.5,
            reduction: Reduction::None,
            row_gradients: Some(factors.clone()),
            ..plain.clone()
        };
        let cases = [
            ("", plain.clone(), &targets, false),
            ("mean", mean.clone(), &targets, false),
            ("ignore_index", mean.clone(), &ignored, false),
            ("weight", Options { weight: Some(weight.clone()), ..mean.clone() }, &targets, false),
            ("label_smoothing", Options { label_smoothing: 0.1, ..mean.clone() }, &targets, false),
            ("z_loss", Options { z_loss: 1e-2, ..plain.clone() }, &targets, false),
            ("softcap", Options { softcap: Some(30.0), ..plain.clone() }, &targets, false),
            ("logit_scale", Options { logit_scale: -0.75, ..plain.clone() }, &targets, false),
            ("upstream_gradient", Options { upstream: -2.5, ..mean.clone() }, &targets, false),
            (
                "upstream_gradients",
                Options { row_gradients: Some(factors), ..plain.clone() },
                &targets,
                false,
            ),
            ("probabilities", mean.clone(), &targets, true),
            ("every option", every.clone(), &ignored, false),
            ("every option, probabilities", every, &targets, true),
        ];
        for (option, options, targets, is_soft) in
            cases.into_iter().take(if with_options { usize::MAX } else { 1 })
        {
            let labels: Vec<Labels<'_>> = match is_soft {
                true => soft.iter().map(|q| Labels::Probabilities(q)).collect(),
                false => targets.iter().map(|&class| Labels::Class(class)).collect(),
            };
            let wanted = options.expected(&values, &labels);
            let given = || {
                if is_soft {
                    Targets::probabilities(&probabilities.values)
                } else {
                    Targets::from(targets)
                }
            };
            let loss = options.loss();
            let reduced = |found: f64, per_row: &[T::Row]| {
                let rows = per_row.iter().zip(&wanted.per_row);
                let worst = rows
                    .map(|(&got, &wanted)| excess(got, wanted, 1e-6 * wanted.abs()))
                    .fold(0.0, f64::max);
                match options.reduction {
                    Reduction::None => worst,
                    _ => excess(found, wanted.loss, 1e-6 * wanted.loss.abs()).max(worst),
                }
            };
            let gradients = |found: &[T], more: &dyn Fn(usize) -> f64| {
                let mut worst = 0.0_f64;
                for (row, gradient) in wanted.gradients.iter().enumerate() {
                    let bound = (1e-6 + more(row)) * wanted.scale[row];
                    for (class, &wanted) in gradient.iter().enumerate() {
                        worst = worst.max(excess(found[batch.place(row, class)], wanted, bound));
                    }
                }
                worst
            };
            let x = match Logits::new(&batch.values, shape) {
                Ok(x) => x,
                Err(error) => {
                    return self.note::<T>("logits", option, f64::INFINITY, error.to_string());
                }
            };
            let device = self.device;
            let out = device.cross_entropy(&loss, x, given()).loss_async().await;
            let out = out.map(|out| ((out.loss, out.per_row), out.fell_back));
            self.judge::<T, _>("cross_entropy", option, shape, out, |(loss, per_row)| {
                reduced(loss, &per_row)
            });
            let out = device.cross_entropy(&loss, x, given()).with_gradient_vec_async().await;
            let out = out.map(|(out, gradient)| ((out.loss, out.per_row, gradient), out.fell_back));
            self.judge::<T, _>(
                "cross_entropy_grad",
                option,
                shape,
                out,
                |(loss, per_row, gradient)| {
                    reduced(loss, &per_row).max(gradients(&gradient, &|_| 0.0))
                },
            );
            // From log-sum-exps as f32 has them: of those of 300, 3e-5 remain uncertain.
            let saved: Result<Vec<T::Row>, Error> = match x.as_seen_by(&loss) {
                Ok(x) => self.cpu.log_sum_exp(x).to_vec_async().await.map(|out| out.values),
                Err(error) => Err(error),
            };
            let (out, known) = match saved {
                Ok(saved) => {
                    let out = device
                        .cross_entropy_backward(&loss, x, given(), &saved)
                        .to_vec_async()
                        .await;
                    (out.map(|out| (out.values, out.fell_back)), saved)
                }
                Err(error) => (Err(error), Vec::new()),
            };
            let unit = if T::DTYPE == DType::F64 { 0.0 } else { f64::from(f32::EPSILON) };
            self.judge::<T, _>("cross_entropy_backward", option, shape, out, |gradient| {
                gradients(&gradient, &|row| known[row].into().abs() * unit)
            });
        }
    }
}
