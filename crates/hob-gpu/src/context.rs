//! One opened adapter: device, queue, limits, tier, and whether it still lives. It must not know kernels.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hob_compute::{ComputeError, Result};

use crate::{Tier, memory};

/// What [`adapters`] tells of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFacts {
    pub name: String,
    /// `Vulkan`, `Metal`, `Dx12`
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Shares the machine's memory.
    pub integrated: bool,
    /// A CPU in disguise (lavapipe, WARP): right, and slower than hob's own CPU kernels.
    pub software: bool,
    pub tier: Tier,
    /// Lanes of the smallest subgroup that a kernel may run in.
    pub least_subgroup: usize,
    /// Lanes of the largest workgroup.
    pub group_lanes: usize,
    /// Largest buffer that one binding may show, in bytes.
    pub binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub buffer_bytes: u64,
    /// Memory that buffers can lie in, in bytes: that of the card, or the machine's share where memory is shared.
    pub memory_bytes: Option<u64>,
    /// What of it was free when this process first asked, in bytes.
    pub free_bytes: Option<u64>,
}

/// What ended the device's life, or went wrong since somebody looked.
#[derive(Default)]
struct Trouble {
    lost: OnceLock<String>,
    error: Mutex<Option<String>>,
}

/// An opened adapter.
pub struct Context {
    pub facts: AdapterFacts,
    adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// Compiled kernels, where the driver hands them out.
    pub(crate) pipelines: Option<wgpu::PipelineCache>,
    trouble: Arc<Trouble>,
}

/// The adapters of this machine, those that help most first: discrete, integrated, software. The drivers are asked once
/// per process: each of them is loaded for that, and some print what they miss.
fn found() -> &'static [(AdapterFacts, wgpu::Adapter)] {
    static FOUND: OnceLock<Vec<(AdapterFacts, wgpu::Adapter)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let usable = |a: &wgpu::Adapter| a.features().contains(wgpu::Features::IMMEDIATES);
        let infos: Vec<_> = all.iter().filter(|a| usable(a)).map(wgpu::Adapter::get_info).collect();
        // Windows shows a card through Vulkan and through DX12; it is one card.
        let doubled = |a: &wgpu::Adapter| {
            let a = a.get_info();
            let same = |b: &wgpu::AdapterInfo| (a.vendor, a.device) == (b.vendor, b.device);
            a.backend == wgpu::Backend::Dx12
                && infos.iter().any(|b| b.backend == wgpu::Backend::Vulkan && same(b))
        };
        let kept = all.into_iter().filter(|a| usable(a) && !doubled(a));
        let mut all: Vec<_> = kept.map(|a| (facts(&a), a)).collect();
        all.sort_by_key(|(facts, _)| rank(facts));
        all
    })
}

/// The adapters of this machine, those that help most first: discrete, integrated, software.
pub fn adapters() -> Vec<AdapterFacts> {
    found().iter().map(|(facts, _)| facts.clone()).collect()
}

/// The adapter that tests run on: the one whose index `HOB_TEST_ADAPTER` is, else a software adapter. Prints that a test
/// is skipped where there is neither.
#[doc(hidden)] // for tests only, but those of other crates too
pub fn test_adapter() -> Option<usize> {
    let chosen = std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok());
    let found = chosen.or_else(|| adapters().iter().position(|a| a.software));
    if found.is_none() {
        println!("skipped: no GPU adapter here, not even a software one (Debian: mesa-vulkan-drivers)");
    }
    found
}

fn rank(facts: &AdapterFacts) -> u8 {
    u8::from(facts.software) * 2 + u8::from(facts.integrated)
}

