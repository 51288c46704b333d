//! Groups and activations that end, or begin, at a guard page: what the kernels read is theirs.

use hob_compute::act::{ActBlock, dot_row, quantize_row};
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

use super::*;
use crate::isa::Isa;
use crate::linear::pack;
use crate::linear::shape::{LANES, Shape};

/// The activation tile of `n` rows: per block codes, scales, pairs of sums, scaled sums.
fn tile(rows: &[Vec<ActBlock>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for b in 0..rows[0].len() {
        rows.iter().for_each(|r| bytes.extend(r[b].q.map(|q| q as u8)));
        rows.iter().for_each(|r| bytes.extend(r[b].d.to_le_bytes()));
        rows.iter().for_each(|r| bytes.extend(r[b].sums.map(i16::to_le_bytes).concat()));
        rows.iter().for_each(|r| bytes.extend((r[b].d * r[b].sum() as f32).to_le_bytes()));
    }
    bytes
}

#[test]
fn kernels_stay_inside_their_buffers() {
    if !Isa::Avx2.available() {
        eprintln!("skipped: this CPU has no AVX2");
        return;
    }
    let mut rng = Rng::new(2);
    for &format in Format::ALL {
        let Some(shape) = Shape::of(format) else { continue };
        let cols = 64 * shape.blocks();
        let row_bytes = format.row_bytes(cols).unwrap();
        // Bytes below 0x3c make finite halves, wherever scales lie.
        let rows: Vec<u8> = rng.bytes(LANES * row_bytes).iter().map(|b| b & 0x3b).collect();
        let mut packed = vec![0; shape.group_bytes(cols)];
        assert!(pack::group(format, &rows, row_bytes, &mut packed, false));
        for n in 1..=ROWS {
            let acts: Vec<_> = (0..n).map(|_| quantize_row(&rng.normal_vec(cols, 1.0))).collect();
            for edge in [Edge::Start, Edge::End] {
                let (group, x) =
                    (GuardedBuf::from_bytes(&packed, edge), GuardedBuf::from_bytes(&tile(&acts), edge));
                let mut y = GuardedBuf::new(n * LANES * 4, Edge::End);
                let stream = Stream { group: group.as_bytes(), next: std::ptr::null() };
                let tile = Tile { bytes: x.as_bytes(), n, row: 0 };
                // SAFETY: AVX2 is there; one whole group, a tile as wide, room for n rows.
                unsafe { super::group(format, stream, 2048, tile, y.as_mut_f32(), LANES) };
                for (i, y) in y.as_f32().iter().enumerate() {
                    let row = &rows[i % LANES * row_bytes..][..row_bytes];
                    let want = dot_row(format, row, &acts[i / LANES]).unwrap();
                    assert_eq!(y.to_bits(), want.to_bits(), "{format} n={n} {i}: {y} instead of {want}");
                }
            }
        }
    }
}
