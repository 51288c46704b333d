//! Where verbs run that remember a sequence in fixed size: on the device that has their weights, and with them the state.

use super::Placed;
use crate::{DeltaNet, Result, ShortConv, SlotRows, SsmScan};

impl Placed {
    pub(super) fn run_short_conv(&mut self, args: &ShortConv) -> Result<()> {
        let verb = "short_conv";
        let at = self.home(verb, args.taps)?;
        for seq in args.seqs {
            self.want(verb, args.x, seq.row..seq.row.saturating_add(seq.rows), at)?;
            self.want(verb, args.state, seq.slot..seq.slot.saturating_add(1), at)?;
        }
        self.settle(verb, at)?;
        let taps = self.weight_on(verb, args.taps, at)?;
        let bias = self.bias_on(verb, args.bias, at)?;
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (x, state, out) = (on(args.x)?, on(args.state)?, on(args.out)?);
        self.run(at, |dev| dev.short_conv(&ShortConv { x, taps, bias, state, out, ..*args }))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, seq.row..seq.row.saturating_add(seq.rows), at)?;
            self.wrote(verb, args.state, seq.slot..seq.slot.saturating_add(1), at)?;
        }
        Ok(())
    }

    pub(super) fn run_delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        let verb = "delta_net";
        let at = self.home(verb, args.rate)?;
        let batch = |seq: &SlotRows| seq.row..seq.row.saturating_add(seq.rows);
        let slot = |seq: &SlotRows| seq.slot..seq.slot.saturating_add(1);
        for seq in args.seqs {
            for buf in [args.qkv, args.z, args.beta, args.decay] {
                self.want(verb, buf, batch(seq), at)?;
            }
            self.want(verb, args.state, slot(seq), at)?;
        }
        self.settle(verb, at)?;
        let mut weight = |w| self.weight_on(verb, w, at);
        let (rate, bias, norm) = (weight(args.rate)?, weight(args.bias)?, weight(args.norm)?);
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (qkv, z, beta, decay) = (on(args.qkv)?, on(args.z)?, on(args.beta)?, on(args.decay)?);
        let (state, out) = (on(args.state)?, on(args.out)?);
        let inner = DeltaNet { qkv, z, beta, decay, rate, bias, norm, state, out, ..*args };
        self.run(at, |dev| dev.delta_net(&inner))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, batch(seq), at)?;
            self.wrote(verb, args.state, slot(seq), at)?;
        }
        Ok(())
    }

    pub(super) fn run_ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        let verb = "ssm_scan";
        let at = self.home(verb, args.rate)?;
        let batch = |seq: &SlotRows| seq.row..seq.row.saturating_add(seq.rows);
        let slot = |seq: &SlotRows| seq.slot..seq.slot.saturating_add(1);
        for seq in args.seqs {
            for buf in [args.xbc, args.z, args.dt] {
                self.want(verb, buf, batch(seq), at)?;
            }
            self.want(verb, args.state, slot(seq), at)?;
        }
        self.settle(verb, at)?;
        let mut weight = |w| self.weight_on(verb, w, at);
        let (rate, bias, skip, norm) =
            (weight(args.rate)?, weight(args.bias)?, weight(args.skip)?, weight(args.norm)?);
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (xbc, z, dt) = (on(args.xbc)?, on(args.z)?, on(args.dt)?);
        let (state, out) = (on(args.state)?, on(args.out)?);
        let inner = SsmScan { xbc, z, dt, rate, bias, skip, norm, state, out, ..*args };
        self.run(at, |dev| dev.ssm_scan(&inner))?;
        for seq in args.seqs {
            self.wrote(verb, args.out, batch(seq), at)?;
            self.wrote(verb, args.state, slot(seq), at)?;
        }
        Ok(())
    }
}
