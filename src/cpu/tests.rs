//! Tests that results are the same at every SIMD level, for every destination, and for every number
//! of threads that share a row.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use half::{bf16, f16};
use logits_check::oracle::Row;

use super::rows::SHORT_ROW_CLASSES;
use super::run::{Schedule, run_with};
use super::simd::{Level, available};
use crate::ops::Op;
use crate::ops::Request;
use crate::problem::dtype::Sealed;
use crate::problem::operands::{Data, Operands, RowsOut};
use crate::problem::transform::Transform;
use crate::{CrossEntropy, Device, Element, Logits, Prediction, Reduction, Shape, Targets, tier};

/// Numbers of classes around the widths of vectors, blocks and pieces, and on both sides of each
/// change of code path.
const CLASSES: [usize; 26] = [
    1, 2, 3, 4, 5, 7, 10, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 100, 127, 128, 129, 255, 1000,
    8191, 16_385, 24_577,
];

/// Returns `count` pseudo-random numbers between -9 and 9, the same every time.
fn noise(count: usize) -> impl Iterator<Item = f64> {
    (0..count as u32)
        .map(|n| f64::from(n.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24) * 18.0 - 9.0)
}

/// Returns rows of every kind: ordinary, confident, far from 0, with -inf, of -inf alone, with
/// +inf, with NaN, down to 88 below the maximum, of the largest magnitude, and with subnormal
/// differences.
fn logits(rows: usize, classes: usize) -> Vec<f32> {
    let mut x: Vec<f32> = noise(rows * classes).map(|x| x as f32).collect();
    for (nth, row) in x.chunks_mut(classes).enumerate() {
        let place = nth * 13 % classes;
        match nth % 15 {
            1 => row[place] += 60.0,
            2 => row.iter_mut().for_each(|x| *x += 5000.0),
            3 => row.iter_mut().for_each(|x| *x -= 3e4),
            4 => row[place] = f32::NEG_INFINITY,
            5 => row.fill(f32::NEG_INFINITY),
            6 => row[place] = f32::INFINITY,
            7 => row[place] = f32::NAN,
            8 => row.fill(1.5),
            9 => row.iter_mut().step_by(2).for_each(|x| *x -= 200.0),
            10 => row.iter_mut().for_each(|x| *x *= 88.0 / 18.0),
            11 => row.iter_mut().for_each(|x| *x *= 3e37),
            12 => row.iter_mut().for_each(|x| *x *= 1e-40),
            _ => {}
        }
    }
    x
}

/// Returns the result of an operation: its elements, or its row values.
fn outcome<T: Element>(
    op: Op,
    x: &[T],
    shape: Shape,
    operands: Operands<'_>,
    schedule: Schedule,
    in_place: bool,
) -> Vec<f64> {
    let block = shape.block();
    let mut elements = if in_place { x.to_vec() } else { vec![T::default(); x.len()] };
    let mut values = vec![T::Row::default(); shape.row_count()];
    let mut predictions = vec![Prediction::default(); shape.row_count() * operands.k.max(1)];
    let data = match (op.spec().writes_elements, in_place) {
        (false, _) => Data::Read { input: T::erase(x), stride: block },
        (true, false) => {
            Data::Write { input: T::erase(x), stride: block, output: T::erase_mut(&mut elements) }
        }
        (true, true) => Data::Over { data: T::erase_mut(&mut elements), stride: block },
    };
    let rows_out = if op.predicts() {
        RowsOut::Predictions(&mut predictions, operands.k.max(1))
    } else if op.has_values() {
        RowsOut::Values(T::Row::erase_mut(&mut values))
    } else {
        RowsOut::None
    };
    run_with(Request { op, shape, data, operands, first_row: 0, skip: 0, rows_out }, schedule)
        .unwrap();
    let elements = elements.into_iter().map(Into::into).filter(|_| op.spec().writes_elements);
    let predictions = predictions.iter().flat_map(|p| [f64::from(p.class), p.probability.into()]);
    elements.chain(values.into_iter().map(Into::into)).chain(predictions).collect()
}

fn schedule(level: Level) -> Schedule {
    Schedule { level, streams: false, threads_share_rows: false, grain: 10_000 }
}

