//! What a stream promises: order, read-backs that do not wait for each other, nothing made in the steady state.

use super::*;
use crate::context::Context;

const ADD: &str = "
struct At { first: u32, count: u32 }
var<immediate> at: At;
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@group(0) @binding(1) var<storage, read> words: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < at.count { y[id.x] += words[at.first + id.x]; }
}
";

fn stream() -> Option<Stream> {
    let adapter = crate::test_adapter()?;
    Some(Stream::new(Context::open(adapter, "").expect("the adapter opens")).expect("room"))
}

fn add(stream: &mut Stream, y: BufferId, words: &[u32]) {
    let key = KernelKey { name: "add", params: [0; 8] };
    let source = || Source { wgsl: ADD.into(), bindings: vec![Access::Write, Access::Read] };
    let kernel = stream.kernel(key, source).unwrap();
    let from = stream.arguments(words).unwrap();
    let call = Call {
        kernel,
        bindings: &[y, stream.argument_buffer()],
        immediates: &[from, words.len() as u32],
        groups: [words.len().div_ceil(64) as u32, 1, 1],
        verb: "map",
        bytes: 12 * words.len() as u64,
    };
    stream.dispatch(&call).unwrap();
}

fn words(stream: &mut Stream, from: BufferId, count: usize) -> Vec<u32> {
    let mut out = vec![0u32; count];
    stream.read(from, 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

#[test]
fn writes_dispatches_copies_and_reads_happen_in_the_order_of_the_calls() {
    let Some(mut s) = stream() else { return };
    let (y, z) = (s.buffer("y", 4 * 100).unwrap(), s.buffer("z", 4 * 100).unwrap());
    assert_eq!(words(&mut s, y, 100), [0; 100], "a new buffer is zero");
    // More writes than staging slots, without a read between them.
    for round in 0..50u32 {
        s.write(y, 4 * u64::from(round), bytemuck::bytes_of(&(1000 + round))).unwrap();
        add(&mut s, y, &[round; 100]);
    }
    s.copy((y, 0), (z, 0), 400).unwrap();
    s.write(y, 0, bytemuck::cast_slice(&[7u32; 100])).unwrap();
    let expected: Vec<u32> = (0..100u32)
        // Position i was set in round i and had the rounds from i on added; others have all rounds.
        .map(|i| if i < 50 { 1000 + i + (i..50).sum::<u32>() } else { (0..50).sum() })
        .collect();
    assert_eq!(words(&mut s, z, 100), expected);
    assert_eq!(words(&mut s, y, 100), [7; 100]);
}

#[test]
fn arguments_outlive_an_arena_that_runs_full() {
    let Some(mut s) = stream() else { return };
    let count = ARGUMENT_WORDS / 3 + 5;
    let y = s.buffer("y", 4 * count as u64).unwrap();
    for round in 1..=7u32 {
        let all: Vec<u32> = (0..count as u32).map(|i| i * round).collect();
        add(&mut s, y, &all);
    }
    let expected: Vec<u32> = (0..count as u32).map(|i| i * 28).collect();
    assert_eq!(words(&mut s, y, count), expected);
    assert!(s.arguments(&vec![0; ARGUMENT_WORDS + 1]).is_err());
}

#[test]
fn writes_in_the_arena_and_beside_it_keep_their_place_among_dispatches() {
    let Some(mut s) = stream() else { return };
    let tiny = TINY / 4;
    let y = s.buffer("y", 4 * (tiny as u64 + 1)).unwrap();
    // Many times the arena.
    for round in 1..=40u32 {
        let count = if round % 3 == 0 { tiny + 1 } else { tiny };
        s.write(y, 0, bytemuck::cast_slice(&vec![1000 * round; count])).unwrap();
        add(&mut s, y, &vec![round; tiny]);
        s.write(y, 4, &[]).unwrap();
    }
    let mut expected = vec![1000 * 40 + 40; tiny];
    expected.push(1000 * 39);
    assert_eq!(words(&mut s, y, tiny + 1), expected);
}

#[test]
fn long_writes_and_reads_pass_in_pieces() {
    let Some(mut s) = stream() else { return };
    let count = (LONG.1 / 4) * 5 + 12;
    let y = s.buffer("y", 4 * count as u64).unwrap();
    let all: Vec<u32> = (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    s.write(y, 0, bytemuck::cast_slice(&all)).unwrap();
    assert_eq!(words(&mut s, y, count), all);
}

#[test]
fn sixteen_fetches_are_open_at_once_and_give_their_own_moment() {
    let Some(mut s) = stream() else { return };
    let y = s.buffer("y", 400).unwrap();
    for repeat in 0..3 {
        s.write(y, 0, &[0; 400]).unwrap();
        let mut open = Vec::new();
        for round in 1..=16u32 {
            add(&mut s, y, &[1; 100]);
            open.push((round, s.fetch(y, 0, 400).unwrap()));
        }
        let made = s.counters().buffers;
        // Out of order, and some never.
        for (round, fetch) in open.into_iter().rev() {
            if round % 5 == 0 {
                s.forget(fetch);
                continue;
            }
            let mut out = [0u32; 100];
            s.wait(fetch, bytemuck::cast_slice_mut(&mut out)).unwrap();
            assert_eq!(out, [round; 100], "repeat {repeat}");
        }
        assert_eq!(s.counters().buffers, made);
    }
}

#[test]
fn a_steady_state_makes_nothing_on_the_device() {
    let Some(mut s) = stream() else { return };
    let y = s.buffer("y", 400).unwrap();
    let step = |s: &mut Stream| {
        for _ in 0..SUBMIT_EVERY + 10 {
            add(s, y, &[3; 100]);
        }
        let fetch = s.fetch(y, 0, 400).unwrap();
        s.wait(fetch, &mut [0; 400]).unwrap();
    };
    step(&mut s);
    let before = s.counters();
    (0..20).for_each(|_| step(&mut s));
    let after = s.counters();
    assert_eq!((after.kernels, after.buffers, after.groups), (before.kernels, before.buffers, before.groups));
    assert_eq!(after.dispatches - before.dispatches, 20 * (SUBMIT_EVERY as u64 + 10));
    // Of 24 dispatches, and what remains.
    assert_eq!(after.submits - before.submits, 20 * 5);
}

#[test]
fn a_kernel_that_does_not_compile_says_which_and_the_stream_goes_on() {
    let Some(mut s) = stream() else { return };
    let key = KernelKey { name: "broken", params: [1, 2, 3, 4, 5, 6, 7, 8] };
    let source = || Source { wgsl: "fn main() { let x: u32 = 1.5; }".into(), bindings: vec![] };
    let error = s.kernel(key, source).unwrap_err().to_string();
    assert!(error.contains("broken [1, 2, 3, 4, 5, 6, 7, 8]"), "{error}");
    let y = s.buffer("y", 400).unwrap();
    add(&mut s, y, &[1; 100]);
    assert_eq!(words(&mut s, y, 100), [1; 100]);
}

#[test]
fn a_rehearsed_dispatch_runs_nothing() {
    let Some(mut s) = stream() else { return };
    let y = s.buffer("y", 400).unwrap();
    s.rehearsing = true;
    add(&mut s, y, &[5; 100]);
    s.rehearsing = false;
    let before = s.counters();
    assert_eq!(words(&mut s, y, 100), [0; 100]);
    add(&mut s, y, &[5; 100]);
    assert_eq!(words(&mut s, y, 100), [5; 100]);
    assert_eq!((s.counters().kernels, s.counters().groups), (before.kernels, before.groups));
}

#[test]
fn a_profiled_stream_gives_a_span_per_dispatch_in_order() {
    let Some(mut s) = stream() else { return };
    if !s.context.tier().timestamps {
        println!("skipped: this adapter has no timestamps");
        return;
    }
    let (y, mut spans) = (s.buffer("y", 400).unwrap(), Vec::new());
    add(&mut s, y, &[1; 100]);
    let started = hob_compute::now_nanos();
    assert!(s.profile(true));
    let count = SUBMIT_EVERY * 40 + 7;
    for i in 0..count {
        add(&mut s, y, &[1; 100]);
        // Some are taken on the way, and more are under way than read-backs may be.
        if i == SUBMIT_EVERY * 3 + 1 {
            s.take_spans(&mut spans);
            assert_eq!(spans.len(), SUBMIT_EVERY * 3);
        }
    }
    s.flush().unwrap();
    s.take_spans(&mut spans);
    let ended = hob_compute::now_nanos();
    assert_eq!(spans.len(), count);
    assert!(spans.iter().all(|s| s.verb == "map" && s.detail == "add" && s.bytes == 1200));
    assert!(spans.is_sorted_by_key(|s| s.start_nanos));
    // The device's clock was set by the host's to within the time of a round trip.
    let slack = (ended - started) / 2 + 1_000_000;
    assert!(spans[0].start_nanos + slack > started && spans[count - 1].start_nanos < ended + slack);
    assert!(!s.profile(false));
    add(&mut s, y, &[1; 100]);
    s.take_spans(&mut spans);
    assert_eq!(spans.len(), count);
    assert_eq!(words(&mut s, y, 100), [count as u32 + 2; 100]);
}
