//! The process's devices and threads: one [`Runtime`] per process, shared by every engine. It must not know models.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hob_compute::{Compute, DeviceInfo};
use hob_cpu::{Cpu, CpuConfig};

use crate::error::Result;

/// How to compute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// CPU threads; `None` takes what affinity and control group allow.
    pub threads: Option<usize>,
    /// Keep activations in f32 (goldens run so; slower).
    pub exact: bool,
}

/// The CPU device behind a lock. Engines take turns: one step at a time.
pub struct Runtime {
    device: Mutex<Box<dyn Compute>>,
    info: DeviceInfo,
}

impl Runtime {
    /// Starts the CPU pool.
    ///
    /// # Errors
    /// What the device says when it cannot start (threads, memory).
    pub fn new(config: &RuntimeConfig) -> Result<Arc<Runtime>> {
        let threads = config.threads.unwrap_or_else(hob_cpu::available_threads);
        let cpu = Cpu::new(&CpuConfig { threads, exact: config.exact, isa: None, pin: false })?;
        Ok(Self::with_device(Box::new(cpu)))
    }

    /// A runtime on a given device: another backend, the oracle, or one that fails on purpose in a test.
    pub fn with_device(device: Box<dyn Compute>) -> Arc<Runtime> {
        let info = device.info().clone();
        Arc::new(Runtime { device: Mutex::new(device), info })
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
}
