//! The kernels that are run: operations, options, types, and ways to spread rows over threads.

use crate::ops::{Op, Operand};
use crate::plan::Kind;
use crate::plan::tuning::Tuning;
use crate::{CrossEntropy, DType, Reduction, Sampling, tier};

/// How rows are spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One thread a row, without barriers.
    Alone,
    /// Through workgroup memory, some threads a row.
    Staged,
    Streamed,
    Split,
}

impl Spread {
    pub fn tuning(self) -> Tuning {
        match self {
            Self::Alone => Tuning {
                subgroup: 1,
                lane_bytes: 512,
                held_classes: 65_536,
                long_lanes: 4,
                stream_units: 4,
                coalesces: false,
            },
            _ => Tuning {
                subgroup: 32,
                lane_bytes: 128,
                held_classes: 8192,
                long_lanes: 256,
                stream_units: 4,
                coalesces: true,
            },
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Self::Alone | Self::Staged => Kind::RegisterResident,
            Self::Streamed => Kind::Online,
            Self::Split => Kind::SplitRow,
        }
    }

    /// Returns rows and classes: two workgroups, or every kind of row.
    pub fn shape(self, op: Op, is_heavy: bool) -> (usize, usize) {
        match self {
            Self::Alone if is_heavy || op.spec().rereads_row => (300, 7),
            Self::Alone => (300, 18),
            Self::Staged => (60, 50),
            Self::Streamed => (30, 9001),
            Self::Split => (26, 131_077),
        }
    }
}

/// An operation under an option, over rows of a kind.
#[derive(Clone)]
pub struct Asked {
    pub op: Op,
    pub option: &'static str,
    pub dtype: DType,
    pub spread: Spread,
    pub loss: CrossEntropy,
    pub is_soft: bool,
    pub sampling: Sampling,
    pub temperature: f32,
}

impl Asked {
    pub fn new(op: Op, option: &'static str) -> Self {
        Self {
            op,
            option,
            dtype: DType::F32,
            spread: Spread::Alone,
            loss: CrossEntropy::default().reduction(Reduction::Sum),
            is_soft: false,
            sampling: Sampling::new(7).step(1 << 33),
            temperature: 1.0,
        }
    }

    fn with(mut self, loss: impl Fn(CrossEntropy) -> CrossEntropy) -> Self {
        self.loss = loss(self.loss);
        self
    }

    fn soft(self) -> Self {
        Self { is_soft: true, ..self }
    }

    pub fn name(&self) -> String {
        format!("{:?} {} {:?} {:?}", self.op, self.option, self.dtype, self.spread)
    }
}

/// Returns options of an operation without targets. More caps and scales need no further kernel.
fn of_logits(op: Op) -> Vec<Asked> {
    let asked = |option| Asked::new(op, option);
    if op == Op::Sample {
        let cold =
            |sampling: Sampling, option| Asked { temperature: 0.7, sampling, ..asked(option) };
        return vec![
            asked(""),
            Asked { sampling: Sampling::new(8).top_k(3), ..asked("top_k") },
            cold(Sampling::new(9).top_p(0.8), "top_p, temperature"),
            cold(Sampling::new(u64::MAX).top_p(0.9).top_k(4), "both, temperature"),
        ];
    }
    let mut all = vec![asked(""), asked("scale 2").with(|loss| loss.logit_scale(2.0))];
    // The backward of a softmax takes no cap.
    if op.spec().operand != Operand::UpstreamGradient {
        all.extend([
            asked("scale -0.75").with(|loss| loss.logit_scale(-0.75)),
            asked("cap 3").with(|loss| loss.softcap(3.0)),
            asked("cap 30").with(|loss| loss.softcap(30.0)),
            asked("cap 1000, scale -2").with(|loss| loss.softcap(1000.0).logit_scale(-2.0)),
        ]);
    }
    all
}

