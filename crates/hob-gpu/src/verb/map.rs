//! Elementwise work on whole rows.

use hob_compute::check::{self, Shape};
use hob_compute::{Activation, Buf, ComputeError, Map, Result};

use super::experts::{activate, activation_key};
use super::tanh::tanh;
use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const MAP: &str = include_str!("../wgsl/map.wgsl");
const VERB: &str = "map";
const LANES: usize = 256;

/// What is done to every element, as the template's flags name it.
#[derive(Copy, Clone)]
enum Step {
    Add,
    Scale,
    Softcap,
}

impl Gpu {
    pub(crate) fn run_map(&mut self, args: &Map) -> Result<()> {
        match *args {
            Map::Add { a, b, out, rows } => self.map_rows(Step::Add, [a, b, out], rows, 0.0),
            Map::Scale { a, factor, out, rows } => self.map_rows(Step::Scale, [a, a, out], rows, factor),
            Map::Softcap { a, cap, out, rows } => self.map_rows(Step::Softcap, [a, a, out], rows, cap),
            Map::SigmoidGate { a, gate, out, add, rows } => self.sigmoid_gate([a, gate, out], add, rows),
            Map::Gate { a, b, first, activation, out, rows } => {
                self.gate_rows([a, b, out], first, activation, rows)
            }
            Map::Activate { a, activation, out, rows } => self.activate_rows([a, out], activation, rows),
            Map::Join { a, b, groups, out, rows } => self.run_join([a, b, out], groups, rows),
            Map::CopyRow { a, from, out, to } => self.copy_row((a, from), (out, to)),
        }
    }

