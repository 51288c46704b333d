//! What KV formats promise: errors on known distributions, sound scales whatever the input, a transform that undoes
//! itself.

use half::f16;
use hob_testkit::rng::Rng;

use super::{KvFormat, decode_kv, encode_kv, hadamard, kv_groups, scales_are_sound};

const PACKED: [KvFormat; 3] = [KvFormat::Q8, KvFormat::Q4, KvFormat::Asym4];

fn encoded(format: KvFormat, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xA5; format.vector_bytes(x.len())];
    encode_kv(format, x, &mut bytes);
    bytes
}

fn round_trip(format: KvFormat, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    decode_kv(format, &encoded(format, x), &mut out);
    out
}

/// Relative error of vectors of 128, rotated where the format says so.
fn relative_error(format: KvFormat, x: &[f32]) -> f64 {
    let (mut error, mut size) = (0f64, 0f64);
    for x in x.chunks_exact(128) {
        let mut y = x.to_vec();
        if format.is_rotated() {
            hadamard(&mut y);
        }
        let mut y = round_trip(format, &y);
        if format.is_rotated() {
            hadamard(&mut y);
        }
        error += x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        size += x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    }
    (error / size).sqrt()
}

/// Products of two normal values, and a dimension twenty times as loud as the others: what keys look like.
fn heavy(n: usize) -> Vec<f32> {
    let (a, b) = (Rng::new(2).normal_vec(n, 1.0), Rng::new(3).normal_vec(n, 1.0));
    let mut x: Vec<f32> = a.iter().zip(b).map(|(a, b)| a * b).collect();
    x.iter_mut().skip(17).step_by(128).for_each(|x| *x *= 20.0);
    x
}

#[test]
fn errors_are_as_small_as_the_docs_say() {
    let (normal, heavy) = (Rng::new(1).normal_vec(128 * 2000, 1.0), heavy(128 * 2000));
    for (format, expected, heavy_tailed) in [
        (KvFormat::F16, 2e-4..2.2e-4, 1.9e-4..2.3e-4),
        (KvFormat::Bf16, 1.6e-3..1.75e-3, 1.5e-3..1.8e-3),
        (KvFormat::Q8, 0.0050..0.0056, 0.003..0.0055),
        (KvFormat::Q4, 0.086..0.0875, 0.055..0.088),
        (KvFormat::Asym4, 0.07..0.085, 0.1..0.25),
    ] {
        let (gauss, tail) = (relative_error(format, &normal), relative_error(format, &heavy));
        println!("{format}: normal {gauss:.5}, heavy-tailed {tail:.5}");
        assert!(expected.contains(&gauss), "{format}: {gauss} on normal values");
        assert!(heavy_tailed.contains(&tail), "{format}: {tail} on heavy tails");
    }
}

#[test]
fn floats_come_back_as_their_rounding() {
    let x = [0.0, -0.0, 1.0, 1.0 + f32::EPSILON, -3.3, 65504.0, 1e-8, f32::INFINITY, 0.1];
    for (x, y) in x.iter().zip(round_trip(KvFormat::F16, &x)) {
        assert_eq!(y.to_bits(), f16::from_f32(*x).to_f32().to_bits());
    }
    for (x, y) in x.iter().zip(round_trip(KvFormat::Bf16, &x)) {
        assert_eq!(y.to_bits(), half::bf16::from_f32(*x).to_f32().to_bits());
    }
}

#[test]
fn what_is_stored_is_stored_again_as_it_is() {
    // Values that a format can hold exactly: whole steps, with the largest code in use.
    let mut rng = Rng::new(4);
    for format in PACKED {
        let (low, high) = match format {
            KvFormat::Q8 => (-127, 127),
            KvFormat::Q4 => (-8, 7),
            _ => (0, 15),
        };
        for step in [0.5f32, 1.0, 0.015625] {
            let codes: Vec<i32> =
                (0..64).map(|_| low + rng.below((high - low + 1) as usize) as i32).collect();
            let mut x: Vec<f32> = codes.iter().map(|&c| c as f32 * step).collect();
            (x[0], x[1], x[40], x[41]) =
                (low as f32 * step, high as f32 * step, low as f32 * step, high as f32 * step);
            assert_eq!(round_trip(format, &x), x, "{format}");
        }
    }
}

#[test]
fn zeros_are_zeros() {
    for format in KvFormat::ALL {
        assert_eq!(round_trip(format, &[0.0; 64]), [0.0; 64], "{format}");
        for group in kv_groups(format, &encoded(format, &[-0.0; 32])) {
            assert_eq!((group.scale, group.minimum), (0.0, 0.0));
        }
    }
}

