//! `logits loss`: from files of logits and targets to a number, and to files of gradients and probabilities.

use std::ops::Range;
use std::path::{Path, PathBuf};

use logits::{CrossEntropy, Device, Error, Logits, LogitsMut, Reduction, Shape, Targets, weight_unit};
use serde_json::json;

use crate::npy::{Float, Reader, Writer};
use crate::{CliError, Common, json_number, progress};

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

/// Elements of the logits that are in memory at a time, but for a single row that is longer.
const BATCH_ELEMENTS: usize = 4 << 20;

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    // Files first: a device takes a while to open.
    let logits = Reader::open(&options.logits)?;
    logits.expect_floats()?;
    let dimensions = sizes(&logits)?;
    if dimensions.is_empty() {
        return Err(logits.error("a single number, where [rows, classes] or [n, classes, d1, ...] is needed"));
    }
    let shape = Shape::of_dimensions(&dimensions).map_err(|error| logits.error(error))?;
    shape.elements().map_err(|error| logits.error(error))?;
    let weight =
        options.weight.as_deref().map(|path| read_weight(path, shape.classes(), options.reduction)).transpose()?;
    let totals = survey_targets(options, shape, &dimensions, weight.as_ref().map(|weight| &weight.values[..]))?;
    // Options are checked as they were given, and before any file is made, by the loss of no rows at all.
    let nothing = Logits::<f32>::new(&[], [0, shape.classes()])?;
    Device::cpu().cross_entropy(&options.loss(), nothing, &[0_i64; 0])?;
    if let Some(k) = options.top_k {
        Device::cpu().top_k_vec(nothing, k)?;
    }
    let outputs = Outputs::create(options, logits.shape(), &rows_of(logits.shape()))?;
    let device = options.common.open()?;
    // A GPU that was asked for refuses f64; a device that was chosen automatically falls back to the CPU.
    if logits.is_double() {
        evaluate::<f64>(options, &device, logits, shape, weight, totals, outputs)
    } else {
        evaluate::<f32>(options, &device, logits, shape, weight, totals, outputs)
    }
}

fn evaluate<T: Float>(
    options: &Options,
    device: &Device,
    logits: Reader,
    shape: Shape,
    weight: Option<Weights>,
    totals: Totals,
    outputs: Outputs,
) -> Result<(), CliError>
where
    T::Row: Float,
{
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
    let targets = Reader::open(&options.targets)?;
    let mut evaluation = Evaluation::<T> {
        device,
        loss,
        unit,
        unit_of_rows: unit * weight.map_or(1.0, |weight| weight.unit),
        shape,
        top_k: options.top_k,
        is_soft: targets.is_float(),
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
    let mut done = 0;
    while done < rows {
        // Whole blocks, or where one is too large some of its columns.
        let (inner, most) = (shape.inner(), (BATCH_ELEMENTS / shape.classes()).max(1));
        let count = if most >= inner { most / inner * inner } else { most.min(inner - done % inner) };
        let count = count.min(rows - done);
        evaluation.batch(done..done + count)?;
        done += count;
        bar.set_position(done as u64);
    }
    bar.finish_and_clear();
    let Evaluation { outputs, found, .. } = evaluation;
    outputs.finish()?;

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
        println!("{object}");
    } else {
        println!("loss        {value}");
        println!("rows        {rows}, {} counted", totals.counted_rows);
        println!("accuracy    {accuracy}");
        if let Some(k) = options.top_k {
            println!("top {k:<7} {among}");
        }
        println!("perplexity  {perplexity}");
        println!("device      {device}");
        if let Some(reason) = &found.fell_back {
            println!("fell back   {reason}");
        }
    }
    Ok(())
}

fn sizes(reader: &Reader) -> Result<Vec<usize>, CliError> {
    let size = |&size: &u64| {
        usize::try_from(size).map_err(|_| reader.error(format!("a size of {size} is beyond this machine")))
    };
    reader.shape().iter().map(size).collect()
}

/// The dimensions of logits without that of the classes.
fn rows_of<S: Copy>(dimensions: &[S]) -> Vec<S> {
    let classes_at = usize::from(dimensions.len() > 1);
    let others = dimensions.iter().enumerate().filter(|&(at, _)| at != classes_at);
    others.map(|(_, &size)| size).collect()
}

/// The weights of the classes, multiplied by a power of two.
struct Weights {
    values: Vec<f32>,
    unit: f64,
}

