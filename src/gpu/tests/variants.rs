//! Every pipeline that a plan can ask for, without a GPU: it validates, its bindings are those of
//! the host, it stays within the limits of every adapter, and it is translated for the compilers of
//! platforms that are not at hand.
//!
//! By default these are the pipelines of one adapter, and one variant of each family is translated:
//! a family has modules of the same parts, whose arrays and loops have the same sizes.
//! `LOGITS_VARIANTS=FOLDER` takes the pipelines of ten adapters, translates a few variants of each
//! family, and keeps them in the folder, with the module, for the compilers that are at hand (see
//! `.ci/shaders`). `LOGITS_FULL=1` takes the same pipelines, and translates every variant.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use naga::back::{glsl, hlsl, spv};
use naga::proc::{BoundsCheckPolicies, Layouter};
use naga::valid::ModuleInfo;
use naga::{AddressSpace, Module, ShaderStage};
use wgpu::BufferBindingType;

use super::targets::{ENTRY, hlsl_of, msl_of, parsed, reachable};
use crate::gpu::params::{KernelOptions, Params, Starts, Summary};
use crate::gpu::pipelines::{BINDINGS, Kernel, parts, self_test_source, source};
use crate::ops::Op;
use crate::plan::{Entry, KernelProblem, Limits, Plan};
use crate::problem::operands::Operands;
use crate::problem::transform::Transform;
use crate::tier;
use crate::{CrossEntropy, DType, Reduction};

/// The number of variants that represent a family for a compiler.
const FEW: usize = 3;
/// The adapter that is tried with every option; the others are tried with none.
const ALL_OPTIONS: &str = "Apple M2, Metal";
/// Numbers of classes around those at which plans change.
const CLASSES: [u64; 12] =
    [1, 3, 10, 33, 100, 1000, 2049, 8192, 32_000, 131_072, 131_073, 1_000_003];

/// Returns each option of an operation by itself, none first, and all at once, each with whether
/// targets are probabilities.
fn losses(op: Op) -> Vec<(CrossEntropy, bool)> {
    let plain = || CrossEntropy::default().reduction(Reduction::Sum);
    let transforms =
        [(plain(), false), (plain().logit_scale(2.0), false), (plain().softcap(3.0), false)];
    if !op.has_targets() {
        return transforms.into();
    }
    let every = || {
        plain()
            .label_smoothing(0.1)
            .z_loss(0.1)
            .softcap(3.0)
            .weight(vec![1.0])
            .upstream_gradients(vec![1.0])
    };
    let more = [
        (plain(), true),
        (plain().label_smoothing(0.1), false),
        (plain().z_loss(0.1), false),
        (plain().focal_gamma(2.0), false),
        (plain().weight(vec![1.0]), false),
        (plain().upstream_gradients(vec![1.0]), false),
        (CrossEntropy::default(), false),
        (every(), false),
        (every().reduction(Reduction::Mean), true),
    ];
    transforms.into_iter().chain(more).collect()
}

/// A pipeline as a compiler sees it.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Variant {
    family: Family,
    source: String,
    has_subgroups: bool,
    /// Bytes of workgroup memory that it may use.
    memory: u64,
}

/// The common properties of variants whose modules differ in switches alone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Family {
    parts: Vec<&'static str>,
    entry: &'static str,
    sizes: Vec<String>,
}

