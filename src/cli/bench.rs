//! `logits bench`: an operation's time over that of a plain copy of the logits, on the same device in the same run.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use logits::half::{bf16, f16};
use logits::{CrossEntropy, DType, Device, Element, Error, Logits, Reading, Stopwatch, Targets, Timed, Traffic};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::{CliError, Common, output, plot, progress};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to time, separated by commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "softmax,log_softmax,cross_entropy,cross_entropy_grad"
    )]
    ops: Vec<OpName>,
    /// Rows x classes, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "262144x10,65536x100,16384x1000,1024x32000,256x128256,8x262144"
    )]
    shapes: Vec<RowsByClasses>,
    /// The type of the logits
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DTypeName,
    /// Draw GB/s over classes, beside the copy's, into this SVG file
    #[arg(long)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum OpName {
    Softmax,
    LogSoftmax,
    CrossEntropy,
    CrossEntropyGrad,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeName {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy)]
struct RowsByClasses([usize; 2]);

impl FromStr for RowsByClasses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('x')
            .and_then(|(rows, classes)| Some(Self([rows.parse().ok()?, classes.parse().ok()?])))
            .filter(|Self([rows, classes])| *rows > 0 && *classes > 0)
            .ok_or_else(|| "expected rows x classes, such as 1024x32000".to_owned())
    }
}

/// Runs of each measurement: enough for a median, within about this much time.
const RUNS: usize = 31;
/// Of these, how many of a kind follow each other.
const AT_A_TIME: usize = 4;
const BUDGET: Duration = Duration::from_secs(2);

pub(crate) struct Row {
    op: OpName,
    shape: [usize; 2],
    dtype: DType,
    /// By the device's timestamps where it has them, in the same clock as the copy.
    median: Duration,
    copy: Duration,
    wall: Duration,
    has_timestamps: bool,
    traffic: Option<Traffic>,
}

impl Row {
    pub(crate) fn op(&self) -> String {
        self.op.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) fn classes(&self) -> usize {
        self.shape[1]
    }

    fn bytes(&self) -> f64 {
        (self.shape[0] * self.shape[1] * self.dtype.size()) as f64
    }

    /// The logits read once and, but for the loss alone, written once.
    pub(crate) fn gb_per_s(&self) -> f64 {
        let written = if self.op == OpName::CrossEntropy { 0.0 } else { 1.0 };
        self.bytes() * (1.0 + written) / self.median.as_secs_f64() / 1e9
    }

    pub(crate) fn copy_gb_per_s(&self) -> f64 {
        self.bytes() * 2.0 / self.copy.as_secs_f64() / 1e9
    }

    /// Bytes that the kernels move over those that they must; the CPU counts none.
    fn traffic_ratio(&self) -> Option<f64> {
        self.traffic.map(|Traffic { needed, moved, .. }| moved as f64 / needed as f64)
    }
}

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    let device = options.common.open()?;
    match options.dtype {
        DTypeName::F32 => run_with(options, &device, |x| x),
        DTypeName::F16 => run_with(options, &device, f16::from_f32),
        DTypeName::Bf16 => run_with(options, &device, bf16::from_f32),
    }
}

