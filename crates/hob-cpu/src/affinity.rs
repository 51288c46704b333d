//! Which CPUs this process may use, and pinning a thread to one of them.

/// CPUs in this process's affinity mask, ascending; empty where the system has no such notion.
#[cfg(target_os = "linux")]
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: `cpu_set_t` is plain bits, for which all-zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills at most `size_of::<cpu_set_t>()` bytes of `set`.
    let ok = unsafe { libc::sched_getaffinity(0, std::mem::size_of_val(&set), &raw mut set) } == 0;
    if !ok {
        return Vec::new();
    }
    // SAFETY: every index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Asks the kernel to keep the calling thread on the n-th allowed CPU. Failure is harmless and ignored.
#[cfg(target_os = "linux")]
pub fn pin_to_nth(n: usize) {
    let cpus = allowed_cpus();
    let Some(&cpu) = cpus.get(n % cpus.len().max(1)) else { return };
    // SAFETY: as in `allowed_cpus`.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` came from a set of the same size, and the call reads `set` only.
    unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &raw const set);
    }
}

#[cfg(not(target_os = "linux"))]
pub fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
pub fn pin_to_nth(_n: usize) {}
