//! Decisions: the most likely classes, and draws.

use logits::half::f16;
use logits::{CrossEntropy, Device, Element, Error, Logits, Prediction, Sampling, Shape, Targets};
use logits_check::oracle::Row;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::common::{self, Share};
use crate::tier;

/// Returns logits of few different values, so that there are ties, over the whole range, with every
/// special value.
fn logits(rows: usize, classes: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64((rows * 131 + classes) as u64);
    let mut x: Vec<f32> =
        (0..rows * classes).map(|_| rng.random_range(-40..40) as f32 * 0.25).collect();
    for row in 0..rows {
        let x = &mut x[row * classes..][..classes];
        match (row + classes) % 10 {
            1 => x[classes / 2] = f32::NAN,
            2 => x[classes - 1] = f32::INFINITY,
            3 => x.fill(f32::NEG_INFINITY),
            4 => x.iter_mut().step_by(2).for_each(|x| *x = f32::NEG_INFINITY),
            5 => x.fill(-0.0),
            6 if classes > 3 => (x[0], x[3]) = (f32::from_bits(0xffc0_0000), f32::NAN),
            7 => x.iter_mut().for_each(|x| *x *= 4.4),
            8 => x.iter_mut().for_each(|x| *x *= 3e37),
            9 => x.iter_mut().for_each(|x| *x *= 1e-44),
            _ => {}
        }
    }
    x
}

/// Returns the classes from the largest logit down: NaNs first, and the lower of equal ones first.
fn sorted(x: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    let key = |class: &usize| if x[*class].is_nan() { f64::INFINITY } else { x[*class] };
    order.sort_by(|a, b| {
        x[*b]
            .is_nan()
            .cmp(&x[*a].is_nan())
            .then(key(b).partial_cmp(&key(a)).unwrap())
            .then(a.cmp(b))
    });
    order
}

fn check_top<T: Element>(device: &Device, x: &[T], shape: Shape, k: usize) {
    let top = device.top_k(Logits::new(x, shape).unwrap(), k).to_vec().unwrap();
    assert_eq!(top.fell_back, None);
    for (row, top) in top.values.chunks(k).enumerate() {
        let (inner, classes) = (shape.inner(), shape.classes());
        let place = |class: usize| (row / inner * classes + class) * inner + row % inner;
        let x: Vec<f64> = (0..classes).map(|class| x[place(class)].into()).collect();
        let order = sorted(&x);
        let exact = Row::new(&x);
        for (nth, (top, &class)) in top.iter().zip(&order).enumerate() {
            let what = || format!("{shape:?} of {}, row {row}, number {nth} on {device}", T::DTYPE);
            assert_eq!(top.class as usize, class, "{}", what());
            let wanted = exact.probability(class);
            let got = f64::from(top.probability);
            // A number that is not normal may be taken for 0.
            let bound = if wanted < f64::from(f32::MIN_POSITIVE) { wanted } else { 2e-6 * wanted };
            let fits = (got.is_nan() && wanted.is_nan()) || (got - wanted).abs() <= bound;
            assert!(fits, "{}: {got} for {wanted}", what());
        }
    }
}

#[test]
fn top_k_is_a_full_sort() {
    for device in common::devices() {
        for (nth, (rows, classes)) in [
            (3, 1),
            (20, 2),
            (15, 10),
            (9, 64),
            (8, 100),
            (8, 1000),
            (8, 2048),
            (8, 2049),
            (7, 4099),
            (2, 140_000),
        ]
        .into_iter()
        .enumerate()
        {
            for k in [1, 5, 64] {
                let (x, k) = (logits(rows, classes), k.min(classes));
                // In the default tier a GPU checks one type a shape, f32 or f16 in turn, and not 64
                // of a long row.
                let both = common::share(&device) == Share::All;
                if !both && rows * classes > 100_000 && k > 5 {
                    continue;
                }
                if common::share(&device) == Share::Values && (k != 5 || nth % 4 > 1) {
                    continue;
                }
                if both || nth % 2 == 0 {
                    check_top(&device, &x, Shape::rows(rows, classes), k);
                }
                if both || nth % 2 == 1 {
                    let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
                    check_top(&device, &halves, Shape::rows(rows, classes), k);
                }
            }
        }
        check_top(&device, &logits(24, 50), Shape::new(4, 50, 6), 7);
        check_top(&device, &logits(4, 2500), Shape::new(1, 2500, 4), 7);
        for (k, classes) in [(0, 5), (6, 5), (65, 100)] {
            let x = logits(1, classes);
            let refused = device.top_k(Logits::new(&x, [1, classes]).unwrap(), k).to_vec();
            assert_eq!(refused, Err(Error::TopK { k, classes, most: 64 }));
        }
    }
}

