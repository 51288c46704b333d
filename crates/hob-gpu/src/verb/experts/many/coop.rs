//! Tiles of cooperative matrices on the f16 form: the kernel of `linear` of many rows, on pairs of a row and an expert. It
//! must not know how pairs were grouped.

use hob_compute::{Activation, Combine, Result};
use hob_quant::Format;

use super::super::{activate, activation_key};
use super::{Mixture, Part, Slab, Tiles, Tiling};
use crate::Gpu;
use crate::format;
use crate::stream::{Access, Bounds, BufferId, KernelKey, Source};
use crate::verb::linear::many::{Spec, Tile, Way};

const FINISH: &str = include_str!("../../../wgsl/expert_finish.wgsl");
/// The tiles that pairs come in, by height.
const TILES: [Tile; 3] = [Tile::FLAT, Tile::BROAD, Tile::LARGE];
/// Pairs of the lowest.
pub(super) const LOWEST: usize = if cfg!(test) { 16 } else { Tile::FLAT.rows };
/// As little text as has all there is: software adapters compile slowly.
#[cfg(test)]
const NARROW: Tile = Tile { rows: 16, cols: 32, step: 32, sub_rows: 16, sub_cols: 32 };

/// The tile for some pairs in all: a high one that few pairs of an expert fill is products for nothing. (An H100 makes of
/// 256 pairs each 118 TFLOP/s in the largest, of 64 each 69.)
fn tile(pairs: usize, experts: usize) -> Tile {
    match pairs / experts {
        0..=40 => Tile::FLAT,
        41..=191 => Tile::BROAD,
        _ => Tile::LARGE,
    }
}

impl Tiling {
    /// The tile for some pairs in all.
    pub fn tile(self, pairs: usize, experts: usize) -> Tile {
        match self {
            #[cfg(test)]
            Tiling::Lanes => NARROW,
            _ => tile(pairs, experts),
        }
    }
}

/// The tiles that so many pairs or fewer may take.
pub(super) fn tiles_up_to(pairs: usize, experts: usize) -> impl Iterator<Item = Tile> {
    let most = tile(pairs, experts).rows;
    TILES.into_iter().filter(move |tile| tile.rows <= most)
}

/// What becomes of the sums: hidden rows in f16 form, of gate and up or of up alone, or products.
#[derive(Copy, Clone, Debug, PartialEq)]
enum Role {
    GateUp(Activation),
    Up(Activation),
    Down,
}

impl Role {
    fn spec(self, formats: [Format; 2], biased: bool, [vectors, tail]: [bool; 2]) -> Spec {
        let combine = match self {
            Role::GateUp(activation) => Combine::Gated(activation),
            Role::Up(_) | Role::Down => Combine::Store,
        };
        let (bias, half_out) = ([biased, biased && self.gated()], self != Role::Down);
        Spec { formats, combine, bias, half_out, vectors, tail, routed: true }
    }

    fn activation(self) -> Option<Activation> {
        match self {
            Role::GateUp(activation) | Role::Up(activation) => Some(activation),
            Role::Down => None,
        }
    }

    fn gated(self) -> bool {
        matches!(self, Role::GateUp(_))
    }
}

/// Gate and up, up alone, or down.
struct Side<'a> {
    formats: [Format; 2],
    role: Role,
    x: BufferId,
    parts: &'a [Part],
    biases: &'a [BufferId],
    out: BufferId,
    experts: std::ops::Range<usize>,
    /// Inputs and outputs of an expert.
    cols: usize,
    outputs: usize,
}

impl Gpu {
    pub(super) fn coop_slab(
        &mut self,
        mixture: &Mixture,
        tiling: Tiling,
        tile: Tile,
        slab: &Slab,
    ) -> Result<()> {
        let Mixture { args, shapes, formats: [gate, up, down], .. } = *mixture;
        let missing =
            || hob_compute::ComputeError::shape("experts", "an f16 form (a mistake in hob)", "none");
        let [x, hidden] = [mixture.x.half.ok_or_else(missing)?, mixture.hidden.half.ok_or_else(missing)?];
        let way = tiling.way();
        self.sort_slab(mixture, slab, tile.rows)?;
        let biases: Vec<BufferId> = mixture.biases.into_iter().flatten().collect();
        let (of_gate, of_down) = biases.split_at(biases.len() / 3 * 2);
        let (role, weights) =
            if mixture.alone { (Role::Up(args.activation), 1) } else { (Role::GateUp(args.activation), 2) };
        for (parts, experts) in self.gate_parts(mixture)? {
            let side = Side {
                formats: [gate, up],
                role,
                x,
                parts: &parts[..weights],
                biases: of_gate,
                out: hidden,
                experts,
                cols: shapes.gate.width,
                outputs: shapes.gate.rows,
            };
            self.coop_tiles(mixture, slab, (way, tile), &side)?;
        }
        for part in self.expert_parts(args.down, shapes.down.rows)? {
            let side = Side {
                formats: [down; 2],
                role: Role::Down,
                x: hidden,
                parts: &[part],
                biases: of_down,
                out: slab.buffers.products,
                experts: part.first..part.end,
                cols: shapes.down.width,
                outputs: shapes.down.rows,
            };
            self.coop_tiles(mixture, slab, (way, tile), &side)?;
        }
        Ok(())
    }

