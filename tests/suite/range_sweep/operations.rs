//! Runs each operation over a batch, and compares its results with float64.

use logits::{
    CrossEntropy, DType, Device, Element, Logits, LogitsMut, Prediction, Reduction, Sampling,
};

use super::judge::{Bound, LEAST, Report, Worst};
use super::noise;
use super::rows::{Batch, Row, sum_of};

/// The k of `top_k`, if the row has as many classes.
const TOP: usize = 5;
/// The rows of a batch share the seed of their draws.
const SEED: u32 = 77;

/// The name of an operation, and the function that runs it and reports.
pub type Operation<T> = (&'static str, fn(&'static str, &Device, &Batch<T>, &mut Report));

/// The operations with their names.
pub fn operations<T: Element>() -> [Operation<T>; 14] {
    [
        ("softmax", softmax),
        ("log_softmax", log_softmax),
        ("log_sum_exp", log_sum_exp),
        ("softmax_backward", softmax_backward),
        ("log_softmax_backward", log_softmax_backward),
        ("cross_entropy", cross_entropy),
        ("cross_entropy_grad", cross_entropy_grad),
        ("cross_entropy_grad_in_place", cross_entropy_grad),
        ("cross_entropy_backward", cross_entropy_backward),
        ("predict", predict),
        ("top_k", top_k),
        ("sample", sample),
        ("entropy", entropy),
        ("entropy_backward", entropy_backward),
    ]
}

/// Calls `check` with each row, its number and its results.
fn by_rows<'a, T: Element, R>(
    batch: &'a Batch<T>,
    found: &'a [R],
    mut check: impl FnMut(&'a Row, usize, &'a [R]),
) {
    assert_eq!(found.len() % batch.rows.len(), 0);
    for (nth, (row, found)) in
        batch.rows.iter().zip(found.chunks(found.len() / batch.rows.len())).enumerate()
    {
        check(row, nth, found);
    }
}

fn logits<T: Element>(batch: &Batch<T>) -> Logits<'_, T> {
    Logits::new(&batch.x, batch.shape()).unwrap()
}

fn place(row: &Row, class: usize) -> String {
    format!("{} classes, {}, class {class}", row.x.len(), row.kind)
}

fn softmax<T: Element>(name: &'static str, device: &Device, batch: &Batch<T>, report: &mut Report) {
    let out = device.softmax(logits(batch)).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    let mut worst = Worst::new::<T>("probability", Bound::Relative(2e-6));
    // Probabilities that are rounded to 16 bits do not sum to 1.
    let mut sums = Worst::new::<T>("sum of a row", Bound::Scaled(1e-6));
    by_rows(batch, &out.values, |row, _, found| {
        for (class, (&p, &wanted)) in found.iter().zip(&row.p).enumerate() {
            worst.note(p.into(), wanted, 1.0, 0.0, || place(row, class));
        }
        if size_of::<T>() > 2 {
            let sum = sum_of(found.iter().map(|&p| p.into()));
            sums.note(sum, 1.0, 1.0, 0.0, || place(row, 0));
        }
    });
    report.add::<T>(name, worst);
    report.add::<T>(name, sums);
}

fn log_softmax<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    let out = device.log_softmax(logits(batch)).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    let mut worst = Worst::new::<T>("log-probability", Bound::Relative(1e-6));
    let lost = report.lost() * batch.classes as f64;
    by_rows(batch, &out.values, |row, _, found| {
        for (class, &log) in found.iter().enumerate() {
            worst.note(log.into(), row.log_p(class), 1.0, lost, || place(row, class));
        }
    });
    report.add::<T>(name, worst);
}

fn log_sum_exp<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    let out = device.log_sum_exp(logits(batch)).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    let mut worst = Worst::new::<T::Row>("log-sum-exp", Bound::Relative(1e-6));
    by_rows(batch, &out.values, |row, _, found| {
        worst.note(found[0].into(), row.log_sum_exp, 1.0, cancelled::<T>(row), || place(row, 0));
    });
    report.add::<T>(name, worst);
    // The host does not recompute results that stay on a GPU: within 0.5 of 0 their error is up to
    // 2e-7.
    let out = device.upload(logits(batch)).unwrap().log_sum_exp().run().unwrap().read().unwrap();
    let mut worst = Worst::new::<T::Row>("log-sum-exp of resident logits", Bound::Relative(1e-6));
    by_rows(batch, &out, |row, _, found| {
        let wanted = row.log_sum_exp;
        let is_near_zero = device.is_gpu() && wanted.abs() < 0.5;
        let lost = if is_near_zero { 2e-7 } else { cancelled::<T>(row) };
        worst.note(found[0].into(), wanted, 1.0, lost, || place(row, 0));
    });
    report.add::<T>(name, worst);
}

