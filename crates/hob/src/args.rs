//! Flags as typed, before anything is looked at: one struct per command. It must not touch the machine.

mod lab;
mod quantize;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use hob_plan::units::Size;
use hob_plan::{Adapter, DiskWish, ExpertsOn, GpuWish, KvWish};

pub use lab::{KvArgs, KvSubjectArgs, NeedleArgs};
pub use quantize::{DitherArgs, GoalArgs, QuantizeArgs};

/// Exit codes, shown by `hob --help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    something failed; the message says what
  2    wrong usage
  3    the model was not found, is not readable, or could not be fetched
  4    it does not fit: memory, or the prompt and context
  130  interrupted (Ctrl-C)";

/// Local AI that fits the machine you own.
///
/// hob looks at your machine and at what you want, works out a plan that fits, says what to expect, and runs it.
#[derive(Debug, Parser)]
#[command(name = "hob", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt: the answer on stdout, plan and figures on stderr
    Run(RunArgs),
    /// Talk with a model in the terminal
    Chat(ChatArgs),
    /// Serve a model over HTTP (OpenAI-compatible)
    Serve(ServeArgs),
    /// Show this machine, and what a model would take and reach on it
    Plan(PlanArgs),
    /// Measure prefill and decode beside the memory limit of the same second
    Bench(BenchArgs),
    /// Fetch a model of the catalogue or of the Hugging Face hub
    Pull(PullArgs),
    /// List models on this disk, and those that can be pulled
    List(ListArgs),
    /// Remove models that hob fetched
    Rm(RmArgs),
    /// Show what a model file holds
    Show(ShowArgs),
    /// Write a smaller GGUF of a model: one type, a recipe, or the best in a number of bits or bytes
    Quantize(QuantizeArgs),
    /// Look after what earlier conversations left on disk
    Cache(CacheArgs),
    /// List, show or remove recorded conversations
    Sessions(SessionsArgs),
    /// Tools for people who work on hob
    Lab(LabArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Which model, and how it may be laid out.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Model: a name from `hob list`, a .gguf file, a folder with safetensors, or hf:OWNER/REPO[@REV][:FILE or TYPE]
    /// [default: that of the session, else HOB_MODEL, else 'default']
    #[arg(short, long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Leave no trace: neither the conversation nor its KV is written to disk, and nothing earlier is read from there
    #[arg(long)]
    pub no_cache: bool,
}

impl ModelArgs {
    /// The model to use; `recorded` is that of the session, which only a flag overrides.
    pub fn wanted(&self, recorded: Option<&str>) -> String {
        let env = || std::env::var("HOB_MODEL").ok().filter(|m| !m.is_empty());
        let named = self.model.clone().or_else(|| recorded.map(str::to_string)).or_else(env);
        named.unwrap_or_else(|| DEFAULT_MODEL.to_string())
    }
}

/// A timeline of what is computed.
#[derive(Clone, Debug, Default, Args)]
pub struct ProfileArgs {
    /// Write a timeline of every verb to this file, to be opened at ui.perfetto.dev, and a summary to stderr (slower)
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

/// Where KV of earlier conversations lies, and how much.
#[derive(Clone, Debug, Default, Args)]
pub struct DiskArgs {
    /// Folder for KV of earlier conversations [default: cache in HOB_HOME]
    #[arg(long, value_name = "DIR", env = "HOB_CACHE_DIR", hide_env_values = true)]
    pub cache_dir: Option<PathBuf>,
    /// Most disk for it, such as 4G or 5%, or off [default: a tenth of the free disk, up to 16G]
    #[arg(long, value_name = "SIZE", env = "HOB_CACHE_DISK", hide_env_values = true, value_parser = DiskWish::parse)]
    pub cache_disk: Option<DiskWish>,
}

/// Name of the model that is used when none is named.
pub const DEFAULT_MODEL: &str = "default";

/// What the user has to say about memory and cores.
#[derive(Clone, Debug, Default, Args)]
pub struct LayoutArgs {
    /// Most tokens of prompt and answer together [default: what fits, up to a quarter of the memory]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub ctx: Option<usize>,
    /// Threads to compute with [default: one per usable core]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Most memory to use, such as 8G, 512M or 50%
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub ram: Option<Size>,
    /// How K and V are kept: auto (as measured on this model), f16, bf16, q8, q4, asym4, or K/V such as q8/q4
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = KvWish::parse)]
    pub kv: KvWish,
}

/// What a GPU gets.
#[derive(Clone, Debug, Default, Args)]
pub struct GpuArgs {
    /// What goes on the GPU: auto (all, or what fits, where that is faster), off, or the number of layers, counted from
    /// the last, with the head
    #[arg(long, value_name = "LAYERS", default_value = "auto", value_parser = GpuWish::parse)]
    pub gpu: GpuWish,
    #[command(flatten)]
    pub more: GpuMore,
}

