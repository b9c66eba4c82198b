//! Each fault, at each place of each call where it can strike.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use logits::{CrossEntropy, Device, Error, Logits};

use crate::calls::Operation::{Gradient, GradientInPlace, Loss, Resident, Softmax, SoftmaxInPlace};
use crate::calls::{Call, Operation};
use crate::library::{DEVICE_LOST, FOREVER, Kind, OUT_OF_MEMORY, TIMEOUT};
use crate::{Layer, below_wgpu, tier};

/// A fault of a call.
struct Fault {
    name: &'static str,
    kind: Kind,
    times: usize,
    result: i32,
    /// The reason must contain one of these.
    reasons: &'static [&'static str],
    /// The default tier tries every `step`th place of a call in several parts, and every `step /
    /// 4`th of a call in one.
    step: usize,
}

const fn fault(name: &'static str, kind: Kind, times: usize, result: i32, step: usize) -> Fault {
    let reasons: &[&str] = match result {
        DEVICE_LOST => &["the device was lost"],
        TIMEOUT => &["time allowed"],
        // wgpu gives up a device that has no memory for some of its objects, or panics.
        _ => &["emory", "a panic"],
    };
    Fault { name, kind, times, result, reasons, step }
}

const LOST: [Fault; 2] = [
    fault("lost at a submission", Kind::Submit, 1, DEVICE_LOST, 3),
    fault("lost at a wait or poll", Kind::Wait, 1, DEVICE_LOST, 7),
];
const SHORT: [Fault; 4] = [
    fault("no memory for an object", Kind::Make, 1, OUT_OF_MEMORY, 31),
    fault("no memory from an object on", Kind::Make, FOREVER, OUT_OF_MEMORY, 61),
    fault("no memory for a submission", Kind::Submit, 1, OUT_OF_MEMORY, 5),
    fault("no memory for a wait or poll", Kind::Wait, 1, OUT_OF_MEMORY, 19),
];
const HUNG: [Fault; 1] = [fault("hung from a wait or poll on", Kind::Wait, FOREVER, TIMEOUT, 3)];

const ALL: [Operation; 6] = [SoftmaxInPlace, Gradient, Resident, GradientInPlace, Softmax, Loss];
/// One part; parts of whole rows; rows that are cut. Each has the operations that the default tier
/// calls.
const SHAPES: [([usize; 2], &[Operation]); 3] = [
    ([3, 50], &[SoftmaxInPlace, Resident, Loss]),
    ([600, 1000], &[GradientInPlace, Softmax]),
    ([2, 300_001], &[SoftmaxInPlace, Gradient]),
];

/// Opens one device that may fall back, which the environment names, and one that may not; both
/// with the least budget, so that no buffer is kept for the next call.
fn devices() -> [(Device, bool); 2] {
    [(Device::new(), true), (Device::gpu().unwrap(), false)].map(|(device, falls)| {
        assert_eq!(device.backend(), "vulkan", "{device}");
        (device.with_memory_budget(1), falls)
    })
}

/// The ends of calls that met a fault: finished by the CPU, with a typed error, on a device opened
/// again, or with no effect. A fault may have no effect because wgpu tries a smaller descriptor
/// pool or block of memory, or because nothing depends on the last poll of a call.
#[derive(Default)]
struct Tally {
    tried: usize,
    fell_back: usize,
    failed: usize,
    anew: usize,
    unnoticed: usize,
}

/// Lets faults strike at the first place in a call, at its second, and so on until there is none.
/// The calls and the devices take turns. With `LOGITS_FULL=1` every place is tried, else a sample:
/// a device that is lost compiles its kernels again.
fn strike(layer: &Layer, faults: &[Fault]) {
    let devices = devices();
    println!(
        "\n| fault | shape | calls | fell back | typed error | opened anew | unnoticed | not met |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for (which, (shape, some)) in SHAPES.into_iter().enumerate() {
        let operations = if tier::is_full() { &ALL } else { some };
        let calls: Vec<Call> =
            operations.iter().map(|&operation| Call::new(operation, shape)).collect();
        for (nth, fault) in faults.iter().enumerate() {
            let turns: Vec<_> = match tier::is_full() || shape[0] == 3 {
                true => devices
                    .iter()
                    .flat_map(|device| calls.iter().map(move |call| (device, call)))
                    .collect(),
                // One call on each device, so that it is compiled once for each loss.
                false => devices.iter().zip(calls.iter().cycle().skip(nth + which)).collect(),
            };
            let step = match (tier::is_full(), shape[0]) {
                (true, _) => 1,
                (false, 3) => fault.step.div_ceil(4),
                (false, _) => fault.step,
            };
            let (mut tally, mut missed) = (Tally::default(), 0);
            for (place, ((device, falls), call)) in (0..).step_by(step).zip(turns.iter().cycle()) {
                missed = if once(layer, fault, device, *falls, call, place, &mut tally) {
                    0
                } else {
                    missed + 1
                };
                if missed == turns.len() {
                    break;
                }
            }
            let Tally { tried, fell_back, failed, anew, unnoticed } = tally;
            let struck = fell_back + failed + anew + unnoticed;
            assert!(struck > 0, "{} of {shape:?} was not met", fault.name);
            println!(
                "| {} | {shape:?} | {tried} | {fell_back} | {failed} | {anew} | {unnoticed} | {} |",
                fault.name,
                tried - struck
            );
        }
    }
}

