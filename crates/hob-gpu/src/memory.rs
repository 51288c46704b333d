//! How much memory an adapter has and how much of it is free: wgpu does not tell, the APIs below it do. It must not know
//! what memory is used for.

/// Bytes in the memory that buffers lie in.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub total: u64,
    /// What this process can still allocate without driving others out.
    pub free: Option<u64>,
}

/// The memory of an adapter, where its API tells.
pub(crate) fn bytes(adapter: &wgpu::Adapter) -> Option<Memory> {
    match adapter.get_info().backend {
        #[cfg(not(target_vendor = "apple"))]
        wgpu::Backend::Vulkan => vulkan(adapter),
        #[cfg(target_vendor = "apple")]
        wgpu::Backend::Metal => metal(adapter),
        #[cfg(windows)]
        wgpu::Backend::Dx12 => dx12(adapter),
        _ => None,
    }
}

/// The largest heap that is local to the device; `VK_EXT_memory_budget` tells what of it is this process's to take.
#[cfg(not(target_vendor = "apple"))]
fn vulkan(adapter: &wgpu::Adapter) -> Option<Memory> {
    use ash::{ext, vk};
    // SAFETY: the raw adapter is only asked for properties and lives as long as the guard.
    #[allow(unsafe_code)]
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (instance, device) = (adapter.shared_instance(), adapter.raw_physical_device());
    // SAFETY: the handle is that of a living instance's device.
    #[allow(unsafe_code)]
    let found = unsafe { instance.raw_instance().get_physical_device_memory_properties(device) };
    let heaps = &found.memory_heaps[..found.memory_heap_count as usize];
    let local = |(_, heap): &(usize, &vk::MemoryHeap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    let (at, heap) = heaps.iter().enumerate().filter(local).max_by_key(|(_, heap)| heap.size)?;
    let facts = adapter.physical_device_capabilities();
    let version = instance.instance_api_version().min(facts.properties().api_version);
    if version < vk::API_VERSION_1_1 || !facts.supports_extension(ext::memory_budget::NAME) {
        return Some(Memory { total: heap.size, free: None });
    }
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
    // SAFETY: as above; Vulkan 1.1 has the call, and the device the extension whose structure is chained.
    #[allow(unsafe_code)]
    unsafe {
        instance.raw_instance().get_physical_device_memory_properties2(device, &mut all);
    }
    let free = budget.heap_budget[at].saturating_sub(budget.heap_usage[at]);
    Some(Memory { total: heap.size, free: Some(free) })
}

/// What Metal recommends to stay below, and what this process has of it.
#[cfg(target_vendor = "apple")]
fn metal(adapter: &wgpu::Adapter) -> Option<Memory> {
    use objc2_metal::MTLDevice;
    // SAFETY: the raw adapter is only asked for figures and lives as long as the guard.
    #[allow(unsafe_code)]
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>() }?;
    let device = adapter.raw_device();
    let total = device.recommendedMaxWorkingSetSize();
    let free = total.saturating_sub(device.currentAllocatedSize() as u64);
    Some(Memory { total, free: Some(free) })
}

/// DXGI's budget of the local segment. On integrated adapters that is their share of the machine's memory, and the
/// dedicated memory next to nothing.
#[cfg(windows)]
fn dx12(adapter: &wgpu::Adapter) -> Option<Memory> {
    // SAFETY: the raw adapter is only asked for figures and lives as long as the guard.
    #[allow(unsafe_code)]
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Dx12>() }?;
    // The default segment group is the local one (0).
    let info = adapter.raw_adapter().query_video_memory_info(Default::default()).ok()?;
    // SAFETY: a call on a living adapter.
    #[allow(unsafe_code)]
    let dedicated = unsafe { adapter.raw_adapter().GetDesc() }.map_or(0, |d| d.DedicatedVideoMemory as u64);
    let free = info.Budget.saturating_sub(info.CurrentUsage);
    Some(Memory { total: dedicated.max(info.Budget), free: Some(free) })
}
