//! Runs a case on a device, and compares every result with float64, with the CPU path and with a
//! row run alone.

use logits::{Device, Error, Logits, Prediction, Reduction};

use super::cases::Case;
use crate::Options;
use crate::measure::{Measure, error};
use crate::oracle::{Expected, Row};

/// The worst error of one quantity.
pub struct Finding {
    /// The quantity that was measured.
    pub quantity: &'static str,
    /// The largest error that is allowed.
    pub bound: f64,
    /// How often it was measured.
    pub checked: u64,
    /// The worst error.
    pub worst: f64,
    /// The place of the worst error.
    pub place: String,
    /// Largest difference from the CPU path in the same measure, between finite values; `None`
    /// where it is not taken.
    pub versus_cpu: Option<f64>,
}

impl Finding {
    /// Whether the worst is within the bound.
    pub fn passed(&self) -> bool {
        self.worst <= self.bound
    }
}

/// All findings on one device.
pub struct Report {
    /// One for each quantity.
    pub findings: Vec<Finding>,
    /// How many cases were run.
    pub cases: usize,
    /// Why a result was finished on the CPU, if one was.
    pub fell_back: Option<String>,
}

const PROBABILITY: usize = 0;
const ROW_SUM: usize = 1;
const LOG_PROBABILITY: usize = 2;
const LOG_SUM_EXP: usize = 3;
const ROW_LOSS: usize = 4;
const LOSS: usize = 5;
const GRADIENT: usize = 6;
const TARGET_GRADIENT: usize = 7;
const CLASS: usize = 8;
const PREDICTED: usize = 9;
const ROW_BITS: usize = 10;

/// Quantities and their bounds, as in the crate's documentation. The bound of classes and bits is
/// 0.
const QUANTITIES: [(&str, f64); 11] = [
    ("softmax, relative", 2e-6),
    ("softmax row sum - 1", 1e-6),
    ("log_softmax, relative", 1e-6),
    ("log_sum_exp, relative", 1e-6),
    ("loss of a row, relative", 1e-6),
    ("loss reduced, relative", 1e-6),
    ("gradient, of its scale", 1e-6),
    ("gradient of target, relative", 2e-6),
    ("predicted class, wrong", 0.0),
    ("predicted probability, relative", 2e-6),
    ("row alone, other bits", 0.0),
];

impl Default for Report {
    fn default() -> Self {
        let findings = QUANTITIES
            .map(|(quantity, bound)| Finding {
                quantity,
                bound,
                checked: 0,
                worst: 0.0,
                place: String::new(),
                versus_cpu: None,
            })
            .into();
        Self { findings, cases: 0, fell_back: None }
    }
}

impl Report {
    /// Whether all findings are within their bounds and all results come from the device.
    pub fn passed(&self) -> bool {
        self.fell_back.is_none() && self.findings.iter().all(Finding::passed)
    }

    fn note(&mut self, which: usize, error: f64, place: impl FnOnce() -> String) {
        let finding = &mut self.findings[which];
        finding.checked += 1;
        if error > finding.worst || (error.is_nan() && finding.worst.is_finite()) {
            finding.worst = if error.is_nan() { f64::INFINITY } else { error };
            finding.place = place();
        }
    }

    fn versus(&mut self, which: usize, got: f32, cpu: f32, measure: Measure) {
        if got.is_finite() && cpu.is_finite() {
            let difference = error(f64::from(got), f64::from(cpu), measure);
            let worst = &mut self.findings[which].versus_cpu;
            *worst = Some(worst.map_or(difference, |worst| worst.max(difference)));
        }
    }

    /// Notes the error of a result, and its difference from the CPU path if that was run.
    fn compare(
        &mut self,
        which: usize,
        (got, cpu): (f32, Option<f32>),
        wanted: f64,
        measure: Measure,
        place: impl FnOnce() -> String,
    ) {
        self.note(which, error(f64::from(got), wanted, measure), place);
        if let Some(cpu) = cpu {
            self.versus(which, got, cpu, measure);
        }
    }

