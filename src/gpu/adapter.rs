//! Finds an adapter: lists them all, best first, opens the first that the choice allows and that
//! passes the self-test, and keeps the reason why each one before it was rejected.

use wgpu::{Adapter, AdapterInfo, Backend, DeviceType};

use super::Gpu;
use super::interface::{Opened, Refused};
use super::pipelines::STORAGE_BUFFERS;
use crate::plan::tuning::Vendor;
use crate::plan::{Plan, WORKGROUP};
use crate::{DeviceChoice, RejectedAdapter};

/// Bytes of workgroup memory of a kernel that stages no rows: the folds of a reduction, and one
/// 16-byte unit.
pub(super) const WORKGROUP_BYTES: u32 = WORKGROUP * 8 + 16;

/// Opens the best adapter that `choice` allows and that can be opened.
pub(crate) async fn open(choice: &DeviceChoice) -> Result<Opened, Refused> {
    let named = std::env::var("WGPU_ADAPTER_NAME").ok().filter(|name| !name.is_empty());
    let mut rejected_adapters = Vec::new();
    for adapter in adapters().await {
        let info = about(adapter.get_info());
        let reason = match judge(choice, named.as_deref(), &info) {
            Ok(reason) => {
                let opened = match unsuitable(&adapter, &info) {
                    Some(why) => Err(why),
                    None => Gpu::open(&adapter).await,
                };
                let (name, backend) = (info.name.clone(), backend_name(info.backend));
                match opened {
                    Ok((gpu, note)) => {
                        rejected_adapters.extend(note.map(|reason| RejectedAdapter {
                            name,
                            backend,
                            reason,
                        }));
                        return Ok(Opened { gpu, reason, rejected_adapters });
                    }
                    // A device that was named is never replaced by another one, such as the same
                    // GPU through another API.
                    Err(reason) if matches!(choice, DeviceChoice::Named(_)) => {
                        rejected_adapters.push(RejectedAdapter { name, backend, reason });
                        return Err(Refused {
                            reason: "what was named cannot be used".to_owned(),
                            rejected_adapters,
                        });
                    }
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        rejected_adapters.push(RejectedAdapter {
            name: info.name,
            backend: backend_name(info.backend),
            reason,
        });
    }
    let mut reason = match (rejected_adapters.len(), choice) {
        (0, _) => "wgpu found no adapter".to_owned(),
        (_, DeviceChoice::Auto) => "no hardware GPU".to_owned(),
        _ => "no adapter fits".to_owned(),
    };
    if let Ok(backends) = std::env::var("WGPU_BACKEND") {
        reason.push_str(&format!(" with WGPU_BACKEND={backends}"));
    }
    if let Some(name) = named {
        reason.push_str(&format!(" with WGPU_ADAPTER_NAME={name}"));
    }
    Err(Refused { reason, rejected_adapters })
}

/// Every adapter, best first.
pub(crate) async fn list() -> Vec<crate::Adapter> {
    let adapters = adapters().await;
    adapters
        .iter()
        .map(|adapter| {
            let info = about(adapter.get_info());
            let driver = format!("{} {}", info.driver, info.driver_info);
            let mut description = format!("{}, driver {}", kind(info.device_type), driver.trim());
            if let Some(reason) = unsuitable(adapter, &info) {
                description.push_str(&format!("; cannot be used: {reason}"));
            }
            crate::Adapter { name: info.name, backend: backend_name(info.backend), description }
        })
        .collect()
}

/// Names an adapter of a browser, which does not tell the name.
pub(super) fn about(mut info: AdapterInfo) -> AdapterInfo {
    if info.name.is_empty() && info.backend == Backend::BrowserWebGpu {
        info.name = "the browser's GPU".to_owned();
    }
    info
}

/// Returns every adapter, best first: hardware before software, the platform's own API before GL.
pub(super) async fn adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // Names and sources are only kept with WGPU_DEBUG=1, because Vulkan's validation layer did not
    // always know WGSL. This crate makes no indirect dispatches. wgpu's validation of them compiles
    // pipelines that NVIDIA's GL rejects (wgpu#7068), so that the device is lost while it is
    // opened.
    let unused = wgpu::InstanceFlags::DEBUG | wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL;
    descriptor.flags = descriptor.flags.difference(unused).with_env();
    let backends = descriptor.backends;
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = instance.enumerate_adapters(backends).await;
    adapters.sort_by_key(|adapter| {
        let info = about(adapter.get_info());
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::VirtualGpu => 2,
            DeviceType::Other => 3,
            DeviceType::Cpu => 4,
        };
        (is_software(&info), kind, info.backend == Backend::Gl)
    });
    adapters
}

/// Returns why `choice` takes this adapter, or why it does not.
fn judge(choice: &DeviceChoice, named: Option<&str>, info: &AdapterInfo) -> Result<String, String> {
    if let Some(name) = named.filter(|name| !holds(&info.name, name)) {
        return Err(format!("its name does not hold WGPU_ADAPTER_NAME={name}"));
    }
    match choice {
        DeviceChoice::Named(wanted) => {
            let (backend, name) = split_name(wanted);
            if backend.is_some_and(|backend| backend != backend_name(info.backend))
                || !holds(&info.name, name)
            {
                return Err(format!("it is not `{wanted}`"));
            }
            Ok(format!("asked for as `{wanted}`"))
        }
        DeviceChoice::Gpu => Ok("asked for a GPU of any kind".to_owned()),
        _ if named.is_some() => Ok("named by WGPU_ADAPTER_NAME".to_owned()),
        _ if is_software(info) => Err("a software adapter, slower than the CPU path".to_owned()),
        _ => Ok(format!("the best adapter, {}", kind(info.device_type))),
    }
}

/// Returns the first thing that the kernels need and this adapter lacks.
fn unsuitable(adapter: &Adapter, info: &AdapterInfo) -> Option<String> {
    if info.backend == Backend::Noop {
        return Some("it computes nothing".to_owned());
    }
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("no compute shaders".to_owned());
    }
    lacking(&adapter.limits())
}

