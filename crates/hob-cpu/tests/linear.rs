//! Every product kernel equals its specification, bit for bit: format x ISA x shape x rows x threads.

use hob_compute::act::{dot_row, quantize_row, uses_int8};
use hob_compute::{Activation, Combine, WeightKind, WeightSpec, math};
use hob_cpu::Isa;
use hob_cpu::arena::Arena;
use hob_cpu::linear::{ActCache, Job, LoadCtx, Matrix, ProductJob, run};
use hob_cpu::pool::Pool;
use hob_quant::Format;
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

/// Formats with int8 products.
fn int8_formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|&f| uses_int8(f))
}

/// Random blocks with small finite scales; every code occurs, also those that no encoder writes (Q8_0's -128).
fn random_rows(rng: &mut Rng, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    if uses_int8(format) {
        let mut bytes = rng.bytes(rows * format.row_bytes(cols).unwrap());
        bytes.chunks_exact_mut(format.block_bytes()).for_each(|block| set_scales(rng, format, block));
        return bytes;
    }
    let values = rng.normal_vec(rows * cols, 0.3);
    let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
    for (row, x) in bytes.chunks_exact_mut(format.row_bytes(cols).unwrap()).zip(values.chunks_exact(cols)) {
        hob_quant::encode_row(format, x, row).unwrap();
    }
    bytes
}

/// Gives a block finite float factors, wherever its format keeps them.
fn set_scales(rng: &mut Rng, format: Format, block: &mut [u8]) {
    let (first, count) = match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => (0, 2),
        Format::Q2K => (80, 2),
        Format::Q3K => (108, 1),
        Format::Q6K => (208, 1),
        Format::TQ1_0 => (52, 1),
        Format::TQ2_0 => (64, 1),
        Format::MXFP4 => {
            block[0] = [0, 1, 2, 120, 127, 129][rng.below(6)];
            return;
        }
        Format::IQ1M => {
            // A quarter of the f16 in the top nibble of each of four words.
            let d = half_bits(rng.range_f32(-0.1, 0.1));
            for i in 0..4 {
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((d >> (4 * i) & 15) as u8) << 4;
            }
            return;
        }
        _ => (0, 1),
    };
    for s in block[first..first + 2 * count].chunks_exact_mut(2) {
        s.copy_from_slice(&half_bits(rng.range_f32(-0.1, 0.1)).to_le_bytes());
    }
}

fn half_bits(v: f32) -> u16 {
    half::f16::from_f32(v).to_bits()
}

fn spec(format: Format, rows: usize, cols: usize) -> WeightSpec {
    WeightSpec { name: "test".into(), kind: WeightKind::Matrix, format, rows, cols }
}

fn expected(format: Format, exact: bool, bytes: &[u8], cols: usize, x: &[f32]) -> Vec<f32> {
    let row_bytes = format.row_bytes(cols).unwrap();
    let act = quantize_row(x);
    bytes
        .chunks_exact(row_bytes)
        .map(|row| {
            if uses_int8(format) && !exact {
                dot_row(format, row, &act).unwrap()
            } else {
                let mut w = vec![0f32; cols];
                hob_quant::decode_row(format, row, &mut w).unwrap();
                math::dot16(&w, x)
            }
        })
        .collect()
}

fn isas() -> Vec<Isa> {
    Isa::ALL
        .into_iter()
        .filter(|isa| {
            let there = isa.available();
            if !there {
                eprintln!("skipped: this CPU has no {isa}");
            }
            there
        })
        .collect()
}

struct Case {
    format: Format,
    rows: usize,
    cols: usize,
    n: usize,
    exact: bool,
    threads: usize,
}

fn check(case: &Case, isa: Isa) {
    let Case { format, rows, cols, n, .. } = *case;
    let mut rng = Rng::for_label(7, &format!("{format}{rows}{cols}{n}"));
    let bytes = random_rows(&mut rng, format, rows, cols);
    let x = rng.normal_vec(n * cols, 1.0);
    check_on(case, isa, &bytes, &x);
}

/// All outputs of one product equal the specification's.
fn check_on(case: &Case, isa: Isa, bytes: &[u8], x: &[f32]) {
    let Case { format, rows, cols, n, exact, threads } = *case;
    let label = format!("{format} {isa} {rows}x{cols} n={n} exact={exact} threads={threads}");
    let pool = Pool::new(threads, false);
    let arena = Arena::new();
    let ctx = LoadCtx { isa, exact, pool: &pool, arena: &arena };
    let matrix = Matrix::load(&spec(format, rows, cols), &bytes.to_vec(), &ctx).unwrap();
    // Input and output end at a guard page: a load or store past them is a fault.
    let guarded = GuardedBuf::from_f32(x, Edge::End);
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
    let out = out.as_f32();
    for r in 0..n {
        let want = expected(format, exact, bytes, cols, &x[r * cols..(r + 1) * cols]);
        for (i, (got, want)) in out[r * rows..(r + 1) * rows].iter().zip(&want).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{label}: row {r} output {i}: {got} instead of {want}");
        }
    }
}

