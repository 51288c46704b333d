//! A decode step allocates nothing once it is warm. Alone in its file: the counter counts the whole process.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::{Compute, Pick, Picked, Placed, Token};
use hob_files::ModelFile;
use hob_model::{Layout, Placement, Row};
use hob_quant::Format;
use hob_testkit::alloc::{CountingAllocator, measure_process};
use hob_testkit::tiny::TinySpec;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn decode_steps_allocate_nothing_after_warm_up() {
    let tiny = gguf(&TinySpec::llama(), Format::Q4_1);
    let plain = || -> (Box<dyn Compute>, Placement) { (Box::new(cpu(2, false)), Placement::default()) };
    steps_allocate_nothing(&tiny.file, plain());
    // On two devices: rows cross in both directions, the ids come back for the table.
    let two: Vec<Box<dyn Compute>> = vec![Box::new(cpu(1, false)), Box::new(cpu(1, false))];
    let split = Placement { layers: vec![1, 0], head: 1, ..Placement::default() };
    steps_allocate_nothing(&tiny.file, (Box::new(Placed::new(two).expect("two devices")), split));
    // Norms of heads, windows, sandwiched branches, two rotary tables, capped logits.
    for name in ["gemma2", "gemma3"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        steps_allocate_nothing(&Arc::new(ModelFile::open(&dir).expect("a folder")), plain());
    }
}

fn steps_allocate_nothing(file: &Arc<ModelFile>, (mut dev, placement): (Box<dyn Compute>, Placement)) {
    let dev = dev.as_mut();
    let layout = Layout { placement, ..layout(600, 2, 64) };
    let mut model = hob_model::Model::load(file.clone(), dev, &layout, &mut |_, _| ()).expect("a model");
    let ids = [0, 1].map(|_| model.new_sequence().expect("a free sequence"));
    let mut batch = hob_model::Batch::default();
    let mut picked = Picked::default();
    let mut next = [5u32, 6];
    // Both sequences in every batch.
    let mut decode = |model: &mut hob_model::Model, from: u32, to: u32| {
        for position in from..to {
            batch.rows.clear();
            for (&sequence, &token) in ids.iter().zip(&next) {
                batch.rows.push(Row {
                    sequence,
                    position,
                    token: Token::Host(token),
                    logits: true,
                    draft: false,
                });
            }
            let rows = model.step(dev, &batch).expect("a step");
            dev.pick(&Pick { logits: model.logits(), rows, k: 1, draws: &[] }).expect("a pick");
            let ticket = dev.submit().expect("a ticket");
            dev.picked(ticket, &mut picked).expect("results");
            next.copy_from_slice(&picked.tokens);
        }
    };
    // Warm: the device has seen the largest shape, three pages. Then anew, to draw pages, and to release those behind
    // windows, while counting.
    decode(&mut model, 0, 520);
    ids.iter().for_each(|&id| model.truncate(id, 0).expect("it is longer"));
    let ((), usage) = measure_process(|| decode(&mut model, 0, 300));
    assert_eq!((usage.allocations, usage.bytes), (0, 0));
}
