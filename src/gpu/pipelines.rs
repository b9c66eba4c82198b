//! The one place where the parts in `shaders/` are joined, and the cache of the pipelines made from them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use wgpu::{
    BindGroupLayout, BufferBindingType, ComputePipeline, Device, PipelineLayout, ShaderRuntimeChecks, ShaderStages,
};

use crate::DType;
use crate::ops::Statistics;
use crate::plan::{Access, Entry, Kind, Strategy};
use crate::problem::operation::Op;

/// Types of the bindings, in the order of `shaders/shared/bindings.wgsl`.
pub(super) const BINDINGS: [BufferBindingType; 9] = [
    BufferBindingType::Uniform,
    BufferBindingType::Storage { read_only: true },
    BufferBindingType::Storage { read_only: true },
    BufferBindingType::Storage { read_only: true },
    BufferBindingType::Storage { read_only: false },
    BufferBindingType::Storage { read_only: false },
    BufferBindingType::Storage { read_only: false },
    BufferBindingType::Storage { read_only: false },
    BufferBindingType::Storage { read_only: true },
];
/// Storage buffers of a kernel.
pub(super) const STORAGE_BUFFERS: u32 = BINDINGS.len() as u32 - 1;

/// Which kernel, in which variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kernel {
    pub(super) op: Op,
    pub(super) strategy: Strategy,
    pub(super) dtype: DType,
    pub(super) in_place: bool,
    /// Whether the classes of a row are apart.
    pub(super) planes: bool,
    pub(super) access: Access,
    /// Units that a thread has at a time.
    pub(super) units: u32,
    /// Threads that take what lies next to each other.
    pub(super) stripe: u32,
    pub(super) fit: Fit,
    /// The classes, where a kernel is made for their number; else 0.
    pub(super) classes: u32,
    /// Classes of a segment, where rows are cut into some.
    pub(super) segment: u32,
    /// Threads that sum over a group of rows, of the whole batch.
    pub(super) long_lanes: u32,
    /// FLAGS of `shaders/shared/bindings.wgsl`.
    pub(super) flags: u32,
    pub(super) labels: Labels,
    pub(super) z_loss: bool,
    pub(super) transform: TransformKind,
}

/// How rows fall on the units and words of what is bound; everything `false` is always true enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Fit {
    /// Elements can be bound, read and written by units.
    pub(super) wide: bool,
    /// Whatever a workgroup takes starts at a unit.
    pub(super) aligned: bool,
    /// Rows consist of whole units.
    pub(super) whole: bool,
    /// And of whole words.
    pub(super) even: bool,
}

/// What targets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Labels {
    /// Classes, or there are none.
    Classes,
    /// Classes, smoothed.
    Smoothed,
    /// Probabilities.
    Soft,
}

/// What is made of logits before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TransformKind {
    Plain,
    Scaled,
    Capped,
}

/// What tells one pipeline from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// None where the entry point is the same for all of them, but for the flags.
    kernel: Option<Kernel>,
    flags: u32,
    long_lanes: u32,
    entry: Entry,
}

impl Key {
    fn new(kernel: Kernel, entry: Entry) -> Self {
        Self { kernel: (!is_total(entry)).then_some(kernel), flags: kernel.flags, long_lanes: kernel.long_lanes, entry }
    }
}

fn is_total(entry: Entry) -> bool {
    matches!(entry, Entry::CountTargets | Entry::TotalTargets | Entry::SumLosses | Entry::TotalLosses)
}

pub(super) struct Kernels {
    /// Threads that any subgroup has; 1 where there are none.
    pub(super) subgroup: u32,
    /// What the compiler adds to kernels that are already proved: nothing. With all of it they compute the same, in half as much
    /// time again.
    pub(super) checks: ShaderRuntimeChecks,
    pub(super) bindings: BindGroupLayout,
    layout: PipelineLayout,
    pipelines: Mutex<HashMap<Key, ComputePipeline>>,
    self_test: Mutex<Option<ComputePipeline>>,
    /// Makes another text of a module's.
    #[cfg(test)]
    pub(super) edit: Option<Edit>,
}

#[cfg(test)]
pub(super) type Break = fn(&str) -> String;

#[cfg(test)]
pub(super) type Edit = Box<dyn Fn(&str) -> String + Send + Sync>;

#[cfg(test)]
thread_local! {
    /// The `edit` of devices that this thread opens: what a broken driver makes of the kernels.
    pub(super) static BROKEN: std::cell::Cell<Option<Break>> = const { std::cell::Cell::new(None) };
}

