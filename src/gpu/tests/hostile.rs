//! Kernels run on the CPU after other compilers keep the bounds that the crate promises: naga's
//! MSL, compiled by clang with -ffast-math and run without subnormal numbers, as Metal may; and
//! naga's HLSL after Microsoft's DXC, which adds up in another order, both as DXC left it and after
//! clang has reordered it further. `tests/hostile` has the requests, the rows, the judge, and the
//! programs.
//!
//! `LOGITS_CXX=clang++` names the compiler; without it this is skipped, because it takes a minute.
//! `LOGITS_DXC` is a command that writes the listing of `FILE` to `FILE.ll`: `.ci/dxc LIBRARY`.
//! `LOGITS_FULL=1` runs every option with every strategy. `LOGITS_HOSTILE_KEEP=1` keeps the
//! compiled files in the temporary folder.

#[path = "../../../tests/hostile/asked.rs"]
mod asked;
#[path = "../../../tests/hostile/dxil.rs"]
mod dxil;
#[path = "../../../tests/hostile/judge.rs"]
mod judge;
#[path = "../../../tests/hostile/metal.rs"]
mod metal;
#[path = "../../../tests/hostile/program.rs"]
mod program;
#[path = "../../../tests/hostile/rows.rs"]
mod rows;

use std::collections::HashMap;
use std::time::Instant;

use half::{bf16, f16};
use naga::back::hlsl::ShaderModel;

use self::asked::{Asked, Spread, all_asked};
use self::judge::{Batch, Found, Verdict};
use self::program::{Mode, Workshop, output_of};
use self::rows::{Random, Row, rows};
use super::targets::{hlsl_of, msl_of, parsed, reachable};
use crate::gpu::params::{KernelOptions, Params, Starts, Summary};
use crate::gpu::pipelines::source;
use crate::ops::Op;
use crate::plan::{Entry, KernelProblem, Limits, Plan};
use crate::problem::operands::{Operands, RowTarget};
use crate::problem::transform::Transform;
use crate::{DType, Device, Logits, Reduction, tier};

/// Known violations of the bounds: an operation, the beginning of the option's name, kinds of rows,
/// and the reason.
const KNOWN_VIOLATIONS: [(Op, &str, &[&str], &str); 3] = [
    (
        Op::Sample,
        "top_k",
        &["subnormal"],
        "logits whose difference is flushed to 0 are as likely as each other",
    ),
    (
        Op::Sample,
        "top_p",
        &["subnormal"],
        "logits whose difference is flushed to 0 are as likely as each other",
    ),
    (
        Op::Sample,
        "both",
        &["subnormal"],
        "logits whose difference is flushed to 0 are as likely as each other",
    ),
];

/// One run: the request and the rows that it is judged by, its passes, and its buffers.
struct Case {
    asked: Asked,
    batch: Batch,
    passes: Vec<(usize, [u32; 3], Params)>,
    buffers: [Vec<u8>; 8],
}

/// The compilers that kernels go through.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Metal,
    /// The command that writes listings.
    Dxc(String),
}

/// Texts of kernels in the language of a route, each once.
struct Texts {
    route: Route,
    kernels: Vec<String>,
    numbers: HashMap<String, usize>,
    modules: HashMap<String, (naga::Module, naga::valid::ModuleInfo)>,
    edit: fn(String) -> String,
}

impl Texts {
    fn new(route: &Route, edit: fn(String) -> String) -> Self {
        Self {
            route: route.clone(),
            kernels: Vec::new(),
            numbers: HashMap::new(),
            modules: HashMap::new(),
            edit,
        }
    }

    fn number(&mut self, text: String) -> usize {
        let text = (self.edit)(text);
        let (module, info) = self.modules.entry(text).or_insert_with_key(|text| {
            let (module, info) = parsed(text);
            reachable(&module, &info)
        });
        let text = match self.route {
            Route::Metal => msl_of(module, info),
            Route::Dxc(_) => hlsl_of(module, info, ShaderModel::V6_2),
        };
        let next = self.kernels.len();
        *self.numbers.entry(text).or_insert_with_key(|text| {
            self.kernels.push(text.clone());
            next
        })
    }
}