/// Returns what a device may lose of a log-sum-exp of f64 logits, which it adds up in f64 too: some
/// of the last bits of the logarithm of the sum, which the maximum may nearly cancel.
fn cancelled<T: Element>(row: &Row) -> f64 {
    if T::DTYPE == DType::F64 { 2.0 * f64::EPSILON * row.others.ln_1p() } else { 0.0 }
}

fn softmax_backward<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    backward(name, device, batch, report, false);
}

fn log_softmax_backward<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    backward(name, device, batch, report, true);
}

/// Starts from the float64 result of the forward operation, rounded to the type.
fn backward<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
    is_log: bool,
) {
    let (classes, noise) = (batch.classes, &batch.noise);
    let value = |row: &Row, class: usize| if is_log { row.log_p(class) } else { row.p[class] };
    let y = batch.rows.iter().flat_map(|row| (0..classes).map(move |class| value(row, class)));
    let y: Vec<T> = y.map(batch.kind.narrow).collect();
    let p: Vec<f64> = y.iter().map(|&y| if is_log { y.into().exp() } else { y.into() }).collect();
    let mut worst = Worst::new::<T>("gradient", Bound::Scaled(1e-6));
    for &factor in batch.factors() {
        // The upstream gradient is rounded to the type.
        let upstream: Vec<T> =
            noise.iter().map(|&noise| (batch.kind.narrow)(noise * f64::from(factor))).collect();
        let g: Vec<f64> = upstream.iter().map(|&g| g.into()).collect();
        let upstream: Vec<T> = upstream.into_iter().cycle().take(y.len()).collect();
        let x = Logits::new(&y, batch.shape()).unwrap();
        let out = match is_log {
            true => device.log_softmax_backward(x, &upstream).to_vec(),
            false => device.softmax_backward(x, &upstream).to_vec(),
        };
        let out = out.unwrap();
        assert_eq!(out.fell_back, None);
        by_rows(batch, &out.values, |row, nth, found| {
            let p = &p[nth * classes..][..classes];
            let g = || g.iter().cycle().skip(nth * classes % g.len()).take(classes);
            let sum = match is_log {
                true => sum_of(g().copied()),
                false => sum_of(g().zip(p).map(|(g, p)| g * p)),
            };
            let (most, whole) =
                g().fold((0.0_f64, 0.0), |(most, whole), g| (most.max(g.abs()), whole + g.abs()));
            for (class, (&found, (p, g))) in found.iter().zip(p.iter().zip(g())).enumerate() {
                let (wanted, scale) = match is_log {
                    true => (g - p * sum, most + p * whole),
                    false => (p * (g - sum), most),
                };
                let lost = report.lost() * if is_log { whole } else { p * classes as f64 };
                worst.note(found.into(), wanted, scale, lost, || {
                    format!("{}, factor {factor:e}", place(row, class))
                });
            }
        });
    }
    report.add::<T>(name, worst);
}

fn loss(factor: f32) -> CrossEntropy {
    CrossEntropy::default().reduction(Reduction::Sum).upstream_gradient(factor)
}

fn judge_losses<T: Element>(
    name: &'static str,
    batch: &Batch<T>,
    losses: &[T::Row],
    report: &mut Report,
) {
    let mut worst = Worst::new::<T::Row>("loss", Bound::Relative(1e-6));
    let lost = report.lost() * batch.classes as f64;
    by_rows(batch, losses, |row, _, found| {
        worst.note(found[0].into(), -row.log_p(row.target), 1.0, lost, || place(row, row.target));
    });
    report.add::<T>(name, worst);
}

fn cross_entropy<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    let out = device.cross_entropy(&loss(1.0), logits(batch), &batch.targets).loss().unwrap();
    assert_eq!(out.fell_back, None);
    judge_losses(name, batch, &out.per_row, report);
}

