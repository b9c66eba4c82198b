//! Every option of the loss with every other: against PyTorch's answers in float64
//! (`tests/golden/options.py` made the file), and against the oracle in float64, on every device.

use crate::common::{self, Share};
use crate::covering;
use logits::half::{bf16, f16};
use logits::{DType, Device, Element, Logits, LogitsMut, Reduction, Shape, Targets};
use logits_check::Options;
use logits_check::oracle::{Expected, Labels};
use serde_json::Value;

/// The worst relative error of a loss, and the worst error of a gradient as a fraction of its row's
/// scale.
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
    let file: Value = serde_json::from_str(include_str!("../golden/options.json")).unwrap();
    let weight = narrow(&numbers(&file["weight"]));
    let all = file["cases"].as_array().unwrap();
    assert_eq!(all.len(), 648);
    let axes: Vec<Vec<usize>> = all.iter().map(|case| indices(case, all)).collect();
    for device in common::devices() {
        let mut worst = Worst::default();
        // Pairs of options meet on a GPU in `every_combination_agrees_with_float64`.
        let cases = match common::share(&device) {
            Share::All => (0..all.len()).collect(),
            Share::Pairs | Share::Values => covering::sample(&axes, 1),
        };
        for case in cases.into_iter().map(|nth| &all[nth]) {
            let given = &file["inputs"][case["layout"].as_str().unwrap()];
            let number = |key: &str| case[key].as_f64().unwrap() as f32;
            let is = |key: &str| case[key].as_bool().unwrap();
            let dimensions: Vec<usize> =
                numbers(&given["shape"]).iter().map(|&size| size as usize).collect();
            let shape = Shape::of_dimensions(&dimensions).unwrap();
            let logits = narrow(&numbers(&given["x"]));
            let classes: Vec<i64> =
                numbers(&given["targets"]).iter().map(|&class| class as i64).collect();
            let probabilities = narrow(&numbers(&given["probabilities"]));
            let targets = if is("soft") {
                Targets::probabilities(&probabilities)
            } else {
                Targets::from(&classes)
            };
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
                ..Options::default()
            };
            let x = Logits::new(&logits, shape).unwrap();
            let (out, gradient) =
                device.cross_entropy(&options.loss(), x, targets).with_gradient_vec().unwrap();
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
                row_upstream: Vec::new(),
                weight: Vec::new(),
            };
            let scale = batch.expected(&options, is("soft"), &logits).scale;
            let wanted = numbers(&case["gradient"]);
            for row in 0..shape.row_count() {
                for class in 0..shape.classes() {
                    let (got, wanted) =
                        (gradient[batch.place(row, class)], wanted[batch.place(row, class)]);
                    // The file has 11 digits.
                    let error = (f64::from(got) - wanted).abs()
                        / if scale[row] == 0.0 { 1.0 } else { scale[row] };
                    worst.gradient = worst.gradient.max(error);
                    assert!(error <= 1e-6, "{options:?}: {got} for PyTorch's {wanted}");
                }
            }
            worst.combinations += 1;
        }
        worst.print("PyTorch", &device);
    }
}

/// Returns the value of a case of the file on each axis, as the index of the first case with that
/// value.
fn indices(case: &Value, all: &[Value]) -> Vec<usize> {
    const AXES: [&str; 11] = [
        "soft",
        "ignored",
        "weighted",
        "label_smoothing",
        "z_loss",
        "softcap",
        "logit_scale",
        "reduction",
        "layout",
        "upstream",
        "by_rows",
    ];
    AXES.iter()
        .map(|&axis| all.iter().position(|other| other[axis] == case[axis]).unwrap())
        .collect()
}

