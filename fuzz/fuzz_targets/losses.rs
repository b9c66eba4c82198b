//! Compares losses with every option, and their gradients, with float64.

#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use logits::half::{bf16, f16};
use logits::{Device, Element, Logits, LogitsMut, Reduction, Targets};
use logits_check::oracle::Labels;
use logits_check::{Options, noise};
use logits_fuzz::{assert_near, batch, require_level};

fuzz_target!(init: require_level(), |bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let _ = match u.arbitrary::<u8>().unwrap_or_default() % 4 {
        0 => check(&mut u, f16::from_f64),
        1 => check(&mut u, bf16::from_f64),
        2 => check(&mut u, |x| x),
        _ => check(&mut u, |x| x as f32),
    };
});

fn options(u: &mut Unstructured<'_>, rows: usize, classes: usize) -> Result<Options> {
    let seed = u.arbitrary::<u32>()? as usize;
    let number = |u: &mut Unstructured<'_>| Ok(f32::from(u.arbitrary::<i8>()?) / 16.0);
    Ok(Options {
        ignored: if u.arbitrary()? {
            vec![-100, i64::from(u.arbitrary::<u8>()?)]
        } else {
            vec![-100]
        },
        weight: if u.arbitrary()? {
            Some((0..classes).map(|class| noise(seed, class) as f32 + 1.0).collect())
        } else {
            None
        },
        label_smoothing: if u.arbitrary()? { f32::from(u.arbitrary::<u8>()?) / 250.0 } else { 0.0 },
        z_loss: if u.arbitrary()? { f32::from(u.arbitrary::<u8>()?) / 1e4 } else { 0.0 },
        softcap: if u.arbitrary()? { Some(number(u)? * 8.0) } else { None },
        logit_scale: if u.arbitrary()? { number(u)? } else { 1.0 },
        reduction: *u.choose(&[Reduction::Mean, Reduction::Sum, Reduction::None])?,
        upstream: if u.arbitrary()? { number(u)? } else { 1.0 },
        row_gradients: if u.arbitrary()? {
            Some((0..rows).map(|row| noise(!seed, row) as f32).collect())
        } else {
            None
        },
        focal_gamma: if u.arbitrary()? { number(u)? } else { 0.0 },
    })
}

fn check<T: Element>(u: &mut Unstructured<'_>, narrow: fn(f64) -> T) -> Result<()> {
    let device = Device::cpu();
    let batch = batch(u, narrow)?;
    let (shape, classes, rows) = (batch.shape, batch.shape.classes(), batch.shape.row_count());
    let options = options(u, rows, classes)?;
    let seed = u.arbitrary::<u32>()? as usize;
    // Some targets are no class.
    let most = if u.ratio(1, 8)? { classes } else { classes - 1 };
    let targets: Vec<i64> = (0..rows)
        .map(|row| ((noise(seed, row) + 1.0) * 0.5 * (most as f64 + 0.99)) as i64)
        .map(|class| if class % 11 == 10 { -100 } else { class })
        .collect();
    let probabilities: Vec<f64> = (0..rows * classes)
        .map(|at| f64::from((noise(!seed, at) + 1.0) as f32 / classes as f32))
        .collect();
    let is_soft: bool = u.arbitrary()?;
    let given =
        || if is_soft { Targets::probabilities(&probabilities) } else { Targets::from(&targets) };

    let dense = batch.dense();
    let Ok(x) = Logits::new(&dense, shape) else { return Ok(()) };
    let loss = options.loss();
    let untouched = vec![narrow(7.0); dense.len()];
    let mut gradient = untouched.clone();
    let out = match device.cross_entropy(&loss, x, given()).with_gradient(&mut gradient) {
        Ok(out) => out,
        Err(error) => {
            let is_bad = !(0.0..=1.0).contains(&options.label_smoothing)
                || options.softcap.is_some_and(|cap| cap <= 0.0)
                || options.logit_scale == 0.0
                || (is_soft && options.ignored.len() > 1)
                || options.focal_gamma < 0.0
                || (options.focal_gamma > 0.0 && (is_soft || options.label_smoothing > 0.0))
                || (!is_soft && targets.iter().any(|&target| target >= classes as i64));
            assert!(is_bad, "{error}: {options:?}");
            assert!(
                gradient.iter().zip(&untouched).all(|(&a, &b)| a.into() == b.into()),
                "written before {error}"
            );
            return Ok(());
        }
    };
    let loss_alone = device.cross_entropy(&loss, x, given()).loss().expect("as with its gradient");
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    assert!(
        same(loss_alone.loss, out.loss),
        "{} and {} of {shape:?}, {options:?}",
        loss_alone.loss,
        out.loss
    );

    let mut in_place = dense.clone();
    let over = LogitsMut::new(&mut in_place, shape).expect("as before");
    device.cross_entropy(&loss, over, given()).with_gradient_in_place().expect("as before");
    assert!(
        in_place.iter().zip(&gradient).all(|(&a, &b)| same(a.into(), b.into())),
        "in place, {shape:?}, {options:?}"
    );

    let values: Vec<Vec<f64>> = (0..rows).map(|row| batch.row(row)).collect();
    let soft: Vec<Vec<f64>> = (0..rows)
        .map(|row| (0..classes).map(|class| probabilities[batch.place(row, class)]).collect())
        .collect();
    let labels: Vec<Labels<'_>> = match is_soft {
        true => soft.iter().map(|q| Labels::Probabilities(q)).collect(),
        false => targets.iter().map(|&class| Labels::Class(class)).collect(),
    };
    let wanted = options.expected(&values, &labels);
    for row in 0..rows {
        // The result of an infinity depends on the labels; tests check each case.
        if values[row].iter().any(|x| !x.is_finite() || x.abs() > 1e4) {
            continue;
        }
        let what = format!("row {row} of {shape:?}, {}, soft {is_soft}", options.brief());
        // A focal loss multiplies the error of the exponent of its power.
        let error = 1e-6 * (1.0 + f64::from(options.focal_gamma)) * wanted.per_row[row].abs();
        if options.reduction == Reduction::None {
            assert_near(out.per_row[row], wanted.per_row[row], error, &what);
        }
        for class in 0..classes {
            let (got, wanted_here) =
                (gradient[batch.place(row, class)], wanted.gradients[row][class]);
            // A half type rounds the result; a value that is small in its row is as exact as the
            // row's scale.
            assert_near(
                got,
                wanted_here,
                1e-6 * wanted.scale[row],
                &format!("class {class}, {what}"),
            );
        }
    }
    Ok(())
}
