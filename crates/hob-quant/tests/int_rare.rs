//! The integer form of the grid and ternary formats is exact: every product of its factors has the bits of the decoded
//! weight, because no step of either rounds.

use hob_quant::{Format, INT_BLOCK, Minima, decode_row, int_block};
use hob_testkit::rng::Rng;

const FORMATS: [Format; 9] = [
    Format::IQ2XXS,
    Format::IQ2XS,
    Format::IQ2S,
    Format::IQ3XXS,
    Format::IQ3S,
    Format::IQ1S,
    Format::IQ1M,
    Format::TQ1_0,
    Format::TQ2_0,
];

#[test]
fn integer_blocks_of_grids_and_digits_are_the_decoded_weights_exactly() {
    for format in FORMATS {
        let superblocks = 200;
        let bytes = Rng::new(77).bytes(superblocks * format.block_bytes());
        let mut weights = vec![0f32; superblocks * format.block_len()];
        decode_row(format, &bytes, &mut weights).unwrap();
        for (b, weights) in weights.chunks_exact(INT_BLOCK).enumerate() {
            let block = int_block(format, &bytes, b).unwrap();
            assert_eq!(block.minima, Minima::None, "{format}");
            for (k, want) in weights.iter().enumerate() {
                // Products of 16-bit integers with 127 must stay exact in i32 and f32.
                let found = block.weight(k);
                let same = found.to_bits() == want.to_bits() || found.is_nan() && want.is_nan();
                assert!(same, "{format} block {b} weight {k}: {found} instead of {want}");
            }
        }
    }
}

/// Kernels convert the integer sum of a block to f32: it must fit 24 bits to be converted exactly.
#[test]
fn integer_sums_of_grids_and_digits_fit_a_float() {
    for format in FORMATS {
        let bytes = Rng::new(78).bytes(400 * format.block_bytes());
        for b in 0..400 * format.block_len() / INT_BLOCK {
            let block = int_block(format, &bytes, b).unwrap();
            let sum: i64 = (0..INT_BLOCK)
                .map(|k| 127 * i64::from(block.codes[k]).abs() * i64::from(block.scales[k / 16]).abs())
                .sum();
            assert!(sum < 1 << 24, "{format} block {b}: {sum}");
        }
    }
}
