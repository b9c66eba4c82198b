//! One buffer holds everything that a step reads and writes, as if a framework's allocator hands
//! out pages of one buffer.

use logits::half::f16;
use logits::{DType, Error, Operation, Reduction, Sampling, Shape, StepBuffers, StepBuilder};

use super::{Engine, engines, logits};
use crate::tier;

/// Offsets of bindings are multiples of this on every adapter.
const ALIGNMENT: usize = 256;

/// The bytes of a step's arrays before it runs; an array is empty where the step has none.
struct Arrays {
    logits: Vec<u8>,
    targets: Vec<u8>,
    upstream: Vec<u8>,
    /// Empty in place.
    output: Vec<u8>,
    rows: Vec<u8>,
    loss: Vec<u8>,
}

fn bytes<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    let mut bytes = bytemuck::cast_slice(values).to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Runs the step over buffers of their own, or over parts of one buffer. Returns the bytes of all
/// arrays afterwards.
fn run(engine: &Engine, step: &StepBuilder<'_>, arrays: &Arrays, in_one: bool) -> [Vec<u8>; 6] {
    let step = step.build().unwrap();
    let scratch = vec![0xff; step.scratch_bytes() as usize];
    let Arrays { logits, targets, upstream, output, rows, loss } = arrays;
    let contents = [logits, targets, upstream, output, rows, loss, &scratch];
    let mut starts = [ALIGNMENT as u64; 7];
    let buffers = if in_one {
        let mut all = vec![0xff; ALIGNMENT];
        for (start, bytes) in starts.iter_mut().zip(contents) {
            *start = all.len() as u64;
            all.extend(bytes);
            all.resize(all.len().next_multiple_of(ALIGNMENT), 0xff);
        }
        let one = engine.buffer(0, &all);
        contents.map(|_| one.clone())
    } else {
        contents.map(|bytes| engine.buffer(ALIGNMENT, bytes))
    };
    let slice =
        |nth: usize| buffers[nth].slice(starts[nth]..starts[nth] + contents[nth].len() as u64);
    let mut bound = StepBuffers::new(slice(0)).in_place().scratch(slice(6));
    if !targets.is_empty() {
        bound = bound.targets(slice(1));
    }
    if !upstream.is_empty() {
        bound = bound.upstream(slice(2));
    }
    if !output.is_empty() {
        bound = bound.output(slice(3));
    }
    if !rows.is_empty() {
        bound = bound.rows(slice(4));
    }
    if !loss.is_empty() {
        bound = bound.loss(slice(5));
    }
    engine.run(&step, &bound);
    [0, 1, 2, 3, 4, 5]
        .map(|nth| if contents[nth].is_empty() { Vec::new() } else { engine.read(slice(nth)) })
}

/// Every operation writes the same bytes into one buffer as into buffers of their own, and leaves
/// its inputs as they were.
#[test]
fn one_buffer_holds_all_arrays_of_a_step() {
    use Operation::*;
    let operations = [
        Softmax,
        LogSoftmax,
        SoftmaxBackward,
        LogSoftmaxBackward,
        LogSumExp,
        Predict,
        TopK(3),
        Sample(Sampling::new(3)),
        CrossEntropy,
        CrossEntropyGrad,
        CrossEntropyBackward,
    ];
    // A row in registers, strided rows, several reads of a row, and a row that several workgroups
    // share.
    let shapes =
        [Shape::rows(9, 13), Shape::new(3, 40, 5), Shape::rows(5, 5000), Shape::rows(2, 140_001)];
    for (which, engine) in engines().iter().enumerate() {
        for (nth, shape) in shapes.into_iter().enumerate() {
            for (case, operation) in operations.into_iter().enumerate() {
                // A driver compiles each, so by default each operation runs once on each adapter.
                if tier::is_full() || (case + which) % shapes.len() == nth {
                    same_in_one_buffer(engine, shape, operation, case + which);
                }
            }
        }
    }
}

