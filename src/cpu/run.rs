//! Runs a request on the CPU: chooses a schedule, and splits the request into tasks for the
//! threads.
//!
//! Rows are independent, so a request is halved until each half has no more than `grain` elements;
//! the bits of a row do not depend on where the cuts are. Where a request has fewer rows than there
//! are threads, and these have at least `SHARED_ROW_CLASSES` classes, the threads share the loops
//! over each row too. `dispatch.rs` takes over where a part is not split any further.

use super::rows::ROWS;
use super::scratch::Reserve;
use super::simd::{Level, level};
#[cfg(feature = "parallel")]
use super::threads;
use crate::ops::Request;
use crate::problem::operands::Data;
use crate::{Error, Shape};

/// Requests of up to this many elements stay on the calling thread: waking another costs some 20
/// microseconds, in which one core computes about this many.
#[cfg(feature = "parallel")]
const SINGLE_THREAD_ELEMENTS: usize = 32 * 1024;
/// A request is split into this many parts for each thread, so that threads that are done early
/// take over from others.
#[cfg(feature = "parallel")]
const PARTS_PER_THREAD: usize = 8;
/// Rows of fewer classes are not shared by threads.
#[cfg(feature = "parallel")]
const SHARED_ROW_CLASSES: usize = 64 * 1024;
/// Results of at least this many bytes are written past the caches.
const STREAMED_BYTES: usize = 16 << 20;

/// Finishes a whole request, on the threads of the current rayon pool where the feature `parallel`
/// is on.
///
/// # Errors
/// [`Error::SimdLevel`] where the environment asks for a level that this machine lacks;
/// [`Error::OutOfMemory`] where a row that cannot be computed in place finds no memory to be
/// computed in. Nothing is written then.
pub(crate) fn run(request: Request<'_>) -> Result<(), Error> {
    let schedule = Schedule::of(&request)?;
    run_with(request, schedule)
}

/// Memory that is set aside before a GPU starts on a request in place, so that the CPU can finish
/// the request without allocating more.
pub(crate) struct Ready(Reserve);

impl Ready {
    /// Sets aside the memory of one row, or of as many short rows as are computed together.
    ///
    /// # Errors
    /// [`Error::SimdLevel`] and [`Error::OutOfMemory`], as from [`run`].
    pub(crate) fn new(request: &Request<'_>) -> Result<Self, Error> {
        // A bad `LOGITS_SIMD` is reported here, before the GPU has written results.
        level()?;
        Reserve::new(request).map(Self)
    }

    /// Finishes `request`, whose rows are those that the GPU has not computed.
    pub(crate) fn finish(&self, request: Request<'_>) -> Result<(), Error> {
        let schedule = Schedule::of(&request)?;
        run_parts(request, schedule, Some(&self.0))
    }
}

/// How a request is computed, the same for all of its parts.
#[derive(Clone, Copy)]
pub(super) struct Schedule {
    /// The instruction set that the inner loops are compiled for.
    pub(super) level: Level,
    /// Whether results are written past the caches, where rows lie one after the other.
    pub(super) streams: bool,
    /// Whether threads share the loops over each row. A strided row is gathered first, and results
    /// are scattered, by the thread of its task.
    pub(super) threads_share_rows: bool,
    /// A part of no more than this many elements is not split any further.
    pub(super) grain: usize,
}

impl Schedule {
    fn of(request: &Request<'_>) -> Result<Self, Error> {
        let written_bytes = match &request.data {
            Data::Write { output, .. } => output.bytes_len(),
            Data::Read { .. } | Data::Over { .. } => 0,
        };
        Self::new(request.shape, written_bytes)
    }

    /// The schedule of a request that writes `written_bytes` of results to other memory than the
    /// logits'.
    pub(super) fn new(shape: Shape, written_bytes: usize) -> Result<Self, Error> {
        let streams = written_bytes >= STREAMED_BYTES;
        #[cfg(feature = "parallel")]
        let (rows, classes) = (shape.row_count(), shape.classes());
        #[cfg(feature = "parallel")]
        let threads = threads_for(rows * classes);
        #[cfg(feature = "parallel")]
        let (threads_share_rows, grain) = if threads > 1 {
            (
                classes >= SHARED_ROW_CLASSES && rows < threads,
                (rows * classes / (PARTS_PER_THREAD * threads)).max(SINGLE_THREAD_ELEMENTS),
            )
        } else {
            (false, usize::MAX)
        };
        #[cfg(not(feature = "parallel"))]
        let (threads_share_rows, grain, _) = (false, usize::MAX, shape);
        Ok(Self { level: level()?, streams, threads_share_rows, grain })
    }
}

impl Schedule {
    /// Returns the number of blocks in the first half of a request, or `None` if it is not halved.
    pub(super) fn half(self, shape: Shape) -> Option<usize> {
        if shape.outer() < 2 || shape.row_count() * shape.classes() <= self.grain {
            return None;
        }
        let half = shape.outer() / 2;
        // The cut is at a whole group of rows, where that does not leave a thread without work.
        Some(if half > 8 * ROWS { half.next_multiple_of(ROWS) } else { half })
    }
}

/// Returns the number of threads that a request of this many elements is split for.
pub(super) fn threads_for(elements: usize) -> usize {
    #[cfg(feature = "parallel")]
    if elements > SINGLE_THREAD_ELEMENTS {
        return threads::count();
    }
    let _ = elements;
    1
}

/// Finishes a whole request by the given schedule.
pub(super) fn run_with(request: Request<'_>, schedule: Schedule) -> Result<(), Error> {
    // A request that is one part allocates before it writes. In a request of several parts, one may
    // find no memory after others have written, so memory for it is set aside first.
    let (rows, is_large) =
        (request.rows(), request.rows() * request.shape.classes() > schedule.grain);
    let is_divided =
        rows > 1 && (is_large || request.shape.outer() > 1 && request.shape.inner() > 1);
    let reserve = if is_divided { Some(Reserve::new(&request)?) } else { None };
    run_parts(request, schedule, reserve.as_ref())
}

/// Halves the request, and each half in turn, until parts are small. Each part then runs on one
/// thread.
fn run_parts(
    request: Request<'_>,
    schedule: Schedule,
    reserve: Option<&Reserve>,
) -> Result<(), Error> {
    #[cfg(feature = "parallel")]
    if let Some(half) = schedule.half(request.shape) {
        let (a, b) = request.split_at(half);
        let (a, b) =
            rayon::join(|| run_parts(a, schedule, reserve), || run_parts(b, schedule, reserve));
        return a.and(b);
    }
    if request.rows() <= request.skip {
        return Ok(());
    }
    super::dispatch::run_part(request, schedule, reserve)
}
