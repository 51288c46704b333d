//! Wrong handles and shapes are errors that name both sides, on the oracle and on the CPU alike.

mod common;

use std::sync::Arc;

use common::{Bytes, buffer, cpu, random, weight};
use hob_compute::reference::Reference;
use hob_compute::{
    Activation, AppendKv, Attend, Buf, Combine, Compute, ComputeError, Embed, Linear, Map, Norm, Page,
    PageSpec, Pick, Picked, Product, Result, Rope, RopePairs, SeqRows, Ticket, Token, WeightKind, WeightSpec,
};
use hob_cpu::Isa;
use hob_quant::Format;

/// Runs `scenario` on both devices.
fn on_both(scenario: impl Fn(&mut dyn Compute)) {
    scenario(&mut Reference::new(false));
    scenario(&mut cpu(Isa::best(), 2, false));
}

fn shape<T: std::fmt::Debug>(found: Result<T>, mentions: &str) {
    match found {
        Err(e @ ComputeError::Shape { .. }) => {
            assert!(e.to_string().contains(mentions), "'{e}' does not mention '{mentions}'");
        }
        other => panic!("expected a shape error that mentions '{mentions}', found {other:?}"),
    }
}

fn stale<T: std::fmt::Debug>(found: Result<T>) {
    assert!(matches!(found, Err(ComputeError::Handle { .. })), "expected a handle error, found {found:?}");
}

#[test]
fn freed_and_foreign_handles() {
    on_both(|dev| {
        let freed = dev.alloc(1, 4).unwrap();
        dev.free(freed).unwrap();
        let reused = dev.alloc(1, 4).unwrap();
        assert_eq!(freed.index, reused.index);
        let mut foreign_device = Reference::new(false);
        let foreign = foreign_device.alloc(1, 4).unwrap();
        let w = weight(dev, 1, WeightKind::Vector, Format::F32, 1, 4);
        let table = weight(dev, 2, WeightKind::Table, Format::F32, 4, 4);
        dev.unload(w).unwrap();
        stale(dev.unload(w));
        stale(dev.free(freed));
        for bad in [freed, foreign, Buf { index: 99, ..reused }] {
            let mut out = [0f32; 4];
            stale(dev.download(bad, 0, &mut out));
            stale(dev.upload(bad, 0, &out));
            stale(dev.map(&Map::Add { a: reused, b: bad, out: reused, rows: 1 }));
            stale(dev.map(&Map::Scale { a: reused, factor: 1.0, out: bad, rows: 1 }));
            stale(dev.map(&Map::CopyRow { a: bad, from: 0, out: reused, to: 0 }));
            stale(dev.pick(&Pick { logits: bad, rows: 1, k: 1, draws: &[] }));
            stale(dev.embed(&Embed { table, tokens: &[Token::Host(0)], out: bad, scale: 1.0 }));
            let freqs = reused;
            let pairs = RopePairs::Half;
            stale(dev.rope(&Rope {
                x: bad,
                first: 0,
                back: false,
                heads: 1,
                head_dim: 4,
                positions: &[0],
                freqs,
                pairs,
                magnitude: 1.0,
            }));
            stale(dev.append_kv(&AppendKv { k: bad, v: reused, seqs: &[] }));
        }
        stale(dev.norm(&Norm { x: reused, rows: 1, groups: 1, weight: w, eps: 0.0, out: reused }));
        stale(dev.embed(&Embed { table: w, tokens: &[], out: reused, scale: 1.0 }));
        stale(dev.picked(Ticket(5), &mut Picked::default()));
    });
}

#[test]
fn freed_pages() {
    on_both(|dev| {
        let spec = PageSpec::f16(1, 4);
        let pool = dev.alloc_pages(&spec, 2).unwrap();
        let page = Page { pool, index: 0 };
        dev.free_pages(pool).unwrap();
        stale(dev.free_pages(pool));
        stale(dev.copy_page(page, page, 1));
        let (q, out) = (random(dev, 1, 1, 4), dev.alloc(1, 4).unwrap());
        let seqs = [SeqRows { row: 0, rows: 1, position: 0, pages: &[page] }];
        stale(dev.append_kv(&AppendKv { k: q, v: q, seqs: &seqs }));
        stale(dev.attend(&Attend {
            q,
            out,
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            scale: 1.0,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &seqs,
        }));
    });
}

