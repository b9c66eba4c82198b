//! A fast wrong answer is worth nothing: a few rows of every operation against float64, before it
//! is timed.

use logits::{Device, Element, Error, Operation};
use logits_check::operation::{self, Bounds, Judge, Label, Results, Variant};

use super::inputs::Inputs;

/// The relative error that is allowed: more than the crate promises, and than log-sum-exps of 32
/// lose as f32.
const PRECISION: f64 = 4e-6;

/// Most elements of a long row are small, and each is weighed by itself. Logarithms and losses near
/// 0 are not.
const BOUNDS: Bounds = Bounds {
    probability: PRECISION,
    value: PRECISION,
    least: 1.0,
    saved: 0.0,
    by_element: true,
    tie: PRECISION,
};

/// Runs an operation once.
pub(super) fn compute<T: Element<Row = f32>>(
    device: &Device,
    operation: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Results<T>, Error> {
    with_all(inputs, |all| pollster::block_on(operation::run(device, operation, all)))
}

/// The first row that is wrong, of the first, the middle and the last.
pub(super) fn first_wrong<T: Element<Row = f32>>(
    device: &Device,
    timed: &Variant,
    inputs: &Inputs<'_, T>,
) -> Result<Option<usize>, Error> {
    let results = compute(device, timed.operation, inputs)?;
    let rows = inputs.shape[0];
    let is_wrong = |row: &usize| is_wrong(timed, inputs, &results, *row);
    Ok([0, rows / 2, rows - 1].into_iter().find(is_wrong))
}

fn is_wrong<T: Element<Row = f32>>(
    timed: &Variant,
    inputs: &Inputs<'_, T>,
    results: &Results<T>,
    row: usize,
) -> bool {
    with_all(inputs, |all| Judge::new(all, BOUNDS, [row]).worst(timed, results) > 1.0)
}

/// Calls `use_them` with all that any operation reads. The logits are the upstream gradients too.
fn with_all<T: Element<Row = f32>, R>(
    inputs: &Inputs<'_, T>,
    use_them: impl FnOnce(&operation::Inputs<'_, T>) -> R,
) -> R {
    let label = |row: usize| -> Label { inputs.label(row) };
    use_them(&operation::Inputs {
        shape: inputs.shape.into(),
        logits: &inputs.logits,
        temperature: 1.0,
        options: &inputs.of_sum,
        targets: inputs.targets(),
        label: &label,
        upstream: &inputs.logits,
        reference: None,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::Options;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }

    /// Most elements of a long row are small: they count as much as the large ones.
    #[test]
    fn small_elements_that_are_lost_are_found() -> Result<(), Box<dyn std::error::Error>> {
        let options = Arguments::try_parse_from(["bench"])?.options;
        for classes in [1000, 32_000] {
            let inputs = Inputs::<f32>::new(&options, [1, classes], |x| x)?;
            for operation in [
                Operation::Softmax,
                Operation::SoftmaxBackward,
                Operation::LogSoftmaxBackward,
                Operation::CrossEntropyGrad,
            ] {
                let timed = inputs.timed(operation);
                let mut results = compute(&Device::cpu(), operation, &inputs)?;
                assert!(
                    !is_wrong(&timed, &inputs, &results, 0),
                    "{operation:?} of {classes} classes"
                );
                let mut sizes: Vec<f32> = results.elements.iter().map(|x| x.abs()).collect();
                sizes.sort_by(f32::total_cmp);
                let small = sizes[classes / 2];
                results.elements.iter_mut().filter(|x| x.abs() < small).for_each(|x| *x = 0.0);
                assert!(
                    is_wrong(&timed, &inputs, &results, 0),
                    "{operation:?} of {classes} classes"
                );
            }
        }
        Ok(())
    }
}
