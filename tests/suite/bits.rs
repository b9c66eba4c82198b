//! The bits of results: a hash for each operation, option, type and shape, in `golden/bits.json`.
//! Code that only moves changes none of them.
//!
//! `LOGITS_RECORD=1 LOGITS_FULL=1 cargo test --test suite bits::` writes the hashes of this
//! machine's CPU and adapters into the file. The CPU's are those of Linux on x86-64, for each SIMD
//! level (`LOGITS_SIMD`); an adapter has its own, because its driver decides how sums are taken.

use std::collections::BTreeMap;
use std::path::PathBuf;

use logits::half::{bf16, f16};
use logits::{
    CrossEntropy, Device, Element, Logits, Prediction, Reduction, Sampling, Shape, Targets,
};
use serde_json::Value;

use crate::common::{self, Share};
use crate::tier;

/// `[outer, classes, inner]`: a shape for each way in which kernels and the CPU compute rows.
const SHAPES: [[usize; 3]; 9] = [
    [7, 10, 1],
    [300, 3, 1],
    [33, 100, 1],
    [9, 1000, 1],
    [3, 4097, 1],
    [2, 32_001, 1],
    [2, 140_001, 1],
    [2, 5, 70],
    [1, 1200, 41],
];

/// The inputs of a batch `[outer, classes, inner]`: logits, upstream gradients and targets, the
/// same on every machine.
struct Inputs<T> {
    shape: Shape,
    x: Vec<T>,
    upstream: Vec<T>,
    soft: Vec<T>,
    targets: Vec<i64>,
    weight: Vec<f32>,
}

/// A number from 0 up to 1 (SplitMix64).
fn noise(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

impl<T: Element> Inputs<T> {
    fn new([outer, classes, inner]: [usize; 3], narrow: fn(f64) -> T) -> Self {
        let (elements, rows) = (outer * classes * inner, outer * inner);
        let values = |stream: u64, value: fn(f64) -> f64| {
            (0..elements as u64)
                .map(|at| narrow(value(noise(stream << 32 | at))))
                .collect::<Vec<T>>()
        };
        Self {
            shape: Shape::new(outer, classes, inner),
            // A few logits are far above and below the rest.
            x: values(1, |u| if u < 0.02 { 400.0 * (u - 0.01) / 0.01 } else { 12.0 * (u - 0.5) }),
            upstream: values(2, |u| u - 0.5),
            soft: values(3, |u| u * u),
            targets: (0..rows as u64)
                .map(|row| {
                    if row % 5 == 4 { -100 } else { (noise(4 << 32 | row) * classes as f64) as i64 }
                })
                .collect(),
            weight: (0..classes as u64)
                .map(|class| (0.5 + noise(5 << 32 | class)) as f32)
                .collect(),
        }
    }

    fn logits(&self) -> Logits<'_, T> {
        Logits::new(&self.x, self.shape).unwrap()
    }
}

/// FNV-1a over the bytes of results.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add<T: Into<f64> + Copy>(mut self, values: &[T]) -> Self {
        for &value in values {
            let value: f64 = value.into();
            // A NaN has many forms, and on GPUs a zero either sign.
            let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
            for byte in value.to_bits().to_le_bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        self
    }

    fn predictions(self, values: &[Prediction]) -> Self {
        let classes: Vec<f64> = values.iter().map(|value| value.class.into()).collect();
        let probabilities: Vec<f32> = values.iter().map(|value| value.probability).collect();
        self.add(&classes).add(&probabilities)
    }

    fn text(&self) -> String {
        format!("{:08x}", (self.0 >> 32) ^ (self.0 & 0xffff_ffff))
    }
}

