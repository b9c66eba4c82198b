//! Spreads the pieces of one row over threads.

/// Calls `work(index, item)` for each item, on the current rayon pool with the feature `parallel`, else in order.
///
/// `work` is a trait object on purpose: hundreds of loops (levels, types, operations) call this, and rayon's code, compiled for
/// each, was half of the crate.
pub(super) fn for_each<T: Send>(items: &mut [T], work: &(dyn Fn(usize, &mut T) + Sync)) {
    #[cfg(feature = "parallel")]
    {
        use rayon::prelude::*;
        items.par_iter_mut().enumerate().for_each(|(nth, item)| work(nth, item));
    }
    #[cfg(not(feature = "parallel"))]
    items.iter_mut().enumerate().for_each(|(nth, item)| work(nth, item));
}
