//! Results of `pick` between recording and reading: which belong to which ticket.
//!
//! It owns no result twice and allocates nothing once its vectors have grown; it must not know how results are made.

use std::collections::VecDeque;

use crate::{ComputeError, Picked, Result, Ticket};

/// Tickets whose results are kept; submitting more without reading drops the oldest.
pub const KEPT: usize = 16;

/// The queue behind `submit` and `picked`.
#[derive(Default)]
pub struct Tickets {
    next: u64,
    recorded: Picked,
    submitted: VecDeque<(Ticket, Picked)>,
    spare: Vec<Picked>,
}

impl Tickets {
    pub fn new() -> Self {
        Tickets {
            submitted: VecDeque::with_capacity(KEPT + 1),
            spare: Vec::with_capacity(KEPT + 1),
            ..Self::default()
        }
    }

    /// The results recorded since the last `submit`; a further pick of `k` appends to them.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] when picks of another `k` were recorded: one result holds rows of one `k`.
    pub fn record(&mut self, k: usize) -> Result<&mut Picked> {
        if !self.recorded.log_sum_exp.is_empty() && self.recorded.k != k {
            return Err(ComputeError::shape(
                "pick",
                format!("k = {} until the next submit", self.recorded.k),
                k,
            ));
        }
        self.recorded.k = k;
        Ok(&mut self.recorded)
    }

    pub fn submit(&mut self) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let fresh = self.spare.pop().unwrap_or_default();
        self.submitted.push_back((ticket, std::mem::replace(&mut self.recorded, fresh)));
        if self.submitted.len() > KEPT
            && let Some((_, dropped)) = self.submitted.pop_front()
        {
            self.recycle(dropped);
        }
        ticket
    }

    /// Moves the results of `ticket` into `out`, whose vectors are reused.
    ///
    /// # Errors
    /// [`ComputeError::Handle`] for a ticket never given, read before, or more than [`KEPT`] submits old.
    pub fn redeem(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        let Some(at) = self.submitted.iter().position(|(t, _)| *t == ticket) else {
            return Err(ComputeError::Handle { verb: "picked", handle: format!("{ticket:?}") });
        };
        if let Some((_, mut found)) = self.submitted.remove(at) {
            std::mem::swap(&mut found, out);
            self.recycle(found);
        }
        Ok(())
    }

    fn recycle(&mut self, mut used: Picked) {
        used.k = 0;
        used.tokens.clear();
        used.logits.clear();
        used.log_sum_exp.clear();
        used.chosen.clear();
        self.spare.push(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tickets: &mut Tickets, token: u32) {
        let picked = tickets.record(1).unwrap();
        picked.tokens.push(token);
        picked.logits.push(0.5);
        picked.log_sum_exp.push(1.5);
    }

    #[test]
    fn each_ticket_gives_its_own_results_once() {
        let mut tickets = Tickets::new();
        record(&mut tickets, 1);
        record(&mut tickets, 2);
        let a = tickets.submit();
        record(&mut tickets, 3);
        let b = tickets.submit();
        let mut out = Picked::default();
        tickets.redeem(b, &mut out).unwrap();
        assert_eq!(out.tokens, [3]);
        tickets.redeem(a, &mut out).unwrap();
        assert_eq!((out.tokens.as_slice(), out.log_sum_exp.len(), out.k), ([1, 2].as_slice(), 2, 1));
        assert!(tickets.redeem(a, &mut out).is_err());
        assert!(tickets.redeem(Ticket(99), &mut out).is_err());
    }

    #[test]
    fn mixed_k_is_refused_until_the_next_submit() {
        let mut tickets = Tickets::new();
        record(&mut tickets, 1);
        assert!(tickets.record(2).is_err());
        tickets.submit();
        assert!(tickets.record(2).is_ok());
    }

    #[test]
    fn unread_tickets_are_bounded() {
        let mut tickets = Tickets::new();
        let first = tickets.submit();
        for _ in 0..KEPT {
            tickets.submit();
        }
        assert!(tickets.redeem(first, &mut Picked::default()).is_err());
        assert_eq!(tickets.submitted.len(), KEPT);
        assert!(tickets.spare.len() <= KEPT + 1);
    }
}
