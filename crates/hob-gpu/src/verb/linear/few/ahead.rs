//! What gate and up touch for the products behind them. A device keeps the translations of so many addresses: of 38 GB of
//! weights, each read once a token, every matrix waits for its own from memory, and an H100 loses 6 % of a step (13.9 of
//! 218 us a layer of the 70B; touched so, a step of 17.13 ms takes 16.75). So the longest product of a layer, once it has begun with its own weights, reads a word of
//! every page of all matrices up to the next such product and of that one. It must not know kernels.

use std::collections::HashMap;

use hob_compute::Result;

use crate::Gpu;
use crate::stream::{BufferId, Stream};

/// Matrices that a product touches, at most: those of a layer.
const MOST: usize = 7;
/// Pages of a matrix that are touched, at most: a workgroup has one of each matrix.
pub(super) const MOST_PAGES: u32 = 4096;
/// Bytes of a page: what devices take for large buffers.
pub(super) const PAGE_BYTES: u64 = 2 << 20;
/// Bytes of weights from which it pays: without, 5 GB cost an H100 0.7 % of a step, 38 GB 6 %.
const LARGE: u64 = 8 << 30;

/// The order of products, as rehearsals show it.
#[derive(Default)]
pub(crate) struct Ahead {
    /// Bytes of weights from which products touch others; `None`: never.
    from: Option<u64>,
    /// Bytes of weights on the device.
    pub weights: u64,
    /// From the first matrix of a gated product to what it touches.
    order: HashMap<BufferId, Vec<BufferId>>,
    /// The last gated product of a rehearsal whose list is not whole.
    open: Option<BufferId>,
    /// Where kernels leave what they read: else a compiler leaves the reading out.
    touched: Option<BufferId>,
}

impl Ahead {
    /// Whether large models' products touch anything. A software device translates nothing, and an integrated one reads too
    /// slowly to wait for it.
    pub fn new(on: bool) -> Ahead {
        Ahead { from: on.then_some(LARGE), ..Ahead::default() }
    }

    /// Forgets a buffer that is about to be released: another may have its name soon.
    pub fn forget(&mut self, gone: BufferId) {
        self.order.retain(|first, all| *first != gone && !all.contains(&gone));
        self.open = None;
    }

    /// Notes the matrices of a product of a rehearsal. The first order stays: no step may find another than the one that
    /// kernels were made for.
    fn learn(&mut self, matrices: &[BufferId], gated: bool) {
        let Some(&first) = matrices.first() else { return };
        if let Some(before) = self.open
            && before != first
            && let Some(all) = self.order.get_mut(&before)
        {
            let new = matrices.iter().filter(|m| !all.contains(m)).copied().collect::<Vec<_>>();
            all.extend(new);
            all.truncate(MOST);
        }
        if gated && self.open != Some(first) {
            self.open = (!self.order.contains_key(&first)).then_some(first);
            self.order.entry(first).or_default();
        }
    }

    /// Buffers to touch beside a product of these matrices; none in the first rehearsal.
    pub(super) fn of(&mut self, stream: &mut Stream, matrices: &[BufferId], gated: bool) -> Result<Touched> {
        let mut touched = Touched::default();
        if self.from.is_none_or(|from| self.weights < from) {
            return Ok(touched);
        }
        if stream.rehearsing {
            self.learn(matrices, gated);
        }
        let whole = matrices.first().filter(|first| gated && self.open != Some(**first));
        let Some(buffers) = whole.and_then(|first| self.order.get(first)) else { return Ok(touched) };
        for (to, &buffer) in touched.buffers.iter_mut().zip(buffers) {
            let pages = stream.bytes(buffer).div_ceil(PAGE_BYTES).min(MOST_PAGES.into());
            *to = Some((buffer, pages as u32));
        }
        if touched.count() > 0 {
            touched.into = Some(match self.touched {
                Some(into) => into,
                None => *self.touched.insert(stream.buffer("what was touched", 4 * u64::from(MOST_PAGES))?),
            });
        }
        Ok(touched)
    }
}

/// What one dispatch touches.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Touched {
    /// Buffers and their pages.
    buffers: [Option<(BufferId, u32)>; MOST],
    into: Option<BufferId>,
}

impl Touched {
    pub fn count(&self) -> usize {
        self.buffers.iter().flatten().count()
    }

    /// In the order of `kernel::bindings`.
    pub fn bindings(&self) -> impl Iterator<Item = BufferId> {
        self.buffers.iter().flatten().map(|(buffer, _)| *buffer).chain(self.into)
    }

    /// Pages, in the order of the kernel's immediates.
    pub fn pages(&self) -> impl Iterator<Item = usize> {
        self.buffers.iter().flatten().map(|(_, pages)| *pages as usize)
    }
}

impl Gpu {
    /// Whether products touch what comes behind them, whatever there is of weights, in place of the rule's choice. Hidden:
    /// only measurements and tests have a use for it.
    #[doc(hidden)]
    pub fn look_ahead(&mut self, on: bool) {
        let Ahead { weights, touched, .. } = self.ahead;
        self.ahead = Ahead { from: on.then_some(0), weights, touched, ..Ahead::default() };
    }
}