fn cross_entropy_grad<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    for &factor in batch.factors() {
        let (out, gradient) = if name.ends_with("in_place") {
            let mut x = batch.x.clone();
            let logits = LogitsMut::new(&mut x, batch.shape()).unwrap();
            (
                device
                    .cross_entropy(&loss(factor), logits, &batch.targets)
                    .with_gradient_in_place()
                    .unwrap(),
                x,
            )
        } else {
            device
                .cross_entropy(&loss(factor), logits(batch), &batch.targets)
                .with_gradient_vec()
                .unwrap()
        };
        assert_eq!(out.fell_back, None);
        judge_losses(name, batch, &out.per_row, report);
        let mut worst = Worst::new::<T>("gradient", Bound::Scaled(1e-6));
        let mut relative = Worst::new::<T>("gradient, of itself", Bound::Relative(2e-6));
        let mut sums = Worst::new::<T>("sum of a gradient row", Bound::Scaled(1e-6));
        let factor = f64::from(factor);
        by_rows(batch, &gradient, |row, _, found| {
            for (class, &found) in found.iter().enumerate() {
                let (is_target, found) = (class == row.target, found.into());
                let wanted = factor * if is_target { row.less_one(class) } else { row.p[class] };
                let of_row =
                    || format!("{}, target {}, factor {factor:e}", place(row, class), row.target);
                worst.note(found, wanted, factor, 0.0, of_row);
                // The target's entry is the sum of the others; every other entry is a probability.
                let lost = match is_target {
                    true => report.lost() * batch.classes as f64,
                    false if row.p[class] < LEAST => LEAST,
                    false => 0.0,
                };
                relative.note(found, wanted, factor, lost * factor, of_row);
            }
            // Values that are rounded to 16 bits do not sum to 0.
            if size_of::<T>() > 2 {
                let lost = report.lost() * batch.classes as f64 * factor.max(1.0);
                let sum = sum_of(found.iter().map(|&value| value.into()));
                sums.note(sum, 0.0, factor, lost, || {
                    format!("{}, factor {factor:e}", place(row, row.target))
                });
            }
        });
        report.add::<T>(name, worst);
        report.add::<T>(name, relative);
        report.add::<T>(name, sums);
    }
}

/// Starts from log-sum-exps that are rounded to their type.
fn cross_entropy_backward<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    let known: Vec<T::Row> =
        batch.rows.iter().map(|row| (batch.kind.narrow_row)(row.log_sum_exp)).collect();
    for &factor in batch.factors() {
        let out = device
            .cross_entropy_backward(&loss(factor), logits(batch), &batch.targets, &known)
            .to_vec()
            .unwrap();
        assert_eq!(out.fell_back, None);
        let mut worst = Worst::new::<T>("gradient", Bound::Scaled(1e-6));
        let factor = f64::from(factor);
        by_rows(batch, &out.values, |row, nth, found| {
            let known: f64 = known[nth].into();
            for (class, &found) in found.iter().enumerate() {
                let p = (row.x[class] - known).exp() - f64::from(u8::from(class == row.target));
                worst.note(found.into(), factor * p, factor, 0.0, || {
                    format!("{}, factor {factor:e}", place(row, class))
                });
            }
        });
        report.add::<T>(name, worst);
    }
}

/// Notes the classes and probabilities that an operation decided on, which must be those of
/// `wanted`.
fn judge_decisions<T: Element>(
    name: &'static str,
    batch: &Batch<T>,
    found: &[Prediction],
    report: &mut Report,
    is_right: impl Fn(&Row, usize, &[u32]) -> bool,
) {
    let mut classes = Worst::new::<f32>("class", Bound::Same);
    let mut worst = Worst::new::<f32>("probability", Bound::Relative(2e-6));
    by_rows(batch, found, |row, nth, found| {
        let chosen: Vec<u32> = found.iter().map(|found| found.class).collect();
        let is_wrong = f64::from(u8::from(!is_right(row, nth, &chosen)));
        classes.note(is_wrong, 0.0, 1.0, 0.0, || format!("{}: {chosen:?}", place(row, row.top)));
        for found in found {
            let class = found.class as usize;
            worst.note(found.probability.into(), row.p[class], 1.0, 0.0, || place(row, class));
        }
    });
    report.add::<T>(name, classes);
    report.add::<T>(name, worst);
}

fn predict<T: Element>(name: &'static str, device: &Device, batch: &Batch<T>, report: &mut Report) {
    let out = device.predict(logits(batch)).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    judge_decisions(name, batch, &out.values, report, |row, _, found| found == [row.top as u32]);
}

