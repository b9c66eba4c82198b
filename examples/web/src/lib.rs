//! The functions that the page calls: a device, a batch of logits, and the results of the batch on
//! the device.

mod npy;

use logits::{CrossEntropy, Device, DeviceChoice, Error, Logits};
use wasm_bindgen::prelude::*;
use web_time::Instant;

fn thrown(error: Error) -> JsError {
    JsError::new(&error.to_string())
}

/// The device that computes.
#[wasm_bindgen]
pub struct Place(Device);

#[wasm_bindgen]
impl Place {
    /// Opens a device: `auto`, `cpu`, `gpu` or a name, as for `logits --device`.
    pub async fn open(choice: String) -> Result<Self, JsError> {
        let choice: DeviceChoice = choice.parse()?;
        Ok(Self(Device::open_async(&choice).await.map_err(thrown)?))
    }

    /// The device's name, and the reason why it was chosen.
    pub fn label(&self) -> Result<String, JsError> {
        Ok(match self.0.is_gpu() {
            true => self.0.to_string(),
            false => format!("{} ({})", self.0, logits::simd_level().map_err(thrown)?),
        })
    }

    pub fn is_gpu(&self) -> bool {
        self.0.is_gpu()
    }

    /// Makes a blocking call, which must not wait in a page. Returns its error, or nothing if it
    /// did not have to wait.
    pub fn blocking(&self) -> Option<String> {
        let x = Logits::new(&[0.0_f32, 1.0], [1, 2]);
        x.and_then(|x| self.0.softmax(x).to_vec()).err().map(|error| error.to_string())
    }

    /// Returns the error of a call whose timeout is zero, or nothing if the CPU does it.
    pub async fn hurried(&self) -> Option<String> {
        let hurried = self.0.clone().with_timeout(std::time::Duration::ZERO);
        let logits = vec![0.5_f32; 1 << 22];
        let x = Logits::new(&logits, [1 << 12, 1 << 10]).ok()?;
        hurried.softmax(x).to_vec_async().await.err().map(|error| error.to_string())
    }

    /// Uploads more than is in flight at once, and returns the last value that is read back.
    pub async fn uploaded(&self) -> Result<f32, JsError> {
        let mut logits = vec![0.0_f32; 24 << 20];
        logits[(24 << 20) - 1] = 7.0;
        let x = Logits::new(&logits, [24, 1 << 20]).map_err(thrown)?;
        let resident = self.0.upload_async(x).await.map_err(thrown)?;
        let last = resident.read_rows_async(23..24).await.map_err(thrown)?;
        Ok(last[(1 << 20) - 1])
    }

    /// Compares every operation, option and type with float64. Returns the table of the example
    /// `conformance`, and how many results were out of bounds.
    pub async fn conformance(&self) -> Conformance {
        let findings = logits_check::conformance::run(&self.0).await;
        let failed = findings.iter().filter(|finding| !finding.passed()).count();
        let name = format!("{} ({})", self.0.name(), self.0.backend());
        Conformance { failed, text: logits_check::conformance::matrix(&[(name, findings)]) }
    }
}

#[wasm_bindgen(getter_with_clone)]
pub struct Conformance {
    pub failed: usize,
    pub text: String,
}

/// Logits `[rows, classes]`, and the target class of each row.
#[wasm_bindgen]
pub struct Batch {
    rows: usize,
    classes: usize,
    logits: Vec<f32>,
    targets: Vec<u32>,
}

#[wasm_bindgen]
impl Batch {
    /// Makes logits like those of a network half-way through its training: noise, with somewhat
    /// larger logits of the targets.
    pub fn seeded(rows: usize, classes: usize, seed: u32) -> Result<Self, JsError> {
        let count = rows.checked_mul(classes).filter(|&count| count > 0 && count <= 1 << 27);
        let count = count.ok_or_else(|| {
            JsError::new(&format!("{rows} rows of {classes} classes are no such batch"))
        })?;
        let mut state = seed | 1;
        let mut next = || {
            // Xorshift of 32 bits: Marsaglia 2003.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32
        };
        let mut logits: Vec<f32> =
            (0..count).map(|_| 2.0 * (next() + next() + next() - 1.5)).collect();
        let targets: Vec<u32> =
            (0..rows).map(|_| (next() * classes as f32) as u32 % classes as u32).collect();
        for (row, &target) in targets.iter().enumerate() {
            logits[row * classes + target as usize] += 6.0 * next();
        }
        Ok(Self { rows, classes, logits, targets })
    }

