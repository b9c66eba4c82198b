//! Which of GPU and CPU has a result back in host memory first.

use std::time::Instant;

use crate::job::{Data, Op, RowsOut};
use crate::operations::job;
use crate::waiting::Waiting;
use crate::{CrossEntropy, Crossover, Device, Error, Prediction, Shape, Targets};

/// A call takes so long, and so much longer for each byte of logits.
#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    seconds_per_byte: f64,
}

impl Cost {
    fn of(self, bytes: u64) -> f64 {
        self.seconds + self.seconds_per_byte * bytes as f64
    }
}

/// What calls of each operation cost on the CPU and on a GPU.
#[derive(Clone, Debug)]
pub(crate) struct Costs(Vec<(Op, &'static str, Cost, Cost)>);

/// Rows of this many classes are measured, a few of them and many.
const CLASSES: usize = 1024;
const ROWS: [usize; 2] = [32, 1024];
const RUNS: usize = 3;

impl Costs {
    /// Runs every operation on both, data in host memory as it will be.
    pub(crate) async fn measure(gpu: &Device, waiting: Waiting) -> Result<Self, Error> {
        let operations = [
            (Op::Softmax, "softmax"),
            (Op::LogSoftmax, "log_softmax"),
            (Op::LogSumExp, "log_sum_exp"),
            (Op::Predict, "predict"),
            (Op::CrossEntropy, "cross_entropy"),
            (Op::CrossEntropyGrad, "cross_entropy_grad"),
        ];
        let cpu = Device::cpu();
        let logits: Vec<f32> = (0..ROWS[1] * CLASSES).map(|x| (x % 61) as f32 * 0.25 - 8.0).collect();
        let mut out = vec![0.0; logits.len()];
        let mut costs = Vec::new();
        for (op, name) in operations {
            let on_cpu = cost(&cpu, op, &logits, &mut out, waiting).await?;
            costs.push((op, name, on_cpu, cost(gpu, op, &logits, &mut out, waiting).await?));
        }
        Ok(Self(costs))
    }

    pub(crate) fn prefer_cpu(&self, op: Op, shape: Shape) -> bool {
        let bytes = (shape.row_count() * shape.classes() * 4) as u64;
        self.0.iter().any(|&(of, _, cpu, gpu)| of == op && cpu.of(bytes) <= gpu.of(bytes))
    }

    pub(crate) fn crossovers(&self) -> Vec<Crossover> {
        let crossover = |&(_, operation, cpu, gpu): &(Op, &'static str, Cost, Cost)| {
            let gain = cpu.seconds_per_byte - gpu.seconds_per_byte;
            Crossover {
                operation,
                bytes: (gain > 0.0).then(|| ((gpu.seconds - cpu.seconds) / gain).max(0.0) as u64),
                cpu_bytes_per_second: 1.0 / cpu.seconds_per_byte,
                gpu_bytes_per_second: 1.0 / gpu.seconds_per_byte,
            }
        };
        self.0.iter().map(crossover).collect()
    }
}

/// Two points make a line; of each the best run counts, for whatever disturbs a run makes it slower.
async fn cost(device: &Device, op: Op, logits: &[f32], out: &mut [f32], waiting: Waiting) -> Result<Cost, Error> {
    let mut best = [f64::INFINITY; 2];
    let loss = CrossEntropy::default();
    for (rows, best) in ROWS.into_iter().zip(&mut best) {
        let shape = Shape::rows(rows, CLASSES);
        let (input, stride) = (&logits[..rows * CLASSES], CLASSES);
        let targets = loss.prepare(shape, Targets::from(&vec![0_u32; rows]))?;
        let (mut values, mut predictions) = (vec![0.0; rows], vec![Prediction::default(); rows]);
        // The first run compiles and allocates.
        for run in 0..=RUNS {
            let data = match op.writes_elements() {
                true => Data::Write { input, stride, output: &mut out[..rows * CLASSES] },
                false => Data::Read { input, stride },
            };
            let (targets, rows_out) = match op {
                Op::Softmax | Op::LogSoftmax => (None, RowsOut::None),
                Op::LogSumExp => (None, RowsOut::Values(&mut values)),
                Op::Predict => (None, RowsOut::Predictions(&mut predictions)),
                Op::CrossEntropy | Op::CrossEntropyGrad => (Some(&targets), RowsOut::Values(&mut values)),
            };
            let start = Instant::now();
            device.run(job(op, shape, data, targets, rows_out), waiting).await?;
            if run > 0 {
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    let bytes = ROWS.map(|rows| (rows * CLASSES * 4) as f64);
    // A disturbed machine may find many rows as fast as few; that none of the time is due to the bytes is not to be believed.
    let most = best[1] / bytes[1];
    let seconds_per_byte = ((best[1] - best[0]) / (bytes[1] - bytes[0])).clamp(most / 4.0, most);
    Ok(Cost { seconds: (best[0] - seconds_per_byte * bytes[0]).max(0.0), seconds_per_byte })
}
