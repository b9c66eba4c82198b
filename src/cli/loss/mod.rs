//! `logits loss`: from files of logits and targets to a number, and to files of gradients and probabilities.

mod evaluate;
mod inputs;

use std::path::{Path, PathBuf};

use logits::{CrossEntropy, Device, Logits, Reduction, Shape, weight_unit};
use serde_json::json;

use crate::batches::{Batches, rows_of};
use crate::npy::{Float, Reader, Writer};
use crate::{CliError, Common, json_number, output, progress, stdio};
use evaluate::{Evaluation, Found, Outputs};
use inputs::{Totals, Weights, read_weight, survey_targets};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Logits [rows, classes] or [n, classes, d1, ...]: f16, f32, or f64, which is computed on the CPU: a GPU named by --device refuses it
    #[arg(long, value_name = "X.npy")]
    logits: PathBuf,
    /// Targets [rows] or [n, d1, ...] of any integer type, or probabilities of the shape of the logits
    #[arg(long, value_name = "Y.npy")]
    targets: PathBuf,
    /// Where to write the gradient with respect to the logits, f32
    #[arg(long, value_name = "G.npy")]
    grad: Option<PathBuf>,
    /// Where to write the probabilities, after scale and cap, f32
    #[arg(long, value_name = "P.npy")]
    probs: Option<PathBuf>,
    /// Where to write the log-probabilities, after scale and cap, f32
    #[arg(long, value_name = "L.npy")]
    log_probs: Option<PathBuf>,
    /// Where to write the loss of each row, f32
    #[arg(long, value_name = "R.npy")]
    per_row: Option<PathBuf>,
    /// What to make of the rows' losses; with none the number printed is their sum
    #[arg(long, value_enum, default_value = "mean")]
    reduction: ReductionName,
    /// The targets that mark a row as not counted, separated by commas
    #[arg(long, value_name = "I", default_value = "-100", value_delimiter = ',', allow_hyphen_values = true)]
    ignore_index: Vec<i64>,
    /// How much of each target is spread over all classes, 0 to 1
    #[arg(long, value_name = "E", default_value_t = 0.0)]
    label_smoothing: f32,
    /// How much the square of each row's log-sum-exp adds to the loss
    #[arg(long, value_name = "Z", default_value_t = 0.0)]
    z_loss: f32,
    /// Bounds the logits smoothly: S * tanh(x / S), after the scale
    #[arg(long, value_name = "S")]
    softcap: Option<f32>,
    /// What the logits are multiplied by first
    #[arg(long, value_name = "A", default_value_t = 1.0, allow_hyphen_values = true)]
    logit_scale: f32,
    /// A weight for each class [classes], 0 to 3.4e38: f16, f32 or f64
    #[arg(long, value_name = "W.npy")]
    weight: Option<PathBuf>,
    /// How often the target is among so many of the most likely classes, at most 64
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
    /// The options of the loss, but for what depends on other batches.
    fn loss(&self) -> CrossEntropy {
        let loss = CrossEntropy::default()
            .ignore_indices(self.ignore_index.clone())
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
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
    let dimensions = logits.shape();
    if dimensions.is_empty() {
        return Err(logits.error("a single number, where [rows, classes] or [n, classes, d1, ...] is needed"));
    }
    let shape = Shape::of_dimensions(dimensions).map_err(|error| logits.error(error))?;
    shape.elements().map_err(|error| logits.error(error))?;
    // Options are checked as they were given by the loss of no rows at all.
    let nothing = Logits::<f32>::new(&[], [0, shape.classes()])?;
    Device::cpu().cross_entropy(&options.loss(), nothing, &[0_i64; 0])?;
    if let Some(k) = options.top_k {
        Device::cpu().top_k_vec(nothing, k)?;
    }
    let outputs = create_outputs(options, dimensions)?;
    let weight =
        options.weight.as_deref().map(|path| read_weight(path, shape.classes(), options.reduction)).transpose()?;
    let mut targets = Reader::open(&options.targets)?;
    let values = weight.as_ref().map(|weight| &weight.values[..]);
    let totals = survey_targets(&mut targets, &options.ignore_index, dimensions, values)?;
    let device = options.common.open()?;
    let files = Files { logits, targets, shape, weight, totals, outputs };
    // A GPU that was asked for refuses f64; a device that was chosen automatically falls back to the CPU.
    if files.logits.is_double() {
        evaluate::<f64>(options, &device, files)
    } else {
        evaluate::<f32>(options, &device, files)
    }
}

