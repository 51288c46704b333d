//! KV of an exact device: f32 pages and the oracle's own attention, so that goldens see no rounding. Not fast.

use std::ops::Range;

use hob_compute::reference::attention::{Held, Query};
use hob_compute::{AppendKv, Attend, PAGE_POSITIONS, Page, PageSpec, Result};

use super::PagePools;
use crate::pool::Pool;
use crate::verb::{Parts, each_unit};

/// Appends K and V rows unrounded; shapes and pages were checked.
pub(super) fn append_kv(pages: &mut PagePools, args: &AppendKv, (k, v): (&[f32], &[f32])) -> Result<()> {
    for seq in args.seqs {
        for i in 0..seq.rows {
            let position = seq.position + i;
            let page = seq.pages[position / PAGE_POSITIONS];
            let pool = pages.get_mut("append_kv", page.pool)?;
            let (spec, span) = (pool.spec, pool.span(page.index));
            let target = &mut pool.floats[span];
            let (at, width) = (position % PAGE_POSITIONS, spec.kv_heads * spec.head_dim);
            for head in 0..spec.kv_heads {
                for dim in 0..spec.head_dim {
                    let from = (seq.row + i) * width + head * spec.head_dim + dim;
                    target[spec.k_at(head, at, dim)] = k[from];
                    if spec.latent.is_none() {
                        target[spec.v_at(head, at, dim)] = v[from];
                    }
                }
            }
        }
    }
    Ok(())
}

/// Copies the first `positions` positions of a page; specs were compared.
pub(super) fn copy_page(pages: &mut PagePools, from: Page, to: Page, positions: usize) -> Result<()> {
    let pool = pages.get("copy_page", from.pool)?;
    let (spec, source) = (pool.spec, pool.floats[pool.span(from.index)].to_vec());
    let pool = pages.get_mut("copy_page", to.pool)?;
    let span = pool.span(to.index);
    let target = &mut pool.floats[span];
    spec.values_of(0..positions).for_each(|value| target[value] = source[value]);
    Ok(())
}

/// Bytes of an image of some positions.
pub(super) fn image_bytes(spec: &PageSpec, range: Range<usize>) -> usize {
    4 * spec.position_values() * range.len()
}

/// Appends the image of some positions of a page.
pub(super) fn read(spec: &PageSpec, page: &[f32], range: Range<usize>, out: &mut Vec<u8>) {
    spec.values_of(range).for_each(|i| out.extend(page[i].to_le_bytes()));
}

/// The inverse.
pub(super) fn write(spec: &PageSpec, page: &mut [f32], range: Range<usize>, image: &[u8]) {
    let floats = image.as_chunks::<4>().0;
    spec.values_of(range).zip(floats).for_each(|(i, &b)| page[i] = f32::from_le_bytes(b));
}

/// Attention of every (row, head), each a unit of work.
pub(super) fn attend(
    pool: &Pool,
    pages: &PagePools,
    (args, of): (&Attend, PageSpec),
    sinks: Option<&[f32]>,
    (q, out): (&[f32], &mut [f32]),
) {
    let out = Parts::new(out);
    for seq in args.seqs {
        each_unit(pool, seq.rows * args.heads, &|_, unit| {
            let (i, head) = (unit / args.heads, unit % args.heads);
            let at = (seq.row + i) * args.heads + head;
            let spec = PageSpec { latent: of.latent, ..PageSpec::f16(args.kv_heads, args.head_dim) };
            let q = &q[at * args.head_dim..][..args.head_dim];
            let query = Query::new(args, spec, head, q, sinks.map(|s| s[head]));
            let page = |p: usize| {
                let page = seq.pages[p];
                let pool = pages.get("attend", page.pool)?;
                Ok(Held::Exact(&pool.floats[pool.span(page.index)]))
            };
            // SAFETY: every unit is another head of another row.
            let out = unsafe { out.part(at * spec.value_dim()..(at + 1) * spec.value_dim()) };
            // Every page was found when the arguments were checked.
            let found = query.attend(seq.position + i, page, out);
            debug_assert!(found.is_ok());
        });
    }
}
