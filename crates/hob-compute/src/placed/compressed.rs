//! Where the verbs of hyper-connections and of compressed attention run: where their vectors were placed, or else where
//! most of what they read is current. It must not know what they compute.

use std::ops::Range;

use super::Placed;
use crate::*;

fn batch(seq: &SlotRows) -> Range<usize> {
    seq.row..seq.row.saturating_add(seq.rows)
}

fn slot(seq: &SlotRows, each: usize) -> Range<usize> {
    seq.slot.saturating_mul(each)..(seq.slot.saturating_add(1)).saturating_mul(each)
}

impl Placed {
    pub(super) fn run_hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        let (verb, rows) = ("hyper_mix", 0..args.rows);
        let at = self.home(verb, args.base)?;
        self.want(verb, args.x, rows.clone(), at)?;
        self.want(verb, args.logits, rows.clone(), at)?;
        self.settle(verb, at)?;
        let (base, scale) = (self.weight_on(verb, args.base, at)?, self.weight_on(verb, args.scale, at)?);
        let weights = args.weights.map(|w| self.buf_on(verb, w, at)).transpose()?;
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (x, logits, out) = (on(args.x)?, on(args.logits)?, on(args.out)?);
        self.run(at, |dev| dev.hyper_mix(&HyperMix { x, logits, base, scale, out, weights, ..*args }))?;
        args.weights.map_or(Ok(()), |w| self.wrote(verb, w, rows.clone(), at))?;
        self.wrote(verb, args.out, rows, at)
    }

    pub(super) fn run_hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        let (verb, rows) = ("hyper_expand", 0..args.rows);
        let at = self.best(verb, &[(args.weights.unwrap_or(args.y), rows.clone())])?;
        self.want(verb, args.y, rows.clone(), at)?;
        if let Some(weights) = args.weights {
            self.want(verb, weights, rows.clone(), at)?;
            self.want(verb, args.x, rows.clone(), at)?;
        }
        self.settle(verb, at)?;
        let weights = args.weights.map(|w| self.buf_on(verb, w, at)).transpose()?;
        let [y, x] = [self.buf_on(verb, args.y, at)?, self.buf_on(verb, args.x, at)?];
        self.run(at, |dev| dev.hyper_expand(&HyperExpand { y, weights, x, ..*args }))?;
        self.wrote(verb, args.x, rows, at)
    }

    /// Entries of a slot.
    fn each(&self, verb: &'static str, entries: Buf, recent: Buf) -> Result<usize> {
        let slots = self.bufs.get(verb, recent)?.shape.rows.max(1);
        Ok(self.bufs.get(verb, entries)?.shape.rows / slots)
    }

    pub(super) fn run_compress(&mut self, args: &Compress) -> Result<()> {
        let verb = "compress";
        let at = self.home(verb, args.norm)?;
        let each = self.each(verb, args.entries, args.recent)?;
        for seq in args.seqs {
            self.want(verb, args.kv, batch(seq), at)?;
            self.want(verb, args.gate, batch(seq), at)?;
            self.want(verb, args.recent, slot(seq, 1), at)?;
            self.want(verb, args.entries, slot(seq, each), at)?;
        }
        self.want(verb, args.rotation.freqs, 0..1, at)?;
        self.settle(verb, at)?;
        let (bias, norm) = (self.weight_on(verb, args.bias, at)?, self.weight_on(verb, args.norm, at)?);
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (kv, gate, recent, entries) = (on(args.kv)?, on(args.gate)?, on(args.recent)?, on(args.entries)?);
        let rotation = Rotation { freqs: on(args.rotation.freqs)?, ..args.rotation };
        let inner = Compress { kv, gate, bias, norm, rotation, recent, entries, ..*args };
        self.run(at, |dev| dev.compress(&inner))?;
        for seq in args.seqs {
            self.wrote(verb, args.recent, slot(seq, 1), at)?;
            self.wrote(verb, args.entries, slot(seq, each), at)?;
        }
        Ok(())
    }

    pub(super) fn run_select(&mut self, args: &Select) -> Result<()> {
        let verb = "select";
        let own = args.seqs.first().map_or(0..0, |seq| slot(seq, args.capacity));
        let at = self.best(verb, &[(args.entries, own)])?;
        for seq in args.seqs {
            self.want(verb, args.q, batch(seq), at)?;
            self.want(verb, args.weights, batch(seq), at)?;
            self.want(verb, args.entries, slot(seq, args.capacity), at)?;
        }
        self.settle(verb, at)?;
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (q, weights, entries, out) = (on(args.q)?, on(args.weights)?, on(args.entries)?, on(args.out)?);
        self.run(at, |dev| dev.select(&Select { q, weights, entries, out, ..*args }))?;
        args.seqs.iter().try_for_each(|seq| self.wrote(verb, args.out, batch(seq), at))
    }

    pub(super) fn run_attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        let verb = "attend_entries";
        let at = self.home(verb, args.sinks)?;
        for seq in args.seqs {
            self.want(verb, args.q, batch(seq), at)?;
            self.want(verb, args.kv, batch(seq), at)?;
            self.want(verb, args.recent, slot(seq, 1), at)?;
            if let Some(entries) = &args.entries {
                let each = self.each(verb, entries.entries, args.recent)?;
                self.want(verb, entries.entries, slot(seq, each), at)?;
                entries.chosen.map_or(Ok(()), |chosen| self.want(verb, chosen, batch(seq), at))?;
            }
        }
        self.settle(verb, at)?;
        let sinks = self.weight_on(verb, args.sinks, at)?;
        let mut on = |buf| self.buf_on(verb, buf, at);
        let entries = match args.entries {
            Some(e) => {
                Some(Entries { entries: on(e.entries)?, chosen: e.chosen.map(&mut on).transpose()?, ..e })
            }
            None => None,
        };
        let (q, kv, recent, out) = (on(args.q)?, on(args.kv)?, on(args.recent)?, on(args.out)?);
        let inner = AttendEntries { q, kv, sinks, recent, entries, out, ..*args };
        self.run(at, |dev| dev.attend_entries(&inner))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, batch(seq), at)?;
            self.wrote(verb, args.recent, slot(seq, 1), at)?;
        }
        Ok(())
    }
}
