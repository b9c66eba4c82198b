//! Spreads work over threads, as many as there are.

/// How many threads share work: those of the current rayon pool; 1 where the system gives none, and in a process that was forked from
/// the one that has them.
#[cfg(feature = "parallel")]
pub(crate) fn count() -> usize {
    use std::sync::OnceLock;

    // A browser's threads are the page's to start.
    if cfg!(target_family = "wasm") || rayon::current_thread_index().is_some() {
        return rayon::current_num_threads();
    }
    /// The process that started the pool.
    static STARTED: OnceLock<Option<u32>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let started = rayon::ThreadPoolBuilder::new().build_global();
        // A pool that was there already is an error without a source; one that the system refuses has that as its source.
        let is_there = started.map_or_else(|error| std::error::Error::source(&error).is_none(), |()| true);
        is_there.then(std::process::id)
    });
    if *started == Some(std::process::id()) { rayon::current_num_threads() } else { 1 }
}

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
