//! What the two doors refuse, and the values at the edge of what formats can hold.

use hob_quant::{Format, QuantError, decode_row, encode_row};
use hob_testkit::rng::Rng;

fn encoders() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.can_encode())
}

/// The formats whose encoder has an f16 scale per 32 weights.
const SCALED: [Format; 5] = [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0];

fn round_trip(format: Format, x: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; format.row_bytes(x.len()).expect("whole blocks")];
    encode_row(format, x, &mut bytes).expect("finite weights encode");
    let mut back = vec![0.0; x.len()];
    decode_row(format, &bytes, &mut back).expect("whole blocks decode");
    back
}

#[test]
fn ids_and_names_are_unique_and_lead_back() {
    for (i, &format) in Format::ALL.iter().enumerate() {
        assert_eq!(Format::from_ggml(format.ggml_id()), Some(format));
        assert_eq!(Format::from_name(format.name()), Some(format));
        assert_eq!(Format::from_name(&format.name().to_lowercase()), Some(format));
        assert_eq!(format.to_string(), format.name());
        if let Some(next) = Format::ALL.get(i + 1) {
            assert!(format.ggml_id() < next.ggml_id(), "{format} and {next} are out of order");
        }
    }
}

#[test]
fn withdrawn_and_unknown_ids_name_nothing() {
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, 142, u32::MAX] {
        assert_eq!(Format::from_ggml(id), None, "id {id}");
    }
    for name in ["", "Q4", "Q4_K_M", "F32 "] {
        assert_eq!(Format::from_name(name), None, "name {name:?}");
    }
}

#[test]
fn row_bytes_refuses_partial_blocks_and_overflow() {
    assert_eq!(Format::Q4K.row_bytes(512), Some(288));
    assert_eq!(Format::Q4K.row_bytes(0), Some(0));
    assert_eq!(Format::Q4K.row_bytes(511), None);
    assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    assert_eq!(Format::Q8K.row_bytes(usize::MAX / 256 * 256), None);
    assert_eq!(Format::Q4K.bits_per_weight(), 4.5);
    assert_eq!(Format::Q8_0.bits_per_weight(), 8.5);
}

#[test]
fn empty_rows_are_fine() {
    for &format in Format::ALL {
        assert_eq!(decode_row(format, &[], &mut []), Ok(()), "{format}");
    }
    for format in encoders() {
        assert_eq!(encode_row(format, &[], &mut []), Ok(()), "{format}");
    }
}

#[test]
fn decoding_refuses_wrong_lengths_and_leaves_the_output_alone() {
    for &format in Format::ALL {
        let (len, bytes) = (format.block_len(), format.block_bytes());
        let source = vec![1; 2 * bytes + 1];
        for wrong in [1, bytes - 1, bytes + 1, 2 * bytes + 1] {
            if wrong.is_multiple_of(bytes) {
                continue;
            }
            let mut out = vec![7.0; 2 * len];
            let expected = QuantError::PartialBlock { format, block_bytes: bytes, found: wrong };
            assert_eq!(decode_row(format, &source[..wrong], &mut out), Err(expected));
            assert!(out.iter().all(|&v| v == 7.0));
        }
        for wrong in [0, len - 1, len + 1, 2 * len] {
            if wrong == len {
                continue;
            }
            let mut out = vec![7.0; wrong];
            let expected = QuantError::OutputLength { format, expected: len, found: wrong, unit: "weights" };
            assert_eq!(decode_row(format, &source[..bytes], &mut out), Err(expected));
            assert!(out.iter().all(|&v| v == 7.0));
        }
    }
}

#[test]
fn encoding_refuses_wrong_lengths_and_formats_without_an_encoder() {
    for format in encoders() {
        let (len, bytes) = (format.block_len(), format.block_bytes());
        if len > 1 {
            let expected = QuantError::PartialRow { format, block_len: len, found: len + 1 };
            assert_eq!(encode_row(format, &vec![0.0; len + 1], &mut vec![0; bytes]), Err(expected));
        }
        for wrong in [bytes - 1, bytes + 1] {
            let expected = QuantError::OutputLength { format, expected: bytes, found: wrong, unit: "bytes" };
            assert_eq!(encode_row(format, &vec![0.0; len], &mut vec![0; wrong]), Err(expected));
        }
    }
    let format = Format::Q6K;
    let error = encode_row(format, &[0.0; 256], &mut [0; 210])
        .expect_err("Q6_K has no published rule, only a search");
    assert_eq!(error, QuantError::NoEncoder { format });
    assert!(error.to_string().starts_with("Q6_K: no encoder"), "{error}");
}

#[test]
fn scaled_encoders_refuse_what_they_would_corrupt() {
    for format in SCALED {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut x = vec![0.5; 96];
            x[40] = bad;
            let mut out = vec![0; format.row_bytes(96).expect("whole blocks")];
            let expected = QuantError::NotRepresentable { format, first: 32, end: 64 };
            assert_eq!(encode_row(format, &x, &mut out), Err(expected), "{bad} as {format}");
        }
    }
}

