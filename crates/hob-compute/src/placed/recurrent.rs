//! The verbs that remember in fixed size: each runs where its weights are, and state and records stay there. It must not
//! know what a record holds.

use super::Placed;
use crate::{CatchUp, DeltaNet, Memory, Result, ShortConv, SlotRows, SsmScan};

impl Placed {
    pub(super) fn run_short_conv(&mut self, args: &ShortConv) -> Result<()> {
        let verb = "short_conv";
        let at = self.home(verb, args.taps)?;
        for seq in args.seqs {
            self.want(verb, args.x, seq.row..seq.row.saturating_add(seq.rows), at)?;
        }
        self.want_memory(verb, (&args.memory, args.seqs), at)?;
        self.settle(verb, at)?;
        let taps = self.weight_on(verb, args.taps, at)?;
        let bias = self.bias_on(verb, args.bias, at)?;
        let memory = self.memory_on(verb, &args.memory, at)?;
        let (x, out) = (self.buf_on(verb, args.x, at)?, self.buf_on(verb, args.out, at)?);
        self.run(at, |dev| dev.short_conv(&ShortConv { x, taps, bias, memory, out, ..*args }))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, seq.row..seq.row.saturating_add(seq.rows), at)?;
        }
        self.wrote_memory(verb, (&args.memory, args.seqs), at)
    }

    pub(super) fn run_delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        let verb = "delta_net";
        let at = self.home(verb, args.rate)?;
        let batch = |seq: &SlotRows| seq.row..seq.row.saturating_add(seq.rows);
        for seq in args.seqs {
            for buf in [args.qkv, args.z, args.beta, args.decay] {
                self.want(verb, buf, batch(seq), at)?;
            }
        }
        self.want_memory(verb, (&args.memory, args.seqs), at)?;
        self.settle(verb, at)?;
        let mut weight = |w| self.weight_on(verb, w, at);
        let (rate, bias, norm) = (weight(args.rate)?, weight(args.bias)?, weight(args.norm)?);
        let memory = self.memory_on(verb, &args.memory, at)?;
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (qkv, z, beta, decay) = (on(args.qkv)?, on(args.z)?, on(args.beta)?, on(args.decay)?);
        let inner = DeltaNet { qkv, z, beta, decay, rate, bias, norm, memory, out: on(args.out)?, ..*args };
        self.run(at, |dev| dev.delta_net(&inner))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, batch(seq), at)?;
        }
        self.wrote_memory(verb, (&args.memory, args.seqs), at)
    }

    pub(super) fn run_ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        let verb = "ssm_scan";
        let at = self.home(verb, args.rate)?;
        let batch = |seq: &SlotRows| seq.row..seq.row.saturating_add(seq.rows);
        for seq in args.seqs {
            for buf in [args.xbc, args.z, args.dt] {
                self.want(verb, buf, batch(seq), at)?;
            }
        }
        self.want_memory(verb, (&args.memory, args.seqs), at)?;
        self.settle(verb, at)?;
        let mut weight = |w| self.weight_on(verb, w, at);
        let (rate, bias) = (weight(args.rate)?, weight(args.bias)?);
        let (skip, norm) = (weight(args.skip)?, weight(args.norm)?);
        let memory = self.memory_on(verb, &args.memory, at)?;
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (xbc, z, dt, out) = (on(args.xbc)?, on(args.z)?, on(args.dt)?, on(args.out)?);
        let inner = SsmScan { xbc, z, dt, rate, bias, skip, norm, memory, out, ..*args };
        self.run(at, |dev| dev.ssm_scan(&inner))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, batch(seq), at)?;
        }
        self.wrote_memory(verb, (&args.memory, args.seqs), at)
    }

    pub(super) fn run_catch_up(&mut self, args: &CatchUp) -> Result<()> {
        let verb = "catch_up";
        // Records mean something only to the device that made them.
        let of = args.memory.records.unwrap_or(args.memory.state);
        let slot = args.seqs.first().map_or(0, |seq| seq.slot);
        let at = self.bufs.get(verb, of)?.holder(slot).unwrap_or(0);
        self.want_memory(verb, (&args.memory, args.seqs), at)?;
        self.settle(verb, at)?;
        let memory = self.memory_on(verb, &args.memory, at)?;
        self.run(at, |dev| dev.catch_up(&CatchUp { memory, ..*args }))?;
        self.wrote_memory(verb, (&args.memory, args.seqs), at)
    }

    /// Notes what of the slots' states and records must cross to device `at`.
    fn want_memory(
        &mut self,
        verb: &'static str,
        (memory, seqs): (&Memory, &[SlotRows]),
        at: usize,
    ) -> Result<()> {
        seqs.iter().try_for_each(|seq| {
            memory.bufs().try_for_each(|buf| self.want(verb, buf, seq.slot..seq.slot.saturating_add(1), at))
        })
    }

    fn wrote_memory(
        &mut self,
        verb: &'static str,
        (memory, seqs): (&Memory, &[SlotRows]),
        at: usize,
    ) -> Result<()> {
        seqs.iter().try_for_each(|seq| {
            memory.bufs().try_for_each(|buf| self.wrote(verb, buf, seq.slot..seq.slot.saturating_add(1), at))
        })
    }

    fn memory_on(&mut self, verb: &'static str, memory: &Memory, at: usize) -> Result<Memory> {
        let records = memory.records.map(|buf| self.buf_on(verb, buf, at)).transpose()?;
        Ok(Memory { state: self.buf_on(verb, memory.state, at)?, records })
    }
}
