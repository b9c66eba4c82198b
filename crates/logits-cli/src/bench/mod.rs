//! `logits bench`: an operation's time over that of a plain copy of the logits, on the same device
//! in the same run.

mod inputs;
mod plot;
mod verify;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use logits::half::{bf16, f16};
use logits::{DType, Device, Element, Logits, Operation, Reading, Stopwatch, Traffic};
use serde_json::json;

use crate::stdio::{self, progress};
use crate::{CliError, Common, output};
use inputs::Inputs;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Operations to time, separated by commas
    #[arg(
        long,
        value_parser = operations(),
        value_delimiter = ',',
        default_value = "softmax,log_softmax,cross_entropy,cross_entropy_grad"
    )]
    ops: Vec<&'static [Operation]>,
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
    /// Label smoothing, 0 to 1; only cross_entropy* use it, --weight, --z-loss and --soft-targets
    #[arg(long, value_name = "E", default_value_t = 0.0)]
    label_smoothing: f32,
    /// Weigh the classes, from 0.5 to 2
    #[arg(long)]
    weight: bool,
    /// How much the square of each row's log-sum-exp adds to the loss
    #[arg(long, value_name = "Z", default_value_t = 0.0)]
    z_loss: f32,
    /// Targets that are probabilities, of the shape and type of the logits
    #[arg(long)]
    soft_targets: bool,
    /// Cap the logits: S * tanh(x / S), after --logit-scale; sample, softmax_backward and
    /// log_softmax_backward refuse it
    #[arg(long, value_name = "S")]
    softcap: Option<f32>,
    /// Factor on the logits of every operation, before the cap
    #[arg(long, value_name = "A", default_value_t = 1.0, allow_hyphen_values = true)]
    logit_scale: f32,
    /// How many classes top_k finds (5 if not given, or all of fewer), and sample draws from (all)
    #[arg(long, value_name = "K")]
    k: Option<usize>,
    /// sample draws from the most likely classes whose probabilities add up to P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Milliseconds for each operation and shape, with copies and without warm-up; one run at
    /// least. If not given, 2000 and five runs at least
    #[arg(long, value_name = "MS")]
    budget: Option<u64>,
    /// Draw GB/s over classes, beside the copy's, into this SVG file
    #[arg(long)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Options {
    /// The options that differ from their defaults, as they were given.
    fn described(&self) -> String {
        let Self {
            label_smoothing,
            weight,
            z_loss,
            soft_targets,
            softcap,
            logit_scale,
            k,
            top_p,
            ..
        } = self;
        let given = [
            (*label_smoothing != 0.0).then(|| format!("label_smoothing={label_smoothing}")),
            weight.then(|| "weight".to_owned()),
            (*z_loss != 0.0).then(|| format!("z_loss={z_loss}")),
            soft_targets.then(|| "soft_targets".to_owned()),
            softcap.map(|cap| format!("softcap={cap}")),
            (*logit_scale != 1.0).then(|| format!("logit_scale={logit_scale}")),
            k.map(|k| format!("k={k}")),
            (*top_p != 1.0).then(|| format!("top_p={top_p}")),
        ];
        given.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// The classes that top_k finds if nothing else is asked for.
pub(crate) const TOP_K: usize = 5;

/// One operation by its name, or all of them.
fn operations() -> impl TypedValueParser<Value = &'static [Operation]> {
    let all = Operation::ALL;
    let names = all.iter().map(Operation::to_string).chain(["all".to_owned()]);
    PossibleValuesParser::new(names).map(move |name| {
        let nth = all.iter().position(|operation| operation.to_string() == name);
        nth.map_or(all, |nth| &all[nth..=nth])
    })
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeName {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy)]
pub(crate) struct RowsByClasses(pub(crate) [usize; 2]);

impl FromStr for RowsByClasses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('x')
            .and_then(|(rows, classes)| Some(Self([rows.parse().ok()?, classes.parse().ok()?])))
            .filter(|Self([rows, classes])| *rows > 0 && *classes > 0)
            .ok_or_else(|| "expected rows x classes, such as 1024x32000".to_owned())
    }
}

/// Runs of each measurement at most: enough for a median.
const RUNS: usize = 31;
/// The runs of one kind that follow each other.
const AT_A_TIME: usize = 4;
/// The time that a measurement takes if nothing else is asked for, and how many runs it then has in
/// any case.
const BUDGET: (Duration, usize) = (Duration::from_secs(2), 5);

pub(crate) struct Row {
    op: String,
    shape: [usize; 2],
    dtype: DType,
    /// By the device's timestamps where it has them, in the same clock as the copy.
    median: Duration,
    copy: Duration,
    wall: Duration,
    has_timestamps: bool,
    /// The bytes of the arrays that the operation must read and write once.
    bytes: u64,
    traffic: Option<Traffic>,
}

impl Row {
    pub(crate) fn op(&self) -> &str {
        &self.op
    }

    pub(crate) fn classes(&self) -> usize {
        self.shape[1]
    }

    pub(crate) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.median.as_secs_f64() / 1e9
    }

    pub(crate) fn copy_gb_per_s(&self) -> f64 {
        let logits = self.shape[0] * self.shape[1] * self.dtype.size();
        logits as f64 * 2.0 / self.copy.as_secs_f64() / 1e9
    }

    /// Bytes that the kernels move over those that they must; the CPU counts none.
    fn traffic_ratio(&self) -> Option<f64> {
        self.traffic.map(|Traffic { needed, moved, .. }| moved as f64 / needed as f64)
    }
}

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    match options.dtype {
        DTypeName::F32 => run_with(options, |x| x),
        DTypeName::F16 => run_with(options, f16::from_f32),
        DTypeName::Bf16 => run_with(options, bf16::from_f32),
    }
}

