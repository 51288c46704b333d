//! Measures the gated delta rule (Qwen3.5-35B-A3B's shape) or the selective state space (Nemotron 3 Nano's): a prompt in one
//! call per layer, and token by token through all layers as decoding goes, so that every state comes from memory.
//!
//! `cargo run --release -p hob-cpu --example recurrent delta|ssm [threads [layers [prompt]]]`

#[path = "../../hob-compute/tests/common/floats.rs"]
mod floats;
#[path = "../../hob-compute/tests/common/layers.rs"]
mod layers;

use floats::vector;
use std::time::Instant;

use hob_compute::SlotRows;
use hob_cpu::{Cpu, CpuConfig};
use layers::{Layers, Rule};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let rule: Rule = args.next().ok_or("expected delta or ssm")?.parse()?;
    let numbers = args.map(|n| n.parse()).collect::<Result<Vec<usize>, _>>()?;
    let [threads, layers, prompt] = [0, rule.layers(), 4096].map({
        let mut given = numbers.into_iter();
        move |usual| given.next().unwrap_or(usual)
    });
    let mut dev = Cpu::new(&CpuConfig { threads, ..CpuConfig::default() })?;
    let bench = Layers::new(&mut dev, rule, [layers, 1, prompt])?;
    let mut run = |layer, rows, position| bench.run(&mut dev, layer, &[SlotRows::new(0, rows, position, 0)]);
    for layers in [1, layers] {
        // The least of some repetitions: others may be at work here.
        let mut best = [f64::INFINITY; 2];
        for _ in 0..5 {
            let start = Instant::now();
            (0..layers.min(4)).try_for_each(|layer| run(layer, prompt, 0))?;
            best[0] = best[0].min(start.elapsed().as_secs_f64() / (layers.min(4) * prompt) as f64);
            let (start, tokens) = (Instant::now(), 128.max(600 / layers));
            for at in 0..tokens {
                (0..layers).try_for_each(|layer| run(layer, 1, prompt + at))?;
            }
            best[1] = best[1].min(start.elapsed().as_secs_f64() / (layers * tokens) as f64);
        }
        let [chunked, recurrent] = best.map(|s| s * 1e6);
        let traffic = 2.0 * 4.0 * rule.state() as f64 / recurrent / 1e3;
        println!(
            "{layers} layers: {chunked:.1} us a token and layer in one go, {recurrent:.1} one by one ({:.1}x; {traffic:.1} GB/s of state)",
            recurrent / chunked
        );
    }
    Ok(())
}