/// Asserts that all values have the same bits; any two NaN are equal.
#[track_caller]
fn assert_same(found: &[f64], wanted: &[f64], what: &str) {
    for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let same = found.to_bits() == wanted.to_bits() || (found.is_nan() && wanted.is_nan());
        assert!(same, "{what}: {found:e} for {wanted:e} at {at}");
    }
}

/// Returns losses with and without options.
fn losses(classes: usize) -> Vec<CrossEntropy> {
    let plain = CrossEntropy::default().reduction(Reduction::Sum).ignore_index(-100);
    let weight: Vec<f32> = (0..classes).map(|class| (class % 5) as f32 * 0.4 + 0.3).collect();
    vec![plain.clone(), plain.label_smoothing(0.1).z_loss(1e-3).weight(weight)]
}

const OPS: [Op; 9] = [
    Op::Softmax,
    Op::LogSoftmax,
    Op::LogSumExp,
    Op::CrossEntropy,
    Op::CrossEntropyGrad,
    Op::SoftmaxBackward,
    Op::LogSoftmaxBackward,
    Op::Predict,
    Op::TopK,
];

/// Calls `check` with every operation, width, logit transform and loss, over rows of every kind.
/// There are more short rows than are computed together.
fn every_case(check: impl Fn(Op, Shape, Operands<'_>, &str)) {
    for classes in CLASSES {
        let rows = if classes > 500 { 15 } else { 35 };
        let targets: Vec<i64> = (0..rows as i64)
            .map(|row| if row % 11 == 10 { -100 } else { row * 7 % classes as i64 })
            .collect();
        let shape = Shape::rows(rows, classes);
        let upstream: Vec<f32> = noise(rows * classes).map(|x| x as f32).collect();
        for (nth, loss) in losses(classes).iter().enumerate() {
            let prepared = loss.prepare(shape, Targets::from(&targets)).unwrap();
            for transform in [Transform::default(), Transform { scale: -0.7, softcap: Some(30.0) }]
            {
                for op in OPS.into_iter().filter(|op| nth == 0 || op.has_targets()) {
                    let mut operands = if op.has_targets() {
                        prepared.operands(transform).unwrap()
                    } else {
                        Operands::default()
                    };
                    (operands.transform, operands.k) =
                        (transform, if op == Op::TopK { classes.min(3) } else { 1 });
                    if op.spec().forward.is_some() {
                        operands.upstream_gradient = Some(f32::erase(&upstream));
                        operands.transform.softcap = None;
                    }
                    check(
                        op,
                        shape,
                        operands,
                        &format!("{op:?} of {classes} classes, {transform:?}"),
                    );
                }
            }
        }
    }
}

/// Every level against a plain float64 implementation, for every width of rows and every layout.
#[test]
fn levels_are_right() {
    for level in available() {
        for classes in (1..=70).chain(CLASSES) {
            for inner in [1, 3, 40] {
                let (outer, rows) = (2, 2 * inner);
                // Every second width has logits down to 85 below the maximum.
                let spread = if (classes + inner) % 2 == 0 { 1.0 } else { 4.7 };
                let x: Vec<f32> = noise(rows * classes).map(|x| (x * spread) as f32).collect();
                let shape = Shape::new(outer, classes, inner);
                let p =
                    outcome(Op::Softmax, &x, shape, Operands::default(), schedule(level), false);
                for row in 0..rows {
                    let place =
                        |class: usize| (row / inner * classes + class) * inner + row % inner;
                    let logits: Vec<f32> = (0..classes).map(|class| x[place(class)]).collect();
                    let exact = Row::new(&logits);
                    for class in 0..classes {
                        let wanted = exact.probability(class);
                        let found = p[place(class)];
                        let near =
                            (found - wanted).abs() <= 1e-6 * wanted.max(f32::MIN_POSITIVE.into());
                        assert!(
                            near,
                            "{level:?}: {found} for {wanted}: class {class} of {classes}, row {row}, inner {inner}"
                        );
                    }
                }
            }
        }
    }
}

/// Long rows that are -inf outside one range of classes.
#[test]
fn pieces_may_be_of_nothing() {
    for level in available() {
        for classes in [4097, 9000, 20_001] {
            for shift in [-2000.0, -300.0, -100.0, 0.0, 100.0, 1e5] {
                for there in [0..40, classes / 2..classes / 2 + 1, classes - 50..classes] {
                    let mut x = vec![f32::NEG_INFINITY; classes];
                    x[there.clone()]
                        .iter_mut()
                        .zip(noise(classes))
                        .for_each(|(to, from)| *to = (from + shift) as f32);
                    let shape = Shape::rows(1, classes);
                    let exact = Row::new(&x);
                    for in_place in [false, true] {
                        let p = outcome(
                            Op::Softmax,
                            &x,
                            shape,
                            Operands::default(),
                            schedule(level),
                            in_place,
                        );
                        for class in 0..classes {
                            let wanted = exact.probability(class);
                            assert!(
                                (p[class] - wanted).abs() <= 2e-6 * wanted,
                                "{level:?}: {} for {wanted}",
                                p[class]
                            );
                        }
                    }
                    let log_sum_exp = outcome(
                        Op::LogSumExp,
                        &x,
                        shape,
                        Operands::default(),
                        schedule(level),
                        false,
                    );
                    let wanted = exact.log_sum_exp();
                    assert!(
                        (log_sum_exp[0] / wanted - 1.0).abs() <= 1e-6,
                        "{level:?}: {} for {wanted}",
                        log_sum_exp[0]
                    );
                }
            }
        }
    }
}

/// The smallest probabilities that are normal f32, and gradients of any size, in rows of one piece
/// and of several.
#[test]
fn probabilities_and_gradients_are_accurate_down_to_the_least_normal_number() {
    const LEAST: f64 = f32::MIN_POSITIVE as f64;
    for level in available() {
        for classes in [3, 20, 33, 1000, 4097, 9000, 40_001] {
            for (top, depth) in [
                (0.0, -60.0),
                (0.0, -73.0),
                (0.0, -80.0),
                (0.0, -86.0),
                (0.0, -100.0),
                (500.0, -100.0),
            ] {
                let mut x: Vec<f32> =
                    noise(classes).map(|x| (x / 50.0 + depth + top) as f32).collect();
                (x[0], x[classes / 2]) = (top as f32, top as f32 - 0.5);
                let exp = |x: f32| (f64::from(x) - top).exp();
                let sum: f64 = x.iter().map(|&x| exp(x)).sum();
                let what = format!("{level:?}, {classes} classes, {depth} below {top}");
                let shape = Shape::rows(1, classes);
                let p =
                    outcome(Op::Softmax, &x, shape, Operands::default(), schedule(level), false);
                for (class, (&p, &x)) in p.iter().zip(&x).enumerate() {
                    let wanted = exp(x) / sum;
                    let bound = if wanted < LEAST { LEAST } else { 2e-6 * wanted };
                    assert!(
                        (p - wanted).abs() <= bound,
                        "{what}: probability {p:e} for {wanted:e} of class {class}"
                    );
                }
                for factor in [1e-35, 1e-33, 1.0, 1e30] {
                    let loss =
                        CrossEntropy::default().reduction(Reduction::Sum).upstream_gradient(factor);
                    let prepared = loss.prepare(shape, Targets::from(&[0_u32])).unwrap();
                    let operands = prepared.operands(Transform::default()).unwrap();
                    let gradient =
                        outcome(Op::CrossEntropyGrad, &x, shape, operands, schedule(level), false);
                    for (class, (&g, &x)) in gradient.iter().zip(&x).enumerate().skip(1) {
                        let wanted = f64::from(factor) * exp(x) / sum;
                        let bound = if wanted < LEAST { LEAST } else { 2e-6 * wanted };
                        assert!(
                            (g - wanted).abs() <= bound,
                            "{what}: {g:e} for {wanted:e} of class {class}, times {factor:e}"
                        );
                    }
                }
            }
        }
    }
}

/// The gradient of a logit of -inf is 0, however large the upstream gradient is.
#[test]
fn the_gradient_of_nothing_is_nothing() {
    let loss = CrossEntropy::default().reduction(Reduction::Sum).upstream_gradient(1e30);
    for level in available() {
        for classes in [2, 31, 100, 300, 9000] {
            let mut x: Vec<f32> = noise(classes).map(|x| x as f32 * 3.0).collect();
            x.iter_mut().skip(1).step_by(2).for_each(|x| *x = f32::NEG_INFINITY);
            x.iter_mut().skip(4).step_by(7).for_each(|x| *x -= 130.0);
            let shape = Shape::rows(1, classes);
            let prepared = loss.prepare(shape, Targets::from(&[0_u32])).unwrap();
            let operands = prepared.operands(Transform::default()).unwrap();
            for x in [x.clone(), x.iter().map(|x| x + 1e4).collect()] {
                let gradient =
                    outcome(Op::CrossEntropyGrad, &x, shape, operands, schedule(level), false);
                for (class, x) in x.iter().enumerate() {
                    let is_nothing = *x == f32::NEG_INFINITY;
                    assert!(
                        !is_nothing || gradient[class] == 0.0,
                        "{level:?}: {} of {class}",
                        gradient[class]
                    );
                    assert!(gradient[class].is_finite());
                }
            }
        }
    }
}

#[test]
fn levels_agree() {
    let levels = available();
    println!("{levels:?}");
    every_case(|op, shape, operands, what| {
        let x = logits(shape.outer(), shape.classes());
        let wanted = outcome(op, &x, shape, operands, schedule(levels[0]), false);
        for &level in &levels[1..] {
            let found = outcome(op, &x, shape, operands, schedule(level), false);
            if level.name() != "portable" {
                assert_same(&found, &wanted, &format!("{level:?}: {what}"));
                continue;
            }
            for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                let near =
                    (found - wanted).abs() <= 1e-6 * wanted.abs().max(f64::from(f32::MIN_POSITIVE));
                let same = found == wanted || (found.is_nan() && wanted.is_nan());
                // Small gradients may be differences of numbers near 1.
                let small = op.spec().writes_elements && (found - wanted).abs() < 1e-6;
                assert!(
                    near || same || small,
                    "{level:?}: {what}: {found:e} for {wanted:e} at {at}"
                );
            }
        }
    });
}

