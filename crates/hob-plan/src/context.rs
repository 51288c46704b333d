//! The context: how many tokens are planned, how many each KV format could hold, and what of the spare memory keeps
//! prefixes of earlier conversations. It does no arithmetic of sizes: [`Sizes`] is asked.

use hob_compute::PAGE_POSITIONS;
use hob_model::{KvLayout, KvPair, Layout};
use hob_quant::KvFormat;
use serde::Serialize;

use crate::budget::Budget;
use crate::error::PlanError;
use crate::forecast::{Decode, half_speed};
use crate::history::Entry;
use crate::machine::Machine;
use crate::placing::Placer;
use crate::plan::{Kept, Notes, Sizes};
use crate::units::{show_bytes, show_count};
use crate::wish::{Wish, show_pair};

/// Contexts tried, largest first, when the user names none: the first whose KV takes at most [`KV_SHARE`] of the budget.
const CTX_DEFAULTS: [usize; 3] = [32_768, 16_384, 8_192];
/// Share of the budget that a context nobody asked for may take.
const KV_SHARE: f64 = 0.25;
/// A model is refused when not even this context fits.
const CTX_LEAST: usize = 512;
/// Contexts at which formats are compared.
const CTX_COMPARED: [usize; 3] = [16_384, 65_536, 131_072];
/// Share of the memory left by everything else that may keep prefixes of earlier conversations.
const CACHE_SHARE: u64 = 4;
/// The same where this system does not say how much memory there is.
const CACHE_UNKNOWN: u64 = 1 << 30;

/// The planned context and its bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Context {
    pub tokens: usize,
    pub trained_tokens: usize,
    /// The most that fits in memory, at most the trained context; 0 when not even the weights fit.
    pub fits_tokens: usize,
    /// Whether the user named it.
    pub asked: bool,
}

/// What a KV format would allow, everything else being as planned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FormatLimit {
    /// As `--kv` spells it.
    pub kv: String,
    /// Whether the plan uses it.
    pub planned: bool,
    pub bytes_per_token: u64,
    /// The most tokens that fit, at most the trained context.
    pub fits_tokens: usize,
    /// Context at which decode is half as fast as at position 0, within the trained context.
    pub half_speed_tokens: Option<usize>,
    /// 16K, 64K and 128K tokens where the model was trained for as many, and the most that fit.
    pub contexts: Vec<FormatAt>,
}

/// A format at one context.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FormatAt {
    pub ctx_tokens: usize,
    pub kv_bytes: u64,
    pub total_bytes: u64,
    pub fits: bool,
    /// Median of the forecast at the last position.
    pub decode_tokens_per_second: f64,
}

/// A model under a layout whose context is still open, and the memory it may take.
pub(crate) struct Room<'a> {
    pub sizes: &'a dyn Sizes,
    pub shape: &'a Layout,
    /// What the parts on all devices may take together.
    pub budget: &'a Budget,
    /// What each of them may take, where a GPU has a part.
    pub placer: Option<&'a Placer<'a>>,
}