/// Returns the variants that plans ask for: for every adapter, with its subgroups and without, each
/// operation, type, layout and number of classes; and for one adapter each option, over logits that
/// can be bound at their start.
fn variants() -> HashSet<Variant> {
    let mut variants = HashSet::new();
    for (name, limits) in crate::plan::tests::adapters() {
        if name != ALL_OPTIONS && !is_wide() {
            continue;
        }
        for (turn, op) in Op::ALL.into_iter().enumerate() {
            for (nth, (loss, is_soft)) in losses(op).into_iter().enumerate() {
                if nth > 0 && name != ALL_OPTIONS {
                    continue;
                }
                let starts =
                    Starts::of_each_kind().into_iter().take(if nth == 0 { usize::MAX } else { 1 });
                for (of, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().enumerate() {
                    // By default each width of an operation is tried in one type.
                    let in_turn = |nth: usize| is_wide() || (nth + turn) % 3 == of;
                    for (_, classes) in
                        CLASSES.into_iter().enumerate().filter(|&(nth, _)| in_turn(nth))
                    {
                        of_shape(
                            op,
                            &loss,
                            is_soft,
                            dtype,
                            classes,
                            limits,
                            starts.clone(),
                            &mut variants,
                        );
                    }
                }
            }
        }
    }
    variants
}

#[allow(clippy::too_many_arguments)] // each is varied
fn of_shape(
    op: Op,
    loss: &CrossEntropy,
    is_soft: bool,
    dtype: DType,
    classes: u64,
    limits: Limits,
    starts: impl Iterator<Item = Starts> + Clone,
    variants: &mut HashSet<Variant>,
) {
    // The memory that is not for rows is 2 KiB at most.
    let memory = limits.tile_bytes + 2048;
    let transform = loss.transform(Transform::default()).unwrap();
    let operands = Operands {
        transform,
        coefficients: loss.coefficients(classes as usize, 1.0, 1),
        ..Operands::default()
    };
    let (size, operand_bytes) = (dtype.size() as u64, op.operand_bytes(dtype, is_soft));
    let (heavy, counts) = (op.is_heavy(&operands, operand_bytes), op.has_losses());
    let problem = KernelProblem {
        size,
        operand_bytes,
        heavy,
        count: counts,
        sum: counts,
        ..KernelProblem::dense(op, 700, classes)
    };
    let strided = KernelProblem { strides: [classes + 3, classes + 5], ..problem };
    let blocks = KernelProblem { rows: 740, ..problem }.in_blocks(37);
    // The device weighs targets itself for a mean.
    let options =
        KernelOptions::new(dtype, &operands, is_soft, loss.reduction == Reduction::Mean, &[]);
    for (problem, in_place) in
        [(problem, false), (strided, false), (blocks, false), (problem, true)]
    {
        if in_place && !op.spec().writes_elements {
            continue;
        }
        let Ok(plan) = Plan::new(problem, limits) else { continue };
        for starts in starts.clone() {
            for pass in plan.passes() {
                let kernel = options.kernel(&plan, &problem, &pass, in_place, starts);
                for subgroup in [1, limits.tuning.subgroup] {
                    variants.insert(Variant::new(kernel, pass.entry, subgroup, memory));
                }
            }
        }
    }
}

impl Variant {
    fn new(kernel: Kernel, entry: Entry, subgroup: u32, memory: u64) -> Self {
        let (source, has_subgroups) = (source(kernel, entry, subgroup), subgroup > 1);
        let sizes = source.lines().filter(|line| {
            ["const UNITS:", "const TILE:"].iter().any(|size| line.starts_with(size))
        });
        let sizes = sizes.map(str::to_owned).collect();
        let family =
            Family { parts: parts(kernel, entry, has_subgroups), entry: entry.name(), sizes };
        Self { family, source, has_subgroups, memory }
    }

    fn self_test(subgroup: u32) -> Self {
        let has_subgroups = subgroup > 1;
        let entry = if has_subgroups { "self_test_with_subgroups" } else { "self_test" };
        let family = Family { parts: Vec::new(), entry, sizes: Vec::new() };
        // The tile of the self-test, and the folds of a reduction.
        let memory = 4096 + 2048;
        Self { family, source: self_test_source(subgroup), has_subgroups, memory }
    }
}

fn folder() -> Option<std::ffi::OsString> {
    std::env::var_os("LOGITS_VARIANTS")
}

/// Whether all ten adapters are tried, with every type, and [`FEW`] variants of each family are
/// translated instead of one.
fn is_wide() -> bool {
    tier::is_full() || folder().is_some()
}

#[test]
fn every_variant_is_valid_and_translates() {
    let mut variants = variants();
    variants.extend([1, 32].map(Variant::self_test));
    let folder = folder();
    let folder = folder.as_deref().map(Path::new);
    let mut families: BTreeMap<&Family, Vec<&Variant>> = BTreeMap::new();
    for variant in &variants {
        families.entry(&variant.family).or_default().push(variant);
    }
    families.values_mut().for_each(|variants| variants.sort());
    let families: Vec<_> = families.into_values().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let families = &families;
            scope.spawn(move || {
                for (nth, variants) in families.iter().enumerate().skip(first).step_by(threads) {
                    of_family(nth, variants, folder);
                }
            });
        }
    });
    println!("{} variants in {} families", variants.len(), families.len());
    assert!(variants.len() > 1000);
}

fn of_family(nth: usize, variants: &[&Variant], folder: Option<&Path>) {
    // The few variants are spread over the family.
    let step = variants.len().div_ceil(if is_wide() { FEW } else { 1 });
    for (of_family, variant) in variants.iter().enumerate() {
        let is_of_few = of_family % step == 0;
        if !is_of_few && !tier::is_full() {
            continue;
        }
        let keep = |ending: &str, bytes: &[u8]| {
            if let Some(folder) = folder.filter(|_| is_of_few) {
                let name = format!("{nth}.{of_family}.{}.{ending}", variant.family.entry);
                std::fs::write(folder.join(name), bytes).unwrap();
            }
        };
        // Browsers need this directive, which naga does not know.
        let extension = if variant.has_subgroups { "enable subgroups;\n" } else { "" };
        keep("wgsl", format!("{extension}{}", variant.source).as_bytes());
        let (module, info) = parsed(&variant.source);
        check_bindings(&module);
        check_layouts(&module);
        let (module, info) = reachable(&module, &info);
        check_memory(&module, &info, variant);
        translate(&module, &info, variant.has_subgroups, keep);
    }
}

