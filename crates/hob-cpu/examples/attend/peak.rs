//! Multiply-adds per nanosecond of one core that works in registers only: what attention is measured by.

use std::time::Instant;

use hob_quant::KvFormat;

/// Fastest of several runs, in seconds: the one that a busy machine disturbed least.
fn best(runs: usize, mut work: impl FnMut()) -> f64 {
    let times = (0..runs).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// The peak of the multiplications that K or V in `format` needs; `None` where nobody wrote one down.
#[cfg(target_arch = "x86_64")]
pub fn peak(format: KvFormat) -> Option<f64> {
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return None;
    }
    let wide = is_x86_feature_detected!("avx512f") && !format.is_packed();
    let rounds = 100_000;
    // SAFETY: the features were detected.
    let seconds = best(30, || unsafe {
        match format {
            KvFormat::F16 | KvFormat::Bf16 if wide => x86::floats16(rounds),
            KvFormat::F16 | KvFormat::Bf16 => x86::floats8(rounds),
            KvFormat::Q8 => x86::pairs(rounds),
            KvFormat::Q4 | KvFormat::Asym4 => x86::quads(rounds),
        }
    });
    let per_round = match format {
        KvFormat::F16 | KvFormat::Bf16 => 8 * if wide { 16 } else { 8 },
        KvFormat::Q8 => 8 * 16,
        KvFormat::Q4 | KvFormat::Asym4 => 8 * 8 * 32,
    };
    Some((rounds * per_round) as f64 / seconds / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
pub fn peak(_: KvFormat) -> Option<f64> {
    None
}

/// Rounds on 8 independent sums, in assembly: a compiler would compute the same product only once.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// What `$line` says for each of 8 sums.
    macro_rules! eight {
        ($line:ident) => {
            concat!($line!(0), $line!(1), $line!(2), $line!(3), $line!(4), $line!(5), $line!(6), $line!(7))
        };
    }
    macro_rules! fma8 {
        ($i:literal) => {
            concat!("vfmadd231ps ymm", $i, ", ymm15, ymm14\n")
        };
    }
    macro_rules! fma16 {
        ($i:literal) => {
            concat!("vfmadd231ps zmm", $i, ", zmm15, zmm14\n")
        };
    }
    /// i16 pairs, summed in 32 bits.
    macro_rules! pair {
        ($i:literal) => {
            concat!("vpmaddwd ymm8, ymm15, ymm14\nvpaddd ymm", $i, ", ymm", $i, ", ymm8\n")
        };
    }
    /// u8 times i8, summed in 16 bits.
    macro_rules! quad {
        ($i:literal) => {
            concat!("vpmaddubsw ymm8, ymm15, ymm14\nvpaddw ymm", $i, ", ymm", $i, ", ymm8\n")
        };
    }
    /// 16-bit sums widened: what 8 products allow at most.
    macro_rules! widen {
        ($i:literal) => {
            concat!("vpmaddwd ymm8, ymm", $i, ", ymm13\nvpaddd ymm9, ymm9, ymm8\n")
        };
    }

    macro_rules! spin {
        ($name:ident, $features:literal: $($lines:expr),*) => {
            /// # Safety
            /// Needs the features.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(rounds: usize) {
                // SAFETY: registers only.
                unsafe {
                    asm!(
                        "vzeroall", "2:", $($lines,)* "dec {rounds}", "jnz 2b",
                        rounds = inout(reg) rounds => _,
                        out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                        out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                        out("ymm8") _, out("ymm9") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                        options(nomem, nostack),
                    );
                }
            }
        };
    }
    spin!(floats8, "avx2,fma": eight!(fma8));
    spin!(floats16, "avx512f": eight!(fma16));
    spin!(pairs, "avx2": eight!(pair));
    spin!(
        quads, "avx2": eight!(quad), eight!(quad), eight!(quad), eight!(quad), eight!(quad), eight!(quad),
        eight!(quad), eight!(quad), eight!(widen)
    );
}
