//! Drafts on every instruction set class: what is accepted has the bits of a run that never saw the others.

mod common;
#[path = "../../hob-compute/tests/common/drafts.rs"]
mod drafts;
#[path = "../../hob-compute/tests/common/floats.rs"]
mod floats;

use common::{classes, cpu};
use floats::vector;

#[test]
fn rejected_rows_leave_no_trace() {
    for kind in drafts::kinds() {
        for isa in classes() {
            for threads in [1, 3] {
                let what = format!("{isa}, {threads} threads");
                drafts::leave_no_trace(&what, kind, &mut cpu(isa, threads, false));
            }
        }
    }
}

#[test]
fn what_cannot_be_held_is_named() {
    drafts::refusals(&mut cpu(classes()[0], 1, false));
}
