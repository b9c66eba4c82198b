//! The parameters of a kernel, and the options by which one kernel differs from another.

use bytemuck::{Pod, Zeroable};

use super::pipelines::{Fit, Kernel, TargetKind, TransformKind};
use crate::DType;
use crate::plan::{Access, KernelProblem, Kind, Pass, Plan, Strategy, UNIT_BYTES, WORKGROUP};
use crate::problem::operands::{Operands, RowTarget};

/// How many targets that are not counted there may be.
pub(super) const MOST_IGNORED: usize = 16;

/// Defines [`Params`] and the list of its fields, which a test compares with the shaders'.
macro_rules! params {
    ($($field:ident: $ty:ty,)+) => {
        /// The uniform of `shaders/shared/bindings.wgsl`, whose size is a multiple of 16 bytes.
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        #[repr(C)]
        pub(super) struct Params {
            $(pub(super) $field: $ty,)+
        }

        #[cfg(test)]
        impl Params {
            /// The name of each field, and its offset in bytes.
            pub(super) const FIELDS: &[(&str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!(Params, $field))),+];
        }
    };
}

params! {
    rows: u32,
    classes: u32,
    inner: u32,
    logits_stride: u32,
    elements_stride: u32,
    segments: u32,
    first_segment: u32,
    pass_segments: u32,
    logits_at: u32,
    elements_at: u32,
    targets_at: u32,
    rows_out_at: u32,
    row_upstream_at: u32,
    first_group: u32,
    first_row: u32,
    groups: u32,
    ignored_count: u32,
    flags: u32,
    factor: f32,
    on_value: f32,
    off_value: f32,
    class_weight: f32,
    z_loss: f32,
    scale: f32,
    scale_low: f32,
    signed_scale: f32,
    ratio: f32,
    ratio_low: f32,
    cap: f32,
    cap_low: f32,
    cap_limit: f32,
    flip: u32,
    draw_seed: [u32; 2],
    draw_step: [u32; 2],
    k: u32,
    draw_top_k: u32,
    draw_top_p: f32,
    soft_rows: u32,
    nan: u32,
    negative_infinity: u32,
    zero: u32,
    focal_gamma: f32,
    ignored: [[u32; 4]; MOST_IGNORED / 4],
}

/// The summary of the losses of a batch, which a step writes into a buffer; `bytemuck` casts its
/// bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Summary {
    /// The loss after the reduction, in nats: the first four bytes of a buffer of losses.
    pub loss: f32,
    /// Rows whose target was no ignored index, those with an invalid target included; they weigh
    /// nothing.
    pub counted_rows: u32,
    /// The first row whose target was neither a class nor ignored; `u32::MAX` where there was none.
    pub first_invalid_row: u32,
    pub(super) zero: u32,
    /// The sum of the rows' weighted losses, as a high and a low part. Added in f64 they are the
    /// total of [`RowSum`](crate::RowSum) over these losses. A sum beyond f32 is infinite here, and
    /// so is its mean; `RowSum` and [`ResidentLoss::read`](crate::ResidentLoss::read) have it in
    /// f64.
    pub sum: [f32; 2],
    /// The sum of the targets' weights, as a high and a low part: the divisor of a mean. The
    /// perplexity is the exponential of `sum / weight`, both added in f64.
    pub weight: [f32; 2],
}

/// The options of an operation, as kernels are told them.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelOptions {
    /// The parameters that do not depend on a pass; all others are 0.
    params: Params,
    dtype: DType,
    target_kind: TargetKind,
    transform: TransformKind,
}

impl KernelOptions {
    /// Flags of `shaders/shared/bindings.wgsl`.
    const WEIGHTED: u32 = 1;
    const MEAN: u32 = 2;
    const NAN_GRADIENT: u32 = 4;
    const ROW_UPSTREAM: u32 = 8;
    const LATER_DRAW: u32 = 16;
    const FOCAL: u32 = 32;
    /// The flags that are constants of a kernel; kernels read the others from `Params`.
    const MADE_FOR: u32 = Self::WEIGHTED | Self::MEAN | Self::ROW_UPSTREAM | Self::FOCAL;

