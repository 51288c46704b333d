//! Products of few rows ("columns" of the kernel): all products of a `linear` in one dispatch, whatever their formats.
//! It must not know how weights are packed.
//!
//! Integer formats multiply the int8 form of the activations, unless the device is exact; floats multiply f32. Where the
//! hardware has no dot product of int8, the compiler spells it out, at about the cost of f32 products. Columns are
//! specialised in classes of 1, 2, 4, 8 and 16; those that a batch does not have are made of whatever follows its rows,
//! and not kept.

mod ahead;
mod cut;
mod kernel;

use hob_compute::{Combine, Linear, Result};

use super::{Segment, VERB};
use crate::Gpu;
use crate::format;
use crate::stream::{BufferId, Call};
use crate::verb::fold::Fold;
pub(crate) use ahead::Ahead;
use ahead::Touched;
use cut::Cut;
pub(crate) use cut::Cuts;
pub use cut::FewCut;
use kernel::{Kind, source};

/// Products of one dispatch: three buffers each, and three of the input.
const MOST_PRODUCTS: usize = 4;
/// Workgroups in a row of the grid.
const GRID: u32 = 32_768;

impl Gpu {
    /// A `linear` of at most 16 rows whose arguments are checked. What a norm is folded into is one product of one
    /// segment.
    ///
    /// # Errors
    /// A stale handle, no room for a form, or what the device says.
    pub(super) fn run_few(&mut self, args: &Linear, fold: Option<&Fold>) -> Result<()> {
        if let Combine::Gated(_) = args.combine {
            for pair in self.gated_segments(args)? {
                self.few(args, &pair, None)?;
            }
            return Ok(());
        }
        let mut group: Vec<Segment> = Vec::new();
        for product in 0..args.products.len() {
            for segment in self.segments(args, product)? {
                // No buffer may be bound for writing twice.
                let out = args.products[product].out;
                let again = group.iter().any(|s| args.products[s.product].out == out);
                if again || group.len() == MOST_PRODUCTS {
                    self.few(args, &group, None)?;
                    group.clear();
                }
                group.push(segment);
            }
        }
        self.few(args, &group, fold)
    }

    /// Segments in one dispatch for every slice of rows.
    fn few(&mut self, args: &Linear, segments: &[Segment], fold: Option<&Fold>) -> Result<()> {
        let matrices: Vec<_> = segments.iter().map(|s| s.weights).collect();
        let touched =
            self.ahead.of(&mut self.stream, &matrices, matches!(args.combine, Combine::Gated(_)))?;
        let kind = Kind { fold: fold.is_some(), ahead: touched.count(), ..self.kind(args, segments)? };
        let height = segments.iter().map(|s| s.rows).sum();
        let mut row = 0;
        while row < args.rows {
            let cut = self.few_cut(&kind, height, args.rows - row);
            let columns = cut.columns.min(args.rows - row);
            self.slice(args, segments, (&kind, &cut), row..row + columns, (fold, &touched))?;
            row += columns;
        }
        if kind.int8_out && !self.stream.rehearsing {
            self.acts.get_mut(VERB, args.products[0].out)?.int8_rows = args.rows;
        }
        Ok(())
    }

    fn kind(&self, args: &Linear, segments: &[Segment]) -> Result<Kind> {
        let (mut formats, mut biases) = ([None; MOST_PRODUCTS], [false; MOST_PRODUCTS]);
        for (i, segment) in segments.iter().enumerate() {
            let product = &args.products[segment.product];
            formats[i] = Some(self.weights.get(VERB, product.weight)?.format);
            biases[i] = product.bias.is_some();
        }
        let out = self.acts.get(VERB, args.products[0].out)?;
        let x = self.acts.any(VERB, args.x)?;
        let (width, combine) = (out.shape.width, args.combine);
        let whole = matches!(segments, [s] if s.rows == width && width.is_multiple_of(32));
        let int8 = !self.info.exact && formats[0].is_some_and(|f| !format::is_float(f));
        Ok(Kind {
            formats,
            biases,
            combine,
            exact: hob_compute::Compute::info(self).exact,
            cols: x.shape.width,
            scaled: x.unscaled.is_some(),
            blocks_out: matches!(combine, Combine::Gated(_)) || combine == Combine::Add && whole && int8,
            fold: false,
            ahead: 0,
            int8_out: matches!(combine, Combine::Gated(_)) && out.int8.is_some(),
            subgroups: self.stream.context.tier().subgroups,
        })
    }

