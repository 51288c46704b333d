//! The workshop: measure ([`bench`]), check against references ([`golden`]), evaluate on text ([`ppl`], [`kl`], formats of
//! the KV cache in [`kv`], long contexts in [`needle`]), quantize
//! ([`quantize`]), make up models of any shape ([`synth`]). It must not know HTTP.
#![forbid(unsafe_code)]

pub mod bench;
pub mod eval;
pub mod golden;
pub mod kl;
pub mod kv;
pub mod needle;
pub mod ppl;
pub mod quantize;
pub mod synth;
