//! Plans as people read them: two lines for a run, the whole table for `hob plan`. Owns wording only.

use std::fmt::Write as _;

use crate::forecast::{Basis, Forecast, PROMPT_TOKENS, Quantiles};
use crate::plan::Plan;
use crate::units::{show_bytes, show_count, show_figures};

impl Plan {
    /// Two or three lines: what goes where, what to expect, and warnings.
    pub fn short(&self) -> String {
        let mut out = String::new();
        let limit = self.limit();
        let total = match &self.gpu {
            Some(gpu) => format!(
                "{} of {} on {}, {} of {limit}",
                show_bytes(gpu.total_bytes),
                show_bytes(gpu.budget.bytes.unwrap_or(0)),
                gpu.adapter,
                show_bytes(self.total_bytes)
            ),
            None => format!("{} of {limit}", show_bytes(self.total_bytes)),
        };
        let everywhere = self.total_bytes + self.gpu.as_ref().map_or(0, |g| g.total_bytes);
        let cached = match self.cached_tokens {
            0 => String::new(),
            n => format!(" and {} of earlier ones", show_count(n as u64)),
        };
        let _ = writeln!(
            out,
            "{}: weights {} + KV {} ({} tokens{cached}, {}) + activations {} = {total}",
            self.model,
            show_bytes(self.weights_bytes),
            show_bytes(self.kv_bytes),
            show_count(self.context.tokens as u64),
            self.kv.label(),
            show_bytes(everywhere.saturating_sub(self.weights_bytes + self.kv_bytes)),
        );
        if let Some(gpu) = &self.gpu {
            let reads = gpu
                .rates
                .map_or(String::new(), |r| format!("; reads {} GB/s", show_figures(r.read_gb_per_s)));
            let _ = writeln!(out, "GPU: {}{reads}", gpu.parts());
        }
        let f = &self.forecast;
        let plural = if self.threads == 1 { "" } else { "s" };
        let _ = writeln!(
            out,
            "{} thread{plural} ({}), memory {} GB/s{}: expect {} tok/s ({}), prompts {} tok/s",
            self.threads,
            self.isa,
            show_figures(f.read_gb_per_s),
            if f.read_while_busy { " (measured while busy)" } else { "" },
            interval(f.decode_empty),
            basis(f.decode_basis),
            interval(f.prefill),
        );
        for warning in &self.warnings {
            let _ = writeln!(out, "note: {warning}");
        }
        out
    }

    /// Everything, by line.
    pub fn table(&self) -> String {
        let mut out = format!("{} on {} threads ({})\n", self.model, self.threads, self.isa);
        out.push_str("memory\n");
        // As wide as the longest name, and as the tables below it.
        let width = self.memory.iter().map(|l| l.name.len()).max().unwrap_or(0).max(34);
        for line in &self.memory {
            let _ = writeln!(out, "  {:<width$}{:>10}", line.name, show_bytes(line.bytes));
        }
        let _ = writeln!(out, "  {:<width$}{:>10}", "total", show_bytes(self.total_bytes));
        if self.mapped_bytes > 0 {
            let _ = writeln!(
                out,
                "  {:<width$}{:>10}",
                "beside it, page cache of the file",
                show_bytes(self.mapped_bytes)
            );
        }
        let verdict = if self.fits { "fits" } else { "REFUSED" };
        let _ = writeln!(out, "  {:<width$}{:>10}", "limit", self.limit());
        if let Err(refusal) = self.accept() {
            let _ = writeln!(out, "  {verdict}: {refusal}");
        } else {
            let _ = writeln!(out, "  {verdict}");
        }
        self.gpu_table(width, &mut out);
        out.push_str(&self.kv.table());
        self.context_table(&mut out);
        self.format_table(&mut out);
        self.cache_lines(&mut out);
        speed_table(&self.forecast, self.context.tokens, &mut out);
        for (title, lines) in [("why", &self.reasons), ("notes", &self.warnings)] {
            if !lines.is_empty() {
                let _ = writeln!(out, "{title}");
            }
            for line in lines {
                let _ = writeln!(out, "  {line}");
            }
        }
        out
    }

