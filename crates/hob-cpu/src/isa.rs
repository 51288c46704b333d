//! The instruction set class, chosen once per process at run time.

use std::fmt;

/// Classes of kernels, weakest first. Everything AVX2 kernels need is there in both later classes.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable loops.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-VNNI (256-bit `vpdpbusd`) on top of AVX2.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL, VNNI and VBMI, on top of AVX2.
    Avx512,
}

impl Isa {
    /// All classes, weakest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];

    /// The best class this CPU has, lowered by `HOB_ISA=scalar|avx2|avxvnni|avx512`; an override that the CPU lacks takes
    /// the next lower class it has, an unknown word changes nothing.
    pub fn detect() -> Isa {
        let wanted = std::env::var("HOB_ISA").ok().and_then(|v| Self::from_name(&v));
        wanted.map_or_else(Self::best, Self::lowered)
    }

    /// The best class this CPU has.
    pub fn best() -> Isa {
        Isa::Avx512.lowered()
    }

    /// This class, or the best one below it that this CPU has.
    pub fn lowered(self) -> Isa {
        Self::ALL.into_iter().rev().find(|&isa| isa <= self && isa.available()).unwrap_or(Isa::Scalar)
    }

    /// Whether this CPU can run kernels of this class.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            };
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => avx2(),
                Isa::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
                Isa::Avx512 => {
                    avx2()
                        && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vnni")
                        && is_x86_feature_detected!("avx512vbmi")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Scalar
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
        }
    }

    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|i| i.name() == name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
