//! A mixture allocates nothing once a batch of that size was seen. One test: the counts are those of the process.

mod common;

use common::{buffer, classes, cpu, random, weight};
use hob_compute::{
    Activation, Commit, Compute, ConvForm, DeltaNet, DeltaShape, Experts, Gating, KeyHeads, Memory, Route,
    Routing, ShortConv, SlotRows, WeightKind,
};
use hob_quant::Format;
use hob_testkit::alloc::{CountingAllocator, measure_process};
use hob_testkit::rng::Rng;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn routing_experts_and_recurrences_allocate_nothing() {
    const DIM: usize = 64;
    const COUNT: usize = 16;
    let rule = Routing { top_k: 4, gating: Gating::Softmax, normalize: Some(0.0), scale: 1.0, groups: None };
    for isa in classes() {
        for (threads, rows) in [(1, 1), (2, 1), (2, 6)] {
            let mut dev = cpu(isa, threads, false);
            let mut load = |seed, kind, rows, cols| weight(&mut dev, seed, kind, Format::Q8_0, rows, cols);
            let experts = WeightKind::Experts { count: COUNT };
            let (gate, up) = (load(1, experts, COUNT * 96, DIM), load(2, experts, COUNT * 96, DIM));
            let (down, taps) = (load(3, experts, COUNT * DIM, 96), load(5, WeightKind::Vector, 1, DIM * 3));
            let x = random(&mut dev, 6, rows, DIM);
            let inputs: Vec<_> = (0..8).map(|seed| Rng::new(seed).normal_vec(rows * DIM, 1.0)).collect();
            let logits = dev.alloc(rows, COUNT).unwrap();
            let routes = dev.alloc(rows, 8).unwrap();
            let hidden = dev.alloc(rows * 4, 96).unwrap();
            let out = dev.alloc(rows, DIM).unwrap();
            let (bcu, state) =
                (random(&mut dev, 9, rows, 3 * DIM), buffer(&mut dev, 2 * DIM, &[0.0; 2 * DIM]));
            let shape = DeltaShape {
                key_heads: 1,
                value_heads: 2,
                key_dim: 16,
                value_dim: 16,
                sharing: KeyHeads::Tiled,
            };
            let [qkv, z, beta, decay] = [64, 32, 2, 2].map(|width| random(&mut dev, 10, 20, width));
            let mut vector = |cols| weight(&mut dev, 11, WeightKind::Vector, Format::F32, 1, cols);
            let (rate, bias, norm) = (vector(2), vector(2), vector(16));
            let (state_of_delta, mixed) =
                (random(&mut dev, 12, 1, shape.state()), dev.alloc(20, 32).unwrap());
            let records = dev.alloc(1, 4 * 2 * shape.products().record()).unwrap();
            let memory = Memory { state: state_of_delta, records: Some(records) };
            let mut step = |input: &[f32]| {
                dev.upload(x, 0, input).unwrap();
                dev.upload(logits, 0, &input[..rows * COUNT]).unwrap();
                dev.route(&Route { logits, rows, rule, bias: None, scales: None, chosen: None, out: routes })
                    .unwrap();
                let (top_k, activation) = (4, Activation::Silu);
                dev.experts(&Experts {
                    x,
                    rows,
                    routes,
                    top_k,
                    gate: Some(gate),
                    up,
                    down,
                    biases: None,
                    activation,
                    hidden,
                    out,
                    add: false,
                })
                .unwrap();
                let seqs = [SlotRows::new(0, rows, 5, 0)];
                let (form, unbiased, columns) = (ConvForm::Gated, None, Memory::plain(state));
                dev.short_conv(&ShortConv {
                    form,
                    x: bcu,
                    taps,
                    bias: unbiased,
                    memory: columns,
                    seqs: &seqs,
                    out,
                })
                .unwrap();
                // Row by row and as a chunk.
                for (rows, position, commit) in [
                    (rows, 70, Commit::Now),
                    (20, 0, Commit::Now),
                    (3, 20, Commit::Hold),
                    (1, 22, Commit::Hold),
                ] {
                    let accepted = if position == 22 { 2 } else { 0 };
                    let seqs = &[SlotRows { accepted, commit, ..SlotRows::new(0, rows, position, 0) }];
                    let (out, eps) = (mixed, 1e-6);
                    dev.delta_net(&DeltaNet {
                        shape,
                        qkv,
                        z,
                        beta,
                        decay,
                        rate,
                        bias,
                        norm,
                        eps,
                        memory,
                        seqs,
                        out,
                    })
                    .unwrap();
                }
            };
            // The inputs of the second half choose other experts, in other numbers.
            inputs[..2].iter().for_each(|x| step(x));
            let ((), usage) = measure_process(|| inputs[2..].iter().for_each(|x| step(x)));
            assert_eq!(usage.allocations, 0, "{isa}, {threads} threads, {rows} rows: {usage:?}");
        }
    }
}
