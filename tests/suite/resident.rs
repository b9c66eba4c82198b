//! Data that stays on the device: the results are those of the simple API, blocking and async, and
//! are read back only on request.

use logits::{
    CrossEntropy, Device, DeviceChoice, Error, Logits, LogitsMut, Reduction, Resident,
    ResidentLoss, Sampling,
};
use logits_check::oracle::Row;
use pollster::block_on;

use crate::common;

fn logits(count: usize) -> Vec<f32> {
    (0..count as u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 8.0).collect()
}

fn targets(shape: [usize; 2]) -> Vec<i64> {
    (0..shape[0])
        .map(|row| if row % 5 == 3 { -100 } else { (row * 7919 % shape[1]) as i64 })
        .collect()
}

/// Returns the same logits, but every fifth is up to 88 below the largest, and every seventh is
/// next to 0, some of them subnormal.
fn wide_logits(count: usize) -> Vec<f32> {
    let mut logits = logits(count);
    logits.iter_mut().skip(2).step_by(5).for_each(|x| *x -= 71.5);
    logits.iter_mut().skip(3).step_by(7).for_each(|x| *x *= 1e-38);
    logits
}

#[test]
fn resident_results_are_those_of_the_simple_api() {
    for device in common::devices() {
        // In the default tier the first GPU takes every third shape, which meets a kernel of each
        // kind.
        let shapes = [[2, 140_000], [300, 1], [1, 1], [50, 9], [9, 2048], [0, 7], [3, 20_000]];
        for (nth, shape) in common::in_turn(&device, 0, 3, shapes) {
            let logits = wide_logits(shape[0] * shape[1]);
            let targets = targets(shape);
            let x = Logits::new(&logits, shape).unwrap();
            let resident = device.upload(x).unwrap();
            let place = format!("{shape:?} on {device}");
            assert_eq!(resident.read().unwrap(), logits, "{place}");
            assert_eq!(
                resident.softmax().run().unwrap().read().unwrap(),
                device.softmax(x).to_vec().unwrap().values,
                "{place}"
            );
            let wanted = device.log_softmax(x).to_vec().unwrap().values;
            assert_eq!(resident.log_softmax().run().unwrap().read().unwrap(), wanted, "{place}");
            assert_eq!(
                resident.predict().run().unwrap().read().unwrap(),
                device.predict(x).to_vec().unwrap().values,
                "{place}"
            );
            let log_sum_exps = resident.log_sum_exp().run().unwrap();
            assert_eq!(log_sum_exps.row_count(), shape[0]);
            for (got, wanted) in log_sum_exps
                .read()
                .unwrap()
                .iter()
                .zip(device.log_sum_exp(x).to_vec().unwrap().values)
            {
                approx::assert_relative_eq!(*got, wanted, max_relative = 1e-6, epsilon = 2e-7);
            }
            let losses = [
                CrossEntropy::default(),
                CrossEntropy::default().label_smoothing(0.1).z_loss(0.01),
                CrossEntropy::default().reduction(Reduction::Sum).upstream_gradient(3.0),
                CrossEntropy::default()
                    .weight((0..shape[1]).map(|class| (class % 3) as f32).collect::<Vec<_>>()),
            ];
            for (_, loss) in common::in_turn(&device, nth / 3 + 1, 4, losses) {
                let on_device = device.upload_targets(&loss, shape, &targets).unwrap();
                let (wanted, gradient) =
                    device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
                let (got, theirs) = resident.cross_entropy_with_gradient(&on_device).run().unwrap();
                let alone = resident.cross_entropy(&on_device).run().unwrap();
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&theirs.read().unwrap()), bits(&gradient), "{place}");
                for got in [got, alone] {
                    assert_eq!(
                        bits(&got.per_row().read().unwrap()),
                        bits(&wanted.per_row),
                        "{place}"
                    );
                    let reduced = got.read().unwrap();
                    assert_eq!(
                        (reduced.rows, reduced.counted_rows),
                        (wanted.rows, wanted.counted_rows)
                    );
                    let same = |got: f64, wanted: f64| {
                        assert!(
                            (got.is_nan() && wanted.is_nan())
                                || approx::relative_eq!(got, wanted, max_relative = 1e-6)
                        );
                    };
                    same(reduced.loss, wanted.loss);
                    same(reduced.perplexity, wanted.perplexity);
                }
            }
        }
    }
}

