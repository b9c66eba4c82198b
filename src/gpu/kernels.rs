//! The one place where the parts in `shaders/` are joined, and the cache of the pipelines made from them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use wgpu::{BindGroupLayout, BufferBindingType, ComputePipeline, Device, PipelineLayout, ShaderStages};

use crate::job::Op;
use crate::plan::Regime;

/// Types of the bindings, in the order of `shaders/shared/bindings.wgsl`.
const BINDINGS: [BufferBindingType; 6] = [
    BufferBindingType::Uniform,
    BufferBindingType::Storage { read_only: true },
    BufferBindingType::Storage { read_only: true },
    BufferBindingType::Storage { read_only: false },
    BufferBindingType::Storage { read_only: false },
    BufferBindingType::Storage { read_only: false },
];

/// What tells one pipeline from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    op: Op,
    entry: &'static str,
    threads_per_row: u32,
}

pub(super) struct Kernels {
    pub(super) subgroups: bool,
    pub(super) bindings: BindGroupLayout,
    layout: PipelineLayout,
    pipelines: Mutex<HashMap<Key, ComputePipeline>>,
}

impl Kernels {
    pub(super) fn new(device: &Device, subgroups: bool) -> Self {
        let entries: Vec<_> = BINDINGS
            .iter()
            .zip(0..)
            .map(|(&ty, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let bindings = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("logits"), entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("logits"),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        Self { subgroups, bindings, layout, pipelines: Mutex::default() }
    }

    /// The pipeline of one entry point, compiled on first use. Call within error scopes.
    pub(super) fn pipeline(&self, device: &Device, op: Op, regime: Regime, entry: &'static str) -> ComputePipeline {
        let key = Key { op, entry, threads_per_row: regime.threads_per_row() };
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        pipelines
            .entry(key)
            .or_insert_with(|| {
                let label = format!("logits {op:?} {entry}");
                let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some(&label),
                    source: wgpu::ShaderSource::Wgsl(source(op, regime, self.subgroups).into()),
                });
                device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&label),
                    layout: Some(&self.layout),
                    module: &module,
                    entry_point: Some(entry),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        constants: &constants(op, regime),
                        // Every kernel writes workgroup memory before it reads it.
                        zero_initialize_workgroup_memory: false,
                    },
                    cache: None,
                })
            })
            .clone()
    }
}

#[cfg(test)]
impl Kernels {
    /// Puts a broken pipeline where the good one would be.
    pub(super) fn spoil(&self, device: &Device, op: Op, regime: Regime, entry: &'static str) {
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let broken = self.pipeline(device, op, regime, "no such entry point");
        assert!(pollster::block_on(scope.pop()).is_some());
        let key = Key { op, entry, threads_per_row: regime.threads_per_row() };
        self.pipelines.lock().unwrap().insert(key, broken);
    }
}

/// Values of the shaders' `override`s.
fn constants(op: Op, regime: Regime) -> Vec<(&'static str, f64)> {
    let mut constants = vec![("THREADS_PER_ROW", f64::from(regime.threads_per_row()))];
    match op {
        Op::LogSoftmax => constants.push(("LOG", 1.0)),
        Op::CrossEntropyGrad => constants.push(("GRADIENT", 1.0)),
        _ => {}
    }
    constants
}

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!("../../shaders/", $path))
    };
}

/// The whole module of an operation in a regime.
fn source(op: Op, regime: Regime, subgroups: bool) -> String {
    let lanes = if subgroups { shader!("shared/lanes_subgroup.wgsl") } else { shader!("shared/lanes_plain.wgsl") };
    let regime: &[&str] = match regime {
        Regime::Tile { .. } => &[shader!("regimes/tile.wgsl")],
        Regime::Stream => &[shader!("regimes/reread.wgsl"), shader!("regimes/stream.wgsl")],
        Regime::Split { .. } => &[shader!("regimes/reread.wgsl"), shader!("regimes/split.wgsl")],
    };
    let op = match op {
        Op::Softmax | Op::LogSoftmax => shader!("softmax.wgsl"),
        Op::LogSumExp => shader!("log_sum_exp.wgsl"),
        Op::CrossEntropy | Op::CrossEntropyGrad => shader!("cross_entropy.wgsl"),
        Op::Predict => shader!("predict.wgsl"),
    };
    let shared = [
        shader!("shared/bindings.wgsl"),
        lanes,
        shader!("shared/math.wgsl"),
        shader!("shared/reduce.wgsl"),
        shader!("shared/passes.wgsl"),
    ];
    [&shared, regime, &[op]].concat().join("\n")
}

#[cfg(test)]
mod tests {
    use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
    use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
    use naga::{Module, ShaderStage};

    use super::*;

    /// Every module that the crate can make, without a GPU: it validates, its bindings are those of the host, and the
    /// compilers of the platforms that are not at hand are given something to compile.
    #[test]
    fn every_module_is_valid_and_translates() {
        for op in [Op::Softmax, Op::LogSoftmax, Op::LogSumExp, Op::CrossEntropy, Op::CrossEntropyGrad, Op::Predict] {
            for regime in [Regime::Tile { threads_per_row: 4 }, Regime::Stream, Regime::Split { segments: 20 }] {
                for subgroups in [false, true] {
                    let name = format!("{op:?} {regime:?}, subgroups {subgroups}");
                    let text = source(op, regime, subgroups);
                    let module = naga::front::wgsl::parse_str(&text)
                        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&text)));
                    let info = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP)
                        .validate(&module)
                        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
                    check_bindings(&module);
                    translate(&module, &info, op, regime, &name);
                }
            }
        }
    }

    fn check_bindings(module: &Module) {
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            let expected = match variable.space {
                naga::AddressSpace::Uniform => BufferBindingType::Uniform,
                naga::AddressSpace::Storage { access } => {
                    BufferBindingType::Storage { read_only: !access.contains(naga::StorageAccess::STORE) }
                }
                ref other => panic!("a binding in {other:?}"),
            };
            assert_eq!(BINDINGS[binding.binding as usize], expected, "binding {}", binding.binding);
        }
    }

    fn translate(module: &Module, info: &ModuleInfo, op: Op, regime: Regime, name: &str) {
        let constants = constants(op, regime).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        for entry in &module.entry_points {
            let at = Some((ShaderStage::Compute, entry.name.clone()));
            let (module, info) =
                process_overrides(module, info, Some((ShaderStage::Compute, entry.name.as_str())), &constants).unwrap();

            let options = hlsl::Options {
                shader_model: hlsl::ShaderModel::V6_0,
                special_constants_binding: Some(hlsl::BindTarget::default()),
                ..Default::default()
            };
            let pipeline = hlsl::PipelineOptions { entry_point: at.clone() };
            let mut text = String::new();
            let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).unwrap();
            assert!(written.entry_point_names.iter().all(|entry| entry.is_ok()), "{name}: {written:?}");

            let options = msl::Options { lang_version: (3, 0), ..Default::default() };
            let pipeline = msl::PipelineOptions { entry_point: at, ..Default::default() };
            let (_, written) = msl::write_string(&module, &info, &options, &pipeline).unwrap();
            assert!(written.entry_point_names.iter().all(|entry| entry.is_ok()), "{name}: {written:?}");

            let options = spv::Options { lang_version: (1, 3), ..Default::default() };
            let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.name.clone() };
            assert!(!spv::write_vec(&module, &info, &options, Some(&pipeline)).unwrap().is_empty());
        }
    }
}
