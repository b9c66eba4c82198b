//! Equal rows have equal results in any type and layout, and by any way to call.

use logits::half::{bf16, f16};
use logits::{
    CrossEntropy, DType, Device, Element, Error, Logits, LogitsMut, Output, Prediction, Sampling,
    Shape, Targets,
};

use crate::common::{self, Share};
use crate::covering;

fn values(count: usize) -> impl Iterator<Item = f64> {
    (0..count as u32).map(|x| f64::from(x.wrapping_mul(2_654_435_761) >> 8) * 6e-7 - 5.0)
}

/// Returns the same values, but every fifth is up to 88 below the largest, and every seventh is
/// next to 0.
fn wide_values(count: usize) -> impl Iterator<Item = f64> {
    values(count).enumerate().map(|(nth, x)| match nth % 35 {
        nth if nth % 5 == 2 => x - 77.5,
        nth if nth % 7 == 3 => x * 1e-38,
        _ => x,
    })
}

/// `[outer, classes, inner]` as `[outer * inner, classes]`.
fn transposed<T: Copy>(x: &[T], shape: Shape) -> Vec<T> {
    let (inner, classes) = (shape.inner(), shape.classes());
    let place = |row: usize, class: usize| (row / inner * classes + class) * inner + row % inner;
    (0..shape.row_count())
        .flat_map(|row| (0..classes).map(move |class| place(row, class)))
        .map(|at| x[at])
        .collect()
}

fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&x| x.into().to_bits()).collect()
}

const SHAPES: [Shape; 7] = [
    Shape::new(2, 3, 5),
    Shape::new(3, 1, 4),
    Shape::new(2, 21, 300),
    Shape::new(1, 1500, 7),
    Shape::new(2, 2051, 3),
    Shape::new(1, 131_075, 2),
    Shape::new(5, 7, 1),
];

const OPERATIONS: usize = 8;

/// Returns the results of one operation at a temperature, row after row, as bits. In place, the
/// gaps between rows must keep what they hold.
fn results<T: Element>(
    device: &Device,
    operation: usize,
    data: &[T],
    shape: Shape,
    gap: usize,
    temperature: f32,
) -> Vec<u64> {
    let (rows, classes, block) =
        (shape.row_count(), shape.classes(), (shape.classes() * shape.inner()));
    let x = Logits::with_row_stride(data, shape, block + gap)
        .unwrap()
        .temperature(temperature)
        .unwrap();
    let elements = |output: Output<Vec<T>>| {
        assert_eq!(output.fell_back, None);
        bits(&transposed(&output.values, shape))
    };
    let predictions = |output: Output<Vec<Prediction>>| {
        let bits = |p: &Prediction| u64::from(p.class) << 32 | u64::from(p.probability.to_bits());
        output.values.iter().map(bits).collect()
    };
    match operation {
        0 => elements(device.softmax(x).to_vec().unwrap()),
        1 => elements(device.log_softmax(x).to_vec().unwrap()),
        2 => bits(&device.log_sum_exp(x).to_vec().unwrap().values),
        3 => predictions(device.predict(x).to_vec().unwrap()),
        4 => predictions(device.top_k(x, classes.min(3)).to_vec().unwrap()),
        5 => predictions(device.sample(&Sampling::new(4), x).to_vec().unwrap()),
        6 => {
            let loss = CrossEntropy::default().label_smoothing(0.1);
            let loss = if temperature == 1.0 { loss } else { loss.softcap(20.0) };
            let targets: Vec<usize> = (0..rows).map(|row| row * 7919 % classes).collect();
            let (out, gradient) =
                device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
            [vec![out.loss.to_bits()], bits(&out.per_row), bits(&transposed(&gradient, shape))]
                .concat()
        }
        _ => {
            let mut data = data.to_vec();
            let x = LogitsMut::with_row_stride(&mut data, shape, block + gap)
                .unwrap()
                .temperature(temperature)
                .unwrap();
            device.softmax(x).in_place().unwrap();
            assert!(
                data.chunks(block + gap)
                    .all(|part| part[block..].iter().all(|&x| x.into().is_nan()))
            );
            let dense: Vec<T> =
                data.chunks(block + gap).flat_map(|part| part[..block].to_vec()).collect();
            bits(&transposed(&dense, shape))
        }
    }
}

