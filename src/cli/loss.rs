//! `logits loss`: from files of logits and targets to a number, and to files of gradients and probabilities.

use std::path::{Path, PathBuf};

use logits::{CrossEntropy, Device, Error, Logits, LogitsMut, Reduction};
use serde_json::json;

use crate::npy::{Reader, Writer};
use crate::{CliError, Common, json_number, progress};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Logits [rows, classes]: f16, f32 or f64
    #[arg(long, value_name = "X.npy")]
    logits: PathBuf,
    /// Targets [rows]: any integer type
    #[arg(long, value_name = "Y.npy")]
    targets: PathBuf,
    /// Where to write the gradient with respect to the logits, f32
    #[arg(long, value_name = "G.npy")]
    grad: Option<PathBuf>,
    /// Where to write the probabilities, f32
    #[arg(long, value_name = "P.npy")]
    probs: Option<PathBuf>,
    /// Where to write the log-probabilities, f32
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
    /// A weight for each class [classes]: f16, f32 or f64
    #[arg(long, value_name = "W.npy")]
    weight: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum ReductionName {
    Mean,
    Sum,
    None,
}

/// Elements of the logits that are in memory at a time, but for a single row that is longer.
const BATCH_ELEMENTS: usize = 4 << 20;

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    // Files first: a device takes a while to open.
    let mut logits = Reader::open(&options.logits)?;
    logits.expect_floats()?;
    let &[rows, classes] = logits.shape() else {
        return Err(logits.error(format!("logits of shape {:?}, where [rows, classes] is needed", logits.shape())));
    };
    let shape = [to_usize(&logits, rows)?, to_usize(&logits, classes)?];
    logits::Shape::from(shape).elements().map_err(|error| logits.error(error))?;
    let weight = options.weight.as_deref().map(|path| read_weight(path, shape[1])).transpose()?;
    let totals = survey_targets(options, shape, weight.as_deref())?;
    // Options are checked as they were given, and before any file is made, by the loss of no rows at all.
    let given = CrossEntropy::default().label_smoothing(options.label_smoothing).z_loss(options.z_loss);
    Device::cpu().cross_entropy(&given, Logits::<f32>::new(&[], [0, shape[1]])?, &[0_i64; 0])?;
    let mut outputs = Outputs::create(options, rows, classes)?;
    let device = options.common.open()?;

    // Batches are summed, so that a batch's gradient needs no knowledge of the others but their total weight.
    let is_mean = options.reduction == ReductionName::Mean;
    let mut loss = CrossEntropy::default()
        .reduction(Reduction::Sum)
        .ignore_indices(options.ignore_index.clone())
        .label_smoothing(options.label_smoothing);
    // A z-loss is a mean over the rows, the rest one over their weight.
    let is_weighed = is_mean && totals.weight > 0.0;
    let row_weight = if is_weighed { totals.weight / totals.counted_rows as f64 } else { 1.0 };
    loss = loss.z_loss((f64::from(options.z_loss) * row_weight) as f32);
    if is_weighed {
        loss = loss.upstream_gradient((1.0 / totals.weight) as f32);
    } else if is_mean {
        // Over nothing the mean of any part is what the mean of the whole is.
        loss = loss.reduction(Reduction::Mean);
    }
    if let Some(weight) = weight {
        loss = loss.weight(weight);
    }

    let mut targets = Reader::open(&options.targets)?;
    let batch_rows = (BATCH_ELEMENTS / shape[1]).clamp(1, shape[0].max(1));
    let mut result = Evaluation::default();
    let bar = progress(rows, "rows");
    let mut done = 0;
    while done < shape[0] {
        let count = batch_rows.min(shape[0] - done);
        result.batch(&device, &loss, [count, shape[1]], &mut logits, &mut targets, &mut outputs)?;
        done += count;
        bar.set_position(done as u64);
    }
    bar.finish_and_clear();
    outputs.finish()?;

    let mean = if totals.weight == 0.0 { f64::NAN } else { result.sum / totals.weight };
    let value = if is_mean { mean } else { result.sum };
    let accuracy = result.correct as f64 / totals.counted_rows as f64;
    let perplexity = mean.exp();
    if options.common.json {
        println!(
            "{}",
            json!({
                "loss": json_number(value),
                "rows": rows,
                "counted_rows": totals.counted_rows,
                "accuracy": json_number(accuracy),
                "perplexity": json_number(perplexity),
                "device": device.name(),
                "backend": device.backend(),
                "fell_back": result.fell_back,
            })
        );
    } else {
        println!("loss        {value}");
        println!("rows        {rows}, {} counted", totals.counted_rows);
        println!("accuracy    {accuracy}");
        println!("perplexity  {perplexity}");
        println!("device      {device}");
        if let Some(reason) = &result.fell_back {
            println!("fell back   {reason}");
        }
    }
    Ok(())
}

fn to_usize(reader: &Reader, value: u64) -> Result<usize, CliError> {
    usize::try_from(value).map_err(|_| reader.error(format!("a size of {value} is beyond this machine")))
}

