//! Runs a case on a device and holds every result against float64, against the CPU path and against
//! a row run alone.

use logits::{Device, Error, Logits, Prediction, Reduction};

use super::cases::{Case, IGNORED};
use crate::measure::{Measure, error};
use crate::oracle::Row;

/// The worst that was seen of one quantity.
pub struct Finding {
    /// The quantity that was measured.
    pub quantity: &'static str,
    /// The worst that is allowed.
    pub bound: f64,
    /// How often it was measured.
    pub checked: u64,
    /// The worst that was seen.
    pub worst: f64,
    /// Where that was.
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

/// Everything that was seen on one device.
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

/// Quantities and their bounds, those of the crate's documentation. A class or a bit is right or it
/// is not.
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

    fn versus(&mut self, which: usize, got: f32, cpu: f32, measure: Measure, scale: f64) {
        if got.is_finite() && cpu.is_finite() {
            let difference = error(f64::from(got), f64::from(cpu), measure) / scale;
            let worst = &mut self.findings[which].versus_cpu;
            *worst = Some(worst.map_or(difference, |worst| worst.max(difference)));
        }
    }

    /// Runs `case` on `device`.
    ///
    /// # Errors
    /// That of the first operation that has no result.
    pub fn check(&mut self, device: &Device, case: &Case) -> Result<(), Error> {
        self.cases += 1;
        let cpu = Device::cpu();
        let got = Results::of(device, case)?;
        let twin = if device.is_gpu() { Some(Results::of(&cpu, case)?) } else { None };
        self.fell_back = self.fell_back.take().or_else(|| got.fell_back.clone());

        let weights = |target: i64| {
            case.weight.as_ref().map_or(1.0, |weight| f64::from(weight[target as usize]))
        };
        let counted = || case.targets.iter().filter(|&&target| target != IGNORED);
        let total: f64 = counted().map(|&target| weights(target)).sum();
        let denominator = if case.reduction == Reduction::Mean { total } else { 1.0 };
        let mut reduced = 0.0;
        let counted_rows = counted().count() as f64;
        // What each class is of a row's labels, what all of them are, and the same of the target
        // alone.
        let share = f64::from(case.smoothing) / case.classes as f64;
        let shares = share * (0..case.classes).map(|class| weights(class as i64)).sum::<f64>();
        let hit = 1.0 - f64::from(case.smoothing);

        for row in 0..case.rows {
            let place = |class: Option<usize>| {
                let class = class.map(|class| format!(" class {class}")).unwrap_or_default();
                format!("{}x{} {}, row {row}{class}", case.rows, case.classes, case.fill)
            };
            let x = case.row(row);
            let oracle = Row::new(x);
            let target = case.targets[row];
            let (factor, labels) = match target {
                IGNORED => (0.0, 0.0),
                _ => (f64::from(case.upstream) / denominator, hit * weights(target) + shares),
            };
            // The z-loss is a mean over the counted rows, whatever they weigh.
            let z = f64::from(case.z_loss)
                * if case.reduction == Reduction::Mean { total / counted_rows } else { 1.0 };
            let slope = if oracle.is_regular() { 2.0 * z * oracle.log_sum_exp() } else { 0.0 };
            // As much as goes into an element of the gradient.
            let scale = factor * (labels + slope.abs());

            let mut sum = 0.0;
            for class in 0..case.classes {
                let at = row * case.classes + class;
                let probability = f64::from(got.softmax[at]);
                sum += probability;
                self.note(
                    PROBABILITY,
                    error(probability, oracle.probability(class), Measure::Relative),
                    || place(Some(class)),
                );
                let log_probability = f64::from(got.log_softmax[at]);
                self.note(
                    LOG_PROBABILITY,
                    error(log_probability, oracle.log_probability(class), Measure::Relative),
                    || place(Some(class)),
                );

                let gradient = f64::from(got.gradient[at]);
                let is_target = class as i64 == target;
                let wanted = match target {
                    _ if !oracle.is_regular() => f64::NAN,
                    IGNORED => 0.0,
                    // The target's entry costs a whole sum; it is looked at below, once.
                    _ if is_target => gradient,
                    _ => {
                        factor
                            * ((labels + slope) * oracle.probability(class)
                                - share * weights(class as i64))
                    }
                };
                let unit = if scale == 0.0 { 1.0 } else { scale.abs() };
                if !is_target {
                    self.note(GRADIENT, error(gradient, wanted, Measure::Absolute) / unit, || {
                        place(Some(class))
                    });
                }
                if let Some(twin) = &twin {
                    self.versus(
                        PROBABILITY,
                        got.softmax[at],
                        twin.softmax[at],
                        Measure::Relative,
                        1.0,
                    );
                    self.versus(
                        LOG_PROBABILITY,
                        got.log_softmax[at],
                        twin.log_softmax[at],
                        Measure::Relative,
                        1.0,
                    );
                    self.versus(
                        GRADIENT,
                        got.gradient[at],
                        twin.gradient[at],
                        Measure::Absolute,
                        unit,
                    );
                }
            }
            if oracle.is_regular() {
                self.note(ROW_SUM, (sum - 1.0).abs(), || place(None));
            }

            let log_sum_exp = f64::from(got.log_sum_exp[row]);
            self.note(
                LOG_SUM_EXP,
                error(log_sum_exp, oracle.log_sum_exp(), Measure::Relative),
                || place(None),
            );

            let mut wanted = 0.0;
            if target != IGNORED {
                let class = target as usize;
                let weight = weights(target);
                wanted = -hit * weight * oracle.log_probability(class);
                if case.smoothing > 0.0 {
                    let every = |class| -weights(class as i64) * oracle.log_probability(class);
                    wanted += share * (0..case.classes).map(every).sum::<f64>();
                }
                if case.z_loss > 0.0 {
                    wanted += z * oracle.log_sum_exp().powi(2);
                }
                reduced += wanted;
                let gradient = f64::from(got.gradient[row * case.classes + class]);
                let own =
                    labels * oracle.gradient(class, class) + slope * oracle.probability(class);
                let exact = factor * (own + shares - share * weight);
                self.note(
                    GRADIENT,
                    error(gradient, exact, Measure::Absolute) / scale.abs(),
                    || place(Some(class)),
                );
                // Smoothed labels may take from the target just what they add.
                if case.smoothing == 0.0 && case.z_loss == 0.0 {
                    self.note(TARGET_GRADIENT, error(gradient, exact, Measure::Relative), || {
                        place(Some(class))
                    });
                }
                if let Some(twin) =
                    twin.as_ref().filter(|_| case.smoothing == 0.0 && case.z_loss == 0.0)
                {
                    let cpu = twin.gradient[row * case.classes + class];
                    self.versus(TARGET_GRADIENT, gradient as f32, cpu, Measure::Relative, 1.0);
                }
            }
            self.note(
                ROW_LOSS,
                error(f64::from(got.per_row[row]), wanted, Measure::Relative),
                || place(None),
            );

            let Prediction { class, probability } = got.predictions[row];
            self.note(CLASS, f64::from(u8::from(class as usize != oracle.argmax())), || {
                format!("{}: {class} for {}", place(None), oracle.argmax())
            });
            let wanted = oracle.probability(oracle.argmax());
            self.note(PREDICTED, error(f64::from(probability), wanted, Measure::Relative), || {
                place(None)
            });
            if let Some(twin) = &twin {
                self.versus(
                    LOG_SUM_EXP,
                    got.log_sum_exp[row],
                    twin.log_sum_exp[row],
                    Measure::Relative,
                    1.0,
                );
                self.versus(ROW_LOSS, got.per_row[row], twin.per_row[row], Measure::Relative, 1.0);
                let cpu = twin.predictions[row].probability;
                self.versus(PREDICTED, probability, cpu, Measure::Relative, 1.0);
            }
        }
        let place = format!("{}x{} {}", case.rows, case.classes, case.fill);
        self.note(LOSS, error(got.loss, reduced / denominator, Measure::Relative), || place);
        if let Some(twin) = &twin {
            self.versus(LOSS, got.loss as f32, twin.loss as f32, Measure::Relative, 1.0);
        }
        self.rows_alone(device, case, &got)
    }

