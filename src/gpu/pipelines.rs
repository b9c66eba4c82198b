//! The one place where the parts in `shaders/` are joined, and the cache of the pipelines made from
//! them.

use std::collections::HashMap;
use std::sync::Mutex;

use wgpu::{
    BindGroupLayout, BufferBindingType, ComputePipeline, Device, PipelineLayout,
    ShaderRuntimeChecks, ShaderStages,
};

use super::failure::lock;
use crate::DType;
use crate::ops::Op;
use crate::ops::{RowOutput, Statistics};
use crate::plan::{Access, Entry, Kind, Strategy, WORKGROUP};

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
    pub(super) strided: bool,
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
    /// FLAGS of [`constants`].
    pub(super) flags: u32,
    pub(super) target_kind: TargetKind,
    pub(super) z_loss: bool,
    pub(super) transform: TransformKind,
    /// Whether every storage binding is `read_write`, as is needed where one buffer holds inputs
    /// and results.
    pub(super) read_write: bool,
}

/// How rows fall on the units and words of what is bound; everything `false` is always true enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Fit {
    /// Elements can be bound, read and written by units.
    pub(super) wide: bool,
    /// Every stretch that a workgroup takes starts at the boundary of a unit.
    pub(super) aligned: bool,
    /// Rows consist of whole units.
    pub(super) whole: bool,
    /// Rows consist of whole words.
    pub(super) even: bool,
}

/// The kind of the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TargetKind {
    /// Classes, or there are none.
    Classes,
    /// Classes, smoothed.
    Smoothed,
    /// Probabilities.
    Soft,
}

/// The kind of the logit transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TransformKind {
    Identity,
    Scaled,
    SoftCapped,
}

/// The part of a kernel that distinguishes one pipeline from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// None where the entry point is the same for all of them, but for the flags.
    kernel: Option<Kernel>,
    flags: u32,
    long_lanes: u32,
    read_write: bool,
    entry: Entry,
}

impl Key {
    fn new(kernel: Kernel, entry: Entry) -> Self {
        let Kernel { flags, long_lanes, read_write, .. } = kernel;
        Self { kernel: (!entry.is_total()).then_some(kernel), flags, long_lanes, read_write, entry }
    }
}

pub(super) struct Kernels {
    /// Threads that any subgroup has; 1 where there are none.
    pub(super) subgroup: u32,
    /// The checks that the compiler adds to kernels: none, for they are proved in bounds. With all
    /// checks the results are the same, in half as much time again.
    pub(super) checks: ShaderRuntimeChecks,
    /// The layout of kernels, and that of those whose storage bindings are all `read_write`, made
    /// on first use.
    layouts: Mutex<[Option<Layout>; 2]>,
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

#[derive(Clone)]
struct Layout {
    bindings: BindGroupLayout,
    pipeline: PipelineLayout,
}

impl Layout {
    fn new(device: &Device, read_write: bool) -> Self {
        let entry = |(binding, ty)| {
            let ty = match ty {
                BufferBindingType::Storage { read_only } => {
                    BufferBindingType::Storage { read_only: read_only && !read_write }
                }
                BufferBindingType::Uniform => ty,
            };
            wgpu::BindGroupLayoutEntry {
                binding,
                visibility: ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            }
        };
        let entries: Vec<_> = (0..).zip(BINDINGS).map(entry).collect();
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("logits"),
            entries: &entries,
        });
        let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("logits"),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        Self { bindings, pipeline }
    }
}

impl Kernels {
    pub(super) fn new(subgroup: u32) -> Self {
        Self {
            subgroup,
            checks: ShaderRuntimeChecks::unchecked(),
            layouts: Mutex::default(),
            pipelines: Mutex::default(),
            self_test: Mutex::default(),
            #[cfg(test)]
            edit: BROKEN.get().map(|edit| Box::new(edit) as Edit),
        }
    }

    /// The layout of the bind groups of a kernel.
    pub(super) fn bindings(&self, device: &Device, read_write: bool) -> BindGroupLayout {
        self.layout(device, read_write).bindings
    }

