//! A decode step on a GPU makes nothing on the device and does not grow the heap. Alone in its file: the counter counts
//! the whole process.

mod common;

use common::*;
use hob_compute::{Compute, Pick, Picked, Token};
use hob_gpu::{Gpu, GpuConfig};
use hob_model::{Batch, Model, Row};
use hob_quant::Format;
use hob_testkit::alloc::{CountingAllocator, measure_process};
use hob_testkit::tiny::TinySpec;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_rehearsed_model_makes_nothing_on_the_device_and_steps_do_not_grow_the_heap() {
    let Some(adapter) = hob_gpu::test_adapter() else {
        return;
    };
    let mut dev = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() }).expect("the adapter opens");
    let tiny = gguf(&TinySpec::llama(), Format::Q4_1);
    let layout = layout(600, 2, 64);
    let mut model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
    let ids = [0, 1].map(|_| model.new_sequence().expect("a free sequence"));
    let (mut batch, mut picked, mut next) = (Batch::default(), Picked::default(), [5u32, 6]);
    let mut step = |dev: &mut Gpu, model: &mut Model, rows: u32| {
        batch.rows.clear();
        for (&sequence, &token) in ids.iter().zip(&next) {
            if model.seq_len(sequence).expect("it lives") as u32 + rows > 600 {
                model.truncate(sequence, 0).expect("always possible");
            }
            let at = model.seq_len(sequence).expect("it lives") as u32;
            batch.rows.extend((at..at + rows).map(|position| Row {
                sequence,
                position,
                token: Token::Host(token),
                logits: position + 1 == at + rows,
                draft: false,
            }));
        }
        let rows = model.step(dev, &batch).expect("a step");
        dev.pick(&Pick { logits: model.logits(), rows, k: 1, draws: &[] }).expect("a pick");
        let ticket = dev.submit().expect("a ticket");
        dev.picked(ticket, &mut picked).expect("results");
        next.copy_from_slice(&picked.tokens);
    };
    // The first step after loading, of any shape, finds all made but its read-back.
    let before = dev.counters();
    for rows in [1, 20, 32, 3] {
        step(&mut dev, &mut model, rows);
    }
    let after = dev.counters();
    assert_eq!((after.kernels, after.groups), (before.kernels, before.groups));
    assert!(after.buffers <= before.buffers + 1, "{before:?} {after:?}");
    (0..100).for_each(|_| step(&mut dev, &mut model, 1));
    let warm = dev.counters();
    // A software adapter takes milliseconds per step.
    let steps = if dev.facts().software { 500 } else { 10_000 };
    let ((), usage) = measure_process(|| (0..steps).for_each(|_| step(&mut dev, &mut model, 1)));
    let end = dev.counters();
    assert_eq!((end.kernels, end.groups, end.buffers), (warm.kernels, warm.groups, warm.buffers));
    // wgpu's own work memory comes and goes within a step.
    println!("the heap grew by at most {} bytes", usage.peak_bytes);
    assert!(usage.peak_bytes < 256 << 10, "the heap grew by {} bytes", usage.peak_bytes);
}