/// Returns each option of the loss by itself, and all at once.
fn of_loss(op: Op) -> Vec<Asked> {
    let asked = |option| Asked::new(op, option);
    let weights = |classes: usize| {
        (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect::<Vec<_>>()
    };
    let factors = || (0..300).map(|row| ((row % 7) as f32 - 3.0) * 0.3).collect::<Vec<_>>();
    let every = |option| {
        asked(option).with(|loss| {
            let loss = loss.label_smoothing(0.1).z_loss(0.1).softcap(30.0).logit_scale(0.5);
            loss.weight(weights(7)).upstream_gradients(factors()).upstream_gradient(-2.0)
        })
    };
    let mean = |asked: Asked| asked.with(|loss| loss.reduction(Reduction::Mean));
    let mut all = of_logits(op);
    all.extend([
        asked("soft").soft(),
        asked("soft, cap 30").with(|loss| loss.softcap(30.0)).soft(),
        asked("smoothing").with(|loss| loss.label_smoothing(0.1)),
        asked("z-loss").with(|loss| loss.z_loss(0.1)),
        asked("focal").with(|loss| loss.focal_gamma(2.0)),
        asked("weight").with(|loss| loss.weight(weights(18))),
        asked("upstream gradients").with(|loss| loss.upstream_gradients(factors())),
        asked("large upstream gradient").with(|loss| loss.upstream_gradient(65_536.0)),
        every("every"),
    ]);
    if op != Op::CrossEntropyBackward {
        all.extend([mean(asked("mean")), mean(every("every, soft, mean").soft())]);
    }
    all
}

/// Returns the kernels that the default tier runs of each strategy except the first.
fn by_default(spread: Spread) -> Vec<Asked> {
    let plain = Asked::new(Op::CrossEntropyGrad, "");
    let smoothed =
        Asked::new(Op::CrossEntropyGrad, "smoothing").with(|loss| loss.label_smoothing(0.1));
    let capped = Asked::new(Op::CrossEntropyGrad, "cap 30").with(|loss| loss.softcap(30.0));
    match spread {
        Spread::Alone => Vec::new(),
        Spread::Staged => vec![plain, smoothed],
        Spread::Streamed => vec![plain, Asked::new(Op::LogSumExp, ""), capped],
        Spread::Split => vec![plain, Asked::new(Op::LogSumExp, ""), smoothed],
    }
}

/// Whether the default tier compiles the kernel: not if another operation has the same code.
fn is_by_default(asked: &Asked) -> bool {
    match asked.op {
        Op::CrossEntropy => matches!(asked.option, "" | "soft" | "every"),
        Op::CrossEntropyBackward => {
            !matches!(asked.option, "smoothing" | "weight" | "upstream gradients")
        }
        Op::Predict | Op::TopK => !asked.option.starts_with("scale"),
        _ => true,
    }
}

pub fn all_asked() -> Vec<Asked> {
    let of = |has_targets| Op::ALL.into_iter().filter(move |op| op.has_targets() == has_targets);
    let kernels = || of(false).flat_map(of_logits).chain(of(true).flat_map(of_loss));
    let mut all: Vec<Asked> = kernels().collect();
    for dtype in [DType::F16, DType::BF16] {
        all.extend(
            [Op::CrossEntropyGrad, Op::Softmax].map(|op| Asked { dtype, ..Asked::new(op, "") }),
        );
    }
    if !tier::is_full() {
        all.retain(is_by_default);
    }
    for spread in [Spread::Staged, Spread::Streamed, Spread::Split] {
        let mut asked = by_default(spread);
        if tier::is_full() {
            // Operations that reread a row are never split. The others have rows so long that they
            // are run without options.
            let fits = |asked: &Asked| {
                spread != Spread::Split || (asked.option.is_empty() && !asked.op.spec().rereads_row)
            };
            let is_new = |new: &Asked| {
                !by_default(spread).iter().any(|old| (old.op, old.option) == (new.op, new.option))
            };
            asked.extend(kernels().filter(|more| fits(more) && is_new(more)));
        }
        all.extend(asked.into_iter().map(|asked| Asked { spread, ..asked }));
    }
    all
}
