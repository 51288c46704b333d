//! Products and joins head by head, and a latent's rows, which join norms and rotations. Weights become f32 as they are read, whatever the rows' forms: the matrices are small,
//! and a head's part of a row need not be whole blocks of an int8 form. It must not know attention.

use hob_compute::{
    Buf, ComputeError, HeadNorm, Heads, LatentRows, Norm, Result, Rope, RopePairs, Rotation, WeightKind,
    check,
};
use hob_quant::Format;

use crate::Gpu;
use crate::act::FEW_ROWS;
use crate::format;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;
use crate::verb::rope::ROPE_ANGLE;

const VERB: &str = "heads";
/// Outputs that a workgroup of few rows makes.
const FEW_OUTPUTS: usize = 32;
/// Rows and outputs of a tile of many.
const TILE: usize = 64;
/// Most workgroups along a dimension.
const GRID: usize = 65_535;

impl Gpu {
    pub(crate) fn run_heads(&mut self, args: &Heads) -> Result<()> {
        let weight = self.weights.get(VERB, args.weight)?;
        let (x, to) = (self.shape(VERB, args.x)?, self.shape(VERB, args.out)?);
        let (count, one) = check::heads(args, x, &weight.spec, to)?;
        if args.rows == 0 {
            return Ok(());
        }
        let (stored, few) = (weight.format, args.rows <= FEW_ROWS);
        // No part cuts a head.
        let parts: Vec<_> = weight.parts.iter().map(|p| (p.buffer, p.first_row, p.rows)).collect();
        let x = self.acts.get(VERB, args.x)?.rows;
        let act = self.acts.get_mut(VERB, args.out)?;
        act.written();
        let out = act.rows;
        let key = KernelKey { name: VERB, params: [stored.ggml_id(), few.into(), 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || source(stored, few))?;
        let blocks = one.width.div_ceil(32);
        for (buffer, first, rows) in parts {
            let shared = [one.width, blocks, one.rows, count];
            let (sizes, groups) = match few {
                true => ([first, rows], [rows.div_ceil(FEW_OUTPUTS), args.rows, 1]),
                false => {
                    let tiles = [args.rows.div_ceil(TILE), one.rows.div_ceil(TILE)];
                    ([first / one.rows, args.rows], [tiles[0], tiles[1], rows / one.rows])
                }
            };
            let most = groups.into_iter().max().unwrap_or(0);
            check_grid(most)?;
            let immediates: Vec<u32> = shared.into_iter().chain(sizes).map(|n| n as u32).collect();
            self.stream.dispatch(&Call {
                kernel,
                bindings: &[out, buffer, x],
                immediates: &immediates,
                groups: groups.map(|n| n as u32),
                verb: VERB,
                bytes: (rows * format::row_bytes(stored, one.width)) as u64
                    + 4 * (args.rows * rows / one.rows * (one.width + one.rows)) as u64,
            })?;
        }
        Ok(())
    }

    pub(crate) fn run_join(&mut self, bufs: [Buf; 3], groups: usize, rows: usize) -> Result<()> {
        let [a, b, out] = bufs;
        let of = |buf| Ok((buf, self.shape("map", buf)?));
        let shapes = [of(a)?, of(b)?, of(out)?];
        check::join(rows, shapes, groups)?;
        let key = KernelKey { name: "join", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: include_str!("../wgsl/join.wgsl").to_string(),
            bindings: vec![Access::Write, Access::Read, Access::Read],
        })?;
        let bindings = [out, a, b].map(|buf| Ok(self.acts.get("map", buf)?.rows));
        let [to, a, b] = bindings;
        self.acts.get_mut("map", out)?.written();
        let count = rows * shapes[2].1.width;
        let [first, width] = [shapes[0].1.width / groups, shapes[2].1.width / groups];
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[to?, a?, b?],
            immediates: &[count, first, width].map(|n| n as u32),
            groups: [count.div_ceil(256).min(GRID) as u32, 1, 1],
            verb: "map",
            bytes: 8 * count as u64,
        })
    }
}