    /// Runs `case` on `device`.
    ///
    /// # Errors
    /// The error of the first operation that fails.
    pub fn check(&mut self, device: &Device, case: &Case) -> Result<(), Error> {
        self.cases += 1;
        let got = Results::of(device, case)?;
        let cpu = if device.is_gpu() { Some(Results::of(&Device::cpu(), case)?) } else { None };
        self.fell_back = self.fell_back.take().or_else(|| got.fell_back.clone());

        let run = Run { case, got, cpu, expected: case.expected() };
        for row in 0..case.rows {
            let oracle = Row::new(case.row(row));
            self.elements(&run, row, &oracle);
            self.values(&run, row, &oracle);
            self.decision(&run, row, &oracle);
        }
        let loss = run.got.loss;
        self.note(LOSS, error(loss, run.expected.loss, Measure::Relative), || case.name());
        if let Some(cpu) = &run.cpu {
            self.versus(LOSS, loss as f32, cpu.loss as f32, Measure::Relative);
        }
        self.rows_alone(device, case, &run.got)
    }

    /// Judges the values of each class of a row: softmax, log-softmax and the gradient.
    fn elements(&mut self, run: &Run<'_>, row: usize, oracle: &Row<'_, f32>) {
        let (case, expected) = (run.case, &run.expected);
        // Without a softmax the gradient is NaN, and so is its scale.
        let scale = if oracle.is_regular() { expected.scale[row] } else { 1.0 };
        let mut sum = 0.0;
        for class in 0..case.classes {
            let at = row * case.classes + class;
            let place = || case.element_name(row, class);
            let probability = run.both(|results| results.softmax[at]);
            let wanted = oracle.probability(class);
            sum += f64::from(probability.0);
            self.compare(PROBABILITY, probability, wanted, Measure::Relative, place);

            let log_probability = run.both(|results| results.log_softmax[at]);
            let wanted = oracle.log_probability(class);
            self.compare(LOG_PROBABILITY, log_probability, wanted, Measure::Relative, place);

            let gradient = run.both(|results| results.gradient[at]);
            let wanted = expected.gradients[row][class];
            self.compare(GRADIENT, gradient, wanted, Measure::OfScale(scale), place);
        }
        if oracle.is_regular() {
            self.note(ROW_SUM, (sum - 1.0).abs(), || case.row_name(row));
        }
    }

    /// Judges the values of a row: its log-sum-exp, its loss and the gradient of its target.
    fn values(&mut self, run: &Run<'_>, row: usize, oracle: &Row<'_, f32>) {
        let (case, expected) = (run.case, &run.expected);
        let place = || case.row_name(row);
        let log_sum_exp = run.both(|results| results.log_sum_exp[row]);
        let wanted = oracle.log_sum_exp();
        self.compare(LOG_SUM_EXP, log_sum_exp, wanted, Measure::Relative, place);

        let loss = run.both(|results| results.per_row[row]);
        self.compare(ROW_LOSS, loss, expected.per_row[row], Measure::Relative, place);

        let Options { ignored, label_smoothing, z_loss, upstream, .. } = &case.options;
        // With smoothed labels the terms of a target may cancel.
        let is_plain = *label_smoothing == 0.0 && *z_loss == 0.0;
        if is_plain && !ignored.contains(&case.targets[row]) {
            let class = case.targets[row] as usize;
            let gradient = run.both(|results| results.gradient[row * case.classes + class]);
            // The row's scale is the size of its weight and factors. Times p - 1 it is the target's
            // gradient; `expected` has lost its last digits where p is next to 1.
            let factor = f64::from(upstream.signum()) * expected.scale[row];
            let wanted = factor * oracle.gradient(class, class);
            self.compare(TARGET_GRADIENT, gradient, wanted, Measure::Relative, || {
                case.element_name(row, class)
            });
        }
    }

    /// Judges the predicted class of a row, and its probability.
    fn decision(&mut self, run: &Run<'_>, row: usize, oracle: &Row<'_, f32>) {
        let (class, wanted) = (run.got.predictions[row].class as usize, oracle.argmax());
        self.note(CLASS, f64::from(u8::from(class != wanted)), || {
            format!("{}: {class} for {wanted}", run.case.row_name(row))
        });
        let probability = run.both(|results| results.predictions[row].probability);
        self.compare(PREDICTED, probability, oracle.probability(wanted), Measure::Relative, || {
            run.case.row_name(row)
        });
    }

