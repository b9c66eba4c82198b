//! Class weights and targets, checked before anything is computed.

use std::path::Path;

use logits::Error;

use super::ReductionName;
use crate::batches::rows_of;
use crate::npy::{Reader, Runs};
use crate::{CliError, resize};

/// The weights of the classes, multiplied by a power of two.
pub(super) struct Weights {
    pub(super) values: Vec<f32>,
    pub(super) unit: f64,
}

pub(super) fn read_weight(path: &Path, classes: usize, reduction: ReductionName) -> Result<Weights, CliError> {
    let mut reader = Reader::open(path)?;
    reader.expect_floats()?;
    if *reader.shape() != [classes] {
        return Err(reader.error(format!("weights of shape {:?}, where [{classes}] is needed", reader.shape())));
    }
    let mut weight = Vec::new();
    resize(&mut weight, "the weights", classes)?;
    reader.floats(&Runs::flat(0..classes), &mut weight)?;
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
pub(super) struct Totals {
    pub(super) counted_rows: u64,
    pub(super) weight: f64,
}

/// Numbers of the targets that are looked at at a time.
const SURVEYED: usize = 1 << 16;

/// Checks every target before anything is computed, against logits of these dimensions.
pub(super) fn survey_targets(
    reader: &mut Reader,
    ignored: &[i64],
    dimensions: &[usize],
    weight: Option<&[f32]>,
) -> Result<Totals, CliError> {
    let wanted = rows_of(dimensions);
    let (rows, classes): (usize, _) = (wanted.iter().product(), dimensions[usize::from(dimensions.len() > 1)]);
    let found = reader.shape();
    if reader.is_float() {
        if found != dimensions {
            let needed = format!("probabilities {dimensions:?} or integers {wanted:?} are needed");
            return Err(reader.error(format!("targets of shape {found:?}, where {needed}")));
        }
        let count = rows * classes;
        let mut batch = vec![0.0_f64; count.min(SURVEYED)];
        for start in (0..count).step_by(SURVEYED) {
            let batch = &mut batch[..SURVEYED.min(count - start)];
            reader.floats(&Runs::flat(start..start + batch.len()), batch)?;
            if let Some(at) = batch.iter().position(|q| !(0.0..=f64::from(f32::MAX)).contains(q)) {
                let (inner, place): (usize, _) = (dimensions.iter().skip(2).product(), reader.in_c_order(start + at));
                let (row, class) = (place / (classes * inner) * inner + place % inner, place / inner % classes);
                return Err(reader.error(Error::Probability { row, class, value: batch[at] }));
            }
        }
        return Ok(Totals { counted_rows: rows as u64, weight: rows as f64 });
    }
    if found != wanted {
        return Err(reader.error(format!("targets of shape {found:?}, where {wanted:?} is needed")));
    }
    let mut totals = Totals { counted_rows: 0, weight: 0.0 };
    let mut batch = vec![0; rows.min(SURVEYED)];
    for start in (0..rows).step_by(SURVEYED) {
        let batch = &mut batch[..SURVEYED.min(rows - start)];
        reader.integers(&Runs::flat(start..start + batch.len()), batch)?;
        for (nth, &target) in batch.iter().enumerate() {
            if ignored.iter().any(|&index| i128::from(index) == target) {
                continue;
            }
            let class = usize::try_from(target).ok().filter(|&class| class < classes).ok_or_else(|| {
                let row = reader.in_c_order(start + nth);
                reader.error(Error::TargetOutOfRange { row, target, classes, ignored: ignored.to_vec() })
            })?;
            totals.counted_rows += 1;
            totals.weight += weight.map_or(1.0, |weight| weight[class].into());
        }
    }
    Ok(totals)
}