fn top_k<T: Element>(name: &'static str, device: &Device, batch: &Batch<T>, report: &mut Report) {
    let k = TOP.min(batch.classes);
    let out = device.top_k(logits(batch), k).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    judge_decisions(name, batch, &out.values, report, |row, _, found| {
        // Takes the largest class that is left, k times.
        let mut left: Vec<u32> = (0..row.x.len() as u32).collect();
        // Zeros of both signs are equal.
        let key = |class: &u32| row.x[*class as usize] + 0.0;
        let order = |a: &u32, b: &u32| key(b).total_cmp(&key(a)).then(a.cmp(b));
        if k < left.len() {
            left.select_nth_unstable_by(k, order);
        }
        left.truncate(k);
        left.sort_unstable_by(order);
        left == found
    });
}

/// Checks that a GPU draws the class that the CPU draws, and the CPU the one with the largest sum
/// of logit and noise.
fn sample<T: Element>(name: &'static str, device: &Device, batch: &Batch<T>, report: &mut Report) {
    let sampling = Sampling::new(SEED.into());
    let out = device.sample(&sampling, logits(batch)).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    let cpu = if device.is_gpu() {
        Device::cpu().sample(&sampling, logits(batch)).to_vec().unwrap().values
    } else {
        Vec::new()
    };
    judge_decisions(name, batch, &out.values, report, |row, nth, found| {
        if let Some(cpu) = cpu.get(nth) {
            return found == [cpu.class];
        }
        let noise = noise::Noise::new(SEED, nth);
        let below = |class: usize| row.x[class] - row.x[row.top];
        let score = |class: usize| below(class) + noise.of(class);
        // Noise is between -3.2 and 22.2.
        let best = (0..row.x.len())
            .filter(|&class| below(class) > -26.0)
            .map(score)
            .fold(f64::NEG_INFINITY, f64::max);
        // Scores have the precision of f32.
        score(found[0] as usize) >= best - 1e-5
    });
}

fn entropy<T: Element>(name: &'static str, device: &Device, batch: &Batch<T>, report: &mut Report) {
    let out = device.entropy(logits(batch)).to_vec().unwrap();
    assert_eq!(out.fell_back, None);
    // A GPU computes in f32, the CPU in f64.
    let bound = if device.is_gpu() { 3e-6 } else { 1e-6 };
    let mut worst = Worst::new::<T::Row>("entropy", Bound::Relative(bound));
    // A GPU loses terms that are no normal numbers. Those of a class 100 below the maximum are not,
    // although 140,000 of them sum to one.
    let lost = report.lost() * batch.classes as f64;
    by_rows(batch, &out.values, |row, _, found| {
        worst.note(found[0].into(), row.entropy(), 1.0, lost, || place(row, 0));
    });
    report.add::<T>(name, worst);
}

/// The bounds are relative to the upstream gradient times the largest entropy there is, as in
/// `logits check`.
fn entropy_backward<T: Element>(
    name: &'static str,
    device: &Device,
    batch: &Batch<T>,
    report: &mut Report,
) {
    let most = (batch.classes as f64).ln();
    let bound = Bound::Scaled(if device.is_gpu() { 2e-6 } else { 1e-6 });
    let entropies: Vec<f64> = batch.rows.iter().map(Row::entropy).collect();
    for &factor in batch.factors() {
        let noise = batch.noise.iter().cycle();
        let upstream = noise.map(|&noise| (noise * f64::from(factor)) as f32);
        let upstream: Vec<f32> = upstream.take(batch.rows.len()).collect();
        let out = device.entropy_backward(logits(batch), &upstream).to_vec().unwrap();
        assert_eq!(out.fell_back, None);
        let mut worst = Worst::new::<T>("gradient", bound);
        let mut sums = Worst::new::<T>("sum of a gradient row", bound);
        by_rows(batch, &out.values, |row, nth, found| {
            let g = f64::from(upstream[nth]);
            let scale = most * g.abs();
            for (class, &found) in found.iter().enumerate() {
                let p = row.p[class];
                let wanted = g * p * (-row.log_p(class) - entropies[nth]);
                // A GPU may take a factor for 0 before it multiplies it by the distance.
                let lost = report.lost() * (1.0 - row.log_p(class)).min(120.0);
                worst.note(found.into(), wanted, scale, lost, || {
                    format!("{}, upstream {g:e}", place(row, class))
                });
            }
            if size_of::<T>() > 2 {
                let lost = report.lost() * batch.classes as f64 * 120.0 * g.abs().max(1.0);
                let sum = sum_of(found.iter().map(|&value| value.into()));
                sums.note(sum, 0.0, scale, lost, || format!("{}, upstream {g:e}", place(row, 0)));
            }
        });
        report.add::<T>(name, worst);
        report.add::<T>(name, sums);
    }
}