    /// Checks that a row's bits depend on that row alone, not on its neighbours or its place.
    fn rows_alone(&mut self, device: &Device, case: &Case, got: &Results) -> Result<(), Error> {
        let Options { weight, upstream, reduction, .. } = &case.options;
        let same_scale = weight.is_none() && *upstream == 1.0 && *reduction != Reduction::Mean;
        let options = Options {
            // Under a mean the row's scale would depend on other rows.
            reduction: Reduction::Sum,
            weight: None,
            upstream: 1.0,
            ..case.options.clone()
        };
        for row in [0, case.rows / 2, case.rows - 1] {
            let alone = Case {
                fill: case.fill,
                rows: 1,
                classes: case.classes,
                logits: case.row(row).to_vec(),
                targets: vec![case.targets[row]],
                options: options.clone(),
            };
            let alone = Results::of(device, &alone)?;
            let part = row * case.classes..(row + 1) * case.classes;
            let same = same_bits(&alone.softmax, &got.softmax[part.clone()])
                && same_bits(&alone.log_softmax, &got.log_softmax[part.clone()])
                && (!same_scale || same_bits(&alone.gradient, &got.gradient[part]))
                && same_bits(&alone.log_sum_exp, &got.log_sum_exp[row..=row])
                && same_bits(
                    &[alone.predictions[0].probability],
                    &[got.predictions[row].probability],
                )
                && (weight.is_some() || same_bits(&alone.per_row, &got.per_row[row..=row]));
            self.note(ROW_BITS, f64::from(u8::from(!same)), || case.row_name(row));
        }
        Ok(())
    }
}

/// A case, its results, and what the oracle expects of the loss.
struct Run<'a> {
    case: &'a Case,
    got: Results,
    /// The results of the CPU path; `None` if the device is the CPU.
    cpu: Option<Results>,
    expected: Expected,
}

impl Run<'_> {
    /// Returns a value of the device, and the same value of the CPU path.
    fn both(&self, value: impl Fn(&Results) -> f32) -> (f32, Option<f32>) {
        (value(&self.got), self.cpu.as_ref().map(value))
    }
}

/// All operations over one case.
struct Results {
    softmax: Vec<f32>,
    log_softmax: Vec<f32>,
    log_sum_exp: Vec<f32>,
    predictions: Vec<Prediction>,
    loss: f64,
    per_row: Vec<f32>,
    gradient: Vec<f32>,
    fell_back: Option<String>,
}

impl Results {
    fn of(device: &Device, case: &Case) -> Result<Self, Error> {
        let x = Logits::new(&case.logits, [case.rows, case.classes])?;
        let softmax = device.softmax(x).to_vec()?;
        let log_softmax = device.log_softmax(x).to_vec()?;
        let log_sum_exp = device.log_sum_exp(x).to_vec()?;
        let predictions = device.predict(x).to_vec()?;
        let options = case.options.loss();
        let (loss, gradient) =
            device.cross_entropy(&options, x, &case.targets).with_gradient_vec()?;
        // The loss alone is computed by another kernel, and must have the same bits.
        let alone = device.cross_entropy(&options, x, &case.targets).loss()?;
        let agree = same_bits(&alone.per_row, &loss.per_row);
        let fell_back = [
            softmax.fell_back,
            log_softmax.fell_back,
            log_sum_exp.fell_back,
            predictions.fell_back,
        ];
        Ok(Self {
            softmax: softmax.values,
            log_softmax: log_softmax.values,
            log_sum_exp: log_sum_exp.values,
            predictions: predictions.values,
            loss: if agree { loss.loss } else { f64::NEG_INFINITY },
            per_row: loss.per_row,
            gradient,
            fell_back: fell_back
                .into_iter()
                .chain([loss.fell_back, alone.fell_back])
                .flatten()
                .next(),
        })
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    let bits = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
    a.len() == b.len() && a.iter().map(bits).eq(b.iter().map(bits))
}