    /// Makes the options of a request, whose targets the host has checked and weighed.
    pub(super) fn of_request(dtype: DType, operands: &Operands<'_>) -> Self {
        Self::new(dtype, operands, operands.soft_targets.is_some(), false, &[RowTarget::IGNORED])
    }

    /// Makes the options of a step, whose targets the device weighs where `is_mean`; targets in
    /// `not_counted` are ignored.
    pub(super) fn new(
        dtype: DType,
        operands: &Operands<'_>,
        is_soft: bool,
        is_mean: bool,
        not_counted: &[u32],
    ) -> Self {
        let Operands { coefficients, transform, draws, k, .. } = operands;
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let mut ignored = [[0; 4]; MOST_IGNORED / 4];
        ignored
            .as_flattened_mut()
            .iter_mut()
            .zip(not_counted)
            .for_each(|(ignored, &label)| *ignored = label);
        let pair = |value: f64| (value as f32, (value - f64::from(value as f32)) as f32);
        let (scale, scale_low) = pair(transform.scale.abs());
        let softcap = transform.softcap.unwrap_or(1.0);
        let (cap, cap_low) = pair(softcap);
        let (ratio, ratio_low) = pair(transform.scale.abs() / softcap);
        let params = Params {
            ignored_count: not_counted.len().min(MOST_IGNORED) as u32,
            flags: flag(coefficients.weight.is_some(), Self::WEIGHTED)
                | flag(is_mean, Self::MEAN)
                | flag(coefficients.has_nan_gradient(), Self::NAN_GRADIENT)
                | flag(coefficients.row_upstream.is_some(), Self::ROW_UPSTREAM)
                | flag(coefficients.focal_gamma > 0.0, Self::FOCAL),
            factor: if coefficients.has_nan_gradient() { 0.0 } else { coefficients.factor as f32 },
            on_value: coefficients.on_value as f32,
            off_value: coefficients.off_value as f32,
            class_weight: coefficients.class_weight as f32,
            z_loss: coefficients.z_loss as f32,
            focal_gamma: coefficients.focal_gamma as f32,
            scale,
            scale_low,
            signed_scale: transform.scale as f32,
            ratio,
            ratio_low,
            cap,
            cap_low,
            // The tanh of 40 is 1, and exp(-80) a number still.
            cap_limit: (40.0 / f64::from(ratio)).min(f64::from(f32::MAX)) as f32,
            flip: if transform.scale < 0.0 { 1 << 31 } else { 0 },
            k: *k as u32,
            draw_seed: draws.seed,
            draw_step: draws.step,
            draw_top_k: draws.top_k,
            draw_top_p: draws.top_p,
            nan: f32::NAN.to_bits(),
            negative_infinity: f32::NEG_INFINITY.to_bits(),
            ignored,
            ..Params::zeroed()
        };
        let target_kind = match is_soft {
            true => TargetKind::Soft,
            false if params.off_value > 0.0 => TargetKind::Smoothed,
            false => TargetKind::Classes,
        };
        let transform = match transform.softcap {
            Some(_) => TransformKind::SoftCapped,
            None if transform.is_identity() => TransformKind::Identity,
            None => TransformKind::Scaled,
        };
        Self { params, dtype, target_kind, transform }
    }

    /// The parameters that are the same in every pass.
    pub(super) fn params(&self) -> Params {
        self.params
    }

    /// Sets that the gradient of each row is multiplied by the upstream gradient in a buffer.
    pub(super) fn with_row_upstream(mut self) -> Self {
        self.params.flags |= Self::ROW_UPSTREAM;
        self
    }