    /// Reads a `.npy` file of `[rows, classes]`; every target is class 0 until
    /// [`Batch::set_target`].
    pub fn from_npy(bytes: &[u8]) -> Result<Self, JsError> {
        let (rows, classes, logits) = npy::read(bytes).map_err(|reason| JsError::new(&reason))?;
        Ok(Self { rows, classes, logits, targets: vec![0; rows] })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn classes(&self) -> usize {
        self.classes
    }

    pub fn target(&self, row: usize) -> u32 {
        self.targets.get(row).copied().unwrap_or_default()
    }

    /// Sets the target of a row. It is checked when it is used.
    pub fn set_target(&mut self, row: usize, class: u32) {
        if let Some(target) = self.targets.get_mut(row) {
            *target = class;
        }
    }

    /// The logits of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        self.logits.chunks(self.classes).nth(row).unwrap_or_default().to_vec()
    }

    /// Computes softmax, the fused loss with its gradient, and the most likely classes, each timed
    /// from host memory to host memory.
    pub async fn compute(&self, place: &Place, temperature: f32) -> Result<Results, JsError> {
        self.computed(&place.0, temperature).await.map_err(thrown)
    }
}

impl Batch {
    async fn computed(&self, device: &Device, temperature: f32) -> Result<Results, Error> {
        let x = Logits::new(&self.logits, [self.rows, self.classes])?;
        let loss = CrossEntropy::default().logit_scale(1.0 / temperature);
        let cooled = x.temperature(temperature)?;
        let start = Instant::now();
        let softmax = device.softmax(cooled).to_vec_async().await?;
        let softmax_at = start.elapsed();
        let (out, gradient) =
            device.cross_entropy(&loss, x, &self.targets).with_gradient_vec_async().await?;
        let loss_at = start.elapsed();
        let k = self.classes.min(5);
        let best = device.top_k(cooled, k).to_vec_async().await?;
        let end = start.elapsed();
        let hits = best
            .values
            .chunks(k)
            .zip(&self.targets)
            .filter(|(best, target)| best[0].class == **target)
            .count();
        Ok(Results {
            classes: self.classes,
            k,
            softmax: softmax.values,
            gradient,
            best: best.values.iter().map(|best| best.class).collect(),
            chances: best.values.iter().map(|best| best.probability).collect(),
            loss: out.loss,
            accuracy: hits as f64 / self.rows as f64,
            perplexity: out.perplexity,
            fell_back: softmax.fell_back.or(out.fell_back).or(best.fell_back),
            softmax_ms: softmax_at.as_secs_f64() * 1e3,
            loss_ms: (loss_at - softmax_at).as_secs_f64() * 1e3,
            top_k_ms: (end - loss_at).as_secs_f64() * 1e3,
        })
    }
}

/// The results of a batch on a device.
#[wasm_bindgen]
pub struct Results {
    classes: usize,
    k: usize,
    softmax: Vec<f32>,
    gradient: Vec<f32>,
    best: Vec<u32>,
    chances: Vec<f32>,
    /// The mean loss, in nats.
    #[wasm_bindgen(readonly)]
    pub loss: f64,
    #[wasm_bindgen(readonly)]
    pub accuracy: f64,
    #[wasm_bindgen(readonly)]
    pub perplexity: f64,
    fell_back: Option<String>,
    #[wasm_bindgen(readonly)]
    pub softmax_ms: f64,
    #[wasm_bindgen(readonly)]
    pub loss_ms: f64,
    #[wasm_bindgen(readonly)]
    pub top_k_ms: f64,
}

#[wasm_bindgen]
impl Results {
    pub fn fell_back(&self) -> Option<String> {
        self.fell_back.clone()
    }

    /// Probabilities of a row.
    pub fn softmax(&self, row: usize) -> Vec<f32> {
        self.softmax.chunks(self.classes).nth(row).unwrap_or_default().to_vec()
    }

    /// d(mean loss) / d(logits) of a row.
    pub fn gradient(&self, row: usize) -> Vec<f32> {
        self.gradient.chunks(self.classes).nth(row).unwrap_or_default().to_vec()
    }

    /// The most likely classes of a row, best first.
    pub fn best(&self, row: usize) -> Vec<u32> {
        self.best.chunks(self.k).nth(row).unwrap_or_default().to_vec()
    }

    /// The probabilities of the classes of `best`.
    pub fn chances(&self, row: usize) -> Vec<f32> {
        self.chances.chunks(self.k).nth(row).unwrap_or_default().to_vec()
    }

    /// The largest difference between two probabilities or gradients of the same place; NaN if only
    /// one of them is NaN.
    pub fn difference(&self, other: &Results) -> f64 {
        let pairs = self
            .softmax
            .iter()
            .zip(&other.softmax)
            .chain(self.gradient.iter().zip(&other.gradient));
        pairs.fold(0.0, |most: f64, (&a, &b)| {
            let apart = if a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) {
                0.0
            } else {
                f64::from((a - b).abs())
            };
            if apart > most || apart.is_nan() { apart } else { most }
        })
    }
}
