//! `Wish`: what the user typed, before the machine has a say.

use std::fmt;

use hob_model::{KvPair, Placement};
use hob_quant::KvFormat;

use crate::units::Size;

/// Empty fields mean "you decide".
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Positions one sequence may reach.
    pub ctx_tokens: Option<usize>,
    pub threads: Option<usize>,
    /// Most memory to use.
    pub ram: Option<Size>,
    /// How K and V are kept.
    pub kv: KvWish,
    /// Sequences held at once.
    pub sequences: usize,
    /// Earlier conversations whose prefixes are worth spare memory.
    pub conversations: usize,
    /// Most rows of one step (prefill chunk).
    pub chunk_rows: Option<usize>,
    /// A plan on paper: `ram` and `vram` may be more than this machine has.
    pub on_paper: bool,
    /// What a GPU gets.
    pub gpu: GpuWish,
    /// Where routed experts go.
    pub experts_on: Option<ExpertsOn>,
    /// Most GPU memory to use.
    pub vram: Option<Size>,
    /// The user named the adapter: a software one will do, and one that does not pay.
    pub adapter_named: bool,
    /// Where the weights lie already: only what depends on the context is open.
    pub placed: Option<Placement>,
}

/// What a GPU gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuWish {
    /// What fits, where that is faster.
    #[default]
    Auto,
    Off,
    /// The last so many layers, and the head.
    Layers(usize),
}

impl GpuWish {
    /// Reads `auto`, `off`, or a number of layers.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => other
                .parse()
                .map(Self::Layers)
                .map_err(|_| format!("'{text}' is neither auto, off, nor a number of layers")),
        }
    }
}

/// Where routed experts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertsOn {
    Cpu,
    Gpu,
    Disk,
}

impl ExpertsOn {
    /// Reads `cpu`, `gpu` or `disk`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            "disk" => Ok(Self::Disk),
            _ => Err(format!("'{text}' is none of cpu, gpu, disk")),
        }
    }
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            ctx_tokens: None,
            threads: None,
            ram: None,
            kv: KvWish::Auto,
            sequences: 1,
            conversations: 0,
            chunk_rows: None,
            on_paper: false,
            gpu: GpuWish::Auto,
            experts_on: None,
            vram: None,
            adapter_named: false,
            placed: None,
        }
    }
}

/// How K and V are to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvWish {
    /// What measuring the model says.
    #[default]
    Auto,
    /// The same in every layer.
    Pair(KvPair),
}

impl KvWish {
    /// Reads `auto`, a format for both sides such as `q8`, or one for each, K first, such as `q8/q4`.
    ///
    /// # Errors
    /// A sentence that names what was typed and what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        let (k, v) = text.split_once('/').unwrap_or((text, text));
        let side = |name: &str| name.trim().to_ascii_lowercase().parse::<KvFormat>().ok();
        match (side(k), side(v)) {
            (Some(k), Some(v)) => Ok(Self::Pair(KvPair { k, v })),
            _ => Err(format!(
                "'{text}' is no format of K and V; write auto, {}, or K/V such as q8/q4",
                KvFormat::ALL.map(KvFormat::name).join(", ")
            )),
        }
    }
}

impl fmt::Display for KvWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Pair(pair) => f.pad(&show_pair(*pair)),
        }
    }
}

/// `q8`, or `q8/q4` where K and V differ: what [`KvWish::parse`] reads.
pub fn show_pair(pair: KvPair) -> String {
    if pair.k == pair.v { pair.k.name().to_string() } else { format!("{}/{}", pair.k, pair.v) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_people_type_read_back_as_they_are_shown() {
        let pair = |k, v| KvWish::Pair(KvPair { k, v });
        for (text, want) in [
            ("auto", KvWish::Auto),
            ("q8", pair(KvFormat::Q8, KvFormat::Q8)),
            ("Q8/q4", pair(KvFormat::Q8, KvFormat::Q4)),
            ("bf16 / asym4", pair(KvFormat::Bf16, KvFormat::Asym4)),
        ] {
            assert_eq!(KvWish::parse(text), Ok(want), "{text}");
            assert_eq!(KvWish::parse(&want.to_string()), Ok(want), "{text}");
        }
    }

    #[test]
    fn formats_there_are_not_are_refused_with_those_there_are() {
        for text in ["", "q5", "q8/", "/q4", "q8/q4/q4", "auto/q4", "int8"] {
            let error = KvWish::parse(text).expect_err(text);
            assert!(error.contains("auto") && error.contains("asym4") && error.contains("q8/q4"), "{error}");
        }
    }
}
