//! What an adapter can do beyond the least that every kernel has a form for. It must not know kernels.

use std::fmt;

/// Features that kernels have forms with and without. `HOB_GPU_OFF` (names as in [`Tier::NAMES`], with commas) switches
/// some off, so that one machine tests all forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Operations within subgroups, of whatever size.
    pub subgroups: bool,
    /// 16-bit floats in arithmetic and storage.
    pub f16: bool,
    /// Dot products of four int8 in hardware; without it int8 activations cost more than they save.
    pub dot: bool,
    /// Cooperative matrices of 16 x 16 x 16 f16 with f32 sums, on subgroups that are always 32.
    pub coop: bool,
    /// Timestamps inside passes.
    pub timestamps: bool,
}

impl Tier {
    /// Names of the features, in the order of the fields.
    pub const NAMES: [&'static str; 5] = ["subgroups", "f16", "dot", "coop", "timestamps"];

    fn fields(&mut self) -> [&mut bool; 5] {
        [&mut self.subgroups, &mut self.f16, &mut self.dot, &mut self.coop, &mut self.timestamps]
    }

    /// Without the named features.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn without(mut self, names: &str) -> Result<Tier, String> {
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            let at = Self::NAMES.iter().position(|n| *n == name);
            let Some(at) = at else {
                return Err(format!("expected some of {}, found '{name}'", Self::NAMES.join(", ")));
            };
            *self.fields()[at] = false;
        }
        Ok(self)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tier = *self;
        let on: Vec<_> = tier.fields().into_iter().zip(Self::NAMES).filter(|(on, _)| **on).collect();
        if on.is_empty() {
            return f.write_str("plain");
        }
        f.write_str(&on.iter().map(|(_, name)| *name).collect::<Vec<_>>().join("+"))
    }
}