    /// Sets that the counter in a buffer is added to the step of the draws.
    pub(super) fn with_later_draws(mut self) -> Self {
        self.params.flags |= Self::LATER_DRAW;
        self
    }

    /// The kernel of an operation under these options, over elements that start where they do in
    /// what is bound.
    pub(super) fn kernel(
        &self,
        plan: &Plan,
        problem: &KernelProblem,
        pass: &Pass,
        in_place: bool,
        starts: Starts,
    ) -> Kernel {
        let &Self { params, dtype, target_kind, transform } = self;
        let op = problem.op;
        // The derivative of a backward's scale is a factor like any other.
        let transform =
            if op.spec().forward.is_some() { TransformKind::Identity } else { transform };
        let target_kind = if op.has_targets() { target_kind } else { TargetKind::Classes };
        let z_loss = op.has_targets() && params.z_loss > 0.0;
        let (strategy, access) = (plan.strategy, plan.access());
        let fit = starts.fit(problem, strategy, access, pass.rows.end - pass.rows.start);
        // One thread a row: what is left of its last unit is not even looked at.
        let classes = if strategy.kind == Kind::RegisterResident && strategy.lanes == 1 {
            problem.classes as u32
        } else {
            0
        };
        Kernel {
            op,
            strategy,
            dtype,
            in_place,
            strided: problem.inner > 1,
            access,
            units: plan.units(pass.entry),
            stripe: plan.stripe(),
            fit,
            classes,
            segment: plan.segment_classes(),
            long_lanes: plan.long_lanes(),
            flags: params.flags & Self::MADE_FOR,
            target_kind,
            z_loss,
            transform,
            read_write: false,
        }
    }
}

/// Where logits and elements start in what is bound, and whether that can be taken by units.
#[derive(Clone, Copy)]
pub(super) struct Starts {
    pub(super) places: [u32; 2],
    pub(super) is_wide: bool,
    /// Whether one value of a unit can be written without a word about the others.
    pub(super) writes_parts: bool,
}

#[cfg(test)]
impl Starts {
    /// At units, words, and neither; where units can be bound, and where one cannot be written in
    /// parts.
    pub(super) fn of_each_kind() -> [Self; 4] {
        [(0, true, true), (2, true, false), (1, true, true), (1, false, true)]
            .map(|(at, is_wide, writes_parts)| Self { places: [at, 0], is_wide, writes_parts })
    }
}

impl Starts {
    fn fit(self, problem: &KernelProblem, strategy: Strategy, access: Access, rows: u64) -> Fit {
        let unit = UNIT_BYTES / problem.size;
        let at_multiples_of = |count: u64| {
            let mut starts = self.places.iter().map(|&place| u64::from(place));
            match access {
                // The rows of a workgroup together.
                Access::Staged { .. } => {
                    let group = u64::from(WORKGROUP / strategy.lanes) * problem.classes;
                    starts.all(|start| start.is_multiple_of(count)) && (group.is_multiple_of(count))
                }
                _ if problem.inner > 1 => false,
                _ => {
                    let strides = problem
                        .strides
                        .iter()
                        .all(|stride| rows <= 1 || stride.is_multiple_of(count));
                    starts.all(|start| start.is_multiple_of(count)) && strides
                }
            }
        };
        let aligned = at_multiples_of(unit);
        // The last word must not be shared with what follows either.
        let ends = if matches!(access, Access::Staged { .. }) {
            rows * problem.classes
        } else {
            problem.classes
        };
        let even = problem.size == 4 || (at_multiples_of(2) && ends.is_multiple_of(2));
        let is_held = strategy.kind == Kind::RegisterResident;
        // Where rows share units, workgroups do.
        let may_share = self.writes_parts || !problem.op.spec().writes_elements;
        Fit {
            wide: self.is_wide
                && even
                && problem.inner == 1
                && (aligned || (!is_held && may_share)),
            aligned,
            whole: problem.classes.is_multiple_of(unit) && (is_held || aligned),
            even,
        }
    }
}
