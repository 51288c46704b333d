//! What the tests of this crate share: devices of every class, weights from memory, comparison bit by bit.
#![allow(dead_code, reason = "every test binary uses another part")]

use std::sync::Arc;

use hob_compute::reference::Reference;
use hob_compute::{Buf, ByteSource, Compute, Weight, WeightKind, WeightSpec};
use hob_cpu::{Cpu, CpuConfig, Isa};
use hob_quant::Format;
use hob_testkit::rng::Rng;

/// Bytes in memory, mapped or only readable.
pub struct Bytes {
    pub bytes: Vec<u8>,
    pub mapped: bool,
}

impl ByteSource for Bytes {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let start = offset as usize;
        let part = self.bytes.get(start..start + buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn mapped(&self) -> Option<&[u8]> {
        self.mapped.then_some(&self.bytes)
    }
}

/// A tensor of seeded random weights in `format`.
pub fn weight(
    dev: &mut dyn Compute,
    seed: u64,
    kind: WeightKind,
    format: Format,
    rows: usize,
    cols: usize,
) -> Weight {
    let spec = WeightSpec { name: format!("w{seed}"), kind, format, rows, cols };
    let values = Rng::new(seed).normal_vec(rows * cols, 0.5);
    let mut bytes = vec![0u8; spec.file_bytes().unwrap() as usize];
    match format.can_encode() {
        true => hob_quant::encode_row(format, &values, &mut bytes).unwrap(),
        false => random_blocks(format, seed, &mut bytes),
    }
    dev.load(&spec, Arc::new(Bytes { bytes, mapped: seed.is_multiple_of(2) })).unwrap()
}

/// Any codes under scales of 2^-7 to 2^-1.
fn random_blocks(format: Format, seed: u64, bytes: &mut [u8]) {
    assert_eq!(format, Format::MXFP4, "no other format without an encoder is used here");
    let mut rng = Rng::new(seed);
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        block.iter_mut().for_each(|b| *b = rng.below(256) as u8);
        block[0] = 120 + rng.below(7) as u8;
    }
}

/// A buffer of `rows * width` floats with these contents.
pub fn buffer(dev: &mut dyn Compute, width: usize, data: &[f32]) -> Buf {
    let buf = dev.alloc(data.len() / width, width).unwrap();
    dev.upload(buf, 0, data).unwrap();
    buf
}

/// A buffer of seeded random floats.
pub fn random(dev: &mut dyn Compute, seed: u64, rows: usize, width: usize) -> Buf {
    buffer(dev, width, &Rng::new(seed).normal_vec(rows * width, 1.0))
}

pub fn contents(dev: &mut dyn Compute, buf: Buf, len: usize) -> Vec<f32> {
    let mut out = vec![0f32; len];
    dev.download(buf, 0, &mut out).unwrap();
    out
}

/// Instruction set classes this CPU has; says which it lacks.
pub fn classes() -> Vec<Isa> {
    let (have, lack): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|i| i.available());
    lack.iter().for_each(|isa| eprintln!("skipped: no {isa}"));
    have
}

pub fn cpu(isa: Isa, threads: usize, exact: bool) -> Cpu {
    Cpu::new(&CpuConfig { threads, exact, isa: Some(isa), pin: false }).unwrap()
}

/// Runs `scenario` on the oracle and on every CPU class with 1 and 3 threads, and compares all bits.
pub fn agree(what: &str, exact: bool, scenario: impl Fn(&mut dyn Compute) -> Vec<f32>) {
    let expected = scenario(&mut Reference::new(exact));
    for isa in classes() {
        for threads in [1, 3] {
            let found = scenario(&mut cpu(isa, threads, exact));
            same_bits(&format!("{what}, {isa}, {threads} threads"), &expected, &found);
        }
    }
}

pub fn same_bits(what: &str, expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len(), "{what}: length");
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        assert_eq!(
            e.to_bits(),
            f.to_bits(),
            "{what}: value {i} of {}: expected {e}, found {f}",
            expected.len()
        );
    }
}
