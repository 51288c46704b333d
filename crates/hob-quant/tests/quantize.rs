//! The encoders by search: how close they come, what importance does, and what they refuse.

use hob_quant::{Format, QuantError, decode_row, encode_row, quantize_row};
use hob_testkit::rng::Rng;

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.can_quantize())
}

/// Those with scales.
fn scaled() -> impl Iterator<Item = Format> {
    formats().filter(|f| f.block_len() > 1)
}

fn round_trip(format: Format, x: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0xEE; format.row_bytes(x.len()).expect("whole blocks")];
    quantize_row(format, x, importance, &mut bytes).expect("finite weights");
    let mut back = vec![f32::NAN; x.len()];
    decode_row(format, &bytes, &mut back).expect("whole blocks decode");
    back
}

/// `|x - y|^2 / |x|^2`, each term times its weight.
fn error(x: &[f32], y: &[f32], weight: impl Fn(usize) -> f64) -> f64 {
    let of = |v: &dyn Fn(usize) -> f64| (0..x.len()).map(|i| v(i) * v(i) * weight(i)).sum::<f64>();
    of(&|i| f64::from(x[i] - y[i])) / of(&|i| f64::from(x[i]))
}

fn gaussian(n: usize) -> Vec<f32> {
    Rng::new(5).normal_vec(n, 0.02)
}

/// Normal numbers under log-normal scales: kurtosis about 13.
fn heavy_tailed(n: usize) -> Vec<f32> {
    let mut rng = Rng::new(6);
    (0..n).map(|_| 0.02 * rng.normal() * (0.6 * rng.normal()).exp()).collect()
}

/// Mean square errors, relative to the weights' own, of Gaussian and of heavy-tailed rows. ggml's quantizer without an
/// importance matrix reaches 0.0074, 0.0061, 0.0018, 0.0014, 0.000029, 0.087, 0.0228, 0.00506, 0.0013, 0.00032, 0.0058,
/// 0.0059 and 0.0130 on such Gaussian rows.
const BOUNDS: [(Format, f64, f64); 13] = [
    (Format::Q4_0, 0.0070, 0.0152),
    (Format::Q4_1, 0.0052, 0.0087),
    (Format::Q5_0, 0.00168, 0.0039),
    (Format::Q5_1, 0.00118, 0.0020),
    (Format::Q8_0, 0.00003, 0.000065),
    (Format::Q2K, 0.0775, 0.108),
    (Format::Q3K, 0.0224, 0.0375),
    (Format::Q4K, 0.0052, 0.0089),
    (Format::Q5K, 0.00125, 0.00215),
    (Format::Q6K, 0.0003, 0.0006),
    (Format::IQ4NL, 0.0058, 0.0101),
    (Format::IQ4XS, 0.0059, 0.0103),
    (Format::MXFP4, 0.0128, 0.0190),
];

#[test]
fn errors_are_within_the_bounds_of_each_format() {
    let n = 256 * 256;
    let rows = [gaussian(n), heavy_tailed(n)];
    assert_eq!(BOUNDS.map(|b| b.0).len(), scaled().count(), "a bound for every format");
    for (format, gaussian, heavy) in BOUNDS {
        for (row, bound) in rows.iter().zip([gaussian, heavy]) {
            let found = error(row, &round_trip(format, row, None), |_| 1.0);
            assert!(found <= bound, "{format}: {found}, bound {bound}");
            // A bound that everything passes says nothing.
            assert!(found >= 0.85 * bound, "{format}: {found} is far better than {bound}: tighten it");
        }
    }
}

#[test]
fn a_search_beats_the_published_rule() {
    let x = gaussian(64 * 256);
    for format in scaled().filter(|f| f.can_encode() && *f != Format::Q8_0) {
        let mut bytes = vec![0; format.row_bytes(x.len()).expect("whole blocks")];
        encode_row(format, &x, &mut bytes).expect("finite");
        let mut plain = vec![0.0; x.len()];
        decode_row(format, &bytes, &mut plain).expect("whole blocks");
        let (searched, plain) =
            (error(&x, &round_trip(format, &x, None), |_| 1.0), error(&x, &plain, |_| 1.0));
        assert!(searched < 0.97 * plain, "{format}: {searched} against {plain}");
    }
}

#[test]
fn importance_moves_the_error_away_from_what_matters() {
    let x = gaussian(64 * 256);
    let mut rng = Rng::new(9);
    let columns: Vec<f32> = (0..256).map(|_| if rng.below(8) == 0 { 30.0 } else { 0.05 }).collect();
    let importance: Vec<f32> = (0..x.len()).map(|i| columns[i % 256]).collect();
    let weight = |i: usize| f64::from(columns[i % 256]);
    for format in scaled().filter(|f| !matches!(f, Format::Q8_0 | Format::MXFP4)) {
        let without = error(&x, &round_trip(format, &x, None), weight);
        let with = error(&x, &round_trip(format, &x, Some(&importance)), weight);
        assert!(with < 0.9 * without, "{format}: {with} with importance, {without} without");
    }
    // A power of two has little to choose from, but must not choose worse.
    let without = error(&x, &round_trip(Format::MXFP4, &x, None), weight);
    assert!(error(&x, &round_trip(Format::MXFP4, &x, Some(&importance)), weight) < without);
}

#[test]
fn importance_of_any_size_or_none_at_all_is_fine() {
    let x = gaussian(512);
    for format in scaled() {
        let plain = round_trip(format, &x, None);
        assert_eq!(
            round_trip(format, &x, Some(&[0.0; 512])),
            plain,
            "{format}: nothing seen is nothing known"
        );
        for value in [1e-30, 1.0, 1e30] {
            let found = error(&x, &round_trip(format, &x, Some(&[value; 512])), |_| 1.0);
            assert!(found < 1.2 * error(&x, &plain, |_| 1.0), "{format} at {value}: {found}");
        }
    }
}

