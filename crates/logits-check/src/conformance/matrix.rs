//! Findings of several devices side by side.

use std::fmt::Write as _;

use logits::DType;

use super::Finding;

/// The worst error of each type, in units of its bound; a column for each device. Failures stand
/// below it.
pub fn matrix(columns: &[(String, Vec<Finding>)]) -> String {
    let mut text =
        "worst errors against float64, in units of what is promised: f32 / f16 / bf16 (/ f64 on the CPU)\n\n"
            .to_owned();
    for (nth, (device, _)) in columns.iter().enumerate() {
        let _ = writeln!(text, "[{}] {device}", nth + 1);
    }
    let _ = write!(text, "\n{:<50}", "operation, option");
    for nth in 1..=columns.len() {
        let _ = write!(text, " {:<20}", format!("[{nth}]"));
    }
    text.push('\n');
    let mut seen = Vec::new();
    for Finding { operation, option, .. } in columns.iter().flat_map(|(_, findings)| findings) {
        if !seen.contains(&(operation, option)) {
            seen.push((operation, option));
        }
    }
    seen.sort_by_key(|&(operation, _)| operation);
    for (operation, option) in seen {
        let name =
            if option.is_empty() { operation.clone() } else { format!("{operation}: {option}") };
        let _ = write!(text, "{name:<50}");
        for (_, findings) in columns {
            let of_type = |dtype| {
                let finding = findings
                    .iter()
                    .find(|f| (&f.operation, &f.option, f.dtype) == (operation, option, dtype));
                finding.map(|f| {
                    if f.passed() { format!("{:.2}", f.worst) } else { "FAILED".to_owned() }
                })
            };
            let types = [DType::F32, DType::F16, DType::BF16, DType::F64];
            let cells: Vec<_> = types.into_iter().filter_map(of_type).collect();
            let _ = write!(text, " {:<20}", cells.join(" "));
        }
        text.push('\n');
    }
    for (device, findings) in columns {
        let failed: Vec<_> = findings.iter().filter(|finding| !finding.passed()).collect();
        let _ = writeln!(text, "\n{device}: {} cells, {} failed", findings.len(), failed.len());
        for Finding { operation, option, dtype, worst, place } in failed {
            let _ = writeln!(text, "    {operation} {option} {dtype:?}: {worst:.2e}, {place}");
        }
    }
    text
}
