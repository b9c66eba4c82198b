//! The self-test finds kernels that are broken on purpose, and the adapter is rejected or used
//! without subgroups.

use super::*;
use crate::DeviceChoice;
use crate::gpu::pipelines::BROKEN;

/// An error of a driver, as a change of the kernels' text, and the check that must find it.
struct Broken {
    edit: fn(&str) -> String,
    check: &'static str,
    /// Whether only kernels with subgroups are broken.
    of_subgroups: bool,
}

const BREAKS: [Broken; 7] = [
    Broken {
        edit: |text| text.replace("(subgroup * width + within)", "within"),
        check: "threads by subgroup",
        of_subgroups: true,
    },
    Broken {
        edit: |text| text.replace(", width));", ", width / 2u));"),
        check: "size of subgroups",
        of_subgroups: true,
    },
    Broken {
        edit: |text| text.replace("subgroupShuffleXor(result, distance)", "result"),
        check: "exchange within a subgroup",
        of_subgroups: true,
    },
    Broken {
        edit: |text| {
            text.replace("folds[thread / (done * count) * count + thread % count]", "folds[0]")
        },
        check: "sum over a workgroup",
        of_subgroups: true,
    },
    // A compiler that may reorder sums does this.
    Broken {
        edit: |text| text.replace("opaque(ordered.y - opaque(sum - ordered.x))", "0.0"),
        check: "loss: 0e0 for the logits [20.0, 0.0]",
        of_subgroups: false,
    },
    Broken {
        // A compiler that makes -0 of 0 would take it for an infinity here.
        edit: |text| {
            text.replace(
                "(bits & 0x7fffffffu) >= 0x7f800000u",
                "(bits ^ 0x80000000u) >= 0x7f800000u",
            )
        },
        check: "smoothed loss: inf",
        of_subgroups: false,
    },
    Broken {
        edit: |text| text.replace("(magnitude + 0xfffu + ", "(magnitude + 0x2fffu + "),
        check: "gradient in 16 bits",
        of_subgroups: false,
    },
];

#[test]
fn what_is_broken_is_not_used() {
    for gpu in first_gpus() {
        let name = format!("{}:{}", gpu.backend(), gpu.name());
        let choice = DeviceChoice::Named(name.clone());
        for Broken { edit, check, of_subgroups } in BREAKS {
            if of_subgroups && !gpu.has_subgroups() {
                skip(&format!("{name} has no subgroups"));
                continue;
            }
            BROKEN.set(Some(edit));
            let opened = Device::open(&choice);
            BROKEN.set(None);
            let told = if of_subgroups {
                let device = opened.unwrap();
                let told = device.rejected_adapters().last().unwrap().reason.clone();
                assert!(told.contains("used without subgroups"), "{told}");
                // The broken kernels are not used.
                let p = device
                    .softmax(Logits::new(&[1.0_f32; 1000], [1, 1000]).unwrap())
                    .to_vec()
                    .unwrap();
                assert!(p.values.iter().all(|p| (p - 1e-3).abs() < 1e-8), "{name}");
                told
            } else {
                opened.unwrap_err().to_string()
            };
            println!("{name}: {told}");
            assert!(told.contains(check), "{name}: {told}, where {check} is broken");
        }
    }
}

#[test]
fn a_broken_gpu_is_not_chosen() {
    if first_gpus().is_empty() {
        return;
    }
    BROKEN.set(Some(BREAKS[4].edit));
    let (automatic, any) = (Device::new(), Device::gpu());
    BROKEN.set(None);
    assert!(!automatic.is_gpu(), "{automatic}");
    let told = any.unwrap_err().to_string();
    assert!(told.contains(BREAKS[4].check), "{told}");
}

#[test]
fn a_device_of_the_caller_is_tested_when_asked() {
    for gpu in first_gpus() {
        let own = |edit| {
            let context = gpu.now();
            BROKEN.set(edit);
            let own = Gpu::from_wgpu(&context.device, &context.queue).unwrap();
            BROKEN.set(None);
            own
        };
        own(None).self_test().unwrap();
        let told = own(Some(BREAKS[4].edit)).self_test().unwrap_err().to_string();
        assert!(told.contains(BREAKS[4].check), "{told}");
    }
}

#[test]
fn rows_in_workgroup_memory_are_tested() {
    for gpu in first_gpus() {
        BROKEN.set(Some(|text| {
            text.replace("tile[2u * thread + 1u] = pair.y", "tile[2u * thread] = pair.y")
        }));
        let broken = gpu.with_tuning(gpu.tuning()).unwrap();
        BROKEN.set(None);
        let told = broken.self_test().unwrap_err().to_string();
        assert!(told.contains("loss: "), "{told}");
    }
}

#[test]
fn it_is_quick_once_it_is_compiled() {
    for gpu in first_gpus() {
        let start = std::time::Instant::now();
        let fresh = gpu.with_tuning(gpu.tuning()).unwrap();
        fresh.self_test().unwrap();
        let first = start.elapsed();
        let mut times: Vec<_> = (0..5)
            .map(|_| {
                let start = std::time::Instant::now();
                fresh.self_test().unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!(
            "{} ({}): {first:?} with its pipeline, {:?} without",
            gpu.name(),
            gpu.backend(),
            times[2]
        );
        assert!(times[2].as_secs_f64() < 0.5, "{:?}", times[2]);
    }
}