    /// What the GPU holds, and the ceilings that its part of a step runs into.
    fn gpu_table(&self, width: usize, out: &mut String) {
        let Some(gpu) = &self.gpu else { return };
        let _ = writeln!(out, "GPU {}: {}", gpu.index, gpu.adapter);
        let _ = writeln!(out, "  {}", gpu.parts());
        for line in &gpu.memory {
            let _ = writeln!(out, "  {:<width$}{:>10}", line.name, show_bytes(line.bytes));
        }
        let _ = writeln!(out, "  {:<width$}{:>10}", "total", show_bytes(gpu.total_bytes));
        let limit = show_bytes(gpu.budget.bytes.unwrap_or(0));
        let _ = writeln!(out, "  {:<width$}{:>10} ({})", "limit", limit, gpu.budget.source);
        if let Some(rates) = &gpu.rates {
            let floor = gpu.bytes_per_token as f64 / (rates.read_gb_per_s * 1e9).max(1.0);
            let _ = writeln!(
                out,
                "  {:<width$}{:>10}, {} tok/s at its read ceiling of {} GB/s",
                "read per token",
                show_bytes(gpu.bytes_per_token),
                show_figures(1.0 / floor.max(1e-12)),
                show_figures(rates.read_gb_per_s)
            );
        }
        if gpu.crossings > 0 {
            let _ = writeln!(out, "  {:<width$}{:>10}", "crossings per step", gpu.crossings);
        }
    }

    fn limit(&self) -> String {
        match self.budget.bytes {
            Some(bytes) => format!("{} ({})", show_bytes(bytes), self.budget.source),
            None => "an unknown amount".to_string(),
        }
    }

    fn context_table(&self, out: &mut String) {
        let c = &self.context;
        let count = |n: usize| show_count(n as u64);
        let _ = writeln!(out, "context");
        let _ = writeln!(out, "  {:<34}{:>10}", "planned tokens", count(c.tokens));
        let _ = writeln!(out, "  {:<34}{:>10}", "trained for", count(c.trained_tokens));
        let _ = writeln!(out, "  {:<34}{:>10}", "fits in memory (of those)", count(c.fits_tokens));
        if let Some(half) = self.forecast.half_speed_tokens {
            let _ = writeln!(out, "  {:<34}{:>10}", "decode at half speed from", count(half));
        }
    }