/// Compares one operation over strided rows, with gaps between blocks and a temperature or without,
/// with the same rows in contiguous layout.
fn planes_are_rows<T: Element>(
    device: &Device,
    shape: Shape,
    operation: usize,
    has_gaps: bool,
    narrow: fn(f64) -> T,
) {
    let (rows, classes) = (shape.row_count(), shape.classes());
    let x: Vec<T> = wide_values(shape.elements().unwrap()).map(narrow).collect();
    let dense = transposed(&x, shape);
    let (gap, temperature) = if has_gaps { (3, 1.3) } else { (0, 1.0) };
    let mut strided: Vec<T> = Vec::new();
    for block in x.chunks(shape.classes() * shape.inner()) {
        strided.extend_from_slice(block);
        strided.extend((0..gap).map(|_| narrow(f64::NAN)));
    }
    let got = results(device, operation, &strided, shape, gap, temperature);
    let wanted = results(device, operation, &dense, Shape::rows(rows, classes), 0, temperature);
    assert_eq!(
        got,
        wanted,
        "operation {operation}, {shape:?} of {}, gaps {has_gaps}, on {device}",
        T::DTYPE
    );
}

#[test]
fn rows_across_each_other_are_rows() {
    for device in common::devices() {
        // The indices of a shape, a type and an operation, and whether there are gaps.
        let cases: Vec<[usize; 4]> = match common::share(&device) {
            Share::All => {
                let types = if device.is_gpu() { 3 } else { 4 };
                let all = covering::product(&[SHAPES.len(), types, OPERATIONS, 2]);
                all.iter().map(|case| [case[0], case[1], case[2], case[3]]).collect()
            }
            // By default the first GPU runs each operation in short rows and every second one in
            // long rows, half of them in rows that several workgroups share. Any other GPU takes a
            // third of them in short rows. Types and gaps alternate with the operation, so an odd
            // step meets both. A driver takes several seconds to compile 16-bit types in long rows,
            // so there is one such case here, and two in `engine::steps`.
            share => {
                let short = (0..OPERATIONS)
                    .map(|operation| [2, 1 + operation % 2, operation, operation % 2]);
                let long = [[4, 0, 0, 1], [5, 0, 3, 0], [4, 0, 5, 0], [5, 0, 6, 1], [4, 2, 6, 1]]
                    .into_iter();
                if share == Share::Values {
                    short.step_by(3).collect()
                } else {
                    short.chain(long).collect()
                }
            }
        };
        for [shape, dtype, operation, gaps] in cases {
            let (shape, has_gaps) = (SHAPES[shape], gaps == 1);
            match dtype {
                0 => planes_are_rows(&device, shape, operation, has_gaps, |x| x as f32),
                1 => planes_are_rows(&device, shape, operation, has_gaps, f16::from_f64),
                2 => planes_are_rows(&device, shape, operation, has_gaps, bf16::from_f64),
                _ => planes_are_rows(&device, shape, operation, has_gaps, |x| x),
            }
        }
    }
}

/// Blocks beyond the memory budget of a device are computed a few columns at a time.
#[test]
fn a_block_beyond_the_budget_goes_through_in_columns() {
    let shape = Shape::new(2, 700, 3001);
    let x: Vec<f32> = values(shape.elements().unwrap()).map(|x| x as f32).collect();
    let dense = transposed(&x, shape);
    for device in common::gpus() {
        let small = device.clone().with_memory_budget(16 << 20);
        let got = small.softmax(Logits::new(&x, shape).unwrap()).to_vec().unwrap();
        assert_eq!(got.fell_back, None);
        let wanted = device
            .softmax(Logits::new(&dense, [shape.row_count(), 700]).unwrap())
            .to_vec()
            .unwrap()
            .values;
        assert_eq!(bits(&transposed(&got.values, shape)), bits(&wanted), "{device}");
        let mut in_place = x.clone();
        small.softmax(LogitsMut::new(&mut in_place, shape).unwrap()).in_place().unwrap();
        assert_eq!(bits(&in_place), bits(&got.values), "{device}");
    }
}