fn translate(module: &Module, info: &ModuleInfo, has_subgroups: bool, keep: impl Fn(&str, &[u8])) {
    // The shader model of DXC, and without subgroups that of FXC too.
    let models = [(hlsl::ShaderModel::V6_2, "sm62.hlsl"), (hlsl::ShaderModel::V5_1, "sm51.hlsl")];
    for (shader_model, ending) in models.into_iter().take(1 + usize::from(!has_subgroups)) {
        keep(ending, hlsl_of(module, info, shader_model).as_bytes());
    }

    keep("metal", msl_of(module, info).as_bytes());

    let options =
        spv::Options { lang_version: (1, 3), force_loop_bounding: false, ..Default::default() };
    let pipeline =
        spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: ENTRY.to_owned() };
    let words = spv::write_vec(module, info, &options, Some(&pipeline)).unwrap();
    keep("spv", bytemuck::cast_slice(&words));

    // wgpu has no subgroups on GL.
    if has_subgroups {
        return;
    }
    let options = glsl::Options { zero_initialize_workgroup_memory: false, ..Default::default() };
    let pipeline = glsl::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: ENTRY.to_owned(),
        multiview: None,
    };
    let mut text = String::new();
    glsl::Writer::new(&mut text, module, info, &options, &pipeline, BoundsCheckPolicies::default())
        .unwrap()
        .write()
        .unwrap();
    keep("comp", text.as_bytes());
}

/// Checks that a variant needs no more than 256 threads and 8 storage buffers, WebGPU's defaults,
/// and the workgroup memory that the plan was given.
fn check_memory(module: &Module, info: &ModuleInfo, variant: &Variant) {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let at = 0;
    assert_eq!(module.entry_points[at].workgroup_size.iter().product::<u32>(), 256);
    let (mut bytes, mut buffers) = (0, 0);
    for (handle, variable) in module.global_variables.iter() {
        if info.get_entry_point(at)[handle].is_empty() {
            continue;
        }
        match variable.space {
            AddressSpace::WorkGroup => {
                bytes += u64::from(layouter[variable.ty].size.next_multiple_of(16))
            }
            AddressSpace::Storage { .. } => buffers += 1,
            _ => {}
        }
    }
    assert!(buffers <= 8, "{}: {buffers} storage buffers", variant.family.entry);
    assert!(
        bytes <= variant.memory,
        "{}: {bytes} bytes of workgroup memory of {}",
        variant.family.entry,
        variant.memory
    );
}

/// Checks that the host's structs and the shaders' are the same.
fn check_layouts(module: &Module) {
    let members = |name: &str| {
        let (_, found) =
            module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).unwrap();
        let naga::TypeInner::Struct { members, span } = &found.inner else {
            panic!("{name} is no struct")
        };
        let offsets =
            members.iter().map(|member| (member.name.clone().unwrap(), member.offset as usize));
        (offsets.collect::<Vec<_>>(), *span as usize)
    };
    let check = |name: &str, host: &[(&str, usize)], size: usize| {
        let (offsets, span) = members(name);
        // The shader's struct ends at a multiple of 16 bytes without saying so.
        let host = host.iter().filter(|(field, _)| *field != "padding");
        let host: Vec<_> = host.map(|&(field, offset)| (field.to_owned(), offset)).collect();
        assert_eq!(offsets, host);
        assert!(span <= size);
    };
    check("Params", Params::FIELDS, size_of::<Params>());
    macro_rules! offsets {
        ($($field:ident),*) => {
            [$((stringify!($field), std::mem::offset_of!(Summary, $field))),*]
        };
    }
    let summary = offsets!(loss, counted_rows, first_invalid_row, zero, sum, weight);
    check("Summary", &summary, size_of::<Summary>());
}

fn check_bindings(module: &Module) {
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        let expected = match variable.space {
            AddressSpace::Uniform => BufferBindingType::Uniform,
            AddressSpace::Storage { access } => BufferBindingType::Storage {
                read_only: !access.contains(naga::StorageAccess::STORE),
            },
            ref other => panic!("a binding in {other:?}"),
        };
        assert_eq!(BINDINGS[binding.binding as usize], expected, "binding {}", binding.binding);
    }
}
