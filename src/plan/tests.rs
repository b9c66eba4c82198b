//! Tests plans by arithmetic, with the limits of many adapters: every element is covered exactly
//! once, and no limit is exceeded.

use std::collections::HashSet;

use super::*;
use crate::plan::tuning::Vendor;

fn limits(
    binding_bytes: u64,
    buffer_bytes: u64,
    offset_alignment: u32,
    tile_bytes: u64,
    subgroup: u32,
    vendor: Vendor,
) -> Limits {
    Limits {
        binding_bytes,
        part_bytes: u64::MAX,
        buffer_bytes,
        workgroups_per_dimension: 65_535,
        offset_alignment,
        tile_bytes,
        tuning: Tuning::new(subgroup, vendor),
    }
}

/// The limits of adapters through wgpu, which allows a binding at most 2 GiB - 1. The limits of
/// llvmpipe were read from the adapter; the others are known from their drivers.
pub(crate) fn adapters() -> [(&'static str, Limits); 10] {
    [
        ("NVIDIA H100, Vulkan", limits((1 << 31) - 4, 1 << 50, 16, 46 << 10, 32, Vendor::Other)),
        (
            "NVIDIA GTX 1060, DX12",
            limits((1 << 31) - 4, (1 << 31) - 4, 32, 30 << 10, 32, Vendor::Other),
        ),
        (
            "AMD RX 7900, RADV",
            limits((1 << 31) - 4, (1 << 32) - 4, 16, 62 << 10, 64, Vendor::Other),
        ),
        ("Intel Xe, ANV", limits(1 << 30, 1 << 32, 16, 62 << 10, 32, Vendor::Intel)),
        ("Apple M2, Metal", limits((1 << 31) - 4, 9 << 30, 32, 30 << 10, 64, Vendor::Apple)),
        ("Adreno 740, Vulkan", limits(128 << 20, 1 << 30, 64, 30 << 10, 128, Vendor::Other)),
        ("Mali-G78, Vulkan", limits(256 << 20, 1 << 31, 64, 30 << 10, 16, Vendor::Arm)),
        ("WARP, DX12", limits((1 << 31) - 4, (1 << 31) - 4, 32, 30 << 10, 4, Vendor::Software)),
        ("llvmpipe, Vulkan", limits(128 << 20, 1 << 31, 16, 30 << 10, 8, Vendor::Software)),
        ("WebGPU default", limits(128 << 20, 256 << 20, 256, 14 << 10, 1, Vendor::Other)),
    ]
}

const SHAPES: [(u64, u64); 31] = [
    (1, 1),
    (2, 1),
    (4096, 1),
    (4097, 1),
    (65_535, 1),
    (65_536, 2),
    (1 << 31, 1),
    (300_000, 3),
    (262_144, 10),
    (1 << 28, 10),
    (65_536, 100),
    (1 << 22, 1000),
    (7, 2047),
    (7, 2048),
    (7, 2049),
    (70_000, 2049),
    (1024, 32_000),
    (1 << 20, 32_000),
    (256, 128_256),
    (2, 131_072),
    (2, 131_073),
    (100_000, 131_073),
    (8, 262_144),
    (3, 1_000_003),
    (5000, 1_000_003),
    (1, 1 << 25),
    (2, (1 << 25) + 1),
    (1, 1 << 29),
    (1, (1 << 31) - 1),
    (1, 1 << 31),
    (2, CLASSES),
];

const OPS: [Op; 4] = [Op::Softmax, Op::Predict, Op::CrossEntropy, Op::CrossEntropyGrad];

fn plans() -> impl Iterator<Item = (String, KernelProblem, Limits, Plan)> {
    adapters().into_iter().flat_map(|(name, limits)| {
        SHAPES.into_iter().flat_map(move |(rows, classes)| {
            OPS.into_iter().map(move |op| {
                let total = op.has_losses();
                let problem = KernelProblem {
                    count: total,
                    sum: total,
                    ..KernelProblem::dense(op, rows, classes)
                };
                let what = format!("{op:?} {rows}x{classes} on {name}");
                let plan = Plan::new(problem, limits).unwrap_or_else(|why| panic!("{what}: {why}"));
                (what, problem, limits, plan)
            })
        })
    })
}

/// Asserts that ranges follow each other from 0 to `end` without a gap.
fn cover(what: &str, ranges: impl IntoIterator<Item = Range<u64>>, end: u64) {
    let reached = ranges.into_iter().fold(0, |at, range| {
        assert!(range.start == at && range.end > at, "{what}: {range:?} after {at}");
        range.end
    });
    assert_eq!(reached, end, "{what}");
}

fn is_main(entry: Entry) -> bool {
    matches!(entry, Entry::RegisterResident | Entry::Online | Entry::SplitReduce)
}

#[test]
fn every_element_is_covered_exactly_once() {
    for (what, problem, _, plan) in plans() {
        let passes = plan.passes();
        let of = |entry| passes.iter().filter(move |pass| pass.entry == entry);
        let elements = problem.rows * problem.classes;
        cover(
            &what,
            passes
                .iter()
                .filter(|pass| is_main(pass.entry))
                .map(|pass| pass.elements(1, problem.classes)),
            elements,
        );
        if plan.is_split() {
            cover(&what, of(Entry::SplitJoin).map(|pass| pass.rows.clone()), problem.rows);
            if problem.op.spec().writes_elements {
                cover(
                    &what,
                    of(Entry::SplitWrite).map(|pass| pass.elements(1, problem.classes)),
                    elements,
                );
            }
        }
        // Rows are reduced and joined before they are written.
        let order = |pass: &Pass| match pass.entry {
            Entry::SplitReduce => 1,
            Entry::SplitJoin => 2,
            _ => 3,
        };
        let of_rows = |start| {
            passes.iter().filter(move |pass| pass.rows.start == start && pass.segments.end > 0)
        };
        assert!(of_rows(0).map(order).is_sorted(), "{what}");
        for (first, last) in
            [(Entry::CountTargets, Entry::TotalTargets), (Entry::SumLosses, Entry::TotalLosses)]
        {
            if problem.count {
                cover(&what, of(first).map(|pass| pass.rows.clone()), problem.rows);
                assert!(of(first).all(|pass| pass.rows.start.is_multiple_of(GROUP_ROWS)), "{what}");
                assert_eq!(of(last).count(), 1);
            }
        }
    }
}

#[test]
fn workgroups_reach_every_element() {
    for (what, _, _, plan) in plans() {
        for pass in plan.passes() {
            let rows = pass.rows.end - pass.rows.start;
            let segments = u64::from(pass.segments.end - pass.segments.start);
            let lanes = u64::from(plan.strategy.lanes);
            let needed = match pass.entry {
                Entry::RegisterResident | Entry::Online | Entry::SplitJoin => {
                    (rows * lanes).div_ceil(WORKGROUP.into())
                }
                Entry::SplitReduce | Entry::SplitWrite => {
                    assert!(
                        rows == 1 || segments == u64::from(plan.segments()),
                        "{what}: {pass:?}"
                    );
                    let held = pass.classes.end - pass.classes.start;
                    assert!(
                        segments * plan.segment() >= held && (segments - 1) * plan.segment() < held,
                        "{what}: {pass:?}"
                    );
                    (rows * segments * lanes).div_ceil(WORKGROUP.into())
                }
                Entry::CountTargets | Entry::SumLosses => (rows.div_ceil(GROUP_ROWS)
                    * u64::from(plan.long_lanes()))
                .div_ceil(WORKGROUP.into()),
                Entry::TotalTargets | Entry::TotalLosses => 1,
            };
            let [x, y, z] = pass.groups.map(u64::from);
            assert!(x * y * z >= needed && x * y < needed + y, "{what}: {pass:?} needs {needed}");
        }
    }
}

#[test]
fn no_limit_is_crossed() {
    for (what, problem, limits, plan) in plans() {
        let slack = u64::from(limits.offset_alignment) - 1;
        assert!(plan.partial_bytes() <= limits.binding_bytes, "{what}");
        for pass in plan.passes() {
            let Range { start, end } = pass.elements(1, problem.classes);
            let elements = end - start;
            // A binding may have to start before the part, whose offset in the caller's buffer is
            // arbitrary.
            assert!(elements * 4 + slack <= limits.binding_bytes, "{what}: {pass:?}");
            assert!(
                (pass.rows.end - pass.rows.start) * PREDICTION_BYTES + slack
                    <= limits.binding_bytes,
                "{what}: {pass:?}"
            );
            assert!(elements + slack / 4 < 1 << 32, "{what}: indices have 32 bits");
            assert!(
                pass.groups
                    .iter()
                    .all(|&groups| (1..=limits.workgroups_per_dimension).contains(&groups)),
                "{what}"
            );
            assert!(pass.groups[0] as u64 * (pass.groups[1] as u64) < 1 << 32, "{what}");
        }
    }
}

/// The parts of a batch in host memory hold every element once, and exceed no limit.
#[test]
fn batches_hold_every_element_once() {
    for (what, problem, limits, _) in
        plans().filter(|(_, problem, ..)| problem.rows * problem.classes <= 1 << 32)
    {
        for part in [Plan::LEAST_BINDING, 8 << 20, 85 << 20] {
            let problem = KernelProblem { count: false, sum: false, ..problem };
            let part = part.min(limits.binding_bytes);
            let plan = Plan::new(problem, Limits { part_bytes: part, ..limits }).unwrap();
            let flat = |batch: &Batch| {
                let (rows, classes) = (&batch.rows, &batch.classes);
                if rows.end - rows.start > 1 {
                    assert_eq!(*classes, 0..problem.classes);
                }
                rows.start * problem.classes + classes.start
                    ..(rows.end - 1) * problem.classes + classes.end
            };
            let mut elements = Vec::new();
            let mut rows = Vec::new();
            for batch in plan.batches() {
                let held =
                    (batch.rows.end - batch.rows.start) * (batch.classes.end - batch.classes.start);
                assert!(held * 4 <= part, "{what}: {batch:?}");
                assert!(
                    batch
                        .passes
                        .iter()
                        .all(|pass| pass.elements(1, batch.classes.end - batch.classes.start).end
                            <= held),
                    "{what}: {batch:?}"
                );
                if batch.writes_elements
                    || (!problem.op.spec().writes_elements
                        && batch.passes.iter().any(|p| is_main(p.entry)))
                {
                    elements.push(flat(&batch));
                }
                if batch.writes_rows {
                    rows.push(batch.rows.clone());
                }
            }
            cover(&what, elements, problem.rows * problem.classes);
            cover(&what, rows, problem.rows);
        }
    }
}

#[test]
fn the_kernel_depends_on_the_classes_alone() {
    for (rows, classes) in SHAPES {
        let of = |rows, limits| {
            Plan::new(KernelProblem::dense(Op::Softmax, rows, classes), limits).unwrap().strategy
        };
        for (_, limits) in adapters() {
            assert_eq!(of(rows, limits), of(1, limits));
        }
    }
}

#[test]
fn what_has_no_plan_is_told_with_both_numbers() {
    let problem =
        KernelProblem { count: true, sum: true, ..KernelProblem::dense(Op::CrossEntropy, 1, 10) };
    let webgpu = adapters()[9].1;
    let refused = |problem, limits| Plan::new(problem, limits).unwrap_err().to_string();
    let small = Limits { binding_bytes: 4096, ..webgpu };
    assert_eq!(
        refused(problem, small),
        "it can bind 4096 bytes at once, where 1048576 are needed at the least"
    );
    let wide = KernelProblem::dense(Op::CrossEntropy, 1, CLASSES + 1);
    assert_eq!(
        refused(wide, webgpu),
        "a row of 4294901761 classes is beyond the 4294901760 that a kernel can index"
    );
    let weighted =
        KernelProblem { weighted: true, ..KernelProblem::dense(Op::CrossEntropy, 1, 1 << 26) };
    assert_eq!(
        refused(weighted, webgpu),
        "268435456 bytes of class weights are beyond the 134217728 that it can bind at once"
    );
    let long = KernelProblem { rows: 1 << 33, ..problem };
    assert_eq!(
        refused(long, webgpu),
        "8589934592 rows are beyond the 4294959104 whose statistics it can bind at once"
    );
}

/// For `[outer, classes, inner]`, parts are whole blocks, or some strided rows of one, or a piece
/// of a single strided row.
#[test]
fn blocks_are_covered_whole_or_in_columns() {
    for (name, limits) in adapters() {
        for (outer, classes, inner) in [
            (1, 1, 5),
            (2, 21, 300),
            (8, 21, 1 << 18),
            (1, 21, 1 << 28),
            (70_000, 1000, 7),
            (3, 1 << 27, 3),
            (2, 140_000, 40_000),
            (1, 2, 1 << 30),
        ] {
            for (size, operand_bytes) in [(4, 0), (2, 0), (2, 4)] {
                let rows = outer * inner;
                let dense =
                    KernelProblem::dense(Op::CrossEntropyGrad, rows, classes).in_blocks(inner);
                let problem = KernelProblem { size, operand_bytes, ..dense };
                let what = format!("[{outer}, {classes}, {inner}] of {size} bytes on {name}");
                let plan = Plan::new(problem, limits).unwrap_or_else(|why| panic!("{what}: {why}"));
                let (mut reached, mut in_columns) = (0, false);
                for batch in plan.batches() {
                    let (count, held) = (
                        batch.rows.end - batch.rows.start,
                        batch.classes.end - batch.classes.start,
                    );
                    let is_whole =
                        batch.inner == inner && count % inner == 0 && batch.rows.start % inner == 0;
                    let is_columns = batch.inner == count
                        && batch.rows.start / inner == (batch.rows.end - 1) / inner;
                    assert!(is_whole || is_columns, "{what}: {batch:?}");
                    assert!(held == classes || count == 1, "{what}: {batch:?}");
                    assert!(
                        count * held * size.max(operand_bytes) <= limits.binding_bytes,
                        "{what}: {batch:?}"
                    );
                    in_columns |= !is_whole;
                    if batch.classes.end == classes && batch.writes_elements {
                        assert_eq!(batch.rows.start, reached, "{what}");
                        reached = batch.rows.end;
                    }
                }
                assert_eq!(reached, rows, "{what}");
                assert_eq!(plan.check_whole().is_err(), in_columns, "{what}");
            }
        }
    }
}

/// A register-resident row is read once, and a longer one twice where elements are written; other
/// traffic is small.
#[test]
fn kernels_move_little_more_than_they_must() {
    let reads_and_writes = |op, classes, transformed: bool| {
        let rows = (1 << 24) / classes;
        adapters().map(|(name, limits)| {
            let problem = KernelProblem::dense(op, rows, classes);
            let plan = Plan::new(problem, limits).unwrap();
            let traffic = plan.traffic(transformed);
            let bytes = rows * classes * 4;
            let whole = traffic.moved as f64 / bytes as f64;
            assert!(traffic.moved >= traffic.needed, "{op:?} {classes} on {name}");
            (plan.strategy.kind, whole, traffic.moved as f64 / traffic.needed as f64)
        })
    };
    for (classes, kind) in [
        (100, Kind::RegisterResident),
        (1000, Kind::RegisterResident),
        (8192, Kind::RegisterResident),
        (32_000, Kind::Online),
    ] {
        for (op, written) in
            [(Op::Softmax, 1.0), (Op::CrossEntropyGrad, 1.0), (Op::CrossEntropy, 0.0)]
        {
            let again = if kind == Kind::RegisterResident { 0.0 } else { written };
            for (found, whole, ratio) in reads_and_writes(op, classes, false) {
                assert_eq!(found, kind, "{op:?} {classes}");
                let wanted = 1.0 + written + again;
                assert!(whole >= wanted && whole < wanted + 0.13, "{op:?} {classes}: {whole}");
                assert!(ratio < 1.04 || again > 0.0, "{op:?} {classes}: {ratio}");
            }
        }
    }
    // The statistics of segments are nearly nothing. A logit transform takes one more reading of an
    // online row.
    for (_, whole, _) in reads_and_writes(Op::Softmax, 262_144, false) {
        assert!(whole > 3.0 && whole < 3.4, "{whole}");
    }
    for (_, whole, _) in reads_and_writes(Op::CrossEntropy, 32_000, true) {
        assert!(whole > 2.0 && whole < 2.01, "{whole}");
    }
}

/// Lanes are few enough for a subgroup where possible, and their units hold the whole row.
#[test]
fn lanes_and_units_hold_a_row() {
    for (name, limits) in adapters() {
        for size in [2, 4] {
            for classes in
                (1..=300).chain([999, 1000, 1001, 1024, 2047, 2048, 2049, 4096, 5001, 8191, 8192])
            {
                let plan = Plan::new(
                    KernelProblem { size, ..KernelProblem::dense(Op::Softmax, 100, classes) },
                    limits,
                )
                .unwrap();
                let Strategy { kind, lanes, units } = plan.strategy;
                let what = format!("{classes} of {size} bytes on {name}: {:?}", plan.strategy);
                assert!(lanes.is_power_of_two() && lanes <= WORKGROUP, "{what}");
                if kind != Kind::RegisterResident {
                    // Such a row would have to be staged, and does not fit workgroup memory.
                    assert!(
                        classes % (UNIT_BYTES / size) != 0 && limits.tuning.coalesces,
                        "{what}"
                    );
                    continue;
                }
                let unit = UNIT_BYTES / size;
                assert!(u64::from(lanes * units) * unit >= classes, "{what}");
                assert!(u64::from(lanes * (units - 1)) * unit < classes, "{what}");
                assert!(
                    u64::from(units) * unit * 4 <= u64::from(limits.tuning.lane_bytes),
                    "{what}"
                );
                let Tuning { subgroup, lane_bytes, .. } = limits.tuning;
                if classes <= u64::from(subgroup * lane_bytes / 4) {
                    assert!(lanes <= limits.tuning.subgroup, "{what}");
                }
                if let Access::Staged { elements } = plan.access() {
                    assert!(u64::from(elements) * 4 <= limits.tile_bytes, "{what}");
                    assert!(
                        u64::from(elements) >= u64::from(WORKGROUP / lanes) * classes,
                        "{what}"
                    );
                }
            }
        }
    }
}

/// A process that computes rows of every number of classes compiles a bounded number of kernels for
/// each operation.
#[test]
fn kernels_are_few_for_many_numbers_of_classes() {
    for (name, limits) in adapters() {
        for size in [2, 4] {
            let shapes = (1..=20_000).map(|classes| {
                let plan = Plan::new(
                    KernelProblem { size, ..KernelProblem::dense(Op::Softmax, 100, classes) },
                    limits,
                )
                .unwrap();
                // A kernel with one thread for each row is made for one number of classes.
                (plan.strategy, plan.access(), if plan.strategy.lanes == 1 { classes } else { 0 })
            });
            let kernels = shapes.collect::<HashSet<_>>().len();
            assert!(kernels <= 200, "{kernels} of {size} bytes on {name}");
        }
    }
}

/// The number of passes that a plan computes without a list is the length of the list.
#[test]
fn passes_are_counted_without_a_list() {
    for (what, problem, limits, _) in plans() {
        let problem = KernelProblem { count: false, sum: false, ..problem };
        let plan = Plan::new(problem, limits).unwrap();
        assert_eq!(plan.row_passes(), plan.passes().len() as u64, "{what}");
    }
}

#[test]
fn entry_points_are_in_their_files() {
    for entry in [
        Entry::RegisterResident,
        Entry::Online,
        Entry::SplitReduce,
        Entry::SplitJoin,
        Entry::SplitWrite,
        Entry::CountTargets,
        Entry::TotalTargets,
        Entry::SumLosses,
        Entry::TotalLosses,
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(entry.file());
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(&format!("fn {}(", entry.name())), "{entry:?}");
    }
}
