//! Modules in the languages of other targets, with the options that wgpu-hal 30 sets for a module
//! whose checks are off.

use naga::back::pipeline_constants::process_overrides;
use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

pub const ENTRY: &str = "main";

/// Parses and validates a shader. Panics with the compiler's message.
pub fn parsed(text: &str) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(text)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{error:?} in\n{text}"));
    (module, info)
}

/// Returns a module without the functions that are not called, as wgpu-hal does.
pub fn reachable(module: &Module, info: &ModuleInfo) -> (Module, ModuleInfo) {
    let stage = Some((ShaderStage::Compute, ENTRY));
    let (module, info) = process_overrides(module, info, stage, &Default::default()).unwrap();
    (module.into_owned(), info.into_owned())
}

fn entry_point() -> Option<(ShaderStage, String)> {
    Some((ShaderStage::Compute, ENTRY.to_owned()))
}

/// Returns HLSL as `dx12/device.rs` writes it.
pub fn hlsl_of(module: &Module, info: &ModuleInfo, shader_model: hlsl::ShaderModel) -> String {
    let options = hlsl::Options {
        shader_model,
        special_constants_binding: Some(hlsl::BindTarget { register: 1, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: entry_point() };
    let mut text = String::new();
    let written =
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).unwrap();
    assert!(written.entry_point_names.iter().all(|entry| entry.is_ok()), "{written:?}");
    text
}

/// Returns MSL as `metal/device.rs` writes it.
pub fn msl_of(module: &Module, info: &ModuleInfo) -> String {
    let options = msl::Options {
        lang_version: (3, 0),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions { entry_point: entry_point(), ..Default::default() };
    let (text, written) = msl::write_string(module, info, &options, &pipeline).unwrap();
    assert!(written.entry_point_names.iter().all(|entry| entry.is_ok()), "{written:?}");
    text
}
