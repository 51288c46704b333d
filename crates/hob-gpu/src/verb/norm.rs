//! RMS norms, which write the form that their readers multiply with as well. It must not know who reads.

use hob_compute::{Norm, Result, WeightKind, check};

use crate::Gpu;
use crate::act::{Act, FEW_ROWS};
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const NORM: &str = include_str!("../wgsl/norm.wgsl");
const VERB: &str = "norm";
/// Most workgroups along one side of a grid.
const GRID: usize = 65_535;

/// What the kernel of a norm is specialised by.
#[derive(Copy, Clone)]
struct Shape {
    in_place: bool,
    /// Floats come in vectors of 4.
    vectors: bool,
    lanes: usize,
    /// Values or vectors of a lane.
    each: usize,
    form: Written,
    subgroups: bool,
}

/// The form written beside the rows.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Written {
    None,
    Int8,
    Half,
}

impl Gpu {
    pub(crate) fn run_norm(&mut self, args: &Norm) -> Result<()> {
        let weight = self.weight(VERB, args.weight, WeightKind::Vector)?;
        let (cols, weight) = (weight.spec.cols, weight.parts[0].buffer);
        let (x, out) = (self.shape(VERB, args.x)?, self.shape(VERB, args.out)?);
        check::norm(args, x, cols, out)?;
        if args.x != args.out && self.acts.lacks(args.out).is_some_and(|lacks| lacks.rows <= args.rows) {
            // What those rows lack does not matter any more.
            self.acts.any_mut(VERB, args.out)?.unscaled = None;
        }
        let act = self.acts.get(VERB, args.out)?;
        let shape = self.norm_shape(args, cols, act);
        let form = shape.form;
        let mut bindings = vec![act.rows, weight];
        if args.x != args.out {
            bindings.push(self.acts.get(VERB, args.x)?.rows);
        }
        match (form, act.int8, act.half) {
            (Written::Int8, Some(int8), _) => bindings.extend([int8.codes, int8.meta]),
            (Written::Half, _, Some(half)) => bindings.push(half),
            _ => (),
        }
        let key = KernelKey { name: "norm", params: shape.key() };
        let kernel = self.stream.kernel(key, || shape.source())?;
        let act = self.acts.get_mut(VERB, args.out)?;
        act.written();
        match form {
            _ if self.stream.rehearsing => (),
            Written::Int8 => act.int8_rows = args.rows,
            Written::Half => act.half_rows = args.rows,
            Written::None => (),
        }
        let count = args.rows * args.groups;
        let wide = if shape.vectors { 4 } else { 1 };
        let across = count.clamp(1, GRID);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[
                (cols / wide) as u32,
                args.eps.to_bits(),
                count as u32,
                (cols.next_multiple_of(32) / 4) as u32,
            ],
            groups: [across as u32, count.div_ceil(across) as u32, 1],
            verb: VERB,
            bytes: (8 * count * cols) as u64,
        })
    }

    fn norm_shape(&self, args: &Norm, cols: usize, out: &Act) -> Shape {
        let limits = self.stream.context.device.limits();
        let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        let vectors = cols.is_multiple_of(4);
        let count = if vectors { cols / 4 } else { cols };
        // Few rows are short of lanes, many rows of workgroups that run side by side.
        let wanted = if args.rows <= FEW_ROWS { count } else { count / 2 };
        let lanes = wanted.next_power_of_two().clamp(32, (most as usize).min(1024));
        let each = count.div_ceil(lanes);
        let whole = args.groups == 1 && vectors;
        // The int8 form goes through workgroup memory, 8 bytes for 4 values.
        let fits = 8 * lanes * each + 4 * lanes <= limits.max_compute_workgroup_storage_size as usize;
        let form = match args.rows <= FEW_ROWS {
            true if whole && fits && cols.is_multiple_of(32) && out.int8.is_some() => Written::Int8,
            false if whole && out.half.is_some() => Written::Half,
            _ => Written::None,
        };
        let subgroups = self.stream.context.tier().subgroups;
        Shape { in_place: args.x == args.out, vectors, lanes, each, form, subgroups }
    }
}

impl Shape {
    fn key(self) -> [u32; 8] {
        let Shape { in_place, vectors, lanes, each, form, .. } = self;
        [in_place.into(), vectors.into(), lanes as u32, each as u32, form as u32, 0, 0, 0]
    }

    fn source(self) -> Source {
        let x = if self.in_place { 2 } else { 3 };
        let wgsl = Template::new()
            .flag("IN_PLACE", self.in_place)
            .flag("VECTORS", self.vectors)
            .flag("SUBGROUPS", self.subgroups)
            .flag("INT8_FORM", self.form == Written::Int8)
            .flag("HALF_FORM", self.form == Written::Half)
            .value("TYPE", if self.vectors { "vec4<f32>" } else { "f32" })
            .value("WIDE", if self.vectors { 4 } else { 1 })
            .value("LANES", self.lanes)
            .value("EACH", self.each)
            .value("PIECES", self.lanes * self.each)
            .value("X", 2)
            .value("CODES", x)
            .value("META", x + 1)
            .value("HALF", x)
            .render(NORM);
        let mut bindings = vec![Access::Write, Access::Read];
        bindings.extend((!self.in_place).then_some(Access::Read));
        let forms = match self.form {
            Written::None => 0,
            Written::Int8 => 2,
            Written::Half => 1,
        };
        bindings.extend(vec![Access::Write; forms]);
        Source { wgsl, bindings }
    }
}
