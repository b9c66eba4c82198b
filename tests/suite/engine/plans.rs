//! A plan is what a step records.

use logits::{DType, Device, Operation, PassWork, StepBuffers};

use super::{engines, logits, new_engines};

/// A plan has one pass for each dispatch, where one binding holds the batch and where it does not,
/// and the kernels of the table that says so.
#[test]
fn a_plan_has_the_passes_that_a_step_records() {
    let small = |limits: &mut logits::wgpu::Limits| {
        limits.max_storage_buffer_binding_size = 1 << 20;
    };
    let cases = [
        (Operation::Softmax, [3, 20_000], "online"),
        (Operation::CrossEntropyGrad, [3000, 100], "register-resident"),
        (Operation::LogSumExp, [2, 150_000], "split row"),
        (Operation::CrossEntropyGrad, [3, 300_000], "split row"),
    ];
    for engine in engines().into_iter().chain(new_engines(small)) {
        for (nth, (operation, shape, strategy)) in cases.into_iter().enumerate() {
            if !engine.takes(nth, &[1]) {
                continue;
            }
            let what = format!("{operation:?} of {shape:?} on {}", engine.gpu.name());
            let plan = Device::on(&engine.gpu).plan(operation, shape, DType::F32).unwrap();
            let [rows, classes] = shape;
            let step = engine.gpu.prepare(operation, shape, DType::F32).build().unwrap();
            let x = engine.buffer(0, &logits(rows * classes));
            let (targets, out) = (engine.poisoned(rows), engine.poisoned(rows * classes));
            let (values, loss) = (engine.poisoned(rows), engine.poisoned(8));
            let buffers = StepBuffers::new(x.slice(..))
                .targets(targets.slice(..))
                .output(out.slice(..))
                .rows(values.slice(..))
                .loss(loss.slice(..));
            let bound = step.bind(&buffers).unwrap();
            assert_eq!(plan.passes.len(), bound.dispatches(), "{what}");
            assert_eq!(plan.strategy, strategy, "{what}");
            // Each row is covered once by the passes that read logits and by those that write.
            for name in ["online_rows", "register_resident_rows", "split_reduce", "split_write"] {
                let passes: Vec<_> = plan.passes.iter().filter(|pass| pass.name == name).collect();
                let length = |range: &std::ops::Range<u64>| range.end - range.start;
                let covered: u64 =
                    passes.iter().map(|pass| length(&pass.rows) * length(&pass.classes)).sum();
                let all = (rows * classes) as u64;
                assert!(passes.is_empty() || covered == all, "{name} of {what}: {covered}");
            }
            for pass in &plan.passes {
                let PassWork::Dispatch { workgroups } = pass.work else { panic!("{pass}") };
                let groups: u64 = workgroups.iter().map(|&count| u64::from(count)).product();
                assert_eq!(pass.threads, 256 * groups, "{what}");
            }
        }
    }
}