fn read_weight(path: &Path, classes: usize, reduction: ReductionName) -> Result<Weights, CliError> {
    let mut reader = Reader::open(path)?;
    reader.expect_floats()?;
    if *reader.shape() != [classes as u64] {
        return Err(reader.error(format!("weights of shape {:?}, where [{classes}] is needed", reader.shape())));
    }
    let mut weight = Vec::new();
    resize(&mut weight, "the weights", classes)?;
    reader.floats(&mut weight)?;
    let is_weight = |value: &f64| (0.0..=f64::from(f32::MAX)).contains(value);
    if let Some((class, &value)) = weight.iter().enumerate().find(|(_, value)| !is_weight(value)) {
        return Err(
            reader.error(format!("the weight of class {class} is {value}; weights must be between 0 and 3.4028235e38"))
        );
    }
    // A mean depends on their ratios, which f64 holds where f32 holds only zeros.
    let largest = weight.iter().copied().fold(0.0, f64::max);
    let is_tiny = reduction == ReductionName::Mean && largest > 0.0 && largest < f64::from(f32::MIN_POSITIVE);
    let unit = if is_tiny { (-largest.log2().floor()).min(1023.0).exp2() } else { 1.0 };
    let mut values = Vec::new();
    resize(&mut values, "the weights", classes)?;
    values.iter_mut().zip(weight).for_each(|(to, weight)| *to = (weight * unit) as f32);
    Ok(Weights { values, unit })
}

/// What a first pass over the targets finds.
struct Totals {
    counted_rows: u64,
    weight: f64,
}

/// Numbers of the targets that are looked at at a time.
const SURVEYED: usize = 1 << 16;

/// Checks every target before anything is computed or written.
fn survey_targets(
    options: &Options,
    shape: Shape,
    dimensions: &[usize],
    weight: Option<&[f32]>,
) -> Result<Totals, CliError> {
    let mut reader = Reader::open(&options.targets)?;
    let (found, wanted) = (sizes(&reader)?, rows_of(dimensions));
    let (rows, classes) = (shape.row_count(), shape.classes());
    if reader.is_float() {
        reader.expect_floats()?;
        if found != dimensions {
            let needed = format!("probabilities {dimensions:?} or integers {wanted:?} are needed");
            return Err(reader.error(format!("targets of shape {found:?}, where {needed}")));
        }
        let count = shape.elements()?;
        let mut batch = vec![0.0_f64; count.min(SURVEYED)];
        for start in (0..count).step_by(SURVEYED) {
            let batch = &mut batch[..SURVEYED.min(count - start)];
            reader.floats(batch)?;
            if let Some(at) = batch.iter().position(|q| !(0.0..=f64::from(f32::MAX)).contains(q)) {
                let (inner, place) = (shape.inner(), start + at);
                let (outer, within) = (place / (classes * inner), place % (classes * inner));
                let (row, class) = (outer * inner + within % inner, within / inner);
                return Err(reader.error(Error::Probability { row, class, value: batch[at] }));
            }
        }
        return Ok(Totals { counted_rows: rows as u64, weight: rows as f64 });
    }
    reader.expect_integers()?;
    if found != wanted {
        return Err(reader.error(format!("targets of shape {found:?}, where {wanted:?} is needed")));
    }
    let ignored = &options.ignore_index;
    let mut totals = Totals { counted_rows: 0, weight: 0.0 };
    let mut batch = vec![0; rows.min(SURVEYED)];
    let mut done = 0;
    while done < rows {
        let batch = &mut batch[..(rows - done).min(SURVEYED)];
        reader.integers(batch)?;
        for (nth, &target) in batch.iter().enumerate() {
            if ignored.iter().any(|&index| i128::from(index) == target) {
                continue;
            }
            let class = usize::try_from(target).ok().filter(|&class| class < classes).ok_or_else(|| {
                reader.error(Error::TargetOutOfRange { row: done + nth, target, classes, ignored: ignored.clone() })
            })?;
            totals.counted_rows += 1;
            totals.weight += weight.map_or(1.0, |weight| weight[class].into());
        }
        done += batch.len();
    }
    Ok(totals)
}

/// The files asked for.
#[derive(Default)]
struct Outputs {
    grad: Option<Writer>,
    probs: Option<Writer>,
    log_probs: Option<Writer>,
    per_row: Option<Writer>,
}

impl Outputs {
    fn create(options: &Options, elements: &[u64], rows: &[u64]) -> Result<Self, CliError> {
        let paths = [&options.grad, &options.probs, &options.log_probs, &options.per_row];
        for (nth, path) in paths.iter().enumerate() {
            if path.is_some() && paths[..nth].contains(path) {
                return Err(CliError::Usage("two results would go to the same file".to_owned()));
            }
        }
        let create =
            |path: &Option<PathBuf>, shape: &[u64]| path.as_deref().map(|path| Writer::create(path, shape)).transpose();
        Ok(Self {
            grad: create(&options.grad, elements)?,
            probs: create(&options.probs, elements)?,
            log_probs: create(&options.log_probs, elements)?,
            per_row: create(&options.per_row, rows)?,
        })
    }

    fn finish(self) -> Result<(), CliError> {
        [self.grad, self.probs, self.log_probs, self.per_row].into_iter().flatten().try_for_each(Writer::finish)
    }
}

/// What has been found so far.
#[derive(Default)]
struct Found {
    sum: f64,
    correct: u64,
    among: u64,
    fell_back: Option<String>,
}

impl Found {
    fn note(&mut self, fell_back: Option<String>) {
        self.fell_back = self.fell_back.take().or(fell_back);
    }
}

