//! The hyperbolic tangent that every kernel shares, from the oracle's own coefficients.

use hob_compute::math::{TANH_HIGH, TANH_P, TANH_Q};

use crate::template::Template;

const NAMES: [[&str; 5]; 2] = [["P0", "P1", "P2", "P3", "P4"], ["Q0", "Q1", "Q2", "Q3", "Q4"]];

/// The piece `tanh`, with `tanh_of` for values of a WGSL type of floats.
pub(crate) fn tanh(kind: &str) -> String {
    let mut template = Template::new().value("T", kind).value("HIGH", format!("{TANH_HIGH:?}"));
    for (names, values) in NAMES.into_iter().zip([TANH_P, TANH_Q]) {
        for (name, value) in names.into_iter().zip(values) {
            template = template.value(name, format!("{value:?}"));
        }
    }
    template.render(include_str!("../wgsl/tanh.wgsl"))
}
