//! Spreads work over the threads of the current rayon pool.

/// Returns how many threads share work: those of the current rayon pool. It is 1 where the system
/// refuses to start threads, and in a process that was forked after the pool was started, because a
/// fork has none of its threads.
#[cfg(feature = "parallel")]
pub(crate) fn count() -> usize {
    use std::sync::OnceLock;

    // In a browser only the page can start threads.
    if cfg!(target_family = "wasm") || rayon::current_thread_index().is_some() {
        return rayon::current_num_threads();
    }
    /// The process that started the pool.
    static STARTED: OnceLock<Option<u32>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let started = rayon::ThreadPoolBuilder::new().build_global();
        // The error has no source where a pool exists already, and has one where the system refuses
        // threads.
        let is_there = match started {
            Ok(()) => true,
            Err(error) if std::error::Error::source(&error).is_some() => false,
            // Rayon also remembers an earlier start that failed, and then panics on every use.
            Err(_) => std::panic::catch_unwind(rayon::current_num_threads).is_ok(),
        };
        is_there.then(std::process::id)
    });
    if *started == Some(std::process::id()) { rayon::current_num_threads() } else { 1 }
}

/// Calls `work(index, item)` for each item: on the threads of the current rayon pool where there
/// are some, else in order.
///
/// `work` is a trait object on purpose: hundreds of loops (levels, types, operations) call this,
/// and rayon's code, compiled for each, was half of the crate.
pub(crate) fn for_each<T: Send>(items: &mut [T], work: &(dyn Fn(usize, &mut T) + Sync)) {
    #[cfg(feature = "parallel")]
    if items.len() > 1 && count() > 1 {
        use rayon::prelude::*;
        return items.par_iter_mut().enumerate().for_each(|(nth, item)| work(nth, item));
    }
    items.iter_mut().enumerate().for_each(|(nth, item)| work(nth, item));
}