    fn layout(&self, device: &Device, read_write: bool) -> Layout {
        let mut layouts = lock(&self.layouts);
        layouts[usize::from(read_write)]
            .get_or_insert_with(|| Layout::new(device, read_write))
            .clone()
    }

    /// The pipeline of one entry point, compiled on first use. Call within error scopes.
    pub(super) fn pipeline(
        &self,
        device: &Device,
        kernel: Kernel,
        entry: Entry,
    ) -> ComputePipeline {
        let mut pipelines = lock(&self.pipelines);
        let compiled = pipelines
            .entry(Key::new(kernel, entry))
            .or_insert_with(|| self.compile(device, &self.source(kernel, entry), kernel, entry));
        compiled.clone()
    }

    fn source(&self, kernel: Kernel, entry: Entry) -> String {
        self.edited(source(kernel, entry, self.subgroup))
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
            let source = self.edited(self_test_source(self.subgroup));
            self.build(device, "logits self-test", &source, None)
        };
        lock(&self.self_test).get_or_insert_with(build).clone()
    }

    fn compile(
        &self,
        device: &Device,
        source: &str,
        kernel: Kernel,
        entry: Entry,
    ) -> ComputePipeline {
        let label = format!("logits {:?} {}", kernel.op, entry.name());
        self.build(device, &label, source, Some(&self.layout(device, kernel.read_write).pipeline))
    }

    fn build(
        &self,
        device: &Device,
        label: &str,
        source: &str,
        layout: Option<&PipelineLayout>,
    ) -> ComputePipeline {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // SAFETY: no index is out of range and no loop endless. Every row, class and unit is kept
        // below the counts in `Params`, which are those of what is bound; a label is used as an
        // index only where it is below the classes; a thread's number is below that of threads,
        // whatever a driver says of its subgroups; and workgroup memory is sized by the plan for
        // the rows that it holds.
        let module = unsafe { device.create_shader_module_trusted(descriptor, self.checks) };
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        })
    }

    /// Forgets every pipeline and layout: one that was made while something failed may be broken.
    pub(super) fn forget(&self) {
        *lock(&self.layouts) = Default::default();
        lock(&self.pipelines).clear();
        *lock(&self.self_test) = None;
    }
}

#[cfg(test)]
impl Kernels {
    /// Puts a broken pipeline where the good one would be.
    pub(super) fn spoil(&self, device: &Device, kernel: Kernel, entry: Entry) {
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let text = source(kernel, entry, self.subgroup).replace("fn main(", "fn another_name(");
        let broken = self.compile(device, &text, kernel, entry);
        assert!(pollster::block_on(scope.pop()).is_some());
        self.pipelines.lock().unwrap().insert(Key::new(kernel, entry), broken);
    }
}

/// The value of a constant of a module.
enum Value {
    Number(u32),
    Switch(bool),
}