/// Logits and labels of a shape. A library of random numbers might change the numbers of a seed, so
/// none is used.
struct Batch {
    shape: Shape,
    logits: Vec<f64>,
    classes: Vec<i64>,
    probabilities: Vec<f64>,
    row_upstream: Vec<f32>,
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
        // Rows differ in how far their logits are apart: up to 24, and up to 96.
        let spread = |at: usize| {
            if (at / (classes * shape.inner()) + at % shape.inner()) % 2 == 1 { 32.0 } else { 8.0 }
        };
        let logits = (0..elements)
            .map(|at| (uniform() + uniform() + uniform() - 1.5) * spread(at))
            .collect();
        let mut probabilities: Vec<f64> = (0..elements).map(|_| uniform()).collect();
        // Target probabilities need not sum to 1; here they sum to about 1.
        probabilities.iter_mut().for_each(|q| *q = f64::from((*q * 2.0 / classes as f64) as f32));
        Self {
            shape,
            logits,
            classes: (0..rows)
                .map(|row| if row % 3 == 1 { 1 } else { (uniform() * classes as f64) as i64 })
                .collect(),
            probabilities,
            row_upstream: (0..rows).map(|_| (uniform() * 4.0 - 2.0) as f32).collect(),
            weight: (0..classes).map(|class| [0.75, 1.5, 0.0, 2.0, 0.5][class % 5]).collect(),
        }
    }

    fn place(&self, row: usize, class: usize) -> usize {
        let (inner, classes) = (self.shape.inner(), self.shape.classes());
        (row / inner * classes + class) * inner + row % inner
    }

    fn rows_of(&self, values: &[f64]) -> Vec<Vec<f64>> {
        let row =
            |row| (0..self.shape.classes()).map(|class| values[self.place(row, class)]).collect();
        (0..self.shape.row_count()).map(row).collect()
    }

    /// Returns the oracle's results from logits rounded to their type.
    fn expected<T: Element>(&self, options: &Options, is_soft: bool, logits: &[T]) -> Expected {
        let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        let (rows, probabilities) = (self.rows_of(&logits), self.rows_of(&self.probabilities));
        let labels: Vec<Labels<'_>> = match is_soft {
            true => probabilities.iter().map(|q| Labels::Probabilities(q)).collect(),
            false => self.classes.iter().map(|&class| Labels::Class(class)).collect(),
        };
        options.expected(&rows, &labels)
    }

    fn targets(&self, is_soft: bool) -> Targets<'_> {
        if is_soft {
            Targets::probabilities(&self.probabilities)
        } else {
            Targets::from(&self.classes)
        }
    }
}

/// Options that may be combined, and whether targets are probabilities.
type Combination = (Options, bool);

/// How many values there are of each option, in the order of [`combination`]: 3,456 combinations.
const AXES: [usize; 9] = [4, 2, 3, 2, 2, 3, 3, 2, 2];

fn combination(batch: &Batch, values: &[usize]) -> Combination {
    let [targets, weight, smoothing, z_loss, softcap, scale, reduction, upstream, by_rows]: [usize;
        9] = values.try_into().unwrap();
    let (is_soft, ignored) =
        [(true, vec![]), (false, vec![]), (false, vec![1]), (false, vec![-100, 1, 0])][targets]
            .clone();
    let options = Options {
        ignored,
        weight: (weight == 1).then(|| batch.weight.clone()),
        label_smoothing: [0.0, 0.1, 1.0][smoothing],
        z_loss: [0.0, 0.02][z_loss],
        softcap: [None, Some(5.0)][softcap],
        logit_scale: [1.0, 0.7, -1.3][scale],
        reduction: [Reduction::Mean, Reduction::Sum, Reduction::None][reduction],
        upstream: [1.0, -2.5][upstream],
        row_gradients: (by_rows == 1).then(|| batch.row_upstream.clone()),
        ..Options::default()
    };
    (options, is_soft)
}