/// Compares a softmax backward with its definition in float64, from forward results rounded to the
/// type.
fn backward<T: Element>(device: &Device, shape: Shape, log: bool, narrow: fn(f64) -> T, unit: f64) {
    let place = format!("{shape:?} of {} on {device}", T::DTYPE);
    let (rows, classes, temperature) = (shape.row_count(), shape.classes(), 0.7_f32);
    let x: Vec<T> = wide_values(shape.elements().unwrap()).map(narrow).collect();
    let upstream: Vec<T> = values(x.len()).map(|g| narrow((g * 77.7).sin())).collect();
    let view = Logits::new(&x, shape).unwrap().temperature(temperature).unwrap();
    let wide =
        |values: &[T]| transposed(values, shape).iter().map(|&x| x.into()).collect::<Vec<f64>>();
    let g = wide(&upstream);
    let forward = Device::cpu();
    let y = if log { forward.log_softmax(view).to_vec() } else { forward.softmax(view).to_vec() }
        .unwrap()
        .values;
    let view = Logits::new(&y, shape).unwrap().temperature(temperature).unwrap();
    let got = match log {
        false => device.softmax_backward(view, &upstream).to_vec(),
        true => device.log_softmax_backward(view, &upstream).to_vec(),
    };
    let mut in_place = y.clone();
    let over = LogitsMut::new(&mut in_place, shape).unwrap().temperature(temperature).unwrap();
    match log {
        false => device.softmax_backward(over, &upstream).in_place(),
        true => device.log_softmax_backward(over, &upstream).in_place(),
    }
    .unwrap();
    let got = got.unwrap().values;
    assert_eq!(bits(&in_place), bits(&got), "{place}");
    let (y, got) = (wide(&y), wide(&got));
    for row in 0..rows {
        let part = row * classes..(row + 1) * classes;
        let (y, g, got) = (&y[part.clone()], &g[part.clone()], &got[part]);
        let dot: f64 = y.iter().zip(g).map(|(y, g)| if log { *g } else { y * g }).sum();
        let scale: f64 =
            y.iter().zip(g).map(|(y, g)| if log { g.abs() } else { (y * g).abs() }).sum();
        for class in 0..classes {
            let (wanted, size) = match log {
                false => (y[class] * (g[class] - dot), y[class] * (g[class].abs() + scale)),
                true => (g[class] - y[class].exp() * dot, g[class].abs() + y[class].exp() * scale),
            };
            let (wanted, size) = (wanted / f64::from(temperature), size / f64::from(temperature));
            let error = (got[class] - wanted).abs();
            // Rounded once to the type. Subnormals of f16 are 6e-8 apart; those of the other types
            // may be flushed to 0.
            let bound = 1e-6 * size
                + unit * wanted.abs()
                + if T::DTYPE == DType::F16 { 6e-8 } else { 1e-38 };
            assert!(
                error <= bound,
                "{place}, log {log}, row {row} class {class}: {} for {wanted}",
                got[class]
            );
        }
    }
}

#[test]
fn backwards_of_softmax_alone() {
    let shapes =
        [Shape::rows(5, 7), Shape::rows(2, 2051), Shape::rows(1, 140_000), Shape::new(2, 21, 30)];
    for device in common::devices() {
        let all = covering::product(&[shapes.len(), if device.is_gpu() { 3 } else { 4 }, 2]);
        for nth in covering::cases(&device, &all, |_| false) {
            let (shape, log) = (shapes[all[nth][0]], all[nth][2] == 1);
            match all[nth][1] {
                0 => backward(&device, shape, log, |x| x as f32, 0.0),
                1 => backward(&device, shape, log, f16::from_f64, 5e-4),
                2 => backward(&device, shape, log, bf16::from_f64, 4e-3),
                _ => backward(&device, shape, log, |x| x, 0.0),
            }
        }
    }
}

