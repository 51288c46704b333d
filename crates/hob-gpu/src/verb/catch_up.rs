//! States that move past held rows outside of a pass, or before a pass that cannot take them up itself: checks, whose state
//! it is, and the kernel for states that fade and get a product added. It must not know what makes the rows.

use hob_compute::check::recurrent::{self as check, MemoryShape};
use hob_compute::{CatchUp, Memory, Products, Recurrence, Result, SlotRows};

use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const VERB: &str = "catch_up";
/// Lanes of a workgroup; the dimensions of a head's state are multiples of 16.
const LANES: usize = 256;

impl Gpu {
    pub(crate) fn run_catch_up(&mut self, args: &CatchUp) -> Result<()> {
        let memory = MemoryShape::of(&args.memory, |buf| self.shape(VERB, buf))?;
        check::catch_up(args, memory)?;
        let memory = (&args.memory, memory.held(&args.recurrence));
        let products = match args.recurrence {
            Recurrence::Conv { channels, taps } => {
                return self.catch_up_columns((channels, taps), memory, args.seqs);
            }
            Recurrence::Delta(shape) => shape.products(),
            Recurrence::Ssm(shape) => shape.products(),
        };
        self.catch_up_states(&products, memory, args.seqs, |_| true)
    }

    /// Moves the states of some sequences past accepted records. Arguments were checked; `held` rows have records.
    pub(in crate::verb) fn catch_up_states(
        &mut self,
        shape: &Products,
        (memory, held): (&Memory, usize),
        seqs: &[SlotRows],
        of_these: fn(&SlotRows) -> bool,
    ) -> Result<()> {
        let Some(records) = memory.records else { return Ok(()) };
        let sizes = [shape.heads, shape.key_dim, shape.value_dim, held].map(|n| n as u32);
        let params = [sizes[0], sizes[1], sizes[2], sizes[3], 0, 0, 0, 0];
        let kernel = self.stream.kernel(KernelKey { name: "catch up", params }, || source(shape, held))?;
        let mut items = std::mem::take(&mut self.words);
        items.clear();
        let moved = seqs.iter().filter(|s| s.accepted > 0 && of_these(s));
        moved.for_each(|s| items.extend([s.slot, s.accepted, usize::from(s.base() == 0)].map(|n| n as u32)));
        let count = items.len() / 3;
        let start = self.stream.arguments(&items);
        self.words = items;
        self.acts.get_mut(VERB, memory.state)?.written();
        let of = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[of(memory.state)?, of(records)?, self.stream.argument_buffer()],
            immediates: &[start?],
            groups: [shape.head() / LANES, shape.heads, count].map(|n| n as u32),
            verb: VERB,
            bytes: (8 * count * shape.heads * shape.head()) as u64,
        })
    }
}

fn source(shape: &Products, held: usize) -> Source {
    let wgsl = Template::new()
        .value("HEADS", shape.heads)
        .value("KEY_DIM", shape.key_dim)
        .value("VALUE_DIM", shape.value_dim)
        .value("HELD", held)
        .render(include_str!("../wgsl/catch_up.wgsl"));
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read] }
}