#[test]
fn memory_that_cannot_be() {
    on_both(|dev| {
        shape(dev.alloc(0, 4), "0 x 4");
        shape(dev.alloc(usize::MAX, 2), "address space");
        assert!(matches!(dev.alloc(1 << 40, 1 << 10), Err(ComputeError::Memory { .. })));
        shape(dev.alloc_pages(&PageSpec::f16(0, 4), 1), "0 KV heads");
        shape(dev.alloc_pages(&PageSpec::f16(4, 4), usize::MAX), "address space");
    });
}

#[test]
fn ranges_outside_a_buffer() {
    on_both(|dev| {
        let x = random(dev, 1, 3, 4);
        let mut out = [0f32; 5];
        dev.download(x, 1, &mut out).unwrap();
        shape(dev.download(x, 2, &mut out), "5 floats from row 2");
        shape(dev.upload(x, 4, &[]), "from row 4");
        shape(dev.upload(x, usize::MAX, &[1.0]), "a range inside");
        shape(dev.map(&Map::CopyRow { a: x, from: 3, out: x, to: 0 }), "below 3");
        shape(dev.map(&Map::Scale { a: x, factor: 2.0, out: x, rows: 4 }), "at least 4 rows");
        shape(dev.map(&Map::Softcap { a: x, cap: 2.0, out: x, rows: 4 }), "at least 4 rows");
        shape(dev.map(&Map::Softcap { a: x, cap: f32::NAN, out: x, rows: 1 }), "a finite, positive cap");
    });
}

#[test]
fn weights_that_do_not_fit_their_source() {
    on_both(|dev| {
        let mut load = |kind, format, rows, cols, bytes: usize| {
            let spec = WeightSpec { name: "blk.0.w".into(), kind, format, rows, cols };
            dev.load(&spec, Arc::new(Bytes { bytes: vec![0; bytes], mapped: true }))
        };
        for kind in [WeightKind::Matrix, WeightKind::Table, WeightKind::Vector] {
            for (format, rows, cols, bytes) in [
                (Format::F32, 1, 4, 15),
                (Format::Q8_0, 1, 33, 34),
                (Format::F32, 0, 4, 0),
                (Format::F32, 1, 0, 0),
                (Format::F32, 1, usize::MAX, 4),
            ] {
                match load(kind, format, rows, cols, bytes) {
                    Err(ComputeError::Weight { name, .. }) => assert_eq!(name, "blk.0.w"),
                    other => panic!("{kind:?} {format} {rows} x {cols} of {bytes} bytes: {other:?}"),
                }
            }
        }
        assert!(matches!(load(WeightKind::Vector, Format::F32, 2, 4, 32), Err(ComputeError::Weight { .. })));
    });
}

#[test]
fn weights_used_for_what_they_were_not_loaded_for() {
    on_both(|dev| {
        let (x, out) = (random(dev, 1, 2, 32), dev.alloc(2, 32).unwrap());
        let table = weight(dev, 2, WeightKind::Table, Format::F32, 32, 32);
        let matrix = weight(dev, 3, WeightKind::Matrix, Format::F32, 32, 32);
        let vector = weight(dev, 4, WeightKind::Vector, Format::F32, 1, 32);
        shape(dev.norm(&Norm { x, rows: 1, groups: 1, weight: matrix, eps: 0.0, out }), "Vector");
        shape(dev.embed(&Embed { table: matrix, tokens: &[], out, scale: 1.0 }), "Table");
        let mut linear = |weight, bias| {
            let products = [Product { weight, bias, out }];
            dev.linear(&Linear { x, first_row: 0, rows: 1, products: &products, combine: Combine::Store })
        };
        shape(linear(table, None), "Matrix");
        shape(linear(vector, None), "Matrix");
        shape(linear(matrix, Some(table)), "Vector");
        linear(matrix, Some(vector)).unwrap();
    });
}