#[test]
fn results_go_in_place_and_past_the_caches_alike() {
    for level in available() {
        every_case(|op, shape, operands, what| {
            if !op.spec().writes_elements {
                return;
            }
            let x = logits(shape.outer(), shape.classes());
            let wanted = outcome(op, &x, shape, operands, schedule(level), false);
            let streamed = outcome(
                op,
                &x,
                shape,
                operands,
                Schedule { streams: true, ..schedule(level) },
                false,
            );
            assert_same(&streamed, &wanted, &format!("{level:?}, streamed: {what}"));
            let in_place = outcome(op, &x, shape, operands, schedule(level), true);
            assert_same(&in_place, &wanted, &format!("{level:?}, in place: {what}"));
        });
    }
}

/// Streams f16, bf16 and f64, whose vectors have other sizes than those of f32.
#[test]
fn other_types_go_past_the_caches_alike() {
    fn check<T: Element>(of: impl Fn(f32) -> T) {
        for level in available() {
            for classes in [3, 10, 33, 100, 1000, 5000, 20_001] {
                let shape = Shape::rows(35, classes);
                let x: Vec<T> = logits(35, classes).into_iter().map(&of).collect();
                let wanted =
                    outcome(Op::Softmax, &x, shape, Operands::default(), schedule(level), false);
                let schedule = Schedule { streams: true, ..schedule(level) };
                let found = outcome(Op::Softmax, &x, shape, Operands::default(), schedule, false);
                assert_same(&found, &wanted, &format!("{level:?} {} of {classes}", T::DTYPE));
                let found = outcome(
                    Op::Softmax,
                    &x,
                    shape,
                    Operands::default(),
                    self::schedule(level),
                    true,
                );
                assert_same(
                    &found,
                    &wanted,
                    &format!("{level:?} {} of {classes}, in place", T::DTYPE),
                );
            }
        }
    }
    check(f16::from_f32);
    check(bf16::from_f32);
    check(f64::from);
}