/// Compares one combination in a type: loss, losses of rows, gradient, and other calls with the
/// same results.
fn compare<T: Element>(
    device: &Device,
    batch: &Batch,
    logits: &[T],
    (options, is_soft): &Combination,
    bound: f64,
    worst: &mut Worst,
) -> (Vec<T>, Expected) {
    let what = || {
        format!(
            "{}, soft {is_soft}, {:?} of {} on {device}",
            options.brief(),
            batch.shape,
            T::DTYPE
        )
    };
    let wanted = batch.expected(options, *is_soft, logits);
    let (loss, targets) = (options.loss(), batch.targets(*is_soft));
    let x = Logits::new(logits, batch.shape).unwrap();
    let (out, gradient) = device.cross_entropy(&loss, x, targets).with_gradient_vec().unwrap();
    assert_eq!(out.fell_back, None);
    let error = if wanted.loss.is_nan() && out.loss.is_nan() {
        0.0
    } else {
        relative(out.loss, wanted.loss)
    };
    worst.loss = worst.loss.max(error);
    assert!(error <= bound, "{}: loss {} for {}", what(), out.loss, wanted.loss);
    for (row, (&got, &wanted)) in out.per_row.iter().zip(&wanted.per_row).enumerate() {
        let error = relative(got.into(), wanted);
        worst.loss = worst.loss.max(error);
        assert!(error <= bound, "{}: loss of row {row} {got:?} for {wanted}", what());
    }
    // The loss alone and the gradient in place are other pipelines. In the default tier a GPU
    // checks the first in even cases and the second in odd ones.
    let both = common::share(device) == Share::All;
    if both || worst.combinations.is_multiple_of(2) {
        let alone = device.cross_entropy(&loss, x, targets).loss().unwrap();
        assert_eq!(alone.loss.to_bits(), out.loss.to_bits(), "{}: loss alone", what());
    }
    if both || worst.combinations % 2 == 1 {
        let mut in_place = logits.to_vec();
        let x = LogitsMut::new(&mut in_place, batch.shape).unwrap();
        device.cross_entropy(&loss, x, targets).with_gradient_in_place().unwrap();
        assert_eq!(bits(&in_place), bits(&gradient), "{}: in place", what());
    }
    worst.combinations += 1;
    (gradient, wanted)
}

fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&value| value.into().to_bits()).collect()
}

