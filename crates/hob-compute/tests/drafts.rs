//! Drafts on the oracle, and on devices behind one.

#[path = "common/drafts.rs"]
mod drafts;
#[path = "common/floats.rs"]
mod floats;

use floats::vector;
use hob_compute::reference::Reference;
use hob_compute::{Compute, Placed};

#[test]
fn rejected_rows_leave_no_trace_on_the_oracle() {
    for kind in drafts::kinds() {
        drafts::leave_no_trace("oracle", kind, &mut Reference::new(false));
    }
}

#[test]
fn rejected_rows_leave_no_trace_behind_a_placement() {
    for kind in drafts::kinds() {
        let members = [0, 1].map(|_| Box::new(Reference::new(false)) as Box<dyn Compute>);
        let mut placed = Placed::new(members.into()).expect("two devices");
        placed.place(1);
        drafts::leave_no_trace("placed", kind, &mut placed);
    }
}

#[test]
fn what_cannot_be_held_is_named() {
    drafts::refusals(&mut Reference::new(false));
}
