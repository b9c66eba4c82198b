//! `logits info`: what is here, and what is used.

use logits::Device;
use serde_json::json;

pub(crate) fn run(as_json: bool) {
    let device = Device::new();
    let adapters = Device::adapters();
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
            })
        );
        return;
    }
    println!("logits {}", env!("CARGO_PKG_VERSION"));
    println!("used by default: {} ({}): {}", device.name(), device.backend(), device.reason());
    for adapter in device.passed_over() {
        println!("    passed over: {adapter}");
    }
    println!("\ndevices");
    println!("    CPU (cpu): {threads} threads");
    for adapter in &adapters {
        println!("    {} ({}): {}", adapter.name, adapter.backend, adapter.description);
    }
    if adapters.is_empty() {
        println!("    no adapter; Mesa's software Vulkan is in Debian's packages mesa-vulkan-drivers and libvulkan1");
    }
}
