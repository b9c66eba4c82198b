//! The battery of `logits check`, on the CPU and on every adapter.

#[path = "../src/cli/check/cases.rs"]
mod cases;
mod common;
#[path = "../src/cli/check/compare.rs"]
mod compare;
#[path = "../src/cli/check/oracle.rs"]
mod oracle;

#[test]
fn every_device_is_within_bounds() {
    for device in common::devices() {
        let mut report = compare::Report::default();
        for (rows, classes) in cases::SHAPES {
            for case in cases::of_shape(rows, classes) {
                report.check(&device, &case).unwrap();
            }
        }
        println!("{device}");
        for finding in &report.findings {
            let (worst, bound) = (finding.worst, finding.bound);
            println!("    {:<32} {:>9} {worst:>9.2e} of {bound:.0e}", finding.quantity, finding.checked);
            assert!(finding.checked > 100);
        }
        let failed: Vec<_> = report.findings.iter().filter(|finding| !finding.passed()).collect();
        assert!(report.passed(), "{device}: {:?}", failed.iter().map(|f| (f.quantity, &f.place)).collect::<Vec<_>>());
    }
}
