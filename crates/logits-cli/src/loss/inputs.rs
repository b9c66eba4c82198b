//! Class weights and targets, checked before anything is computed.

use std::path::Path;

use logits::Error;

use super::batches::row_shape;
use super::sum::SumOfRows;
use crate::CliError;
use crate::memory::resize;
use crate::npy::{Float, Reader, Selection};

/// Reads class weights, each from 0 to the largest f32.
pub(super) fn read_weight(path: &Path, classes: usize) -> Result<Vec<f64>, CliError> {
    let mut reader = Reader::open(path)?;
    reader.expect_floats()?;
    if *reader.shape() != [classes] {
        return Err(reader
            .error(format!("weights of shape {:?}, where [{classes}] is needed", reader.shape())));
    }
    let mut weight = Vec::new();
    resize(&mut weight, "the weights", classes)?;
    reader.floats(&Selection::flat(0..classes), &mut weight)?;
    let is_weight = |value: &f64| (0.0..=f64::from(f32::MAX)).contains(value);
    if let Some((class, &value)) = weight.iter().enumerate().find(|(_, value)| !is_weight(value)) {
        return Err(reader.error(format!(
            "the weight of class {class} is {value}; weights must be between 0 and 3.4028235e38"
        )));
    }
    Ok(weight)
}

/// Sums over the counted rows: their number, and the weights of their targets.
pub(super) struct Totals {
    pub(super) counted_rows: u64,
    pub(super) weight: f64,
    /// The largest weight of a class that is a target, or of any class where targets are
    /// probabilities.
    pub(super) largest_weight: f64,
}

/// Targets in memory at a time during the first pass.
const SURVEYED: usize = 1 << 16;

/// Checks every target before anything is computed, against logits of this shape.
pub(super) fn survey_targets(
    reader: &mut Reader,
    ignored: &[i64],
    shape: &[usize],
    weight: Option<&[f64]>,
) -> Result<Totals, CliError> {
    let (rows, found) = (row_shape(shape), reader.shape());
    if reader.is_float() {
        if found != shape {
            let needed = format!("probabilities {shape:?} or integers {rows:?} are needed");
            return Err(reader.error(format!("targets of shape {found:?}, where {needed}")));
        }
        return check_probabilities(reader, shape, weight);
    }
    if found != rows {
        let is_last = shape.len() > 2 && found == &shape[..shape.len() - 1];
        let hint = if is_last {
            "; the classes are the second axis of the logits: move the last one with numpy.moveaxis"
        } else {
            ""
        };
        return Err(
            reader.error(format!("targets of shape {found:?}, where {rows:?} is needed{hint}"))
        );
    }
    let classes = shape[usize::from(shape.len() > 1)];
    // Weights are summed as the library sums them, which has them in f32.
    match weight {
        Some(weight) if weight.iter().any(|&weight| f64::from(weight as f32) != weight) => {
            check_classes::<f64>(reader, ignored, &rows, classes, Some(weight))
        }
        _ => check_classes::<f32>(reader, ignored, &rows, classes, weight),
    }
}

fn check_probabilities(
    reader: &mut Reader,
    shape: &[usize],
    weight: Option<&[f64]>,
) -> Result<Totals, CliError> {
    let count: usize = shape.iter().product();
    let rows: usize = row_shape(shape).iter().product();
    let mut batch = Vec::new();
    resize(&mut batch, "targets", count.min(SURVEYED))?;
    for start in (0..count).step_by(SURVEYED) {
        let batch: &mut [f64] = &mut batch[..SURVEYED.min(count - start)];
        reader.floats(&Selection::flat(start..start + batch.len()), batch)?;
        if let Some(at) = batch.iter().position(|q| !(0.0..=f64::from(f32::MAX)).contains(q)) {
            let (inner, classes): (usize, _) = (shape.iter().skip(2).product(), count / rows);
            let index = reader.c_index(start + at);
            let (row, class) =
                (index / (classes * inner) * inner + index % inner, index / inner % classes);
            return Err(reader.error(Error::Probability { row, class, value: batch[at] }));
        }
    }
    let largest_weight = weight.unwrap_or(&[1.0]).iter().copied().fold(0.0, f64::max);
    Ok(Totals { counted_rows: rows as u64, weight: rows as f64, largest_weight })
}

/// Weights are summed in the type `S`.
fn check_classes<S: Float>(
    reader: &mut Reader,
    ignored: &[i64],
    row_shape: &[usize],
    classes: usize,
    weight: Option<&[f64]>,
) -> Result<Totals, CliError> {
    let rows: usize = row_shape.iter().product();
    let mut totals = Totals { counted_rows: 0, weight: 0.0, largest_weight: 0.0 };
    let in_order = weight.is_none() || !reader.is_fortran() || row_shape.len() <= 1;
    let mut sum = SumOfRows::<S>::new("the weights of the targets", rows, in_order)?;
    let (mut batch, mut weights) = (Vec::new(), Vec::new());
    resize(&mut batch, "targets", rows.min(SURVEYED))?;
    resize(&mut weights, "the weights of the targets", rows.min(SURVEYED))?;
    for start in (0..rows).step_by(SURVEYED) {
        let batch = &mut batch[..SURVEYED.min(rows - start)];
        let weights = &mut weights[..batch.len()];
        reader.integers(&Selection::flat(start..start + batch.len()), batch)?;
        for (nth, (&target, row_weight)) in batch.iter().zip(weights.iter_mut()).enumerate() {
            *row_weight = S::default();
            if ignored.iter().any(|&index| i128::from(index) == target) {
                continue;
            }
            let class =
                usize::try_from(target).ok().filter(|&class| class < classes).ok_or_else(|| {
                    let row = reader.c_index(start + nth);
                    reader.error(Error::TargetOutOfRange {
                        row,
                        target,
                        classes,
                        ignored: ignored.to_vec(),
                    })
                })?;
            totals.counted_rows += 1;
            let weight = weight.map_or(1.0, |weight| weight[class]);
            *row_weight = S::of(weight);
            totals.largest_weight = totals.largest_weight.max(weight);
        }
        if weight.is_some() {
            sum.add_at(weights, |nth| reader.c_index(start + nth))?;
        }
    }
    totals.weight = if weight.is_some() { sum.total()? } else { totals.counted_rows as f64 };
    Ok(totals)
}