impl Kernels {
    pub(super) fn new(device: &Device, subgroup: u32) -> Self {
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
        Self {
            subgroup,
            checks: ShaderRuntimeChecks::unchecked(),
            bindings,
            layout,
            pipelines: Mutex::default(),
            self_test: Mutex::default(),
            #[cfg(test)]
            edit: BROKEN.get().map(|edit| Box::new(edit) as Edit),
        }
    }

    /// The pipeline of one entry point, compiled on first use. Call within error scopes.
    pub(super) fn pipeline(&self, device: &Device, kernel: Kernel, entry: Entry) -> ComputePipeline {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = pipelines
            .entry(Key::new(kernel, entry))
            .or_insert_with(|| self.compile(device, &self.source(kernel, entry), kernel, entry));
        compiled.clone()
    }

    fn source(&self, kernel: Kernel, entry: Entry) -> String {
        self.edited(source(kernel, entry, self.subgroup > 1))
    }

    #[cfg_attr(not(test), allow(clippy::unused_self))]
    fn edited(&self, text: String) -> String {
        #[cfg(test)]
        if let Some(edit) = &self.edit {
            return edit(&text);
        }
        text
    }

    /// The pipeline of `shaders/self_test.wgsl`, whose only bindings are 0, 2 and 5.
    pub(super) fn self_test(&self, device: &Device) -> ComputePipeline {
        let build = || {
            let source = self.edited(self_test_source(self.subgroup > 1));
            self.build(device, "logits self-test", &source, None, &self_test_constants(self.subgroup))
        };
        self.self_test.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(build).clone()
    }

    fn compile(&self, device: &Device, source: &str, kernel: Kernel, entry: Entry) -> ComputePipeline {
        let label = format!("logits {:?} {}", kernel.op, entry.name());
        self.build(device, &label, source, Some(&self.layout), &constants(kernel, entry, self.subgroup))
    }

    fn build(
        &self,
        device: &Device,
        label: &str,
        source: &str,
        layout: Option<&PipelineLayout>,
        constants: &[(&str, f64)],
    ) -> ComputePipeline {
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(label), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // SAFETY: no index is out of range and no loop endless. Every row, class and unit is kept below the counts in `Params`,
        // which are those of what is bound; a label is used as an index only where it is below the classes; a thread's number is
        // below that of threads, whatever a driver says of its subgroups; and workgroup memory is sized by the plan for the
        // rows that it holds.
        let module = unsafe { device.create_shader_module_trusted(descriptor, self.checks) };
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants,
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        })
    }

    /// Forgets every pipeline: one that was made while something failed may be broken.
    pub(super) fn forget(&self) {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.self_test.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
impl Kernels {
    /// Puts a broken pipeline where the good one would be.
    pub(super) fn spoil(&self, device: &Device, kernel: Kernel, entry: Entry) {
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let text = source(kernel, entry, self.subgroup > 1).replace("fn main(", "fn another_name(");
        let broken = self.compile(device, &text, kernel, entry);
        assert!(pollster::block_on(scope.pop()).is_some());
        self.pipelines.lock().unwrap().insert(Key::new(kernel, entry), broken);
    }
}

/// Values of the shaders' `override`s.
pub(super) fn constants(kernel: Kernel, entry: Entry, subgroup: u32) -> Vec<(&'static str, f64)> {
    // A row in registers meets no loop or condition that threads leave at different times, unless it is searched for classes afterwards.
    let diverges = !matches!(entry, Entry::HoldRows | Entry::SplitReduce) || kernel.op.spec().rereads_row;
    let mut constants = vec![
        ("SUBGROUP", f64::from(subgroup)),
        ("FLAGS", f64::from(kernel.flags)),
        ("DIVERGES", f64::from(u8::from(diverges))),
    ];
    if is_total(entry) {
        constants.push(("LANES", kernel.long_lanes.into()));
        return constants;
    }
    let is_loss = kernel.op.has_targets();
    let flags = [
        ("IN_PLACE", kernel.in_place),
        ("PLANES", kernel.planes),
        ("COLUMNS", kernel.access == Access::Columns),
        ("STAGED", matches!(kernel.access, Access::Staged { .. })),
        ("ALIGNED", kernel.fit.aligned),
        ("WHOLE", kernel.fit.whole),
        ("EVEN", kernel.fit.even),
        ("SPREAD", is_loss && kernel.labels != Labels::Classes),
        ("SOFT", is_loss && kernel.labels == Labels::Soft),
        ("Z_LOSS", kernel.z_loss),
        ("SCALED", kernel.transform == TransformKind::Scaled),
        ("CAPPED", kernel.transform == TransformKind::Capped),
        ("BF16", kernel.dtype == DType::BF16),
        ("LOG", matches!(kernel.op, Op::LogSoftmax | Op::LogSoftmaxBackward)),
        ("GRADIENT", matches!(kernel.op, Op::CrossEntropyGrad | Op::CrossEntropyBackward)),
        ("KNOWN", kernel.op.spec().statistics == Statistics::Saved),
    ];
    constants.push(("LANES", kernel.strategy.lanes.into()));
    constants.push(("STRIPE", kernel.stripe.into()));
    constants.push(("CLASSES", kernel.classes.into()));
    if kernel.strategy.kind == Kind::Split {
        constants.push(("SEGMENT", kernel.segment.into()));
    }
    constants.extend(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (name, 1.0)));
    constants
}

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!("../../shaders/", $path))
    };
}