/// Makes the files asked for, with their headers.
fn create_outputs(options: &Options, dimensions: &[usize]) -> Result<Outputs, CliError> {
    let inputs: Vec<&Path> = [&options.logits, &options.targets]
        .into_iter()
        .chain(&options.weight)
        .map(PathBuf::as_path)
        .chain(options.common.inputs())
        .collect();
    let paths = [&options.grad, &options.probs, &options.log_probs, &options.per_row];
    let given: Vec<&Path> = paths.into_iter().flatten().map(PathBuf::as_path).collect();
    let mut made = output::create(&given, &inputs)?.into_iter();
    let mut writer = |path: &Option<PathBuf>, shape: &[usize]| {
        path.as_ref().and_then(|_| made.next()).map(|output| Writer::new(output, shape)).transpose()
    };
    Ok(Outputs {
        grad: writer(&options.grad, dimensions)?,
        probs: writer(&options.probs, dimensions)?,
        log_probs: writer(&options.log_probs, dimensions)?,
        per_row: writer(&options.per_row, &rows_of(dimensions))?,
    })
}

/// What is read and written, checked and ready.
struct Files {
    logits: Reader,
    targets: Reader,
    shape: Shape,
    weight: Option<Weights>,
    totals: Totals,
    outputs: Outputs,
}

fn evaluate<T: Float>(options: &Options, device: &Device, files: Files) -> Result<(), CliError>
where
    T::Row: Float,
{
    let Files { logits, targets, shape, weight, totals, outputs } = files;
    // Batches are summed, so that a batch's gradient needs no knowledge of the others but their total weight.
    let is_mean = options.reduction == ReductionName::Mean;
    let mut loss = options.loss().reduction(Reduction::Sum);
    // A z-loss is a mean over the rows, the rest one over their weight.
    let is_weighed = is_mean && totals.weight > 0.0;
    let row_weight = if is_weighed { totals.weight / totals.counted_rows as f64 } else { 1.0 };
    let unit = match &weight {
        Some(Weights { values, .. }) if is_weighed => {
            let of_all = || values.iter().copied().fold(0.0, f32::max).into();
            let largest = if options.label_smoothing > 0.0 { of_all() } else { totals.weight };
            weight_unit(totals.weight, totals.counted_rows as f64, 1.0, largest)
        }
        _ => 1.0,
    };
    loss = loss.z_loss((f64::from(options.z_loss) * row_weight * unit) as f32);
    if is_weighed {
        loss = loss.upstream_gradient((1.0 / (totals.weight * unit)) as f32);
    } else if is_mean {
        // Over nothing the mean of any part is what the mean of the whole is.
        loss = loss.reduction(Reduction::Mean);
    }
    if let Some(weight) = &weight {
        let times = |weight: &f32| (f64::from(*weight) * unit).min(f64::from(f32::MAX)) as f32;
        loss = loss.weight(weight.values.iter().map(times).collect::<Vec<_>>());
    }

    let rows = shape.row_count();
    let batches = Batches::new(logits.shape(), logits.is_fortran() || targets.is_fortran());
    let mut evaluation = Evaluation::<T> {
        device,
        loss,
        unit,
        unit_of_rows: unit * weight.map_or(1.0, |weight| weight.unit),
        top_k: options.top_k,
        logits,
        targets,
        outputs,
        found: Found::default(),
        x: Vec::new(),
        elements: Vec::new(),
        probabilities: Vec::new(),
        integers: Vec::new(),
    };
    let bar = progress(rows as u64, "rows");
    for batch in batches.iter() {
        evaluation.batch(&batches, &batch)?;
        bar.inc(batch.shape.row_count() as u64);
    }
    bar.finish_and_clear();
    let Evaluation { outputs, found, .. } = evaluation;
    // Whole files, which have their names only once the result is out.
    let outputs = outputs.finish()?;

    let mean = if totals.weight == 0.0 { f64::NAN } else { found.sum / totals.weight };
    let value = if is_mean { mean } else { found.sum };
    let share = |count: u64| count as f64 / totals.counted_rows as f64;
    let (accuracy, among) = (share(found.correct), share(found.among));
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
            "fell_back": found.fell_back,
        });
        if let Some(k) = options.top_k {
            object["top_k"] = k.into();
            object["top_k_accuracy"] = json_number(among);
        }
        stdio::print(object)?;
    } else {
        let mut lines = vec![
            format!("loss        {value}"),
            format!("rows        {rows}, {} counted", totals.counted_rows),
            format!("accuracy    {accuracy}"),
        ];
        lines.extend(options.top_k.map(|k| format!("top {k:<7} {among}")));
        lines.push(format!("perplexity  {perplexity}"));
        lines.push(format!("device      {device}"));
        lines.extend(found.fell_back.map(|reason| format!("fell back   {reason}")));
        stdio::print(lines.join("\n"))?;
    }
    output::commit(outputs)
}
