//! The CPU path with little memory: an allocator refuses large allocations, one of them or all from
//! one on. A call then does its work, or returns a typed error and leaves logits in place as they
//! were.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::SeqCst};

use logits::{CrossEntropy, Device, Element, Error, Logits, LogitsMut, RowSum, Shape, Targets};

/// The system's allocator. While armed it refuses allocations of at least `LARGE` bytes.
struct Short;

/// Bytes of a large allocation. The queues of a thread pool are smaller: they abort if an
/// allocation fails.
const LARGE: usize = 2048;

static IS_ARMED: AtomicBool = AtomicBool::new(false);
/// How many more large allocations succeed.
static LEFT: AtomicIsize = AtomicIsize::new(0);
/// Whether only one is refused, and not all that follow.
static ONCE: AtomicBool = AtomicBool::new(false);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

fn refuses(bytes: usize) -> bool {
    if bytes < LARGE || !IS_ARMED.load(SeqCst) {
        return false;
    }
    let left = LEFT.fetch_sub(1, SeqCst);
    let refuses = if ONCE.load(SeqCst) { left == 0 } else { left <= 0 };
    REFUSED.fetch_add(usize::from(refuses), SeqCst);
    refuses
}

// SAFETY: every call goes to the system's allocator with the same arguments, or returns null, which
// means that there is no memory.
unsafe impl GlobalAlloc for Short {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        if refuses(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if refuses(bytes) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller's.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Short = Short;

/// Calls `call` and refuses large allocations after the first `allowed`: the next one alone where
/// `once`, else all. Returns the result and how many were refused.
fn with_memory_for<R>(allowed: isize, once: bool, call: impl FnOnce() -> R) -> (R, usize) {
    LEFT.store(allowed, SeqCst);
    ONCE.store(once, SeqCst);
    REFUSED.store(0, SeqCst);
    IS_ARMED.store(true, SeqCst);
    let result = call();
    IS_ARMED.store(false, SeqCst);
    (result, REFUSED.load(SeqCst))
}

/// Returns numbers between -8 and 8, not in order.
fn logits<T: Element>(count: usize, of: impl Fn(f64) -> T) -> Vec<T> {
    (0..count as u32)
        .map(|n| of(f64::from(n.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 20) - 8.0))
        .collect()
}

/// Runs `call` on a copy of `logits` with more memory each time, until no allocation is refused.
/// Returns how many runs were refused memory, and how many of these ended in an error.
fn check<T: Element>(
    what: &str,
    logits: &[T],
    call: impl Fn(&mut [T]) -> Result<Vec<T>, Error>,
) -> [usize; 2] {
    let mut wanted = logits.to_vec();
    let returned = call(&mut wanted).unwrap();
    let (mut refusals, mut errors) = (0, 0);
    for once in [false, true] {
        for allowed in 0.. {
            let mut data = logits.to_vec();
            let (outcome, refused) = with_memory_for(allowed, once, || call(&mut data));
            match outcome {
                Ok(values) => {
                    assert!(
                        values == returned && data == wanted,
                        "{what}, {allowed} allocations: other results"
                    )
                }
                Err(error) => {
                    errors += 1;
                    assert!(matches!(error, Error::OutOfMemory { .. }), "{what}: {error}");
                    assert!(
                        data == logits,
                        "{what}, {allowed} allocations: logits are not intact after \"{error}\""
                    );
                }
            }
            if refused == 0 {
                break;
            }
            refusals += 1;
            assert!(allowed < 1000, "{what}: no end of allocations");
        }
    }
    println!("| {what} | {refusals} | {errors} |");
    [refusals, errors]
}

/// Long and short rows, strided rows, few and many of them.
const SHAPES: [(usize, usize, usize); 6] =
    [(40, 3000, 1), (1, 70_000, 1), (3000, 20, 1), (3, 3000, 30), (4, 20, 700), (2, 70_000, 2)];

fn shape((outer, classes, inner): (usize, usize, usize)) -> Shape {
    Shape::new(outer, classes, inner)
}

fn every_call<T: Element>(
    dtype: &str,
    shapes: &[(usize, usize, usize)],
    of: impl Fn(f64) -> T + Copy,
) {
    println!("| call | refusals | errors |\n|---|---|---|");
    let device = Device::cpu();
    let mut counts = [0; 2];
    for &sizes in shapes {
        let shape = shape(sizes);
        let rows = sizes.0 * sizes.2;
        let x = logits(rows * sizes.1, of);
        let classes: Vec<i64> = (0..rows as i64).map(|row| row * 7 % sizes.1 as i64).collect();
        let soft: Vec<f32> = vec![1.0 / sizes.1 as f32; x.len()];
        let loss = CrossEntropy::default().label_smoothing(0.1);
        let name = |call: &str| format!("{call} of {dtype} {sizes:?}");
        let found = [
            check(&name("softmax in place"), &x, |data| {
                device.softmax(LogitsMut::new(data, shape)?).in_place().map(|_| Vec::new())
            }),
            check(&name("gradient in place"), &x, |data| {
                device
                    .cross_entropy(&loss, LogitsMut::new(data, shape)?, &classes)
                    .with_gradient_in_place()
                    .map(|_| Vec::new())
            }),
            check(&name("gradient of soft targets in place"), &x, |data| {
                let targets = Targets::probabilities(&soft);
                device
                    .cross_entropy(&loss, LogitsMut::new(data, shape)?, targets)
                    .with_gradient_in_place()
                    .map(|_| Vec::new())
            }),
            check(&name("log-softmax"), &x, |data| {
                Ok(device.log_softmax(Logits::new(data, shape)?).to_vec()?.values)
            }),
            check(&name("resident softmax"), &x, |data| {
                device.upload(Logits::new(data, shape)?)?.softmax().run()?.read()
            }),
            check(&name("top 3"), &x, |data| {
                device.top_k(Logits::new(data, shape)?, 3).to_vec().map(|_| Vec::new())
            }),
        ];
        found
            .iter()
            .for_each(|[refusals, errors]| counts = [counts[0] + refusals, counts[1] + errors]);
    }
    let [refusals, errors] = counts;
    assert!(refusals > 0, "{dtype}: no allocation was large enough to be refused");
    assert!(errors < refusals, "{dtype}: no call did its work with less memory");
}

/// Pushes and joins sums while memory is short: a refusal leaves the sum as it was, and the same
/// call does its work later.
fn sums_of_rows() {
    let losses: Vec<f32> = logits(300_000, |x| x as f32);
    let mut later = RowSum::new();
    later.push(&losses[262_144..]).unwrap();
    let sum_of = |once: bool, allowed: isize| {
        let (mut sum, mut refusals) = (RowSum::new(), 0);
        let again = |refused: Result<(), Error>, total: [f64; 2]| match refused {
            Ok(()) => false,
            Err(error) => {
                assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
                assert_eq!(total[0].to_bits(), total[1].to_bits(), "{error}");
                true
            }
        };
        let pieces = [0, 100, 1024, 5000, 250_000, 262_144];
        for piece in pieces.windows(2) {
            let (before, piece) = (sum.total(), &losses[piece[0]..piece[1]]);
            let (refused, _) = with_memory_for(allowed, once, || sum.push(piece));
            if again(refused, [before, sum.total()]) {
                refusals += 1;
                sum.push(piece).unwrap();
            }
        }
        let before = sum.total();
        let (refused, _) = with_memory_for(allowed, once, || sum.join(&later));
        if again(refused, [before, sum.total()]) {
            refusals += 1;
            sum.join(&later).unwrap();
        }
        (sum.total(), refusals)
    };
    let (wanted, none) = sum_of(false, 1000);
    assert_eq!(none, 0);
    for (once, allowed) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let (total, refusals) = sum_of(once, allowed);
        assert_eq!(total.to_bits(), wanted.to_bits());
        assert!(allowed > 0 || refusals >= 3, "{refusals} refusals");
    }
}

/// One test for all types: when one of several tests ends, the harness makes allocations that must
/// not be refused.
#[test]
fn every_type_is_done_or_refused() {
    every_call("f32", &SHAPES, |x| x as f32);
    every_call("f16", &SHAPES[2..4], logits::half::f16::from_f64);
    every_call("f64", &SHAPES[2..4], |x| x);
    sums_of_rows();
}