/// Returns values in a type as bytes, and as the kernel reads them.
fn narrowed(dtype: DType, values: impl Iterator<Item = f32>) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut read) = (Vec::new(), Vec::new());
    for value in values {
        match dtype {
            DType::F16 => {
                // Infinities of the row are kept; rounding makes no others.
                let value =
                    if value.is_finite() { value.clamp(-65_504.0, 65_504.0) } else { value };
                bytes.extend(f16::from_f32(value).to_bits().to_ne_bytes());
                read.push(f16::from_f32(value).to_f64());
            }
            DType::BF16 => {
                bytes.extend(bf16::from_f32(value).to_bits().to_ne_bytes());
                read.push(bf16::from_f32(value).to_f64());
            }
            _ => {
                bytes.extend(value.to_ne_bytes());
                read.push(value.into());
            }
        }
    }
    (bytes, read)
}

fn widened(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let halves = bytes.as_chunks::<2>().0.iter().map(|&half| u16::from_ne_bytes(half));
    match dtype {
        DType::F16 => halves.map(|bits| f16::from_bits(bits).to_f64()).collect(),
        DType::BF16 => halves.map(|bits| bf16::from_bits(bits).to_f64()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_ne_bytes(word).into()).collect(),
    }
}

impl Case {
    fn new(asked: &Asked, texts: &mut Texts) -> Self {
        let Asked { op, dtype, ref loss, is_soft, spread, .. } = *asked;
        let is_sum = op.spec().forward.is_some();
        let is_mean = loss.reduction == Reduction::Mean;
        let transform = Transform::default().at_temperature(asked.temperature).unwrap();
        let transform = loss.transform(transform).unwrap();
        let operand_bytes = op.operand_bytes(dtype, is_soft);
        let k = if op == Op::TopK { 5 } else { 1 };
        let draws =
            if op == Op::Sample { asked.sampling.draws().unwrap() } else { Default::default() };
        let coefficients = loss.coefficients(7, 1.0, 1);
        let operands = Operands { transform, coefficients, ..Operands::default() };
        let is_heavy = op.is_heavy(&operands, operand_bytes);
        let (count, classes) = spread.shape(op, is_heavy);
        let mut loss = loss.clone();
        loss.weight = loss
            .weight
            .map(|weight| (0..classes).map(|class| weight[class % weight.len()]).collect());
        loss.upstream_gradients = loss.upstream_gradients.map(|factors| factors[..count].to_vec());

        let operands = Operands {
            transform,
            coefficients: loss.coefficients(classes, 1.0, 1),
            k,
            draws,
            ..Operands::default()
        };
        let problem = KernelProblem {
            size: dtype.size() as u64,
            operand_bytes,
            predictions: k as u64,
            heavy: is_heavy,
            weighted: loss.weight.is_some(),
            count: is_mean,
            sum: is_mean,
            ..KernelProblem::dense(op, count as u64, classes as u64)
        };
        let (_, limits) = crate::plan::tests::adapters()[4];
        let plan = Plan::new(problem, Limits { tuning: spread.tuning(), ..limits }).unwrap();
        assert_eq!(plan.strategy.kind, spread.kind(), "{}", asked.name());
        assert!(spread != Spread::Alone || plan.strategy.lanes == 1, "{}", asked.name());

        let options = KernelOptions::new(dtype, &operands, is_soft, is_mean, &[RowTarget::IGNORED]);
        let starts = Starts::of_each_kind()[0];
        let passes = plan.passes().into_iter().map(|pass| {
            assert_eq!(pass.rows.start, 0);
            let kernel = options.kernel(&plan, &problem, &pass, false, starts);
            let number = texts.number(source(kernel, pass.entry, 1));
            let mut params = options.params();
            params.rows = pass.rows.end as u32;
            (params.classes, params.inner) = (classes as u32, 1);
            (params.logits_stride, params.elements_stride) = (classes as u32, classes as u32);
            params.segments = plan.segments();
            (params.first_segment, params.pass_segments) =
                (pass.segments.start, pass.segments.len() as u32);
            params.first_group = Plan::first_group(&pass);
            let needs_groups = pass.entry == Entry::TotalLosses
                || (pass.entry == Entry::TotalTargets && operand_bytes == 0);
            params.groups = if needs_groups { plan.row_groups() } else { 0 };
            params.soft_rows = if operand_bytes > 0 { count as u32 } else { 0 };
            (number, pass.groups, params)
        });
        let passes = passes.collect();

        let mut rows = rows(count, classes, is_mean);
        let mut batch = Batch {
            op,
            dtype,
            loss: loss.clone(),
            scale: transform.scale,
            rows: Vec::new(),
            kinds: rows.iter().map(|row| row.kind).collect(),
            targets: rows.iter().map(|row| row.target).collect(),
            elementwise: None,
            known: Vec::new(),
            draws: Vec::new(),
            k,
        };
        if is_sum {
            // The operation starts from the results of another operation.
            batch.rows = rows.iter().map(|row| row.x.iter().map(|&x| x.into()).collect()).collect();
            batch.scale = 1.0;
            for (row, output) in rows.iter_mut().zip(batch.outputs(op == Op::LogSoftmaxBackward)) {
                row.x = output.into_iter().map(|value| value as f32).collect();
            }
            batch.scale = transform.scale;
        }
        let (logits, read) = narrowed(dtype, rows.iter().flat_map(|row| row.x.iter().copied()));
        batch.rows = read.chunks(classes).map(<[f64]>::to_vec).collect();
        let targets = targets_of(asked, &rows, &mut batch);
        match op {
            Op::CrossEntropyBackward => batch.known = batch.log_sum_exps(),
            Op::Sample => batch.draws = draws_of(asked, &rows),
            _ => {}
        }
        let of_rows: Vec<u32> = batch.known.iter().map(|value| value.to_bits()).collect();
        let mut rows_out: Vec<u8> = bytemuck::cast_slice(&of_rows).to_vec();
        rows_out.resize(count * 8 * k, 0xab);
        let buffers = [
            logits.clone(),
            targets,
            bytemuck::cast_slice(loss.weight.as_deref().unwrap_or(&[1.0])).to_vec(),
            vec![0xab; logits.len()],
            rows_out,
            vec![0xab; plan.partial_bytes() as usize + 32],
            vec![0xab; size_of::<Summary>()],
            bytemuck::cast_slice(loss.upstream_gradients.as_deref().unwrap_or(&[1.0])).to_vec(),
        ];
        Self { asked: asked.clone(), batch, passes, buffers }
    }
}

