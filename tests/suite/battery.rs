//! The battery of `logits check`, on the CPU and on every adapter.

use logits::Device;
use logits_check::battery;

use crate::common;
use crate::tier;

/// Shapes for which a GPU has a kernel each, each with a fill that it gets in addition to the
/// special values. `logits check` takes all fills of all of [`battery::SHAPES`]. Together the rows
/// of 140,003 and of 32,001 classes start 0, 1, 2 and 3 words after a multiple of 16 bytes.
const ON_GPUS: [((usize, usize), &str); 4] = [
    ((7000, 10), "confident"),
    ((19, 257), "ties"),
    ((3, 140_003), "normal"),
    ((3, 32_001), "extreme"),
];

/// Returns the batches for `device`. By default the first GPU gets the special values and one other
/// fill of each shape of [`ON_GPUS`], any other GPU those of every second one, and the CPU every
/// fill of every shape, with fewer rows of the largest shapes.
fn batches(device: &Device) -> Vec<battery::Case> {
    let every_fill = |(rows, classes)| battery::of_shape(rows, classes);
    if tier::is_full() {
        return battery::SHAPES.into_iter().flat_map(every_fill).collect();
    }
    if device.is_gpu() {
        let some = |(_, ((rows, classes), fill)): (usize, ((usize, usize), &'static str))| {
            let is_wanted = move |case: &battery::Case| case.fill == "special" || case.fill == fill;
            battery::of_shape(rows, classes).filter(is_wanted)
        };
        return common::in_turn(device, 0, 1, ON_GPUS).flat_map(some).collect();
    }
    let smaller =
        |(rows, classes): (usize, usize)| (rows.min((600_000 / classes).clamp(1, 20_000)), classes);
    battery::SHAPES.into_iter().map(smaller).flat_map(every_fill).collect()
}

#[test]
fn every_device_is_within_bounds() {
    let is_made =
        |((rows, classes), fill)| battery::of_shape(rows, classes).any(|case| case.fill == fill);
    assert!(ON_GPUS.into_iter().all(is_made));
    for device in common::devices() {
        let mut report = battery::Report::default();
        for case in batches(&device) {
            report.check(&device, &case).unwrap();
        }
        println!("{device}");
        for finding in &report.findings {
            let (worst, bound) = (finding.worst, finding.bound);
            println!(
                "    {:<32} {:>9} {worst:>9.2e} of {bound:.0e}",
                finding.quantity, finding.checked
            );
            assert!(
                finding.checked >= report.cases as u64,
                "{}: {} checks",
                finding.quantity,
                finding.checked
            );
        }
        let failed: Vec<_> = report.findings.iter().filter(|finding| !finding.passed()).collect();
        assert!(
            report.passed(),
            "{device}: {:?}",
            failed.iter().map(|f| (f.quantity, &f.place)).collect::<Vec<_>>()
        );
    }
}