/// One block, an odd number of blocks, whole superblocks, more than the kernels unpack at a time.
fn shapes(format: Format) -> impl Iterator<Item = (usize, usize)> {
    let widths = if format.block_len() == 256 { [256, 768, 2048, 2304] } else { [32, 96, 256, 2080] };
    [(1, 0), (15, 1), (16, 2), (17, 3), (40, 0), (40, 1)].into_iter().map(move |(r, w)| (r, widths[w]))
}

#[test]
fn int8_formats_equal_their_specification_bit_for_bit() {
    for isa in isas() {
        for format in int8_formats() {
            for (rows, cols) in shapes(format) {
                for n in [1, 2, 3, 4, 5, 8, 9, 33] {
                    check(&Case { format, rows, cols, n, exact: false, threads: 1 + n % 3 }, isa);
                }
            }
        }
    }
}

#[test]
fn many_rows_are_shared_between_threads() {
    for isa in isas() {
        for format in [Format::Q4_0, Format::Q8_0] {
            for (rows, cols, n) in [(200, 96, 1), (2100, 64, 2), (2100, 64, 5)] {
                check(&Case { format, rows, cols, n, exact: false, threads: 3 }, isa);
            }
        }
    }
}

/// Sums of 16 bits must hold the largest codes of every format against the largest activations of either sign.
#[test]
fn the_largest_codes_and_activations_do_not_overflow() {
    let mut rng = Rng::new(127);
    for format in int8_formats() {
        let (rows, cols) = (7, 256);
        let row_bytes = format.row_bytes(cols).unwrap();
        // Rows of one byte each: all ones, all zeros, sign bits, and nibbles at their ends.
        let fill = [0xff, 0x00, 0x80, 0x7f, 0xf0, 0x0f, 0x88];
        let mut bytes: Vec<u8> = fill.iter().flat_map(|&b| vec![b; row_bytes]).collect();
        bytes.chunks_exact_mut(format.block_bytes()).for_each(|block| set_scales(&mut rng, format, block));
        let signs: [fn(usize) -> bool; 5] =
            [|_| true, |_| false, |k| k % 2 == 0, |k| k % 32 < 16, |k| k % 8 < 4];
        for n in [1, 2, 5] {
            for sign in signs {
                let x: Vec<f32> = (0..n * cols).map(|k| if sign(k) { 1.0 } else { -1.0 }).collect();
                for isa in isas() {
                    check_on(&Case { format, rows, cols, n, exact: false, threads: 1 }, isa, &bytes, &x);
                }
            }
        }
    }
}

#[test]
fn float_formats_equal_their_specification_bit_for_bit() {
    for isa in isas() {
        for format in [Format::F32, Format::F16, Format::BF16] {
            for (rows, cols) in [(1, 1), (3, 15), (4, 16), (5, 17), (9, 64), (30, 100)] {
                for n in [1, 2, 3, 4, 7, 9, 33] {
                    check(&Case { format, rows, cols, n, exact: false, threads: 1 + n % 3 }, isa);
                }
            }
        }
    }
}

#[test]
fn exact_mode_multiplies_decoded_rows() {
    for isa in isas() {
        for (format, exact) in
            [(Format::Q4_0, true), (Format::Q4_1, true), (Format::Q8_0, true), (Format::Q5_0, true)]
        {
            for (rows, cols, n) in [(5, 64, 1), (18, 96, 3), (33, 160, 12)] {
                check(&Case { format, rows, cols, n, exact, threads: 2 }, isa);
            }
        }
    }
}

/// Gate, bias and residual forms on every ISA, against the same formulas in scalar code.
#[test]
fn combinations_equal_their_formulas() {
    combinations(40, 11);
    // Few activation rows and many outputs: units of several groups.
    combinations(1300, 2);
}

fn combinations(rows: usize, n: usize) {
    let cols = 96;
    let mut rng = Rng::new(11);
    let formats = [Format::Q4_1, Format::Q8_0];
    let bytes: Vec<Vec<u8>> = formats.iter().map(|&f| random_rows(&mut rng, f, rows, cols)).collect();
    let x = rng.normal_vec(n * cols, 1.0);
    let bias = rng.normal_vec(rows, 1.0);
    let start = rng.normal_vec(n * rows, 1.0);
    for isa in isas() {
        let pool = Pool::new(2, false);
        let arena = Arena::new();
        let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
        let m: Vec<Matrix> = formats
            .iter()
            .zip(&bytes)
            .map(|(&f, b)| Matrix::load(&spec(f, rows, cols), &b.clone(), &ctx).unwrap())
            .collect();
        for combine in [
            Combine::Store,
            Combine::Add,
            Combine::Gated(Activation::Silu),
            Combine::Gated(Activation::GeluTanh),
            Combine::Gated(Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0, plus_one: true }),
        ] {
            for with_bias in [false, true] {
                let bias = with_bias.then_some(&bias[..]);
                let (mut a, mut b) = (start.clone(), start.clone());
                let job = Job {
                    x: &x,
                    x_stride: cols,
                    rows: n,
                    cache: &mut ActCache::default(),
                    first_row: 0,
                    products: &mut [
                        ProductJob { matrix: &m[0], bias, out: &mut a },
                        ProductJob { matrix: &m[1], bias, out: &mut b },
                    ],
                    combine,
                };
                run(&pool, isa, job).unwrap();
                for r in 0..n {
                    let xr = &x[r * cols..(r + 1) * cols];
                    let y0 = expected(formats[0], false, &bytes[0], cols, xr);
                    let y1 = expected(formats[1], false, &bytes[1], cols, xr);
                    for i in 0..rows {
                        let plus = |y: f32| bias.map_or(y, |b| y + b[i]);
                        let (g, u, s) = (plus(y0[i]), plus(y1[i]), start[r * rows + i]);
                        let (want_a, want_b) = match combine {
                            Combine::Store => (g, u),
                            Combine::Add => (s + g, s + u),
                            Combine::Gated(Activation::Silu) => (u * math::silu(g), s),
                            Combine::Gated(other) => (other.gated(g, u), s),
                        };
                        let got = (a[r * rows + i], b[r * rows + i]);
                        assert_eq!(
                            (got.0.to_bits(), got.1.to_bits()),
                            (want_a.to_bits(), want_b.to_bits()),
                            "{isa} {combine:?} bias={with_bias} row {r} output {i}: {got:?} != {:?}",
                            (want_a, want_b)
                        );
                    }
                }
            }
        }
    }
}