/// The one exception to the bounds: log-sum-exps next to 0, compared with float64.
#[test]
fn log_sum_exps_next_to_0_are_within_what_is_said() {
    for device in common::devices() {
        let mut worst = 0.0_f64;
        for classes in [2, 9, 300, 2048, 5000, 140_000] {
            let rows = 400_000 / classes;
            let noise = logits(rows * classes);
            let x: Vec<f32> = noise.iter().map(|x| x * 1e-3 - (classes as f32).ln()).collect();
            let resident = device.upload(Logits::new(&x, [rows, classes]).unwrap()).unwrap();
            for (got, x) in
                resident.log_sum_exp().run().unwrap().read().unwrap().iter().zip(x.chunks(classes))
            {
                let exact = Row::new(x).log_sum_exp();
                assert!(exact.abs() < 0.05, "{exact} is not next to 0");
                worst = worst.max((f64::from(*got) - exact).abs());
            }
        }
        println!("{device}: {worst:.2e}");
        assert!(worst <= 2e-7, "{worst:.2e} on {device}");
    }
}

#[test]
fn only_the_rows_asked_for_come_back() {
    for device in common::devices() {
        let logits = logits(50 * 9);
        let padded: Vec<f32> =
            logits.chunks(9).flat_map(|row| row.iter().copied().chain([f32::NAN; 2])).collect();
        let x = Logits::with_row_stride(&padded, [50, 9], 11).unwrap();
        let resident = device.upload(x).unwrap();
        let clone = resident.clone();
        drop(resident);
        assert_eq!(clone.read_rows(7..9).unwrap(), logits[63..81]);
        assert_eq!(clone.read_rows(49..60).unwrap(), logits[441..]);
        assert!(
            clone.read_rows(60..70).unwrap().is_empty()
                && clone.read_rows(3..3).unwrap().is_empty()
        );
        // The handle outlives the device that it came from.
        let softmax = clone.softmax().run().unwrap();
        drop((clone, device));
        assert_eq!(softmax.read_rows(1..2).unwrap().len(), 9);
    }
}

#[test]
fn resident_things_that_do_not_fit_are_refused() {
    for device in common::devices() {
        let logits = logits(6);
        let resident = device.upload(Logits::new(&logits, [2, 3]).unwrap()).unwrap();
        let loss = CrossEntropy::default();
        let refused = device.upload_targets(&loss, [2, 3], &[0, 3]).map(drop).unwrap_err();
        assert!(matches!(refused, Error::TargetOutOfRange { row: 1, target: 3, .. }), "{refused}");
        assert_eq!(
            device.upload_targets(&loss, [2, 3], &[0]).map(drop),
            Err(Error::Length { what: "targets", expected: 2, found: 1 })
        );
        let others = device.upload_targets(&loss, [3, 3], &[0, 1, 2]).unwrap();
        assert_eq!(
            resident.cross_entropy(&others).run().map(drop),
            Err(Error::Length { what: "targets", expected: 2, found: 3 })
        );
        let wider = device.upload_targets(&loss, [2, 4], &[0, 3]).unwrap();
        assert_eq!(
            resident.cross_entropy(&wider).run().map(drop),
            Err(Error::Length { what: "classes of the targets", expected: 3, found: 4 })
        );
        if device.is_gpu() {
            let elsewhere = Device::cpu().upload_targets(&loss, [2, 3], &[0, 1]).unwrap();
            assert_eq!(
                resident.cross_entropy(&elsewhere).run().map(drop),
                Err(Error::ResidentElsewhere)
            );
        }
    }
}