/// Returns the bytes of the binding of targets: classes, probabilities, an upstream gradient, or a
/// counter.
fn targets_of(asked: &Asked, rows: &[Row], batch: &mut Batch) -> Vec<u8> {
    let classes = rows[0].x.len();
    let mut random = Random::new(classes as u64 + 1);
    if asked.is_soft {
        let mut share =
            || if random.unit() < 0.05 { 0.0 } else { 2.0 * random.unit() / classes as f32 };
        let shares = rows.iter().flat_map(|row| (0..classes).map(move |class| (row.kind, class)));
        let shares = shares.map(|(kind, class)| match kind {
            // The smallest loss: the maximum has all of the probability.
            "[20, 0, ...]" if class == 0 => 1.0,
            "[20, 0, ...]" => 0.0,
            _ => share(),
        });
        let (bytes, read) = narrowed(DType::F32, shares);
        batch.elementwise = Some(read.chunks(classes).map(<[f64]>::to_vec).collect());
        return bytes;
    }
    if asked.op.spec().forward.is_some() {
        let sizes = [1.0, 1e4, 1e-3, 1e30];
        let values = (0..rows.len())
            .flat_map(|row| vec![sizes[row % 4]; classes])
            .map(|size| random.within(size));
        let (bytes, read) = narrowed(asked.dtype, values);
        batch.elementwise = Some(read.chunks(classes).map(<[f64]>::to_vec).collect());
        return bytes;
    }
    let class = |row: &Row| row.target.map_or(RowTarget::IGNORED, |class| class as u32);
    rows.iter().flat_map(|row| class(row).to_ne_bytes()).collect()
}