impl Room<'_> {
    fn with(&self, kv: &KvLayout, ctx_tokens: usize) -> Layout {
        Layout { ctx_tokens, kv: kv.clone(), ..self.shape.clone() }
    }

    fn at(&self, kv: &KvLayout, ctx_tokens: usize) -> hob_model::Footprint {
        self.sizes.footprint(&self.with(kv, ctx_tokens))
    }

    /// Whether every device holds its part.
    pub fn holds(&self, layout: &Layout) -> bool {
        match self.placer.filter(|_| layout.placement.devices() > 1) {
            Some(placer) => {
                placer.holds(layout) && placer.ram.holds(self.sizes.device_footprint(layout, 0).total)
            }
            None => self.budget.holds(self.sizes.footprint(layout).total),
        }
    }

    fn trained(&self) -> usize {
        self.sizes.ctx_train().max(1)
    }

    /// The most tokens that fit with `kv`, at most the trained context.
    fn fits(&self, kv: &KvLayout) -> usize {
        largest(self.trained(), |n| self.holds(&self.with(kv, n)))
    }

    /// Chooses the context; what was asked for is kept, and refused later if it does not fit.
    pub fn choose(&self, wish: &Wish, notes: &mut Notes) -> Context {
        let trained = self.trained();
        let fits = self.fits(&self.shape.kv);
        let context = |tokens, asked| Context { tokens, trained_tokens: trained, fits_tokens: fits, asked };
        if let Some(asked) = wish.ctx_tokens {
            if asked == 0 {
                notes.refuse(PlanError::NoContext { trained });
            }
            if asked > trained {
                notes.refuse(PlanError::ContextBeyondTraining { asked, trained });
            }
            notes.reasons.push(format!("context {}: asked for", show_count(asked as u64)));
            return context(asked.max(1), true);
        }
        let at = |n: usize| self.at(&self.shape.kv, n);
        let cheap = |n: usize| self.budget.bytes.is_none_or(|b| at(n).kv as f64 <= b as f64 * KV_SHARE);
        let wanted = CTX_DEFAULTS.into_iter().find(|&n| cheap(n.min(trained)));
        let wanted = wanted.unwrap_or(CTX_DEFAULTS[2]).min(trained);
        let tokens = wanted.min(fits.max(CTX_LEAST.min(trained)));
        let why = if tokens == trained {
            "all the model was trained for".to_string()
        } else if tokens < wanted {
            "all that fits in memory".to_string()
        } else {
            let more = at(fits.max(tokens)).total.saturating_sub(at(tokens).total);
            let most = if fits > tokens {
                format!("; --ctx {fits} is possible and takes {} more", show_bytes(more))
            } else {
                String::new()
            };
            format!("a default whose KV takes at most a quarter of the memory{most}")
        };
        notes.reasons.push(format!("context {}: {why}", show_count(tokens as u64)));
        context(tokens, false)
    }

    /// Says so when memory cuts the context short and another format would not have to.
    pub fn advise(&self, context: &Context, limits: &[FormatLimit], notes: &mut Notes) {
        let short = !context.asked && context.tokens == context.fits_tokens;
        if !short || context.tokens >= context.trained_tokens {
            return;
        }
        // The best format that doubles it, or the one that holds most.
        let mut better = limits.iter().filter(|l| !l.planned && l.fits_tokens > context.tokens);
        let doubled = better.clone().find(|l| l.fits_tokens >= 2 * context.tokens);
        if let Some(l) = doubled.or_else(|| better.by_ref().max_by_key(|l| l.fits_tokens)) {
            notes.warnings.push(format!(
                "memory holds {} tokens of context; with --kv {} it holds {}",
                show_count(context.tokens as u64),
                l.kv,
                show_count(l.fits_tokens as u64)
            ));
        }
    }

    /// Tokens of earlier conversations that spare memory keeps: a quarter of what is left, in whole pages, and no more
    /// than `conversations` full contexts.
    pub fn cache(&self, context: &Context, conversations: usize) -> usize {
        let with = |n: usize| Layout { ctx_tokens: context.tokens, cached_tokens: n, ..self.shape.clone() };
        let at = |n: usize| self.sizes.footprint(&with(n)).total;
        let base = at(0);
        let spare = self.budget.bytes.map_or(CACHE_UNKNOWN, |b| b.saturating_sub(base) / CACHE_SHARE);
        let most = conversations.saturating_mul(context.tokens.next_multiple_of(PAGE_POSITIONS));
        if most == 0 {
            0
        } else {
            largest(most, |n| at(n).saturating_sub(base) <= spare && self.room_beside(&with(n)))
        }
    }

    /// Whether a GPU, if it has a part, holds it with what is cached.
    fn room_beside(&self, layout: &Layout) -> bool {
        self.placer.is_none() || layout.placement.devices() == 1 || self.holds(layout)
    }

    /// What every format would allow, best first.
    pub fn formats(&self, machine: &Machine, past: Option<&Entry>) -> Vec<FormatLimit> {
        let compared = [
            KvPair::both(KvFormat::F16),
            KvPair::both(KvFormat::Q8),
            KvPair { k: KvFormat::Q8, v: KvFormat::Q4 },
            KvPair::both(KvFormat::Asym4),
            KvPair::both(KvFormat::Q4),
        ];
        let named = compared.map(|pair| (KvLayout::uniform(pair), show_pair(pair)));
        let own = match self.shape.kv.0.as_slice() {
            [pair] => show_pair(*pair),
            _ => "auto".to_string(),
        };
        let mut different: Vec<(KvLayout, String)> = Vec::new();
        for (layout, name) in named.into_iter().chain([(self.shape.kv.clone(), own)]) {
            // Formats that come to the same in this model (heads that are no whole groups) are one.
            if !different.iter().any(|(seen, _)| self.alike(seen, &layout)) {
                different.push((layout, name));
            }
        }
        let limits = different.into_iter().map(|(layout, name)| self.limit(machine, past, &layout, name));
        let mut limits: Vec<FormatLimit> = limits.collect();
        limits.sort_by_key(|l| std::cmp::Reverse(l.bytes_per_token));
        limits
    }

    fn limit(&self, machine: &Machine, past: Option<&Entry>, kv: &KvLayout, name: String) -> FormatLimit {
        let layout = self.with(kv, 1);
        let kept = Kept { sizes: self.sizes, layout: &layout, gpu: self.placer.map(|p| p.gpu) };
        let decode = Decode::new(machine, kept, self.shape.threads, past);
        let (trained, fits) = (self.trained(), self.fits(kv));
        let mut tokens: Vec<usize> = CTX_COMPARED.into_iter().filter(|&n| n <= trained).collect();
        tokens.extend((fits > 0).then_some(fits));
        tokens.sort_unstable();
        tokens.dedup();
        let contexts = tokens.into_iter().map(|ctx_tokens| {
            let footprint = self.at(kv, ctx_tokens);
            FormatAt {
                ctx_tokens,
                kv_bytes: footprint.kv,
                total_bytes: footprint.total,
                fits: self.holds(&self.with(kv, ctx_tokens)),
                decode_tokens_per_second: decode.at(kept, ctx_tokens.saturating_sub(1)).p50,
            }
        });
        FormatLimit {
            kv: name,
            planned: self.alike(kv, &self.shape.kv),
            bytes_per_token: self.sizes.kv_bytes_per_token(kv),
            fits_tokens: fits,
            half_speed_tokens: half_speed(kept, &decode, trained - 1),
            contexts: contexts.collect(),
        }
    }

    /// Whether every layer gets the same of both.
    fn alike(&self, a: &KvLayout, b: &KvLayout) -> bool {
        (0..self.sizes.layers()).all(|i| self.sizes.kv_pair(a, i) == self.sizes.kv_pair(b, i))
    }

    /// Why `layout` is more than there is, with both numbers and the way out.
    pub fn refusal(&self, layout: &Layout, context: &Context, limits: &[FormatLimit]) -> PlanError {
        let limit_bytes = self.budget.bytes.unwrap_or(u64::MAX);
        let source_of_limit = self.budget.source.clone();
        let least = CTX_LEAST.min(context.trained_tokens).min(context.tokens);
        if context.fits_tokens >= least {
            let planned = limits.iter().find(|l| l.planned);
            let others = limits.iter().filter(|l| !l.planned && l.fits_tokens > context.fits_tokens);
            return PlanError::ContextDoesNotFit {
                asked: context.tokens,
                fits: context.fits_tokens,
                needs_bytes: self.sizes.footprint(layout).total,
                limit_bytes,
                source_of_limit,
                kv: planned.map_or_else(|| "f16".to_string(), |l| l.kv.clone()),
                others: others.map(|l| (l.kv.clone(), l.fits_tokens)).collect(),
            };
        }
        let needs_bytes = self.at(&layout.kv, least).total;
        PlanError::ModelDoesNotFit { needs_bytes, ctx_tokens: least, limit_bytes, source_of_limit }
    }
}

/// Largest `n` in `1..=most` that `fits` (monotone), in whole pages of 256 unless it is `most`; 0 if none does.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    if fits(most) {
        return most;
    }
    let (mut low, mut high) = (0, most.div_ceil(PAGE_POSITIONS));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle * PAGE_POSITIONS) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low * PAGE_POSITIONS
}