#[test]
fn saved_log_sum_exps_make_the_same_gradient() {
    for device in common::devices() {
        let shapes = [
            Shape::rows(6, 7),
            Shape::rows(3, 3000),
            Shape::rows(1, 140_000),
            Shape::new(2, 21, 30),
        ];
        for (nth, shape) in common::in_turn(&device, 0, 1, shapes) {
            let x: Vec<f32> = values(shape.elements().unwrap()).map(|x| x as f32).collect();
            let q: Vec<f32> =
                values(x.len()).map(|q| (q.sin().abs() / shape.classes() as f64) as f32).collect();
            let classes: Vec<i64> = (0..shape.row_count())
                .map(|row| if row % 4 == 2 { -100 } else { (row % shape.classes()) as i64 })
                .collect();
            let weight: Vec<f32> =
                (0..shape.classes()).map(|class| 0.5 + (class % 3) as f32).collect();
            let factors: Vec<f32> = (0..shape.row_count()).map(|row| row as f32 - 1.0).collect();
            let plain = CrossEntropy::default;
            let losses = [
                (plain(), false, (|x| x) as fn(f64) -> f64),
                (plain().weight(weight.clone()).label_smoothing(0.1).z_loss(0.01), false, |x| x),
                (plain().logit_scale(-0.5).upstream_gradients(factors), true, |x| -0.5 * x),
                (plain().softcap(3.0).weight(weight).upstream_gradient(2.0), true, |x| {
                    3.0 * (x / 3.0).tanh()
                }),
            ];
            for (_, (loss, is_soft, seen)) in common::in_turn(&device, nth, 4, losses) {
                let targets =
                    if is_soft { Targets::probabilities(&q) } else { Targets::from(&classes) };
                let view = Logits::new(&x, shape).unwrap();
                let (_, wanted) =
                    device.cross_entropy(&loss, view, targets).with_gradient_vec().unwrap();
                // The saved log-sum-exps are those of the transformed logits; the CPU path computes
                // them in f64.
                let seen: Vec<f64> = x.iter().map(|&x| seen(f64::from(x))).collect();
                let saved: Vec<f32> = Device::cpu()
                    .log_sum_exp(Logits::new(&seen, shape).unwrap())
                    .to_vec()
                    .unwrap()
                    .values
                    .iter()
                    .map(|&x| x as f32)
                    .collect();
                let got = device
                    .cross_entropy_backward(&loss, view, targets, &saved)
                    .to_vec()
                    .unwrap()
                    .values;
                let largest = wanted.iter().fold(0.0_f32, |a, &b| a.max(b.abs()));
                for (at, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                    // The result is as exact as a log-sum-exp of up to 15 in f32.
                    let error = (got - wanted).abs() / largest;
                    assert!(error <= 4e-6, "{shape:?} {at} on {device}: {got} for {wanted}");
                }
                let mut in_place = x.clone();
                let over = LogitsMut::new(&mut in_place, shape).unwrap();
                device.cross_entropy_backward(&loss, over, targets, &saved).in_place().unwrap();
                assert_eq!(bits(&in_place), bits(&got));

                let resident = device.upload(view).unwrap();
                let on_device = device.upload_targets(&loss, shape, targets).unwrap();
                let (_, gradient) = resident.cross_entropy_with_gradient(&on_device).run().unwrap();
                assert_eq!(
                    bits(&gradient.read().unwrap()),
                    bits(&wanted),
                    "{shape:?} resident on {device}"
                );
            }
        }
        let short = device
            .cross_entropy_backward(
                &CrossEntropy::default(),
                Logits::new(&[1.0_f32], [1, 1]).unwrap(),
                &[0],
                &[],
            )
            .to_vec();
        assert!(matches!(short, Err(Error::Length { .. })));
    }
}

