//! Compares every format with results made by the `gguf` Python package (`fixtures/make_fixtures.py`), bit by bit.

use hob_quant::{Format, decode_row, encode_row};
use hob_testkit::rng::Rng;

/// The line of one format in `formats.txt`.
struct Reference {
    format: Format,
    block_len: usize,
    block_bytes: usize,
    blocks: usize,
    decoded: u64,
    encoded: Option<u64>,
}

fn references() -> Vec<Reference> {
    let parse = |line: &str| {
        let field: Vec<&str> = line.split(' ').collect();
        let id = field[0].parse().expect("id");
        let format = Format::from_ggml(id).unwrap_or_else(|| panic!("ggml id {id} is not registered"));
        assert_eq!(format.name(), field[1], "name of ggml id {id}");
        Reference {
            format,
            block_len: field[2].parse().expect("block_len"),
            block_bytes: field[3].parse().expect("block_bytes"),
            blocks: field[4].parse().expect("blocks"),
            decoded: field[5].parse().expect("decode checksum"),
            encoded: field[6].parse().ok(),
        }
    };
    include_str!("fixtures/formats.txt").lines().map(parse).collect()
}

/// The order-sensitive checksum of `make_fixtures.py`.
fn checksum(values: impl Iterator<Item = u32>) -> u64 {
    let mix = |value: u64| Rng::new(value.wrapping_sub(0x9E37_79B9_7F4A_7C15)).u64();
    values.zip(0u64..).fold(0, |sum, (value, i)| {
        sum.wrapping_add(mix(u64::from(value).wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))))
    })
}

/// The bits of a weight, all NaNs as one.
fn bits(weight: f32) -> u32 {
    if weight.is_nan() { 0x7FC0_0000 } else { weight.to_bits() }
}

/// The weights that `make_fixtures.py` calls ramp: runs of 32 of growing magnitude.
fn ramp(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    let weight = |i: usize| {
        let bits = (rng.u64() >> 40) as i64 - (1 << 23);
        bits as f32 * 2f32.powi((i / 32 % 40) as i32 - 50)
    };
    (0..n).map(weight).collect()
}

fn decoded(format: Format, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / format.block_bytes() * format.block_len()];
    decode_row(format, bytes, &mut out).expect("whole blocks decode");
    out
}

fn encoded(format: Format, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0xEE; format.row_bytes(x.len()).expect("whole blocks")];
    encode_row(format, x, &mut out).expect("finite weights encode");
    out
}

#[test]
fn registry_holds_exactly_the_reference_types_with_their_sizes() {
    let references = references();
    for r in &references {
        assert_eq!(r.format.block_len(), r.block_len, "weights per block of {}", r.format);
        assert_eq!(r.format.block_bytes(), r.block_bytes, "bytes per block of {}", r.format);
    }
    let listed: Vec<Format> = references.iter().map(|r| r.format).collect();
    assert_eq!(listed, Format::ALL, "Format::ALL against the reference, both ascending by id");
}

#[test]
fn random_blocks_decode_to_the_reference_bits() {
    for r in references() {
        let bytes = Rng::new(1000 + u64::from(r.format.ggml_id())).bytes(r.blocks * r.block_bytes);
        let found = checksum(decoded(r.format, &bytes).into_iter().map(bits));
        assert_eq!(found, r.decoded, "checksum of {} random blocks of {}", r.blocks, r.format);
    }
}

#[test]
fn weights_of_every_magnitude_encode_to_the_reference_bytes() {
    let mut formats = 0;
    for r in references() {
        assert_eq!(r.encoded.is_some(), r.format.can_encode(), "reference encoding of {}", r.format);
        let Some(expected) = r.encoded else { continue };
        let x = ramp(2000 + u64::from(r.format.ggml_id()), 40 * 32 * 4);
        let found = checksum(encoded(r.format, &x).into_iter().map(u32::from));
        assert_eq!(found, expected, "checksum of encoded {}", r.format);
        formats += 1;
    }
    assert_eq!(formats, 8);
}

#[test]
fn stored_cases_agree_byte_by_byte() {
    let unhex = |text: &str| -> Vec<u8> {
        let digits = text.as_bytes().as_chunks::<2>().0.iter();
        digits.map(|d| u8::from_str_radix(str::from_utf8(d).expect("ascii"), 16).expect("hex")).collect()
    };
    let mut seen = Vec::new();
    for line in include_str!("fixtures/cases.txt").lines() {
        let field: Vec<&str> = line.split(' ').collect();
        let format = Format::from_name(field[1]).expect("a registered format");
        let (source, expected) = (unhex(field[2]), unhex(field[3]));
        let f32s = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        match field[0] {
            "decode" => {
                let (found, expected) = (decoded(format, &source), f32s(&expected));
                assert_eq!(found.len(), expected.len(), "{format}");
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(bits(*found), bits(*expected), "{format} weight {i}: {found} for {expected}");
                }
                seen.push(format);
            }
            "encode" => assert_eq!(encoded(format, &f32s(&source)), expected, "bytes of {format}"),
            other => panic!("unknown case {other}"),
        }
    }
    assert_eq!(seen, Format::ALL, "one decode case per format");
}