/// Values of the self-test's `override`s.
pub(super) fn self_test_constants(subgroup: u32) -> [(&'static str, f64); 2] {
    [("SUBGROUP", subgroup.into()), ("CAPPED", 1.0)]
}

/// The module of the self-test.
pub(super) fn self_test_source(subgroups: bool) -> String {
    [
        shader!("shared/bindings.wgsl"),
        shader!("elements/half.wgsl"),
        if subgroups { shader!("shared/lanes_subgroup.wgsl") } else { shader!("shared/lanes_plain.wgsl") },
        shader!("shared/math.wgsl"),
        shader!("shared/transform.wgsl"),
        shader!("shared/reduce.wgsl"),
        shader!("self_test.wgsl"),
    ]
    .join("\n")
}

/// The whole module that an entry point is in.
pub(super) fn source(kernel: Kernel, entry: Entry, subgroups: bool) -> String {
    let lanes = if subgroups { shader!("shared/lanes_subgroup.wgsl") } else { shader!("shared/lanes_plain.wgsl") };
    let is_half = matches!(kernel.dtype, DType::F16 | DType::BF16) && !is_total(entry);
    let (values, words) = match is_half {
        true => (shader!("elements/half.wgsl"), shader!("elements/half_words.wgsl")),
        false => (shader!("elements/f32.wgsl"), shader!("elements/f32_words.wgsl")),
    };
    // What sizes arrays that are not workgroup memory can be no override.
    let (units, tile) = match kernel.access {
        _ if is_total(entry) => (1, 1),
        Access::Staged { elements } => (kernel.units, elements / 4),
        Access::Direct | Access::Columns => (kernel.units, 1),
    };
    let sizes = format!("const UNITS: u32 = {units}u; const TILE: u32 = {tile}u;");
    let run = format!("fn run(grid: Grid) {{ {}(grid); }}", entry.name());
    let mut parts = vec![
        sizes.as_str(),
        shader!("shared/bindings.wgsl"),
        values,
        if kernel.fit.wide && !is_total(entry) { shader!("elements/wide.wgsl") } else { words },
        lanes,
        run.as_str(),
        shader!("shared/math.wgsl"),
        shader!("shared/transform.wgsl"),
        shader!("shared/reduce.wgsl"),
    ];
    if is_total(entry) {
        parts.push(shader!("totals.wgsl"));
        return parts.join("\n");
    }
    let is_sum = kernel.op.spec().statistics == Statistics::GradientSum;
    parts.push(shader!("shared/rows.wgsl"));
    parts.extend::<&[&str]>(match kernel.strategy.kind {
        Kind::Rows => &[shader!("shared/held.wgsl"), shader!("strategies/rows.wgsl")],
        Kind::Stream => &[shader!("shared/reread.wgsl"), shader!("strategies/stream.wgsl")],
        Kind::Split => &[shader!("shared/held.wgsl"), shader!("shared/reread.wgsl"), shader!("strategies/split.wgsl")],
    });
    if kernel.strategy.kind == Kind::Stream && !is_sum {
        parts.push(shader!("shared/online.wgsl"));
    }
    parts.push(if is_sum { shader!("shared/sum.wgsl") } else { shader!("shared/passes.wgsl") });
    parts.push(kernel.op.spec().shader);
    if !kernel.op.spec().rereads_row {
        parts.push(shader!("shared/no_pick.wgsl"));
    }
    parts.join("\n")
}
