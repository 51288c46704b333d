//! The integer form of weights means what their decoding means.

use hob_quant::{Format, INT_BLOCK, decode_row, int_block};
use hob_testkit::rng::Rng;

#[test]
fn integer_blocks_are_the_decoded_weights_up_to_roundings() {
    let mut rng = Rng::new(32);
    for &format in Format::ALL.iter().filter(|f| f.has_int_blocks()) {
        let blocks = 64;
        let bytes = rng.bytes(blocks * format.block_bytes());
        let mut weights = vec![0f32; blocks * format.block_len()];
        decode_row(format, &bytes, &mut weights).unwrap();
        for (b, weights) in weights.chunks_exact(INT_BLOCK).enumerate() {
            let block = int_block(format, &bytes, b).unwrap();
            for (k, &want) in weights.iter().enumerate() {
                let got = block.weight(k);
                // A sum of a scaled code and a minimum may cancel: measured against its terms.
                let size = (block.d * f32::from(block.scales[k / 16]) * f32::from(block.codes[k])).abs();
                let close = (got - want).abs() <= 1e-6 * size.max(want.abs()).max(f32::MIN_POSITIVE);
                let both_wild = !want.is_finite() && !got.is_finite();
                assert!(close || both_wild, "{format} block {b} weight {k}: {got} instead of {want}");
            }
        }
    }
}

#[test]
fn rows_that_end_early_and_formats_without_an_integer_form_have_no_block() {
    let row = [0; 2 * 144];
    assert!(int_block(Format::Q4K, &row, 15).is_some());
    assert!(int_block(Format::Q4K, &row, 16).is_none());
    assert!(int_block(Format::Q4K, &row[..200], 8).is_none());
    assert!(int_block(Format::Q4K, &row, usize::MAX).is_none());
    assert!(int_block(Format::F32, &row, 0).is_none());
}