fn resident_is_the_same<T: Element>(device: &Device, first: usize, narrow: fn(f64) -> T) {
    // By default each type has a shape on a GPU.
    let all = common::share(device) == Share::All;
    let on_gpu = [SHAPES[4], SHAPES[2], SHAPES[6]][first];
    for shape in SHAPES.into_iter().filter(|&shape| all || shape == on_gpu) {
        let place = format!("{shape:?} of {} on {device}", T::DTYPE);
        let (rows, classes) = (shape.row_count(), shape.classes());
        let x: Vec<T> = wide_values(shape.elements().unwrap()).map(narrow).collect();
        let view = Logits::new(&x, shape).unwrap().temperature(0.9).unwrap();
        let resident = device.upload(view).unwrap();
        assert_eq!(bits(&resident.read().unwrap()), bits(&x), "{place}");
        let last = resident.read_rows(shape.outer() - 1..shape.outer()).unwrap();
        assert_eq!(bits(&last), bits(&x[x.len() - classes * shape.inner()..]), "{place}");
        let softmax = resident.softmax().run().unwrap();
        assert_eq!(
            bits(&softmax.read().unwrap()),
            bits(&device.softmax(view).to_vec().unwrap().values),
            "{place}"
        );
        let k = classes.min(4);
        assert_eq!(
            resident.top_k(k).run().unwrap().read().unwrap(),
            device.top_k(view, k).to_vec().unwrap().values,
            "{place}"
        );
        let sampling = Sampling::new(8).top_p(0.9);
        let drawn = device.sample(&sampling, view).to_vec().unwrap().values;
        assert_eq!(resident.sample(&sampling).run().unwrap().read().unwrap(), drawn, "{place}");
        let dx = softmax.softmax_backward(&resident).run().unwrap().read().unwrap();
        let p = softmax.read().unwrap();
        let wanted =
            device.softmax_backward(Logits::new(&p, shape).unwrap(), &x).to_vec().unwrap().values;
        assert_eq!(bits(&dx), bits(&wanted), "{place}");
        let targets: Vec<usize> = (0..rows).map(|row| row % classes).collect();
        let loss = CrossEntropy::default().softcap(9.0).upstream_gradients(vec![0.5; rows]);
        let on_device = device.upload_targets(&loss, shape, &targets).unwrap();
        let (got, gradient) = resident.cross_entropy_with_gradient(&on_device).run().unwrap();
        let (wanted, wanted_gradient) =
            device.cross_entropy(&loss, view, &targets).with_gradient_vec().unwrap();
        assert_eq!(bits(&gradient.read().unwrap()), bits(&wanted_gradient), "{place}");
        approx::assert_relative_eq!(got.read().unwrap().loss, wanted.loss, max_relative = 1e-6);
    }
}

#[test]
fn resident_data_of_every_type_and_layout() {
    for device in common::devices() {
        resident_is_the_same(&device, 1, f16::from_f64);
        if common::share(&device) == Share::Values {
            continue;
        }
        resident_is_the_same(&device, 0, |x| x as f32);
        resident_is_the_same(&device, 2, bf16::from_f64);
    }
    resident_is_the_same(&Device::cpu(), 0, |x| x);
}

