//! `logits tune`: finds the fastest kernel sizes on an adapter, one number after the other.

use std::path::PathBuf;
use std::time::Duration;

use logits::{CrossEntropy, Device, Logits, Operation, Reading, Stopwatch, Targets, Tuning};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::memory::resize;
use crate::stdio::{self, progress};
use crate::{CliError, Common, output};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to write what was found
    #[arg(long)]
    out: PathBuf,
    /// Elements of each batch that is timed
    #[arg(long, default_value_t = 1 << 24, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    elements: u64,
    #[command(flatten)]
    common: Common,
}

/// A number of the tuning, and the widths of rows whose kernels it shapes.
struct Knob {
    name: &'static str,
    classes: &'static [usize],
    candidates: fn(Tuning) -> Vec<Tuning>,
}

const KNOBS: [Knob; 5] = [
    Knob {
        name: "coalesces",
        classes: &[10, 100],
        candidates: |now| [false, true].map(|coalesces| Tuning { coalesces, ..now }).to_vec(),
    },
    Knob {
        name: "lane_bytes",
        classes: &[100, 1000, 4096],
        candidates: |now| {
            [64, 128, 256, 512].map(|lane_bytes| Tuning { lane_bytes, ..now }).to_vec()
        },
    },
    Knob {
        name: "long_lanes",
        classes: &[32_000, 262_144],
        candidates: |now| {
            [8, 32, 64, 128, 256].map(|long_lanes| Tuning { long_lanes, ..now }).to_vec()
        },
    },
    Knob {
        name: "stream_units",
        classes: &[32_000, 262_144],
        candidates: |now| [1, 2, 4, 8].map(|stream_units| Tuning { stream_units, ..now }).to_vec(),
    },
    Knob {
        name: "held_classes",
        classes: &[4096, 8192, 16_384],
        candidates: |now| {
            [2048, 4096, 8192, 16_384].map(|held_classes| Tuning { held_classes, ..now }).to_vec()
        },
    },
];

/// A candidate's time must be below this fraction of the best one's, because smaller gains are
/// noise.
const GAIN: f64 = 0.97;
const RUNS: usize = 7;

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    let outputs = output::create([Some(options.out.as_path())], &options.common.inputs())?;
    let mut device = options.common.open()?;
    let Some(start) = device.tuning() else {
        return Err(CliError::Usage(format!(
            "the {} has no kernels to tune; ask for a GPU with --device",
            device.name()
        )));
    };
    let mut best = start;
    let steps = KNOBS.iter().map(|knob| (knob.candidates)(best).len()).sum::<usize>();
    let bar = progress(steps as u64, "candidates");
    for Knob { name, classes, candidates } in &KNOBS {
        let base = best;
        let mut least = time(&device.clone().with_tuning(base)?, classes, options.elements)?;
        for candidate in candidates(base) {
            bar.inc(1);
            if candidate == base {
                continue;
            }
            let taken = time(&device.clone().with_tuning(candidate)?, classes, options.elements)?;
            let is_better = taken < least * GAIN;
            let text = candidate.to_string();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or(name);
            let relative = taken / least;
            let said = match options.common.json {
                true => json!({"candidate": line, "relative_time": relative, "kept": is_better})
                    .to_string(),
                false => {
                    format!(
                        "{line:<22} {relative:>6.3} of the best so far{}",
                        if is_better { ", kept" } else { "" }
                    )
                }
            };
            bar.suspend(|| stdio::print(said))?;
            if is_better {
                (best, least) = (candidate, taken);
            }
        }
        device = device.with_tuning(best)?;
    }
    bar.finish_and_clear();
    let mut outputs = outputs.into_iter().flatten().collect::<Vec<_>>();
    for output in &mut outputs {
        output.write_text(&format!(
            "# logits tune: {} ({})\n{best}",
            device.name(),
            device.backend()
        ))?;
    }
    if !options.common.json {
        let what =
            if best == start { "nothing better than the defaults" } else { "better numbers" };
        stdio::print(format!("{what} found; written to {}", options.out.display()))?;
    }
    output::commit(outputs)
}

/// Returns the geometric mean of the times of some widths and operations, in which each counts
/// alike.
fn time(device: &Device, classes: &[usize], elements: u64) -> Result<f64, CliError> {
    let loss = CrossEntropy::default();
    let mut logarithms = Vec::new();
    for &classes in classes {
        let rows = (elements as usize / classes).max(1);
        let mut rng = StdRng::seed_from_u64(classes as u64);
        let mut logits = Vec::new();
        resize(&mut logits, "logits", rows * classes)?;
        logits.fill_with(|| rng.random_range(-8.0_f32..8.0));
        let mut targets = Vec::new();
        resize(&mut targets, "targets", rows)?;
        targets.fill_with(|| rng.random_range(0..classes as u32));
        for timed in [Operation::Softmax, Operation::CrossEntropyGrad] {
            let x = Logits::new(&logits, [rows, classes])?;
            let mut watch = Stopwatch::new(device, timed, &loss, x, Targets::from(&targets))?;
            watch.operation()?;
            watch.warm_up()?;
            let runs = (0..RUNS)
                .map(|_| watch.operation().map(Reading::best))
                .collect::<Result<Vec<Duration>, _>>()?;
            logarithms.push(runs.into_iter().min().unwrap_or_default().as_secs_f64().ln());
        }
    }
    Ok((logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
}