impl Gpu {
    pub(crate) fn run_latent_rows(&mut self, args: &LatentRows) -> Result<()> {
        const VERB: &str = "latent_rows";
        let &LatentRows { wide, rotated, latent, key, heads, rotary, q, k, positions, .. } = args;
        let rows = positions.len();
        let of = |buf| Ok((buf, self.shape(VERB, buf)?));
        let (of_wide, of_rotated, of_latent, of_key) = (of(wide)?, of(rotated)?, of(latent)?, of(key)?);
        let HeadNorm { weight, groups, eps } = args.norm;
        let loaded = self.weight(VERB, weight, WeightKind::Vector)?;
        let (cols, weights) = (loaded.spec.cols, loaded.parts[0].buffer);
        let norm = Norm { x: latent, rows, groups, weight, eps, out: latent };
        check::norm(&norm, of_latent.1, cols, of_latent.1)?;
        check::norm(&Norm { groups: 1, ..norm }, of_latent.1, cols, of_latent.1)?;
        check::join(rows, [of_wide, of_rotated, of(q)?], heads)?;
        check::join(rows, [of_latent, of_key, of(k)?], 1)?;
        let mut turn = (None, false, 1.0);
        if let Some(Rotation { freqs, pairs, magnitude }) = args.rotation {
            let table = self.shape(VERB, freqs)?;
            for (x, shape, heads) in [(rotated, of_rotated.1, heads), (key, of_key.1, 1)] {
                let head_dim = rotary;
                let rope =
                    Rope { x, heads, head_dim, first: 0, back: false, positions, freqs, pairs, magnitude };
                check::rope(&rope, shape, table)?;
            }
            if 2 * table.width != rotary {
                let found = format!("{}", table.width);
                return Err(ComputeError::shape(VERB, format!("frequencies of {rotary} dimensions"), found));
            }
            turn = (Some(self.acts.get(VERB, freqs)?.rows), pairs == RopePairs::Interleaved, magnitude);
        }
        let (freqs, interleaved, magnitude) = turn;
        let flags = [freqs.is_some(), interleaved].map(u32::from);
        let name = "latent rows";
        let kernel =
            self.stream.kernel(KernelKey { name, params: [flags[0], flags[1], 0, 0, 0, 0, 0, 0] }, || {
                latent_rows_source(freqs.is_some(), interleaved)
            })?;
        let inputs = [wide, rotated, latent, key].map(|buf| Ok(self.acts.get(VERB, buf)?.rows));
        let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
        let mut bindings = Vec::new();
        for buf in [q, k] {
            let act = self.acts.get_mut(VERB, buf)?;
            act.written();
            bindings.push(act.rows);
        }
        bindings.extend(inputs);
        bindings.push(weights);
        let mut at = 0;
        if let Some(freqs) = freqs {
            at = self.stream.arguments(positions)?;
            bindings.extend([freqs, self.stream.argument_buffer()]);
        }
        let [heads, rank, rotary] = [heads, cols, rotary].map(|n| n as u32);
        check_grid(rows)?;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[heads, rank, rotary, at, magnitude.to_bits(), eps.to_bits()],
            groups: [heads + 1, rows as u32, 1],
            verb: VERB,
            bytes: 8 * rows as u64 * u64::from((heads + 1) * (rank + rotary)),
        })
    }
}

fn latent_rows_source(rotates: bool, interleaved: bool) -> Source {
    let wgsl = Template::new()
        .flag("ROTATES", rotates)
        .flag("INTERLEAVED", interleaved)
        .piece("rope_angle", ROPE_ANGLE)
        .render(include_str!("../wgsl/latent_rows.wgsl"));
    let mut bindings = vec![Access::Write; 2];
    bindings.extend(vec![Access::Read; if rotates { 7 } else { 5 }]);
    Source { wgsl, bindings }
}

/// # Errors
/// More workgroups than a dispatch can have.
fn check_grid(groups: usize) -> Result<()> {
    if groups <= GRID {
        return Ok(());
    }
    let found = format!("{groups} workgroups");
    Err(ComputeError::shape(VERB, format!("at most {GRID} workgroups of heads"), found))
}

fn source(stored: Format, few: bool) -> Source {
    let text = match few {
        true => include_str!("../wgsl/heads_few.wgsl"),
        false => include_str!("../wgsl/heads_many.wgsl"),
    };
    let wgsl = Template::new().piece("unpack", format::unpack(&[(stored, "a")])).render(text);
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read] }
}
