//! What was measured rather than derived: thresholds and distances of the product kernels. It must not know kernels.

use std::sync::RwLock;

/// The knobs of a machine. No choice changes a result, only the time it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How far ahead of the sums the weight stream is prefetched, in bytes. On Zen 3 the hardware prefetcher alone left
    /// the kernels at about three quarters of a plain read; 2 KiB ahead they reached it.
    pub ahead: usize,
    /// Up to this many activation rows (2 at most) the packed weights are streamed by AVX2 kernels; above, a stretch is
    /// unpacked once for all rows.
    pub few: usize,
    /// The same for AVX-512 kernels, which stream any number of rows, four at a time.
    pub few_wide: usize,
    /// Units of work per thread when few activation rows are multiplied.
    pub spread: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        // Measured on Zen 4: any prefetch costs there, while Zen 3 and Sapphire Rapids gain a tenth to a third by it.
        let ahead = if amd_with_avx512() { 0 } else { 2048 };
        Tuning { ahead, few: 2, few_wide: 4, spread: 16 }
    }
}

fn amd_with_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        // The vendor string, in the order EBX, EDX, ECX: "AuthenticAMD".
        let id = __cpuid(0);
        let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
        vendor == b"AuthenticAMD" && crate::isa::Isa::Avx512.available()
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

static CHOSEN: RwLock<Option<Tuning>> = RwLock::new(None);

/// Changes the knobs of the whole process from the next product on.
pub fn set_tuning(tuning: Tuning) {
    *CHOSEN.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(tuning);
}

/// The knobs in use: those of [`set_tuning`], else the defaults.
pub fn tuning() -> Tuning {
    if let Some(chosen) = *CHOSEN.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return chosen;
    }
    let default = Tuning::default();
    set_tuning(default);
    default
}
