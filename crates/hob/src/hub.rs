//! `hob pull`, `hob list`, `hob rm`: the hub's verbs, printed.

use anyhow::Result;
use hob_hub::{CATALOGUE, HubError, Resolved};
use hob_plan::units::show_bytes;

use crate::args::{ListArgs, PullArgs, RmArgs};
use crate::exit;
use crate::house::House;
use crate::term;

/// Prints the path of the model, so that scripts can use it.
pub fn pull(house: &House, args: &PullArgs) -> Result<i32> {
    let path = match house.hub.resolve(&args.name)? {
        Resolved::Local(local) => {
            term::note(&format!("{} is here already ({})", local.name, local.origin));
            local.path
        }
        Resolved::Download(entry) => house.pull(entry)?,
        Resolved::Hub(place) => house.pull_from_hub(&place)?,
    };
    term::print(&format!("{}\n", path.display()))?;
    Ok(exit::OK)
}

pub fn list(house: &House, args: &ListArgs) -> Result<i32> {
    let here = house.hub.list();
    let missing: Vec<_> = CATALOGUE.iter().filter(|e| !here.iter().any(|l| l.name == e.name)).collect();
    if args.json {
        let available: Vec<_> = missing
            .iter()
            .map(|e| {
                serde_json::json!({
                    "name": e.name, "aliases": e.aliases, "bytes": e.bytes(), "license": e.license,
                    "description": e.description,
                })
            })
            .collect();
        let all = serde_json::json!({ "here": here, "available": available });
        term::print(&format!("{all:#}\n"))?;
        return Ok(exit::OK);
    }
    let mut out = String::new();
    let width =
        here.iter().map(|l| l.name.len()).chain(CATALOGUE.iter().map(|e| e.name.len())).max().unwrap_or(0);
    if here.is_empty() {
        out.push_str("no models on this disk yet\n");
    } else {
        out.push_str("on this disk\n");
    }
    for local in &here {
        let (size, origin) = (show_bytes(local.bytes), local.origin.to_string());
        out.push_str(&format!("  {:width$}  {size:>9}  {origin:<10} {}\n", local.name, local.path.display()));
    }
    if !missing.is_empty() {
        out.push_str("can be pulled\n");
    }
    for entry in missing {
        let size = show_bytes(entry.bytes());
        out.push_str(&format!(
            "  {:width$}  {size:>9}  {} ({})\n",
            entry.name, entry.description, entry.license
        ));
    }
    term::print(&out)?;
    Ok(exit::OK)
}

/// Removes each; the first that cannot be removed ends with its error, after the others before it are gone.
pub fn remove(house: &House, args: &RmArgs) -> Result<i32, anyhow::Error> {
    for name in &args.names {
        let bytes = house.hub.remove(name).map_err(|e: HubError| anyhow::Error::from(e))?;
        term::note(&format!("removed {name} ({})", show_bytes(bytes)));
    }
    Ok(exit::OK)
}
