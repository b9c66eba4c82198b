//! Every option of the loss with every other: against PyTorch's answers in float64 (`tests/options.py` made the file), and
//! against a float64 reference, on every device.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;
#[path = "common/reference.rs"]
mod reference;

use logits::half::{bf16, f16};
use logits::{Device, Element, Logits, LogitsMut, Reduction, Shape, Targets};
use reference::{Expected, Labels, Options, expected};
use serde_json::Value;

/// Worst errors, in units of their bounds.
#[derive(Default)]
struct Worst {
    combinations: usize,
    loss: f64,
    gradient: f64,
}

impl Worst {
    fn print(&self, what: &str, device: &Device) {
        let Self { combinations, loss, gradient } = self;
        println!(
            "{what} on {} ({}): {combinations} combinations, worst relative error of a loss {loss:.1e}, of a gradient {gradient:.1e} of its scale",
            device.name(),
            device.backend()
        );
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn relative(got: f64, wanted: f64) -> f64 {
    if got == wanted { 0.0 } else { (got - wanted).abs() / wanted.abs().max(1e-30) }
}

#[test]
fn every_combination_agrees_with_pytorch() {
    let file: Value = serde_json::from_str(include_str!("options.json")).unwrap();
    let weight = narrow(&numbers(&file["weight"]));
    for device in common::devices() {
        let mut worst = Worst::default();
        for case in file["cases"].as_array().unwrap() {
            let given = &file["inputs"][case["layout"].as_str().unwrap()];
            let number = |key: &str| case[key].as_f64().unwrap() as f32;
            let is = |key: &str| case[key].as_bool().unwrap();
            let dimensions: Vec<usize> = numbers(&given["shape"]).iter().map(|&size| size as usize).collect();
            let shape = Shape::of_dimensions(&dimensions).unwrap();
            let logits = narrow(&numbers(&given["x"]));
            let classes: Vec<i64> = numbers(&given["targets"]).iter().map(|&class| class as i64).collect();
            let probabilities = narrow(&numbers(&given["probabilities"]));
            let targets = if is("soft") { Targets::probabilities(&probabilities) } else { Targets::from(&classes) };
            let options = Options {
                ignored: vec![if is("ignored") { 2 } else { -100 }],
                weight: is("weighted").then(|| weight.clone()),
                label_smoothing: number("label_smoothing"),
                z_loss: number("z_loss"),
                softcap: case["softcap"].as_f64().map(|cap| cap as f32),
                logit_scale: number("logit_scale"),
                reduction: match case["reduction"].as_str().unwrap() {
                    "mean" => Reduction::Mean,
                    "sum" => Reduction::Sum,
                    _ => Reduction::None,
                },
                upstream: number("upstream"),
                row_gradients: is("by_rows").then(|| narrow(&numbers(&given["row_gradients"]))),
            };
            let x = Logits::new(&logits, shape).unwrap();
            let (out, gradient) = device.cross_entropy_grad_vec(&options.loss(), x, targets).unwrap();
            assert_eq!(out.fell_back, None);
            let error = relative(out.loss, case["loss"].as_f64().unwrap());
            worst.loss = worst.loss.max(error);
            assert!(error <= 1e-6, "{options:?}: {} for PyTorch's {}", out.loss, case["loss"]);
            if !case["per_row"].is_null() {
                for (&got, wanted) in out.per_row.iter().zip(numbers(&case["per_row"])) {
                    let error = relative(f64::from(got), wanted);
                    worst.loss = worst.loss.max(error);
                    assert!(error <= 1e-6, "{options:?}: {got} for PyTorch's {wanted}");
                }
            }
            let batch = Batch {
                shape,
                logits: numbers(&given["x"]),
                classes: classes.clone(),
                probabilities: numbers(&given["probabilities"]),
                row_gradients: Vec::new(),
                weight: Vec::new(),
            };
            let scale = batch.expected(&options, is("soft"), &logits).scale;
            let wanted = numbers(&case["gradient"]);
            for row in 0..shape.row_count() {
                for class in 0..shape.classes() {
                    let (got, wanted) = (gradient[batch.place(row, class)], wanted[batch.place(row, class)]);
                    // The file has 11 digits.
                    let error = (f64::from(got) - wanted).abs() / if scale[row] == 0.0 { 1.0 } else { scale[row] };
                    worst.gradient = worst.gradient.max(error);
                    assert!(error <= 1e-6, "{options:?}: {got} for PyTorch's {wanted}");
                }
            }
            worst.combinations += 1;
        }
        worst.print("PyTorch", &device);
        assert_eq!(worst.combinations, 648);
    }
}

/// Logits and labels of a shape, without a library of random numbers that a seed might not outlive.
struct Batch {
    shape: Shape,
    logits: Vec<f64>,
    classes: Vec<i64>,
    probabilities: Vec<f64>,
    row_gradients: Vec<f32>,
    weight: Vec<f32>,
}

impl Batch {
    fn new(shape: Shape, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        // Splitmix64.
        let mut uniform = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f64 / (1 << 24) as f64
        };
        let (rows, classes) = (shape.row_count(), shape.classes());
        let elements = shape.elements().unwrap();
        let logits = (0..elements).map(|_| (uniform() + uniform() + uniform() - 1.5) * 8.0).collect();
        let mut probabilities: Vec<f64> = (0..elements).map(|_| uniform()).collect();
        // What a row's sum to is the caller's to see to; here about 1.
        probabilities.iter_mut().for_each(|q| *q = f64::from((*q * 2.0 / classes as f64) as f32));
        Self {
            shape,
            logits,
            classes: (0..rows).map(|row| if row % 3 == 1 { 1 } else { (uniform() * classes as f64) as i64 }).collect(),
            probabilities,
            row_gradients: (0..rows).map(|_| (uniform() * 4.0 - 2.0) as f32).collect(),
            weight: (0..classes).map(|class| [0.75, 1.5, 0.0, 2.0, 0.5][class % 5]).collect(),
        }
    }

    fn place(&self, row: usize, class: usize) -> usize {
        let (inner, classes) = (self.shape.inner(), self.shape.classes());
        (row / inner * classes + class) * inner + row % inner
    }

    fn rows_of(&self, values: &[f64]) -> Vec<Vec<f64>> {
        let row = |row| (0..self.shape.classes()).map(|class| values[self.place(row, class)]).collect();
        (0..self.shape.row_count()).map(row).collect()
    }

    /// What the reference makes of the logits as a type holds them.
    fn expected<T: Element>(&self, options: &Options, is_soft: bool, logits: &[T]) -> Expected {
        let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        let (rows, probabilities) = (self.rows_of(&logits), self.rows_of(&self.probabilities));
        let labels: Vec<Labels<'_>> = match is_soft {
            true => probabilities.iter().map(|q| Labels::Probabilities(q)).collect(),
            false => self.classes.iter().map(|&class| Labels::Class(class)).collect(),
        };
        expected(&rows, &labels, options)
    }