/// Checks that gradients are within a bound of the scale of their row.
fn gradients_within<T: Element>(
    batch: &Batch,
    got: &[T],
    wanted: &Expected,
    bound: f64,
    what: &str,
) -> f64 {
    let mut worst = 0.0_f64;
    for (row, (gradient, &scale)) in wanted.gradients.iter().zip(&wanted.scale).enumerate() {
        for (class, &wanted) in gradient.iter().enumerate() {
            let got: f64 = got[batch.place(row, class)].into();
            if scale.is_nan() || scale.is_infinite() {
                // The mean is over rows of weight 0.
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
    let batches = [Batch::new(Shape::rows(4, 7), 0), Batch::new(Shape::new(2, 6, 3), 1)];
    let all = covering::product(&[&AXES[..], &[batches.len()]].concat());
    for device in common::devices() {
        let mut worst = Worst::default();
        for nth in covering::cases(&device, &all, |_| false) {
            let (values, shape) = all[nth].split_at(AXES.len());
            let batch = &batches[shape[0]];
            let combination = combination(batch, values);
            let (gradient, wanted) =
                compare(&device, batch, &narrow(&batch.logits), &combination, 1e-6, &mut worst);
            let what = format!("{} {} on {device}", combination.0.brief(), combination.1);
            worst.gradient =
                worst.gradient.max(gradients_within(batch, &gradient, &wanted, 1e-6, &what));
        }
        worst.print("float64", &device);
    }
}

/// Returns the number of shapes, and the number of values of each option that needs a kernel of its
/// own, in the order of [`of_kernel`].
fn kernel_axes(shapes: usize) -> [usize; 5] {
    [shapes, 2, 2, 2, 3]
}

/// Returns a combination under a mean over weighted classes; rows have upstream gradients of their
/// own if logits are capped.
fn of_kernel(batch: &Batch, values: &[usize]) -> Combination {
    let [_, targets, smoothing, z_loss, transform]: [usize; 5] = values.try_into().unwrap();
    // Logits as they are, scaled by a negative number, or scaled and capped.
    let (softcap, scale) = [(0, 0), (0, 2), (1, 1)][transform];
    combination(batch, &[2 * targets, 1, smoothing, z_loss, softcap, scale, 0, 0, softcap])
}

/// Whether the oracle takes as long as a driver's compiler.
fn is_large(shape: Shape) -> bool {
    shape.classes() > 10_000
}

#[test]
fn every_kernel_agrees_with_float64() {
    let shapes = [
        Shape::rows(3, 2049),
        Shape::rows(2, 131_075),
        Shape::new(1, 2051, 3),
        Shape::new(2, 2, 131),
        Shape::new(1, 131_073, 2),
    ];
    let batches: Vec<Batch> =
        (10..).zip(shapes).map(|(seed, shape)| Batch::new(shape, seed)).collect();
    let all = covering::product(&kernel_axes(shapes.len()));
    for device in common::devices() {
        let mut worst = Worst::default();
        for values in covering::cases(&device, &all, |case| is_large(shapes[case[0]]))
            .into_iter()
            .map(|nth| &all[nth])
        {
            let batch = &batches[values[0]];
            let combination = of_kernel(batch, values);
            let (gradient, wanted) =
                compare(&device, batch, &narrow(&batch.logits), &combination, 1e-6, &mut worst);
            let what = format!(
                "{} {} {:?} on {device}",
                combination.0.brief(),
                combination.1,
                batch.shape
            );
            worst.gradient =
                worst.gradient.max(gradients_within(batch, &gradient, &wanted, 1e-6, &what));
        }
        worst.print("float64, every kernel", &device);
    }
}

/// Returns the distance of `got` from `nearest`, in units of the last place of a 16-bit type.
fn units(got: f64, wanted: f64, digits: i32, smallest: i32, nearest: f64) -> f64 {
    let exponent = (wanted.abs().max(f64::MIN_POSITIVE).log2().floor() as i32).max(smallest);
    // `nearest` is the number of the type nearest to the wanted value.
    (got - nearest).abs() / 2.0_f64.powi(exponent - digits)
}

/// The worst errors of gradients of a 16-bit type.
#[derive(Default)]
struct Rounded {
    worst: Worst,
    gradients: u64,
    not_nearest: u64,
    cancelled: u64,
    worst_units: f64,
}

/// Checks one case of a 16-bit type, given the digits of its mantissa and the exponent of its
/// smallest normal number.
fn gradient_is_rounded_once<T: Element>(
    device: &Device,
    batch: &Batch,
    combination: &Combination,
    (narrow, digits, smallest): (fn(f64) -> T, i32, i32),
    seen: &mut Rounded,
) {
    let logits: Vec<T> = batch.logits.iter().map(|&x| narrow(x)).collect();
    let (gradient, wanted) = compare(device, batch, &logits, combination, 1e-6, &mut seen.worst);
    let (options, is_soft) = combination;
    for (row, exact) in wanted.gradients.iter().enumerate() {
        for (class, &exact) in exact.iter().enumerate() {
            let got: f64 = gradient[batch.place(row, class)].into();
            if exact.is_nan() {
                assert!(got.is_nan());
                continue;
            }
            let error = units(got, exact, digits, smallest, narrow(exact).into());
            // If labels are spread, p and the label may cancel; f32 has this error then.
            let cancels = *is_soft || options.label_smoothing > 0.0 || options.z_loss > 0.0;
            let slack = if cancels { 3e-7 * wanted.scale[row] } else { 0.0 };
            // A number that is not a normal f32 may be taken for 0.
            let slack = (got - exact).abs() <= slack.max(f64::from(f32::MIN_POSITIVE));
            assert!(
                error <= 1.0 || slack,
                "{} {is_soft} {:?} {} on {device}: row {row} class {class}: {got} for {exact} of {}",
                options.brief(),
                batch.shape,
                T::DTYPE,
                wanted.scale[row]
            );
            seen.gradients += 1;
            seen.not_nearest += u64::from(error > 0.0);
            seen.cancelled += u64::from(error > 1.0);
            seen.worst_units = seen.worst_units.max(error.min(1.0));
        }
    }
}

#[test]
fn gradients_of_f16_are_rounded_once() {
    gradients_are_rounded_once((f16::from_f64, 10, -14));
}

#[test]
fn gradients_of_bf16_are_rounded_once() {
    gradients_are_rounded_once((bf16::from_f64, 7, -126));
}

/// Runs the cases of one half type. The type is the last axis of the cases, so the tests of both
/// types together hold every pair.
fn gradients_are_rounded_once<T: Element>(of_type: (fn(f64) -> T, i32, i32)) {
    let dtype = usize::from(T::DTYPE == DType::BF16);
    let shapes = [
        Shape::rows(3, 10),
        Shape::rows(5, 11),
        Shape::rows(3, 1000),
        Shape::rows(3, 2047),
        Shape::rows(2, 32_001),
        Shape::rows(1, 128_256),
        Shape::rows(2, 131_073),
        Shape::new(2, 21, 35),
    ];
    let batches: Vec<Batch> =
        (20..).zip(shapes).map(|(seed, shape)| Batch::new(shape, seed)).collect();
    let mut sizes = kernel_axes(shapes.len()).to_vec();
    // f16 and bf16.
    sizes.push(2);
    let all = covering::product(&sizes);
    for device in common::devices() {
        let mut seen = Rounded::default();
        let cases: Vec<Vec<usize>> = match common::share(&device) {
            Share::All => {
                let large = |case: &[usize]| is_large(shapes[case[0]]);
                covering::cases(&device, &all, large)
                    .into_iter()
                    .map(|nth| all[nth].clone())
                    .collect()
            }
            // By default a GPU takes the shapes whose rows are stored in different ways in turn:
            // shapes meet options in `every_kernel_agrees_with_float64`, and a driver's compiler
            // takes up to four seconds for a case of this.
            Share::Pairs | Share::Values => {
                let options = covering::product(&sizes[1..]);
                let chosen = covering::cases(&device, &options, |_| false);
                let cases = [1, 2, 4, 6, 7].into_iter().cycle().zip(chosen);
                let cases = cases.map(|(shape, nth)| [&[shape], &options[nth][..]].concat());
                // One more case is class targets in bf16 without an option, as in most training.
                cases.chain([vec![1, 1, 0, 0, 0, 1]]).collect()
            }
        };
        for values in cases.iter().filter_map(|case| case.strip_suffix(&[dtype])) {
            let batch = &batches[values[0]];
            gradient_is_rounded_once(&device, batch, &of_kernel(batch, values), of_type, &mut seen);
        }
        let Rounded { worst, gradients, not_nearest, cancelled, worst_units } = seen;
        println!(
            "{} on {} ({}): {} combinations, {gradients} gradients, {not_nearest} of them not the nearest, by {worst_units} \
             at the most but for {cancelled} that cancel; losses {:.1e}",
            T::DTYPE,
            device.name(),
            device.backend(),
            worst.combinations,
            worst.loss
        );
    }
}

#[test]
fn doubles_are_doubles_on_the_cpu_and_refused_on_a_gpu() {
    let mut worst = Worst::default();
    for shape in [Shape::rows(4, 7), Shape::rows(2, 4099), Shape::new(2, 6, 3)] {
        let batch = Batch::new(shape, 30);
        for values in covering::product(&kernel_axes(1)) {
            let combination = of_kernel(&batch, &values);
            let (gradient, wanted) =
                compare(&Device::cpu(), &batch, &batch.logits, &combination, 1e-13, &mut worst);
            let what = format!("{} {} {shape:?}", combination.0.brief(), combination.1);
            worst.gradient =
                worst.gradient.max(gradients_within(&batch, &gradient, &wanted, 1e-14, &what));
        }
    }
    worst.print("f64", &Device::cpu());
    for device in common::gpus() {
        let refused = device.softmax(Logits::new(&[1.0_f64, 2.0], [1, 2]).unwrap()).to_vec();
        assert!(matches!(refused, Err(logits::Error::DType { .. })), "{refused:?}");
    }
}