    /// `out = step(a, b)` over `rows` rows; `out` may be `a` or `b`.
    fn map_rows(&mut self, step: Step, [a, b, out]: [Buf; 3], rows: usize, value: f32) -> Result<()> {
        let shape = self.shape(VERB, out)?;
        for input in [a, b] {
            let found = self.shape(VERB, input)?;
            if found.width != shape.width || rows > found.rows.min(shape.rows) {
                let found = format!("{} x {} and {} x {}", found.rows, found.width, shape.rows, shape.width);
                return Err(ComputeError::shape(VERB, format!("{rows} rows of one width"), found));
            }
        }
        let count = rows * shape.width;
        let (other, second) = (if a == out { b } else { a }, a != out && b != out && a != b);
        let in_place = a == out || b == out;
        // A buffer that is written cannot be bound for reading as well.
        let both = in_place && a == b;
        let key = KernelKey {
            name: "map",
            params: [step as u32, in_place.into(), second.into(), both.into(), 0, 0, 0, 0],
        };
        let kernel = self.stream.kernel(key, || source(step, in_place, second, both))?;
        let mut bindings = vec![self.acts.get(VERB, out)?.rows];
        if !both {
            bindings.push(self.acts.get(VERB, other)?.rows);
        }
        if second {
            bindings.push(self.acts.get(VERB, b)?.rows);
        }
        let groups = [(count.div_ceil(LANES) as u32).min(65_535), 1, 1];
        self.acts.get_mut(VERB, out)?.written();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[count as u32, value.to_bits()],
            groups,
            verb: VERB,
            bytes: 12 * count as u64,
        })
    }

    /// `out (+)= a * sigmoid(gate)`
    fn sigmoid_gate(&mut self, [a, gate, out]: [Buf; 3], add: bool, rows: usize) -> Result<()> {
        let of = |buf| Ok((buf, self.shape(VERB, buf)?));
        let shapes = [of(a)?, of(gate)?, of(out)?];
        check::sigmoid_gate(rows, shapes, add)?;
        let (width, wide, in_place) = (shapes[2].1.width, shapes[1].1.width, a == out);
        let key = KernelKey { name: "sigmoid gate", params: [add.into(), in_place.into(), 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: Template::new()
                .flag("ADD", add)
                .flag("IN_PLACE", in_place)
                .render(include_str!("../wgsl/sigmoid_gate.wgsl")),
            bindings: [Access::Write, Access::Read, Access::Read][..if in_place { 2 } else { 3 }].to_vec(),
        })?;
        let mut bindings = vec![self.acts.get(VERB, out)?.rows, self.acts.get(VERB, gate)?.rows];
        if !in_place {
            bindings.push(self.acts.get(VERB, a)?.rows);
        }
        self.acts.get_mut(VERB, out)?.written();
        let count = rows * width;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[count as u32, (width / wide) as u32],
            groups: [(count.div_ceil(LANES) as u32).min(65_535), 1, 1],
            verb: VERB,
            bytes: 12 * count as u64,
        })
    }

    fn gate_rows(
        &mut self,
        [a, b, out]: [Buf; 3],
        first: usize,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        let [x, y, to] = [self.shape(VERB, a)?, self.shape(VERB, b)?, self.shape(VERB, out)?];
        check::gate(rows, [x, y, to], first)?;
        let (apart, [kind, alpha, limit]) = (a != out, activation_key(activation));
        let key = KernelKey { name: "gate", params: [kind, alpha, limit, apart.into(), 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: Template::new()
                .flag("APART", apart)
                .piece("activate", activate(activation))
                .render(include_str!("../wgsl/gate.wgsl")),
            bindings: [Access::Write, Access::Read, Access::Read][..2 + usize::from(apart)].to_vec(),
        })?;
        let mut bindings = vec![self.acts.get(VERB, out)?.rows, self.acts.get(VERB, b)?.rows];
        if apart {
            bindings.push(self.acts.get(VERB, a)?.rows);
        }
        let count = rows * x.width;
        self.acts.get_mut(VERB, out)?.written();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[count, x.width, y.width, first].map(|n| n as u32),
            groups: [(count.div_ceil(LANES) as u32).min(65_535), 1, 1],
            verb: VERB,
            bytes: 12 * count as u64,
        })
    }

    /// `out = activation(a)`
    fn activate_rows(&mut self, [a, out]: [Buf; 2], activation: Activation, rows: usize) -> Result<()> {
        let shapes = [self.shape(VERB, a)?, self.shape(VERB, out)?];
        check::map(rows, &shapes)?;
        let (apart, [kind, alpha, limit]) = (a != out, activation_key(activation));
        let key = KernelKey { name: "activate", params: [kind, alpha, limit, apart.into(), 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: Template::new()
                .flag("APART", apart)
                .piece("activate", activate(activation))
                .render(include_str!("../wgsl/activate_rows.wgsl")),
            bindings: [Access::Write, Access::Read][..1 + usize::from(apart)].to_vec(),
        })?;
        let mut bindings = vec![self.acts.get(VERB, out)?.rows];
        if apart {
            bindings.push(self.acts.get(VERB, a)?.rows);
        }
        let count = rows * shapes[0].width;
        self.acts.get_mut(VERB, out)?.written();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[count as u32],
            groups: [(count.div_ceil(LANES) as u32).min(65_535), 1, 1],
            verb: VERB,
            bytes: 8 * count as u64,
        })
    }

    fn copy_row(&mut self, (a, from): (Buf, usize), (out, to): (Buf, usize)) -> Result<()> {
        let (source, target) = (self.shape(VERB, a)?, self.shape(VERB, out)?);
        let Shape { width, .. } = source;
        if width != target.width || from >= source.rows || to >= target.rows || a == out {
            let found = format!("row {from} of {source:?} to row {to} of {target:?}");
            return Err(ComputeError::shape(
                VERB,
                "a row of one buffer copied into another of its width",
                found,
            ));
        }
        let key = KernelKey { name: "copy row", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: include_str!("../wgsl/copy_row.wgsl").to_string(),
            bindings: vec![Access::Write, Access::Read],
        })?;
        let bindings = [self.acts.get(VERB, out)?.rows, self.acts.get(VERB, a)?.rows];
        self.acts.get_mut(VERB, out)?.written();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[(to * width) as u32, (from * width) as u32, width as u32],
            groups: [width.div_ceil(LANES) as u32, 1, 1],
            verb: VERB,
            bytes: 8 * width as u64,
        })
    }
}

fn source(step: Step, in_place: bool, second: bool, both: bool) -> Source {
    let wgsl = Template::new()
        .flag("ADD", matches!(step, Step::Add))
        .flag("SCALE", matches!(step, Step::Scale))
        .flag("SOFTCAP", matches!(step, Step::Softcap))
        .flag("IN_PLACE", in_place)
        .flag("SECOND", second)
        .flag("BOTH", both)
        .piece("tanh", tanh("f32"))
        .render(MAP);
    let mut bindings = vec![Access::Write];
    bindings.extend((!both).then_some(Access::Read));
    bindings.extend(second.then_some(Access::Read));
    Source { wgsl, bindings }
}
