//! One file per verb family: checks, the choice of kernel, and its dispatch.

pub(crate) mod attend;
mod catch_up;
pub(crate) mod compressed;
pub(crate) mod delta;
mod embed;
pub(crate) mod experts;
pub(crate) mod fold;
mod half;
mod heads;
mod hyper;
mod kv;
pub(crate) mod linear;
mod map;
mod norm;
pub(crate) mod pick;
pub(crate) mod quantize;
mod rope;
mod route;
mod short_conv;
mod ssm;
pub(crate) mod tanh;
