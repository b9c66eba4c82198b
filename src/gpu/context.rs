//! An opened adapter with everything that lives as long as it does. The call after a device was
//! lost opens it again.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wgpu::{Adapter, AdapterInfo, Backend, Device, DeviceType, ErrorFilter, Features, Queue};

use super::adapter::{self, backend_name};
use super::failure::{GpuError, catch_panic, lock, one_line};
use super::pipelines::Kernels;
use super::pool::Pool;
use super::self_test;
use super::wait::Poller;
use crate::Error;
use crate::plan::tuning::Tuning;
use crate::plan::{Limits, UNIT_BYTES};

/// A wgpu device made ready for the kernels; cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<Shared>);

struct Shared {
    /// The open device, replaced by a new one when it is lost.
    context: Mutex<Arc<GpuContext>>,
    name: String,
    backend: &'static str,
    /// Whether the device is the caller's, who alone can open it again.
    is_borrowed: bool,
    /// Replaces the tuning that follows from the adapter.
    tuning: Option<Tuning>,
    /// Whether subgroups are used where the device has them.
    uses_subgroups: bool,
}

/// One wgpu device and everything that was made with it.
pub(super) struct GpuContext {
    pub(super) device: Device,
    pub(super) queue: Arc<GuardedQueue>,
    pub(super) limits: Limits,
    pub(super) kernels: Kernels,
    pub(super) pool: Pool,
    pub(super) poller: Poller,
    /// Whether the device computes in memory that the host can map, so that nothing needs staging.
    pub(super) maps_storage: bool,
    /// Whether a kernel can write one component of a vector in a buffer and leave the others alone.
    /// Metal's language writes the whole vector; a browser's and GL's may do so too.
    pub(super) writes_parts: bool,
    name: String,
    faults: Arc<Mutex<Faults>>,
    /// The process that opened the device. A process forked from it has neither the driver's
    /// threads nor ours.
    pub(super) process: u32,
}

/// How long a device that is dropped waits for work that is still under way.
const DROP_TIMEOUT: Duration = Duration::from_millis(500);

/// A queue that does not hang or panic when it is dropped. wgpu waits without end for the work of a
/// queue that is dropped, and panics where the driver had no memory for it. So a queue of ours is
/// dropped only when its work ends within [`DROP_TIMEOUT`], and is leaked otherwise; a caller's
/// queue is dropped as it is.
pub(super) struct GuardedQueue {
    queue: Option<Queue>,
    device: Device,
    faults: Arc<Mutex<Faults>>,
    is_ours: bool,
    process: u32,
}

impl GuardedQueue {
    fn new(device: &Device, queue: Queue, faults: &Arc<Mutex<Faults>>, is_ours: bool) -> Arc<Self> {
        let (queue, device, faults) = (Some(queue), device.clone(), faults.clone());
        Arc::new(Self { queue, device, faults, is_ours, process: process() })
    }
}

impl Deref for GuardedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // Only `drop` takes it.
        self.queue.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for GuardedQueue {
    fn drop(&mut self) {
        let Some(queue) = self.queue.take() else { return };
        if !self.is_ours || cfg!(target_arch = "wasm32") {
            return;
        }
        // wgpu does not wait for a device that is lost; polling one may panic.
        let is_lost = lock(&self.faults).lost.is_some();
        let ends = || is_lost || Poller::new(&self.device).wait_here(None, DROP_TIMEOUT).is_ok();
        if self.process == process() && ends() {
            drop(catch_panic(|| drop(queue)));
        } else {
            // A leaked queue keeps its device, and everything that the GPU still uses.
            std::mem::forget(queue);
        }
    }
}

/// Errors that came outside of any error scope.
#[derive(Default)]
struct Faults {
    /// Why the device was lost; every later call on it fails.
    lost: Option<String>,
    /// The first other error; the call that finds it fails.
    stray: Option<String>,
}

