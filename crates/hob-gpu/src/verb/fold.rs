//! Norms that cost no dispatch. A product of few rows that is added to its output, or the last product of a mixture, is
//! held until the next verb: where that is the norm of this output, the product writes the norm's rows and their int8 form
//! as well, all but the factor of the row, which wants every block of it. Products that read these rows multiply their
//! sums by the factor; for whoever else reads them it is made up for by a small dispatch. A routing of few rows is held
//! alike, for the experts. It must not know how products are computed.

use hob_compute::{Buf, Combine, Experts, Linear, Norm, Product, Result, Route, WeightKind, check};

use crate::Gpu;
use crate::act::{FEW_ROWS, FOLDED_ROWS, Int8, Unscaled};
use crate::format;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};

const VERB: &str = "norm";

/// What is checked and was not dispatched yet.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Held {
    /// A `linear` of one product, added to its output.
    Product {
        x: Buf,
        first_row: usize,
        rows: usize,
        product: Product,
    },
    /// The second half of `experts`, added to its output.
    Down(Experts),
    Route(Route),
}

impl Held {
    /// The rows that are added to, how many they are, and what is read for that; none where a norm has no place.
    fn sum(&self) -> Option<(Buf, usize, Buf)> {
        match self {
            Held::Product { x, rows, product, .. } => Some((product.out, *rows, *x)),
            Held::Down(args) => Some((args.out, args.rows, args.hidden)),
            Held::Route(_) => None,
        }
    }
}

/// The norm that a product ends with: its weight, and the buffers that it fills.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Fold {
    pub weight: BufferId,
    pub rows: BufferId,
    pub int8: Int8,
    pub squares: BufferId,
}

