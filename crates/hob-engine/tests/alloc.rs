//! A decode step allocates nothing after warm-up. One test only: the counters are the process's.

mod common;

use common::*;
use hob_engine::*;
use hob_testkit::alloc::{CountingAllocator, measure_process};
use hob_testkit::tiny::TinySpec;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_decode_step_allocates_nothing() {
    for asynchronous in [false, true] {
        let tiny = Tiny::new();
        let device = Watched::device(TinySpec::llama().vocab, asynchronous);
        check(tiny.engine_on(&Runtime::with_device(Box::new(device)), layout(2, 32)), asynchronous);
    }
}

fn check(mut engine: Engine, asynchronous: bool) {
    for chain in [
        Sampling::greedy(),
        Sampling { seed: Some(1), ..Sampling::default() },
        Sampling { seed: Some(1), top_k: 0, repeat_penalty: 1.1, ..Sampling::default() },
    ] {
        let mut asked = request(prompt(1, 20), chain.clone(), 150);
        asked.stop = vec!["a stop string that does not come".into()];
        let ids =
            [submit(&mut engine, &asked), submit(&mut engine, &request(prompt(2, 3), chain.clone(), 150))];
        let mut chars = 0;
        for _ in 0..8 {
            engine.step(&mut |_, _| {});
        }
        let (_, usage) = measure_process(|| {
            for _ in 0..100 {
                engine.step(&mut |_, event| {
                    if let Event::Text(text) = event {
                        chars += text.len();
                    }
                });
            }
        });
        assert_eq!(usage.allocations, 0, "{chain:?}, asynchronous {asynchronous}: {usage:?}");
        assert!(chars > 0, "text was emitted meanwhile");
        assert_eq!(engine.active(), 2, "both were decoding all along");
        run_all(&mut engine, &ids);
    }
}