impl Gpu {
    /// Takes your wgpu device, with the features and limits that it has. Subgroup operations are
    /// used where the device has [`Features::SUBGROUP`]; its callbacks and error handlers are left
    /// as they are. The device is not tested: [`Gpu::self_test`] does that.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where the device lacks what the kernels need: compute shaders, 8 storage
    /// buffers a shader stage, 256 threads and 3 KiB of memory a workgroup, bindings of 1 MiB.
    /// Every device with wgpu's default limits has them.
    pub fn from_wgpu(device: &Device, queue: &Queue) -> Result<Self, Error> {
        let info = adapter::about(device.adapter_info());
        let backend = backend_name(info.backend);
        if let Some(reason) = adapter::lacking(&device.limits()) {
            return Err(Error::NoGpu {
                wanted: format!("the caller's device on {}", info.name),
                reason,
            });
        }
        let faults = Arc::default();
        let context = GpuContext::new(
            device.clone(),
            GuardedQueue::new(device, queue.clone(), &faults, false),
            &info,
            faults,
        );
        let (context, name) = (Mutex::new(Arc::new(context)), info.name);
        Ok(Self(Arc::new(Shared {
            context,
            name,
            backend,
            is_borrowed: true,
            tuning: None,
            uses_subgroups: true,
        })))
    }

    /// Opens an adapter that passes the self-test. Returns the reason, too, if its subgroups are
    /// not used.
    pub(super) async fn open(adapter: &Adapter) -> Result<(Self, Option<String>), String> {
        let info = adapter::about(adapter.get_info());
        let backend = backend_name(info.backend);
        let context = Mutex::new(Arc::new(GpuContext::request(adapter).await?));
        let name = info.name.clone();
        let mut gpu = Self(Arc::new(Shared {
            context,
            name,
            backend,
            is_borrowed: false,
            tuning: None,
            uses_subgroups: true,
        }));
        let note = self_test::judge(&mut gpu, &info).await.map_err(|unfit| unfit.reason)?;
        Ok((gpu, note))
    }

    /// Tests how the device numbers threads, what its subgroups exchange, and the losses and
    /// gradients of 256 rows. The test takes a few milliseconds, and compiles one pipeline.
    /// Adapters that [`Device`] opens pass this test before they are used.
    ///
    /// [`Device`]: crate::Device
    ///
    /// # Errors
    /// [`Error::Gpu`] with the check that failed, or the reason why the test could not be made.
    pub fn self_test(&self) -> Result<(), Error> {
        crate::problem::waiting::block_on(self.self_test_async())
    }

    /// The async form of [`Gpu::self_test`].
    ///
    /// # Errors
    /// Fails as [`Gpu::self_test`] does.
    pub async fn self_test_async(&self) -> Result<(), Error> {
        let reason = |unfit: self_test::Unfit| Error::Gpu {
            adapter: self.0.name.clone(),
            reason: unfit.reason,
        };
        self_test::run(self).await.map_err(reason)
    }

