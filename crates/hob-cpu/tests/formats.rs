//! Every format, whether packed, decoded by tiles or multiplied in floats, equals its specification bit for bit, for every
//! instruction set, number of activation rows, width and height; and float products are as exact as their order allows.

use hob_compute::act::{dot_row, quantize_row, uses_int8};
use hob_compute::{Combine, WeightKind, WeightSpec, math};
use hob_cpu::Isa;
use hob_cpu::arena::Arena;
use hob_cpu::linear::{ActCache, Job, LoadCtx, Matrix, ProductJob, run};
use hob_cpu::pool::Pool;
use hob_quant::Format;
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

/// Where a block keeps its f16 factors.
fn factors(format: Format) -> &'static [usize] {
    match format {
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q4_1 | Format::Q5_1 | Format::Q8_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q6K => &[208],
        Format::TQ1_0 => &[52],
        Format::TQ2_0 => &[64],
        Format::Q8K | Format::IQ1M | Format::MXFP4 | Format::NVFP4 => &[],
        _ => &[0],
    }
}

/// Random blocks whose weights are finite and of moderate size; all other bits are random.
fn random_rows(rng: &mut Rng, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let len = rows * format.row_bytes(cols).unwrap();
    let f32s = |rng: &mut Rng, n: usize| rng.normal_vec(n, 0.3);
    match format {
        Format::F32 => return f32s(rng, rows * cols).iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::F64 => {
            return f32s(rng, rows * cols).iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
        }
        Format::F16 | Format::BF16 => {
            let mut bytes = vec![0; len];
            hob_quant::encode_row(format, &f32s(rng, rows * cols), &mut bytes).unwrap();
            return bytes;
        }
        _ => {}
    }
    let mut bytes = rng.bytes(len);
    if format.block_len() == 1 {
        return bytes;
    }
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in factors(format) {
            let bits = half::f16::from_f32(rng.range_f32(-0.1, 0.1)).to_bits();
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        match format {
            Format::Q8K => block[..4].copy_from_slice(&rng.range_f32(-0.1, 0.1).to_le_bytes()),
            // The top nibbles of four u16 make the f16: an exponent between -14 and 0.
            Format::IQ1M => block[55] = (block[55] & 0x0f) | 0x20,
            Format::MXFP4 => block[0] = 118 + block[0] % 8,
            // Without the two NaN patterns.
            Format::NVFP4 => block[..4].iter_mut().for_each(|scale| *scale = (*scale % 120) | 8),
            _ => {}
        }
    }
    bytes
}

struct Case {
    format: Format,
    rows: usize,
    cols: usize,
    n: usize,
    exact: bool,
}

/// The weights, the activations and the product.
struct Product {
    bytes: Vec<u8>,
    x: Vec<f32>,
    y: Vec<f32>,
}

fn product(case: &Case, isa: Isa, threads: usize) -> Product {
    let Case { format, rows, cols, n, exact } = *case;
    let mut rng = Rng::for_label(11, &format!("{format}{rows}{cols}{n}"));
    let bytes = random_rows(&mut rng, format, rows, cols);
    let x = rng.normal_vec(n * cols, 1.0);
    let pool = Pool::new(threads, false);
    let arena = Arena::new();
    let ctx = LoadCtx { isa, exact, pool: &pool, arena: &arena };
    let spec = WeightSpec { name: "test".into(), kind: WeightKind::Matrix, format, rows, cols };
    let matrix = Matrix::load(&spec, &bytes.clone(), &ctx).unwrap();
    let guarded = GuardedBuf::from_f32(&x, Edge::End);
    let mut out = GuardedBuf::new(n * rows * 4, Edge::End);
    let job = Job {
        x: guarded.as_f32(),
        x_stride: cols,
        rows: n,
        cache: &mut ActCache::default(),
        first_row: 0,
        products: &mut [ProductJob { matrix: &matrix, bias: None, out: out.as_mut_f32() }],
        combine: Combine::Store,
    };
    run(&pool, isa, job).unwrap();
    Product { bytes, x, y: out.as_f32().to_vec() }
}