/// The lines that a module begins with: every constant that its parts know, and what it means.
/// Parts declare no constant whose value depends on the kernel.
fn constants(kernel: Kernel, entry: Entry, subgroup: u32) -> String {
    let Kernel { op, strategy, access, fit, target_kind, transform, .. } = kernel;
    let spec = op.spec();
    let is_split = strategy.kind == Kind::SplitRow;
    // Totals read no rows of logits; everything about those has its default, so that one pipeline
    // is enough for all kernels.
    let is_total = entry.is_total();
    let number = |value: u32, default: u32| Value::Number(if is_total { default } else { value });
    let switch = |is_on: bool| Value::Switch(is_on && !is_total);
    let tile = if let Access::Staged { elements } = access { elements / 4 } else { 1 };
    // A row in registers meets no loop or condition that threads leave at different times, unless
    // it is searched for classes afterwards.
    let diverges =
        !matches!(entry, Entry::RegisterResident | Entry::SplitReduce) || spec.rereads_row;
    let (is_capped, is_transformed) =
        (transform == TransformKind::SoftCapped, transform != TransformKind::Identity);
    let (has_maximum, class_matters) =
        (spec.statistics == Statistics::Softmax, spec.row_output == RowOutput::Predictions);
    // From saved log-sum-exps nothing is summed but labels that only the row knows.
    let reduces = !op.reads_log_sum_exps() || target_kind == TargetKind::Soft;
    // Logarithms, the slope of a soft cap, and side sums without targets are made from logits.
    let needs_logits = spec.is_log || if op.has_targets() { is_capped } else { spec.side_sums };
    let keeps = has_maximum && spec.writes_elements && !needs_logits;
    let is_online =
        strategy.kind == Kind::Online && has_maximum && !is_transformed && !class_matters;
    let lanes = if is_total { kernel.long_lanes } else { strategy.lanes };
    written(&[
        (
            "LANES",
            Value::Number(lanes),
            "Threads that share a row, or in totals a group of rows: a power of two up to WORKGROUP.",
        ),
        (
            "UNITS",
            number(kernel.units, 1),
            "Units of a row that a thread holds at a time; a unit is what 16 bytes hold.",
        ),
        (
            "STRIPE",
            number(kernel.stripe, 1),
            "Lanes that take neighbouring units; each stripe of lanes has a stretch of its own.",
        ),
        (
            "SUBGROUP",
            Value::Number(subgroup),
            "Threads that can always exchange values without a barrier; 1 without subgroups.",
        ),
        (
            "TILE",
            number(tile, 1),
            "Vectors of four values in the workgroup memory through which rows are staged.",
        ),
        (
            "SEGMENT",
            number(if is_split { kernel.segment } else { 1 }, 1),
            "Classes of a segment, where rows are split.",
        ),
        (
            "CLASSES",
            number(kernel.classes, 0),
            "The classes of a row, where the kernel is made for their number; else 0.",
        ),
        (
            "FLAGS",
            Value::Number(kernel.flags),
            "The flags of shared/bindings.wgsl that the kernel is made for.",
        ),
        (
            "IN_PLACE",
            switch(kernel.in_place),
            "Logits are read from `elements`: one buffer cannot be bound both ways at once.",
        ),
        (
            "STRIDED",
            switch(kernel.strided),
            "The classes of a row are apart, because blocks of rows lie side by side.",
        ),
        (
            "LANES_ACROSS_ROWS",
            switch(access == Access::LanesAcrossRows),
            "Neighbouring threads take neighbouring rows, not neighbouring lanes of one.",
        ),
        (
            "STAGED",
            switch(matches!(access, Access::Staged { .. })),
            "Rows come and go through workgroup memory.",
        ),
        (
            "ALIGNED",
            switch(fit.aligned),
            "Rows, or all stretches that a workgroup takes, start at a unit's boundary.",
        ),
        ("WHOLE", switch(fit.whole), "Rows, or those stretches, consist of whole units."),
        ("EVEN", switch(fit.even), "Rows, or those stretches, consist of whole words."),
        ("BF16", switch(kernel.dtype == DType::BF16), "16-bit values are bfloat16; else binary16."),
        ("SCALED", switch(transform == TransformKind::Scaled), "Logits are multiplied by a scale."),
        ("CAPPED", switch(is_capped), "Logits are scaled and go through a soft cap."),
        ("TRANSFORMED", switch(is_transformed), "SCALED or CAPPED."),
        (
            "TARGETS",
            switch(op.has_targets()),
            "The operation has targets: classes or probabilities.",
        ),
        (
            "SPREAD",
            switch(op.has_targets() && target_kind != TargetKind::Classes),
            "Classes beside the target have labels: SOFT, or smoothed ones.",
        ),
        (
            "SOFT",
            switch(op.has_targets() && target_kind == TargetKind::Soft),
            "Targets are probabilities.",
        ),
        ("Z_LOSS", switch(kernel.z_loss), "The loss has a z-loss."),
        (
            "LOG",
            switch(spec.is_log),
            "Results are logarithms of probabilities, or the backward starts from those.",
        ),
        ("WRITES", switch(spec.writes_elements), "One value is written for each logit."),
        (
            "REDUCES",
            switch(reduces),
            "A row is reduced before elements are written; else each is computed on its own.",
        ),
        (
            "HAS_MAXIMUM",
            switch(has_maximum),
            "A row is reduced to its maximum and a sum of exponentials; else, where it is, to one plain sum.",
        ),
        (
            "CLASS_MATTERS",
            switch(class_matters),
            "Which of equal maxima comes first is part of the result.",
        ),
        (
            "KEEPS",
            switch(keeps),
            "Registers keep exponentials in place of logits, because those are what is written in the end.",
        ),
        (
            "ONLINE",
            switch(is_online),
            "The maximum and the sum of exponentials are found in one pass.",
        ),
        ("SPLIT_ROW", switch(is_split), "Several workgroups share a row, a segment each."),
        (
            "REREADS_ROW",
            switch(spec.rereads_row),
            "Rows are searched for classes once they are reduced.",
        ),
        (
            "DIVERGES",
            Value::Switch(diverges),
            "Threads may come to a reduction from a loop or condition at different times.",
        ),
    ])
}