/// Which GPU, how much of its memory, and what of a mixture of experts.
#[derive(Clone, Debug, Default, Args)]
pub struct GpuMore {
    /// Where the routed experts of a mixture go: cpu (memory) or gpu; disk is refused until it is built [default: what fits, and is fastest]
    #[arg(long, value_name = "WHERE", value_parser = ExpertsOn::parse)]
    pub experts_on: Option<ExpertsOn>,
    /// Which GPU: its number or a part of its name, as `hob plan` lists them [default: the first that is no software]
    #[arg(long, value_name = "GPU", value_parser = Adapter::parse)]
    pub adapter: Option<Adapter>,
    /// Most GPU memory to use, such as 8G or 50% [default: what is free, less a reserve]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub vram: Option<Size>,
}

/// How tokens are chosen. What is left out keeps the engine's default.
#[derive(Clone, Debug, Default, Args)]
pub struct SamplingArgs {
    /// Randomness of the choice; 0 always takes the likeliest token
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Choose among the K likeliest tokens only; 0 is off
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Choose among the most typical tokens that together reach this probability; 1 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub typical: Option<f32>,
    /// Choose among the likeliest tokens that together reach this probability; 1 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Leave out tokens less likely than this share of the likeliest; 0 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Make recent tokens less likely; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Seed of the choices; the same seed gives the same answer
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Most tokens of one answer [default: until the model ends or the context is full]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_tokens: Option<usize>,
    /// End the answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The prompt; several words are joined. Without it, and without --file, stdin is read
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,
    /// Add this file to the prompt (- is stdin; may be given several times)
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Send the prompt as it stands, without the model's chat template
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// Go on with the conversation of this name; a new name starts one (`hob sessions` lists them)
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["raw", "no_cache"])]
    pub session: Option<String>,
    /// Print the answer only
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Go on with the conversation of this name; a new name starts one (`hob sessions` lists them)
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["go_on", "no_cache"])]
    pub session: Option<String>,
    /// Go on with the last conversation
    #[arg(short = 'c', long = "continue", conflicts_with = "no_cache")]
    pub go_on: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; anything but loopback asks for --api-key
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Key that clients must send as a bearer token
    #[arg(long, env = "HOB_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Another host name under which clients may call (a proxy's, say; may be given several times)
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Model to plan for (a name, a path, or hf:OWNER/REPO once pulled); without it the machine is shown
    pub model: Option<String>,
    /// Plan for a known shape instead of a file, such as llama-3.1-70b:q4_k_m (`help` lists shapes and types); --ram may
    /// be more than this machine has
    #[arg(long, value_name = "SHAPE:TYPE", conflicts_with = "model")]
    pub synth: Option<String>,
    #[command(flatten)]
    pub layout: LayoutArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Also every context with every KV format, and the measured noise of each layer
    #[arg(short, long)]
    pub verbose: bool,
    /// Measure the machine again
    #[arg(long)]
    pub refresh: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model: a name from `hob list`, a .gguf file, a folder with safetensors, or hf:OWNER/REPO[@REV][:FILE or TYPE]
    #[arg(short, long, env = "HOB_MODEL", default_value = DEFAULT_MODEL, conflicts_with = "synth")]
    pub model: String,
    /// Random weights of a known shape instead of a file, such as qwen3-1.7b:q4_k_m (`help` lists shapes and types)
    #[arg(long, value_name = "SHAPE:TYPE")]
    pub synth: Option<String>,
    /// Only the first layers of the shape
    #[arg(long, value_name = "N", requires = "synth")]
    pub layers: Option<usize>,
    /// Thread counts, such as 1,2 [default: one per usable core]
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Prompt tokens of a prefill sample; 0 measures no prefill
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens of a decode sample; 0 measures no decode
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    pub tokens: usize,
    /// Also check this many tokens of one sequence per step, such as 1,2,4,8 (what speculation costs)
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub rows: Vec<usize>,
    /// Find this machine's best kernel settings instead (a few seconds), and keep them
    #[arg(long, conflicts_with_all = ["model", "synth", "prompt", "tokens", "rows", "depth"])]
    pub tune: bool,
    /// Samples of each kind
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repeat: usize,
    /// Positions to measure at; those beyond the context are left out
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',', default_value = "0,2048,8192,32768")]
    pub depth: Vec<usize>,
    /// Most tokens of the context [default: what the depths need]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub ctx: Option<usize>,
    /// KV formats to measure one after the other: auto, one for both sides, or K/V [default: f16]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = KvWish::parse)]
    pub kv: Vec<KvWish>,
    /// Measure on the GPU: auto (what a run would put there), or the number of layers, counted from the last; off is the
    /// CPU alone [default: off]
    #[arg(long, value_name = "LAYERS", num_args = 0..=1, default_missing_value = "auto", value_parser = GpuWish::parse)]
    pub gpu: Option<GpuWish>,
    #[command(flatten)]
    pub more: GpuMore,
    /// Longest time to fill the context up to a depth with real tokens; beyond it synthetic KV is written
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub fill_seconds: f64,
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Name of a model of the catalogue (see `hob list`), or hf:OWNER/REPO[@REV][:FILE or TYPE]
    #[arg(default_value = DEFAULT_MODEL)]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A .gguf file, a folder with safetensors, or the name of a model on this disk
    pub file: String,
    /// Every tensor, and metadata in full length
    #[arg(short, long)]
    pub verbose: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub tool: Option<CacheTool>,
    /// Folder of the cache [default: cache in HOB_HOME]
    #[arg(long, value_name = "DIR", env = "HOB_CACHE_DIR", hide_env_values = true, global = true)]
    pub cache_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum CacheTool {
    /// What is stored, and where (what `hob cache` alone does)
    List,
    /// Remove the least useful until it fits
    Trim {
        /// Size to shrink to, such as 2G [default: the budget that a run would have]
        #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
        to: Option<Size>,
    },
    /// Read everything and check every checksum
    Verify,
    /// Remove all of it (recorded conversations stay: see `hob sessions`)
    Clear,
}