/// Makes a call that a fault may strike, and the next one. Returns whether it struck.
fn once(
    layer: &Layer,
    fault: &Fault,
    device: &Device,
    falls: bool,
    call: &Call,
    nth: usize,
    tally: &mut Tally,
) -> bool {
    let patience = Duration::from_millis(if fault.result == TIMEOUT { 30 } else { 60_000 });
    let start = Instant::now();
    layer.fail(fault.kind, nth, fault.times, fault.result);
    let answer = call.on(&device.clone().with_timeout(patience));
    let struck = layer.mend(fault.kind) > 0;
    let place = if falls { "an automatic" } else { "an explicit" };
    let context = format!("{} {nth}: {call} on {place} device: {answer:?}", fault.name);
    let told = |reason: &str| fault.reasons.iter().any(|part| reason.contains(part));
    tally.tried += 1;
    match &answer {
        _ if !struck => assert_eq!(answer, Ok(None), "{context}"),
        // The poll before the call finds the fault; an upload starts again whenever its device is
        // lost.
        Ok(None)
            if call.operation == Resident && matches!(fault.kind, Kind::Submit | Kind::Wait) =>
        {
            tally.anew += 1
        }
        Ok(None) if fault.kind == Kind::Wait && fault.times == 1 && nth == 0 => tally.anew += 1,
        Ok(None) => {
            assert!(fault.kind == Kind::Make || fault.result == TIMEOUT, "{context}");
            tally.unnoticed += 1;
        }
        Ok(Some(reason)) => {
            assert!(falls && told(reason), "{context}");
            tally.fell_back += 1;
        }
        Err(error) => {
            assert!(
                (!falls || call.operation == Resident) && told(&error.to_string()),
                "{context}"
            );
            tally.failed += 1;
        }
    }
    assert_eq!(call.on(device), Ok(None), "the call after {context}");
    assert!(start.elapsed() < Duration::from_secs(60), "{context}");
    struck
}

#[test]
fn lost() {
    below_wgpu("days::lost", |layer| strike(layer, &LOST));
}

#[test]
fn short_of_memory() {
    below_wgpu("days::short_of_memory", |layer| {
        strike(layer, &SHORT);
        // wgpu allocates device memory in blocks, and tries smaller ones; only an allocation larger
        // than all of them must fail.
        let call = Call::new(Resident, [12, 1_000_000]);
        let (device, _) = &devices()[1];
        layer.fail(Kind::Allocate, 0, FOREVER, OUT_OF_MEMORY);
        let answer = call.on(device);
        println!("no device memory at all: {} refused, {answer:?}", layer.mend(Kind::Allocate));
        assert!(answer.is_err_and(|error| error.to_string().contains("emory")));
        assert_eq!(call.on(device), Ok(None));
    });
}

/// A GPU that hangs does not hold up a call with a timeout, the drop of its device, or the drop of
/// a future.
#[test]
fn hung() {
    below_wgpu("days::hung", |layer| {
        strike(layer, &HUNG);
        let x = [1.0_f32; 3 * 50];
        let x = Logits::new(&x, [3, 50]).unwrap();
        for (device, has_future) in devices() {
            let loss = CrossEntropy::default();
            device.cross_entropy(&loss, x, &[0, 1, 2]).loss().unwrap();
            layer.fail(Kind::Wait, 0, FOREVER, TIMEOUT);
            let device =
                device.with_timeout(Duration::from_millis(if has_future { 60_000 } else { 30 }));
            let mut start = Instant::now();
            if has_future {
                let mut future = pin!(device.cross_entropy(&loss, x, &[0, 1, 2]).loss_async());
                assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            } else {
                assert!(device.cross_entropy(&loss, x, &[0, 1, 2]).loss().is_err());
                start = Instant::now();
            }
            drop(device);
            println!(
                "a device that hangs is dropped, after a future of it ({has_future}), in {:?}",
                start.elapsed()
            );
            assert!(start.elapsed() < Duration::from_secs(1));
            layer.mend(Kind::Wait);
        }
    });
}

/// A lost device cannot be opened again, or finds no memory for an object meanwhile; and a device
/// cannot be opened at all.
#[test]
fn not_opened() {
    below_wgpu("days::not_opened", |layer| {
        let call = Call::new(SoftmaxInPlace, [3, 50]);
        let devices = devices();
        let step = if tier::is_full() { 1 } else { 9 };
        for (kind, result) in [
            (Kind::Open, OUT_OF_MEMORY),
            (Kind::Make, OUT_OF_MEMORY),
            (Kind::Allocate, OUT_OF_MEMORY),
        ] {
            for nth in (0..).step_by(step) {
                let (device, falls) = &devices[nth % 2];
                layer.fail(Kind::Wait, 0, 1, DEVICE_LOST);
                layer.fail(kind, nth, 1, result);
                let answer = call.on(device);
                let struck = layer.mend(kind) > 0;
                let context = format!("{kind:?} {nth} while it is opened again: {answer:?}");
                assert!(struck || answer == Ok(None), "{context}");
                assert!(answer.is_ok() || !falls, "{context}");
                assert_eq!(call.on(device), Ok(None), "the call after {context}");
                layer.fail(kind, nth, 1, result);
                let device = if *falls { Ok(Device::new()) } else { Device::gpu() };
                let meets = layer.mend(kind) > 0;
                assert!(meets || device.as_ref().is_ok_and(Device::is_gpu));
                assert!(matches!(&device, Ok(_) | Err(Error::NoGpu { .. })), "{device:?}");
                println!("{context}; opened: {:?}", device.map(|device| device.to_string()));
                if !struck && !meets {
                    break;
                }
            }
        }
    });
}
