//! `hob cache`: KV of earlier conversations on disk, listed, trimmed, verified and removed. Works without a model.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use hob_model::disk::{Chain, DiskConfig, DiskStore, Report, Stats};
use hob_plan::DiskPlan;
use hob_plan::units::{show_bytes, show_count};
use serde_json::{Value, json};

use crate::args::{CacheArgs, CacheTool, DiskArgs};
use crate::exit;
use crate::house::House;
use crate::sessions::age;
use crate::term;

/// Chains that a list shows; the others are counted.
const SHOWN: usize = 20;

pub fn cache(house: &House, args: &CacheArgs) -> Result<i32> {
    let plan = house.disk(&DiskArgs { cache_dir: args.cache_dir.clone(), cache_disk: None });
    // Looking makes no folder.
    let store = plan.dir.is_dir().then(|| DiskStore::open(&config(&plan))).transpose()?;
    let (text, value, code) = match args.tool.clone().unwrap_or(CacheTool::List) {
        CacheTool::List => list(&plan, store.as_ref()),
        CacheTool::Trim { to } => {
            let room = plan.free_bytes.unwrap_or(0).saturating_add(plan.used_bytes);
            trim(&plan.dir, store.as_ref(), to.map_or(plan.bytes, |size| size.of(room)))?
        }
        CacheTool::Clear => trim(&plan.dir, store.as_ref(), 0)?,
        CacheTool::Verify => verify(&plan.dir, store.as_ref())?,
    };
    term::print(&if args.json { format!("{value:#}\n") } else { text })?;
    Ok(code)
}

/// What is there is never too much to be looked at.
fn config(plan: &DiskPlan) -> DiskConfig {
    DiskConfig {
        dir: plan.dir.clone(),
        budget_bytes: plan.bytes.max(plan.used_bytes),
        daily_write_bytes: plan.daily_write_bytes,
        snapshot_budget_bytes: plan.bytes.max(plan.used_bytes),
    }
}

type Told = (String, Value, i32);

fn list(plan: &DiskPlan, store: Option<&DiskStore>) -> Told {
    let (chains, stats) = store.map(|s| (s.list(), s.stats())).unwrap_or_default();
    let mut out = format!("{}\n", plan.line());
    if chains.is_empty() {
        out.push_str("nothing is stored yet\n");
    } else {
        let _ = writeln!(
            out,
            "{} conversation{} in {} pieces and {} snapshots; {} written today",
            show_count(chains.len() as u64),
            if chains.len() == 1 { "" } else { "s" },
            show_count(stats.fragments as u64),
            show_count(stats.snapshots as u64),
            show_bytes(stats.written_today)
        );
        let _ = writeln!(out, "  {:>9} {:>10} {:>10} {:>6}  last used", "tokens", "bytes", "alone", "reads");
        for chain in chains.iter().take(SHOWN) {
            let _ = writeln!(
                out,
                "  {:>9} {:>10} {:>10} {:>6}  {}",
                show_count(chain.tokens as u64),
                show_bytes(chain.bytes),
                show_bytes(chain.own_bytes),
                chain.hits,
                age(chain.age_seconds)
            );
        }
        if chains.len() > SHOWN {
            let _ = writeln!(out, "  and {} older ones (--json has all)", chains.len() - SHOWN);
        }
    }
    let value = json!({
        "disk": plan, "chains": chains.iter().map(chain_json).collect::<Vec<_>>(), "stats": stats_json(&stats),
    });
    (out, value, exit::OK)
}

fn trim(dir: &Path, store: Option<&DiskStore>, to: u64) -> Result<Told> {
    let done = store.map(|s| s.trim(to)).transpose()?.unwrap_or_default();
    let (before, after) = (show_bytes(done.before_bytes), show_bytes(done.after_bytes));
    let text = match (done.before_bytes, done.before_bytes == done.after_bytes) {
        (0, _) => format!("nothing is stored in {}\n", dir.display()),
        (_, true) => format!("{before} in {}: nothing had to go\n", dir.display()),
        _ => {
            format!("{before} -> {after} in {}, {} pieces removed\n", dir.display(), show_count(done.records))
        }
    };
    let value = json!({
        "dir": dir, "before_bytes": done.before_bytes, "after_bytes": done.after_bytes, "records": done.records,
    });
    Ok((text, value, exit::OK))
}

/// Damage is told and forgotten, and is no success: a script wants to know.
fn verify(dir: &Path, store: Option<&DiskStore>) -> Result<Told> {
    let bar = term::spinner("reading everything");
    // What was damaged is forgotten for good by the flush.
    let found = store.map(|s| s.verify().and_then(|report| s.flush().map(|()| report))).transpose();
    bar.finish_and_clear();
    let report: Report = found?.unwrap_or_default();
    let mut out = if report.fragments + report.snapshots + report.bad_count == 0 {
        format!("nothing is stored in {}\n", dir.display())
    } else {
        format!(
            "{} pieces and {} snapshots, {} in {}: {}\n",
            show_count(report.fragments as u64),
            show_count(report.snapshots as u64),
            show_bytes(report.bytes),
            dir.display(),
            match report.bad_count {
                0 => "intact".to_string(),
                n => format!("{} more are damaged", show_count(n as u64)),
            }
        )
    };
    for bad in &report.bad {
        let _ = writeln!(out, "  {} at byte {}: {}", bad.file.display(), bad.offset, bad.problem);
    }
    if report.bad_count > report.bad.len() {
        let _ = writeln!(out, "  and {} more", report.bad_count - report.bad.len());
    }
    if report.bad_count > 0 {
        out.push_str("what was damaged is forgotten; it is computed anew when it is needed\n");
    }
    if report.orphans > 0 {
        let _ = writeln!(out, "{} intact pieces have lost their beginning and wait for it", report.orphans);
    }
    if report.foreign_files > 0 {
        let _ = writeln!(out, "{} other files in that folder are left alone", report.foreign_files);
    }
    let bad = |b: &hob_model::disk::Bad| json!({ "file": b.file, "offset": b.offset, "problem": b.problem });
    let value = json!({
        "dir": dir, "fragments": report.fragments, "snapshots": report.snapshots, "bytes": report.bytes,
        "bad_count": report.bad_count, "bad": report.bad.iter().map(bad).collect::<Vec<_>>(),
        "orphans": report.orphans, "foreign_files": report.foreign_files,
    });
    let code = if report.bad_count == 0 { exit::OK } else { exit::FAILED };
    Ok((out, value, code))
}

fn chain_json(chain: &Chain) -> Value {
    json!({
        "tokens": chain.tokens, "bytes": chain.bytes, "own_bytes": chain.own_bytes, "snapshots": chain.snapshots,
        "age_seconds": chain.age_seconds, "reads": chain.hits, "first_tokens": chain.first_tokens,
    })
}

fn stats_json(stats: &Stats) -> Value {
    json!({
        "fragments": stats.fragments, "snapshots": stats.snapshots, "bytes": stats.bytes,
        "live_bytes": stats.live_bytes, "snapshot_bytes": stats.snapshot_bytes, "segments": stats.segments,
        "written_today_bytes": stats.written_today,
    })
}
