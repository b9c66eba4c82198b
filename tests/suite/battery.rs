//! The battery of `logits check`, on the CPU and on every adapter.

#[path = "../../src/cli/check/cases.rs"]
mod cases;
#[path = "../../src/cli/check/compare.rs"]
mod compare;
#[path = "../../src/cli/check/oracle.rs"]
mod oracle;

use logits::Device;

use crate::common::{self, Share};
use crate::tier;

/// Shapes for which a GPU has a kernel each, in the order of their classes. `logits check` takes all of [`cases::SHAPES`].
const ON_GPUS: [(usize, usize); 6] = [(5, 1), (7000, 10), (70, 17), (19, 257), (3, 4099), (1, 1_000_003)];

/// Fills of which each shape gets one on each GPU, in turn.
const IN_TURN: [&str; 8] =
    ["confident", "normal", "wide", "far from 0", "ties", "all equal", "extreme", "log-sum-exp near 0"];

/// The batches for `device`; `number` is its place among the devices. By default a GPU gets the special values and one other fill of
/// each shape, and the CPU gets every fill of every shape, with fewer rows of the largest shapes.
fn batches(device: &Device, number: usize) -> Vec<cases::Case> {
    let every_fill = |(rows, classes)| cases::of_shape(rows, classes);
    if tier::is_full() {
        return cases::SHAPES.into_iter().flat_map(every_fill).collect();
    }
    if device.is_gpu() {
        let some = |(nth, (rows, classes)): (usize, (usize, usize))| {
            // Of the largest shapes there are few fills, and the first two are among them.
            let turn = if rows * classes < 200_000 { IN_TURN.len() } else { 2 };
            // A GPU that is not the first gets the special values alone.
            let other =
                if common::share(device) == Share::Pairs { IN_TURN[(nth + 3 * number) % turn] } else { "special" };
            let wanted = ["special", other];
            cases::of_shape(rows, classes).filter(move |case| wanted.contains(&case.fill))
        };
        return common::in_turn(device, 1, 1, ON_GPUS).flat_map(some).collect();
    }
    let smaller = |(rows, classes): (usize, usize)| (rows.min((600_000 / classes).clamp(1, 20_000)), classes);
    cases::SHAPES.into_iter().map(smaller).flat_map(every_fill).collect()
}

#[test]
fn every_device_is_within_bounds() {
    for (number, device) in common::devices().into_iter().enumerate() {
        let mut report = compare::Report::default();
        for case in batches(&device, number) {
            report.check(&device, &case).unwrap();
        }
        println!("{device}");
        for finding in &report.findings {
            let (worst, bound) = (finding.worst, finding.bound);
            println!("    {:<32} {:>9} {worst:>9.2e} of {bound:.0e}", finding.quantity, finding.checked);
            assert!(finding.checked >= report.cases as u64);
        }
        let failed: Vec<_> = report.findings.iter().filter(|finding| !finding.passed()).collect();
        assert!(report.passed(), "{device}: {:?}", failed.iter().map(|f| (f.quantity, &f.place)).collect::<Vec<_>>());
    }
}