fn same_in_one_buffer(engine: &Engine, shape: Shape, operation: Operation, case: usize) {
    use Operation::*;
    let place = format!("{operation:?} of {shape:?} on {}", engine.gpu.name());
    let (rows, classes) = (shape.row_count(), shape.classes());
    let x = logits(rows * classes);
    let narrowed = |values: &[f32], dtype| match dtype {
        DType::F16 => bytes(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
        _ => bytes(values),
    };
    let (is_soft, in_place) = (case % 3 == 1, case % 2 == 1);
    let dtype = if case % 4 < 2 { DType::F32 } else { DType::F16 };
    let weight: Vec<f32> = (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
    let loss = match case % 3 {
        0 => logits::CrossEntropy::default().weight(weight),
        1 => logits::CrossEntropy::default().z_loss(1e-3),
        _ => logits::CrossEntropy::default().reduction(Reduction::None),
    };
    let is_loss = matches!(operation, CrossEntropy | CrossEntropyGrad | CrossEntropyBackward);
    let is_backward = matches!(operation, SoftmaxBackward | LogSoftmaxBackward);
    let has_elements = is_backward
        || matches!(operation, Softmax | LogSoftmax | CrossEntropyGrad | CrossEntropyBackward);
    let factors: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
    let labels: Vec<u32> = (0..rows).map(|row| (row * 7919 % classes) as u32).collect();
    let soft: Vec<f32> = x.iter().map(|x| x.abs() / classes as f32).collect();
    let logits = narrowed(&x, dtype);
    let poison = |length: usize| vec![0xff_u8; length];
    let arrays = Arrays {
        targets: match (is_loss, is_soft) {
            (false, _) => Vec::new(),
            (true, false) => bytes(&labels),
            (true, true) => bytes(&soft),
        },
        upstream: match (is_loss, is_backward) {
            (true, _) => bytes(&factors),
            (_, true) => narrowed(&soft, dtype),
            _ => Vec::new(),
        },
        output: poison(if has_elements && !in_place { logits.len() } else { 0 }),
        rows: match operation {
            CrossEntropyBackward => bytes(&vec![20.0_f32; rows]),
            LogSumExp | CrossEntropy | CrossEntropyGrad => poison(rows * 4),
            Predict | Sample(_) => poison(rows * 8),
            TopK(k) => poison(rows * 8 * k),
            _ => Vec::new(),
        },
        loss: poison(if is_loss && operation != CrossEntropyBackward && case % 3 != 2 {
            32
        } else {
            0
        }),
        logits,
    };
    let step = engine.gpu.prepare(operation, shape, dtype).loss(&loss);
    let step = if is_soft { step.soft_targets() } else { step };
    let apart = run(engine, &step, &arrays, false);
    let in_one = run(engine, &step, &arrays, true);
    let names = ["logits", "targets", "upstream", "output", "rows", "loss"];
    for ((name, apart), in_one) in names.iter().zip(&apart).zip(&in_one) {
        assert!(apart == in_one, "{name} of {place}");
    }
    assert!(
        in_one[1] == arrays.targets && in_one[2] == arrays.upstream,
        "targets or upstream of {place}"
    );
    assert!((has_elements && in_place) || in_one[0] == arrays.logits, "logits of {place}");
    let written = [&in_one[if in_place { 0 } else { 3 }], &in_one[4], &in_one[5]];
    let before =
        [if in_place { &arrays.logits } else { &arrays.output }, &arrays.rows, &arrays.loss];
    let expected = [has_elements, operation != CrossEntropyBackward, true];
    for ((after, before), is_written) in written.into_iter().zip(before).zip(expected) {
        assert!(
            before.is_empty() || !is_written || after != before,
            "nothing was written of {place}"
        );
    }
}

/// Parts that overlap, or start at an offset where no binding can, are refused by name.
#[test]
fn parts_of_one_buffer_lie_apart() {
    for engine in engines() {
        let step =
            engine.gpu.prepare(Operation::CrossEntropyGrad, [4, 10], DType::F32).build().unwrap();
        let one = engine.poisoned(1024);
        let part = |start: u64, length: u64| one.slice(start..start + length);
        let good = StepBuffers::new(part(0, 160))
            .targets(part(256, 16))
            .output(part(512, 160))
            .loss(part(768, 32));
        assert_eq!(step.bind(&good).map(|bound| bound.dispatches() > 0), Ok(true));
        let refused = |buffers: StepBuffers<'_>, error: Error| {
            assert_eq!(step.bind(&buffers).map(|bound| bound.dispatches()), Err(error));
        };
        refused(
            good.targets(part(156, 16)),
            Error::BufferOverlap { what: "targets", other: "logits" },
        );
        refused(
            good.output(part(256, 160)),
            Error::BufferOverlap { what: "targets", other: "output" },
        );
        refused(good.loss(part(508, 32)), Error::BufferOverlap { what: "loss", other: "output" });
        let alignment = 256;
        refused(
            good.targets(part(164, 16)),
            Error::BufferOffset { what: "targets", offset: 164, alignment },
        );
        // A second buffer, which holds inputs alone, is bound as `read_write` too.
        let inputs = engine.poisoned(256);
        let of_inputs =
            StepBuffers::new(inputs.slice(..160)).targets(part(256, 16)).output(part(512, 160));
        let of_inputs = of_inputs.loss(part(768, 32)).upstream(inputs.slice(160..176));
        refused(of_inputs, Error::BufferOffset { what: "upstream", offset: 160, alignment });
        assert!(step.bind(&of_inputs.upstream(inputs.slice(256..272))).is_ok());
        refused(
            good.in_place().targets(part(0, 16)),
            Error::BufferOverlap { what: "targets", other: "logits" },
        );
    }
}
