//! `hob lab`: tools for people who work on hob.

use anyhow::Result;
use hob_engine::{Runtime, RuntimeConfig};
use hob_lab::golden;

use crate::args::{LabArgs, LabTool};
use crate::exit;
use crate::term;

pub fn lab(args: &LabArgs) -> Result<i32> {
    match &args.tool {
        LabTool::Golden { dirs } => {
            let runtime = Runtime::new(&RuntimeConfig { threads: None, exact: true })?;
            let report = golden::run(dirs, &mut **runtime.device());
            term::print(&report.to_string())?;
            Ok(if report.passed() { exit::OK } else { exit::FAILED })
        }
    }
}
