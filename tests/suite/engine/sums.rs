//! The sum of the losses of rows has the same bits in a host call, resident, in a step, and in
//! parts.

use logits::{
    CrossEntropy, DType, Device, Logits, Operation, Reduction, RowSum, StepBuffers, Summary,
};

use super::engines;
use crate::common;

const CLASSES: usize = 3;

/// Logits whose losses are of many sizes: confident rows are right, and a few are wrong.
fn logits(rows: usize) -> Vec<f32> {
    let noise = super::logits(rows * CLASSES);
    (0..rows * CLASSES).map(|at| noise[at] * [0.01, 0.3, 1.0, 4.0, 0.0][at / CLASSES % 5]).collect()
}

/// Logits whose losses are from subnormal numbers to 2^90; the largest differs between blocks of
/// 1,024 rows.
fn wide_logits(rows: usize) -> Vec<f32> {
    let mut logits = logits(rows);
    for (row, x) in logits.chunks_mut(CLASSES).enumerate() {
        let exponent = (row * 31 % 25) as i32 + (row / 1024 * 37 % 90) as i32 - 20;
        x[row % CLASSES] *= 2.0_f32.powi(exponent);
    }
    logits
}

fn targets(rows: usize) -> Vec<i32> {
    (0..rows).map(|row| if row % 11 == 7 { -100 } else { (row * 7919 % CLASSES) as i32 }).collect()
}

fn losses() -> Vec<CrossEntropy> {
    let weighted = CrossEntropy::default().weight([0.7, 1.3e-7, 2.9]);
    let of = |loss: &CrossEntropy| {
        [Reduction::Sum, Reduction::Mean].map(|reduction| loss.clone().reduction(reduction))
    };
    [of(&CrossEntropy::default()), of(&weighted)].concat()
}

const ROWS: [usize; 7] = [1, 10, 1023, 1024, 1025, 5000, 70_001];

#[test]
fn a_loss_is_the_same_number_in_every_way() {
    let cases = ROWS.into_iter().flat_map(|rows| [(rows, false), (rows, true)]);
    for ((rows, is_wide), loss) in
        cases.flat_map(|case| losses().into_iter().map(move |loss| (case, loss)))
    {
        let x = if is_wide { wide_logits(rows) } else { logits(rows) };
        let targets = targets(rows);
        let view = Logits::new(&x, [rows, CLASSES]).unwrap();
        for engine in engines() {
            let device = Device::on(&engine.gpu);
            let what = format!("{rows} rows, wide: {is_wide}, {loss:?} on {device}");
            let host = device.cross_entropy(&loss, view, &targets).loss().unwrap();
            let mut sum = RowSum::new();
            sum.push(&host.per_row).unwrap();

            let resident = device.upload(view).unwrap();
            let on_device = device.upload_targets(&loss, [rows, CLASSES], &targets).unwrap();
            let resident = resident.cross_entropy(&on_device).run().unwrap();
            assert_eq!(resident.per_row().read().unwrap(), host.per_row, "{what}");
            assert_eq!(resident.read().unwrap().loss.to_bits(), host.loss.to_bits(), "{what}");

            let step = engine
                .gpu
                .prepare(Operation::CrossEntropy, [rows, CLASSES], DType::F32)
                .loss(&loss);
            let (x, t) = (engine.buffer(0, &x), engine.buffer(0, &targets));
            let (per_row, summary) = (engine.poisoned(rows), engine.poisoned(8));
            let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..));
            engine.run(
                &step.build().unwrap(),
                &buffers.rows(per_row.slice(..)).loss(summary.slice(..)),
            );
            assert_eq!(engine.read::<f32>(per_row.slice(..)), host.per_row, "{what}");
            let Summary { loss: reduced, sum: of_step, weight, counted_rows, .. } =
                engine.read(summary.slice(..))[0];
            let [of_step, weight] =
                [of_step, weight].map(|pair| f64::from(pair[0]) + f64::from(pair[1]));
            assert_eq!(of_step.to_bits(), sum.total().to_bits(), "{what}");
            assert_eq!(counted_rows as usize, host.counted_rows, "{what}");
            let of_step = if host.loss == sum.total() { of_step } else { of_step / weight };
            assert_eq!(of_step.to_bits(), host.loss.to_bits(), "{what}");
            approx::assert_relative_eq!(f64::from(reduced), host.loss, max_relative = 1e-6);
        }
    }
}