    fn coop_tiles(
        &mut self,
        mixture: &Mixture,
        slab: &Slab,
        (way, tile): (Way, Tile),
        side: &Side,
    ) -> Result<()> {
        let &Side { formats, role, cols, outputs, .. } = side;
        let spec = side.spec(tile);
        let key = spec.routed_key(way, tile, role);
        // Every index is clamped where it could leave its buffer.
        let kernel = self.stream.kernel_with(key, Bounds::Trusted, || source(&spec, way, tile, role))?;
        let mut bindings = Vec::new();
        if role == Role::Down {
            bindings.push(side.out);
        }
        bindings.push(side.x);
        bindings.extend(side.parts.iter().map(|part| part.weights));
        bindings.extend(side.biases);
        if role != Role::Down {
            bindings.push(side.out);
        }
        bindings.extend([slab.buffers.order, slab.buffers.tiles]);
        let top_k = mixture.args.top_k;
        let (first, last) = (side.parts[0].first, side.parts[side.parts.len() - 1].first);
        let sizes = [
            slab.rows.start * top_k,
            top_k,
            cols,
            cols.div_ceil(32),
            outputs,
            outputs.div_ceil(32) * 8,
            side.experts.start,
            side.experts.end,
            first,
            last,
        ];
        let pairs = slab.rows.len() * top_k;
        let chosen = pairs.min(side.experts.len());
        let of_weights: usize = formats[..side.parts.len()].iter().map(|&f| format::row_bytes(f, cols)).sum();
        let [_, wide] = tile.outputs(role.gated());
        self.dispatch_expert_tiles(&Tiles {
            kernel,
            bindings,
            immediates: &sizes,
            groups: [slab.tiles, outputs.div_ceil(wide)],
            bytes: chosen * outputs * of_weights + pairs * (2 * cols + 4 * outputs),
        })
    }
}

impl Side<'_> {
    fn spec(&self, tile: Tile) -> Spec {
        let biased = !self.biases.is_empty();
        self.role.spec(
            self.formats,
            biased,
            [self.outputs.is_multiple_of(4), !self.cols.next_multiple_of(32).is_multiple_of(tile.step)],
        )
    }
}

impl Spec {
    fn routed_key(&self, way: Way, tile: Tile, role: Role) -> KernelKey {
        let name = if way == Way::Coop { "expert coop" } else { "expert lanes" };
        let [kind, alpha, limit] = role.activation().map_or([0; 3], activation_key);
        let flags = [self.half_out, self.gated(), self.bias[0], self.vectors, self.tail];
        let flags = flags.iter().fold(kind, |bits, &flag| 2 * bits + u32::from(flag));
        let [a, b] = self.formats.map(|f| f as u32);
        KernelKey { name, params: [a, b, flags, tile.code(), alpha, limit, 0, 0] }
    }
}

fn source(spec: &Spec, way: Way, tile: Tile, role: Role) -> Source {
    let (template, bindings): (_, Vec<Access>) = spec.template(way);
    let activation = role.activation().unwrap_or(Activation::Silu);
    let template = template.piece("finish", FINISH).piece("activate", activate(activation));
    Source { wgsl: tile.text(spec, way == Way::Coop, template), bindings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verb::linear::many::tests::translate;

    #[test]
    fn every_tile_of_every_format_is_valid_and_translates() {
        use Activation::{GeluTanh, ReluSquared, Silu};
        let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0, plus_one: true };
        let gated = [Silu, GeluTanh, clamped].map(Role::GateUp);
        let roles = [Role::Down, gated[0], gated[1], gated[2], Role::Up(ReluSquared)];
        let formats = Format::ALL.iter().filter(|&&f| format::device_format(f) == f);
        for (&format, tile) in formats.flat_map(|f| TILES.map(|tile| (f, tile))) {
            for (i, role) in roles.into_iter().enumerate() {
                let mut spec = role.spec([format; 2], i % 2 == 1, [i > 0, i % 2 == 0]);
                if (format, i) == (Format::Q4K, 1) {
                    spec.formats[1] = Format::Q6K;
                }
                let text = source(&spec, Way::Coop, tile, role).wgsl;
                let words = translate(&text).unwrap_or_else(|e| panic!("{spec:?} {tile:?}: {e}"));
                assert!(words.len() > 1000 && tile.bytes() + 4 * tile.rows <= 48 << 10, "{tile:?}");
            }
        }
    }

    #[test]
    fn more_pairs_of_an_expert_take_higher_tiles() {
        let high = |pairs| tile(pairs, 128).rows;
        assert_eq!([17 * 8, 512 * 8, 2048 * 8, 4096 * 8].map(high), [32, 32, 64, 128]);
        assert_eq!(tiles_up_to(2048 * 8, 128).count(), 2);
        assert!(TILES.iter().all(|tile| tile.rows >= LOWEST));
    }
}
