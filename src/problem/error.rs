//! The one error type of the crate.

/// The reason why a call was refused or could not be finished.
///
/// Every problem with the caller's data is found before anything is written, and its variant names
/// the value and its place. A message is one line that holds the texts of its causes (those of
/// wgpu, of the driver, of a file), so `source()` returns `None`: the causes themselves can be
/// neither cloned nor compared, and an `Error` can be both.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shape has no classes; softmax over nothing has no meaning.
    #[error("the shape [{rows}, {classes}] has no classes to reduce over")]
    ZeroClasses {
        /// The number of rows of the shape.
        rows: usize,
        /// The number of classes, which is 0; the message shows the whole shape.
        classes: usize,
    },
    /// The number of elements or of classes of the shape is beyond what the crate can index.
    #[error(
        "the shape [{rows}, {classes}] is too large: classes must stay below 2^32 - 1 and elements within memory"
    )]
    ShapeTooLarge {
        /// The number of rows of the shape.
        rows: usize,
        /// The number of classes of the shape.
        classes: usize,
    },
    /// The length of a slice does not fit the shape.
    #[error("{what} hold {found} values where {expected} are needed")]
    Length {
        /// The argument: "logits", "targets", "out", "weights", ...
        what: &'static str,
        /// The length that the shape needs, in values.
        expected: usize,
        /// The length that was given, in values.
        found: usize,
    },
    /// The row stride is so short that rows would overlap.
    #[error("a row stride of {stride} is shorter than the {classes} classes of a row")]
    RowStride {
        /// The stride given, in elements.
        stride: usize,
        /// The number of elements that a stride must span: the classes of a row, or `classes *
        /// inner` of a block.
        classes: usize,
    },
    /// A target is neither a class in `0..classes` nor an ignored index.
    #[error(
        "target {target} of row {row} is neither a class in 0..{classes} nor among the ignored {ignored:?}"
    )]
    TargetOutOfRange {
        /// The row whose target is wrong.
        row: usize,
        /// The target of that row.
        target: i128,
        /// The number of classes of the shape.
        classes: usize,
        /// The indices that the loss ignores.
        ignored: Vec<i64>,
    },
    /// A target probability is negative, beyond the range of f32 or not a number.
    #[error(
        "the target probability of class {class} in row {row} is {value}; it must be between 0 and 3.4028235e38"
    )]
    Probability {
        /// The row, numbered as targets that are class indices are.
        row: usize,
        /// The class.
        class: usize,
        /// The probability of that class in that row.
        value: f64,
    },
    /// The upstream gradient of a row is infinite or not a number.
    #[error("the upstream gradient of row {row} is {value}; it must be finite")]
    UpstreamGradient {
        /// The row.
        row: usize,
        /// The upstream gradient of that row.
        value: f32,
    },
    /// `k` is 0, above the number of classes of a row, or above the number of classes that one call
    /// finds.
    #[error(
        "the top {k} of {classes} classes: it must be at least 1, and at most {most} and the number of classes"
    )]
    TopK {
        /// The number of classes that was asked for.
        k: usize,
        /// The number of classes of a row.
        classes: usize,
        /// The largest `k` that a call takes.
        most: usize,
    },
    /// The device cannot compute with this type of logits.
    #[error("{dtype} logits on the GPU `{adapter}`: they are computed on the CPU alone")]
    DType {
        /// The type of the logits.
        dtype: crate::DType,
        /// The name of the adapter.
        adapter: String,
    },
    /// An array lies in memory neither in standard order without gaps nor, where it has two
    /// dimensions, column after column.
    #[error(
        "an array of shape {dimensions:?} with strides {strides:?} has gaps or another order; copy it to standard layout"
    )]
    Strides {
        /// The shape of the array.
        dimensions: Vec<usize>,
        /// The strides of the array, in elements.
        strides: Vec<isize>,
    },
    /// The loss has more ignored indices than a step on a GPU can look for; operations over host
    /// memory have no such bound.
    #[error("{found} ignored indices are beyond the {most} that a step can have")]
    IgnoredIndices {
        /// The number of indices that a step can have.
        most: usize,
        /// The number of indices of the loss.
        found: usize,
    },
    /// The weight of a class is negative, infinite or not a number.
    #[error("the weight of class {class} is {value}; weights must be finite and not negative")]
    Weight {
        /// The class whose weight is wrong.
        class: usize,
        /// The weight of that class.
        value: f32,
    },
    /// The value of the environment variable `LOGITS_SIMD` names no SIMD level that this machine
    /// has.
    #[error("LOGITS_SIMD is `{asked}`; this machine has {available:?}")]
    SimdLevel {
        /// The value of the variable.
        asked: String,
        /// The levels that this machine has.
        available: Vec<&'static str>,
    },
    /// An option of a loss, of logits or of a sampling is outside its range.
    #[error("{option} is {value}; it must be {range}")]
    OptionValue {
        /// The name of the option.
        option: &'static str,
        /// The value given.
        value: f32,
        /// The range of the option, in words.
        range: &'static str,
    },
    /// A step was not given a buffer that it needs.
    #[error("the step needs a buffer for {what}")]
    BufferMissing {
        /// The buffer: "targets", "output", "rows", "loss".
        what: &'static str,
    },
    /// The part of a buffer that was given is too small.
    #[error("the part of a buffer for {what} has {found} bytes where {needed} are needed")]
    BufferSize {
        /// The buffer.
        what: &'static str,
        /// The number of bytes that the step needs.
        needed: u64,
        /// The number of bytes of the part.
        found: u64,
    },
    /// A buffer was made without a usage that the step needs.
    #[error("the buffer for {what} lacks the usage {missing}")]
    BufferUsage {
        /// The buffer.
        what: &'static str,
        /// The usage that the buffer lacks.
        missing: &'static str,
    },
    /// The part of a buffer that was given starts where it cannot be bound.
    #[error(
        "the part of a buffer for {what} starts at byte {offset}, which is no multiple of {alignment}"
    )]
    BufferOffset {
        /// The buffer.
        what: &'static str,
        /// The start of the part, in bytes.
        offset: u64,
        /// The number of bytes that the start must be a multiple of.
        alignment: u64,
    },
    /// Two parts of one buffer overlap, and at least one of them is bound for writing.
    #[error("the parts for {what} and {other} overlap in one buffer")]
    BufferOverlap {
        /// The name of one part.
        what: &'static str,
        /// The name of the other part.
        other: &'static str,
    },
    /// The resident logits of a call and its other inputs, such as targets, are not on the same
    /// device.
    #[error("the inputs of the call are not all on the device that holds its logits")]
    ResidentElsewhere,
    /// The sums of two parts of a batch cannot be joined, since the rows of the earlier part fill
    /// no whole blocks: see [`RowSum::join`](crate::RowSum::join).
    #[error("a sum of {rows} rows is not of a multiple of 1024, and later rows cannot be joined")]
    PartOfBlock {
        /// The number of rows of the earlier part.
        rows: usize,
    },
    /// Host memory could not be allocated, for a result or for rows while they are computed. The
    /// logits of a call in place are intact; the contents of other outputs are unspecified.
    #[error("{bytes} bytes of host memory could not be had for {what}")]
    OutOfMemory {
        /// The purpose of the memory.
        what: &'static str,
        /// The number of bytes that was asked for.
        bytes: usize,
    },
    /// A GPU was asked for by name or by kind, and no adapter fits.
    #[error("no GPU for `{wanted}`: {reason}")]
    NoGpu {
        /// The name or kind that was asked for.
        wanted: String,
        /// The adapters that were looked at, each with the reason why it was rejected.
        reason: String,
    },
    /// A [`Tuning`](crate::Tuning) is one that no kernels can be made with, or a text or a file
    /// holds no tuning.
    #[error("no tuning: {reason}")]
    Tuning {
        /// The number or line that is wrong, and what it must be.
        reason: String,
    },
    /// The explicitly chosen GPU could not finish the call. Its inputs are intact, and the contents
    /// of its outputs are unspecified.
    #[error("the GPU `{adapter}` failed: {reason}")]
    Gpu {
        /// The name of the adapter.
        adapter: String,
        /// The message of wgpu or of the driver.
        reason: String,
    },
}

/// Returns a `Vec` of `length` default values, or [`Error::OutOfMemory`] where the allocator would
/// have aborted. `what` names its purpose.
pub(crate) fn try_vec<T: Clone + Default>(
    what: &'static str,
    length: usize,
) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    try_reserve(what, &mut values, length)?;
    values.resize(length, T::default());
    Ok(values)
}

/// Makes room in `values` for `length` values in all, or returns [`Error::OutOfMemory`], in which
/// `what` names the purpose.
pub(crate) fn try_reserve<T>(
    what: &'static str,
    values: &mut Vec<T>,
    length: usize,
) -> Result<(), Error> {
    let bytes = length.saturating_mul(size_of::<T>());
    values
        .try_reserve_exact(length.saturating_sub(values.len()))
        .map_err(|_| Error::OutOfMemory { what, bytes })
}