#[test]
fn rows_and_widths_that_do_not_meet() {
    on_both(|dev| {
        let x = random(dev, 1, 2, 32);
        let narrow = random(dev, 2, 2, 16);
        let w = weight(dev, 3, WeightKind::Vector, Format::F32, 1, 16);
        shape(dev.norm(&Norm { x, rows: 2, groups: 1, weight: w, eps: 0.0, out: x }), "width 16");
        shape(dev.norm(&Norm { x, rows: 2, groups: 2, weight: w, eps: 0.0, out: narrow }), "width 32");
        shape(dev.norm(&Norm { x, rows: 3, groups: 2, weight: w, eps: 0.0, out: x }), "3 rows");
        shape(dev.norm(&Norm { x, rows: 1, groups: 0, weight: w, eps: 0.0, out: x }), "group");
        shape(dev.map(&Map::Add { a: x, b: narrow, out: x, rows: 1 }), "width 32");
        let rope = |heads, head_dim, freqs| Rope {
            x,
            first: 0,
            back: false,
            heads,
            head_dim,
            positions: &[0, 1],
            freqs,
            pairs: RopePairs::Half,
            magnitude: 1.0,
        };
        let freqs = buffer(dev, 4, &[1.0; 4]);
        shape(dev.rope(&rope(3, 8, freqs)), "width 24");
        shape(dev.rope(&rope(8, 4, freqs)), "at most 4");
        shape(dev.rope(&Rope { positions: &[0; 3], ..rope(4, 8, freqs) }), "3 rows");
        let table = weight(dev, 4, WeightKind::Table, Format::F32, 10, 32);
        let embed = |tokens| Embed { table, tokens, out: x, scale: 1.0 };
        shape(dev.embed(&embed(&[Token::Host(10)])), "token 10");
        shape(dev.embed(&embed(&[Token::Device(0)])), "slot 0");
        shape(dev.embed(&embed(&[Token::Host(0); 3])), "3 rows");
        shape(dev.pick(&Pick { logits: x, rows: 3, k: 1, draws: &[] }), "3 rows");
        shape(dev.pick(&Pick { logits: x, rows: 1, k: 0, draws: &[] }), "1..=32");
        shape(dev.pick(&Pick { logits: x, rows: 1, k: 33, draws: &[] }), "33");
        let wide = dev.alloc(1, 1000).unwrap();
        shape(dev.pick(&Pick { logits: wide, rows: 1, k: 257, draws: &[] }), "1..=256");
    });
}

#[test]
fn linears_that_cannot_be() {
    on_both(|dev| {
        let x = random(dev, 1, 3, 32);
        let (a, b) = (
            weight(dev, 2, WeightKind::Matrix, Format::Q8_0, 8, 32),
            weight(dev, 3, WeightKind::Matrix, Format::Q8_0, 16, 32),
        );
        let narrow = weight(dev, 4, WeightKind::Matrix, Format::F32, 8, 16);
        let square = weight(dev, 5, WeightKind::Matrix, Format::F32, 32, 32);
        let bias = weight(dev, 6, WeightKind::Vector, Format::F32, 1, 16);
        let (out, wide) = (dev.alloc(2, 8).unwrap(), dev.alloc(2, 16).unwrap());
        let product = |weight, out| Product { weight, bias: None, out };
        let mut linear = |products: &[Product], first_row, rows, combine| {
            dev.linear(&Linear { x, first_row, rows, products, combine })
        };
        shape(linear(&[], 0, 1, Combine::Store), "a product");
        shape(linear(&[product(a, wide)], 0, 1, Combine::Store), "width 8");
        shape(linear(&[product(narrow, out)], 0, 1, Combine::Store), "width 16");
        shape(linear(&[product(square, x)], 0, 1, Combine::Add), "other than the input");
        shape(linear(&[product(a, out)], 1, 3, Combine::Store), "4 rows");
        shape(linear(&[product(a, out)], 0, 3, Combine::Store), "3 rows");
        shape(linear(&[Product { bias: Some(bias), ..product(a, out) }], 0, 1, Combine::Store), "width 8");
        let gated = Combine::Gated(Activation::Silu);
        shape(linear(&[product(a, out)], 0, 1, gated), "gate and up");
        shape(linear(&[product(a, out), product(b, wide)], 0, 1, gated), "one width, 8");
        linear(&[product(a, out), product(b, wide)], 1, 2, Combine::Store).unwrap();
    });
}

#[test]
fn one_buffer_as_two_outputs() {
    let mut dev = cpu(Isa::best(), 1, false);
    let x = random(&mut dev, 1, 1, 32);
    let w = weight(&mut dev, 2, WeightKind::Matrix, Format::Q8_0, 8, 32);
    let out = dev.alloc(1, 8).unwrap();
    let products = [Product { weight: w, bias: None, out }; 2];
    let combine = Combine::Store;
    shape(dev.linear(&Linear { x, first_row: 0, rows: 1, products: &products, combine }), "one buffer twice");
}

