//! `hob quantize` and `hob lab dither`: flags to a goal, a bar, a Ctrl-C that leaves nothing behind, a table.

use std::path::{Path, PathBuf};

use anyhow::Result;
use hob_lab::quantize::{self, Goal, Job, Options, Report, Watch};
use hob_lab::synth::{Mix, mixes};
use hob_plan::units::{Size, show_bytes};
use serde_json::json;

use crate::args::{DitherArgs, GoalArgs, QuantizeArgs};
use crate::exit::{self, UsageError};
use crate::house::{House, Opened};
use crate::term::{self, LateBar, Unit};

pub fn quantize(house: &House, args: &QuantizeArgs) -> Result<i32> {
    if args.model == "help" {
        term::print(&known())?;
        return Ok(exit::OK);
    }
    if !args.goal.is_given() {
        let ways = "--format TYPE, --bpw BITS, --fit SIZE or --recipe NAME";
        return Err(UsageError(format!(
            "say what to make: {ways} (hob quantize help lists types and recipes)"
        ))
        .into());
    }
    let head = args.head.as_deref().map(quantize::format_of).transpose()?;
    let rule = args.goal.rule()?;
    let opened = house.open(&args.model, true)?;
    let goal = rule.unwrap_or_else(|| args.goal.budget(opened.file.total_bytes()));
    let output = args.output.clone().unwrap_or_else(|| default_output(&opened, &args.goal));
    if output.exists() && !args.force {
        let path = output.display();
        return Err(UsageError(format!("{path} exists: choose another name with -o, or add --force")).into());
    }
    let options = Options { head, threads: threads(args.threads) };
    let report = make(house, &opened, goal, options, &output)?;
    if args.json {
        term::print(&format!(
            "{:#}\n",
            json!({ "file": output.display().to_string(), "quantized": report })
        ))?;
        return Ok(exit::OK);
    }
    term::print(&summary(&report, &output))?;
    Ok(exit::OK)
}

/// The reference of a quantized model.
pub fn dither(house: &House, args: &DitherArgs) -> Result<i32> {
    let opened = house.open(&args.model, true)?;
    let options = Options { head: None, threads: threads(None) };
    let report = make(house, &opened, Goal::Dither(args.seed), options, &args.output)?;
    term::print(&summary(&report, &args.output))?;
    Ok(exit::OK)
}

fn threads(wanted: Option<usize>) -> usize {
    wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())).max(1)
}

fn make(house: &House, opened: &Opened, goal: Goal, options: Options, output: &Path) -> Result<Report> {
    let graceful = house.interrupt.graceful();
    let flag = graceful.flag();
    let mut bar = LateBar::new("measuring", Unit::Tensors);
    let mut progress = |done, total| bar.set(done, total);
    let job = Job::new(&opened.file, goal, options, &mut Watch { progress: &mut progress, cancel: &flag });
    bar.clear();
    let job = job?;
    let outline = job.outline()?;
    if outline.requantized > 0 {
        term::note(&format!(
            "{} tensors are quantized already: they are decoded and lose a second time; a file of F16 or BF16 weights loses once",
            outline.requantized
        ));
    }
    if outline.fell_back > 0 {
        term::note(&format!(
            "{} matrices have rows that are no whole blocks of the wanted type: they take the next type that fits",
            outline.fell_back
        ));
    }
    let (size, bits) = (show_bytes(outline.file_bytes), outline.bits_per_weight);
    term::note(&format!("{}: {size}, {bits:.3} bits a weight", output.display()));
    let mut bar = LateBar::new("quantizing", Unit::Bytes);
    let mut progress = |done, total| bar.set(done, total);
    let report = job.write(output, &mut Watch { progress: &mut progress, cancel: &flag });
    bar.clear();
    Ok(report?)
}

fn summary(report: &Report, output: &Path) -> String {
    let (new, old) = (show_bytes(report.file_bytes), show_bytes(report.source_bytes));
    let rate = report.weights as f64 / 1e6 / report.seconds.max(1e-3);
    format!(
        "{report}{}: {new} from {old}, {:.1} s, {rate:.0} M weights/s\n",
        output.display(),
        report.seconds
    )
}

impl GoalArgs {
    fn is_given(&self) -> bool {
        self.format.is_some() || self.bpw.is_some() || self.fit.is_some() || self.recipe.is_some()
    }

    /// A goal that does not depend on the model, if that was asked for.
    fn rule(&self) -> Result<Option<Goal>> {
        if let Some(name) = &self.format {
            return Ok(Some(Goal::Uniform(quantize::format_of(name)?)));
        }
        let Some(name) = &self.recipe else { return Ok(None) };
        // A plain type is --format's.
        match Mix::parse(name) {
            Ok(mix) if mixes().any(|known| known.eq_ignore_ascii_case(name)) => Ok(Some(Goal::Mix(mix))),
            _ => {
                let known = mixes().collect::<Vec<_>>().join(", ");
                Err(UsageError(format!("no recipe is called '{name}'; there are {known}")).into())
            }
        }
    }

    /// A budget for a model of `model_bytes`.
    fn budget(&self, model_bytes: u64) -> Goal {
        match (self.bpw, self.fit) {
            (Some(bits), _) => Goal::Bits(bits),
            (None, Some(Size::Bytes(bytes))) => Goal::Bytes(bytes),
            (None, Some(Size::Share(share))) => Goal::Bytes((share * model_bytes as f64) as u64),
            (None, None) => Goal::Bytes(model_bytes),
        }
    }

    fn label(&self) -> String {
        let named = self.format.as_deref().or(self.recipe.as_deref()).map(str::to_ascii_lowercase);
        let label = named.or_else(|| self.bpw.map(|bits| format!("{bits}bpw")));
        label.unwrap_or_else(|| match self.fit {
            Some(Size::Bytes(bytes)) => show_bytes(bytes).replace(' ', ""),
            Some(Size::Share(share)) => format!("{:.0}percent", share * 100.0),
            None => "quantized".to_string(),
        })
    }
}

/// The model's name without the number of a first shard, and the goal.
fn default_output(opened: &Opened, goal: &GoalArgs) -> PathBuf {
    let stem =
        opened.path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    let stem = stem.split_once("-00001-of-").map_or(stem.as_str(), |(before, _)| before);
    PathBuf::from(format!("{stem}-{}.gguf", goal.label()))
}

/// Types and recipes.
fn known() -> String {
    let mut out = String::from("types (--format)\n");
    for format in quantize::formats() {
        let name = format.name().to_ascii_lowercase();
        let (bits, block) = (format.bits_per_weight(), format.block_len());
        out.push_str(&format!("  {name:<8} {bits:>7.4} bits a weight, blocks of {block}\n"));
    }
    let recipes: Vec<&str> = mixes().collect();
    out.push_str(&format!("recipes (--recipe; moe_: only the experts)\n  {}\n", recipes.join(" ")));
    out
}
