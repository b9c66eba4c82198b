//! Every operation, option and type on every adapter of this machine, against float64, as a matrix; exit code 1 where
//! anything is out of bounds.
//!
//! ```text
//! cargo run --release --example conformance                       # the CPU, and every adapter
//! cargo run --release --example conformance vulkan:llvmpipe gl    # those, each of which must be there; see --json, too
//! ```
//!
//! Drivers that the loader does not know are named in `VK_DRIVER_FILES`, such as the SwiftShader of a browser.

mod suite;

// The crate's own tests compare with the same.
#[allow(dead_code)]
#[path = "../../tests/common/reference.rs"]
mod reference;

use std::error::Error;
use std::process::ExitCode;

use logits::{DType, Device, DeviceChoice};
use suite::Finding;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Box<dyn Error>> {
    let (flags, names): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|argument| argument == "--json");
    let mut devices = Vec::new();
    for name in &names {
        devices.push(Device::open(&name.parse()?)?);
    }
    if names.is_empty() {
        devices.push(Device::cpu());
        for adapter in Device::adapters() {
            devices.push(Device::open(&DeviceChoice::Named(format!("{}:{}", adapter.backend, adapter.name)))?);
        }
    }
    let columns: Vec<Vec<Finding>> = devices
        .iter()
        .map(|device| {
            eprintln!("{device}");
            pollster::block_on(suite::run(device))
        })
        .collect();
    if flags.is_empty() {
        print_matrix(&devices, &columns)
    } else {
        print_json(&devices, &columns)
    }
    Ok(columns.iter().flatten().all(Finding::passed))
}

/// Of each type the worst error, in units of its bound.
fn print_matrix(devices: &[Device], columns: &[Vec<Finding>]) {
    println!("worst errors against float64, in units of what is promised: f32 / f16 / bf16 (/ f64 on the CPU)\n");
    for (nth, device) in devices.iter().enumerate() {
        println!("[{}] {} ({})", nth + 1, device.name(), device.backend());
    }
    print!("\n{:<50}", "operation, option");
    (1..=devices.len()).for_each(|nth| print!(" {:<20}", format!("[{nth}]")));
    println!();
    let mut seen = Vec::new();
    for Finding { operation, option, .. } in columns.iter().flatten() {
        if !seen.contains(&(operation, option)) {
            seen.push((operation, option));
        }
    }
    seen.sort_by_key(|&(operation, _)| operation);
    for (operation, option) in seen {
        let name = if option.is_empty() { (*operation).to_owned() } else { format!("{operation}: {option}") };
        print!("{name:<50}");
        for column in columns {
            let of_type = |dtype| {
                let finding = column.iter().find(|f| (&f.operation, &f.option, f.dtype) == (operation, option, dtype));
                finding.map(|f| if f.passed() { format!("{:.2}", f.worst) } else { "FAILED".to_owned() })
            };
            let cells: Vec<_> =
                [DType::F32, DType::F16, DType::BF16, DType::F64].into_iter().filter_map(of_type).collect();
            print!(" {:<20}", cells.join(" "));
        }
        println!();
    }
    for (device, column) in devices.iter().zip(columns) {
        let failed: Vec<_> = column.iter().filter(|finding| !finding.passed()).collect();
        println!("\n{}: {} cells, {} failed", device.name(), column.len(), failed.len());
        for Finding { operation, option, dtype, worst, place } in failed {
            println!("    {operation} {option} {dtype:?}: {worst:.2e}, {place}");
        }
    }
}

fn print_json(devices: &[Device], columns: &[Vec<Finding>]) {
    for (device, column) in devices.iter().zip(columns) {
        for finding in column {
            let Finding { operation, option, dtype, worst, place } = finding;
            println!(
                "{}",
                serde_json::json!({
                    "device": device.name(),
                    "backend": device.backend(),
                    "operation": operation,
                    "option": option,
                    "dtype": format!("{dtype:?}").to_lowercase(),
                    "worst": if worst.is_finite() { serde_json::json!(worst) } else { "inf".into() },
                    "passed": finding.passed(),
                    "place": place,
                })
            );
        }
    }
}