/// One row of weights in f32.
fn decoded(format: Format, row: &[u8], cols: usize) -> Vec<f32> {
    let mut w = vec![0f32; cols];
    hob_quant::decode_row(format, row, &mut w).unwrap();
    w
}

fn check(case: &Case, isa: Isa, threads: usize) {
    let Case { format, rows, cols, n, exact } = *case;
    let found = product(case, isa, threads);
    let row_bytes = format.row_bytes(cols).unwrap();
    for (r, x) in found.x.chunks_exact(cols).enumerate() {
        let act = quantize_row(x);
        for (i, row) in found.bytes.chunks_exact(row_bytes).enumerate() {
            let want = if uses_int8(format) && !exact {
                dot_row(format, row, &act).unwrap()
            } else {
                math::dot16(&decoded(format, row, cols), x)
            };
            let got = found.y[r * rows + i];
            assert!(want.is_finite(), "{format}: the test's weights make {want}");
            assert_eq!(
                got.to_bits(),
                want.to_bits(),
                "{format} {isa} {rows}x{cols} n={n} exact={exact}: row {r} output {i}: {got} instead of {want}"
            );
        }
    }
}

fn isas() -> Vec<Isa> {
    let (have, lack): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|isa| isa.available());
    lack.iter().for_each(|isa| eprintln!("skipped: this CPU has no {isa}"));
    have
}

/// Widths in blocks of 256 and smaller ones, or in values, for formats without blocks.
fn widths(format: Format) -> Vec<usize> {
    match format.block_len() {
        1 => vec![1, 15, 16, 17, 33, 255, 1057],
        len => vec![len, 3 * len, (1280usize).next_multiple_of(len)],
    }
}

#[test]
fn every_format_equals_its_specification_bit_for_bit() {
    for &format in Format::ALL {
        for cols in widths(format) {
            for n in [1, 2, 3, 7, 8, 9, 33] {
                for rows in [1, 15, 16, 17, 33] {
                    // The widest matrices with the most rows cost most and show least.
                    if cols > 512 && (n == 33) != (rows == 33) {
                        continue;
                    }
                    for isa in isas() {
                        check(&Case { format, rows, cols, n, exact: false }, isa, 1);
                    }
                }
            }
        }
    }
}

#[test]
fn exact_mode_multiplies_the_decoded_weights_of_every_format() {
    for &format in Format::ALL {
        for n in [1, 4, 13] {
            let cols = (300usize).next_multiple_of(format.block_len());
            for isa in isas() {
                check(&Case { format, rows: 21, cols, n, exact: true }, isa, 3);
            }
        }
    }
}

/// A chunk and a group of the kernels end inside these shapes.
#[test]
fn long_rows_and_many_activations_continue_their_sums() {
    for format in [Format::F16, Format::BF16, Format::F32, Format::IQ2XXS, Format::IQ1M, Format::TQ1_0] {
        for (rows, cols, n) in [(5, 2304, 2), (19, 2304, 5), (37, 1792, 14), (3, 4352, 20)] {
            for isa in isas() {
                check(&Case { format, rows, cols, n, exact: false }, isa, 2);
            }
        }
    }
}

/// The mean squared error of a float product against the same sum in f64 is rounding alone.
#[test]
fn float_products_agree_with_double_precision() {
    for format in
        [Format::F16, Format::BF16, Format::F32, Format::F64, Format::I8, Format::Q8K, Format::NVFP4]
    {
        for n in [1, 3, 13] {
            let case = Case { format, rows: 17, cols: 2048, n, exact: false };
            for isa in isas() {
                let found = product(&case, isa, 1);
                let row_bytes = format.row_bytes(case.cols).unwrap();
                let (mut error, mut power) = (0f64, 0f64);
                for (r, x) in found.x.chunks_exact(case.cols).enumerate() {
                    for (i, row) in found.bytes.chunks_exact(row_bytes).enumerate() {
                        let w = decoded(format, row, case.cols);
                        let want: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        error += (f64::from(found.y[r * case.rows + i]) - want).powi(2);
                        power += want * want;
                    }
                }
                assert!(error <= 1e-10 * power, "{format} {isa} n={n}: NMSE {}", error / power);
            }
        }
    }
}
