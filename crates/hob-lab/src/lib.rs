//! The workshop: measure ([`bench`]), check against references ([`golden`]), make up models of any shape ([`synth`]).
//! It must not know HTTP.
#![forbid(unsafe_code)]

pub mod bench;
pub mod golden;
pub mod synth;
