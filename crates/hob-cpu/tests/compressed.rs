//! Hyper-connections and compressed attention against the oracle, bit by bit; against themselves in other batches; and what
//! does not fit.

mod common;
#[path = "../../hob-compute/tests/common/floats.rs"]
mod floats;
#[path = "../../hob-compute/tests/common/compressed.rs"]
mod layer;

use common::{buffer, classes, contents, cpu, same_bits};
use floats::vector;
use hob_compute::reference::Reference;
use hob_compute::*;
use layer::{ALL, Layer, batches, hyper, seq};

#[test]
fn compressed_attention_is_the_oracles() {
    for sizes in ALL {
        let expected = batches(&mut Reference::new(false), sizes);
        for (name, mut dev) in every() {
            same_bits(&format!("{name}, {sizes:?}"), &expected, &batches(dev.as_mut(), sizes));
        }
    }
}

#[test]
fn hyper_connections_are_the_oracles() {
    for (streams, dim, rows) in [(4, 64, 1), (4, 1000, 7), (1, 3, 2), (8, 130, 70), (2, 4096, 3)] {
        let expected = hyper(&mut Reference::new(false), streams, dim, rows);
        for (name, mut dev) in every() {
            let found = hyper(dev.as_mut(), streams, dim, rows);
            same_bits(&format!("{name}, {streams} streams of {dim}, {rows} rows"), &expected, &found);
        }
    }
}

/// Devices of every class, with one thread and several.
fn every() -> Vec<(String, Box<dyn Compute>)> {
    let of = |isa, threads| -> (String, Box<dyn Compute>) {
        (format!("{isa:?}, {threads} threads"), Box::new(cpu(isa, threads, false)))
    };
    classes().into_iter().flat_map(|isa| [1, 3].map(|threads| of(isa, threads))).collect()
}

/// One row after the other gives what all at once give, and going back a few positions is as never having been there.
#[test]
fn pieces_and_returns_do_not_change_a_bit() {
    for sizes in ALL {
        let mut dev = Reference::new(false);
        let whole = Layer::new(&mut dev, sizes);
        whole.run(&mut dev, &[seq(0, 120, 0, 1)]);
        let width = sizes.heads * sizes.dim;
        let expected = contents(&mut dev, whole.out, 120 * width);
        let layer = Layer::new(&mut dev, sizes);
        let mut position = 0;
        for (rows, back) in [(1, 0), (50, 3), (2, 1), (1, 0), (7, 2), (1, 1), (64, 3), (3, 0)] {
            let rows = rows.min(120 - position);
            layer.run(&mut dev, &[seq(position, rows, position, 2)]);
            let found = contents(&mut dev, layer.out, 120 * width);
            let span = position * width..(position + rows) * width;
            same_bits(
                &format!("{sizes:?}, {rows} rows at {position}"),
                &expected[span.clone()],
                &found[span],
            );
            position = position + rows - back;
        }
    }
}

/// Equal scores go to the lowest entries, whatever their number; what is no number comes last.
#[test]
fn ties_go_to_the_lowest() {
    let mut devices: Vec<Box<dyn Compute>> = vec![Box::new(Reference::new(false))];
    devices.extend(every().into_iter().map(|(_, dev)| dev));
    for dev in &mut devices {
        let dev = dev.as_mut();
        // Of 100 entries all but 7 and 90 score 0; 50 is no number.
        let mut keys = vec![-1f32; 100 * 4];
        keys[7 * 4..8 * 4].fill(1.0);
        keys[90 * 4..91 * 4].fill(2.0);
        keys[50 * 4] = f32::NAN;
        let entries = buffer(dev, 4, &keys);
        let (q, weights) = (buffer(dev, 4, &[1.0; 4]), buffer(dev, 1, &[1.0]));
        let out = dev.alloc(1, 5).unwrap();
        let seqs = &[seq(0, 1, 199, 0)];
        let (heads, scale, capacity, ratio) = (1, 1.0, 100, 2);
        dev.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out }).unwrap();
        assert_eq!(contents(dev, out, 5), [0.0, 1.0, 2.0, 7.0, 90.0]);
        let seqs = &[seq(0, 1, 5, 0)];
        dev.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out }).unwrap();
        assert_eq!(contents(dev, out, 5), [0.0, 1.0, 2.0, -1.0, -1.0]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut devices: Vec<Box<dyn Compute>> = vec![Box::new(Reference::new(false))];
    devices.push(Box::new(cpu(classes()[0], 1, false)));
    for dev in &mut devices {
        let dev = dev.as_mut();
        let layer = Layer::new(dev, ALL[0]);
        let [kv, gate, ..] = layer.inputs;
        let &Layer { shape, bias, norm, rotation, recent, entries, .. } = &layer;
        let args = |shape, recent, seqs| {
            let eps = 1e-6;
            Compress { shape, kv, gate, bias, norm, eps, rotation, recent, entries, seqs }
        };
        let one = [seq(0, 1, 0, 0)];
        let (far, strange, long) = ([seq(0, 8, 396, 0)], [seq(0, 1, 0, 3)], [seq(129, 2, 0, 0)]);
        let error = |e: hob_compute::Result<()>, what: &str| {
            let message = e.expect_err(what).to_string();
            assert!(message.contains(what), "{what}: {message}");
        };
        error(dev.compress(&args(CompressShape { ratio: 0, ..shape }, recent, &one)), "positions");
        error(dev.compress(&args(CompressShape { dim: 40, ..shape }, recent, &one)), "width");
        error(dev.compress(&args(shape, layer.window, &one)), "ring");
        error(dev.compress(&args(shape, recent, &far)), "room for 101");
        error(dev.compress(&args(shape, recent, &strange)), "slot");
        error(dev.compress(&args(shape, recent, &long)), "rows");
        let x = dev.alloc(2, 12).unwrap();
        let y = dev.alloc(2, 4).unwrap();
        let expand = |streams| HyperExpand { y, rows: 2, streams, weights: None, x };
        dev.hyper_expand(&expand(3)).expect("3 streams of 4");
        error(dev.hyper_expand(&expand(2)), "width");
        error(dev.hyper_expand(&expand(9)), "streams");
    }
}