    /// The adapter's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The adapter's backend: `vulkan`, `metal`, `dx12`, `gl` or `webgpu`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// The tuning that shapes the kernels.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        lock(&self.0.context).limits.tuning
    }

    /// The same wgpu device with kernels of another shape. Resident data and steps stay with the
    /// `Gpu` that made them.
    ///
    /// # Errors
    /// [`Error::Tuning`] if kernels cannot be made with one of the numbers.
    pub fn with_tuning(&self, tuning: Tuning) -> Result<Self, Error> {
        tuning.check()?;
        Ok(self.shaped(Some(tuning), self.0.uses_subgroups))
    }

    /// The same wgpu device with kernels that use no subgroups.
    pub(super) fn without_subgroups(&self) -> Self {
        self.shaped(self.0.tuning, false)
    }

    /// Whether kernels use subgroups.
    pub(super) fn has_subgroups(&self) -> bool {
        lock(&self.0.context).kernels.subgroup > 1
    }

    fn shaped(&self, tuning: Option<Tuning>, uses_subgroups: bool) -> Self {
        let GpuContext { device, queue, faults, .. } = &*lock(&self.0.context).clone();
        let info = adapter::about(device.adapter_info());
        let context = GpuContext::new(device.clone(), queue.clone(), &info, faults.clone())
            .shaped(tuning, uses_subgroups);
        let context = Mutex::new(Arc::new(context));
        let Shared { ref name, backend, is_borrowed, .. } = *self.0;
        Self(Arc::new(Shared {
            context,
            name: name.clone(),
            backend,
            is_borrowed,
            tuning,
            uses_subgroups,
        }))
    }

    /// Returns the device as it was opened last, lost or not.
    pub(super) fn now(&self) -> Arc<GpuContext> {
        lock(&self.0.context).clone()
    }

    /// Returns the open device; opens it again if it was lost.
    pub(super) async fn current(&self) -> Result<Arc<GpuContext>, Error> {
        let context = lock(&self.0.context).clone();
        context.check_process().map_err(|error| context.error(error))?;
        // wgpu reports what happened since the last call when it is polled. Polling a lost device
        // may panic every time.
        let polled = if context.lost().is_none() { context.poller.poll() } else { Ok(()) };
        let Some(reason) = context.lost() else {
            polled.map_err(|error| context.error(error))?;
            return Ok(context);
        };
        if self.0.is_borrowed {
            return Err(context.error(GpuError::new(reason)));
        }
        let adapters = adapter::adapters().await;
        let same = adapters.iter().find(|adapter| {
            let info = adapter::about(adapter.get_info());
            info.name == self.0.name && backend_name(info.backend) == self.0.backend
        });
        let again = match same {
            Some(adapter) => GpuContext::request(adapter).await,
            None => Err("its adapter is gone".to_owned()),
        };
        match again {
            Ok(again) => {
                let mut now = lock(&self.0.context);
                // Another thread may have opened it first; then both go on with that device.
                if Arc::ptr_eq(&now, &context) || now.lost().is_some() {
                    *now = Arc::new(again.shaped(self.0.tuning, self.0.uses_subgroups));
                }
                Ok(now.clone())
            }
            Err(why) => {
                let reason = format!("{reason}; and it could not be opened again: {why}");
                Err(Error::Gpu { adapter: self.0.name.clone(), reason })
            }
        }
    }
}

#[cfg(test)]
impl Gpu {
    /// Changes properties of the device before it is shared.
    pub(super) fn altered(&self, change: impl FnOnce(&mut GpuContext)) {
        let mut context = lock(&self.0.context);
        change(Arc::get_mut(&mut context).unwrap());
    }
}

