//! The one error type of the crate.

/// Why a call was refused or could not be finished.
///
/// Every problem with the caller's data is found before anything is written, and names the value and its place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape without classes: softmax over nothing has no meaning.
    #[error("the shape [{rows}, {classes}] has no classes to reduce over")]
    ZeroClasses {
        /// Rows of the shape.
        rows: usize,
        /// Always 0; kept so that the message shows the whole shape.
        classes: usize,
    },
    /// A shape whose element count, or whose number of classes, is beyond what the crate can index.
    #[error("the shape [{rows}, {classes}] is too large: classes must stay below 2^32 - 1 and elements within memory")]
    ShapeTooLarge {
        /// Rows of the shape.
        rows: usize,
        /// Classes of the shape.
        classes: usize,
    },
    /// A slice whose length does not fit the shape.
    #[error("{what} hold {found} values where {expected} are needed")]
    Length {
        /// Which argument: "logits", "targets", "out", "weights", ...
        what: &'static str,
        /// The length that the shape asks for.
        expected: usize,
        /// The length that was given.
        found: usize,
    },
    /// Rows that would overlap.
    #[error("a row stride of {stride} is shorter than the {classes} classes of a row")]
    RowStride {
        /// The stride given, in elements.
        stride: usize,
        /// Classes of the shape.
        classes: usize,
    },
    /// A class index outside `0..classes` that is not the ignored one either.
    #[error("target {target} of row {row} is neither a class in 0..{classes} nor among the ignored {ignored:?}")]
    TargetOutOfRange {
        /// The row whose target is wrong.
        row: usize,
        /// The value found there.
        target: i128,
        /// Classes of the shape.
        classes: usize,
        /// The indices that would have been ignored.
        ignored: Vec<i64>,
    },
    /// A target probability that is negative, beyond the range of f32 or not a number.
    #[error("the target probability of class {class} in row {row} is {value}; it must be between 0 and 3.4028235e38")]
    Probability {
        /// The row, numbered as targets that are classes would be.
        row: usize,
        /// The class.
        class: usize,
        /// The value found there.
        value: f64,
    },
    /// An upstream gradient of a row that is infinite or not a number.
    #[error("the upstream gradient of row {row} is {value}; it must be finite")]
    UpstreamGradient {
        /// The row.
        row: usize,
        /// The value found there.
        value: f32,
    },
    /// More classes asked for than a row has, or than are found at once, or none.
    #[error("the top {k} of {classes} classes: it must be at least 1, and at most {most} and the number of classes")]
    TopK {
        /// How many were asked for.
        k: usize,
        /// Classes of a row.
        classes: usize,
        /// How many can be asked for.
        most: usize,
    },
    /// A type of logits that the device cannot compute with.
    #[error("{dtype} logits on the GPU `{adapter}`: they are computed on the CPU alone")]
    DType {
        /// The type.
        dtype: crate::DType,
        /// The adapter's name.
        adapter: String,
    },
    /// An array that lies in memory in another way than rows, planes or columns without gaps do.
    #[error(
        "an array of shape {dimensions:?} with strides {strides:?} has gaps or another order; copy it to standard layout"
    )]
    Strides {
        /// The array's shape.
        dimensions: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<isize>,
    },
    /// More ignored indices than a step on a GPU can look for; operations over host memory have no such bound.
    #[error("{found} ignored indices are beyond the {most} that a step can have")]
    IgnoredIndices {
        /// How many there may be.
        most: usize,
        /// How many there are.
        found: usize,
    },
    /// A class weight that is negative, infinite or not a number.
    #[error("the weight of class {class} is {value}; weights must be finite and not negative")]
    Weight {
        /// The class whose weight is wrong.
        class: usize,
        /// The value found there.
        value: f32,
    },
    /// `LOGITS_SIMD` names a level that this machine does not have, or none at all.
    #[error("LOGITS_SIMD is `{asked}`; this machine has {available:?}")]
    SimdLevel {
        /// What the variable says.
        asked: String,
        /// What it may say here.
        available: Vec<&'static str>,
    },
    /// An option of [`CrossEntropy`](crate::CrossEntropy) outside its range.
    #[error("{option} is {value}; it must be {range}")]
    OptionValue {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A step that was not given a buffer that it needs.
    #[error("the step needs a buffer for {what}")]
    BufferMissing {
        /// Which buffer: "targets", "output", "rows", "loss".
        what: &'static str,
    },
    /// Part of a buffer that is too small.
    #[error("the part of a buffer for {what} has {found} bytes where {needed} are needed")]
    BufferSize {
        /// Which buffer.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes found.
        found: u64,
    },
    /// A buffer that was made without a usage that is needed.
    #[error("the buffer for {what} lacks the usage {missing}")]
    BufferUsage {
        /// Which buffer.
        what: &'static str,
        /// The usage that it lacks.
        missing: &'static str,
    },
    /// Part of a buffer that starts where it cannot be bound.
    #[error("the part of a buffer for {what} starts at byte {offset}, which is no multiple of {alignment}")]
    BufferOffset {
        /// Which buffer.
        what: &'static str,
        /// Where it starts, in bytes.
        offset: u64,
        /// What that must be a multiple of.
        alignment: u64,
    },
    /// Parts of one buffer that cannot be used together: they overlap, or one is read and the other written.
    #[error("{what} and {other} are in the same buffer, and one of them is written")]
    BufferOverlap {
        /// Which buffer.
        what: &'static str,
        /// And which other.
        other: &'static str,
    },
    /// Resident logits and targets that are not on the same device.
    #[error("the targets are not where the logits are")]
    ResidentElsewhere,
    /// Host memory could not be had, for a result or for rows while they are computed. Logits of a call in place are intact; other
    /// outputs are unspecified.
    #[error("{bytes} bytes of host memory could not be had for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// A GPU was asked for by name or by kind and there is none that fits.
    #[error("no GPU for `{wanted}`: {reason}")]
    NoGpu {
        /// What was asked for.
        wanted: String,
        /// What was looked at and why it did not do.
        reason: String,
    },
    /// A [`Tuning`](crate::Tuning) that no kernels can be made with, or none at all.
    #[error("no tuning: {reason}")]
    Tuning {
        /// Which number or line of it, and what it must be.
        reason: String,
    },
    /// The explicitly chosen GPU could not finish the call; inputs are intact and outputs unspecified.
    #[error("the GPU `{adapter}` failed: {reason}")]
    Gpu {
        /// The adapter's name.
        adapter: String,
        /// What wgpu or the driver said.
        reason: String,
    },
}

/// A `Vec` of `length` default values, or a typed error where the allocator would have aborted.
pub(crate) fn try_vec<T: Clone + Default>(what: &'static str, length: usize) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    try_reserve(what, &mut values, length)?;
    values.resize(length, T::default());
    Ok(values)
}

/// Makes room for `length` values in all, or returns [`Error::OutOfMemory`].
pub(crate) fn try_reserve<T>(what: &'static str, values: &mut Vec<T>, length: usize) -> Result<(), Error> {
    let bytes = length.saturating_mul(size_of::<T>());
    values.try_reserve_exact(length.saturating_sub(values.len())).map_err(|_| Error::OutOfMemory { what, bytes })
}