    fn targets(&self, is_soft: bool) -> Targets<'_> {
        if is_soft { Targets::probabilities(&self.probabilities) } else { Targets::from(&self.classes) }
    }
}

/// Every choice of options that may be made together: 3,456 of them.
fn combinations(batch: &Batch) -> Vec<(Options, bool)> {
    let mut all = Vec::new();
    for nth in 0..4 * 2 * 3 * 2 * 2 * 3 * 3 * 2 * 2_usize {
        let mut rest = nth;
        let mut pick = |count: usize| {
            let picked = rest % count;
            rest /= count;
            picked
        };
        let (is_soft, ignored) =
            [(true, vec![]), (false, vec![]), (false, vec![1]), (false, vec![-100, 1, 0])][pick(4)].clone();
        let options = Options {
            ignored,
            weight: (pick(2) == 1).then(|| batch.weight.clone()),
            label_smoothing: [0.0, 0.1, 1.0][pick(3)],
            z_loss: [0.0, 0.02][pick(2)],
            softcap: [None, Some(5.0)][pick(2)],
            logit_scale: [1.0, 0.7, -1.3][pick(3)],
            reduction: [Reduction::Mean, Reduction::Sum, Reduction::None][pick(3)],
            upstream: [1.0, -2.5][pick(2)],
            row_gradients: (pick(2) == 1).then(|| batch.row_gradients.clone()),
        };
        all.push((options, is_soft));
    }
    all
}