/// Returns the first limit that is too low for the kernels.
pub(super) fn lacking(limits: &wgpu::Limits) -> Option<String> {
    [
        (
            "storage buffers a shader",
            limits.max_storage_buffers_per_shader_stage.into(),
            STORAGE_BUFFERS.into(),
        ),
        (
            "threads a workgroup",
            limits.max_compute_invocations_per_workgroup.into(),
            WORKGROUP.into(),
        ),
        ("threads a workgroup in x", limits.max_compute_workgroup_size_x.into(), WORKGROUP.into()),
        (
            "bytes of workgroup memory",
            limits.max_compute_workgroup_storage_size.into(),
            WORKGROUP_BYTES.into(),
        ),
        ("bytes a binding", limits.max_storage_buffer_binding_size, Plan::LEAST_BINDING),
    ]
    .into_iter()
    .find(|&(_, has, needs)| has < needs)
    .map(|(what, has, needs)| format!("{has} {what}, {needs} are needed"))
}

/// Whether the adapter computes on the CPU. Drivers report that, except those of GL, where only the
/// name shows it.
pub(super) fn is_software(info: &AdapterInfo) -> bool {
    info.device_type == DeviceType::Cpu
        || ["llvmpipe", "softpipe", "swiftshader", "basic render driver"]
            .iter()
            .any(|name| holds(&info.name, name))
}

/// Returns the adapter's vendor, as far as the default tuning depends on it.
pub(super) fn vendor(info: &AdapterInfo) -> Vendor {
    match info.vendor {
        _ if is_software(info) => Vendor::Software,
        // Metal has no vendor numbers.
        _ if info.backend == Backend::Metal && holds(&info.name, "apple") => Vendor::Apple,
        0x106b => Vendor::Apple,
        0x13b5 => Vendor::Arm,
        0x8086 => Vendor::Intel,
        _ => Vendor::Other,
    }
}