fn read_weight(path: &Path, classes: usize) -> Result<Vec<f32>, CliError> {
    let mut reader = Reader::open(path)?;
    reader.expect_floats()?;
    if *reader.shape() != [classes as u64] {
        return Err(reader.error(format!("weights of shape {:?}, where [{classes}] is needed", reader.shape())));
    }
    let mut weight = vec![0.0; classes];
    reader.floats(&mut weight)?;
    if let Some((class, &value)) = weight.iter().enumerate().find(|(_, value)| !value.is_finite() || **value < 0.0) {
        return Err(reader.error(Error::Weight { class, value }));
    }
    Ok(weight)
}

/// What a first pass over the targets finds.
struct Totals {
    counted_rows: u64,
    weight: f64,
}

/// Checks every target before anything is computed or written.
fn survey_targets(options: &Options, [rows, classes]: [usize; 2], weight: Option<&[f32]>) -> Result<Totals, CliError> {
    let mut reader = Reader::open(&options.targets)?;
    reader.expect_integers()?;
    if *reader.shape() != [rows as u64] {
        return Err(reader.error(format!("targets of shape {:?}, where [{rows}] is needed", reader.shape())));
    }
    let ignored = &options.ignore_index;
    let mut totals = Totals { counted_rows: 0, weight: 0.0 };
    let mut batch = vec![0; rows.min(1 << 16)];
    let mut done = 0;
    while done < rows {
        let batch = &mut batch[..(rows - done).min(1 << 16)];
        reader.integers(batch)?;
        for (nth, &target) in batch.iter().enumerate() {
            if ignored.iter().any(|&index| i128::from(index) == target) {
                continue;
            }
            let class = usize::try_from(target).ok().filter(|&class| class < classes).ok_or_else(|| {
                reader.error(Error::TargetOutOfRange { row: done + nth, target, classes, ignored: ignored.clone() })
            })?;
            totals.counted_rows += 1;
            totals.weight += weight.map_or(1.0, |weight| f64::from(weight[class]));
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
    fn create(options: &Options, rows: u64, classes: u64) -> Result<Self, CliError> {
        let paths = [&options.grad, &options.probs, &options.log_probs, &options.per_row];
        for (nth, path) in paths.iter().enumerate() {
            if path.is_some() && paths[..nth].contains(path) {
                return Err(CliError::Usage("two results would go to the same file".to_owned()));
            }
        }
        let create =
            |path: &Option<PathBuf>, shape: &[u64]| path.as_deref().map(|path| Writer::create(path, shape)).transpose();
        Ok(Self {
            grad: create(&options.grad, &[rows, classes])?,
            probs: create(&options.probs, &[rows, classes])?,
            log_probs: create(&options.log_probs, &[rows, classes])?,
            per_row: create(&options.per_row, &[rows])?,
        })
    }

    fn finish(self) -> Result<(), CliError> {
        [self.grad, self.probs, self.log_probs, self.per_row].into_iter().flatten().try_for_each(Writer::finish)
    }
}

/// What has been found so far, and the memory of a batch.
#[derive(Default)]
struct Evaluation {
    sum: f64,
    correct: u64,
    fell_back: Option<String>,
    logits: Vec<f32>,
    elements: Vec<f32>,
    integers: Vec<i128>,
}

impl Evaluation {
    fn batch(
        &mut self,
        device: &Device,
        loss: &CrossEntropy,
        shape: [usize; 2],
        logits: &mut Reader,
        targets: &mut Reader,
        outputs: &mut Outputs,
    ) -> Result<(), CliError> {
        let [rows, classes] = shape;
        self.logits.resize(rows * classes, 0.0);
        logits.floats(&mut self.logits)?;
        self.integers.resize(rows, 0);
        targets.integers(&mut self.integers)?;
        // Those that do not fit were refused by the survey.
        let classes_of: Vec<i64> = self.integers.iter().map(|&target| target as i64).collect();

        let x = Logits::new(&self.logits, shape)?;
        let predictions = device.predict_vec(x)?;
        self.fell_back = self.fell_back.take().or(predictions.fell_back);
        let hits = predictions.values.iter().zip(&classes_of);
        self.correct += hits.filter(|(prediction, target)| i64::from(prediction.class) == **target).count() as u64;

        self.elements
            .resize(if outputs.probs.is_some() || outputs.log_probs.is_some() { rows * classes } else { 0 }, 0.0);
        if let Some(file) = &mut outputs.probs {
            let ran = device.softmax(x, &mut self.elements)?;
            self.fell_back = self.fell_back.take().or(ran.fell_back);
            file.write(&self.elements)?;
        }
        if let Some(file) = &mut outputs.log_probs {
            let ran = device.log_softmax(x, &mut self.elements)?;
            self.fell_back = self.fell_back.take().or(ran.fell_back);
            file.write(&self.elements)?;
        }
        let out = match &mut outputs.grad {
            None => device.cross_entropy(loss, x, &classes_of)?,
            // Last, for it takes the place of the logits.
            Some(file) => {
                let x = LogitsMut::new(&mut self.logits, shape)?;
                let out = device.cross_entropy_grad_in_place(loss, x, &classes_of)?;
                file.write(&self.logits)?;
                out
            }
        };
        if let Some(file) = &mut outputs.per_row {
            file.write(&out.per_row)?;
        }
        self.sum += out.loss;
        self.fell_back = self.fell_back.take().or(out.fell_back);
        Ok(())
    }
}
