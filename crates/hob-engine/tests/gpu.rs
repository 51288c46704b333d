//! An engine on a GPU: tokens that are drawn there, one batch ahead. Without an adapter every test says 'skipped'.

mod common;

use common::*;
use hob_compute::Compute;
use hob_engine::*;
use hob_gpu::{Gpu, GpuConfig};
use hob_model::ModelInfo;

/// The software adapter where there is one, unless `HOB_TEST_ADAPTER` names another by its index.
fn gpu() -> Option<Box<dyn Compute>> {
    let adapter = hob_gpu::test_adapter()?;
    let config = GpuConfig { adapter, ..GpuConfig::default() };
    Some(Box::new(Gpu::open(&config).expect("the adapter opens")))
}

/// Greedy, drawn with every stage, and from whole rows on the host.
fn asked() -> Vec<Request> {
    let drawn =
        Sampling { seed: Some(3), temperature: 1.3, typical_p: 0.9, top_k: 100, ..Sampling::default() };
    vec![
        greedy(prompt(1, 50), 24),
        request(prompt(2, 9), drawn, 24),
        request(prompt(3, 20), whole_rows(), 12),
    ]
}

/// Drawn a batch ahead on the device, tokens are those that are waited for, one by one; sessions go on as ever.
#[test]
fn tokens_drawn_ahead_on_the_device_are_those_that_are_waited_for() {
    let tiny = Tiny::new();
    let vocab = ModelInfo::read(&tiny.file).unwrap().config.vocab;
    let (Some(ahead), Some(waiting)) = (gpu(), gpu()) else { return };
    assert!(ahead.info().asynchronous);
    let waiting = Watched::around(waiting, vocab, false);
    let runtimes = [ahead, Box::new(waiting)].map(Runtime::with_device);
    let replies = runtimes.map(|runtime| {
        let mut engine = tiny.engine_on(&runtime, layout(1, 32));
        let mut session = engine.session().unwrap();
        let mut replies = Vec::new();
        for first in asked() {
            let mut turn = first;
            for _ in 0..2 {
                let out = generate(&mut engine, &mut session, &turn).unwrap();
                replies.push((out.tokens, out.figures.reused_tokens));
                let more = [session.tokens(), &prompt(7, 3)].concat();
                turn.prompt = Prompt::tokens(more);
            }
        }
        replies
    });
    assert_eq!(replies[0], replies[1]);
}

/// In company, every reply is complete, and a cancelled one does not disturb the others.
#[test]
fn company_on_a_gpu_ends_as_it_should() {
    let Some(device) = gpu() else { return };
    let tiny = Tiny::new();
    let mut engine = tiny.engine_on(&Runtime::with_device(device), layout(4, 32));
    let ids: Vec<JobId> = asked().iter().map(|r| submit(&mut engine, r)).collect();
    let cancel = Cancel::new();
    let session = engine.session().unwrap();
    engine.submit(session, &greedy(prompt(5, 70), 100), &cancel).map_err(|r| r.error).unwrap();
    for _ in 0..6 {
        engine.step(&mut |_, _| {});
    }
    cancel.cancel();
    let mut lengths = Vec::new();
    while engine.active() > 0 {
        engine.step(&mut |id, event| {
            if let Event::Done(end) = event
                && ids.contains(&id)
            {
                let out = end.result.unwrap();
                assert_eq!(out.finish, Finish::Length);
                lengths.push(out.tokens.len());
            }
        });
    }
    lengths.sort_unstable();
    assert_eq!(lengths, [12, 24, 24]);
}
