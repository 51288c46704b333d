//! Drafts on a GPU: what is accepted has the bits of a run on the same device that never saw the others.

mod common;
#[path = "../../hob-compute/tests/common/drafts.rs"]
mod drafts;

use common::floats::vector;
use common::{TIERS, gpu};

#[test]
fn rejected_rows_leave_no_trace() {
    // The kernels ask for no feature.
    for off in [TIERS[0], TIERS[3]] {
        let Some(mut dev) = gpu(false, off) else { return };
        for kind in drafts::kinds() {
            drafts::leave_no_trace(off, kind, &mut dev);
        }
    }
}

#[test]
fn what_cannot_be_held_is_named() {
    if let Some(mut dev) = gpu(false, "") {
        drafts::refusals(&mut dev);
    }
}
