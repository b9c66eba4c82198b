//! Writes SPIR-V of the kernels that default plans take on AMD's RDNA3, as wgpu-hal 30 hands it to
//! Vulkan, for AMD's compiler to judge; and HLSL of those for subgroups of 32, from which
//! `.ci/ptxas/run` starts for NVIDIA's. It is done only with `LOGITS_VERDICT=FOLDER`. `.ci/aco/run`
//! and `.ci/ptxas/run` make tables from the names:
//!
//! `THREADS.OPERATIONS.TYPES.LOSSES.CLASSES.ENTRY.SHAPE.HELD` and `.spv` or `.hlsl`, where
//! `THREADS` is the size of the subgroups that the plan was made for, `+` joins everything that has
//! the same code, and `HELD` is how many values of a row a thread holds at a time, or 0.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use naga::back::{hlsl::ShaderModel, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use naga::{Module, ShaderStage};

use super::targets::{ENTRY, hlsl_of, parsed, reachable};
use crate::gpu::params::{KernelOptions, Starts};
use crate::gpu::pipelines::source;
use crate::ops::Op;
use crate::plan::{Access, Entry, KernelProblem, Limits, Plan, UNIT_BYTES};
use crate::problem::operands::Operands;
use crate::problem::transform::Transform;
use crate::{CrossEntropy, DType, Reduction};

const CLASSES: [u64; 8] = [10, 100, 1000, 4096, 8192, 32_000, 128_256, 262_144];
/// One width for each strategy, which is enough for a loss with options.
const FEW_CLASSES: [u64; 3] = [1000, 32_000, 262_144];
/// Threads of the smallest subgroup of RDNA3, whatever the plan is made for.
const LEAST_SUBGROUP: u32 = 32;

/// Kernels that the judge must reject, which proves that it can: an array indexed by a number that
/// only run time knows, large enough to lie in scratch memory (Mesa makes branches of indices into
/// 256 bytes and less), and more values at once than there are registers.
fn controls() -> [(&'static str, String); 2] {
    let kernel = |body: &str| {
        format!(
            "@group(0) @binding(4) var<storage, read_write> data: array<u32>;
             @compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ {body} }}"
        )
    };
    let scratch = "var held: array<u32, 100>;
        for (var i = 0u; i < 100u; i += 1u) { held[data[i] % 100u] += data[id.x + i]; }
        data[id.x] = held[data[id.x] % 100u];";
    let lines = |line: fn(u32) -> String| (0..300).map(line).collect::<String>();
    let loads = lines(|nth| format!("let v{nth} = data[id.x * 300u + {nth}u];\n"));
    let stores = lines(|nth| format!("data[id.x * 300u + {nth}u] = v{};\n", 299 - nth));
    [
        ("scratch", kernel(scratch)),
        ("spills", kernel(&format!("{loads} storageBarrier();\n {stores}"))),
    ]
}

/// The limits of an RX 7900 as RADV reports it, with subgroups of 32 to 64 threads; and of a driver
/// that reports no more than 32.
fn adapters() -> [Limits; 2] {
    let known = crate::plan::tests::adapters();
    let of = |part: &str| known.iter().find(|(name, _)| name.contains(part)).unwrap().1;
    [of("RADV"), Limits { tuning: of("H100").tuning, ..of("RADV") }]
}

/// Returns options of a loss with their name, and the numbers of classes that they are tried with.
fn losses(op: Op) -> Vec<(&'static str, CrossEntropy, &'static [u64])> {
    // The host weighs a mean, except in steps of an engine.
    let plain = || CrossEntropy::default().reduction(Reduction::Sum);
    let mut losses = vec![("plain", plain(), CLASSES.as_slice())];
    if op.has_targets() {
        losses.push(("smoothed", plain().label_smoothing(0.1), &FEW_CLASSES));
        losses.push(("capped", plain().softcap(30.0), &FEW_CLASSES));
    }
    losses
}

/// Returns the SPIR-V that wgpu-hal's `vulkan/device.rs` writes for a trusted module and a device
/// of Vulkan 1.3.
fn words(module: &Module, info: &ModuleInfo) -> Vec<u32> {
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline =
        spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: ENTRY.to_owned() };
    spv::write_vec(module, info, &options, Some(&pipeline)).unwrap()
}

/// Everything that has the same code; names in the order in which they were found.
#[derive(Default)]
struct Uses {
    ops: Vec<String>,
    dtypes: Vec<String>,
    losses: Vec<String>,
    classes: Vec<String>,
    /// For the first of them: how rows are spread over threads. `held` is how many values a thread
    /// holds at a time.
    shape: String,
    held: u64,
    hlsl: Option<String>,
}