impl Gpu {
    /// Before a verb: what is held goes first, and what the verb reads or writes are finished rows.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn enter(&mut self, verb: &'static str, reads: &[Buf], writes: &[Buf]) -> Result<()> {
        self.let_go()?;
        for &buf in reads {
            // Stale handles are the verb's to refuse.
            let Some(unscaled) = self.acts.lacks(buf) else { continue };
            if self.stream.rehearsing {
                // Finishing rows costs what the norm by itself would: next time that one is taken.
                self.weights.get_mut(verb, unscaled.weight)?.read_plain = true;
            }
            self.settle_rows(verb, buf)?;
        }
        writes.iter().try_for_each(|&buf| self.settle_rows(verb, buf))
    }

    /// As [`Gpu::enter`], for a `linear`: few rows of its input need no factor yet.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn enter_linear(&mut self, args: &Linear) -> Result<()> {
        let scales = args.rows <= FEW_ROWS;
        let end = args.first_row.saturating_add(args.rows);
        let taken = self.acts.lacks(args.x).is_some_and(|unscaled| scales && end <= unscaled.rows);
        self.enter("linear", if taken { &[] } else { std::slice::from_ref(&args.x) }, &[])?;
        args.written().try_for_each(|product| self.settle_rows("linear", product.out))
    }

    /// As [`Gpu::enter`], for experts: few rows of their input need no factor yet.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn enter_experts(&mut self, args: &Experts) -> Result<()> {
        let scales = args.rows <= FEW_ROWS;
        let taken = self.acts.lacks(args.x).is_some_and(|unscaled| scales && args.rows <= unscaled.rows);
        let reads = [args.routes, args.x];
        self.enter("experts", if taken { &reads[..1] } else { &reads }, &[args.hidden, args.out])
    }

    /// Whether a checked `linear` waits for the verb behind it.
    pub(crate) fn hold(&mut self, args: &Linear) -> Result<bool> {
        let &Linear { x, first_row, rows, combine: Combine::Add, products: &[product], .. } = args else {
            return Ok(false);
        };
        let whole = self.shape("linear", product.out)?.width.is_multiple_of(32);
        let weight = self.weights.get("linear", product.weight)?;
        let int8 = !self.info.exact && !format::is_float(weight.format);
        let fits = int8 && whole && weight.parts.len() == 1 && (1..=FOLDED_ROWS).contains(&rows);
        if fits {
            self.held = Some(Held::Product { x, first_row, rows, product });
        }
        Ok(fits)
    }

    /// Dispatches what is held.
    ///
    /// # Errors
    /// What the device says; nothing is held any more then.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        match self.held.take() {
            Some(held) => self.run_held(&held, None),
            None => Ok(()),
        }
    }

    fn run_held(&mut self, held: &Held, fold: Option<&Fold>) -> Result<()> {
        match *held {
            Held::Product { x, first_row, rows, product } => {
                let products = &[product];
                self.run_linear(&Linear { x, first_row, rows, products, combine: Combine::Add }, fold)
            }
            Held::Down(args) => self.run_down(&args, fold),
            Held::Route(args) => self.run_route(&args),
        }
    }

    /// Folds a norm into what is held. Gives false, with nothing done, where they do not belong together.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn fold(&mut self, args: &Norm) -> Result<bool> {
        let Some(held) = self.held else { return Ok(false) };
        let Some((sum, of_rows, reads)) = held.sum() else { return Ok(false) };
        let &Norm { x, rows, groups, weight, eps, out } = args;
        let follows = x == sum && rows == of_rows && groups == 1;
        if !follows || out == x || out == reads || !self.folds(args)? {
            return Ok(false);
        }
        if self.stream.rehearsing {
            // Both ways are made ready: a later rehearsal may find that this norm does not pay folded.
            self.acts.any_mut(VERB, out)?.unscaled = None;
            self.run_norm(args)?;
        }
        // Rows of an earlier norm that stay must not be told another one's factor.
        if self.acts.lacks(out).is_some_and(|before| before.rows > rows) {
            self.settle_rows(VERB, out)?;
        }
        let buffer = self.weights.get(VERB, weight)?.parts[0].buffer;
        let act = self.acts.any_mut(VERB, out)?;
        act.unscaled = None;
        act.written();
        let int8 = act.int8(&mut self.stream)?;
        let fold = Fold { weight: buffer, rows: act.rows, int8, squares: act.squares(&mut self.stream)? };
        self.held = None;
        self.run_held(&held, Some(&fold))?;
        self.acts.lack(VERB, out, Unscaled { rows, eps, weight })?;
        if self.stream.rehearsing {
            self.scale_rows(VERB, out)?;
        }
        Ok(true)
    }

    /// Whether a norm is sound, its output has readers of the int8 form, and nobody was seen to want more of it.
    fn folds(&self, args: &Norm) -> Result<bool> {
        let weight = self.weight(VERB, args.weight, WeightKind::Vector)?;
        check::norm(args, self.shape(VERB, args.x)?, weight.spec.cols, self.shape(VERB, args.out)?)?;
        Ok(!weight.read_plain && self.acts.any(VERB, args.out)?.int8.is_some())
    }

    /// Makes rows finished ones.
    fn settle_rows(&mut self, verb: &'static str, buf: Buf) -> Result<()> {
        let Some(unscaled) = self.acts.lacks(buf) else { return Ok(()) };
        self.scale_rows(verb, buf)?;
        let act = self.acts.any_mut(verb, buf)?;
        act.unscaled = None;
        if !self.stream.rehearsing {
            act.int8_rows = unscaled.rows;
        }
        Ok(())
    }

    /// Multiplies unscaled rows, and the scales of their int8 form, by their factor.
    fn scale_rows(&mut self, verb: &'static str, buf: Buf) -> Result<()> {
        let act = self.acts.any_mut(verb, buf)?;
        let (Some(Unscaled { rows, eps, .. }), width, blocks) = (act.unscaled, act.shape.width, act.groups())
        else {
            return Ok(());
        };
        let bindings = [act.rows, act.int8(&mut self.stream)?.meta, act.squares(&mut self.stream)?];
        let key = KernelKey { name: "settle", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: include_str!("../wgsl/settle.wgsl").to_string(),
            bindings: vec![Access::Write, Access::Write, Access::Read],
        })?;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[width as u32, blocks as u32, eps.to_bits()],
            groups: [width.div_ceil(1024) as u32, rows as u32, 1],
            verb: VERB,
            bytes: (8 * rows * (width + blocks)) as u64,
        })
    }

    /// Begins or ends a rehearsal: neither it nor what comes after knows of rows that the other left unfinished.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn turn_rehearsal(&mut self, on: bool) -> Result<()> {
        let done = self.let_go();
        if on != self.stream.rehearsing {
            for buf in self.acts.unscaled() {
                match on {
                    true => self.settle_rows(VERB, buf)?,
                    // Nothing was written.
                    false => self.acts.any_mut(VERB, buf)?.unscaled = None,
                }
            }
        }
        self.stream.rehearsing = on;
        done
    }
}

#[cfg(test)]
mod tests {
    use hob_compute::{Buf, Compute, ComputeError, Map, Weight};

    use super::Unscaled;
    use crate::{Gpu, GpuConfig};

    /// A verb that forgot [`Gpu::enter`] says so, and computes nothing from rows that lack a factor.
    #[test]
    fn rows_that_lack_their_factor_are_refused_to_whoever_does_not_bring_it() {
        let Some(adapter) = crate::test_adapter() else {
            return;
        };
        let mut gpu = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() }).unwrap();
        let [a, out] = [gpu.alloc(2, 32).unwrap(), gpu.alloc(2, 32).unwrap()];
        let Buf { device, .. } = a;
        let weight = Weight { device, index: 0, generation: 0 };
        gpu.acts.lack("test", a, Unscaled { rows: 1, eps: 0.0, weight }).unwrap();
        let refused = |result| matches!(result, Err(ComputeError::Shape { .. }));
        assert!(refused(gpu.run_map(&Map::Scale { a, factor: 1.0, out, rows: 1 })));
        assert!(refused(gpu.run_map(&Map::CopyRow { a, from: 1, out, to: 0 })));
        assert!(refused(gpu.run_map(&Map::Scale { a: out, factor: 1.0, out: a, rows: 1 })));
        assert!(refused(gpu.quantized("test", a, 1).map(|_| ())));
        assert!(refused(gpu.halved("test", a, 1).map(|_| ())));
        gpu.map(&Map::Scale { a, factor: 1.0, out, rows: 1 }).unwrap();
        gpu.run_map(&Map::Scale { a, factor: 1.0, out, rows: 1 }).unwrap();
    }
}