    /// The largest context of every format.
    fn format_table(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "  {:<9}{:>12}{:>14}{:>18}",
            "--kv", "KV a token", "most tokens", "half speed from"
        );
        for l in &self.formats {
            let half = l.half_speed_tokens.map_or("-".to_string(), |n| show_count(n as u64));
            let planned = if l.planned { "  <- planned" } else { "" };
            let _ = writeln!(
                out,
                "  {:<9}{:>12}{:>14}{half:>18}{planned}",
                l.kv,
                show_bytes(l.bytes_per_token),
                show_count(l.fits_tokens as u64),
            );
        }
    }

    fn cache_lines(&self, out: &mut String) {
        let _ = writeln!(out, "earlier conversations");
        let cached = match self.cached_tokens {
            0 => "prefix cache: only the live conversation in memory".to_string(),
            n => format!("prefix cache: {} tokens in spare memory", show_count(n as u64)),
        };
        let _ = writeln!(out, "  {cached}");
        if let Some(disk) = &self.disk {
            let _ = writeln!(out, "  {}", disk.line());
        }
    }

    /// What would hold a prompt of `tokens`, more than the planned context, if anything does.
    pub fn longer(&self, tokens: usize) -> String {
        let count = |n: usize| show_count(n as u64);
        let c = &self.context;
        if tokens > c.trained_tokens {
            return format!(
                "the model was trained for {}: no --ctx holds this prompt",
                count(c.trained_tokens)
            );
        }
        if tokens <= c.fits_tokens {
            return format!("up to --ctx {} is possible here", c.fits_tokens);
        }
        match self.formats.iter().find(|l| l.fits_tokens >= tokens) {
            Some(l) => format!("with --kv {} up to --ctx {} is possible here", l.kv, l.fits_tokens),
            None => {
                let most = self.formats.iter().map(|l| l.fits_tokens).max().unwrap_or(0);
                format!("memory holds at most {} tokens, whatever --kv", count(most))
            }
        }
    }

    /// The noise of every layer behind a measured choice of KV formats; empty where nothing was measured.
    pub fn kv_table(&self) -> String {
        self.kv.measured.as_ref().map(|m| m.table()).unwrap_or_default()
    }

    /// What 16K, 64K, 128K and the largest context take with every KV format, and how fast they decode at their end.
    pub fn contexts(&self) -> String {
        let limit = self.limit();
        let mut out = format!("{} by context and KV format, limit {limit}\n", self.model);
        let _ = writeln!(
            out,
            "  {:<9}{:>10}{:>12}{:>12}{:>7}{:>14}",
            "--kv", "tokens", "KV", "total", "fits", "tok/s at end"
        );
        for format in &self.formats {
            for at in &format.contexts {
                let most = if at.ctx_tokens == format.fits_tokens { "  the most" } else { "" };
                let _ = writeln!(
                    out,
                    "  {:<9}{:>10}{:>12}{:>12}{:>7}{:>14}{most}",
                    format.kv,
                    show_count(at.ctx_tokens as u64),
                    show_bytes(at.kv_bytes),
                    show_bytes(at.total_bytes),
                    if at.fits { "yes" } else { "no" },
                    show_figures(at.decode_tokens_per_second),
                );
            }
        }
        out
    }
}

fn speed_table(f: &Forecast, ctx_tokens: usize, out: &mut String) {
    let _ = writeln!(out, "speed (p10 / p50 / p90)");
    let mut row = |name: &str, q: Quantiles, unit: &str, rest: &str| {
        let (a, b, c) = (show_figures(q.p10), show_figures(q.p50), show_figures(q.p90));
        let _ = writeln!(out, "  {name:<26}{a:>7} {b:>7} {c:>7} {unit}{rest}");
    };
    let bytes = |b: u64| format!(", {} a token", show_bytes(b));
    row("decode, empty context", f.decode_empty, "tok/s", &bytes(f.bytes_per_token_empty));
    let full = format!("decode, {} tokens", show_count(ctx_tokens as u64));
    row(&full, f.decode_full, "tok/s", &bytes(f.bytes_per_token_full));
    row("prompt", f.prefill, "tok/s", "");
    let first = format!("first token after {PROMPT_TOKENS}");
    row(&first, f.first_token_seconds, "s", "");
    let (decode, prompt) = (f.decode_basis, f.prefill_basis);
    let _ = writeln!(
        out,
        "  decode {}{}, prompt {}{}",
        basis(decode),
        ratio(decode),
        basis(prompt),
        ratio(prompt)
    );
}

fn basis(basis: Basis) -> String {
    match basis {
        Basis::Estimated => "estimated".to_string(),
        Basis::Measured { runs: 1, .. } => "measured in 1 run".to_string(),
        Basis::Measured { runs, .. } => format!("measured in {runs} runs"),
    }
}

/// How far the estimate was off, where it can be told.
fn ratio(basis: Basis) -> String {
    match basis {
        Basis::Estimated => String::new(),
        Basis::Measured { ratio, .. } => format!(" ({} x the estimate)", show_figures(ratio)),
    }
}

/// `180-260`, or one number when both ends look the same.
fn interval(q: Quantiles) -> String {
    let (low, high) = (show_figures(q.p10), show_figures(q.p90));
    if low == high { low } else { format!("{low}-{high}") }
}
