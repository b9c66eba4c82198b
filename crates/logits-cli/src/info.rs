//! `logits info`: what is here, and what is used.

use logits::{Adapter, Crossover, Device, simd_level};
use serde_json::json;

use crate::{CliError, stdio};

pub(crate) fn run(as_json: bool) -> Result<(), CliError> {
    let device = Device::new();
    // The best adapter of any kind, for want of a hardware GPU. One that fails is news, and no
    // reason to say nothing.
    let measured = Device::gpu().ok().map(Device::fastest);
    let adapters = Device::adapters();
    let simd = simd_level()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if as_json {
        let rejected_adapters: Vec<_> = device
            .rejected_adapters()
            .iter()
            .map(|adapter| json!({"name": adapter.name, "backend": adapter.backend, "reason": adapter.reason}))
            .collect();
        let adapters: Vec<_> = adapters
            .iter()
            .map(
                |adapter| json!({"name": adapter.name, "backend": adapter.backend, "description": adapter.description}),
            )
            .collect();
        let (placement, failed) = match &measured {
            None => (None, None),
            Some(Err(error)) => (None, Some(error.to_string())),
            Some(Ok(measured)) => {
                let crossovers: Vec<_> = measured.crossovers().iter().map(crossover).collect();
                let (name, backend) = (measured.name(), measured.backend());
                (Some(json!({"device": name, "backend": backend, "crossovers": crossovers})), None)
            }
        };
        return stdio::print(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": device.name(),
            "backend": device.backend(),
            "reason": device.reason(),
            "rejected_adapters": rejected_adapters,
            "adapters": adapters,
            "cpu_threads": threads,
            "cpu_simd": simd,
            "placement": placement,
            "placement_error": failed,
        }));
    }
    let mut lines = vec![
        format!("logits {}", env!("CARGO_PKG_VERSION")),
        format!("used by default: {} ({}): {}", device.name(), device.backend(), device.reason()),
    ];
    lines.extend(
        device.rejected_adapters().iter().map(|adapter| format!("    rejected: {adapter}")),
    );
    lines.push(format!("\ndevices\n    CPU (cpu): {threads} threads, {simd}"));
    lines.extend(adapters.iter().map(|Adapter { name, backend, description, .. }| {
        format!("    {name} ({backend}): {description}")
    }));
    if adapters.is_empty() {
        let packages = "mesa-vulkan-drivers and libvulkan1";
        lines.push(format!(
            "    no adapter; Mesa's software Vulkan is in Debian's packages {packages}"
        ));
    }
    match measured {
        None => lines.push("\nwithout an adapter every operation runs on the CPU".to_owned()),
        Some(Err(error)) => {
            lines.push(format!("\nwhere a GPU is faster than the CPU was not measured: {error}"))
        }
        Some(Ok(measured)) => {
            let (name, backend) = (measured.name(), measured.backend());
            lines.push(format!(
                "\nlogits in host memory, results back there: from where on {name} is faster than the CPU"
            ));
            for Crossover {
                operation, bytes, cpu_bytes_per_second, gpu_bytes_per_second, ..
            } in measured.crossovers()
            {
                let from = bytes.map_or("never".to_owned(), |bytes| {
                    format!("from {:.1} MiB on", bytes as f64 / 1_048_576.0)
                });
                let (cpu, gpu) = (cpu_bytes_per_second / 1e9, gpu_bytes_per_second / 1e9);
                lines.push(format!(
                    "    {operation:<20} {from:<18} CPU {cpu:>7.2} GB/s of logits, {backend} {gpu:>7.2}"
                ));
            }
        }
    }
    stdio::print(lines.join("\n"))
}

fn crossover(crossover: &Crossover) -> serde_json::Value {
    json!({
        "operation": crossover.operation,
        "bytes": crossover.bytes,
        "cpu_gb_per_s": crossover.cpu_bytes_per_second / 1e9,
        "gpu_gb_per_s": crossover.gpu_bytes_per_second / 1e9,
    })
}