/// One combination in a type: loss, losses of rows, gradient, and the other ways to the same.
fn compare<T: Element>(
    device: &Device,
    batch: &Batch,
    logits: &[T],
    (options, is_soft): &(Options, bool),
    bound: f64,
    worst: &mut Worst,
) -> (Vec<T>, Expected) {
    let what = || format!("{}, soft {is_soft}, {:?} of {} on {device}", options.brief(), batch.shape, T::DTYPE);
    let wanted = batch.expected(options, *is_soft, logits);
    let (loss, targets) = (options.loss(), batch.targets(*is_soft));
    let x = Logits::new(logits, batch.shape).unwrap();
    let (out, gradient) = device.cross_entropy_grad_vec(&loss, x, targets).unwrap();
    assert_eq!(out.fell_back, None);
    let error = if wanted.loss.is_nan() && out.loss.is_nan() { 0.0 } else { relative(out.loss, wanted.loss) };
    worst.loss = worst.loss.max(error);
    assert!(error <= bound, "{}: loss {} for {}", what(), out.loss, wanted.loss);
    for (row, (&got, &wanted)) in out.per_row.iter().zip(&wanted.per_row).enumerate() {
        let error = relative(got.into(), wanted);
        worst.loss = worst.loss.max(error);
        assert!(error <= bound, "{}: loss of row {row} {got:?} for {wanted}", what());
    }
    let alone = device.cross_entropy(&loss, x, targets).unwrap();
    assert_eq!(alone.loss.to_bits(), out.loss.to_bits(), "{}: loss alone", what());
    let mut in_place = logits.to_vec();
    device.cross_entropy_grad_in_place(&loss, LogitsMut::new(&mut in_place, batch.shape).unwrap(), targets).unwrap();
    assert_eq!(bits(&in_place), bits(&gradient), "{}: in place", what());
    worst.combinations += 1;
    (gradient, wanted)
}

fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&value| value.into().to_bits()).collect()
}

/// Gradients within a bound of the scale of their row.
fn gradients_within<T: Element>(batch: &Batch, got: &[T], wanted: &Expected, bound: f64, what: &str) -> f64 {
    let mut worst = 0.0_f64;
    for (row, (gradient, &scale)) in wanted.gradients.iter().zip(&wanted.scale).enumerate() {
        for (class, &wanted) in gradient.iter().enumerate() {
            let got: f64 = got[batch.place(row, class)].into();
            if scale.is_nan() || scale.is_infinite() {
                // A mean over rows that weigh nothing.
                assert!(got.is_nan(), "{what}: row {row} class {class}: {got}");
                continue;
            }
            let error = (got - wanted).abs() / if scale == 0.0 { 1.0 } else { scale };
            assert!(error <= bound, "{what}: row {row} class {class}: {got} for {wanted}");
            worst = worst.max(error);
        }
    }
    worst
}

#[test]
fn every_combination_agrees_with_float64() {
    for device in common::devices() {
        let mut worst = Worst::default();
        for (nth, shape) in [Shape::rows(4, 7), Shape::new(2, 6, 3)].into_iter().enumerate() {
            let batch = Batch::new(shape, nth as u64);
            let logits = narrow(&batch.logits);
            for combination in combinations(&batch) {
                let (gradient, wanted) = compare(&device, &batch, &logits, &combination, 1e-6, &mut worst);
                let what = format!("{} {} on {device}", combination.0.brief(), combination.1);
                worst.gradient = worst.gradient.max(gradients_within(&batch, &gradient, &wanted, 1e-6, &what));
            }
        }
        worst.print("float64", &device);
        assert_eq!(worst.combinations, 2 * 3456);
    }
}

/// Those that need a kernel of their own, in every regime, layout and type.
fn kernels(batch: &Batch) -> Vec<(Options, bool)> {
    let is_new = |options: &Options| {
        options.upstream == 1.0
            && options.reduction == Reduction::Mean
            && options.label_smoothing < 1.0
            && options.weight.is_some()
            && options.row_gradients.is_some() == options.softcap.is_some()
    };
    combinations(batch)
        .into_iter()
        .filter(|(options, soft)| is_new(options) && (*soft || options.ignored.len() == 1))
        .collect()
}

#[test]
fn every_kernel_agrees_with_float64() {
    for device in common::devices() {
        let mut worst = Worst::default();
        for (nth, shape) in [
            Shape::rows(3, 2049),
            Shape::rows(2, 131_075),
            Shape::new(1, 2051, 3),
            Shape::new(2, 2, 131),
            Shape::new(1, 131_073, 2),
        ]
        .into_iter()
        .enumerate()
        {
            let batch = Batch::new(shape, 10 + nth as u64);
            let logits = narrow(&batch.logits);
            for (nth, combination) in kernels(&batch).into_iter().enumerate() {
                if shape.classes() > 100_000 && nth % 3 > 0 {
                    continue;
                }
                let (gradient, wanted) = compare(&device, &batch, &logits, &combination, 1e-6, &mut worst);
                let what = format!("{} {} {shape:?} on {device}", combination.0.brief(), combination.1);
                worst.gradient = worst.gradient.max(gradients_within(&batch, &gradient, &wanted, 1e-6, &what));
            }
        }
        worst.print("float64, every kernel", &device);
    }
}

