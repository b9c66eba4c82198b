//! Every operation over the range of its type: rows of seven widths, whose logits are up to 110
//! below the largest, of any magnitude, and apart by subnormal numbers, against float64.
//!
//! The widths meet each way to compute rows: on a GPU held in registers, read again and split; on
//! the CPU several rows at once, in one piece and in several, which threads may share. A process
//! has one SIMD level, so this binary runs itself again to test the other levels.

mod judge;
mod noise;
mod operations;
mod rows;

use logits::half::{bf16, f16};
use logits::{Device, Element};

use self::judge::Report;
use self::operations::operations;
use self::rows::{Batch, Kind};
use crate::common::{self, Share};

const WIDTHS: [usize; 7] = [3, 63, 1000, 4097, 8192, 32_001, 140_001];

const F32: fn() -> Kind<f32> = || Kind::new(|x| x as f32, |x| x as f32);
const F16: fn() -> Kind<f16> = || Kind::new(f16::from_f64, |x| x as f32);
const BF16: fn() -> Kind<bf16> = || Kind::new(bf16::from_f64, |x| x as f32);
const F64: fn() -> Kind<f64> = || Kind::new(|x| x, |x| x);

/// Runs the operations for which `takes` returns true, given the width and the operation.
fn sweep<T: Element>(
    device: &Device,
    kind: fn() -> Kind<T>,
    report: &mut Report,
    takes: impl Fn(usize, usize) -> bool,
) {
    for (width, classes) in WIDTHS.into_iter().enumerate() {
        let chosen = operations().into_iter().enumerate().filter(|(nth, _)| takes(width, *nth));
        let mut batch = None;
        for (_, (name, run)) in chosen {
            run(name, device, batch.get_or_insert_with(|| Batch::new(kind(), classes)), report);
        }
    }
}

/// Runs the sweep on the CPU, at the SIMD level of this process.
fn cpu<T: Element>(kind: fn() -> Kind<T>) {
    let device = Device::cpu();
    let mut report = Report::new(&device);
    sweep(&device, kind, &mut report, |_, _| true);
    let failures = report.failures();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_cpu_is_right_over_the_range_of_f32() {
    cpu(F32);
}

#[test]
fn the_cpu_is_right_over_the_range_of_f16() {
    cpu(F16);
}

#[test]
fn the_cpu_is_right_over_the_range_of_bf16() {
    cpu(BF16);
}

#[test]
fn the_cpu_is_right_over_the_range_of_f64() {
    cpu(F64);
}

/// Runs the four tests above again at each other level that this machine has, unless the
/// environment asks for one.
#[test]
fn other_levels_are_right_over_the_range() {
    if std::env::var_os("LOGITS_SIMD").is_some() {
        return;
    }
    let own = logits::simd_level().unwrap();
    let binary = std::env::current_exe().unwrap();
    let again = |level: &str, test: &str| {
        let mut again = std::process::Command::new(&binary);
        let out = again.args([test, "--nocapture"]).env("LOGITS_SIMD", level).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.success(), text + &String::from_utf8_lossy(&out.stderr))
    };
    let mut tested = 0;
    for level in
        ["avx512", "avx2", "neon", "simd128", "portable"].into_iter().filter(|level| *level != own)
    {
        let (has_level, text) = again(level, "range_sweep::this_machine_has_the_level");
        if !has_level {
            println!("{text}");
            continue;
        }
        let (passes, text) = again(level, "range_sweep::the_cpu_is_right");
        println!("{text}");
        assert!(passes && text.contains("4 passed"), "{level}");
        tested += 1;
    }
    assert!(
        tested > 0 || own == "portable" || cfg!(target_feature = "simd128"),
        "no other level ran"
    );
}

/// [`other_levels_are_right_over_the_range`] runs this to find out.
#[test]
fn this_machine_has_the_level() {
    assert!(logits::simd_level().is_ok(), "{:?}", logits::simd_level());
}

/// By default the first GPU runs each operation in one type and one way to compute rows, and every
/// other GPU every second operation. CI runs the full sweep, of every operation in every type and
/// width, in turn with others. `of` is the number of the type.
fn gpus<T: Element>(of: usize, kind: fn() -> Kind<T>) {
    let mut failures = Vec::new();
    for device in common::gpus() {
        let mut report = Report::new(&device);
        let share = common::share(&device);
        sweep(&device, kind, &mut report, |width, nth| {
            // Held in registers, split, or read again.
            let turn = (nth + of) % 3;
            let chosen = if turn == 0 { nth % (WIDTHS.len() - 2) } else { WIDTHS.len() - turn };
            match share {
                Share::All => true,
                Share::Pairs => width == chosen && nth % 3 == of,
                Share::Values => width == chosen && nth % 6 == of + 3,
            }
        });
        failures.extend(report.failures());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn gpus_are_right_over_the_range_of_f32() {
    gpus(0, F32);
}

#[test]
fn gpus_are_right_over_the_range_of_f16() {
    gpus(1, F16);
}

#[test]
fn gpus_are_right_over_the_range_of_bf16() {
    gpus(2, BF16);
}
