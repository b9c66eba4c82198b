//! The calls that meet faults, and the results that they must have.

use logits::{CrossEntropy, Device, Error, Logits, LogitsMut};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Softmax,
    SoftmaxInPlace,
    Gradient,
    GradientInPlace,
    /// The loss of each row, and the mean.
    Loss,
    /// Upload, softmax, read.
    Resident,
}

/// A valid end of a call: right results, with the reason if they are the CPU's, or a typed error.
pub type Answer = Result<Option<String>, Error>;

pub struct Call {
    pub operation: Operation,
    pub shape: [usize; 2],
    logits: Vec<f32>,
    targets: Vec<i64>,
    /// The results in float64, each with its bound.
    wanted: Vec<(f64, f64)>,
}

impl Call {
    pub fn new(operation: Operation, shape: [usize; 2]) -> Self {
        let [rows, classes] = shape;
        // Some thousands of values from -6 to 6, of which neighbours differ.
        let logits: Vec<f32> =
            (0..rows * classes).map(|nth| (nth * 7919 % 6007) as f32 / 500.0 - 6.0).collect();
        let targets: Vec<i64> = (0..rows).map(|row| (row * 31 % classes) as i64).collect();
        let (mut elements, mut losses) = (Vec::new(), Vec::new());
        for (row, &target) in logits.chunks(classes).zip(&targets) {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let loss = sum.ln() - f64::from(row[target as usize]);
            losses.push((loss, 1e-6 * loss));
            elements.extend(row.iter().enumerate().map(|(class, &x)| {
                let p = f64::from(x).exp() / sum;
                match operation {
                    Operation::Gradient | Operation::GradientInPlace => {
                        let hit = f64::from(u8::from(class as i64 == target));
                        ((p - hit) / rows as f64, 1e-6 / rows as f64)
                    }
                    _ => (p, 2e-6 * p),
                }
            }));
        }
        let mean = losses.iter().map(|(loss, _)| loss).sum::<f64>() / rows as f64;
        losses.push((mean, 1e-6 * mean));
        let wanted = match operation {
            Operation::Softmax | Operation::SoftmaxInPlace | Operation::Resident => elements,
            Operation::Gradient | Operation::GradientInPlace => [elements, losses].concat(),
            Operation::Loss => losses,
        };
        Self { operation, shape, logits, targets, wanted }
    }

    /// Makes the call, and checks its result.
    pub fn on(&self, device: &Device) -> Answer {
        let mut x = self.logits.clone();
        match self.results(device, &mut x) {
            Ok((got, note)) => {
                assert_eq!(got.len(), self.wanted.len());
                for (nth, (&got, &(wanted, error))) in got.iter().zip(&self.wanted).enumerate() {
                    let off = (f64::from(got) - wanted).abs();
                    assert!(
                        off <= error,
                        "{self}: value {nth} is {got} in place of {wanted}; {note:?}"
                    );
                }
                Ok(note)
            }
            Err(error) => {
                assert!(
                    matches!(error, Error::Gpu { .. } | Error::OutOfMemory { .. }),
                    "{self}: {error}"
                );
                let intact = x
                    .iter()
                    .zip(&self.logits)
                    .all(|(now, before)| now.to_bits() == before.to_bits());
                assert!(intact, "{self}: logits are not intact after {error}");
                Err(error)
            }
        }
    }

    fn results(&self, device: &Device, x: &mut [f32]) -> Result<(Vec<f32>, Option<String>), Error> {
        let (loss, targets) = (CrossEntropy::default(), self.targets.as_slice());
        let with_losses = |elements: Vec<f32>, loss: logits::Loss<f32>| {
            let all = [elements, loss.per_row, vec![loss.loss as f32]].concat();
            (all, loss.fell_back)
        };
        Ok(match self.operation {
            Operation::Softmax => {
                let out = device.softmax(Logits::new(x, self.shape)?).to_vec()?;
                (out.values, out.fell_back)
            }
            Operation::SoftmaxInPlace => {
                let ran = device.softmax(LogitsMut::new(x, self.shape)?).in_place()?;
                (x.to_vec(), ran.fell_back)
            }
            Operation::Gradient => {
                let (loss, gradient) = device
                    .cross_entropy(&loss, Logits::new(x, self.shape)?, targets)
                    .with_gradient_vec()?;
                with_losses(gradient, loss)
            }
            Operation::GradientInPlace => {
                let loss = device
                    .cross_entropy(&loss, LogitsMut::new(x, self.shape)?, targets)
                    .with_gradient_in_place()?;
                with_losses(x.to_vec(), loss)
            }
            Operation::Loss => with_losses(
                Vec::new(),
                device.cross_entropy(&loss, Logits::new(x, self.shape)?, targets).loss()?,
            ),
            Operation::Resident => {
                (device.upload(Logits::new(x, self.shape)?)?.softmax().run()?.read()?, None)
            }
        })
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {:?}", self.operation, self.shape)
    }
}