/// Every async form has the results of the blocking one, and may move between the threads of a
/// server.
#[test]
fn async_forms_are_the_blocking_ones() {
    fn sendable<T>(future: impl Future<Output = T> + Send) -> T {
        block_on(future)
    }
    // These futures are dropped without being polled, so they open no adapter.
    fn is_sendable(_: impl Future + Send) {}
    is_sendable(Device::new_async());
    is_sendable(Device::open_async(&DeviceChoice::Gpu));
    is_sendable(Device::adapters_async());
    is_sendable(Device::cpu().fastest_async());
    for device in common::devices() {
        let shape = [70, 1000];
        let logits = logits(70_000);
        let x = Logits::new(&logits, shape).unwrap();
        let targets = targets(shape);
        let loss = CrossEntropy::default();
        assert_eq!(sendable(device.softmax(x).to_vec_async()), device.softmax(x).to_vec());
        assert_eq!(sendable(device.log_softmax(x).to_vec_async()), device.log_softmax(x).to_vec());
        assert_eq!(sendable(device.log_sum_exp(x).to_vec_async()), device.log_sum_exp(x).to_vec());
        assert_eq!(sendable(device.predict(x).to_vec_async()), device.predict(x).to_vec());
        assert_eq!(sendable(device.top_k(x, 3).to_vec_async()), device.top_k(x, 3).to_vec());
        let sampling = Sampling::new(7);
        assert_eq!(
            sendable(device.sample(&sampling, x).to_vec_async()),
            device.sample(&sampling, x).to_vec()
        );
        let upstream = logits.clone();
        let backward = || device.softmax_backward(x, &upstream);
        assert_eq!(sendable(backward().to_vec_async()), backward().to_vec());
        let backward = || device.log_softmax_backward(x, &upstream);
        assert_eq!(sendable(backward().to_vec_async()), backward().to_vec());
        let saved = device.log_sum_exp(x).to_vec().unwrap().values;
        let backward = || device.cross_entropy_backward(&loss, x, &targets, &saved);
        assert_eq!(sendable(backward().to_vec_async()), backward().to_vec());
        let (mut elements, mut rows) = (vec![f32::NAN; 70_000], vec![f32::NAN; 70]);
        sendable(device.softmax(x).write_to_async(&mut elements)).unwrap();
        assert_eq!(elements, device.softmax(x).to_vec().unwrap().values);
        sendable(device.log_sum_exp(x).write_to_async(&mut rows)).unwrap();
        assert_eq!(rows, saved);
        let call = device.cross_entropy(&loss, x, &targets);
        assert_eq!(sendable(call.accuracy_async(2)), call.accuracy(2));
        assert_eq!(
            sendable(device.cross_entropy(&loss, x, &targets).loss_async()),
            device.cross_entropy(&loss, x, &targets).loss()
        );
        let wanted = device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
        assert_eq!(
            sendable(device.cross_entropy(&loss, x, &targets).with_gradient_vec_async()).unwrap(),
            wanted
        );
        let mut gradient = vec![f32::NAN; 70_000];
        sendable(device.cross_entropy(&loss, x, &targets).with_gradient_async(&mut gradient))
            .unwrap();
        assert_eq!(gradient, wanted.1);
        let mut over = logits.clone();
        let in_place = LogitsMut::new(&mut over, shape).unwrap();
        sendable(device.cross_entropy(&loss, in_place, &targets).with_gradient_in_place_async())
            .unwrap();
        assert_eq!(over, wanted.1);
        let mut over = logits.clone();
        sendable(device.softmax(LogitsMut::new(&mut over, shape).unwrap()).in_place_async())
            .unwrap();
        assert_eq!(over, device.softmax(x).to_vec().unwrap().values);

        let resident = sendable(device.upload_async(x)).unwrap();
        let on_device = sendable(device.upload_targets_async(&loss, shape, &targets)).unwrap();
        let (out, theirs): (ResidentLoss, Resident) =
            sendable(resident.cross_entropy_with_gradient(&on_device).run_async()).unwrap();
        assert_eq!(sendable(theirs.read_async()).unwrap(), wanted.1);
        assert_eq!(sendable(out.per_row().read_async()).unwrap(), wanted.0.per_row);
        approx::assert_relative_eq!(
            sendable(out.read_async()).unwrap().loss,
            wanted.0.loss,
            max_relative = 1e-6
        );
        let probabilities = sendable(resident.softmax().run_async()).unwrap();
        assert_eq!(sendable(probabilities.read_rows_async(3..5)).unwrap(), elements[3000..5000]);
        let best = sendable(resident.predict().run_async()).unwrap();
        assert_eq!(
            sendable(best.read_async()).unwrap(),
            device.predict(x).to_vec().unwrap().values
        );

        // Many futures at once on one thread, each woken when it is done.
        let all = block_on(futures_util::future::join_all(
            (0..8).map(|_| device.softmax(x).to_vec_async()),
        ));
        assert!(all.iter().all(|out| *out == device.softmax(x).to_vec()));
        // A future that is dropped half-way does not affect later calls.
        drop(futures_util::FutureExt::now_or_never(device.softmax(x).to_vec_async()));
        assert_eq!(device.softmax(x).to_vec().unwrap().fell_back, None);
    }
}