/// Returns the classes that the CPU draws.
fn draws_of(asked: &Asked, rows: &[Row]) -> Vec<u32> {
    let x: Vec<f32> = rows.iter().flat_map(|row| row.x.iter().copied()).collect();
    let x = Logits::new(&x, [rows.len(), rows[0].x.len()])
        .unwrap()
        .temperature(asked.temperature)
        .unwrap();
    let drawn = Device::cpu().sample(&asked.sampling, x).to_vec().unwrap().values;
    drawn.into_iter().map(|drawn| drawn.class).collect()
}

/// Returns the cases in the form that `run.cpp` reads.
fn input_of(cases: &[Case]) -> Vec<u8> {
    let mut input = Vec::new();
    let word = |input: &mut Vec<u8>, word: usize| input.extend((word as u32).to_ne_bytes());
    word(&mut input, cases.len());
    for case in cases {
        for buffer in &case.buffers {
            word(&mut input, buffer.len());
            input.extend(buffer);
        }
        word(&mut input, case.passes.len());
        for (number, [x, y, _], params) in &case.passes {
            let params = bytemuck::bytes_of(params);
            [*number, *x as usize, *y as usize, params.len()]
                .into_iter()
                .for_each(|value| word(&mut input, value));
            input.extend(params);
        }
    }
    input
}

/// Returns each case's verdict.
fn verdicts(cases: &[Case], output: &[u8]) -> Vec<Verdict> {
    let mut rest = output;
    let of = |case: &Case| {
        let buffers = case.buffers.each_ref().map(|buffer| {
            let (this, others) = rest.split_at(buffer.len());
            rest = others;
            this
        });
        let [_, _, _, elements, rows_out, _, summary, _] = buffers;
        let total = case.asked.loss.reduction == Reduction::Mean;
        case.batch.judge(&Found {
            elements: widened(case.batch.dtype, elements),
            rows: rows_out
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&word| u32::from_ne_bytes(word))
                .collect(),
            total: total.then(|| bytemuck::pod_read_unaligned::<Summary>(summary).loss),
        })
    };
    cases.iter().map(of).collect()
}

/// Returns the value of an environment variable, or prints why the test is skipped.
fn named(variable: &str) -> Option<String> {
    let name = std::env::var(variable).ok();
    if name.is_none() {
        tier::skip(&format!("kernels after a hostile compiler: {variable} is not set"));
    }
    name
}

fn compiler() -> Option<String> {
    let name = named("LOGITS_CXX")?;
    program::check_compiler(&name).unwrap();
    Some(name)
}

/// Compiles and runs the cases in each mode, and judges the results.
fn run<const N: usize>(
    cases: &[Case],
    texts: &Texts,
    compiler: &str,
    modes: [Mode; N],
) -> [Vec<Verdict>; N] {
    let workshop = Workshop::new();
    let mut clock = Instant::now();
    let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();
    let listings = match &texts.route {
        Route::Metal => Vec::new(),
        Route::Dxc(command) => workshop.listings(command, &texts.kernels),
    };
    println!(
        "{:?}: {} runs of {} kernels, listed in {:.1?}",
        texts.route,
        cases.len(),
        texts.kernels.len(),
        lap()
    );
    let input = input_of(cases);
    modes.map(|mode| {
        let sources = match texts.route {
            Route::Metal => metal::sources(&texts.kernels),
            Route::Dxc(_) => dxil::sources(&listings, mode),
        };
        let program = workshop.build(compiler, &sources, mode);
        let built = lap();
        let output = output_of(&program, &input, mode);
        let ran = lap();
        let verdicts = verdicts(cases, &output);
        println!("{mode:?}: compiled in {built:.1?}, run in {ran:.1?}, compared in {:.1?}", lap());
        verdicts
    })
}