#[test]
fn bad_options_are_told_before_anything_is_written() {
    for device in common::devices() {
        let x = Logits::new(&[1.0_f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        let mut out = [7.0; 4];
        let mut refused = |loss: CrossEntropy, targets: Targets<'_>| {
            let error =
                device.cross_entropy(&loss, x, targets).with_gradient(&mut out).unwrap_err();
            assert_eq!(out, [7.0; 4]);
            error.to_string()
        };
        let classes = Targets::from(&[0, 1]);
        let plain = CrossEntropy::default;
        assert!(refused(plain().softcap(0.0), classes).contains("softcap is 0"));
        assert!(refused(plain().softcap(f32::NAN), classes).contains("softcap is NaN"));
        assert!(refused(plain().logit_scale(0.0), classes).contains("logit_scale is 0"));
        assert!(
            refused(plain().logit_scale(f32::INFINITY), classes).contains("logit_scale is inf")
        );
        assert!(
            refused(plain().upstream_gradients([1.0]), classes)
                .contains("upstream gradients hold 1 values where 2")
        );
        assert!(
            refused(plain().upstream_gradients([1.0, f32::NAN]), classes).contains("row 1 is NaN")
        );
        let bad = Targets::probabilities(&[0.5_f32, 0.5, -0.25, 1.0]);
        assert!(refused(plain(), bad).contains("class 0 in row 1 is -0.25"));
        assert!(
            refused(plain(), Targets::probabilities(&[0.5_f32; 3])).contains("3 values where 4")
        );
        for temperature in [0.0, -1.0, f32::NAN] {
            assert!(matches!(x.temperature(temperature), Err(Error::OptionValue { .. })));
        }
    }
}

/// A cap makes finite numbers of infinities, as in PyTorch's composition.
#[test]
fn a_cap_makes_numbers_of_infinities() {
    let (inf, cap) = (f32::INFINITY, 2.0_f64);
    for device in common::devices() {
        let rows = [[inf, 1.0, -inf], [-inf, -inf, -inf], [1.0, f32::NAN, 2.0]];
        let x = rows.as_flattened();
        let view = Logits::new(x, [3, 3]).unwrap();
        let loss = CrossEntropy::default().softcap(2.0).reduction(logits::Reduction::Sum);
        let (out, gradient) =
            device.cross_entropy(&loss, view, &[0, 2, 1]).with_gradient_vec().unwrap();
        let y = [cap, cap * 0.5_f64.tanh(), -cap];
        let exact = y.iter().map(|y| (y - cap).exp()).sum::<f64>().ln();
        assert!((f64::from(out.per_row[0]) - exact).abs() < 1e-6 * exact, "{device}: {out:?}");
        assert!((f64::from(out.per_row[1]) - 3.0_f64.ln()).abs() < 1e-6, "{device}: {out:?}");
        assert!(
            out.per_row[2].is_nan() && gradient[6..].iter().all(|x| x.is_nan()),
            "{device}: {out:?}"
        );
        // The slope of the cap is 0 there.
        let flat = [gradient[0], gradient[2], gradient[3], gradient[5]];
        assert!(flat.iter().all(|x| x.abs() < 1e-30), "{device}: {flat:?}");
        assert!(gradient[1] > 0.0);
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn arrays_are_batches() {
    use ndarray::{Array2, Array4, s};
    let array = Array4::from_shape_fn((2, 3, 4, 5), |(n, c, h, w)| {
        (n + 2 * c + 3 * h + 5 * w) as f32 * 0.1
    });
    let x = Logits::try_from(array.view()).unwrap();
    assert_eq!(x.shape(), Shape::new(2, 3, 20));
    let p = Device::cpu().softmax(x).to_vec().unwrap().values;
    let wanted = 1.0 / (0..3).map(|c| (c as f32 * 0.2).exp()).sum::<f32>();
    assert!((p[0] - wanted).abs() < 1e-6);
    let mut matrix = Array2::from_shape_fn((4, 3), |(row, class)| (row * class) as f32);
    let columns = matrix.t();
    let x = Logits::try_from(columns).unwrap();
    assert_eq!((x.shape().row_count(), x.shape().classes()), (3, 4));
    let gaps = Logits::try_from(matrix.slice(s![.., ..2]));
    assert!(matches!(gaps.map(drop), Err(Error::Strides { .. })));
    Device::cpu().softmax(LogitsMut::try_from(matrix.view_mut()).unwrap()).in_place().unwrap();
    assert!(matrix.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-6));
}
