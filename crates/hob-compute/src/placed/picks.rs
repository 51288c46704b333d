//! Results of `pick` on several devices: which device's ticket stands behind which of ours, and the ids that an embedding
//! table on another device asks for. It must not know how results are made.

use std::collections::VecDeque;

use crate::tickets::KEPT;
use crate::{Compute, ComputeError, Picked, Result, Ticket};

/// Results of one submit.
struct Entry {
    ticket: Ticket,
    /// The device's own ticket, while it has not been redeemed.
    inner: Option<(usize, Ticket)>,
    /// What was read before.
    early: Picked,
}

/// Where the ids of the last pick are.
#[derive(Copy, Clone, PartialEq)]
enum Last {
    None,
    /// Recorded on a device and not submitted.
    Open,
    Submitted(Ticket),
    Read,
}

pub(super) struct Picks {
    next: u64,
    entries: VecDeque<Entry>,
    spare: Vec<Picked>,
    /// Device of the picks since the last submit.
    open: Option<usize>,
    /// Results of those that had to be read already.
    early: Picked,
    last: Last,
    /// Device, rows and k of the last pick.
    of_last: (usize, usize, usize),
    ids: Vec<u32>,
    scratch: Picked,
}

impl Default for Picks {
    fn default() -> Self {
        Picks {
            next: 0,
            entries: VecDeque::with_capacity(KEPT + 1),
            spare: Vec::with_capacity(KEPT + 1),
            open: None,
            early: Picked::default(),
            last: Last::None,
            of_last: (0, 0, 0),
            ids: Vec::new(),
            scratch: Picked::default(),
        }
    }
}

impl Picks {
    /// Device of the last pick.
    pub fn device(&self) -> Option<usize> {
        (self.last != Last::None).then_some(self.of_last.0)
    }

    /// Device of the picks since the last submit.
    pub fn open(&self) -> Option<usize> {
        self.open
    }

    /// # Errors
    /// As [`crate::tickets::Tickets::record`]: results of one submit are of one `k`.
    pub fn check(&self, k: usize) -> Result<()> {
        let (_, _, before) = self.of_last;
        match self.open.is_some() && before != k {
            true => Err(ComputeError::shape("pick", format!("k = {before} until the next submit"), k)),
            false => Ok(()),
        }
    }

    pub fn recorded(&mut self, at: usize, rows: usize, k: usize) {
        self.open = Some(at);
        self.last = Last::Open;
        self.of_last = (at, rows, k);
    }

    /// Ends what is open; `inner` is the ticket of the device that picked.
    pub fn submit(&mut self, inner: Option<Ticket>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let inner = self.open.take().zip(inner);
        let fresh = self.spare.pop().unwrap_or_default();
        let early = std::mem::replace(&mut self.early, fresh);
        if self.last == Last::Open {
            self.last = Last::Submitted(ticket);
        }
        self.entries.push_back(Entry { ticket, inner, early });
        if self.entries.len() > KEPT
            && let Some(dropped) = self.entries.pop_front()
        {
            self.recycle(dropped.early);
        }
        ticket
    }

    /// Moves the results of a ticket into `out`.
    ///
    /// # Errors
    /// [`ComputeError::Handle`] as [`crate::tickets::Tickets::redeem`]; what the device says.
    pub fn redeem<'d>(
        &mut self,
        ticket: Ticket,
        out: &mut Picked,
        dev: impl FnOnce(usize) -> &'d mut dyn Compute,
    ) -> Result<()> {
        let found = self.entries.iter().position(|e| e.ticket == ticket);
        let Some(mut entry) = found.and_then(|at| self.entries.remove(at)) else {
            return Err(ComputeError::Handle { verb: "picked", handle: format!("{ticket:?}") });
        };
        match entry.inner {
            Some((at, inner)) if entry.early.log_sum_exp.is_empty() => dev(at).picked(inner, out)?,
            Some((at, inner)) => {
                dev(at).picked(inner, &mut self.scratch)?;
                append(&mut entry.early, &self.scratch);
                std::mem::swap(&mut entry.early, out);
            }
            None => std::mem::swap(&mut entry.early, out),
        }
        if self.last == Last::Submitted(ticket) {
            self.keep_ids(out);
        }
        self.recycle(entry.early);
        Ok(())
    }

    /// What the last pick chose for every row, read from its device if that was not done yet.
    ///
    /// # Errors
    /// What the device says.
    pub fn last_ids<'d>(&mut self, dev: impl FnOnce(usize) -> &'d mut dyn Compute) -> Result<&[u32]> {
        match self.last {
            Last::None | Last::Read => {}
            Last::Open => {
                let dev = dev(self.of_last.0);
                let ticket = dev.submit()?;
                let mut read = std::mem::take(&mut self.scratch);
                let result = dev.picked(ticket, &mut read);
                if result.is_ok() {
                    append(&mut self.early, &read);
                    self.keep_ids(&read);
                }
                self.scratch = read;
                result?;
            }
            Last::Submitted(ticket) => {
                let Some(at) = self.entries.iter().position(|e| e.ticket == ticket) else {
                    return Err(ComputeError::Handle { verb: "embed", handle: format!("{ticket:?}") });
                };
                if let Some((device, inner)) = self.entries[at].inner {
                    let mut read = std::mem::take(&mut self.scratch);
                    dev(device).picked(inner, &mut read)?;
                    append(&mut self.entries[at].early, &read);
                    self.entries[at].inner = None;
                    self.keep_ids(&read);
                    self.scratch = read;
                }
            }
        }
        Ok(&self.ids)
    }

    /// The ids of the last pick, whose rows are the last of `read`.
    fn keep_ids(&mut self, read: &Picked) {
        let (_, rows, _) = self.of_last;
        self.ids.clear();
        let skip = read.chosen.len().saturating_sub(rows);
        self.ids.extend_from_slice(&read.chosen[skip..]);
        self.last = Last::Read;
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

/// Adds rows of the same k.
fn append(to: &mut Picked, from: &Picked) {
    to.k = from.k;
    to.tokens.extend_from_slice(&from.tokens);
    to.logits.extend_from_slice(&from.logits);
    to.log_sum_exp.extend_from_slice(&from.log_sum_exp);
    to.chosen.extend_from_slice(&from.chosen);
}
