//! The offload cost model: predicts whether the GPU or the CPU has a result in host memory first.

use crate::ops::Op;
use crate::ops::Request;
use crate::problem::dtype::Sealed;
use crate::problem::operands::{Data, Operands, RowsOut};
use crate::problem::transform::Transform;
use crate::problem::waiting::{Instant, Waiting};
use crate::{CrossEntropy, Crossover, Device, Error, Logits, Prediction, Shape, Targets};

/// The time of a call: a fixed part, and a part for each row and each byte of logits.
#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    seconds_per_row: f64,
    seconds_per_byte: f64,
}

impl Cost {
    fn of(self, rows: f64, classes: f64) -> f64 {
        self.seconds + rows * (self.seconds_per_row + self.seconds_per_byte * 4.0 * classes)
    }
}

/// The costs of each measured operation, first on the CPU, then on the GPU.
#[derive(Clone, Debug)]
pub(crate) struct Costs(Vec<(Op, Cost, Cost)>);

/// The shapes that are measured, `[rows, classes]`: a few rows, many, and as many elements in short
/// rows.
const SHAPES: [[usize; 2]; 3] = [[32, 1024], [1024, 1024], [65_536, 16]];
const RUNS: usize = 3;

impl Costs {
    /// Measures operations on the CPU and on `gpu`, with data in host memory.
    pub(crate) async fn measure(gpu: &Device, waiting: Waiting) -> Result<Self, Error> {
        let cpu = Device::cpu();
        let logits: Vec<f32> =
            (0..SHAPES[1][0] * SHAPES[1][1]).map(|x| (x % 61) as f32 * 0.25 - 8.0).collect();
        let mut out = vec![0.0; logits.len()];
        let mut costs = Vec::new();
        for op in Op::ALL.into_iter().filter(|&op| op.spec().costs_like == op) {
            let on_cpu = cost(&cpu, op, &logits, &mut out, waiting).await?;
            costs.push((op, on_cpu, cost(gpu, op, &logits, &mut out, waiting).await?));
        }
        Ok(Self(costs))
    }

    pub(crate) fn prefer_cpu(&self, op: Op, shape: Shape) -> bool {
        let op = op.spec().costs_like;
        let (rows, classes) = (shape.row_count() as f64, shape.classes() as f64);
        self.0
            .iter()
            .any(|&(of, cpu, gpu)| of == op && cpu.of(rows, classes) <= gpu.of(rows, classes))
    }

    pub(crate) fn crossovers(&self) -> Vec<Crossover> {
        let crossover = |&(op, cpu, gpu): &(Op, Cost, Cost)| {
            // Bytes are counted in rows of the width of the first two shapes.
            let width = (SHAPES[1][1] * 4) as f64;
            let [cpu_byte, gpu_byte] =
                [cpu, gpu].map(|cost| cost.seconds_per_byte + cost.seconds_per_row / width);
            let gain = cpu_byte - gpu_byte;
            Crossover {
                operation: op.spec().name,
                bytes: (gain > 0.0).then(|| ((gpu.seconds - cpu.seconds) / gain).max(0.0) as u64),
                cpu_bytes_per_second: 1.0 / cpu_byte,
                gpu_bytes_per_second: 1.0 / gpu_byte,
            }
        };
        self.0.iter().map(crossover).collect()
    }
}

/// Measures the cost of `op` on `device`: the three shapes give the three parts. The fastest run of
/// each shape counts, because disturbances only make a run slower.
async fn cost(
    device: &Device,
    op: Op,
    logits: &[f32],
    out: &mut [f32],
    waiting: Waiting,
) -> Result<Cost, Error> {
    let mut best = [f64::INFINITY; 3];
    let loss = CrossEntropy::default();
    for ([rows, classes], best) in SHAPES.into_iter().zip(&mut best) {
        let shape = Shape::rows(rows, classes);
        let x = Logits::new(&logits[..rows * classes], shape)?;
        let targets = vec![0_u32; rows];
        let prepared = loss.prepare(shape, Targets::from(&targets))?;
        let (mut values, mut predictions) = (vec![0.0; rows], vec![Prediction::default(); rows]);
        // The first run compiles and allocates.
        for run in 0..=RUNS {
            let data = match op.spec().writes_elements {
                true => {
                    let output = f32::erase_mut(&mut out[..rows * classes]);
                    Data::Write { input: x.elements(), stride: classes, output }
                }
                false => Data::Read { input: x.elements(), stride: classes },
            };
            let operands = if op.has_targets() {
                prepared.operands(Transform::default())?
            } else {
                Operands::default()
            };
            let rows_out = if op.predicts() {
                RowsOut::Predictions(&mut predictions, 1)
            } else if op.has_values() {
                RowsOut::Values(f32::erase_mut(&mut values))
            } else {
                RowsOut::None
            };
            let start = Instant::now();
            device.run(Request::new(op, x.view(), data, operands, rows_out), waiting).await?;
            if run > 0 {
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    let [few, many, short] = best;
    let [few_bytes, many_bytes, _] = SHAPES.map(|[rows, classes]| (rows * classes * 4) as f64);
    // On a disturbed machine many rows may take no longer than few. At least a quarter of the time
    // is attributed to the bytes all the same.
    let most = many / many_bytes;
    let seconds_per_byte = ((many - few) / (many_bytes - few_bytes)).clamp(most / 4.0, most);
    // The third shape has the same bytes in more rows.
    let seconds_per_row = ((short - many) / (SHAPES[2][0] - SHAPES[1][0]) as f64).max(0.0);
    Ok(Cost {
        seconds: (few - seconds_per_byte * few_bytes).max(0.0),
        seconds_per_row,
        seconds_per_byte,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_goes_where_it_is_done_first() {
        // `gpu` starts 1 ms later than the CPU, and takes a quarter of the time a byte; `slow`
        // takes more.
        let cpu = Cost { seconds: 1e-6, seconds_per_row: 1e-8, seconds_per_byte: 4e-10 };
        let gpu = Cost { seconds: 1e-3, seconds_per_row: 1e-8, seconds_per_byte: 1e-10 };
        let slow = Cost { seconds_per_byte: 5e-10, ..gpu };
        let costs = Costs(vec![(Op::Softmax, cpu, gpu), (Op::Predict, cpu, slow)]);
        let [softmax, predict] = costs.crossovers().try_into().unwrap();
        let bytes = softmax.bytes.unwrap();
        assert_eq!((bytes, predict.bytes), (3_330_000, None));
        // Calls on either side of the crossover.
        let rows = bytes as usize / 4096;
        assert!(costs.prefer_cpu(Op::Softmax, Shape::rows(rows, 1024)));
        assert!(!costs.prefer_cpu(Op::Softmax, Shape::rows(rows + 1, 1024)));
        assert!(costs.prefer_cpu(Op::Predict, Shape::rows(1 << 20, 1024)));
        // Where each row costs the CPU more, short rows are sent to the GPU sooner.
        let cpu = Cost { seconds_per_row: 1e-7, ..cpu };
        let costs = Costs(vec![(Op::Softmax, cpu, gpu)]);
        assert!(!costs.prefer_cpu(Op::Softmax, Shape::rows(20_000, 10)));
    }
}