#[test]
fn parts_have_the_loss_of_the_whole() {
    let loss = CrossEntropy::default().reduction(Reduction::Sum);
    for device in [Device::cpu()].into_iter().chain(common::gpus()) {
        let rows = 5000;
        let (x, targets) = (logits(rows), targets(rows));
        let sum_of = |start: usize, end: usize| {
            let view =
                Logits::new(&x[start * CLASSES..end * CLASSES], [end - start, CLASSES]).unwrap();
            let out = device.cross_entropy(&loss, view, &targets[start..end]).loss().unwrap();
            let mut sum = RowSum::new();
            // The losses are pushed in pieces of any size.
            out.per_row.chunks(700).for_each(|losses| sum.push(losses).unwrap());
            assert_eq!(sum.total().to_bits(), out.loss.to_bits(), "{device}");
            sum
        };
        let whole = sum_of(0, rows).total();
        for cuts in [[1024, 2048], [2048, 3072], [1024, 4096], [0, 4096]] {
            let mut joined = sum_of(0, cuts[0]);
            joined.join(&sum_of(cuts[0], cuts[1])).unwrap();
            joined.join(&sum_of(cuts[1], rows)).unwrap();
            assert_eq!(joined.total().to_bits(), whole.to_bits(), "{cuts:?} on {device}");
        }
    }
}

/// Losses that are infinite or NaN, and losses whose sum is infinite.
#[test]
fn special_losses_are_summed_alike() {
    let rows = 3000;
    let loss = CrossEntropy::default().reduction(Reduction::Sum);
    for engine in engines() {
        let device = Device::on(&engine.gpu);
        for (at, logit) in [(10, f32::NEG_INFINITY), (2999, f32::NAN), (1500, f32::MAX), (0, 0.0)] {
            let mut x = vec![0.0_f32; rows * CLASSES];
            x[at * CLASSES] = logit;
            if logit == f32::MAX {
                // Two such losses are beyond f32.
                x[(at + 1) * CLASSES + 1] = f32::MAX;
                x[at * CLASSES + 1] = f32::MIN;
            }
            let targets: Vec<i32> =
                (0..rows).map(|row| i32::from(row == at && logit == f32::MAX)).collect();
            let view = Logits::new(&x, [rows, CLASSES]).unwrap();
            let host = device.cross_entropy(&loss, view, &targets).loss().unwrap();
            let step = engine
                .gpu
                .prepare(Operation::CrossEntropy, [rows, CLASSES], DType::F32)
                .loss(&loss);
            let (x, t, summary) =
                (engine.buffer(0, &x), engine.buffer(0, &targets), engine.poisoned(8));
            let buffers =
                StepBuffers::new(x.slice(..)).targets(t.slice(..)).loss(summary.slice(..));
            engine.run(&step.build().unwrap(), &buffers);
            let summary: Summary = engine.read(summary.slice(..))[0];
            let sum = f64::from(summary.sum[0]) + f64::from(summary.sum[1]);
            let what = format!("{logit} on {device}: {sum:e}, in a call {:e}", host.loss);
            let same = sum == host.loss || (sum.is_nan() && host.loss.is_nan());
            assert!(same || (host.loss > f64::from(f32::MAX) && sum == f64::INFINITY), "{what}");
            assert_eq!(summary.loss.is_nan(), sum.is_nan(), "{what}");
        }
    }
}

/// Losses within f32 whose sum is not: a resident loss is that of a call, and a step's is infinite.
#[test]
fn a_sum_beyond_f32_is_finite_in_f64() {
    let rows = 3000;
    let (x, targets) = (logits(rows), targets(rows));
    let heavy = CrossEntropy::default().weight([1e36, 0.5e36, 2.0]);
    let mut far = vec![0.0_f32; rows * CLASSES];
    far.iter_mut().step_by(CLASSES).for_each(|x| *x = 3e38);
    let mut infinite = far.clone();
    infinite[5 * CLASSES] = f32::NEG_INFINITY;
    let plain = CrossEntropy::default();
    let of_two: Vec<i32> = (0..rows).map(|row| if row == 5 { 0 } else { 1 }).collect();
    for engine in engines() {
        let device = Device::on(&engine.gpu);
        for (x, targets, loss, is_finite) in [
            (&x, &targets, &heavy, true),
            (&far, &of_two, &plain, true),
            (&infinite, &of_two, &plain, false),
        ] {
            for reduction in [Reduction::Sum, Reduction::Mean, Reduction::None] {
                let loss = loss.clone().reduction(reduction);
                let view = Logits::new(x, [rows, CLASSES]).unwrap();
                let host = device.cross_entropy(&loss, view, targets).loss().unwrap();
                let cpu = Device::cpu().cross_entropy(&loss, view, targets).loss().unwrap();
                let (resident, targets) = (
                    device.upload(view).unwrap(),
                    device.upload_targets(&loss, [rows, CLASSES], targets).unwrap(),
                );
                let out = resident.cross_entropy(&targets).run().unwrap().read().unwrap();
                let what = format!("{reduction:?} on {device}: {:e}, {:e}", out.loss, host.loss);
                assert_eq!(out.loss.to_bits(), host.loss.to_bits(), "{what}");
                assert_eq!(out.loss.is_finite(), is_finite, "{what}");
                approx::assert_relative_eq!(host.loss, cpu.loss, max_relative = 1e-6);
                let is_large = reduction == Reduction::Mean || host.loss > f64::from(f32::MAX);
                assert!(is_large, "{what}: within f32");
            }
        }
    }
}