/// A buffer rewritten without `invalidate` would serve stale codes; a different window must never do so.
#[test]
fn the_derived_form_follows_the_window_and_the_contents() {
    let (rows, cols) = (16, 64);
    let mut rng = Rng::new(3);
    let bytes = random_rows(&mut rng, Format::Q8_0, rows, cols);
    let pool = Pool::new(1, false);
    let arena = Arena::new();
    let isa = Isa::best();
    let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
    let matrix = Matrix::load(&spec(Format::Q8_0, rows, cols), &bytes.clone(), &ctx).unwrap();
    let mut cache = ActCache::default();
    let mut x = rng.normal_vec(2 * cols, 1.0);
    for step in 0..3 {
        for first_row in [0, 1] {
            let window = x[first_row * cols..(first_row + 1) * cols].to_vec();
            let mut out = vec![0f32; rows];
            let job = Job {
                x: &window,
                x_stride: cols,
                rows: 1,
                cache: &mut cache,
                first_row,
                products: &mut [ProductJob { matrix: &matrix, bias: None, out: &mut out }],
                combine: Combine::Store,
            };
            run(&pool, isa, job).unwrap();
            assert_eq!(
                out,
                expected(Format::Q8_0, false, &bytes, cols, &window),
                "step {step} row {first_row}"
            );
        }
        x.iter_mut().for_each(|v| *v *= -0.5);
        cache.invalidate();
    }
}

#[test]
fn activations_that_are_not_finite_show_in_the_result() {
    let (rows, cols) = (8, 64);
    let bytes = random_rows(&mut Rng::new(5), Format::Q4_1, rows, cols);
    for isa in isas() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5f32; cols];
            x[40] = bad;
            let pool = Pool::new(1, false);
            let arena = Arena::new();
            let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
            let matrix = Matrix::load(&spec(Format::Q4_1, rows, cols), &bytes.clone(), &ctx).unwrap();
            let mut out = vec![0f32; rows];
            let job = Job {
                x: &x,
                x_stride: cols,
                rows: 1,
                cache: &mut ActCache::default(),
                first_row: 0,
                products: &mut [ProductJob { matrix: &matrix, bias: None, out: &mut out }],
                combine: Combine::Store,
            };
            run(&pool, isa, job).unwrap();
            assert!(out.iter().all(|v| v.is_nan()), "{isa} {bad}: {out:?}");
        }
    }
}

#[test]
fn wrong_sizes_are_errors() {
    let pool = Pool::new(1, false);
    let arena = Arena::new();
    let ctx = LoadCtx { isa: Isa::best(), exact: false, pool: &pool, arena: &arena };
    let short = Matrix::load(&spec(Format::Q4_0, 8, 64), &vec![0; 100], &ctx);
    assert!(short.err().unwrap().to_string().contains("288"));
    assert!(Matrix::load(&spec(Format::Q4_0, 8, 33), &vec![0; 100], &ctx).is_err());
    assert!(Matrix::load(&spec(Format::F32, 0, 32), &vec![], &ctx).is_err());
    let m = Matrix::load(&spec(Format::F32, 2, 32), &vec![0; 256], &ctx).unwrap();
    let mut out = vec![0f32; 2];
    for (x_len, n, out_len) in [(31, 1, 2), (63, 2, 4), (32, 1, 1)] {
        out.resize(out_len, 0.0);
        let job = Job {
            x: &vec![0f32; x_len],
            x_stride: 32,
            rows: n,
            cache: &mut ActCache::default(),
            first_row: 0,
            products: &mut [ProductJob { matrix: &m, bias: None, out: &mut out }],
            combine: Combine::Store,
        };
        assert!(run(&pool, Isa::best(), job).is_err(), "{x_len} {n} {out_len}");
    }
}
