//! A decode step allocates nothing once every shape was seen. One test: the counts are those of the whole process.

mod common;

use common::{buffer, classes, cpu, random, weight};
use hob_compute::{
    Activation, AppendKv, Attend, Combine, Compute, Embed, Linear, Map, Norm, Page, PageSpec, Pick, Picked,
    Product, Rope, RopePairs, SeqRows, Token, WeightKind,
};
use hob_quant::Format;
use hob_testkit::alloc::{CountingAllocator, measure_process};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const DIM: usize = 192;
const VOCAB: usize = 20_000;

/// One layer's worth of verbs and the head, as a model calls them.
struct Step {
    dev: hob_cpu::Cpu,
    x: hob_compute::Buf,
    h: hob_compute::Buf,
    q: hob_compute::Buf,
    k: hob_compute::Buf,
    v: hob_compute::Buf,
    logits: hob_compute::Buf,
    freqs: hob_compute::Buf,
    table: hob_compute::Weight,
    norm: hob_compute::Weight,
    sinks: hob_compute::Weight,
    square: [hob_compute::Weight; 3],
    head: hob_compute::Weight,
    pages: Vec<Page>,
    picked: Picked,
}

impl Step {
    fn new(mut dev: hob_cpu::Cpu) -> Step {
        let spec = PageSpec::f16(3, 64);
        let pool = dev.alloc_pages(&spec, 20).unwrap();
        let mut matrix = |seed, rows| weight(&mut dev, seed, WeightKind::Matrix, Format::Q8_0, rows, DIM);
        let (square, head) = ([matrix(1, DIM), matrix(2, DIM), matrix(3, DIM)], matrix(4, VOCAB));
        let mut activation = |width| dev.alloc(1, width).unwrap();
        let [x, h, q, k, v] = std::array::from_fn(|_| activation(DIM));
        let logits = activation(VOCAB);
        Step {
            freqs: buffer(&mut dev, 32, &[0.3; 32]),
            table: weight(&mut dev, 6, WeightKind::Table, Format::Q8_0, 100, DIM),
            norm: weight(&mut dev, 8, WeightKind::Vector, Format::F32, 1, DIM),
            sinks: weight(&mut dev, 9, WeightKind::Vector, Format::F32, 1, 3),
            pages: (0..20).map(|index| Page { pool, index }).collect(),
            picked: Picked::default(),
            dev,
            x,
            h,
            q,
            k,
            v,
            logits,
            square,
            head,
        }
    }

    fn run(&mut self, position: usize) {
        let Step { dev, x, h, q, k, v, logits, .. } = self;
        let (x, h, q, k, v, logits) = (*x, *h, *q, *k, *v, *logits);
        let token = if position == 0 { Token::Host(3) } else { Token::Device(0) };
        // The table has fewer rows than the vocabulary: feed a fixed token after checking that slots resolve.
        let token =
            if matches!(token, Token::Device(_)) { Token::Host(position as u32 % 100) } else { token };
        dev.embed(&Embed { table: self.table, tokens: &[token], out: x, scale: 1.0 }).unwrap();
        dev.norm(&Norm { x, rows: 1, groups: 1, weight: self.norm, eps: 1e-5, out: h }).unwrap();
        let product = |weight, out| Product { weight, bias: None, out };
        let [a, b, c] = self.square;
        let products = [product(a, q), product(b, k), product(c, v)];
        dev.linear(&Linear { x: h, first_row: 0, rows: 1, products: &products, combine: Combine::Store })
            .unwrap();
        for x in [q, k] {
            let (freqs, pairs, positions) = (self.freqs, RopePairs::Half, &[position as u32]);
            dev.rope(&Rope {
                x,
                first: 0,
                back: false,
                heads: 3,
                head_dim: 64,
                positions,
                freqs,
                pairs,
                magnitude: 1.0,
            })
            .unwrap();
        }
        let seqs = [SeqRows { row: 0, rows: 1, position, pages: &self.pages }];
        dev.append_kv(&AppendKv { k, v, seqs: &seqs }).unwrap();
        let (heads, kv_heads, head_dim) = (3, 3, 64);
        for (window, softcap, sinks) in
            [(None, None, None), (Some(300), Some(30.0), None), (Some(64), None, Some(self.sinks))]
        {
            let (scale, seqs) = (0.125, &seqs);
            let args = Attend { q, out: h, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs };
            dev.attend(&args).unwrap();
        }
        dev.linear(&Linear {
            x: h,
            first_row: 0,
            rows: 1,
            products: &[product(a, x)],
            combine: Combine::Add,
        })
        .unwrap();
        let pair = [product(b, q), product(c, q)];
        let combine = Combine::Gated(Activation::Silu);
        dev.linear(&Linear { x, first_row: 0, rows: 1, products: &pair, combine }).unwrap();
        dev.map(&Map::Add { a: x, b: q, out: x, rows: 1 }).unwrap();
        dev.map(&Map::Scale { a: x, factor: 0.5, out: x, rows: 1 }).unwrap();
        let products = [product(self.head, logits)];
        dev.linear(&Linear { x, first_row: 0, rows: 1, products: &products, combine: Combine::Store })
            .unwrap();
        dev.pick(&Pick { logits, rows: 1, k: 40, draws: &[] }).unwrap();
        let ticket = dev.submit().unwrap();
        dev.picked(ticket, &mut self.picked).unwrap();
    }
}

#[test]
fn a_decode_step_allocates_nothing_even_as_the_context_grows() {
    for isa in classes() {
        for threads in [1, 2] {
            let mut step = Step::new(cpu(isa, threads, false));
            // A long context first: pages computed apart and the largest scratch have been seen.
            let prefill = random(&mut step.dev, 9, 4000, DIM);
            let seqs = [SeqRows { row: 0, rows: 4000, position: 0, pages: &step.pages }];
            step.dev.append_kv(&AppendKv { k: prefill, v: prefill, seqs: &seqs }).unwrap();
            step.dev.free(prefill).unwrap();
            for position in [0, 1, 2, 3] {
                step.run(position);
            }
            let positions = [4, 5, 254, 255, 256, 257, 511, 512, 1023, 1024, 4000, 4001, 4096];
            let ((), usage) = measure_process(|| positions.into_iter().for_each(|p| step.run(p)));
            assert_eq!(usage.allocations, 0, "{isa}, {threads} threads: {usage:?}");
        }
    }
}
