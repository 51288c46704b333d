//! `hob lab synth`: a description to a file, with a bar and a Ctrl-C that leaves nothing behind.

use std::time::Instant;

use anyhow::Result;
use hob_lab::synth::{self, Attention, Synth, SynthError};
use hob_plan::units::show_bytes;

use crate::args::SynthArgs;
use crate::exit::{self, UsageError};
use crate::house::House;
use crate::term::{self, LateBar, Unit};

pub fn synth(house: &House, args: &SynthArgs) -> Result<i32> {
    if args.what == "help" {
        term::print(&shapes())?;
        return Ok(exit::OK);
    }
    let Some(path) = &args.output else {
        return Err(UsageError(format!("no file to write {} to: add -o FILE.gguf", args.what)).into());
    };
    let synth = describe(args).map_err(|e| UsageError(e.to_string()))?;
    let graceful = house.interrupt.graceful();
    let start = Instant::now();
    let mut bar = LateBar::new("writing", Unit::Bytes);
    let written = synth.write(path, &mut |done, total| bar.set(done, total), &graceful.flag());
    bar.clear();
    let bytes = written?;
    let (size, seconds) = (show_bytes(bytes), start.elapsed().as_secs_f64());
    let weights = synth.parameters() as f64 / 1e6;
    term::note(&format!("{}: {weights:.1} M weights, {size} in {seconds:.1} s", synth.description()));
    term::print(&format!("{}\n", path.display()))?;
    Ok(exit::OK)
}

fn describe(args: &SynthArgs) -> Result<Synth, SynthError> {
    let mut synth = Synth::parse(&args.what)?;
    if let Some(layers) = args.layers {
        synth = synth.with_layers(layers)?;
    }
    if let Some(seed) = args.seed {
        synth = synth.with_seed(seed);
    }
    if let Some(gain) = args.qk_gain {
        synth = synth.with_qk_gain(gain)?;
    }
    Ok(synth)
}

/// Every shape and type that can be synthesised.
pub fn shapes() -> String {
    let mut out =
        String::from("SHAPE:TYPE, or SHAPE:TYPE:HEADTYPE with another type for embedding and head\nshapes\n");
    for shape in synth::SHAPES {
        let mut parts = Vec::new();
        if let Some(experts) = shape.experts {
            parts.push(format!("{} of {} experts of {}", experts.top_k, experts.count, experts.ffn));
        } else if shape.ffn > 0 {
            parts.push(format!("ffn {}", shape.ffn));
        }
        if shape.heads > 0 {
            parts.push(format!("heads {}/{} of {}", shape.heads, shape.kv_heads, shape.head_dim));
        }
        if let Some(ssm) = shape.ssm {
            parts.push(format!("{} state space heads of {} x {}", ssm.heads, ssm.head_dim, ssm.state_dim));
        }
        if shape.ssm.is_some() || shape.attention != Attention::Every {
            let attend = (0..shape.layers).filter(|&i| shape.attends(i)).count();
            parts.push(format!("attention in {attend} layers"));
        }
        parts.push(format!("vocabulary {}", shape.vocab));
        let (name, layers, dim) = (shape.name, shape.layers, shape.dim);
        out.push_str(&format!("  {name:<16} {layers:>3} layers of {dim:>4}, {}\n", parts.join(", ")));
    }
    let types: Vec<String> = synth::formats().map(|f| f.name().to_ascii_lowercase()).collect();
    out.push_str(&format!("types\n  {}\n", types.join(" ")));
    let mixes: Vec<&str> = synth::mixes().collect();
    out.push_str(&format!("mixes (as llama.cpp quantizes; moe_: only the experts)\n  {}\n", mixes.join(" ")));
    out
}