#[test]
fn threads_share_a_row_alike() {
    for level in available() {
        for classes in [8191, 8192, 8193, 16_384, 100_003] {
            // Fifteen rows have all kinds; four have the first kinds.
            let rows = if classes > 50_000 { 4 } else { 15 };
            let shape = Shape::rows(rows, classes);
            let x = logits(rows, classes);
            let targets: Vec<u32> = (0..rows as u32).map(|row| row * 500).collect();
            for (nth, loss) in losses(classes).iter().enumerate() {
                let prepared = loss.prepare(shape, Targets::from(&targets)).unwrap();
                let ops =
                    [Op::Softmax, Op::LogSoftmax, Op::CrossEntropy, Op::CrossEntropyGrad, Op::TopK];
                for op in ops.into_iter().filter(|op| nth == 0 || op.has_targets()) {
                    let operands = if op.has_targets() {
                        prepared.operands(Transform::default()).unwrap()
                    } else {
                        Operands::default()
                    };
                    let operands = Operands { k: 1, ..operands };
                    for in_place in [false, true] {
                        let wanted = outcome(op, &x, shape, operands, schedule(level), in_place);
                        let found = outcome(
                            op,
                            &x,
                            shape,
                            operands,
                            Schedule { threads_share_rows: true, ..schedule(level) },
                            in_place,
                        );
                        assert_same(&found, &wanted, &format!("{level:?}: {op:?} of {classes}"));
                    }
                }
            }
        }
    }
}