/// An operation with its options, and the function that hashes its result.
type Case<T> = (&'static str, fn(&Device, &Inputs<T>) -> Hash);

fn cases<T: Element>() -> Vec<Case<T>> {
    vec![
        ("softmax", |device, of| {
            Hash::new().add(&device.softmax(of.logits()).to_vec().unwrap().values)
        }),
        ("log_softmax", |device, of| {
            Hash::new().add(&device.log_softmax(of.logits()).to_vec().unwrap().values)
        }),
        ("log_sum_exp", |device, of| {
            Hash::new().add(&device.log_sum_exp(of.logits()).to_vec().unwrap().values)
        }),
        ("softmax, temperature", |device, of| {
            Hash::new().add(
                &device.softmax(of.logits().temperature(0.7).unwrap()).to_vec().unwrap().values,
            )
        }),
        ("softmax_backward", |device, of| {
            let y = Logits::new(&of.soft, of.shape).unwrap();
            Hash::new().add(&device.softmax_backward(y, &of.upstream).to_vec().unwrap().values)
        }),
        ("log_softmax_backward", |device, of| {
            Hash::new().add(
                &device.log_softmax_backward(of.logits(), &of.upstream).to_vec().unwrap().values,
            )
        }),
        ("predict", |device, of| {
            Hash::new().predictions(&device.predict(of.logits()).to_vec().unwrap().values)
        }),
        ("top_k", |device, of| {
            Hash::new().predictions(&device.top_k(of.logits(), 3).to_vec().unwrap().values)
        }),
        ("sample", |device, of| {
            Hash::new().predictions(
                &device.sample(&Sampling::new(7), of.logits()).to_vec().unwrap().values,
            )
        }),
        ("sample, top_k and top_p", |device, of| {
            let sampling = Sampling::new(7).step(1).top_k(40).top_p(0.8);
            Hash::new().predictions(&device.sample(&sampling, of.logits()).to_vec().unwrap().values)
        }),
        ("cross_entropy", |device, of| alone(device, of, CrossEntropy::default())),
        ("cross_entropy_grad", |device, of| fused(device, of, CrossEntropy::default())),
        ("cross_entropy_grad, none", |device, of| {
            fused(
                device,
                of,
                CrossEntropy::default().reduction(Reduction::None).upstream_gradient(0.25),
            )
        }),
        ("cross_entropy_grad, weight and label_smoothing", |device, of| {
            fused(
                device,
                of,
                CrossEntropy::default().weight(of.weight.clone()).label_smoothing(0.1),
            )
        }),
        ("cross_entropy_grad, z_loss", |device, of| {
            fused(device, of, CrossEntropy::default().z_loss(1e-3))
        }),
        ("cross_entropy_grad, softcap and logit_scale", |device, of| {
            fused(device, of, CrossEntropy::default().softcap(20.0).logit_scale(-0.5))
        }),
        ("cross_entropy_grad, probabilities", |device, of| {
            let (loss, gradient) = device
                .cross_entropy(
                    &CrossEntropy::default(),
                    of.logits(),
                    Targets::probabilities(&of.soft),
                )
                .with_gradient_vec()
                .unwrap();
            Hash::new().add(&loss.per_row).add(&gradient)
        }),
        ("cross_entropy_backward", |device, of| {
            let saved: Vec<T::Row> = device.log_sum_exp(of.logits()).to_vec().unwrap().values;
            let loss = CrossEntropy::default().label_smoothing(0.1);
            Hash::new().add(
                &device
                    .cross_entropy_backward(&loss, of.logits(), &of.targets, &saved)
                    .to_vec()
                    .unwrap()
                    .values,
            )
        }),
    ]
}

/// Hashes the losses of rows, but not their sum, whose bits may change.
fn alone<T: Element>(device: &Device, of: &Inputs<T>, loss: CrossEntropy) -> Hash {
    Hash::new().add(&device.cross_entropy(&loss, of.logits(), &of.targets).loss().unwrap().per_row)
}

fn fused<T: Element>(device: &Device, of: &Inputs<T>, loss: CrossEntropy) -> Hash {
    let (loss, gradient) =
        device.cross_entropy(&loss, of.logits(), &of.targets).with_gradient_vec().unwrap();
    Hash::new().add(&loss.per_row).add(&gradient)
}

/// The hashes of one device by type and operation: one for each shape, or none where the default
/// tier leaves the case out.
type Table = BTreeMap<String, Vec<Option<String>>>;

fn add<T: Element>(table: &mut Table, device: &Device, narrow: fn(f64) -> T) {
    // A software driver compiles most cases anew.
    let step = match common::share(device) {
        Share::All => 1,
        Share::Pairs => 29,
        Share::Values => 61,
    };
    for (shape_at, shape) in SHAPES.into_iter().enumerate() {
        let mut inputs = None;
        for (at, (name, run)) in cases::<T>().into_iter().enumerate() {
            let name = format!("{} {name}", T::DTYPE);
            let is_due = (at * SHAPES.len() + shape_at + name.len()).is_multiple_of(step);
            let hash = is_due.then(|| {
                run(device, inputs.get_or_insert_with(|| Inputs::new(shape, narrow))).text()
            });
            table.entry(name).or_default().push(hash);
        }
    }
}

fn table_of(device: &Device) -> Table {
    let mut table = Table::new();
    add::<f32>(&mut table, device, |x| x as f32);
    add::<f16>(&mut table, device, f16::from_f64);
    add::<bf16>(&mut table, device, bf16::from_f64);
    if !device.is_gpu() {
        add::<f64>(&mut table, device, |x| x);
    }
    table
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bits.json")
}

/// Compares a device's hashes with those of the file, or writes them there.
fn check(devices: &[(String, Device)]) {
    let mut golden_tables: Value =
        serde_json::from_str(&std::fs::read_to_string(golden()).unwrap()).unwrap();
    let records = std::env::var_os("LOGITS_RECORD").is_some();
    for (name, device) in devices {
        if golden_tables[name].is_null() && !records {
            tier::skip(&format!("golden/bits.json has no hashes of {name}"));
            continue;
        }
        let table = table_of(device);
        if records {
            let lines = table.into_iter().map(|(case, hashes)| {
                let hashes: Vec<String> = hashes.into_iter().map(|hash| hash.unwrap()).collect();
                (case, hashes.join(" "))
            });
            golden_tables[name] = serde_json::to_value(lines.collect::<BTreeMap<_, _>>()).unwrap();
            continue;
        }
        let mut wrong = Vec::new();
        for (case, hashes) in &table {
            let wanted = golden_tables[name][case].as_str().unwrap_or_default().split(' ');
            assert_eq!(wanted.clone().count(), SHAPES.len(), "{case}");
            for ((hash, shape), wanted) in hashes.iter().zip(SHAPES).zip(wanted) {
                if hash.as_deref().is_some_and(|hash| hash != wanted) {
                    wrong.push(format!("{case} of {shape:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "other bits on {name}: {wrong:#?}");
    }
    if records {
        std::fs::write(golden(), serde_json::to_string_pretty(&golden_tables).unwrap() + "\n")
            .unwrap();
    }
}

/// Runs at the SIMD level of this process; `LOGITS_SIMD` asks for another.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_bits_of_the_cpu_stay() {
    check(&[(format!("CPU, {}", logits::simd_level().unwrap()), Device::cpu())]);
}

#[test]
fn the_bits_of_gpus_stay() {
    let named = |device: Device| (format!("{} ({})", device.name(), device.backend()), device);
    check(&common::gpus().into_iter().map(named).collect::<Vec<_>>());
}