#[test]
fn scales_are_finite_and_not_negative_whatever_comes() {
    let odd =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e30, -1e30, 7e6, -7e6];
    let tiny = [f32::MIN_POSITIVE, -1e-40, 1e-45, 1e-8, -6e-8, 1e-20];
    let mut rng = Rng::new(5);
    for format in PACKED {
        for values in [&odd[..], &tiny[..], &[odd[4], odd[5], 1.0], &[-1e-3, -1.0, -2.0]] {
            for _ in 0..200 {
                let x: Vec<f32> = (0..32).map(|_| values[rng.below(values.len())]).collect();
                let bytes = encoded(format, &x);
                assert!(scales_are_sound(format, &bytes), "{format}: {x:?}");
                assert!(kv_groups(format, &bytes).all(|g| g.scale >= 0.0 && g.scale.is_finite()));
                let y = round_trip(format, &x);
                assert!(y.iter().all(|y| y.is_finite()), "{format}: {y:?}");
                let lost = x.iter().any(|x| !x.is_finite());
                assert!(!lost || y.iter().all(|&y| y == 0.0), "{format}: a group with {x:?} became {y:?}");
            }
        }
    }
}

#[test]
fn scales_no_encoder_writes_are_found() {
    for format in PACKED {
        let good = encoded(format, &Rng::new(6).normal_vec(96, 1.0));
        assert!(scales_are_sound(format, &good));
        for group in 0..3 {
            for bits in [0x7C00u16, 0x7E01, 0x8001, 0xFC00] {
                let mut bad = good.clone();
                bad[group * format.vector_bytes(32)..][..2].copy_from_slice(&bits.to_le_bytes());
                assert!(!scales_are_sound(format, &bad), "{format}: {bits:x}");
            }
        }
    }
    let mut bad = encoded(KvFormat::Asym4, &[-1.0; 32]);
    bad[3] |= 0x7C;
    assert!(!scales_are_sound(KvFormat::Asym4, &bad), "a minimum that is not finite");
}

#[test]
fn every_proposal_of_q4_is_worth_its_time() {
    // A largest magnitude on the negative side has a code more than one on the positive side.
    let x: Vec<f32> = (0..32).map(|i| -8.0 + 0.5 * i as f32).map(|x: f32| x.clamp(-8.0, 7.0)).collect();
    let flipped: Vec<f32> = x.iter().map(|x| -x).collect();
    let error =
        |x: &[f32]| -> f32 { x.iter().zip(round_trip(KvFormat::Q4, x)).map(|(x, y)| (x - y).powi(2)).sum() };
    assert!(error(&x) < error(&flipped));
    // And none of them is worse than rounding to the largest alone.
    let rng = Rng::new(8).normal_vec(32 * 500, 1.0);
    for x in rng.chunks_exact(32) {
        let m = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        for c in [8.5, 8.0, 7.5, 7.0] {
            let d = m / c;
            let plain: f32 =
                x.iter().map(|v| (v - d * (v / d).round_ties_even().clamp(-8.0, 7.0)).powi(2)).sum();
            assert!(error(x) <= plain * 1.002, "{} against {plain} of {c}", error(x));
        }
    }
}

#[test]
fn hadamard_undoes_itself_and_keeps_lengths_and_products() {
    for head_dim in [1, 20, 32, 64, 80, 96, 128, 192, 256, 512] {
        let (x, y) = (Rng::new(9).normal_vec(head_dim, 1.0), Rng::new(10).normal_vec(head_dim, 1.0));
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let (mut hx, mut hy) = (x.clone(), y.clone());
        hadamard(&mut hx);
        hadamard(&mut hy);
        assert!((dot(&x, &y) - dot(&hx, &hy)).abs() < 1e-4, "{head_dim}: products");
        assert!((dot(&x, &x) - dot(&hx, &hx)).abs() < 1e-4 * dot(&x, &x), "{head_dim}: lengths");
        hadamard(&mut hx);
        assert!(x.iter().zip(&hx).all(|(a, b)| (a - b).abs() < 1e-5), "{head_dim}: twice is once too often");
    }
    hadamard(&mut []);
}

#[test]
fn hadamard_is_the_sylvester_matrix_in_blocks() {
    for head_dim in [4usize, 8, 20, 32, 96, 80, 128] {
        let block = 1usize << head_dim.trailing_zeros();
        for one in 0..head_dim {
            let mut x = vec![0f32; head_dim];
            x[one] = 1.0;
            hadamard(&mut x);
            for (i, x) in x.iter().enumerate() {
                let within = i / block == one / block;
                let sign = if (i & one & (block - 1)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let expected = if within { sign * (1.0 / (block as f64).sqrt()) as f32 } else { 0.0 };
                assert_eq!(*x, expected, "{head_dim}: row {i}, column {one}");
            }
        }
    }
}

#[test]
fn names_are_read_back_and_unknown_ones_listed() {
    for format in KvFormat::ALL {
        assert_eq!(format.name().parse(), Ok(format));
    }
    assert!("q5".parse::<KvFormat>().unwrap_err().contains("f16, bf16, q8, q4, asym4"));
}