#[test]
fn accuracy_counts_what_counts() {
    let x = [1.0_f32, 3.0, 2.0, 0.0, 5.0, 4.0, 7.0, 1.0, 0.0];
    for device in common::devices() {
        let x = Logits::new(&x, [3, 3]).unwrap();
        let loss = CrossEntropy::default().ignore_index(-1);
        let first = device.cross_entropy(&loss, x, &[1, 2, -1]).accuracy(1).unwrap();
        assert_eq!((first.correct, first.counted_rows, first.accuracy()), (1, 2, 0.5));
        assert_eq!(device.cross_entropy(&loss, x, &[1, 2, -1]).accuracy(2).unwrap().correct, 2);
        let soft = [0.1_f32, 0.8, 0.1, 0.5, 0.3, 0.2, 0.9, 0.0, 0.1];
        assert_eq!(
            device
                .cross_entropy(&loss, x, Targets::probabilities(&soft))
                .accuracy(1)
                .unwrap()
                .correct,
            2
        );
        assert!(
            device.cross_entropy(&loss, x, &[-1, -1, -1]).accuracy(1).unwrap().accuracy().is_nan()
        );
    }
}

#[test]
fn a_seed_draws_the_same_on_every_device() {
    let mut drawn = 0;
    let shapes = [(2000, 3), (3000, 10), (500, 100), (50, 2049), (20, 32_000), (2, 140_000)];
    for (nth, (rows, classes)) in shapes.into_iter().enumerate() {
        let mut rng = StdRng::seed_from_u64(classes as u64);
        let mut x: Vec<f32> =
            (0..rows * classes).map(|_| rng.random::<f32>() * 12.0 - 6.0).collect();
        // Some logits are equal, some far below the others, some next to 0, and some -inf.
        x.iter_mut().step_by(7).for_each(|x| *x = x.round());
        x.iter_mut().skip(2).step_by(5).for_each(|x| *x -= 76.0);
        x.iter_mut().skip(3).step_by(13).for_each(|x| *x *= 1e-38);
        x.iter_mut().skip(1).step_by(11).for_each(|x| *x = f32::NEG_INFINITY);
        let samplings = [
            Sampling::new(1),
            Sampling::new(u64::MAX).step(3),
            Sampling::new(5).top_k(2),
            Sampling::new(5).top_p(0.7),
            Sampling::new(9).top_k(40).top_p(0.9),
        ];
        for (choice, sampling) in samplings.into_iter().enumerate() {
            for (turn, temperature) in [1.0, 0.7, 3.0].into_iter().enumerate() {
                // By default every way to draw is tried at one temperature of three, and in parts
                // at every other one.
                if !tier::is_full() && (nth + choice + turn) % 3 > 0 {
                    continue;
                }
                let x = Logits::new(&x, [rows, classes]).unwrap().temperature(temperature).unwrap();
                let here = Device::cpu().sample(&sampling, x).to_vec().unwrap().values;
                for device in common::gpus() {
                    if common::share(&device) == Share::Values && (choice + turn) % 3 > 0 {
                        continue;
                    }
                    let there = device.sample(&sampling, x).to_vec().unwrap().values;
                    for (row, (here, there)) in here.iter().zip(&there).enumerate() {
                        assert_eq!(
                            here.class, there.class,
                            "{rows}x{classes}, row {row}, {sampling:?} on {device}"
                        );
                        let error = (here.probability - there.probability).abs() / here.probability;
                        assert!(error <= 2e-6, "{error}");
                    }
                    drawn += rows;
                    if !tier::is_full() && (nth + choice) % 2 > 0 {
                        continue;
                    }
                    // In parts of a megabyte.
                    let parts =
                        device.clone().with_memory_budget(1).sample(&sampling, x).to_vec().unwrap();
                    assert_eq!(
                        (parts.values, parts.fell_back),
                        (there, None),
                        "{rows}x{classes} in parts on {device}"
                    );
                }
            }
        }
    }
    println!("{drawn} draws on GPUs, each the CPU's");
}

