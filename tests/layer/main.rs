//! Faults that a driver makes. A layer between Vulkan's loader and the driver (`layer.c`) makes
//! calls of wgpu fail. A call that may fall back must then give the right result and say why; one
//! that may not must give the right result or a typed error; and the call after it must work.
//!
//! Vulkan's loader loads the layer if the environment says so before wgpu asks for an instance. So
//! each test runs itself again, in a process with that environment and a time limit.

#![cfg(all(feature = "gpu", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails

mod calls;
mod days;
mod library;
#[path = "../suite/tier.rs"]
mod tier;

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::{self, File};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, panic, thread};

use library::{Kind, above_layer, found_or_skipped};

/// The environment variable with the path of the layer, in the process that has loaded it.
const LAYER: &str = "LOGITS_FAULT_LAYER";
/// The time limit of such a process; ten times as long if every place of a fault is tried.
const PATIENCE: Duration = Duration::from_secs(120);

/// The layer that this process has loaded.
struct Layer(extern "C" fn(c_int, c_int, c_int, c_int) -> c_int);

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

impl Layer {
    fn load(path: &str) -> Self {
        const RTLD_NOW: c_int = 2;
        let path = CString::new(path).unwrap();
        // SAFETY: the layer runs no code when it is loaded. It is never unloaded, so the loader
        // returns the same library each time.
        let function = unsafe { dlsym(dlopen(path.as_ptr(), RTLD_NOW), c"logits_fault".as_ptr()) };
        assert!(!function.is_null());
        // SAFETY: the function has this type in layer.c.
        Self(unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(c_int, c_int, c_int, c_int) -> c_int>(
                function,
            )
        })
    }

    /// Lets `times` calls of a kind fail with `result`, after `nth` more that succeed.
    fn fail(&self, kind: Kind, nth: usize, times: usize, result: i32) {
        self.0(kind as c_int, nth as c_int, times as c_int, result);
    }

    /// Lets calls of a kind succeed again, and returns how many have failed.
    fn mend(&self, kind: Kind) -> usize {
        self.0(kind as c_int, 0, 0, 0) as usize
    }
}

/// Panics of wgpu, which are caught, in places where it expects no error of a driver. A poll of a
/// lost device always panics.
const WGPU: [&str; 4] = [
    "Error in Device::poll",
    // A command buffer that cannot be begun, in `Queue::write_buffer`.
    "called `Result::unwrap()` on an `Err` value: OutOfMemory",
    // A command buffer that could not be ended, when its queue is dropped.
    "assertion `left != right` failed\n  left: 0x0\n right: 0x0",
    // A device that could not be opened.
    "buckets are not empty",
];

/// Other panics of this process, wherever they were caught.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Runs a test in a process of its own that has the layer.
fn below_wgpu(name: &str, test: fn(&Layer)) {
    if let Ok(layer) = env::var(LAYER) {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<String>().map_or("", String::as_str);
            let text = info.payload().downcast_ref::<&str>().unwrap_or(&text);
            if !WGPU.iter().any(|known| text.starts_with(known)) {
                PANICS.fetch_add(1, Ordering::Relaxed);
                usual(info);
            }
        }));
        test(&Layer::load(&layer));
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "panics of {name}");
        return;
    }
    let Some((layer, adapter)) = found_or_skipped() else { return };
    let log = layer.with_file_name(format!("{name}.log"));
    let file = File::create(&log).unwrap();
    let mut child = above_layer(env::current_exe().unwrap(), layer, adapter)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(LAYER, layer)
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let patience = PATIENCE * if tier::is_full() { 10 } else { 1 };
    let ended = loop {
        match child.try_wait().unwrap() {
            None if start.elapsed() < patience => thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill().unwrap();
                break child.wait().map(|_| format!("killed after {patience:?}")).unwrap();
            }
            Some(status) if status.success() => break String::new(),
            Some(status) => break status.to_string(),
        }
    };
    let said = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    println!("{said}\n{name}: {:.1} s", start.elapsed().as_secs_f32());
    assert!(
        ended.is_empty(),
        "{name} ended with {ended}; its last line: {}",
        said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default()
    );
    // wgpu leaks objects if it finds no memory while it opens a device, or panics while it drops
    // one.
    let leaks = ["UNASSIGNED-ObjectTracker-ObjectLeak", "VUID-vkDestroyDevice-device-00378"];
    let is_complaint =
        |line: &&str| ["VUID-", "UNASSIGNED-", "SYNC-"].iter().any(|kind| line.contains(kind));
    let complaint = said
        .lines()
        .filter(is_complaint)
        .find(|line| !leaks.iter().any(|leak| line.contains(leak)));
    assert_eq!(complaint, None, "the validation layer on {name}");
}
