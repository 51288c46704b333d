//! The verbs on the CPU: pool, huge-page arena, AVX2 and AVX-512 kernels.
//!
//! Owns [`Cpu`], the one device every machine has, and what measures the memory it depends on ([`probe`]). Kernels are
//! chosen at run time ([`Isa`]); every form gives the bits of [`hob_compute::reference`]. It must not know models.

mod affinity;
pub mod arena;
mod device;
mod isa;
pub mod linear;
pub mod pool;
pub mod probe;
pub mod tune;
pub mod verb;

pub use device::{Cpu, CpuConfig};
pub use isa::Isa;
pub use probe::available_threads;
