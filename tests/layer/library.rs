//! Builds the layer as a library, and runs programs with it. The tests of the command line include
//! this file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use logits::Device;

use crate::tier;

const LAYERS: &str = "VK_INSTANCE_LAYERS";

/// The kind of call that fails, numbered as in `layer.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An allocation of device memory.
    Allocate,
    /// Any other call that may find no memory: objects, mappings, command buffers.
    Make,
    Submit,
    /// A wait or a poll.
    Wait,
    /// The opening of a device.
    Open,
}

pub const OUT_OF_MEMORY: i32 = -2;
pub const DEVICE_LOST: i32 = -4;
pub const TIMEOUT: i32 = 2;
pub const FOREVER: usize = i32::MAX as usize;

/// Returns a command whose calls of Vulkan go through the layer, to this adapter.
pub fn above_layer(program: impl AsRef<OsStr>, layer: &Path, adapter: &str) -> Command {
    // The validation layer, if it is loaded, is below ours: it sees the calls that reach the
    // driver, and no fault.
    let mut layers = env::var(LAYERS).unwrap_or_default();
    layers.insert_str(
        0,
        if layers.is_empty() { "VK_LAYER_LOGITS_fault" } else { "VK_LAYER_LOGITS_fault:" },
    );
    let mut command = Command::new(program);
    command
        .env(LAYERS, layers)
        .env("VK_ADD_LAYER_PATH", layer.parent().unwrap())
        .env("WGPU_BACKEND", "vulkan")
        .env("WGPU_ADAPTER_NAME", adapter)
        // wgpu would load the validation layer itself, and receive its messages.
        .env("WGPU_VALIDATION", "0")
        // Mesa's own layer writes messages if there is no session.
        .env("NODEVICE_SELECT", "1");
    command
}

/// Builds the layer. Returns its path and the name of the adapter that it is tried on, or why there
/// is none.
fn found() -> &'static Result<(PathBuf, String), String> {
    static FOUND: OnceLock<Result<(PathBuf, String), String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let adapters = Device::adapters();
        let adapter = adapters.into_iter().find(|adapter| adapter.backend == "vulkan");
        Ok((build()?, adapter.ok_or("no adapter of Vulkan")?.name))
    })
}

/// Returns the layer and the adapter. Without them the test is skipped, or fails if there must be
/// an adapter.
pub fn found_or_skipped() -> Option<&'static (PathBuf, String)> {
    let found = found().as_ref();
    found
        .map_err(|reason| {
            assert!(!tier::requires_gpu(), "LOGITS_REQUIRE_GPU=1, but: {reason}");
            tier::skip(reason);
        })
        .ok()
}

/// Builds the layer, and describes it to the loader.
fn build() -> Result<PathBuf, String> {
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("layer");
    fs::create_dir_all(&place).map_err(|error| error.to_string())?;
    let (source, library) = (place.join("layer.c"), place.join("liblogits_fault.so"));
    fs::write(&source, include_str!("layer.c")).map_err(|error| error.to_string())?;
    let built = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-pthread",
            "-o",
        ])
        .args([&library, &source])
        .output()
        .map_err(|error| format!("no C compiler `cc`: {error}"))?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(format!(
            "the layer cannot be built; are Vulkan's headers (libvulkan-dev) there? {said}"
        ));
    }
    let manifest = r#"{ "file_format_version": "1.2.0", "layer": { "name": "VK_LAYER_LOGITS_fault", "type": "GLOBAL",
        "library_path": "./liblogits_fault.so", "api_version": "1.3.0", "implementation_version": "1", "description": "faults" } }"#;
    fs::write(place.join("fault.json"), manifest).map_err(|error| error.to_string())?;
    Ok(library)
}
