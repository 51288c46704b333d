//! Short convolutions and their state, any number of rows in one dispatch.

use hob_compute::check::recurrent as check;
use hob_compute::{ConvForm, Result, ShortConv, WeightKind};

use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const SHORT_CONV: &str = include_str!("../wgsl/short_conv.wgsl");
const VERB: &str = "short_conv";
const LANES: usize = 64;
/// Rows that one lane walks; a first chunk must hold all rows that still see the old state.
const CHUNK: usize = 16;

impl Gpu {
    pub(crate) fn run_short_conv(&mut self, args: &ShortConv) -> Result<()> {
        let taps = self.weight(VERB, args.taps, WeightKind::Vector)?;
        let (cols, taps) = (taps.spec.cols, taps.parts[0].buffer);
        let bias = args.bias.map(|w| self.weight(VERB, w, WeightKind::Vector)).transpose()?;
        let bias = bias.map(|bias| (bias.spec.cols, bias.parts[0].buffer));
        let (x, state) = (self.shape(VERB, args.x)?, self.shape(VERB, args.state)?);
        let out = self.shape(VERB, args.out)?;
        let count = check::short_conv(args, x, (cols, bias.map(|b| b.0)), state, out)?;
        let chunk = CHUNK.max(count);
        let key = KernelKey {
            name: "short conv",
            params: [count as u32, chunk as u32, args.form as u32, bias.is_some().into(), 0, 0, 0, 0],
        };
        let kernel = self.stream.kernel(key, || source(args.form, count, chunk, bias.is_some()))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        for seq in args.seqs {
            for first in (0..seq.rows.max(1)).step_by(chunk) {
                items.extend([seq.row, seq.rows, seq.position, seq.slot, first].map(|n| n as u32));
            }
        }
        let chunks = items.len() / 5;
        let start = self.stream.arguments(&items);
        self.words = items;
        let mut bindings = vec![
            self.acts.get(VERB, args.out)?.rows,
            self.acts.get(VERB, args.state)?.rows,
            self.acts.get(VERB, args.x)?.rows,
            taps,
            self.stream.argument_buffer(),
        ];
        bindings.extend(bias.map(|b| b.1));
        self.acts.get_mut(VERB, args.out)?.written();
        self.acts.get_mut(VERB, args.state)?.written();
        let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[out.width as u32, start?],
            groups: [out.width.div_ceil(LANES) as u32, chunks as u32, 1],
            verb: VERB,
            bytes: (16 * rows * out.width) as u64,
        })
    }
}

fn source(form: ConvForm, taps: usize, chunk: usize, biased: bool) -> Source {
    let gated = form == ConvForm::Gated;
    let wgsl = Template::new()
        .flag("GATED", gated)
        .flag("BIASED", biased)
        .value("TAPS", taps)
        .value("CHUNK", chunk)
        .render(SHORT_CONV);
    let mut bindings = vec![Access::Write, Access::Write];
    bindings.extend(vec![Access::Read; 3 + usize::from(biased)]);
    Source { wgsl, bindings }
}
