//! Signals that end the process remove its temporary files first.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Temporary files that a signal removes. The lock is held while one is created and while they are
/// renamed.
static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

pub(super) fn temporaries() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets SIGHUP, SIGINT, SIGQUIT and SIGTERM remove the temporary files before they end the process.
/// Must be called before other threads start: they inherit the signal mask.
#[cfg(unix)]
pub(super) fn clean_up_after_signals() {
    use std::sync::Once;
    use std::{fs, thread};

    use nix::sys::signal::{SigSet, Signal, raise};

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter();
        let ending: SigSet = ending.filter(|&signal| !is_ignored(signal)).collect();
        // A signal goes to any thread that does not block it, so all threads block these, and one
        // waits for them.
        if ending.thread_block().is_err() {
            return;
        }
        let wait = move || {
            if let Ok(signal) = ending.wait() {
                let temporaries = temporaries();
                for file in temporaries.iter() {
                    let _ = fs::remove_file(file);
                }
                let _ = ending.thread_unblock();
                let _ = raise(signal);
            }
        };
        if thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(1 << 16)
            .spawn(wait)
            .is_err()
        {
            let _ = ending.thread_unblock();
        }
    });
}

#[cfg(not(unix))]
pub(super) fn clean_up_after_signals() {}

/// Lets a write beyond the file size limit return an error instead of ending the process.
pub(crate) fn survive_size_limit() {
    #[cfg(unix)]
    let _ = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGXFSZ).thread_block();
}

/// Returns whether `signal` is ignored, as under `nohup`. `SigSet::wait` would receive it all the
/// same.
#[cfg(unix)]
fn is_ignored(signal: nix::sys::signal::Signal) -> bool {
    use nix::libc::{SIG_IGN, sigaction};

    let mut action = std::mem::MaybeUninit::<sigaction>::zeroed();
    // SAFETY: a null new action only reads the current one, into memory of the right type.
    let is_known = unsafe { sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: `sigaction` is plain data; all zeros are valid, and the call has overwritten them.
    is_known && unsafe { action.assume_init() }.sa_sigaction == SIG_IGN
}