    fn slice(
        &mut self,
        args: &Linear,
        segments: &[Segment],
        (kind, cut): (&Kind, &Cut),
        rows: std::ops::Range<usize>,
        (fold, touched): (Option<&Fold>, &Touched),
    ) -> Result<()> {
        let kernel = self.stream.kernel(kind.key(cut), || source(kind, cut))?;
        let mut bindings = self.few_bindings(args, segments, kind)?;
        if let Some(Fold { weight, rows, int8, squares }) = fold {
            bindings.extend([*weight, *rows, int8.codes, int8.meta, *squares]);
        }
        bindings.extend(touched.bindings());
        let x = self.acts.any(VERB, args.x)?;
        let out = self.acts.get(VERB, args.products[0].out)?;
        let (cols, first) = (x.shape.width, args.first_row + rows.start);
        let eps = x.unscaled.map_or(0.0, |unscaled| unscaled.eps).to_bits();
        let mut words = vec![first, rows.len(), out.groups(), rows.start, eps as usize];
        let (mut group, mut bytes) = (0, 0);
        for (i, segment) in segments.iter().enumerate() {
            let product = &args.products[segment.product];
            let weight = self.weights.get(VERB, product.weight)?;
            words.extend([segment.rows, segment.at, group, weight.spec.rows, segment.first]);
            if !kind.gated() || i == 0 {
                group += segment.rows.div_ceil(cut.group_rows);
            }
            bytes += segment.rows * (format::row_bytes(weight.format, cols) + 4 * rows.len());
        }
        words.extend(touched.pages());
        let words: Vec<u32> = words.into_iter().map(|w| w as u32).collect();
        let groups = group as u32;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &words,
            groups: [groups.min(GRID), groups.div_ceil(GRID), 1],
            verb: VERB,
            bytes: (bytes + 4 * cols * rows.len()) as u64,
        })
    }

    /// Buffers in the order of `kernel::bindings`.
    fn few_bindings(&mut self, args: &Linear, segments: &[Segment], kind: &Kind) -> Result<Vec<BufferId>> {
        let (int8, f32) = kind.forms();
        let mut ids = Vec::new();
        if int8 && kind.scaled {
            let form = self.acts.any_mut(VERB, args.x)?.int8(&mut self.stream)?;
            ids.extend([form.codes, form.meta]);
        } else if int8 {
            let form = self.quantized(VERB, args.x, args.first_row + args.rows)?;
            ids.extend([form.codes, form.meta]);
        }
        if f32 {
            ids.push(self.acts.any(VERB, args.x)?.rows);
        }
        if kind.scaled {
            ids.push(self.acts.any_mut(VERB, args.x)?.squares(&mut self.stream)?);
        }
        for (i, segment) in segments.iter().enumerate() {
            let product = &args.products[segment.product];
            ids.push(segment.weights);
            if let Some(bias) = product.bias {
                ids.push(self.weights.get(VERB, bias)?.parts[0].buffer);
            }
            if !kind.gated() || i == 0 {
                ids.push(self.acts.get(VERB, product.out)?.rows);
            }
        }
        if let (true, Some(form)) = (kind.int8_out, self.acts.get(VERB, args.products[0].out)?.int8) {
            ids.extend([form.codes, form.meta]);
        }
        Ok(ids)
    }
}
