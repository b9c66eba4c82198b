//! `logits check`: compares results on this machine with the bounds that the crate promises.

use logits::Device;
use logits_check::battery::{self, Report};
use serde_json::json;

use crate::CliError;
use crate::stdio::{self, json_number, progress};

/// Checks every shape. Returns whether all results are within their bounds.
pub(crate) fn run(device: &Device, as_json: bool) -> Result<bool, CliError> {
    let bar = progress(battery::SHAPES.len() as u64, "shapes");
    let mut report = Report::default();
    for (rows, classes) in battery::SHAPES {
        for case in battery::of_shape(rows, classes) {
            report.check(device, &case)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if as_json {
        stdio::print(json_of(device, &report))?;
    } else {
        stdio::print(table_of(device, &report))?;
    }
    Ok(report.passed())
}

fn json_of(device: &Device, report: &Report) -> serde_json::Value {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "quantity": finding.quantity,
                "bound": finding.bound,
                "worst": json_number(finding.worst),
                "checked": finding.checked,
                "place": finding.place,
                "versus_cpu": finding.versus_cpu.map(json_number),
                "passed": finding.passed(),
            })
        })
        .collect();
    json!({
        "device": device.name(),
        "backend": device.backend(),
        "fell_back": report.fell_back,
        "cases": report.cases,
        "passed": report.passed(),
        "findings": findings,
    })
}

fn table_of(device: &Device, report: &Report) -> String {
    let mut lines = vec![
        device.to_string(),
        format!("{} batches of {} shapes, against float64\n", report.cases, battery::SHAPES.len()),
        format!(
            "{:<32} {:>10} {:>9} {:>8} {:>9}       worst at",
            "quantity", "checked", "worst", "bound", "from CPU"
        ),
    ];
    for finding in &report.findings {
        let verdict = if finding.passed() { "ok" } else { "FAILED" };
        let versus =
            finding.versus_cpu.map_or("-".to_owned(), |difference| format!("{difference:.2e}"));
        lines.push(format!(
            "{:<32} {:>10} {:>9.2e} {:>8.0e} {:>9} {:<6} {}",
            finding.quantity,
            finding.checked,
            finding.worst,
            finding.bound,
            versus,
            verdict,
            finding.place
        ));
    }
    if let Some(reason) = &report.fell_back {
        lines.push(format!("\nFAILED: not all went as planned on {}: {reason}", device.name()));
    }
    let verdict =
        if report.passed() { "every result is within its bound" } else { "OUT OF BOUNDS" };
    lines.push(format!("\n{verdict}"));
    lines.join("\n")
}