/// The constants of the self-test.
fn self_test_constants(subgroup: u32) -> String {
    let numbers = [("LANES", WORKGROUP), ("SUBGROUP", subgroup), ("CLASSES", 0), ("FLAGS", 0)];
    let switches = [
        ("STRIDED", false),
        ("LANES_ACROSS_ROWS", false),
        ("BF16", false),
        ("SCALED", false),
        ("CAPPED", true),
        ("TRANSFORMED", true),
        ("DIVERGES", false),
    ];
    let numbers = numbers.map(|(name, value)| (name, Value::Number(value), "See `constants`."));
    let switches = switches.map(|(name, value)| (name, Value::Switch(value), "See `constants`."));
    written(&numbers) + &written(&switches)
}

fn written(constants: &[(&str, Value, &str)]) -> String {
    let mut text = String::new();
    for (name, value, meaning) in constants {
        let line = match value {
            Value::Number(value) => format!("const {name}: u32 = {value}u; // {meaning}\n"),
            Value::Switch(value) => format!("const {name}: bool = {value}; // {meaning}\n"),
        };
        text.push_str(&line);
    }
    text
}

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!("../../shaders/", $path))
    };
}

/// The module of the self-test.
pub(super) fn self_test_source(subgroup: u32) -> String {
    let parts = [
        shader!("shared/bindings.wgsl"),
        shader!("elements/half.wgsl"),
        if subgroup > 1 {
            shader!("shared/lanes_subgroup.wgsl")
        } else {
            shader!("shared/lanes_plain.wgsl")
        },
        shader!("shared/math.wgsl"),
        shader!("shared/transform.wgsl"),
        shader!("shared/reduce.wgsl"),
        shader!("self_test.wgsl"),
    ];
    self_test_constants(subgroup) + DROP_UNUSED + &parts.join("\n")
}

/// A line that nothing refers to. Where a module has an `override`, naga drops the functions that
/// nobody calls before a driver sees them, here about half of all; without one it drops nothing.
const DROP_UNUSED: &str = "override DROP_UNUSED: bool = false;\n";

/// The whole module of an entry point: its constants, `run`, and its parts.
pub(super) fn source(kernel: Kernel, entry: Entry, subgroup: u32) -> String {
    let run = format!("fn run(grid: Grid) {{ {}(grid); }}\n", entry.name());
    let parts = parts(kernel, entry, subgroup > 1).join("\n");
    let parts = if kernel.read_write {
        parts.replace("<storage, read>", "<storage, read_write>")
    } else {
        parts
    };
    constants(kernel, entry, subgroup) + DROP_UNUSED + &run + &parts
}