impl Uses {
    fn add(&mut self, op: Op, dtype: DType, loss: &str, classes: u64) {
        let names = [format!("{op:?}"), format!("{dtype:?}"), loss.to_owned(), classes.to_string()];
        let all = [&mut self.ops, &mut self.dtypes, &mut self.losses, &mut self.classes];
        for (all, name) in all.into_iter().zip(names) {
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }

    fn name(&self, threads: u32, entry: &str) -> String {
        let Self { ops, dtypes, losses, classes, shape, held, .. } = self;
        // All of them would be too long for the name of a file.
        let ops = if ops.len() > 3 { "several".to_owned() } else { ops.join("+") };
        let [dtypes, losses, classes] = [dtypes, losses, classes].map(|names| names.join("+"));
        format!("{threads}.{ops}.{dtypes}.{losses}.{classes}.{entry}.{shape}.{held}")
    }
}

#[derive(Default)]
struct Kernels {
    /// The uses by subgroup size of the plan, entry point, and code.
    uses: BTreeMap<(u32, &'static str, Vec<u32>), Uses>,
    /// The parsed modules by their text.
    modules: HashMap<String, (Module, ModuleInfo)>,
}

impl Kernels {
    fn add(
        &mut self,
        op: Op,
        (name, loss): (&str, &CrossEntropy),
        dtype: DType,
        classes: u64,
        limits: Limits,
    ) {
        let transform = loss.transform(Transform::default()).unwrap();
        let operands = Operands {
            transform,
            coefficients: loss.coefficients(classes as usize, 1.0, 1),
            ..Operands::default()
        };
        let (size, operand_bytes) = (dtype.size() as u64, op.operand_bytes(dtype, false));
        let (heavy, totals) = (op.is_heavy(&operands, operand_bytes), op.has_losses());
        let problem = KernelProblem {
            size,
            operand_bytes,
            heavy,
            count: totals,
            sum: totals,
            ..KernelProblem::dense(op, 700, classes)
        };
        let plan = Plan::new(problem, limits).unwrap();
        let options = KernelOptions::new(dtype, &operands, false, false, &[]);
        let [starts, ..] = Starts::of_each_kind();
        for pass in plan.passes() {
            let kernel = options.kernel(&plan, &problem, &pass, false, starts);
            let text = source(kernel, pass.entry, LEAST_SUBGROUP);
            let (module, info) = self.modules.entry(text).or_insert_with_key(|text| {
                let (module, info) = parsed(text);
                reachable(&module, &info)
            });
            let threads = limits.tuning.subgroup;
            let key = (threads, pass.entry.name(), words(module, info));
            let uses = self.uses.entry(key).or_insert_with(|| {
                let access = if matches!(kernel.access, Access::Staged { .. }) {
                    "staged"
                } else {
                    "direct"
                };
                let (lanes, units) = (kernel.strategy.lanes, kernel.units);
                let (shape, held) = match pass.entry {
                    Entry::RegisterResident
                    | Entry::Online
                    | Entry::SplitReduce
                    | Entry::SplitWrite => {
                        (format!("{lanes}x{units}-{access}"), u64::from(units) * UNIT_BYTES / size)
                    }
                    Entry::SplitJoin => (lanes.to_string(), 0),
                    _ => (kernel.long_lanes.to_string(), 0),
                };
                let hlsl =
                    (threads == LEAST_SUBGROUP).then(|| hlsl_of(module, info, ShaderModel::V6_2));
                Uses { shape, held, hlsl, ..Uses::default() }
            });
            uses.add(op, dtype, name, classes);
        }
    }
}

#[test]
fn default_kernels_for_the_verdict() {
    let Some(folder) = std::env::var_os("LOGITS_VERDICT") else { return };
    let folder = Path::new(&folder);
    let mut kernels = Kernels::default();
    for limits in adapters() {
        for op in Op::ALL {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (name, loss, classes) in losses(op) {
                    classes.iter().for_each(|&classes| {
                        kernels.add(op, (name, &loss), dtype, classes, limits)
                    });
                }
            }
        }
    }
    let keep = |name: String, bytes: &[u8]| {
        // A second kernel of the same name would overwrite the first.
        let path = folder.join(name);
        assert!(!path.exists(), "{path:?}");
        std::fs::write(path, bytes).unwrap();
    };
    for ((threads, entry, words), uses) in &kernels.uses {
        let name = uses.name(*threads, entry);
        keep(format!("{name}.spv"), bytemuck::cast_slice(words));
        if let Some(text) = &uses.hlsl {
            keep(format!("{name}.hlsl"), text.as_bytes());
        }
    }
    for (name, text) in controls() {
        let (module, info) = parsed(&text);
        keep(format!("control.{name}.spv"), bytemuck::cast_slice(&words(&module, &info)));
        keep(format!("control.{name}.hlsl"), hlsl_of(&module, &info, ShaderModel::V6_2).as_bytes());
    }
    println!("{} kernels", kernels.uses.len());
}