#[test]
fn a_nan_anywhere_is_seen() {
    for level in available() {
        for classes in [10, 31, 33, 130, 300, 8200] {
            let shape = Shape::rows(1, classes);
            for place in (0..classes).step_by(if classes > 300 { 37 } else { 1 }) {
                // NaNs with different bits; the default tier takes one for each place, in turn.
                let nans = [0x7fc0_0000_u32, 0xffc0_0000, 0x7fc0_0001, 0x7f80_0001, 0xffff_ffff];
                let here = if tier::is_full() { &nans[..] } else { &nans[place % 5..][..1] };
                for &nan in here {
                    let mut x: Vec<f32> = noise(classes).map(|x| x as f32).collect();
                    x[place] = f32::from_bits(nan);
                    let p = outcome(
                        Op::Softmax,
                        &x,
                        shape,
                        Operands::default(),
                        schedule(level),
                        false,
                    );
                    assert!(
                        p[..classes].iter().all(|p| p.is_nan()),
                        "{level:?}: {nan:x} at {place} of {classes}"
                    );
                    let best = outcome(
                        Op::Predict,
                        &x,
                        shape,
                        Operands { k: 1, ..Operands::default() },
                        schedule(level),
                        false,
                    );
                    assert_eq!(
                        best[best.len() - 2],
                        place as f64,
                        "{level:?}: {nan:x} at {place} of {classes}"
                    );
                }
            }
        }
    }
}