    /// A row's bits depend on that row alone: neither on its neighbours nor on its place.
    fn rows_alone(&mut self, device: &Device, case: &Case, got: &Results) -> Result<(), Error> {
        for row in [0, case.rows / 2, case.rows - 1] {
            let alone = Case {
                rows: 1,
                logits: case.row(row).to_vec(),
                targets: vec![case.targets[row]],
                // Under a mean the row's scale would depend on the others.
                reduction: Reduction::Sum,
                weight: None,
                upstream: 1.0,
                ..*case
            };
            let alone = Results::of(device, &alone)?;
            let same_scale =
                case.weight.is_none() && case.upstream == 1.0 && case.reduction != Reduction::Mean;
            let part = row * case.classes..(row + 1) * case.classes;
            let same = same_bits(&alone.softmax, &got.softmax[part.clone()])
                && same_bits(&alone.log_softmax, &got.log_softmax[part.clone()])
                && (!same_scale || same_bits(&alone.gradient, &got.gradient[part]))
                && same_bits(&alone.log_sum_exp, &got.log_sum_exp[row..=row])
                && same_bits(
                    &[alone.predictions[0].probability],
                    &[got.predictions[row].probability],
                )
                && (case.weight.is_some() || same_bits(&alone.per_row, &got.per_row[row..=row]));
            self.note(ROW_BITS, f64::from(u8::from(!same)), || {
                format!("{}x{} {}, row {row}", case.rows, case.classes, case.fill)
            });
        }
        Ok(())
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
        let (loss, gradient) =
            device.cross_entropy(&case.loss(), x, &case.targets).with_gradient_vec()?;
        // The loss alone is another kernel that must come to the same.
        let alone = device.cross_entropy(&case.loss(), x, &case.targets).loss()?;
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