/// The parts of an entry point's module, in the order of the text. The first lines of each part say
/// what it needs of the others.
pub(super) fn parts(kernel: Kernel, entry: Entry, subgroups: bool) -> Vec<&'static str> {
    let spec = kernel.op.spec();
    let is_total = entry.is_total();
    let is_half = matches!(kernel.dtype, DType::F16 | DType::BF16) && !is_total;
    let is_wide = kernel.fit.wide && !is_total;
    let statistics = spec.statistics;
    let kind = kernel.strategy.kind;
    // Every module has these, be it over rows of logits or over results of rows.
    let common = [
        // Bindings, `Params`, the structs of other buffers, and where rows are in them.
        shader!("shared/bindings.wgsl"),
        // A unit of values, as numbers and as words: f32, or 16-bit types.
        if is_half { shader!("elements/half.wgsl") } else { shader!("elements/f32.wgsl") },
        // Reading and writing units: by 16 bytes, or word by word where they may start anywhere.
        match (is_wide, is_half) {
            (true, _) => shader!("elements/wide.wgsl"),
            (false, true) => shader!("elements/half_words.wgsl"),
            (false, false) => shader!("elements/f32_words.wgsl"),
        },
        // `main`, which numbers the threads, and exchanges between them: with or without subgroups.
        if subgroups {
            shader!("shared/lanes_subgroup.wgsl")
        } else {
            shader!("shared/lanes_plain.wgsl")
        },
        // Exact sums, exponentials and logarithms.
        shader!("shared/math.wgsl"),
        // The logit transform, and exponentials relative to a row's maximum.
        shader!("shared/transform.wgsl"),
        // The reduction over the threads of a row.
        shader!("shared/reduce.wgsl"),
    ];
    if is_total {
        // Sums over rows of what each row came to: the four entry points of totals.
        return common.into_iter().chain([shader!("totals.wgsl")]).collect();
    }
    let of_rows = [
        // Where a row is, and which of its units a thread takes.
        Some(shader!("shared/rows.wgsl")),
        // A stretch of a row in registers.
        (kind != Kind::Online).then_some(shader!("shared/held.wgsl")),
        // Writing a stretch that is read again.
        (kind != Kind::RegisterResident).then_some(shader!("shared/reread.wgsl")),
        // The strategy, which has the entry points.
        Some(match kind {
            Kind::RegisterResident => shader!("strategies/register_resident.wgsl"),
            Kind::Online => shader!("strategies/online.wgsl"),
            Kind::SplitRow => shader!("strategies/split_row.wgsl"),
        }),
        // The numbers that an operation makes of a reduced row, and then of each element.
        (statistics != Statistics::GradientSum).then_some(shader!("shared/coefficients.wgsl")),
        // The target of a row, and the gradient of a loss.
        kernel.op.has_targets().then_some(shader!("shared/targets.wgsl")),
        // The reduction of a row: to its maximum and a sum of exponentials, or to one plain sum.
        // The gradient from saved log-sum-exps has this in its own part.
        match statistics {
            Statistics::Softmax => Some(shader!("shared/passes.wgsl")),
            Statistics::GradientSum => Some(shader!("shared/sum.wgsl")),
            Statistics::Saved => None,
        },
        // The sums of a row beside that of its exponentials.
        match (statistics, spec.side_sums, kernel.op.has_targets()) {
            (Statistics::Softmax, false, _) => Some(shader!("shared/no_side_sums.wgsl")),
            (Statistics::Softmax, true, true) => Some(shader!("shared/label_sums.wgsl")),
            // In the operation's own shader, or nowhere.
            _ => None,
        },
        // Sums relative to a maximum that still grows.
        match statistics {
            Statistics::Softmax => {
                (kind == Kind::Online).then_some(shader!("shared/running_maximum.wgsl"))
            }
            Statistics::GradientSum | Statistics::Saved => Some(shader!("shared/no_maximum.wgsl")),
        },
        // The operation: what becomes of a reduced row.
        Some(spec.shader),
        (!spec.rereads_row).then_some(shader!("shared/no_selection.wgsl")),
    ];
    common.into_iter().chain(of_rows.into_iter().flatten()).collect()
}