/// With logits of a type, to which `narrow` brings them.
fn run_with<T: Element<Row = f32>>(options: &Options, device: &Device, narrow: fn(f32) -> T) -> Result<(), CliError> {
    let picture = options.plot.as_deref().map(output::begin).transpose()?;
    if !options.common.json {
        println!("{device}\n");
        println!(
            "{:<20} {:>14} {:>11} {:>8} {:>11} {:>8} {:>11} {:>8}",
            "op", "shape", "median ms", "GB/s", "copy ms", "copies", "wall ms", "traffic"
        );
    }
    let mut rows = Vec::new();
    let bar = progress((options.shapes.len() * options.ops.len()) as u64, "measurements");
    for &RowsByClasses(shape) in &options.shapes {
        let elements = logits::Shape::from(shape).elements()?;
        let mut logits: Vec<T> = Vec::new();
        logits
            .try_reserve_exact(elements)
            .map_err(|_| Error::OutOfMemory { what: "logits", bytes: elements * size_of::<T>() })?;
        let mut rng = StdRng::seed_from_u64(elements as u64);
        logits.extend((0..elements).map(|_| narrow(rng.random_range(-8.0_f32..8.0))));
        let targets: Vec<u32> = (0..shape[0]).map(|_| rng.random_range(0..shape[1] as u32)).collect();
        for &op in &options.ops {
            let row = measure(device, op, &logits, shape, &targets)?;
            bar.suspend(|| print(&row, device, options.common.json));
            rows.push(row);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if !options.common.json {
        let clock = if rows.iter().any(|row| row.has_timestamps) { "the device's timestamps" } else { "wall clock" };
        println!("\nmedian and copy by {clock}; GB/s: the logits read once and, but for cross_entropy, written once;");
        println!("copies: median / copy; traffic: bytes that the kernels move / bytes that they must.");
    }
    if let Some((path, file)) = picture {
        let title = format!("{} ({}), {}", device.name(), device.backend(), T::DTYPE);
        output::finish_with(&path, file, &plot::draw(&rows, &title)?)?;
    }
    Ok(())
}

fn measure<T: Element<Row = f32>>(
    device: &Device,
    op: OpName,
    logits: &[T],
    shape: [usize; 2],
    targets: &[u32],
) -> Result<Row, CliError> {
    verify(device, op, logits, shape, targets)?;
    let loss = CrossEntropy::default();
    let timed = match op {
        OpName::Softmax => Timed::Softmax,
        OpName::LogSoftmax => Timed::LogSoftmax,
        OpName::CrossEntropy => Timed::CrossEntropy,
        OpName::CrossEntropyGrad => Timed::CrossEntropyGrad,
    };
    let mut watch = Stopwatch::new(device, timed, &loss, Logits::new(logits, shape)?, Targets::from(targets))?;
    // The first runs touch fresh pages and compile pipelines.
    for _ in 0..2 {
        watch.copy()?;
        watch.operation()?;
    }
    let (mut copies, mut operations) = (Vec::new(), Vec::new());
    let mut spent = Duration::ZERO;
    // Taken in turn, so that whatever slows the machine slows both; but a few at a time, after one that is not counted,
    // so that each finds in the caches what its own kind has left there: a copy leaves lines to be written.
    while operations.len() < 5 || (operations.len() < RUNS && spent < BUDGET) {
        for (readings, is_copy) in [(&mut copies, true), (&mut operations, false)] {
            let mut read = || if is_copy { watch.copy() } else { watch.operation() };
            spent += read()?.wall;
            for _ in 0..AT_A_TIME {
                let reading = read()?;
                spent += reading.wall;
                readings.push(reading);
            }
        }
    }
    // One clock for both.
    let has_timestamps = copies.iter().chain(&operations).all(|reading| reading.device.is_some());
    let by = if has_timestamps { Reading::best } else { |reading: Reading| reading.wall };
    Ok(Row {
        op,
        shape,
        dtype: T::DTYPE,
        median: median(operations.iter().copied().map(by).collect()),
        copy: median(copies.into_iter().map(by).collect()),
        wall: median(operations.iter().map(|reading| reading.wall).collect()),
        has_timestamps,
        traffic: watch.traffic(),
    })
}

/// A fast wrong answer is worth nothing: a few rows against float64.
fn verify<T: Element<Row = f32>>(
    device: &Device,
    op: OpName,
    logits: &[T],
    shape: [usize; 2],
    targets: &[u32],
) -> Result<(), CliError> {
    let x = Logits::new(logits, shape)?;
    let loss = CrossEntropy::default().reduction(logits::Reduction::Sum);
    let classes = shape[1];
    let (mut elements, mut per_row) = (Vec::new(), Vec::new());
    match op {
        OpName::Softmax => elements = device.softmax_vec(x)?.values,
        OpName::LogSoftmax => elements = device.log_softmax_vec(x)?.values,
        OpName::CrossEntropy => per_row = device.cross_entropy(&loss, x, targets)?.per_row,
        OpName::CrossEntropyGrad => elements = device.cross_entropy_grad_vec(&loss, x, targets)?.1,
    }
    for row in [0, shape[0] / 2, shape[0] - 1] {
        let x: Vec<f64> = logits[row * classes..][..classes].iter().map(|&x| x.into()).collect();
        let target = targets[row] as usize;
        let sum: f64 = x.iter().map(|&x| x.exp()).sum();
        // A unit in the last place of the type beside our own error.
        let unit = match T::DTYPE {
            DType::F16 => 1e-3,
            DType::BF16 => 8e-3,
            _ => 0.0,
        };
        let wrong = |got: f64, wanted: f64| (got - wanted).abs() > 3e-6 * wanted.abs().max(1.0) + unit * wanted.abs();
        let bad = match op {
            OpName::CrossEntropy => {
                (f64::from(per_row[row]) - (sum.ln() - x[target])).abs() > 3e-6 * sum.ln().abs().max(1.0)
            }
            _ => elements[row * classes..][..classes].iter().zip(&x).enumerate().any(|(class, (&got, &x))| {
                let p = x.exp() / sum;
                let wanted = match op {
                    OpName::LogSoftmax => p.ln(),
                    OpName::CrossEntropyGrad if class == target => p - 1.0,
                    _ => p,
                };
                wrong(got.into(), wanted)
            }),
        };
        if bad {
            return Err(CliError::Usage(format!(
                "{} of {}x{classes} is wrong in row {row}; nothing was timed",
                op.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
                shape[0]
            )));
        }
    }
    Ok(())
}

fn print(row: &Row, device: &Device, as_json: bool) {
    let [rows, classes] = row.shape;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (median, copy, wall) = (ms(row.median), ms(row.copy), ms(row.wall));
    if as_json {
        println!(
            "{}",
            json!({
                "op": row.op(),
                "rows": rows,
                "classes": classes,
                "dtype": row.dtype.to_string(),
                "device": device.name(),
                "backend": device.backend(),
                "median_ms": median,
                "gb_per_s": row.gb_per_s(),
                "copy_ms": copy,
                "copies": median / copy,
                "clock": if row.has_timestamps { "timestamps" } else { "wall" },
                "wall_ms": wall,
                "traffic": row.traffic_ratio(),
            })
        );
    } else {
        let shape = format!("{rows}x{classes}");
        let traffic = row.traffic_ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:<20} {shape:>14} {median:>11.3} {:>8.2} {copy:>11.3} {:>8.2} {wall:>11.3} {traffic:>8}",
            row.op(),
            row.gb_per_s(),
            median / copy,
        );
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