/// Corners that once were wrong, each against a value found by hand or in float64.
#[test]
fn corners_are_right() {
    let cpu = Device::cpu();
    for classes in [2, 2 * SHORT_ROW_CLASSES] {
        // The temperature of a backward scales the gradient, and no exponential.
        let l = vec![-(classes as f32).ln(); classes];
        let mut g = vec![0.0; classes];
        g[0] = 1.0;
        let x = Logits::new(&l, [1, classes]).unwrap().temperature(2.0).unwrap();
        let found = cpu.log_softmax_backward(x, &g).to_vec().unwrap().values;
        let wanted = 0.5 * (1.0 - 1.0 / classes as f32);
        assert!((found[0] - wanted).abs() < 1e-6, "{} for {wanted}", found[0]);

        // A large cap changes nothing; a confident capped row has the loss of its second class.
        let mut x = vec![f32::NEG_INFINITY; classes];
        (x[0], x[1]) = (40.5, 0.0);
        let logits = Logits::new(&x, [1, classes]).unwrap();
        for cap in [1e9, 50.0] {
            let loss = CrossEntropy::default().softcap(cap);
            let capped = |x: f64| f64::from(cap) * (x / f64::from(cap)).tanh();
            let rest = (capped(0.0) - capped(40.5)).exp();
            let found = cpu.cross_entropy(&loss, logits, &[0]).loss().unwrap().loss;
            // The logits of -inf are at the cap.
            let others = (classes - 2) as f64 * (-f64::from(cap) - capped(40.5)).exp();
            let wanted = (rest + others).ln_1p();
            assert!((found / wanted - 1.0).abs() < 1e-6, "cap {cap}: {found} for {wanted}");
        }
    }
    // Log-sum-exps that nearly cancel.
    let x = [-1.154_610_9e-17_f32, -39.000_183];
    let wanted = f64::from(x[0]) + f64::from(x[1]).exp().ln_1p();
    let found = cpu.log_sum_exp(Logits::new(&x, [1, 2]).unwrap()).to_vec().unwrap().values[0];
    assert!((f64::from(found) / wanted - 1.0).abs() < 1e-6, "{found:e} for {wanted:e}");
    // A factor beyond f32 times a gradient of 0.
    let loss = CrossEntropy::default()
        .reduction(Reduction::Sum)
        .label_smoothing(1.0)
        .upstream_gradient(3e38)
        .upstream_gradients(vec![3e38]);
    let mut gradient = [7.0_f32; 2];
    let x = Logits::new(&[0.0_f32, 0.0], [1, 2]).unwrap();
    cpu.cross_entropy(&loss, x, &[0]).with_gradient(&mut gradient).unwrap();
    assert_eq!(gradient, [0.0, 0.0]);
    // Pieces of an f64 row whose maxima are far apart, or large.
    let mut x = vec![0.0_f64; 8192];
    x[8191] = 406.0;
    let loss = CrossEntropy::default().reduction(Reduction::Sum).upstream_gradient(1e18);
    let mut gradient = vec![7.0; 8192];
    let logits = Logits::new(&x, [1, 8192]).unwrap();
    cpu.cross_entropy(&loss, logits, &[8191]).with_gradient(&mut gradient).unwrap();
    let wanted = 1e18 * (-406.0_f64).exp();
    assert!((gradient[0] / wanted - 1.0).abs() < 1e-6, "{:e} for {wanted:e}", gradient[0]);
    let large = 2.0_f64.powi(50) + 38.0;
    x.fill(f64::NEG_INFINITY);
    (x[0], x[8191]) = (large, large + 1.0);
    let p = cpu.softmax(Logits::new(&x, [1, 8192]).unwrap()).to_vec().unwrap().values;
    let wanted = 1.0 / (1.0 + 1.0_f64.exp());
    assert!((p[0] / wanted - 1.0).abs() < 1e-6, "{} for {wanted}", p[0]);
    // A cap so large that a unit in its last place is 64.
    for max in [5.4e8_f32, 3_253_700_096.0, 3_185_499_904.0] {
        for classes in [2, 2 * SHORT_ROW_CLASSES] {
            let mut x = vec![0.0; classes];
            x[0] = max;
            let logits = Logits::new(&x, [1, classes]).unwrap();
            let capped = logits.as_seen_by(&CrossEntropy::default().softcap(1e9)).unwrap();
            let p = cpu.softmax(capped.temperature(2e-9).unwrap()).to_vec().unwrap().values;
            let is_right = (p[0] - 1.0).abs() < 1e-6 && p[1..].iter().all(|p| p.to_bits() == 0);
            assert!(is_right, "{max}: {:?}", &p[..2]);
        }
    }
    // Soft targets whose products with distances are subnormal.
    for (classes, logit, times) in [(128, -100.0002, 1427.0), (1000, -100.0035, 142.0)] {
        let smallest = f32::from_bits(1);
        let (mut x, mut q) = (vec![logit; classes], vec![times * smallest; classes]);
        (x[0], q[0]) = (0.0_f32, 1.0_f32);
        let rest = (classes - 1) as f64 * f64::from(logit).exp();
        let wanted = (classes - 1) as f64 * f64::from(q[1]) * -f64::from(logit) + rest.ln_1p();
        let logits = Logits::new(&x, [1, classes]).unwrap();
        let targets = Targets::probabilities(&q);
        let found = cpu.cross_entropy(&CrossEntropy::default(), logits, targets).loss().unwrap();
        let error = (found.loss / wanted - 1.0).abs();
        assert!(error < 1e-6, "{classes} classes: {:e} for {wanted:e}", found.loss);
    }
}