#[test]
fn minima_that_overflow_f16_are_refused_too() {
    // The span fits (scale 1), the minimum -100000 does not.
    let x: Vec<f32> = (0..32).map(|i| -100_000.0 + i as f32 / 4.0).collect();
    for format in [Format::Q4_1, Format::Q5_1] {
        let expected = QuantError::NotRepresentable { format, first: 0, end: 32 };
        assert_eq!(encode_row(format, &x, &mut vec![0; format.block_bytes()]), Err(expected));
    }
}

#[test]
fn weights_too_small_for_any_scale_become_zero() {
    let x: Vec<f32> = (0..32).map(|i| (i as f32 - 7.0) * 1e-41).collect();
    for format in SCALED {
        assert!(round_trip(format, &x).iter().all(|&v| v == 0.0), "{format}");
    }
}

#[test]
fn round_trip_error_is_within_half_a_level() {
    let mut rng = Rng::new(11);
    for deviation in [0.02f32, 1.0, 300.0] {
        let x = rng.normal_vec(64 * 32, deviation);
        for (block, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            let max = x.iter().copied().fold(f32::MIN, f32::max);
            let span = max - x.iter().copied().fold(f32::MAX, f32::min);
            // A symmetric n-bit grid runs from -2^(n-1) to 2^(n-1) - 1 levels: the far end may miss a whole level.
            // Storing d and m as f16 adds up to 2^-11 of what they contribute.
            let rounding = amax / 1024.0;
            for (format, bound) in [
                (Format::F32, 0.0),
                (Format::F16, amax / 2048.0),
                (Format::BF16, amax / 256.0),
                (Format::Q8_0, amax / 127.0 / 2.0 + rounding),
                (Format::Q4_0, amax / 8.0 + rounding),
                (Format::Q4_1, span / 15.0 / 2.0 + 3.0 * rounding),
                (Format::Q5_0, amax / 16.0 + rounding),
                (Format::Q5_1, span / 31.0 / 2.0 + 3.0 * rounding),
            ] {
                for (back, v) in round_trip(format, x).iter().zip(x) {
                    let error = (back - v).abs();
                    assert!(error <= bound, "{format} block {block}: {v} came back as {back}, bound {bound}");
                }
            }
        }
    }
}

#[test]
fn encoding_what_was_decoded_is_stable_for_q8_0() {
    // max |q| = 127 makes d survive the round trip, so the bytes must too.
    let mut block = vec![0x66, 0x2E];
    block.extend((0..32).map(|i| [127u8, 0x81, 3, 0xF0][i % 4]));
    let mut x = [0.0; 32];
    decode_row(Format::Q8_0, &block, &mut x).expect("one block");
    let mut again = [0; 34];
    encode_row(Format::Q8_0, &x, &mut again).expect("finite");
    assert_eq!(again[..], block[..]);
}

#[test]
fn f16_scales_keep_their_special_values() {
    let mut out = [0.0; 32];
    let mut decode = |bits: u16| {
        let mut block = [1u8; 34];
        block[..2].copy_from_slice(&bits.to_le_bytes());
        block[2] = 0;
        decode_row(Format::Q8_0, &block, &mut out).expect("one block");
        (out[0], out[1])
    };
    let (zero, one) = decode(0x7C00);
    assert!(zero.is_nan() && one == f32::INFINITY, "infinite scale");
    let (_, one) = decode(0xFC00);
    assert_eq!(one, f32::NEG_INFINITY);
    let (zero, one) = decode(0x7E00);
    assert!(zero.is_nan() && one.is_nan(), "NaN scale");
    assert_eq!(decode(0x0001), (0.0, 2f32.powi(-24)), "smallest subnormal scale");
    assert_eq!(decode(0x03FF), (0.0, 1023.0 * 2f32.powi(-24)), "largest subnormal scale");
    assert_eq!(decode(0x7BFF), (0.0, 65504.0), "largest finite scale");
    let (zero, one) = decode(0x8000);
    assert!(zero.is_sign_negative() && zero == 0.0 && one.to_bits() == (-0.0f32).to_bits(), "minus zero");
}

#[test]
fn plain_floats_keep_nan_infinity_and_zero_signs() {
    for format in [Format::F32, Format::F16, Format::BF16] {
        let back = round_trip(format, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]);
        assert!(back[0].is_nan(), "{format} NaN came back as {}", back[0]);
        assert_eq!(back[1..3], [f32::INFINITY, f32::NEG_INFINITY], "{format}");
        assert_eq!(back[3].to_bits(), (-0.0f32).to_bits(), "{format}");
    }
    assert_eq!(round_trip(Format::F16, &[70000.0])[0], f32::INFINITY);
    assert!(round_trip(Format::BF16, &[f32::from_bits(0x7F80_0001)])[0].is_nan(), "a NaN with low bits only");
}
