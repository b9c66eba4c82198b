//! Compares every operation, option and type on every adapter of this machine with float64, and
//! prints a matrix. The exit code is 1 if anything is out of bounds.
//!
//! ```text
//! cargo run --release --example conformance                            # the CPU, and every adapter
//! cargo run --release --example conformance -- vulkan:llvmpipe gl:     # only these devices, each of which must exist
//! cargo run --release --example conformance -- --json                  # one JSON object
//! ```
//!
//! Drivers that the loader does not know are named in `VK_DRIVER_FILES`, such as the SwiftShader of
//! a browser.

use std::error::Error;
use std::process::ExitCode;

use logits::{Device, DeviceChoice};
use logits_check::conformance::{self, Finding};

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
    let (flags, names): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--json");
    let mut devices = Vec::new();
    for name in &names {
        devices.push(Device::open(&name.parse()?)?);
    }
    if names.is_empty() {
        devices.push(Device::cpu());
        for adapter in Device::adapters() {
            devices.push(Device::open(&DeviceChoice::Named(format!(
                "{}:{}",
                adapter.backend, adapter.name
            )))?);
        }
    }
    let columns: Vec<(String, Vec<Finding>)> = devices
        .iter()
        .map(|device| {
            eprintln!("{device}");
            (
                format!("{} ({})", device.name(), device.backend()),
                pollster::block_on(conformance::run(device)),
            )
        })
        .collect();
    if flags.is_empty() {
        print!("{}", conformance::matrix(&columns));
    } else {
        print_json(&devices, &columns);
    }
    Ok(columns.iter().flat_map(|(_, findings)| findings).all(Finding::passed))
}

fn print_json(devices: &[Device], columns: &[(String, Vec<Finding>)]) {
    for (device, (_, column)) in devices.iter().zip(columns) {
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
