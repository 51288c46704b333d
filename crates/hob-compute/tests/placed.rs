//! Several devices as one, verb by verb: what runs where, what crosses, and what a rehearsal must leave alone.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hob_compute::reference::Reference;
use hob_compute::*;
use hob_quant::Format;

/// The oracle, with a count of its norms; one kind makes ready in rehearsals, as GPUs do, and then runs nothing itself.
struct Counting {
    inner: Reference,
    norms: Arc<AtomicUsize>,
    rehearses: bool,
    rehearsing: bool,
}

impl Counting {
    fn boxed(rehearses: bool) -> (Box<Self>, Arc<AtomicUsize>) {
        let norms = Arc::new(AtomicUsize::new(0));
        let inner = Reference::new(true);
        (Box::new(Counting { inner, norms: Arc::clone(&norms), rehearses, rehearsing: false }), norms)
    }
}

macro_rules! delegate {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $given:ty;)*) => {$(
        fn $name(&mut self, $($arg: $kind),*) -> $given {
            self.inner.$name($($arg),*)
        }
    )*};
}

impl Compute for Counting {
    delegate! {
        alloc(rows: usize, width: usize) -> Result<Buf>;
        free(buf: Buf) -> Result<()>;
        upload(dst: Buf, row: usize, data: &[f32]) -> Result<()>;
        download(src: Buf, row: usize, out: &mut [f32]) -> Result<()>;
        load(spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight>;
        unload(weight: Weight) -> Result<()>;
        alloc_pages(spec: &PageSpec, count: usize) -> Result<Pool>;
        free_pages(pool: Pool) -> Result<()>;
        copy_page(from: Page, to: Page, positions: usize) -> Result<()>;
        read_positions(page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()>;
        write_positions(page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()>;
        embed(args: &Embed) -> Result<()>;
        linear(args: &Linear) -> Result<()>;
        heads(args: &Heads) -> Result<()>;
        rope(args: &Rope) -> Result<()>;
        append_kv(args: &AppendKv) -> Result<()>;
        attend(args: &Attend) -> Result<()>;
        map(args: &Map) -> Result<()>;
        pick(args: &Pick) -> Result<()>;
        route(args: &Route) -> Result<()>;
        experts(args: &Experts) -> Result<()>;
        short_conv(args: &ShortConv) -> Result<()>;
        delta_net(args: &DeltaNet) -> Result<()>;
        catch_up(args: &CatchUp) -> Result<()>;
        ssm_scan(args: &SsmScan) -> Result<()>;
        hyper_mix(args: &HyperMix) -> Result<()>;
        hyper_expand(args: &HyperExpand) -> Result<()>;
        compress(args: &Compress) -> Result<()>;
        select(args: &Select) -> Result<()>;
        attend_entries(args: &AttendEntries) -> Result<()>;
        submit() -> Result<Ticket>;
        picked(ticket: Ticket, out: &mut Picked) -> Result<()>;
    }

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        self.inner.position_bytes(pool, range)
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        self.norms.fetch_add(1, Ordering::Relaxed);
        if self.rehearsing { Ok(()) } else { self.inner.norm(args) }
    }

    fn rehearse(&mut self, on: bool) -> bool {
        self.rehearsing = on && self.rehearses;
        self.rehearses
    }

    fn held_bytes(&self) -> HeldBytes {
        self.inner.held_bytes()
    }
}

fn load(dev: &mut dyn Compute, kind: WeightKind, rows: usize, values: &[f32]) -> Weight {
    let (format, cols) = (Format::F32, values.len() / rows);
    let spec = WeightSpec { name: "w".into(), kind, format, rows, cols };
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    dev.load(&spec, Arc::new(bytes)).expect("a weight")
}

fn norm(dev: &mut dyn Compute, x: Buf, weight: Weight, rows: usize) {
    dev.norm(&Norm { x, rows, groups: 1, weight, eps: 0.0, out: x }).expect("a norm");
}

fn two() -> Placed {
    Placed::new(vec![Box::new(Reference::new(true)), Box::new(Reference::new(true))]).expect("two devices")
}

/// One vector on each of two devices.
fn vectors(dev: &mut Placed, values: &[f32]) -> [Weight; 2] {
    [0, 1].map(|at| {
        dev.place(at);
        load(dev, WeightKind::Vector, 1, values)
    })
}

#[test]
fn a_rehearsal_runs_nothing_where_verbs_execute_at_once() {
    let ((cpu, on_cpu), (gpu, on_gpu)) = (Counting::boxed(false), Counting::boxed(true));
    let devices: Vec<Box<dyn Compute>> = vec![cpu, gpu];
    let mut dev = Placed::new(devices).expect("two devices");
    let weights = vectors(&mut dev, &[1.0, 2.0]);
    let x = dev.alloc(4, 2).expect("a buffer");
    assert!(dev.rehearse(true));
    weights.iter().for_each(|&w| norm(&mut dev, x, w, 4));
    let count = |n: &AtomicUsize| n.load(Ordering::Relaxed);
    assert_eq!((count(&on_cpu), count(&on_gpu)), (0, 1));
    dev.rehearse(false);
    dev.upload(x, 0, &[3.0, 4.0, 0.0, 1.0, 1.0, 0.0, 6.0, 8.0]).expect("rows");
    weights.iter().for_each(|&w| norm(&mut dev, x, w, 4));
    assert_eq!((count(&on_cpu), count(&on_gpu)), (1, 2));
}

#[test]
fn devices_without_anything_to_make_ready_are_never_rehearsing() {
    let mut dev = two();
    let weights = vectors(&mut dev, &[1.0, 2.0]);
    // A caller who hears that there is nothing to rehearse does not say when it ends.
    assert!(!dev.rehearse(true));
    let x = dev.alloc(1, 2).expect("a buffer");
    dev.upload(x, 0, &[3.0, 4.0]).expect("a row");
    norm(&mut dev, x, weights[1], 1);
    let mut out = [0.0; 2];
    dev.download(x, 0, &mut out).expect("a row");
    assert_ne!(out, [3.0, 4.0]);
}

#[test]
fn rows_written_in_part_and_on_several_devices_stay_whole() {
    let (mut dev, mut alone) = (two(), Reference::new(true));
    let weights = vectors(&mut dev, &[1.0, 2.0, 3.0]);
    let own = load(&mut alone, WeightKind::Vector, 1, &[1.0, 2.0, 3.0]);
    let (x, y) = (dev.alloc(5, 3).expect("a buffer"), alone.alloc(5, 3).expect("a buffer"));
    let values: Vec<f32> = (1..=15).map(|v| v as f32).collect();
    dev.upload(x, 0, &values).expect("rows");
    alone.upload(y, 0, &values).expect("rows");
    // The first rows change the device, a part of a row is written between; the last rows stay where they were.
    for (at, rows) in [(1, 3), (0, 2), (1, 1), (0, 4)] {
        norm(&mut dev, x, weights[at], rows);
        norm(&mut alone, y, own, rows);
        dev.upload(x, 1, &[9.0]).expect("a part");
        alone.upload(y, 1, &[9.0]).expect("a part");
        let (mut a, mut b) = (vec![0f32; 15], vec![0f32; 15]);
        dev.download(x, 0, &mut a).expect("rows");
        alone.download(y, 0, &mut b).expect("rows");
        assert_eq!(a, b, "after {rows} rows on device {at}");
    }
    let refused = dev.download(x, 4, &mut [0.0; 4]);
    assert!(matches!(refused, Err(ComputeError::Shape { .. })), "{refused:?}");
}

#[test]
fn a_product_of_weights_on_two_devices_is_refused_and_names_them() {
    let mut dev = two();
    let matrices = [0, 1].map(|at| {
        dev.place(at);
        load(&mut dev, WeightKind::Matrix, 2, &[1.0, 0.0, 0.0, 1.0])
    });
    let [x, a, b] = [0; 3].map(|_| dev.alloc(1, 2).expect("a buffer"));
    let products = [(matrices[0], a), (matrices[1], b)];
    let products = products.map(|(weight, out)| Product { weight, bias: None, out });
    let args = Linear { x, first_row: 0, rows: 1, products: &products, combine: Combine::Store };
    let error = dev.linear(&args).expect_err("refused").to_string();
    assert!(error.contains("device 0") && error.contains("'w' on device 1"), "{error}");
    assert!(Placed::new(Vec::new()).is_err());
    let mixed: Vec<Box<dyn Compute>> = vec![Box::new(Reference::new(true)), Box::new(Reference::new(false))];
    assert!(Placed::new(mixed).is_err(), "exact beside not exact");
}

#[test]
fn results_of_one_submit_keep_their_order_whatever_was_read_early() {
    let mut dev = two();
    dev.place(1);
    let table = load(&mut dev, WeightKind::Table, 3, &[0.0, 1.0, 2.0]);
    let (logits, x) = (dev.alloc(2, 3).expect("logits"), dev.alloc(2, 1).expect("x"));
    // On device 0, where they are uploaded; the table is on device 1.
    dev.place(0);
    dev.upload(logits, 0, &[0.0, 5.0, 1.0, 7.0, 0.0, 1.0]).expect("logits");
    let pick = |k| Pick { logits, rows: 2, k, draws: &[] };
    dev.pick(&pick(2)).expect("a pick");
    let refused = dev.pick(&pick(1));
    assert!(matches!(refused, Err(ComputeError::Shape { .. })), "{refused:?}");
    let tokens = [Token::Device(1), Token::Device(0)];
    dev.embed(&Embed { table, tokens: &tokens, out: x, scale: 1.0 }).expect("ids read early");
    let mut out = [9.0; 2];
    dev.download(x, 0, &mut out).expect("rows");
    assert_eq!(out, [0.0, 1.0]);
    dev.pick(&pick(2)).expect("a second pick");
    let ticket = dev.submit().expect("a ticket");
    let mut picked = Picked::default();
    dev.picked(ticket, &mut picked).expect("results");
    assert_eq!(picked.tokens, [1, 2, 0, 2, 1, 2, 0, 2]);
    assert_eq!((picked.chosen.as_slice(), picked.k), ([1, 0, 1, 0].as_slice(), 2));
    dev.embed(&Embed { table, tokens: &tokens, out: x, scale: 2.0 }).expect("ids known");
    dev.download(x, 0, &mut out).expect("rows");
    assert_eq!(out, [0.0, 2.0]);
    assert!(dev.picked(ticket, &mut picked).is_err());
}
