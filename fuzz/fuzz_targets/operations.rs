//! Compares the operations without targets with float64: softmax and its logarithm, log-sum-exp,
//! decisions, gradients.

#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use logits::half::{bf16, f16};
use logits::{Device, Element, Logits, LogitsMut, Sampling};
use logits_check::oracle::Row;
use logits_check::{Batch, noise};
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

fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    // All NaNs are equal here.
    values
        .iter()
        .map(|&x| x.into())
        .map(|x: f64| if x.is_nan() { u64::MAX } else { x.to_bits() })
        .collect()
}

fn check<T: Element>(u: &mut Unstructured<'_>, narrow: fn(f64) -> T) -> Result<()> {
    let device = Device::cpu();
    let batch = batch(u, narrow)?;
    let (shape, classes) = (batch.shape, batch.shape.classes());
    let temperature = if u.ratio(1, 4)? { f32::from(u.arbitrary::<i16>()?) / 256.0 } else { 1.0 };
    let Ok(x) = Logits::with_row_stride(&batch.values, shape, batch.stride) else {
        assert!(batch.stride != batch.block(), "{shape:?} is refused");
        return Ok(());
    };
    let Ok(x) = x.temperature(temperature) else {
        assert!(temperature <= 0.0, "temperature {temperature} is refused");
        return Ok(());
    };
    let y = |row: usize| -> Vec<f64> {
        batch.row(row).iter().map(|x| x / f64::from(temperature)).collect()
    };

    let p = device.softmax(x).to_vec().expect("softmax").values;
    let log_p = device.log_softmax(x).to_vec().expect("log-softmax").values;
    let log_sum_exps = device.log_sum_exp(x).to_vec().expect("log-sum-exp").values;
    let best = device.predict(x).to_vec().expect("predictions").values;
    for row in 0..shape.row_count() {
        let y = y(row);
        let reduced = Row::new(&y);
        for class in 0..classes {
            let at = batch.place(row, class);
            let wanted = reduced.probability(class);
            assert_near(
                p[at],
                wanted,
                2e-6 * wanted,
                &format!(
                    "softmax of {shape:?} at {temperature}, row {row}, class {class}, where y is {}",
                    y[class]
                ),
            );
            let wanted = reduced.log_probability(class);
            assert_near(
                log_p[at],
                wanted,
                1e-6 * wanted.abs(),
                &format!("log-softmax of {shape:?}, row {row}"),
            );
        }
        if reduced.is_regular() {
            let (top, log_sum, wanted) =
                (reduced.max(), reduced.log_sum_above_max(), reduced.log_sum_exp());
            // The maximum and the logarithm may cancel, so the error is relative to them too.
            let error = 1e-6 * wanted.abs() + 2e-7 * log_sum.min(top.abs());
            assert_near(
                log_sum_exps[row],
                wanted,
                error,
                &format!("log-sum-exp of {shape:?}, row {row}"),
            );
            assert!(
                y[best[row].class as usize] == top,
                "{:?} in row {row} of {shape:?}",
                best[row]
            );
        }
    }

    let mut in_place = batch.values.clone();
    let over = LogitsMut::with_row_stride(&mut in_place, shape, batch.stride)
        .and_then(|x| x.temperature(temperature));
    device.softmax(over.expect("as before")).in_place().expect("softmax in place");
    let again = Batch { shape, stride: batch.stride, values: in_place };
    assert_eq!(bits(&again.dense()), bits(&p), "in place, {shape:?}");
    for (block, was) in again.values.chunks(batch.stride).zip(batch.values.chunks(batch.stride)) {
        assert_eq!(
            bits(&block[batch.block()..]),
            bits(&was[batch.block()..]),
            "between blocks of {shape:?}"
        );
    }

    let k = usize::from(u.arbitrary::<u8>()?);
    match device.top_k(x, k).to_vec() {
        Ok(top) => {
            for (row, top) in top.values.chunks(k.max(1)).enumerate() {
                let mut sorted = y(row);
                sorted.sort_by(|a, b| b.total_cmp(a));
                if Row::new(&sorted).is_regular() {
                    let found: Vec<f64> =
                        top.iter().map(|top| y(row)[top.class as usize]).collect();
                    assert!(
                        found.iter().zip(&sorted).all(|(a, b)| a == b),
                        "top {k} of row {row}, {shape:?}: {found:?}"
                    );
                }
            }
        }
        Err(error) => assert!(k == 0 || k > classes.min(64), "{error}"),
    }

    let sampling = Sampling::new(u.arbitrary()?)
        .top_k(usize::from(u.arbitrary::<u8>()?))
        .top_p(f32::from(u.arbitrary::<u8>()?) / 200.0);
    if let Ok(drawn) = device.sample(&sampling, x).to_vec() {
        for (row, drawn) in drawn.values.iter().enumerate() {
            let y = y(row);
            assert!((drawn.class as usize) < classes);
            assert!(
                !Row::new(&y).is_regular() || y[drawn.class as usize] > f64::NEG_INFINITY,
                "class {} was drawn",
                drawn.class
            );
        }
    }

    // Gradients through the softmax, from its own values.
    let seed = u.arbitrary::<u32>()? as usize;
    let upstream: Vec<T> = (0..p.len()).map(|at| narrow(noise(seed, at))).collect();
    let out = device
        .softmax_backward(Logits::new(&p, shape).expect("as before"), &upstream)
        .to_vec()
        .expect("gradients")
        .values;
    for row in 0..shape.row_count() {
        let of = |values: &[T]| -> Vec<f64> {
            (0..classes).map(|class| values[batch.place(row, class)].into()).collect()
        };
        let (p, g, out) = (of(&p), of(&upstream), of(&out));
        if p[0].is_nan() {
            continue;
        }
        let mean: f64 = p.iter().zip(&g).map(|(p, g)| p * g).sum();
        for class in 0..classes {
            let wanted = p[class] * (g[class] - mean);
            assert_near(
                narrow(out[class]),
                wanted,
                1e-6,
                &format!("gradients of {shape:?}, row {row}"),
            );
        }
    }
    Ok(())
}