/// With logits of a type, to which `narrow` brings them.
fn run_with<T: Element<Row = f32>>(
    options: &Options,
    narrow: fn(f32) -> T,
) -> Result<(), CliError> {
    let ops: Vec<Operation> = options.ops.iter().copied().flatten().copied().collect();
    // Options are checked by operations over no rows at all, before a device is opened and the
    // first of them is timed.
    for &RowsByClasses(shape) in &options.shapes {
        logits::Shape::from(shape).elements()?;
        let nothing = Inputs::<T>::empty(options, shape[1])?;
        for &op in &ops {
            verify::compute(&Device::cpu(), nothing.timed(op).operation, &nothing)?;
        }
    }
    let [mut plot_file] = output::create([options.plot.as_deref()], &options.common.inputs())?;
    let device = &options.common.open()?;
    let described = options.described();
    let mut rows = Vec::new();
    let bar = progress((options.shapes.len() * ops.len()) as u64, "measurements");
    for &RowsByClasses(shape) in &options.shapes {
        let inputs = Inputs::new(options, shape, narrow)?;
        if rows.is_empty() && !options.common.json {
            stdio::print(format_args!(
                "{device}\n{}{described}",
                if described.is_empty() { "" } else { "with " }
            ))?;
            stdio::print(format_args!(
                "{:<22} {:>14} {:>11} {:>8} {:>11} {:>8} {:>11} {:>8}",
                "op", "shape", "median ms", "GB/s", "copy ms", "copies", "wall ms", "traffic"
            ))?;
        }
        for &op in &ops {
            let row = measure(device, op, &inputs)?;
            bar.suspend(|| stdio::print(describe(&row, device, &described, options.common.json)))?;
            rows.push(row);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if !options.common.json {
        let clock = if rows.iter().all(|row| row.has_timestamps) {
            "the device's timestamps"
        } else {
            "wall clock"
        };
        let arrays = "arrays of the logits' shape, read once and written once";
        stdio::print(format_args!(
            "\nmedian and copy by {clock}; GB/s: {arrays};\n\
             copies: median / copy; traffic: bytes that the kernels move / bytes that they must."
        ))?;
    }
    if let Some(file) = &mut plot_file {
        let title = format!("{} ({}), {}", device.name(), device.backend(), T::DTYPE);
        file.write_text(&plot::draw(&rows, &title)?)?;
    }
    output::commit(plot_file)
}

fn measure<T: Element<Row = f32>>(
    device: &Device,
    operation: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Row, CliError> {
    let (shape, timed) = (inputs.shape, &inputs.timed(operation));
    if let Some(row) = verify::first_wrong(device, timed, inputs)? {
        let [rows, classes] = shape;
        return Err(CliError::Usage(format!(
            "{operation} of {rows}x{classes} is wrong in row {row}; nothing was timed"
        )));
    }
    let (x, targets) = (Logits::new(&inputs.logits, shape)?, inputs.targets());
    let mut watch = Stopwatch::new(device, timed.operation, &inputs.loss, x, targets)?;
    let (budget, least) =
        inputs.options.budget.map_or(BUDGET, |budget| (Duration::from_millis(budget), 1));
    let is_enough =
        |runs: usize, spent: Duration| runs >= RUNS || (runs >= least && spent >= budget);
    let mut spent = Duration::ZERO;
    // The first runs touch fresh pages and compile pipelines.
    for nth in 1..=2 {
        spent += watch.copy()?.wall + watch.operation()?.wall;
        if is_enough(nth, spent) {
            break;
        }
    }
    watch.warm_up()?;
    let (mut copies, mut operations) = (Vec::new(), Vec::new());
    spent = Duration::ZERO;
    // Taken in turn, so that whatever slows the machine slows both; but a few at a time, after one
    // that is not counted, so that each finds in the caches what its own kind has left there: a
    // copy leaves lines to be written.
    while !is_enough(operations.len(), spent) {
        for (readings, is_copy) in [(&mut copies, true), (&mut operations, false)] {
            let mut read = || if is_copy { watch.copy() } else { watch.operation() };
            spent += read()?.wall;
            for _ in 0..AT_A_TIME {
                let reading = read()?;
                spent += reading.wall;
                readings.push(reading);
                if is_enough(readings.len(), spent) {
                    break;
                }
            }
        }
    }
    // One clock for both.
    let has_timestamps = copies.iter().chain(&operations).all(|reading| reading.device.is_some());
    let by = if has_timestamps { Reading::best } else { |reading: Reading| reading.wall };
    Ok(Row {
        op: operation.to_string(),
        shape,
        dtype: T::DTYPE,
        median: median(operations.iter().copied().map(by).collect()),
        copy: median(copies.into_iter().map(by).collect()),
        wall: median(operations.iter().map(|reading| reading.wall).collect()),
        has_timestamps,
        bytes: watch.bytes(),
        traffic: watch.traffic(),
    })
}

/// Formats a row as a line of the table or as a JSON object.
fn describe(row: &Row, device: &Device, options: &str, as_json: bool) -> String {
    let [rows, classes] = row.shape;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (median, copy, wall) = (ms(row.median), ms(row.copy), ms(row.wall));
    if as_json {
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
            "options": options,
        })
        .to_string()
    } else {
        let shape = format!("{rows}x{classes}");
        let traffic = row.traffic_ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        format!(
            "{:<22} {shape:>14} {median:>11.3} {:>8.2} {copy:>11.3} {:>8.2} {wall:>11.3} {traffic:>8}",
            row.op(),
            row.gb_per_s(),
            median / copy,
        )
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
