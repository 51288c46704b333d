//! `hob plan`, and `hob` without arguments: this machine, and what a model would take and reach on it.

use anyhow::Result;
use hob_hub::Resolved;
use hob_lab::synth::Synth;
use hob_plan::{History, Machine, Plan, Subject, Wish};

use crate::args::{DEFAULT_MODEL, GpuArgs, PlanArgs};
use crate::exit::{self, UsageError};
use crate::house::{CHAT_CONVERSATIONS, House, Opened, wish};
use crate::term;

/// Prints the machine and, for a model, its plan. A plan that does not fit is shown too, and is exit code 4.
pub fn plan(house: &House, args: &PlanArgs) -> Result<i32> {
    if args.synth.as_deref() == Some("help") {
        term::print(&crate::lab::shapes())?;
        return Ok(exit::OK);
    }
    let planned = Planned::find(house, args)?;
    if args.refresh {
        term::note("measuring this machine's memory bandwidth");
    }
    let machine = house.machine_with(&args.gpu, args.refresh);
    // Nothing is loaded: memory that is not here may be planned for.
    let wish = Wish { on_paper: true, conversations: CHAT_CONVERSATIONS, ..wish(&args.layout, &args.gpu) };
    let plan = planned.map(|p| p.plan(house, &machine, &wish, args)).transpose()?;
    if args.json {
        let all = serde_json::json!({ "machine": machine, "plan": plan });
        term::print(&format!("{all:#}\n"))?;
    } else {
        let mut out = format!("machine\n{}", machine.table());
        match &plan {
            Some(plan) => out.push_str(&text(plan, args)),
            None => {
                out.push_str(
                    "What a model would take and reach here: hob plan MODEL (hob list shows names)\n",
                );
                out.push_str(&machine.notes.iter().map(|n| format!("note: {n}\n")).collect::<String>());
            }
        }
        term::print(&out)?;
    }
    match plan.map(|p| p.accept().map(|_| ())) {
        Some(Err(refusal)) => {
            term::error(&refusal.to_string());
            Ok(exit::DOES_NOT_FIT)
        }
        _ => Ok(exit::OK),
    }
}

/// What a plan is asked for.
enum Planned {
    File(Opened),
    Shape(Box<Synth>),
}

impl Planned {
    fn find(house: &House, args: &PlanArgs) -> Result<Option<Self>> {
        if let Some(text) = &args.synth {
            let synth =
                Synth::parse(text).and_then(Synth::runnable).map_err(|e| UsageError(e.to_string()))?;
            return Ok(Some(Self::Shape(Box::new(synth))));
        }
        Ok(args.model.as_deref().map(|m| house.open(m, false)).transpose()?.map(Self::File))
    }

    fn plan(&self, house: &House, machine: &Machine, wish: &Wish, args: &PlanArgs) -> Result<Plan> {
        let mut plan = match self {
            Self::File(opened) => house.plan(machine, opened, wish)?,
            Self::Shape(synth) => {
                let (name, info) = (synth.name(), synth.info()?);
                let subject = Subject { name: &name, id: "", sizes: &info, noise: None };
                Plan::make(machine, &subject, wish, &History::default())
            }
        };
        plan.disk = Some(house.disk(&args.disk));
        Ok(plan)
    }
}

fn text(plan: &Plan, args: &PlanArgs) -> String {
    let mut out = plan.table();
    if args.verbose {
        out.push_str(&plan.kv_table());
    }
    if args.verbose || args.synth.is_some() {
        out.push_str(&plan.contexts());
    }
    out
}

/// The machine in one line, the default model's plan if it is here, and what to type next.
pub fn welcome(house: &House) -> Result<i32> {
    let machine = house.machine_with(&GpuArgs::default(), false);
    let mut out = format!("{machine}\n");
    let here = match house.hub.resolve(DEFAULT_MODEL)? {
        Resolved::Local(_) => true,
        Resolved::Download(entry) => {
            let size = hob_plan::units::show_bytes(entry.bytes());
            out.push_str(&format!(
                "the default model, {}, is not here yet: the first run fetches it ({size})\n",
                entry.name
            ));
            false
        }
        // The default model is one of the catalogue.
        Resolved::Hub(_) => false,
    };
    if here {
        let opened = house.open(DEFAULT_MODEL, false)?;
        out.push_str(&house.plan(&machine, &opened, &Wish::default())?.short());
    }
    out.push_str(NEXT);
    term::print(&out)?;
    Ok(exit::OK)
}

const NEXT: &str = "
What to type next
  hob run \"Why is the sky blue?\"     one answer
  hob chat                           a conversation; hob chat -c goes on with the last one
  hob list                           models here, and those that can be pulled
  hob plan MODEL                     what a model takes and reaches on this machine
  hob help                           everything else
";
