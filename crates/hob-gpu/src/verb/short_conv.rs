//! Short convolutions and their state, any number of rows in one dispatch.

use hob_compute::check::recurrent::{self as check, MemoryShape};
use hob_compute::{ConvForm, Memory, Recurrence, Result, ShortConv, SlotRows, WeightKind};

use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const ROWS: &str = include_str!("../wgsl/short_conv/rows.wgsl");
const CATCH_UP: &str = include_str!("../wgsl/short_conv/catch_up.wgsl");
const EARLIER: &str = include_str!("../wgsl/short_conv/earlier.wgsl");
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
        let memory = MemoryShape::of(&args.memory, |buf| self.shape(VERB, buf))?;
        let (x, out) = (self.shape(VERB, args.x)?, self.shape(VERB, args.out)?);
        let count = check::short_conv(args, x, (cols, bias.map(|b| b.0)), memory, out)?;
        let held = memory.held(&Recurrence::Conv { channels: out.width, taps: count });
        let form =
            Form { form: args.form, taps: count, chunk: CHUNK.max(count), held, biased: bias.is_some() };
        let (chunk, kernel) = (form.chunk, self.stream.kernel(form.key(), || form.source())?);
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        for seq in args.seqs {
            for first in (0..seq.rows.max(1)).step_by(chunk) {
                let SlotRows { row, rows, position, slot, accepted, .. } = *seq;
                let holds = usize::from(seq.holds());
                items.extend([position, slot, accepted, holds, row, rows, first].map(|n| n as u32));
            }
        }
        let chunks = items.len() / 7;
        let start = self.stream.arguments(&items);
        self.words = items;
        let of = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        let mut bindings =
            vec![of(args.out)?, of(args.memory.state)?, of(args.x)?, taps, self.stream.argument_buffer()];
        bindings.extend(args.memory.records.map(of).transpose()?);
        bindings.extend(bias.map(|b| b.1));
        for buf in args.memory.bufs().chain([args.out]) {
            self.acts.get_mut(VERB, buf)?.written();
        }
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

    /// Moves columns past accepted records. Arguments were checked; `held` rows have records.
    pub(super) fn catch_up_columns(
        &mut self,
        (channels, taps): (usize, usize),
        (memory, held): (&Memory, usize),
        seqs: &[SlotRows],
    ) -> Result<()> {
        const VERB: &str = "catch_up";
        let Some(records) = memory.records else { return Ok(()) };
        let key =
            KernelKey { name: "short conv catch up", params: [taps as u32, held as u32, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || catch_up_source(taps, held))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        let moved = seqs.iter().filter(|s| s.accepted > 0);
        moved.for_each(|s| items.extend([s.position, s.slot, s.accepted].map(|n| n as u32)));
        let count = items.len() / 3;
        let start = self.stream.arguments(&items);
        self.words = items;
        self.acts.get_mut(VERB, memory.state)?.written();
        let of = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[of(memory.state)?, of(records)?, self.stream.argument_buffer()],
            immediates: &[channels as u32, start?],
            groups: [channels.div_ceil(LANES) as u32, count as u32, 1],
            verb: VERB,
            bytes: (8 * count * taps * channels) as u64,
        })
    }
}

fn template(taps: usize, held: usize) -> Template {
    Template::new()
        .flag("RECORDS", held > 0)
        .value("HELD", held)
        .value("TAPS", taps)
        .piece("earlier", EARLIER)
}

/// What the kernel of rows is specialised by.
#[derive(Copy, Clone)]
struct Form {
    form: ConvForm,
    taps: usize,
    chunk: usize,
    /// Rows that have records.
    held: usize,
    biased: bool,
}

impl Form {
    fn key(&self) -> KernelKey {
        let &Form { form, taps, chunk, held, biased } = self;
        let params = [taps as u32, chunk as u32, form as u32, held as u32, biased.into(), 0, 0, 0];
        KernelKey { name: "short conv", params }
    }

    fn source(&self) -> Source {
        let wgsl = template(self.taps, self.held)
            .flag("GATED", self.form == ConvForm::Gated)
            .flag("BIASED", self.biased)
            .value("BIAS", 5 + usize::from(self.held > 0))
            .value("CHUNK", self.chunk)
            .render(ROWS);
        let mut bindings = vec![Access::Write, Access::Write];
        bindings.extend([Access::Read; 3]);
        bindings.extend([Access::Write].iter().filter(|_| self.held > 0));
        bindings.extend([Access::Read].iter().filter(|_| self.biased));
        Source { wgsl, bindings }
    }
}

fn catch_up_source(taps: usize, held: usize) -> Source {
    let wgsl = template(taps, held).render(CATCH_UP);
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read] }
}
