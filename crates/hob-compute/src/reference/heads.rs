//! Products and joins head by head. It must not know attention.

use super::Reference;
use crate::{Buf, Heads, Result, check};

impl Reference {
    pub(super) fn run_heads(&mut self, args: &Heads) -> Result<()> {
        const VERB: &str = "heads";
        let weight = self.weights.get(VERB, args.weight)?;
        let (x, out) = (self.shape(VERB, args.x)?, self.shape(VERB, args.out)?);
        let (count, one) = check::heads(args, x, &weight.spec, out)?;
        let mut rows = vec![Vec::with_capacity(out.width); args.rows];
        for head in 0..count {
            let x = (0..args.rows).map(|r| {
                let row = self.buffers.get(VERB, args.x)?.row(r);
                Ok(&row[head * one.width..][..one.width])
            });
            let x: Vec<&[f32]> = x.collect::<Result<_>>()?;
            let y = weight.products(head * one.rows..(head + 1) * one.rows, &x, self.info.exact)?;
            rows.iter_mut().zip(y).for_each(|(row, y)| row.extend(y));
        }
        let out = self.buffers.get_mut(VERB, args.out)?;
        rows.iter().enumerate().for_each(|(r, row)| out.row_mut(r).copy_from_slice(row));
        Ok(())
    }

    pub(super) fn run_join(&mut self, bufs: [Buf; 3], groups: usize, rows: usize) -> Result<()> {
        let [a, b, out] = bufs;
        let of = |buf| Ok((buf, self.shape("map", buf)?));
        check::join(rows, [of(a)?, of(b)?, of(out)?], groups)?;
        for r in 0..rows {
            let [a, b] = [self.buffers.get("map", a)?.row(r), self.buffers.get("map", b)?.row(r)];
            let parts = a.chunks(a.len() / groups).zip(b.chunks(b.len() / groups));
            let joined: Vec<f32> = parts.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
            self.buffers.get_mut("map", out)?.row_mut(r).copy_from_slice(&joined);
        }
        Ok(())
    }
}