/// Eight threads, one device, every kind of work; each thread drops its handles in its own order.
#[test]
fn eight_threads_share_a_device() {
    for device in common::devices() {
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let device = device.clone();
                scope.spawn(move || {
                    for round in 0..6 {
                        // There are few widths, because each needs its kernels.
                        let classes = [1, 10, 100, 1000, 2049][(thread + round) % 5];
                        let shape = [1 + (thread * 37 + round * 11) % 200, classes];
                        let logits = logits(shape[0] * shape[1]);
                        let x = Logits::new(&logits, shape).unwrap();
                        let targets = targets(shape);
                        let loss = CrossEntropy::default().reduction(Reduction::Sum);
                        let wanted = Device::cpu()
                            .cross_entropy(&loss, x, &targets)
                            .with_gradient_vec()
                            .unwrap();
                        let (got, gradient) =
                            device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
                        assert_eq!(got.fell_back, None);
                        let resident = device.upload(x).unwrap();
                        let on_device = device.upload_targets(&loss, shape, &targets).unwrap();
                        let (also, theirs) =
                            resident.cross_entropy_with_gradient(&on_device).run().unwrap();
                        let handles: (Resident, Resident) = if thread % 2 == 0 {
                            (resident, theirs.clone())
                        } else {
                            (theirs.clone(), resident)
                        };
                        drop(handles);
                        assert_eq!(theirs.read().unwrap(), gradient);
                        for loss in [got.loss, also.read().unwrap().loss] {
                            approx::assert_relative_eq!(loss, wanted.0.loss, max_relative = 1e-6);
                        }
                        for (got, wanted) in gradient.iter().zip(&wanted.1) {
                            approx::assert_abs_diff_eq!(got, wanted, epsilon = 1e-6);
                        }
                    }
                });
            }
        });
    }
}

/// A call that is placed by measurement is right wherever it runs.
#[test]
fn placement_is_measured() {
    let fastest = Device::new().fastest().unwrap();
    assert_eq!(fastest.crossovers().is_empty(), !fastest.is_gpu());
    for device in common::gpus() {
        let name = device.name().to_owned();
        let placed = device.fastest().unwrap();
        let crossovers = placed.crossovers();
        assert_eq!(crossovers.len(), 6);
        for crossover in &crossovers {
            println!("{name}: {crossover:?}");
            assert!(crossover.cpu_bytes_per_second > 0.0 && crossover.gpu_bytes_per_second > 0.0);
        }
        let logits = logits(1000);
        let x = Logits::new(&logits, [10, 100]).unwrap();
        let (here, there) =
            (placed.softmax(x).to_vec().unwrap(), Device::cpu().softmax(x).to_vec().unwrap());
        assert_eq!(here.fell_back, None);
        for (a, b) in here.values.iter().zip(&there.values) {
            approx::assert_relative_eq!(a, b, max_relative = 2e-6);
        }
        // The logits are so few that the CPU would compute them.
        let refused = placed.softmax(Logits::new(&[1.0_f64, 2.0], [1, 2]).unwrap()).to_vec();
        assert!(matches!(refused, Err(logits::Error::DType { .. })), "{refused:?}");
    }
}