#[test]
fn importance_that_is_none_is_refused() {
    let format = Format::Q4K;
    let (x, mut out) = ([0.5; 256], [0; 144]);
    let mut refused =
        |importance: &[f32]| quantize_row(format, &x, Some(importance), &mut out).expect_err("bad");
    assert_eq!(refused(&[1.0; 255]), QuantError::ImportanceLength { format, expected: 256, found: 255 });
    for bad in [f32::NAN, f32::INFINITY, -1.0, 1e31] {
        let mut importance = [1.0; 256];
        importance[7] = bad;
        assert_eq!(refused(&importance), QuantError::Importance { format, at: 7, found: bad.to_string() });
    }
}

#[test]
fn what_a_format_can_say_comes_back() {
    let mut rng = Rng::new(12);
    for format in scaled() {
        let x = round_trip(format, &heavy_tailed(16 * 256), None);
        let lost = error(&x, &round_trip(format, &x, None), |_| 1.0);
        let first = BOUNDS.iter().find(|b| b.0 == format).expect("listed").2;
        assert!(lost < 0.12 * first, "{format}: {lost} of what was quantized before");
        let one: Vec<f32> = (0..256).map(|_| [-0.75, 0.0, 0.75][rng.below(3)]).collect();
        for (back, v) in round_trip(format, &one, None).iter().zip(&one) {
            // The levels of IQ4 are not symmetric.
            assert!((back - v).abs() <= 0.06 * 0.75, "{format}: {v} came back as {back}");
        }
    }
}

#[test]
fn odd_rows_come_back_close() {
    let spike: Vec<f32> = (0..256).map(|i| if i == 100 { -4.0 } else { 0.0 }).collect();
    let rows = [vec![0.25; 256], vec![-0.25; 256], spike];
    for format in scaled() {
        for row in &rows {
            let lost = error(row, &round_trip(format, row, None), |_| 1.0);
            assert!(lost < 0.003, "{format}: {lost} of {:?}...", &row[..2]);
        }
        for value in [0.0f32, -0.0, 1e-41, -3e-12] {
            let back = round_trip(format, &[value; 256], None);
            assert!(back.iter().all(|v| *v == 0.0), "{format}: {value:e} came back as {:e}", back[0]);
        }
    }
}

#[test]
fn scales_of_every_size_work() {
    let x = gaussian(256);
    let at_one = |format| error(&x, &round_trip(format, &x, None), |_| 1.0);
    for format in scaled() {
        for power in [-6, -3, 3, 12] {
            let scaled: Vec<f32> = x.iter().map(|v| v * 2f32.powi(power)).collect();
            let found = error(&scaled, &round_trip(format, &scaled, None), |_| 1.0);
            // Small scales are subnormal f16s, with few digits.
            let slack = if power < 0 { 1.6 } else { 1.05 };
            assert!(found <= slack * at_one(format), "{format} at 2^{power}: {found}");
        }
    }
}

#[test]
fn values_that_are_no_numbers_are_refused_with_their_place() {
    for format in formats() {
        let len = format.block_len();
        let (first, end) = (300 / len * len, (300 / len + 1) * len);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 512];
            x[300] = bad;
            let mut out = vec![0; format.row_bytes(512).expect("whole blocks")];
            let expected = QuantError::NotRepresentable { format, first, end };
            assert_eq!(quantize_row(format, &x, None, &mut out), Err(expected), "{bad} as {format}");
        }
    }
}

#[test]
fn values_beyond_a_format_are_refused_and_never_stored_as_infinity() {
    for format in formats().filter(|f| !matches!(f, Format::F32 | Format::BF16)) {
        for size in [65_519.0f32, 65_520.0, 1e6, 1e7, 1e8, 5e8, 1e9, 1e10, f32::MAX] {
            let x: Vec<f32> = (0..256).map(|i| if i % 3 == 0 { size } else { -size / 2.0 }).collect();
            let mut out = vec![0; format.row_bytes(256).expect("whole blocks")];
            match quantize_row(format, &x, None, &mut out) {
                Ok(()) => {
                    let mut back = vec![0.0; 256];
                    decode_row(format, &out, &mut back).expect("whole blocks");
                    let lost = error(&x, &back, |_| 1.0);
                    assert!(lost < 0.12, "{format} at {size}: {lost}");
                }
                Err(QuantError::NotRepresentable { .. }) => assert!(size > 65_519.0, "{format} at {size}"),
                Err(other) => panic!("{format} at {size}: {other}"),
            }
        }
    }
}

#[test]
fn wrong_lengths_and_formats_without_a_search_are_refused() {
    for format in formats() {
        let (len, bytes) = (format.block_len(), format.block_bytes());
        assert_eq!(quantize_row(format, &[], None, &mut []), Ok(()), "{format}");
        if len > 1 {
            let expected = QuantError::PartialRow { format, block_len: len, found: len + 1 };
            assert_eq!(quantize_row(format, &vec![0.0; len + 1], None, &mut vec![0; bytes]), Err(expected));
        }
        let expected = QuantError::OutputLength { format, expected: bytes, found: bytes + 1, unit: "bytes" };
        assert_eq!(quantize_row(format, &vec![0.0; len], None, &mut vec![0; bytes + 1]), Err(expected));
    }
    let format = Format::IQ2XXS;
    let expected = QuantError::NoEncoder { format };
    assert_eq!(quantize_row(format, &[0.0; 256], None, &mut [0; 66]), Err(expected));
}