/// The distance of a half from a number, in units of its last place.
fn units(got: f64, wanted: f64, digits: i32, smallest: i32, nearest: f64) -> f64 {
    let exponent = (wanted.abs().max(f64::MIN_POSITIVE).log2().floor() as i32).max(smallest);
    // What is wanted is the nearest half, from which the answer may be off.
    (got - nearest).abs() / 2.0_f64.powi(exponent - digits)
}

fn half_types<T: Element>(device: &Device, narrow: fn(f64) -> T, digits: i32, smallest: i32) {
    let (mut worst, mut off, mut worst_units) = (Worst::default(), 0_u64, 0.0_f64);
    let (mut count, mut cancelled) = (0_u64, 0_u64);
    for (nth, shape) in [
        Shape::rows(3, 10),
        Shape::rows(5, 11),
        Shape::rows(3, 1000),
        Shape::rows(3, 2047),
        Shape::rows(2, 32_001),
        Shape::rows(1, 128_256),
        Shape::rows(2, 131_073),
        Shape::new(2, 21, 35),
    ]
    .into_iter()
    .enumerate()
    {
        let batch = Batch::new(shape, 20 + nth as u64);
        let logits: Vec<T> = batch.logits.iter().map(|&x| narrow(x)).collect();
        for (nth, combination) in kernels(&batch).into_iter().enumerate() {
            if nth % if shape.classes() > 500 { 11 } else { 3 } != 0 {
                continue;
            }
            let (gradient, wanted) = compare(device, &batch, &logits, &combination, 1e-6, &mut worst);
            for (row, exact) in wanted.gradients.iter().enumerate() {
                for (class, &exact) in exact.iter().enumerate() {
                    let got: f64 = gradient[batch.place(row, class)].into();
                    if exact.is_nan() {
                        assert!(got.is_nan());
                        continue;
                    }
                    let error = units(got, exact, digits, smallest, narrow(exact).into());
                    // Where labels are spread p and label may cancel, and what is left of f32 is not more than this.
                    let cancels = combination.1 || combination.0.label_smoothing > 0.0 || combination.0.z_loss > 0.0;
                    let slack = cancels && (got - exact).abs() <= 3e-7 * wanted.scale[row];
                    assert!(
                        error <= 1.0 || slack,
                        "{} {} {shape:?} {} on {device}: row {row} class {class}: {got} for {exact} of {}",
                        combination.0.brief(),
                        combination.1,
                        T::DTYPE,
                        wanted.scale[row]
                    );
                    count += 1;
                    off += u64::from(error > 0.0);
                    cancelled += u64::from(error > 1.0);
                    worst_units = worst_units.max(if error > 1.0 { 1.0 } else { error });
                }
            }
        }
    }
    println!(
        "{} on {} ({}): {} combinations, {count} gradients, {off} of them not the nearest, by {worst_units} at the most but for {cancelled} that cancel; losses {:.1e}",
        T::DTYPE,
        device.name(),
        device.backend(),
        worst.combinations,
        worst.loss
    );
}

#[test]
fn gradients_of_half_types_are_rounded_once() {
    for device in common::devices() {
        half_types(&device, f16::from_f64, 10, -14);
        half_types(&device, bf16::from_f64, 7, -126);
    }
}

#[test]
fn doubles_are_doubles_on_the_cpu_and_refused_on_a_gpu() {
    let mut worst = Worst::default();
    for shape in [Shape::rows(4, 7), Shape::rows(2, 4099), Shape::new(2, 6, 3)] {
        let batch = Batch::new(shape, 30);
        for combination in kernels(&batch) {
            let (gradient, wanted) = compare(&Device::cpu(), &batch, &batch.logits, &combination, 1e-13, &mut worst);
            let what = format!("{} {} {shape:?}", combination.0.brief(), combination.1);
            worst.gradient = worst.gradient.max(gradients_within(&batch, &gradient, &wanted, 1e-14, &what));
        }
    }
    worst.print("f64", &Device::cpu());
    for device in common::gpus() {
        let refused = device.softmax_vec(Logits::new(&[1.0_f64, 2.0], [1, 2]).unwrap());
        assert!(matches!(refused, Err(logits::Error::DType { .. })), "{refused:?}");
    }
}