fn facts(adapter: &wgpu::Adapter) -> AdapterFacts {
    let (info, limits, has) = (adapter.get_info(), adapter.limits(), adapter.features());
    let held = memory::bytes(adapter);
    // The kernels spread matrices over subgroups of this size and no other.
    let coop = (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && has.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP)
        && adapter.cooperative_matrix_properties().iter().any(|p| {
            (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        });
    AdapterFacts {
        driver: [info.driver, info.driver_info].join(" ").trim().to_string(),
        backend: format!("{:?}", info.backend),
        integrated: info.device_type == wgpu::DeviceType::IntegratedGpu,
        software: info.device_type == wgpu::DeviceType::Cpu,
        tier: Tier {
            subgroups: has.contains(wgpu::Features::SUBGROUP),
            f16: has.contains(wgpu::Features::SHADER_F16),
            // No query says so; naga spells the product out for Metal.
            dot: info.backend != wgpu::Backend::Metal,
            coop,
            timestamps: has
                .contains(wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
        },
        group_lanes: limits.max_compute_invocations_per_workgroup as usize,
        least_subgroup: info.subgroup_min_size.max(4) as usize,
        binding_bytes: limits.max_storage_buffer_binding_size & !255,
        buffer_bytes: limits.max_buffer_size & !255,
        memory_bytes: held.map(|m| m.total),
        free_bytes: held.and_then(|m| m.free),
        name: info.name,
    }
}

fn features(tier: Tier, has: wgpu::Features) -> wgpu::Features {
    let mut wanted = wgpu::Features::IMMEDIATES;
    let optional = wgpu::Features::PIPELINE_CACHE | wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
    wanted |= optional & has;
    for (on, features) in [
        (tier.subgroups, wgpu::Features::SUBGROUP | (wgpu::Features::SUBGROUP_BARRIER & has)),
        (tier.f16, wgpu::Features::SHADER_F16),
        (tier.coop, wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        (tier.timestamps, wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
    ] {
        if on {
            wanted |= features;
        }
    }
    wanted
}

impl Context {
    /// Opens adapter `index` of [`adapters`], without the features named in `off` (see [`Tier::without`]).
    ///
    /// # Errors
    /// [`ComputeError::Device`] when there is no such adapter, a feature name is unknown, or the driver refuses.
    pub fn open(index: usize, off: &str) -> Result<Context> {
        let none = |device: &str, problem: String| ComputeError::Device { device: device.into(), problem };
        let all = found();
        let Some((facts, adapter)) = all.get(index) else {
            let problem = format!("expected an adapter below {}, found {index}", all.len());
            return Err(none("GPU", problem));
        };
        let mut facts = facts.clone();
        facts.tier = facts.tier.without(off).map_err(|problem| none(&facts.name, problem))?;
        #[allow(unsafe_code)] // wgpu wants a promise
        let experimental = match facts.tier.coop {
            // SAFETY: cooperative matrices are experimental in wgpu because drivers may be wrong about them; products
            // are compared with the plain form's before they are used.
            true => unsafe { wgpu::ExperimentalFeatures::enabled() },
            false => wgpu::ExperimentalFeatures::disabled(),
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("hob"),
            required_features: features(facts.tier, adapter.features()),
            required_limits: adapter.limits(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) =
            opened.map_err(|e| none(&facts.name, format!("it could not be opened: {e}")))?;
        let trouble = Arc::new(Trouble::default());
        let (of_loss, of_error) = (Arc::clone(&trouble), Arc::clone(&trouble));
        device.set_device_lost_callback(move |reason, text| {
            let _ = of_loss.lost.set(format!("{reason:?}: {text}"));
        });
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let mut slot = of_error.error.lock().unwrap_or_else(PoisonError::into_inner);
            slot.get_or_insert_with(|| e.to_string());
        }));
        Ok(Context { facts, adapter: adapter.clone(), device, queue, pipelines: None, trouble })
    }

    pub fn tier(&self) -> Tier {
        self.facts.tier
    }

    /// Whether all went well so far.
    ///
    /// # Errors
    /// [`ComputeError::Lost`] from the loss of the device on; [`ComputeError::Device`] once per error of the driver.
    pub fn check(&self) -> Result<()> {
        let lost = || match self.trouble.lost.get() {
            Some(reason) => {
                Err(ComputeError::Lost { device: self.facts.name.clone(), reason: reason.clone() })
            }
            None => Ok(()),
        };
        lost()?;
        let error = self.trouble.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(problem) = error else { return Ok(()) };
        // The loss of a device shows as errors of whatever is asked of it, and is told once nothing is under way.
        let soon = Some(Duration::from_secs(2));
        self.poll_once(wgpu::PollType::Wait { submission_index: None, timeout: soon });
        lost().and(Err(self.problem(problem)))
    }

    /// Bytes that can still be allocated without driving other programs' memory out, where the system tells.
    pub fn free_bytes(&self) -> Option<u64> {
        memory::bytes(&self.adapter).and_then(|m| m.free)
    }

    /// A driver's store of compiled kernels, begun with what an earlier one gave; `None` where it has no such thing.
    pub(crate) fn pipeline_cache(&self, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
        if !self.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("kernels"), data, fallback: true };
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        // SAFETY: the data came from such a store of the same adapter, driver and version, and its checksum is right.
        #[allow(unsafe_code)]
        let cache = unsafe { self.device.create_pipeline_cache(&descriptor) };
        pollster::block_on(scope.pop()).is_none().then_some(cache)
    }

    /// What a call that must not fail failed with: the loss of the device, or `problem`.
    pub(crate) fn failure(&self, problem: String) -> ComputeError {
        let soon = Some(Duration::from_secs(2));
        self.poll_once(wgpu::PollType::Wait { submission_index: None, timeout: soon });
        self.check().err().unwrap_or_else(|| self.problem(problem))
    }

    /// An error of this device.
    pub(crate) fn problem(&self, problem: String) -> ComputeError {
        ComputeError::Device { device: self.facts.name.clone(), problem }
    }

    /// Waits as `how` says, and runs what waits for work that is done.
    ///
    /// # Errors
    /// As [`Context::check`].
    pub(crate) fn poll(&self, how: wgpu::PollType) -> Result<()> {
        let failed = self.poll_once(how);
        self.check()?;
        failed.map_or(Ok(()), |e| Err(self.problem(e)))
    }

    fn poll_once(&self, how: wgpu::PollType) -> Option<String> {
        // wgpu panics when a device turns out to be lost while it is waited for.
        let polled = catch_unwind(AssertUnwindSafe(|| self.device.poll(how)));
        match polled {
            Ok(result) => result.err().map(|e| e.to_string()),
            Err(_) => {
                let _ = self.trouble.lost.set("the driver failed while it was waited for".into());
                None
            }
        }
    }
}
