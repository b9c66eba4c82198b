//! Allocations that may fail.

use logits::Error;

/// Resizes `values` to `length`; new elements are 0. Returns [`Error::OutOfMemory`], which names
/// `what`, if there is no memory for it.
pub(crate) fn resize<T: Clone + Default>(
    values: &mut Vec<T>,
    what: &'static str,
    length: usize,
) -> Result<(), Error> {
    let bytes = length.saturating_mul(size_of::<T>());
    let refused = |_| Error::OutOfMemory { what, bytes };
    values.try_reserve_exact(length.saturating_sub(values.len())).map_err(refused)?;
    values.resize(length, T::default());
    Ok(())
}