#[test]
fn sequences_that_do_not_fit() {
    on_both(|dev| {
        let spec = PageSpec::f16(1, 8);
        let pool = dev.alloc_pages(&spec, 2).unwrap();
        let other = dev.alloc_pages(&PageSpec::f16(2, 4), 1).unwrap();
        let page = |index| Page { pool, index };
        let pages = [page(0), page(1)];
        let x = random(dev, 1, 4, 8);
        let out = dev.alloc(4, 8).unwrap();
        let mut both = |seqs: &[SeqRows], mentions: &str| {
            shape(dev.append_kv(&AppendKv { k: x, v: x, seqs }), mentions);
            let (heads, kv_heads, head_dim, scale) = (1, 1, 8, 1.0);
            shape(
                dev.attend(&Attend {
                    q: x,
                    out,
                    heads,
                    kv_heads,
                    head_dim,
                    scale,
                    window: None,
                    softcap: None,
                    sinks: None,
                    seqs,
                }),
                mentions,
            );
        };
        let seq = |row, rows, position| SeqRows { row, rows, position, pages: &pages };
        both(&[seq(0, 1, 512)], "513 positions");
        both(&[seq(0, 1, usize::MAX)], "room for 512");
        both(&[seq(0, 5, 0)], "0..5");
        both(&[seq(2, 1, 0), seq(0, 1, 0)], "ascending");
        both(&[seq(0, 2, 0), seq(1, 2, 0)], "without overlap");
        both(&[SeqRows { row: 0, rows: 1, position: 0, pages: &[] }], "pages for 1");
        let beyond = [page(2)];
        both(&[SeqRows { pages: &beyond, ..seq(0, 1, 0) }], "below 2");
        let mixed = [page(0), Page { pool: other, index: 0 }];
        both(&[SeqRows { pages: &mixed, ..seq(0, 2, 255) }], "kv_heads: 2");
        let seqs = [seq(0, 1, 0)];
        let attend = Attend {
            q: x,
            out,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &seqs,
        };
        shape(dev.attend(&Attend { out: x, ..attend }), "other than q");
        let attend = Attend {
            q: x,
            out,
            heads: 3,
            kv_heads: 2,
            head_dim: 8,
            scale: 1.0,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &seqs,
        };
        shape(dev.attend(&attend), "whole groups");
        shape(dev.attend(&Attend { heads: 2, kv_heads: 1, ..attend }), "width 16");
        let one = Attend { heads: 1, kv_heads: 1, ..attend };
        shape(dev.attend(&Attend { window: Some(0), ..one }), "at least 1");
        for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            shape(dev.attend(&Attend { softcap: Some(cap), ..one }), "finite softcap");
        }
        let sinks = |dev: &mut dyn Compute, kind| weight(dev, 3, kind, Format::F32, 1, 2);
        let (two, matrix) = (sinks(dev, WeightKind::Vector), sinks(dev, WeightKind::Matrix));
        shape(dev.attend(&Attend { sinks: Some(two), ..one }), "each of 1 heads");
        shape(dev.attend(&Attend { sinks: Some(matrix), ..one }), "Vector");
        dev.unload(two).unwrap();
        stale(dev.attend(&Attend { sinks: Some(two), ..one }));
        shape(dev.copy_page(page(0), page(1), 257), "at most 256");
        shape(dev.copy_page(page(0), Page { pool: other, index: 0 }, 1), "kv_heads: 2");
        shape(dev.copy_page(page(0), page(7), 1), "below 2");
    });
}

#[test]
fn a_source_that_fails_says_which_tensor() {
    struct Broken;
    impl hob_compute::ByteSource for Broken {
        fn len(&self) -> u64 {
            16
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    }
    for kind in [WeightKind::Matrix, WeightKind::Vector] {
        let mut dev = cpu(Isa::best(), 2, false);
        let spec = WeightSpec { name: "blk.7.w".into(), kind, format: Format::F32, rows: 1, cols: 4 };
        let found = dev.load(&spec, Arc::new(Broken));
        assert!(matches!(&found, Err(ComputeError::Read { name, .. }) if name == "blk.7.w"), "{found:?}");
    }
    let mut dev = cpu(Isa::best(), 2, false);
    let spec =
        WeightSpec { name: "embd".into(), kind: WeightKind::Table, format: Format::F32, rows: 1, cols: 4 };
    let table = dev.load(&spec, Arc::new(Broken)).unwrap();
    let out = dev.alloc(1, 4).unwrap();
    let found = dev.embed(&Embed { table, tokens: &[Token::Host(0)], out, scale: 1.0 });
    assert!(matches!(&found, Err(ComputeError::Read { name, .. }) if name == "embd"), "{found:?}");
}