/// Returns the index of the known violation, if it is one.
fn known(asked: &Asked, kind: &str) -> Option<usize> {
    KNOWN_VIOLATIONS.iter().position(|&(op, option, kinds, _)| {
        op == asked.op && asked.option.starts_with(option) && kinds.contains(&kind)
    })
}

#[test]
fn kernels_keep_their_bounds_after_a_hostile_compiler() {
    check_bounds(&Route::Metal);
}

#[test]
fn kernels_keep_their_bounds_after_dxc() {
    if let Some(dxc) = named("LOGITS_DXC") {
        check_bounds(&Route::Dxc(dxc));
    }
}

fn check_bounds(route: &Route) {
    let Some(compiler) = compiler() else { return };
    let mut texts = Texts::new(route, |text| text);
    let cases: Vec<Case> = all_asked().iter().map(|asked| Case::new(asked, &mut texts)).collect();
    let [strict, hostile] = run(&cases, &texts, &compiler, [Mode::Strict, Mode::Hostile]);
    println!(
        "{:<52} {:<18} {:>7} {:>9} {:>9}",
        "operation, option, type, strategy", "result", "bound", "strict", "hostile"
    );
    let (mut failures, mut seen) = (Vec::new(), KNOWN_VIOLATIONS.map(|_| Vec::new()));
    for ((case, strict), hostile) in cases.iter().zip(&strict).zip(&hostile) {
        let name = case.asked.name();
        for (a, b) in strict.worst.iter().zip(&hostile.worst) {
            println!(
                "{name:<52} {:<18} {:>7.0e} {:>9.1e} {:>9.1e}",
                a.quantity, a.bound, a.error, b.error
            );
        }
        for (mode, verdict) in [(Mode::Strict, strict), (Mode::Hostile, hostile)] {
            for (kind, text) in &verdict.failures {
                let text = format!("{name}, {mode:?}: {text}");
                match known(&case.asked, kind) {
                    Some(nth) => seen[nth].push(text),
                    None => failures.push(text),
                }
            }
        }
    }
    for ((op, option, _, why), texts) in KNOWN_VIOLATIONS.iter().zip(&seen) {
        println!("known violation, {op:?} {option}: {why}; {} such", texts.len());
        texts.iter().for_each(|text| println!("    {text}"));
    }
    assert!(failures.is_empty(), "{} out of bounds:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn kernels_without_opaque_break_after_clang() {
    check_that_they_break(&Route::Metal);
}

#[test]
fn kernels_without_opaque_break_after_dxc() {
    if let Some(dxc) = named("LOGITS_DXC") {
        check_that_they_break(&Route::Dxc(dxc));
    }
}

/// The proof can fail: the same compilers break the same kernels if `opaque` returns its argument.
fn check_that_they_break(route: &Route) {
    let Some(compiler) = compiler() else { return };
    let mut texts = Texts::new(route, |text| {
        let bare = text
            .replace("return bitcast<f32>(bitcast<u32>(x) ^ params.zero);", "return x;")
            .replace(
                "return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4<u32>(params.zero));",
                "return x;",
            );
        assert!(!bare.contains("^ params.zero") && bare.len() + 60 < text.len());
        bare
    });
    let asked = [Op::CrossEntropyGrad, Op::LogSumExp].map(|op| Asked::new(op, ""));
    let cases = asked.map(|asked| Case::new(&asked, &mut texts));
    let [strict, hostile] = run(&cases, &texts, &compiler, [Mode::Strict, Mode::Hostile]);
    for (case, verdict) in cases.iter().zip(&hostile) {
        verdict.failures.iter().for_each(|(_, text)| println!("{}: {text}", case.asked.name()));
    }
    assert!(!hostile[0].failures.is_empty(), "{route:?} broke nothing");
    // In strict mode clang keeps the order of operations, so MSL keeps its bounds. HLSL does not:
    // DXC has already reordered it.
    let is_broken = strict.iter().any(|verdict| !verdict.failures.is_empty());
    assert_eq!(is_broken, *route != Route::Metal, "{route:?}");
}
