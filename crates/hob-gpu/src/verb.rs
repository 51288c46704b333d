//! One file per verb family: checks, the choice of kernel, and its dispatch.

pub(crate) mod attend;
pub(crate) mod delta;
mod embed;
pub(crate) mod experts;
mod half;
mod kv;
mod linear;
mod map;
mod norm;
pub(crate) mod pick;
pub(crate) mod quantize;
mod rope;
mod route;
mod short_conv;
