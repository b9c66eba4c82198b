//! `logits info`: what is here, and what is used.

use logits::{Crossover, Device, simd_level};
use serde_json::json;

use crate::CliError;

pub(crate) fn run(as_json: bool) -> Result<(), CliError> {
    let device = Device::new();
    // Of the best adapter of any kind, for want of a hardware GPU.
    let measured = Device::gpu().ok().map(Device::placed).transpose()?;
    let adapters = Device::adapters();
    let simd = simd_level()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if as_json {
        let passed_over: Vec<_> = device
            .passed_over()
            .iter()
            .map(|adapter| json!({"name": adapter.name, "backend": adapter.backend, "reason": adapter.reason}))
            .collect();
        let adapters: Vec<_> = adapters
            .iter()
            .map(
                |adapter| json!({"name": adapter.name, "backend": adapter.backend, "description": adapter.description}),
            )
            .collect();
        println!(
            "{}",
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "device": device.name(),
                "backend": device.backend(),
                "reason": device.reason(),
                "passed_over": passed_over,
                "adapters": adapters,
                "cpu_threads": threads,
                "cpu_simd": simd,
                "placement": measured.as_ref().map(|measured| json!({
                    "device": measured.name(),
                    "backend": measured.backend(),
                    "crossovers": measured.crossovers().iter().map(crossover).collect::<Vec<_>>(),
                })),
            })
        );
        return Ok(());
    }
    println!("logits {}", env!("CARGO_PKG_VERSION"));
    println!("used by default: {} ({}): {}", device.name(), device.backend(), device.reason());
    for adapter in device.passed_over() {
        println!("    passed over: {adapter}");
    }
    println!("\ndevices");
    println!("    CPU (cpu): {threads} threads, {simd}");
    for adapter in &adapters {
        println!("    {} ({}): {}", adapter.name, adapter.backend, adapter.description);
    }
    if adapters.is_empty() {
        println!("    no adapter; Mesa's software Vulkan is in Debian's packages mesa-vulkan-drivers and libvulkan1");
    }
    if let Some(measured) = measured {
        println!(
            "\nlogits in host memory, results back there: from where on {} is faster than the CPU",
            measured.name()
        );
        for Crossover { operation, bytes, cpu_bytes_per_second, gpu_bytes_per_second, .. } in measured.crossovers() {
            let from =
                bytes.map_or("never".to_owned(), |bytes| format!("from {:.1} MiB on", bytes as f64 / 1_048_576.0));
            let (cpu, gpu) = (cpu_bytes_per_second / 1e9, gpu_bytes_per_second / 1e9);
            println!("    {operation:<20} {from:<18} CPU {cpu:>7.2} GB/s of logits, {} {gpu:>7.2}", measured.backend());
        }
    } else {
        println!("\nwithout an adapter every operation runs on the CPU");
    }
    Ok(())
}

fn crossover(crossover: &Crossover) -> serde_json::Value {
    json!({
        "operation": crossover.operation,
        "bytes": crossover.bytes,
        "cpu_gb_per_s": crossover.cpu_bytes_per_second / 1e9,
        "gpu_gb_per_s": crossover.gpu_bytes_per_second / 1e9,
    })
}
