//! The process's devices and threads: one [`Runtime`] per process, shared by every engine. It must not know models.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hob_compute::{Compute, DeviceInfo, Placed};
use hob_cpu::{Cpu, CpuConfig};
use hob_gpu::{Gpu, GpuConfig};

use crate::error::Result;

/// How to compute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// CPU threads; `None` takes what affinity and control group allow.
    pub threads: Option<usize>,
    /// Keep activations in f32 (goldens run so; slower).
    pub exact: bool,
    /// Make the devices keep what a [`crate::Trace`] shows; slower.
    pub profile: bool,
    /// A GPU beside the CPU, or instead of it.
    pub gpu: Option<RuntimeGpu>,
}

/// Which GPU, and its part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeGpu {
    pub config: GpuConfig,
    /// Whether it computes all; else the CPU is device 0 and the GPU device 1 of a model's placement.
    pub alone: bool,
}

/// The devices, as one, behind a lock. Engines take turns: one step at a time.
pub struct Runtime {
    device: Mutex<Box<dyn Compute>>,
    info: DeviceInfo,
    /// Picks that engines made: the last one is what `Token::Device` means, whoever made it.
    picks: AtomicU64,
}

impl Runtime {
    /// Starts the CPU pool, or opens the GPU, or both.
    ///
    /// # Errors
    /// What a device says when it cannot start (threads, memory, no such adapter, a driver that refuses).
    pub fn new(config: &RuntimeConfig) -> Result<Arc<Runtime>> {
        let profiled = |device: Box<dyn Compute>| match config.profile {
            true => hob_compute::profiled(device),
            false => device,
        };
        let gpu = match &config.gpu {
            Some(gpu) => {
                let opened = Gpu::open(&GpuConfig { exact: config.exact, ..gpu.config.clone() })?;
                let opened = profiled(Box::new(opened));
                if gpu.alone {
                    return Ok(Self::with_device(opened));
                }
                Some(opened)
            }
            None => None,
        };
        let threads = config.threads.unwrap_or_else(hob_cpu::available_threads);
        let cpu = Cpu::new(&CpuConfig { threads, exact: config.exact, isa: None, pin: false })?;
        let cpu = profiled(Box::new(cpu));
        Ok(Self::with_device(match gpu {
            Some(gpu) => Box::new(Placed::new(vec![cpu, gpu])?),
            None => cpu,
        }))
    }

    /// A runtime on a given device: another backend, the oracle, or one that fails on purpose in a test.
    pub fn with_device(device: Box<dyn Compute>) -> Arc<Runtime> {
        let info = device.info().clone();
        Arc::new(Runtime { device: Mutex::new(device), info, picks: AtomicU64::new(0) })
    }

    /// Facts about the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Exclusive use of the device. Holding it stops every engine of the process.
    pub fn device(&self) -> MutexGuard<'_, Box<dyn Compute>> {
        // A panic inside a verb ends the sessions of that step (see `Engine::step`), not the process.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many picks engines made so far; constant while the device is held.
    pub(crate) fn picks(&self) -> u64 {
        self.picks.load(Ordering::Relaxed)
    }

    /// Counts one; gives [`Runtime::picks`].
    pub(crate) fn count_pick(&self) -> u64 {
        self.picks.fetch_add(1, Ordering::Relaxed) + 1
    }
}
