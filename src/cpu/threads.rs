//! Work on parts of a row that threads share.

/// Calls `work` with each item and its index, on the threads of the current rayon pool where the feature `parallel` is on.
///
/// `work` is called through a pointer: there are hundreds of loops over pieces of rows (levels, types, operations), and rayon's machinery,
/// compiled anew for each of them, was half of this crate.
pub(super) fn for_each<T: Send>(items: &mut [T], work: &(dyn Fn(usize, &mut T) + Sync)) {
    #[cfg(feature = "parallel")]
    {
        use rayon::prelude::*;
        items.par_iter_mut().enumerate().for_each(|(nth, item)| work(nth, item));
    }
    #[cfg(not(feature = "parallel"))]
    items.iter_mut().enumerate().for_each(|(nth, item)| work(nth, item));
}