fn holds(name: &str, part: &str) -> bool {
    name.to_lowercase().contains(&part.to_lowercase())
}

fn split_name(wanted: &str) -> (Option<&'static str>, &str) {
    let Some((prefix, name)) = wanted.split_once(':') else { return (None, wanted) };
    let backend = match prefix.to_ascii_lowercase().as_str() {
        "vulkan" | "vk" => "vulkan",
        "gl" | "gles" | "opengl" => "gl",
        "metal" | "mtl" => "metal",
        "dx12" | "d3d12" => "dx12",
        "webgpu" => "webgpu",
        _ => return (None, wanted),
    };
    (Some(backend), name)
}

pub(super) fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::Noop => "noop",
        Backend::Vulkan => "vulkan",
        Backend::Metal => "metal",
        Backend::Dx12 => "dx12",
        Backend::Gl => "gl",
        Backend::BrowserWebGpu => "webgpu",
    }
}

fn kind(device: DeviceType) -> &'static str {
    match device {
        DeviceType::DiscreteGpu => "a discrete GPU",
        DeviceType::IntegratedGpu => "an integrated GPU",
        DeviceType::VirtualGpu => "a virtual GPU",
        DeviceType::Cpu => "a software adapter",
        DeviceType::Other => "of unknown kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_platforms_guarantee_is_enough() {
        let of = |buffers, threads, memory, binding| wgpu::Limits {
            max_storage_buffers_per_shader_stage: buffers,
            max_compute_invocations_per_workgroup: threads,
            max_compute_workgroup_size_x: threads,
            max_compute_workgroup_storage_size: memory,
            max_storage_buffer_binding_size: binding,
            ..wgpu::Limits::default()
        };
        // The limits of WebGPU; of Direct3D 12 at feature level 11, whose first binding tier has 8
        // unordered access views; and of Apple7.
        for limits in [
            wgpu::Limits::default(),
            of(8, 1024, 32 << 10, 128 << 20),
            of(31, 1024, 32 << 10, 256 << 20),
        ] {
            assert_eq!(lacking(&limits), None);
        }
        assert!(
            lacking(&of(7, 1024, 32 << 10, 128 << 20))
                .is_some_and(|reason| reason.starts_with("7 storage buffers"))
        );
    }

    #[test]
    fn a_backend_before_a_name_is_told_apart() {
        assert_eq!(split_name("vulkan:llvm"), (Some("vulkan"), "llvm"));
        assert_eq!(split_name("GL:"), (Some("gl"), ""));
        assert_eq!(split_name("Radeon: the card"), (None, "Radeon: the card"));
        assert_eq!(split_name("NVIDIA"), (None, "NVIDIA"));
    }

    #[test]
    fn vendors_are_told_by_number_and_by_name() {
        let of = |name: &str, vendor, backend, device_type| {
            let name = name.to_owned();
            super::vendor(&AdapterInfo { name, vendor, ..AdapterInfo::new(device_type, backend) })
        };
        let (integrated, discrete) = (DeviceType::IntegratedGpu, DeviceType::DiscreteGpu);
        assert_eq!(of("Apple M2", 0, Backend::Metal, integrated), Vendor::Apple);
        assert_eq!(of("AMD Radeon Pro 5500M", 0, Backend::Metal, discrete), Vendor::Other);
        assert_eq!(of("Mali-G78", 0x13b5, Backend::Vulkan, integrated), Vendor::Arm);
        assert_eq!(
            of("Intel(R) Iris(R) Xe Graphics", 0x8086, Backend::Dx12, integrated),
            Vendor::Intel
        );
        assert_eq!(of("NVIDIA H200", 0x10de, Backend::Vulkan, discrete), Vendor::Other);
        assert_eq!(
            of("llvmpipe (LLVM 15.0.6, 256 bits)", 0x10005, Backend::Vulkan, DeviceType::Cpu),
            Vendor::Software
        );
    }
}