#[derive(Debug, Args)]
pub struct SessionsArgs {
    #[command(subcommand)]
    pub tool: Option<SessionsTool>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SessionsTool {
    /// Every conversation, the newest first (what `hob sessions` alone does)
    List,
    /// Print a conversation
    Show { name: String },
    /// Remove conversations
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    pub tool: LabTool,
}

#[derive(Debug, Subcommand)]
pub enum LabTool {
    /// Compare logits and greedy continuations with recorded ones, in exact mode
    Golden {
        /// Folders of fixtures, or folders that hold such folders
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
    /// Write a GGUF of a known shape with random weights: real speed and memory, no sense
    Synth(SynthArgs),
    /// Write an F16 GGUF of a quantized model with noise in place of its roundings: a reference to judge types by
    Dither(DitherArgs),
    /// Perplexity of a model on a text, as llama.cpp's perplexity computes it
    Ppl(PplArgs),
    /// How far model B strays from model A on a text: KL(A||B), top-1 agreement, perplexities
    Kl(KlArgs),
    /// KV formats of one model on a text: bytes, KL(f16||format), top-1 agreement, perplexity; and what auto picks and why
    Kv(KvArgs),
    /// Hide facts in a long text, and see whether the model finds them
    Needle(NeedleArgs),
}

#[derive(Debug, Args)]
pub struct SynthArgs {
    /// What to write, such as qwen3-1.7b:q4_k_m, or qwen3-8b:q4_0:q6_k for another type of embedding and head (`help`
    /// lists shapes and types)
    #[arg(value_name = "SHAPE:TYPE[:HEADTYPE]")]
    pub what: String,
    /// File to write; one of that name is replaced when the new one is whole
    #[arg(short, long, value_name = "FILE.gguf")]
    pub output: Option<PathBuf>,
    /// Only the first layers of the shape
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Seed of the weights; the same seed gives the same file
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Weights of the norms of Q and K, in shapes that have them [default: 1]; the fourth root of head_dim is an attention
    /// scale of 1
    #[arg(long, value_name = "GAIN")]
    pub qk_gain: Option<f32>,
}

/// A text, and how it is walked.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// File with the text (UTF-8; - is stdin)
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub ctx: usize,
    /// Most windows to score [default: the whole text]
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Start a window every so many tokens and score as many, its last [default: windows side by side, the second half
    /// of each scored]
    #[arg(long, value_name = "TOKENS")]
    pub stride: Option<usize>,
    /// Threads to compute with [default: one per usable core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Most memory to use, such as 8G, 512M or 50%
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub ram: Option<Size>,
    /// Keep activations in f32 (slower)
    #[arg(long)]
    pub exact: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PplArgs {
    /// Model: a name from `hob list`, a .gguf file, a folder with safetensors, or hf:OWNER/REPO[@REV][:FILE or TYPE]
    pub model: String,
    #[command(flatten)]
    pub eval: EvalArgs,
}

#[derive(Debug, Args)]
pub struct KlArgs {
    /// The reference: a name, a .gguf file, or a folder
    pub a: String,
    /// The model to judge: a name, a .gguf file, or a folder
    pub b: String,
    #[command(flatten)]
    pub eval: EvalArgs,
    /// Load one model after the other, with the logits of A on disk, even where both fit into memory
    #[arg(long)]
    pub apart: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    pub shell: Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_help_line() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let nested = command.get_subcommands().flat_map(|c| c.get_arguments());
            for arg in command.get_arguments().chain(nested).filter(|a| !a.is_positional()) {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn sizes_are_read_while_parsing() {
        let cli = Cli::try_parse_from(["hob", "run", "--ram", "2G", "why", "is", "it"]).expect("parses");
        let Some(Command::Run(run)) = cli.command else { panic!("run") };
        assert_eq!(run.model.layout.ram, Some(Size::Bytes(2 << 30)));
        assert_eq!(run.prompt, ["why", "is", "it"]);
        assert!(Cli::try_parse_from(["hob", "run", "--ram", "many"]).is_err());
    }
}
