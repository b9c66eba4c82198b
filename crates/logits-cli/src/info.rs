//! `logits info`: what is here, and what is used; with `--plan`, which kernel runs a shape.

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use logits::{
    Adapter, Crossover, DType, Device, DeviceChoice, ExecutionPlan, Operation, PassWork,
    PlannedPass, simd_level,
};
use serde_json::json;

use crate::bench::{RowsByClasses, TOP_K};
use crate::{CliError, stdio};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print the kernel that runs logits of this shape, its passes, and the bytes that they move;
    /// nothing is run
    #[arg(long, value_name = "ROWSxCLASSES")]
    plan: Option<RowsByClasses>,
    /// The operation of --plan; softmax if not given; top_k finds 5 classes, or all of fewer
    #[arg(long, value_parser = operations(), requires = "plan")]
    op: Option<Operation>,
    /// The type of the logits of --plan; f32 if not given
    #[arg(long, value_parser = dtypes(), requires = "plan")]
    dtype: Option<DType>,
    /// The device of --plan: auto (if not given), cpu, gpu (the best adapter of any kind), or part
    /// of an adapter's name, with vulkan: or gl: before it if needed
    #[arg(long, requires = "plan", value_parser = NonEmptyStringValueParser::new().try_map(|name| name.parse::<DeviceChoice>()))]
    device: Option<DeviceChoice>,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

/// The error of a name that is no possible value.
const NO_NAME: &str = "no such name";

/// The types of logits by name.
fn dtypes() -> impl TypedValueParser<Value = DType> {
    const TYPES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F64];
    PossibleValuesParser::new(TYPES.map(|dtype| dtype.to_string()))
        .try_map(|name| TYPES.into_iter().find(|dtype| dtype.to_string() == name).ok_or(NO_NAME))
}

/// The operations by name.
fn operations() -> impl TypedValueParser<Value = Operation> {
    PossibleValuesParser::new(Operation::ALL.iter().map(Operation::to_string)).try_map(|name| {
        Operation::ALL.iter().copied().find(|op| op.to_string() == name).ok_or(NO_NAME)
    })
}

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    let Some(RowsByClasses(shape)) = options.plan else { return devices(options.json) };
    let device = Device::open(options.device.as_ref().unwrap_or(&DeviceChoice::Auto))?;
    // Top-k finds as many classes as `logits bench` times it with.
    let operation = match options.op.unwrap_or(Operation::Softmax) {
        Operation::TopK(_) => Operation::TopK(shape[1].min(TOP_K)),
        operation => operation,
    };
    let plan = device.plan(operation, shape, options.dtype.unwrap_or_default())?;
    if options.json { stdio::print(describe(&plan)) } else { stdio::print(plan) }
}

fn describe(plan: &ExecutionPlan) -> serde_json::Value {
    let pass = |pass: &PlannedPass| {
        let mut object = json!({
            "name": pass.name,
            "file": pass.file,
            "rows": [pass.rows.start, pass.rows.end],
            "classes": [pass.classes.start, pass.classes.end],
            "threads": pass.threads,
        });
        match &pass.work {
            PassWork::Dispatch { workgroups } => object["workgroups"] = json!(workgroups),
            PassWork::Loop { reads, writes } => {
                (object["reads"], object["writes"]) = (json!(reads), json!(writes));
            }
            _ => {}
        }
        object
    };
    let passes: Vec<_> = plan.passes.iter().map(pass).collect();
    json!({
        "op": plan.operation,
        "rows": plan.shape.row_count(),
        "classes": plan.shape.classes(),
        "dtype": plan.dtype.to_string(),
        "device": plan.device,
        "backend": plan.backend,
        "strategy": plan.strategy,
        "access": plan.access,
        "lanes": plan.lanes,
        "units": plan.units,
        "rows_at_once": plan.rows_at_once,
        "pieces": plan.pieces,
        "simd": plan.simd,
        "parts": plan.parts,
        "passes": passes,
        "bytes_needed": plan.bytes_needed,
        "bytes_moved": plan.bytes_moved,
        "bytes_reread": plan.bytes_reread,
    })
}

fn devices(as_json: bool) -> Result<(), CliError> {
    let device = Device::new();
    // Without a hardware GPU this measures the best adapter of any kind. An adapter that fails is
    // reported, and the rest is printed.
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
