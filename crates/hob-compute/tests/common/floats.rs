//! Vectors of floats as weights. Included by the tests of every device.

use std::sync::Arc;

use hob_compute::*;
use hob_quant::Format;

/// A loaded vector.
pub fn vector(dev: &mut dyn Compute, data: &[f32]) -> Weight {
    let (kind, format, cols) = (WeightKind::Vector, Format::F32, data.len());
    let spec = WeightSpec { name: "vector".into(), kind, format, rows: 1, cols };
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    dev.load(&spec, Arc::new(bytes)).expect("a vector loads")
}