/// What is evaluated, and the memory of a batch.
struct Evaluation<'e, T> {
    device: &'e Device,
    /// With weights that are multiplied by `unit_of_rows`, by `unit` of it after their total was taken.
    loss: CrossEntropy,
    unit: f64,
    unit_of_rows: f64,
    shape: Shape,
    top_k: Option<usize>,
    is_soft: bool,
    logits: Reader,
    targets: Reader,
    outputs: Outputs,
    found: Found,
    x: Vec<T>,
    elements: Vec<T>,
    probabilities: Vec<T>,
    integers: Vec<i128>,
}

/// The shape of whole blocks, or of some columns of one.
fn part_of(shape: Shape, rows: &Range<usize>) -> Shape {
    let inner = shape.inner().min(rows.len());
    Shape::new(rows.len() / inner, shape.classes(), inner)
}

/// Where those are in a file, one stretch after the other, as places and lengths.
fn stretches(shape: Shape, rows: &Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let (inner, classes) = (shape.inner(), shape.classes());
    let start = rows.start / inner * classes * inner + rows.start % inner;
    let (count, length) = if rows.len() < inner { (classes, rows.len()) } else { (1, rows.len() * classes) };
    (0..count).map(move |nth| (start + nth * inner, length))
}

/// Changes the length of `values`; what is new is 0.
fn resize<T: Clone + Default>(values: &mut Vec<T>, what: &'static str, length: usize) -> Result<(), Error> {
    let bytes = length.saturating_mul(size_of::<T>());
    let refused = |_| Error::OutOfMemory { what, bytes };
    values.try_reserve_exact(length.saturating_sub(values.len())).map_err(refused)?;
    values.resize(length, T::default());
    Ok(())
}

fn read<T: Float>(file: &mut Reader, shape: Shape, rows: &Range<usize>, into: &mut Vec<T>) -> Result<(), CliError> {
    resize(into, "the rows of a batch", rows.len() * shape.classes())?;
    let mut at = 0;
    for (start, length) in stretches(shape, rows) {
        file.seek(start)?;
        file.floats(&mut into[at..at + length])?;
        at += length;
    }
    Ok(())
}

fn write<T: Float>(file: &mut Writer, shape: Shape, rows: &Range<usize>, values: &[T]) -> Result<(), CliError> {
    let mut at = 0;
    for (start, length) in stretches(shape, rows) {
        file.seek(start)?;
        file.write(&values[at..at + length])?;
        at += length;
    }
    Ok(())
}

impl<T: Float> Evaluation<'_, T>
where
    T::Row: Float,
{
    fn batch(&mut self, rows: Range<usize>) -> Result<(), CliError> {
        let Self { device, loss, unit, unit_of_rows, shape, outputs, found, x, elements, .. } = self;
        let (shape, part) = (*shape, part_of(*shape, &rows));
        read(&mut self.logits, shape, &rows, x)?;
        let mut classes_of: Vec<i64> = Vec::new();
        let targets = if self.is_soft {
            read(&mut self.targets, shape, &rows, &mut self.probabilities)?;
            Targets::probabilities(&self.probabilities)
        } else {
            resize(&mut self.integers, "the targets of a batch", rows.len())?;
            self.targets.integers(&mut self.integers)?;
            // Those that do not fit were refused by the survey.
            classes_of.extend(self.integers.iter().map(|&target| target as i64));
            Targets::from(&classes_of)
        };
        let view = Logits::new(x, part)?;
        let k = self.top_k.unwrap_or(1);
        let accuracy = device.accuracy(loss, view, targets, 1)?;
        found.correct += accuracy.correct as u64;
        found.note(accuracy.fell_back);
        if k > 1 {
            let accuracy = device.accuracy(loss, view, targets, k)?;
            found.among += accuracy.correct as u64;
            found.note(accuracy.fell_back);
        } else {
            found.among = found.correct;
        }

        let seen = view.as_seen_by(loss)?;
        let needs_elements = outputs.probs.is_some() || outputs.log_probs.is_some();
        resize(elements, "the probabilities of a batch", if needs_elements { x.len() } else { 0 })?;
        if let Some(file) = &mut outputs.probs {
            found.note(device.softmax(seen, elements)?.fell_back);
            write(file, shape, &rows, elements)?;
        }
        if let Some(file) = &mut outputs.log_probs {
            found.note(device.log_softmax(seen, elements)?.fell_back);
            write(file, shape, &rows, elements)?;
        }
        let mut out = match &mut outputs.grad {
            None => device.cross_entropy(loss, view, targets)?,
            // Last, for it takes the place of the logits.
            Some(file) => {
                let out = device.cross_entropy_grad_in_place(loss, LogitsMut::new(x, part)?, targets)?;
                write(file, shape, &rows, x)?;
                out
            }
        };
        if let Some(file) = &mut outputs.per_row {
            out.per_row.iter_mut().for_each(|loss| *loss = T::Row::of((*loss).into() / *unit_of_rows));
            file.write(&out.per_row)?;
        }
        found.sum += out.loss / *unit;
        found.note(out.fell_back);
        Ok(())
    }
}
