//! Rows packed on the host and put together on the device, against the decoder of the format.

use std::sync::Arc;

use half::f16;
use hob_compute::{WeightKind, WeightSpec};
use hob_quant::{Format, decode_row};

use super::{device_format, unpack};
use crate::context::Context;
use crate::stream::{Access, Call, KernelKey, Source, Stream};
use crate::template::Template;
use crate::weights::Loaded;

const UNPACKED: &str = "
struct Sizes { blocks: u32, count: u32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w_a: array<vec4<u32>>;
//#include unpack
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < sizes.count) {
        let w = weights_a(id.x / sizes.blocks, sizes.blocks, id.x % sizes.blocks);
        //#for i 8
        out[8u * id.x + $i$u] = w[$i$];
        //#endfor
    }
}
";

fn stream() -> Option<Stream> {
    let adapter = crate::test_adapter()?;
    Some(Stream::new(Context::open(adapter, "").expect("the adapter opens")).expect("a stream"))
}

/// Where a format's blocks have f16 numbers.
fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        f if f.block_bytes() < 2 || matches!(f, Format::MXFP4 | Format::BF16 | Format::F32) => &[],
        Format::F16 => &[0],
        _ => &[0],
    }
}

/// Rows of any codes and scales; scales are below 2, some subnormal, some 0.
fn random_rows(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ u64::from(format.ggml_id());
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut bytes = vec![0u8; rows * format.row_bytes(cols).unwrap()];
    for (i, block) in bytes.chunks_mut(format.block_bytes()).enumerate() {
        block.iter_mut().for_each(|b| *b = next());
        for &at in halves(format) {
            block[at + 1] &= if i % 5 == 1 { 0x83 } else { 0xBF };
            if i % 7 == 3 {
                block[at..at + 2].fill(0);
            }
        }
        match format {
            Format::MXFP4 => block[0] = block[0] & 0x7F | 0x10,
            Format::BF16 => block[1] &= 0xBF,
            Format::F32 => block[3] &= 0xBF,
            _ => (),
        }
    }
    bytes
}

/// What the device makes of a weight, `[rows, 32 * blocks]`.
fn unpacked(stream: &mut Stream, format: Format, rows: usize, cols: usize, bytes: Vec<u8>) -> Vec<f32> {
    let spec = WeightSpec { name: "w".into(), kind: WeightKind::Matrix, format, rows, cols };
    let loaded = Loaded::load(stream, &spec, Arc::new(bytes)).unwrap();
    let (blocks, on_device) = (cols.div_ceil(32), loaded.format);
    let key = KernelKey { name: "unpacked", params: [on_device.ggml_id(), 0, 0, 0, 0, 0, 0, 0] };
    let kernel = stream.kernel(key, || Source {
        wgsl: Template::new().piece("unpack", unpack(&[(on_device, "a")])).render(UNPACKED),
        bindings: vec![Access::Write, Access::Read],
    });
    let mut values = vec![0f32; 32 * blocks * rows];
    let out = stream.buffer("out", 4 * values.len() as u64).unwrap();
    let call = Call {
        kernel: kernel.unwrap(),
        bindings: &[out, loaded.parts[0].buffer],
        immediates: &[blocks as u32, (rows * blocks) as u32],
        groups: [(rows * blocks).div_ceil(64) as u32, 1, 1],
        verb: "test",
        bytes: 0,
    };
    stream.dispatch(&call).unwrap();
    stream.read(out, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    loaded.release(stream);
    stream.release(out);
    values
}

#[test]
fn every_format_comes_back_from_the_device_as_the_decoder_reads_it() {
    let Some(mut stream) = stream() else { return };
    for &format in Format::ALL {
        let decoded = device_format(format) != format;
        let shapes = match format.block_len() {
            1 => [(3, 7), (2, 96)],
            n => [(5, n), (3, 3 * n.max(32))],
        };
        for (rows, cols) in shapes {
            if decoded && matches!(format, Format::F64 | Format::I64 | Format::I32) {
                continue; // random bits of these are mostly beyond f16
            }
            let bytes = random_rows(format, rows, cols);
            let mut expected = vec![0f32; rows * cols];
            decode_row(format, &bytes, &mut expected).unwrap();
            let found = unpacked(&mut stream, format, rows, cols, bytes);
            let padded = cols.next_multiple_of(32);
            for (row, (e_row, f)) in expected.chunks(cols).zip(found.chunks(padded)).enumerate() {
                for (k, (e, f)) in e_row.iter().zip(f).enumerate() {
                    let block = e_row[k / 32 * 32..].iter().take(32).filter(|e| e.is_finite());
                    let scale = block.fold(0f32, |m, e| m.max(e.abs()));
                    let rounded = f16::from_f32(e.clamp(-65504.0, 65504.0)).to_f32();
                    let e = if decoded { rounded } else { *e };
                    // Where something is added the device may round once less.
                    let close = (e - f).abs() <= 4e-7 * scale || e.is_nan() && f.is_nan();
                    assert!(close || e == *f, "{format} {rows} x {cols}, row {row}, weight {k}: {e} but {f}");
                }
                assert!(f[cols..].iter().all(|&f| f == 0.0), "{format}: what is past the columns is 0");
            }
        }
    }
}

#[test]
fn packed_rows_are_as_large_as_the_files_within_three_percent() {
    for &format in Format::ALL {
        if device_format(format) == format {
            let (cols, file) = (4096, format.row_bytes(4096).unwrap());
            let packed = super::row_bytes(format, cols);
            assert!(packed as f64 <= file as f64 * 1.03, "{format}: {packed} for {file}");
        }
    }
}
