//! One opened adapter with everything that lives as long as it does.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollster::block_on;
use wgpu::{Adapter, Device, ErrorFilter, Features, Queue};

use super::adapter::backend_name;
use super::buffers::Pool;
use super::kernels::Kernels;
use crate::Error;
use crate::plan::Limits;

pub(crate) struct Gpu {
    pub(super) device: Device,
    pub(super) queue: Queue,
    pub(super) limits: Limits,
    pub(super) kernels: Kernels,
    pub(super) pool: Pool,
    name: String,
    backend: &'static str,
    faults: Arc<Mutex<Faults>>,
}

/// What went wrong outside of any error scope.
#[derive(Default)]
struct Faults {
    /// The device is gone, and with it every later call.
    lost: Option<String>,
    /// Anything else; it spoils the call that it is found in.
    stray: Option<String>,
}

impl Gpu {
    pub(super) fn open(adapter: &Adapter) -> Result<Self, String> {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("logits"),
            required_features: adapter.features() & Features::SUBGROUP,
            required_limits: limits.clone(),
            ..Default::default()
        }))
        .map_err(|error| one_line(&error))?;

        let faults = Arc::new(Mutex::new(Faults::default()));
        // wgpu's own handlers panic.
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&seen).stray.get_or_insert(one_line(&error));
        }));
        let seen = faults.clone();
        device.set_device_lost_callback(move |_, message| {
            lock(&seen).lost.get_or_insert(format!("the device was lost: {message}"));
        });

        Ok(Self {
            kernels: Kernels::new(&device, device.features().contains(Features::SUBGROUP)),
            pool: Pool::default(),
            limits: Limits {
                binding_bytes: limits.max_storage_buffer_binding_size,
                buffer_bytes: limits.max_buffer_size,
                workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            },
            name: info.name,
            backend: backend_name(info.backend),
            device,
            queue,
            faults,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn backend(&self) -> &'static str {
        self.backend
    }

    /// Does the work with every error of wgpu caught on the way.
    pub(super) fn guarded<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if let Some(lost) = lock(&self.faults).lost.clone() {
            return Err(self.failed(lost));
        }
        let scopes = [ErrorFilter::Validation, ErrorFilter::OutOfMemory, ErrorFilter::Internal]
            .map(|filter| self.device.push_error_scope(filter));
        let result = work();
        // Scopes are a stack. What wgpu caught came first, and explains whatever failed after it.
        let mut caught = None;
        for scope in scopes.into_iter().rev() {
            caught = block_on(scope.pop()).or(caught);
        }
        let mut faults = lock(&self.faults);
        let fault = faults.stray.take().or_else(|| faults.lost.clone());
        match caught.map(|error| one_line(&error)).or(fault) {
            Some(reason) => Err(self.failed(reason)),
            None => result,
        }
    }

    pub(super) fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Gpu { adapter: self.name.clone(), reason: reason.into() }
    }
}

fn lock(faults: &Mutex<Faults>) -> MutexGuard<'_, Faults> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("name", &self.name).field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// Errors of wgpu span lines and tell causes in their sources.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