impl GpuContext {
    async fn request(adapter: &Adapter) -> Result<Self, String> {
        let info = adapter::about(adapter.get_info());
        let mut features = Features::SUBGROUP
            | Features::TIMESTAMP_QUERY
            | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        if matches!(info.device_type, DeviceType::IntegratedGpu | DeviceType::Cpu) {
            features |= Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("logits"),
            required_features: adapter.features() & features,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        // wgpu opens the device in this call. If the driver has no memory for one of wgpu's
        // layouts, wgpu panics when it drops the others.
        let opening =
            catch_panic(|| adapter.request_device(&descriptor)).map_err(|error| error.reason)?;
        let (device, queue) = opening.await.map_err(|error| one_line(&error))?;

        let faults = Arc::new(Mutex::new(Faults::default()));
        // wgpu's own handlers panic.
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&seen).stray.get_or_insert(one_line(&error));
        }));
        let seen = faults.clone();
        device.set_device_lost_callback(move |_, message| {
            let reason = format!("the device was lost: {message}");
            lock(&seen).lost.get_or_insert(reason.trim_end_matches(": ").to_owned());
        });
        let queue = GuardedQueue::new(&device, queue, &faults, true);
        Ok(Self::new(device, queue, &info, faults))
    }

    fn new(
        device: Device,
        queue: Arc<GuardedQueue>,
        info: &AdapterInfo,
        faults: Arc<Mutex<Faults>>,
    ) -> Self {
        let (limits, features) = (device.limits(), device.features());
        // Subgroups of fewer than 4 threads do not help the kernels.
        let has_subgroups = features.contains(Features::SUBGROUP) && info.subgroup_min_size >= 4;
        let (least, most) =
            if has_subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (1, 1) };
        let tuning = Tuning::new(most, adapter::vendor(info));
        Self {
            kernels: Kernels::new(least),
            pool: Pool::default(),
            poller: Poller::new(&device),
            limits: Limits {
                binding_bytes: limits.max_storage_buffer_binding_size,
                part_bytes: u64::MAX,
                buffer_bytes: limits.max_buffer_size,
                workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
                offset_alignment: limits.min_storage_buffer_offset_alignment.max(UNIT_BYTES as u32),
                tile_bytes: limits
                    .max_compute_workgroup_storage_size
                    .saturating_sub(adapter::WORKGROUP_BYTES)
                    .into(),
                tuning,
            },
            // A discrete GPU would have to compute across the bus.
            maps_storage: features.contains(Features::MAPPABLE_PRIMARY_BUFFERS)
                && matches!(info.device_type, DeviceType::IntegratedGpu | DeviceType::Cpu),
            writes_parts: matches!(info.backend, Backend::Vulkan | Backend::Dx12),
            name: info.name.clone(),
            device,
            queue,
            faults,
            process: process(),
        }
    }

    fn shaped(mut self, tuning: Option<Tuning>, uses_subgroups: bool) -> Self {
        if !uses_subgroups {
            self.kernels = Kernels::new(1);
            self.limits.tuning =
                Tuning::new(1, adapter::vendor(&adapter::about(self.device.adapter_info())));
        }
        self.limits.tuning = tuning.unwrap_or(self.limits.tuning);
        self
    }

    pub(super) fn lost(&self) -> Option<String> {
        lock(&self.faults).lost.clone()
    }

    /// Returns the error of a call. The loss of the device explains every other error, a panic in
    /// wgpu's poll too.
    pub(super) fn error(&self, error: GpuError) -> Error {
        Error::Gpu { adapter: self.name.clone(), reason: self.lost().unwrap_or(error.reason) }
    }

    fn check_process(&self) -> Result<(), GpuError> {
        if self.process == process() {
            return Ok(());
        }
        Err(GpuError::new(
            "this process was forked from the one that opened it, and has none of the driver's threads",
        ))
    }

    /// Does `work`, and returns any error of wgpu that it caused.
    pub(super) async fn guarded<T>(
        &self,
        work: impl FnOnce() -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        self.check_process()?;
        if let Some(lost) = self.lost() {
            return Err(GpuError::new(lost));
        }
        // Scopes belong to a thread, so all are popped before this future waits.
        let (result, popped) = {
            let scopes = [ErrorFilter::Validation, ErrorFilter::OutOfMemory, ErrorFilter::Internal]
                .map(|filter| self.device.push_error_scope(filter));
            // wgpu also runs callbacks of others who share the device, in a submission too.
            let result = catch_panic(work).and_then(|result| result);
            let [validation, memory, internal] = scopes;
            // Scopes are a stack.
            let internal = internal.pop();
            let memory = memory.pop();
            (result, (validation.pop(), memory, internal))
        };
        // An error that wgpu caught came before the error of `work`, and explains it.
        let (validation, memory, internal) = popped;
        // A pipeline that the driver refuses is an internal error; its use is then a validation
        // error.
        let caught = [memory.await, internal.await, validation.await].into_iter().flatten().next();
        let caught = caught.map(|error| GpuError {
            reason: one_line(&error),
            out_of_memory: matches!(error, wgpu::Error::OutOfMemory { .. }),
        });
        let Some(error) = caught.or_else(|| lock(&self.faults).stray.take().map(GpuError::new))
        else {
            return match self.lost() {
                Some(lost) => Err(GpuError::new(lost)),
                None => result,
            };
        };
        self.kernels.forget();
        // wgpu reports a lost device when it is polled, which may panic.
        drop(self.poller.poll());
        Err(self.lost().map_or(error, GpuError::new))
    }
}

/// Returns the id of this process, or 0 where processes cannot be forked.
pub(super) fn process() -> u32 {
    if cfg!(unix) { std::process::id() } else { 0 }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("name", &self.0.name)
            .field("backend", &self.0.backend)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for GpuContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuContext").field("name", &self.name).finish_non_exhaustive()
    }
}
