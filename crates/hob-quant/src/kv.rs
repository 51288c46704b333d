//! Formats of K and V in the cache: names, sizes and rules. A vector is one head's K or V at one position, `[head_dim]`.
//! It knows nothing of pages, nor of how attention multiplies what is stored (`hob_compute::reference::attention`).

mod group;
mod hadamard;
#[cfg(test)]
mod tests;
mod vector;

pub use group::{Q4_PROPOSALS, asym4_group, q4_group, q8_group};
pub use hadamard::hadamard;
pub use vector::{KvGroup, decode_kv, encode_kv, kv_groups, scales_are_sound};

use std::fmt;
use std::str::FromStr;

/// How one side (K or V) of a layer's cache is stored.
///
/// Encodings are little-endian. In the packed formats 32 neighboring values, a group, share a scale, and the encoding
/// of a vector is that of its groups, one after the other. Scales are f16, finite and not negative, whatever the input:
/// one that would be larger than 65504 is 65504, and a group that holds a NaN or an infinity is stored as zeros. `round`
/// is to the nearest integer, ties to even, after clamping; divisions and products are f32.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvFormat {
    /// 16-bit floats, rounded to nearest even.
    #[default]
    F16,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// int8 of the vector after [`hadamard`], which halves the error of vectors with large dimensions: 34 bytes per group,
    /// the scale and 32 i8. `d = f16(largest |x| / 127)`,
    /// `code = round(clamp(x * (1 / d), -127, 127))`, 0 where `d` is 0; the value is `d * code`.
    Q8,
    /// Signed int4 of the vector after [`hadamard`]: 18 bytes per group, the scale and 16 bytes, of which byte `j` holds
    /// `code[j] + 8` in its low and `code[j + 16] + 8` in its high nibble; the value is `d * code`.
    ///
    /// With `m = largest |x|`, each `c` of 8.5, 8, 7.5, 7 proposes `code = round(clamp(x * (c / m), -8, 7))`, for which
    /// `d = s / q` has the least squared error, `s = sum(x * code)` and `q = sum(code * code)`. The first proposal of the
    /// largest `s * s / q` (f32), hence of the least error, wins, and `d` is rounded to f16. `s` is summed in 8 lanes: lane `l` takes the
    /// values `l, l + 8, ..` by fma from +0, then lane `i` adds lane `i + 4`, `i + 2`, `i + 1`. On a normal distribution this
    /// leaves 8.65 % relative error, where one proposal of 8 leaves 9.2 % and a fine search of sixteen 8.6 %.
    Q4,
    /// Unsigned int4: 20 bytes per group, scale, minimum (f16) and 16 bytes of nibbles as in q4, but without the 8
    /// (arXiv 2604.16957). `m = f16(smallest x)`, within +-65504, `d = f16((largest x - smallest x) / 15)`,
    /// `code = round(clamp((x - m) * (1 / d), 0, 15))`, 0 where `d` is 0; the value is `d * code + m`. For comparison.
    Asym4,
}

/// Values that share a scale in the packed formats.
pub const KV_GROUP: usize = 32;

impl KvFormat {
    pub const ALL: [KvFormat; 5] =
        [KvFormat::F16, KvFormat::Bf16, KvFormat::Q8, KvFormat::Q4, KvFormat::Asym4];

    /// As flags and figures spell it.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F16 => "f16",
            KvFormat::Bf16 => "bf16",
            KvFormat::Q8 => "q8",
            KvFormat::Q4 => "q4",
            KvFormat::Asym4 => "asym4",
        }
    }

    /// Whether values are integers in groups of [`KV_GROUP`] with scales of their own.
    pub fn is_packed(self) -> bool {
        matches!(self, KvFormat::Q8 | KvFormat::Q4 | KvFormat::Asym4)
    }

    /// Whether vectors of `head_dim` values can be stored so: packed formats want whole groups.
    pub fn fits(self, head_dim: usize) -> bool {
        !self.is_packed() || (head_dim > 0 && head_dim.is_multiple_of(KV_GROUP))
    }

    /// Whether vectors of a side of this format go through [`hadamard`] before they are stored, also those of blocks that
    /// are kept in another format: queries then get the same, and results its inverse, which is the same again.
    pub fn is_rotated(self) -> bool {
        matches!(self, KvFormat::Q8 | KvFormat::Q4)
    }

    /// Bytes of one vector that [`KvFormat::fits`].
    pub fn vector_bytes(self, head_dim: usize) -> usize {
        let groups = head_dim / KV_GROUP;
        match self {
            KvFormat::F16 | KvFormat::Bf16 => 2 * head_dim,
            KvFormat::Q8 => groups * 34,
            KvFormat::Q4 => groups * 18,
            KvFormat::Asym4 => groups * 20,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = String;

    /// # Errors
    /// The names that there are.
    fn from_str(name: &str) -> Result<Self, String> {
        let found = KvFormat::ALL.into_iter().find(|f| f.name() == name);
        found.ok_or_else(|| {
            format!("expected {}, found '{name}'", KvFormat::ALL.map(KvFormat::name).join(", "))
        })
    }
}
