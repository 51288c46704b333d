//! Routing: a softmax or sigmoid over some hundred logits, and the few best of them.

use std::cell::RefCell;

use hob_compute::Routing;
use hob_compute::reference::mixture::{RouteScratch, RouteVectors, route_row};

use super::{Parts, each_rows, sigmoid};
use crate::isa::Isa;
use crate::pool::Pool;

thread_local! {
    static SCRATCH: RefCell<RouteScratch> = RefCell::new(RouteScratch::default());
}

/// Routes rows of `width` logits into rows of `2 * top_k`. The chosen ids of `vectors` are those of all rows.
pub fn route(
    pool: &Pool,
    isa: Isa,
    rule: &Routing,
    (logits, width): (&[f32], usize),
    vectors: RouteVectors,
    out: &mut [f32],
) {
    let per = 2 * rule.top_k;
    let out = Parts::new(out);
    // A logit costs an exp and a look per selected expert, many times an elementwise float.
    each_rows(pool, logits.len() / width, width * 8, &|range| {
        SCRATCH.with_borrow_mut(|scratch| {
            for r in range {
                // SAFETY: ranges of rows are disjoint.
                let out = unsafe { out.part(r * per..(r + 1) * per) };
                let chosen = vectors.chosen.map(|c| &c[r * rule.top_k..(r + 1) * rule.top_k]);
                route_row(
                    rule,
                    &logits[r * width..(r + 1) * width],
                    RouteVectors { chosen, ..vectors },
                    |x| sigmoid::exps(isa, x),
                    scratch,
                    out,
                );
            }
        });
    });
}
