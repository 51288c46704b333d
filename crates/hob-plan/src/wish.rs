//! `Wish`: what the user typed, before the machine has a say.

use crate::units::Size;

/// Empty fields mean "you decide".
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Positions one sequence may reach.
    pub ctx_tokens: Option<usize>,
    pub threads: Option<usize>,
    /// Most memory to use.
    pub ram: Option<Size>,
    /// Sequences held at once.
    pub sequences: usize,
    /// Most rows of one step (prefill chunk).
    pub chunk_rows: Option<usize>,
}

impl Default for Wish {
    fn default() -> Self {
        Self { ctx_tokens: None, threads: None, ram: None, sequences: 1, chunk_rows: None }
    }
}
