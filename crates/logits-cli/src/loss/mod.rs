//! `logits loss`: from files of logits and targets to a number, and to files of gradients and
//! probabilities.

mod batches;
mod evaluate;
mod inputs;
mod outputs;
mod sum;

use std::path::{Path, PathBuf};

use logits::{CrossEntropy, Device, Element, Logits, Reduction, Shape, weight_unit};
use serde_json::json;

use crate::memory::resize;
use crate::npy::{Float, Reader};
use crate::stdio::{self, json_number, progress};
use crate::{CliError, Common, output};
use batches::Batches;
use evaluate::{Buffers, Evaluation};
use inputs::{Totals, read_weight, survey_targets};
use outputs::{OutputFiles, Outputs, Results};
use sum::SumOfRows;

const RESULTS: &str = "\
--json prints one object: loss, rows, counted_rows, accuracy, perplexity, device, backend, fell_back (null, or why the CPU took over), and with \
--top-k top_k and top_k_accuracy. A number that is not finite is the string \"NaN\", \"inf\" or \"-inf\".

The exit code is 0, or 2 after an error, which is one line on standard error.";

#[derive(clap::Args)]
#[command(after_help = format!("{}\n\n{RESULTS}", outputs::FILES))]
pub(crate) struct Options {
    /// Logits [rows, classes] or [n, classes, d1, ...]: float16, float32 or float64, which only the
    /// CPU computes
    #[arg(long, value_name = "X.npy")]
    logits: PathBuf,
    /// Targets [rows] or [n, d1, ...] of any integer type, or probabilities of the shape of the
    /// logits
    #[arg(long, value_name = "Y.npy")]
    targets: PathBuf,
    #[command(flatten)]
    output_files: OutputFiles,
    /// How the losses of the rows are reduced to the number printed; with none it is their sum
    #[arg(long, value_enum, default_value = "mean")]
    reduction: ReductionName,
    /// Rows with these targets count in no loss, gradient or accuracy; separated by commas, in
    /// place of the default
    #[arg(
        long,
        value_name = "I",
        default_value = "-100",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    ignore_index: Vec<i64>,
    /// The part of each target that is spread evenly over all classes, 0 to 1
    #[arg(long, value_name = "E", default_value_t = 0.0, allow_hyphen_values = true)]
    label_smoothing: f32,
    /// Add Z times the squared log-sum-exp of each row to its loss
    #[arg(long, value_name = "Z", default_value_t = 0.0, allow_hyphen_values = true)]
    z_loss: f32,
    /// Focal loss: multiply the loss of each row by (1 - p)^G, p the probability of its target; for
    /// targets that are classes, without label smoothing
    #[arg(long, value_name = "G", default_value_t = 0.0, allow_hyphen_values = true)]
    focal_gamma: f32,
    /// Cap the logits softly: S * tanh(x / S), after the scale
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    softcap: Option<f32>,
    /// Multiply the logits by A, before the cap; 1 / T for a temperature T
    #[arg(long, value_name = "A", default_value_t = 1.0, allow_hyphen_values = true)]
    logit_scale: f32,
    /// A weight for each class [classes], 0 to 3.4e38: float16, float32 or float64
    #[arg(long, value_name = "W.npy")]
    weight: Option<PathBuf>,
    /// Also print how often the target is among the K most likely classes, K at most 64
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum ReductionName {
    Mean,
    Sum,
    None,
}

impl Options {
    /// The options of the loss as given. [`loss_of_batches`] adds the reduction and the weights.
    fn loss(&self) -> CrossEntropy {
        let loss = CrossEntropy::default()
            .ignore_indices(self.ignore_index.clone())
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .focal_gamma(self.focal_gamma)
            .logit_scale(self.logit_scale);
        match self.softcap {
            Some(cap) => loss.softcap(cap),
            None => loss,
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    // Files first: a device takes a while to open.
    let logits = Reader::open(&options.logits)?;
    logits.expect_floats()?;
    let dimensions = logits.shape().to_vec();
    if dimensions.is_empty() {
        return Err(logits
            .error("a single number, where [rows, classes] or [n, classes, d1, ...] is needed"));
    }
    let shape = Shape::of_dimensions(&dimensions).map_err(|error| logits.error(error))?;
    shape.elements().map_err(|error| logits.error(error))?;
    // The library checks the options as given, on a batch of no rows.
    let nothing = Logits::<f32>::new(&[], [0, shape.classes()])?;
    Device::cpu().cross_entropy(&options.loss(), nothing, &[0_i64; 0]).loss()?;
    if let Some(k) = options.top_k {
        Device::cpu().top_k(nothing, k).to_vec()?;
    }
    let inputs = [&options.logits, &options.targets].into_iter().chain(&options.weight);
    let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).chain(options.common.inputs()).collect();
    let outputs = options.output_files.create(&dimensions, &inputs)?;
    let weight =
        options.weight.as_deref().map(|path| read_weight(path, shape.classes())).transpose()?;
    let mut targets = Reader::open(&options.targets)?;
    let totals =
        survey_targets(&mut targets, &options.ignore_index, &dimensions, weight.as_deref())?;
    let device = options.common.open()?;
    let files = Files { logits, targets, outputs };
    // A GPU that was asked for refuses f64; a device that was chosen automatically falls back to
    // the CPU.
    if files.logits.is_double() {
        run_with::<f64>(options, &device, files, weight, totals)
    } else {
        run_with::<f32>(options, &device, files, weight, totals)
    }
}

/// The checked inputs and the open outputs.
struct Files {
    logits: Reader,
    targets: Reader,
    outputs: Outputs,
}

/// Evaluates all batches in logits of the type `T`.
fn run_with<T: Float>(
    options: &Options,
    device: &Device,
    files: Files,
    weight: Option<Vec<f64>>,
    totals: Totals,
) -> Result<(), CliError>
where
    T::Row: Float,
{
    let Files { logits, targets, outputs } = files;
    let batches = Batches::new(logits.shape(), logits.is_fortran() || targets.is_fortran());
    let scale = weight
        .as_ref()
        .map_or(1.0, |weight| weight_scale(options, weight, &totals, targets.is_float()));
    let loss = loss_of_batches(options, weight.as_deref(), &totals, scale)?;
    let rows: usize = batches.row_shape().iter().product();
    let losses = SumOfRows::new("the losses of the rows", rows, batches.in_order())?;
    let mut evaluation = Evaluation::<T> {
        device,
        loss,
        scale,
        top_k: options.top_k,
        logits,
        targets,
        outputs,
        results: Results { losses, ..Results::default() },
        buffers: Buffers::default(),
    };
    let bar = progress(rows as u64, "rows");
    for batch in batches.iter() {
        evaluation.evaluate(&batches, &batch)?;
        bar.inc(batch.shape.row_count() as u64);
    }
    bar.finish_and_clear();
    let Evaluation { outputs, results, .. } = evaluation;
    // The outputs are complete here. They get their names after the result is printed.
    let outputs = outputs.finish()?;
    print_results(options, device, rows, &totals, scale, results)?;
    output::commit(outputs)
}

/// The power of two that class weights, and so losses, are multiplied by: one with which f32 holds
/// the weights that count, and their sums.
fn weight_scale(options: &Options, weight: &[f64], totals: &Totals, is_soft: bool) -> f64 {
    // Smoothing brings in the weights of all classes.
    let of_all = weight.iter().copied().fold(0.0, f64::max);
    let is_smoothed = options.label_smoothing > 0.0;
    let largest = if is_smoothed { of_all } else { totals.largest_weight };
    let is_tiny = largest > 0.0 && largest < f64::from(f32::MIN_POSITIVE);
    let up = if is_tiny { (-largest.log2().floor()).min(1023.0).exp2() } else { 1.0 };
    let is_mean = options.reduction == ReductionName::Mean && totals.weight > 0.0;
    if !is_mean || (is_soft && is_tiny) {
        // The z-loss is not tiny because the weights are.
        return if options.z_loss == 0.0 { up } else { 1.0 };
    }
    let total = totals.weight * up;
    let largest = if is_smoothed { of_all * up } else { total };
    up * weight_unit(total, totals.counted_rows as f64, 1.0, largest)
}

/// The loss of a batch, summed and multiplied by `scale`.
fn loss_of_batches(
    options: &Options,
    weight: Option<&[f64]>,
    totals: &Totals,
    scale: f64,
) -> Result<CrossEntropy, CliError> {
    // Each batch returns the losses of its rows. Its gradient depends on the other batches only
    // through `totals`.
    let is_mean = options.reduction == ReductionName::Mean;
    let mut loss = options.loss().reduction(Reduction::Sum);
    // The z-loss is averaged over the counted rows, the rest over their total weight: it is
    // multiplied by their mean weight, in f64 as in a call for all rows.
    let is_weighted = is_mean && totals.weight > 0.0;
    let mean_weight = if is_weighted { totals.weight / totals.counted_rows as f64 } else { 1.0 };
    loss = loss.z_loss_factor(mean_weight * scale);
    if is_mean && !is_weighted {
        // Where nothing is counted, gradients of the mean of each batch are those of the whole.
        loss = loss.reduction(Reduction::Mean);
    } else {
        let divisor = if is_weighted { totals.weight * scale } else { scale };
        loss = loss.upstream_gradient((1.0 / divisor) as f32);
    }
    if let Some(weight) = weight {
        let mut scaled = Vec::new();
        resize(&mut scaled, "the weights", weight.len())?;
        // A weight beyond f32 is that of a class that does not count.
        let times = |weight: &f64| (weight * scale).min(f64::from(f32::MAX)) as f32;
        scaled.iter_mut().zip(weight).for_each(|(to, weight)| *to = times(weight));
        loss = loss.weight(scaled);
    }
    Ok(loss)
}

fn print_results<S: Element>(
    options: &Options,
    device: &Device,
    rows: usize,
    totals: &Totals,
    scale: f64,
    results: Results<S>,
) -> Result<(), CliError> {
    let Results { losses, correct, correct_in_top_k, fell_back } = results;
    let sum = losses.total()?;
    let mean = if totals.weight == 0.0 { f64::NAN } else { sum / (totals.weight * scale) };
    let value = if options.reduction == ReductionName::Mean { mean } else { sum / scale };
    let fraction = |count: u64| count as f64 / totals.counted_rows as f64;
    let (accuracy, top_k_accuracy) = (fraction(correct), fraction(correct_in_top_k));
    let perplexity = mean.exp();
    if options.common.json {
        let mut object = json!({
            "loss": json_number(value),
            "rows": rows,
            "counted_rows": totals.counted_rows,
            "accuracy": json_number(accuracy),
            "perplexity": json_number(perplexity),
            "device": device.name(),
            "backend": device.backend(),
            "fell_back": fell_back,
        });
        if let Some(k) = options.top_k {
            object["top_k"] = k.into();
            object["top_k_accuracy"] = json_number(top_k_accuracy);
        }
        return stdio::print_json(&object);
    }
    let mut lines = vec![
        format!("loss        {value}"),
        format!("rows        {rows}, {} counted", totals.counted_rows),
        format!("accuracy    {accuracy}"),
    ];
    lines.extend(options.top_k.map(|k| format!("top {k:<7} {top_k_accuracy}")));
    lines.push(format!("perplexity  {perplexity}"));
    lines.push(format!("device      {device}"));
    lines.extend(fell_back.map(|reason| format!("fell back   {reason}")));
    stdio::print(lines.join("\n"))
}