#[test]
fn a_row_without_a_softmax_draws_its_prediction() {
    let x = logits(21, 30);
    for device in common::devices() {
        let x = Logits::new(&x, [21, 30]).unwrap();
        let (drawn, best) = (
            device.sample(&Sampling::new(3), x).to_vec().unwrap(),
            device.predict(x).to_vec().unwrap(),
        );
        for (row, (drawn, best)) in drawn.values.iter().zip(&best.values).enumerate() {
            assert_eq!(
                drawn.probability.is_nan(),
                best.probability.is_nan(),
                "row {row} on {device}"
            );
            assert!(
                !drawn.probability.is_nan() || drawn.class == best.class,
                "row {row} on {device}"
            );
        }
        for sampling in [
            Sampling::new(1).top_k(0),
            Sampling::new(1).top_p(0.0),
            Sampling::new(1).top_p(f32::NAN),
        ] {
            assert!(matches!(device.sample(&sampling, x).to_vec(), Err(Error::OptionValue { .. })));
        }
    }
}

/// Pearson's statistic of counts, less its mean, in standard deviations: about normal for many
/// classes.
fn deviations(counts: &[u64], probabilities: &[f64]) -> f64 {
    let draws: u64 = counts.iter().sum();
    let terms = counts.iter().zip(probabilities).filter(|(_, p)| **p > 0.0);
    let statistic: f64 =
        terms.map(|(&n, &p)| (n as f64 - p * draws as f64).powi(2) / (p * draws as f64)).sum();
    let freedom = (probabilities.iter().filter(|&&p| p > 0.0).count() - 1) as f64;
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn draws_follow_the_softmax() {
    const CLASSES: usize = 20;
    let row: Vec<f32> = (0..CLASSES).map(|class| (class as f32 * 1.7).sin() * 2.5).collect();
    let order = sorted(&row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    for device in common::devices() {
        let samplings = [
            (Sampling::new(14).top_p(0.8), 1.5_f32, CLASSES, 0.8),
            (Sampling::new(11), 1.0, CLASSES, 1.0),
            (Sampling::new(12), 0.5, CLASSES, 1.0),
            (Sampling::new(13).top_k(6), 1.0, 6, 1.0),
        ];
        for (_, (sampling, temperature, top_k, top_p)) in common::in_turn(&device, 0, 1, samplings)
        {
            // A software adapter takes long for each draw.
            let draws = match device.is_gpu() {
                _ if tier::is_full() => 1_000_000,
                true => 10_000,
                false => 200_000,
            };
            let mut p: Vec<f64> = row.iter().map(|&x| f64::from(x / temperature).exp()).collect();
            let whole: f64 = p.iter().sum();
            let mass =
                |count: usize| order[..count].iter().map(|&class| p[class]).sum::<f64>() / whole;
            let kept = (1..=top_k).find(|&count| mass(count) >= top_p).unwrap_or(top_k);
            order[kept..].iter().for_each(|&class| p[class] = 0.0);
            let sum: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= sum);

            // All rows have the same logits; the row and the step choose the noise.
            let mut counts = [0_u64; CLASSES];
            let rows = draws / 10;
            let x: Vec<f32> = row.iter().copied().cycle().take(rows * CLASSES).collect();
            let mut out = vec![Prediction::default(); rows];
            for step in 0..10 {
                let x = Logits::new(&x, [rows, CLASSES]).unwrap().temperature(temperature).unwrap();
                device.sample(&sampling.step(step), x).write_to(&mut out).unwrap();
                out.iter().for_each(|drawn| counts[drawn.class as usize] += 1);
            }
            let deviations = deviations(&counts, &p);
            println!(
                "{draws} draws of {kept} classes on {}: chi-square {deviations:+.2} deviations off",
                device.name()
            );
            assert!(deviations.abs() < 4.0, "{sampling:?} on {device}: {counts:?}");
            assert!(counts.iter().zip(&p).all(|(&count, &p)| p > 0.0 || count == 0));
        }
    }
}
