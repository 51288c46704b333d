//! `hob lab`: tools for people who work on hob.

mod eval;
mod kv;
mod synth;

use anyhow::Result;
use hob_engine::{Runtime, RuntimeConfig};
use hob_lab::golden;

use crate::args::{LabArgs, LabTool};
use crate::exit;
use crate::house::House;
use crate::quantize;
use crate::term;
pub use kv::noise;
pub use synth::shapes;

pub fn lab(house: &House, args: &LabArgs) -> Result<i32> {
    match &args.tool {
        LabTool::Golden { dirs } => {
            let runtime =
                Runtime::new(&RuntimeConfig { threads: None, exact: true, ..RuntimeConfig::default() })?;
            let report = golden::run(dirs, &mut **runtime.device());
            term::print(&report.to_string())?;
            Ok(if report.passed() { exit::OK } else { exit::FAILED })
        }
        LabTool::Synth(args) => synth::synth(house, args),
        LabTool::Dither(args) => quantize::dither(house, args),
        LabTool::Ppl(args) => eval::ppl(house, args),
        LabTool::Kl(args) => eval::kl(house, args),
        LabTool::Kv(args) => kv::kv(house, args),
        LabTool::Needle(args) => kv::needle(house, args),
    }
}
