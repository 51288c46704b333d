//! The registry: one line per ggml tensor type with its id, name, block sizes, decoder, encoders and integer form.
//! It must not know how a block is laid out inside; that stands in the format's own file.
//!
//! Ids, names and sizes follow ggml's `enum ggml_type` and the block structs of `ggml-common.h`. Ids 4, 5, 31-33 and
//! 36-38 were withdrawn by ggml and name nothing.

use std::fmt;

use crate::IntBlock;
use crate::formats::{
    BadBlock, fp4, iq1, iq2, iq3, iq4, legacy, low_bit, plain, q2k, q3k, q4k, q5k, q6k, q8k, ternary,
};

/// Decodes whole blocks; lengths are checked by the caller (`row.rs`).
pub(crate) type Decode = fn(&[u8], &mut [f32]);
/// The integer form of 32 weights of one block: the block's bytes, and which 32 of its weights.
pub(crate) type DecodeInt = fn(&[u8], usize) -> IntBlock;
/// Encodes whole blocks or names the first that cannot be represented; lengths are checked by the caller (`row.rs`).
pub(crate) type Encode = fn(&[f32], &mut [u8]) -> Result<(), BadBlock>;
/// The same by a search; the second argument is the importance of each weight's column, as many as weights.
pub(crate) type Quantize = fn(&[f32], Option<&[f32]>, &mut [u8]) -> Result<(), BadBlock>;

/// One registry line.
pub(crate) struct Spec {
    id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
    pub(crate) decode: Decode,
    pub(crate) encode: Option<Encode>,
    pub(crate) quantize: Option<Quantize>,
    pub(crate) int: Option<DecodeInt>,
}

macro_rules! registry {
    ($($variant:ident $id:literal $name:literal $len:literal $bytes:literal $decode:expr, $encode:expr, $quantize:expr,
        $int:expr;)*) => {
        /// A weight format as stored in files: every ggml tensor type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Format { $(#[doc = concat!("ggml type ", $id, ", `", $name, "`.")] $variant),* }

        impl Format {
            /// Every format, ascending by ggml id.
            pub const ALL: &'static [Format] = &[$(Format::$variant),*];

            pub(crate) const fn spec(self) -> &'static Spec {
                match self {
                    $(Format::$variant => &Spec {
                        id: $id, name: $name, block_len: $len, block_bytes: $bytes, decode: $decode, encode: $encode,
                        quantize: $quantize, int: $int,
                    }),*
                }
            }
        }
    };
}

// variant  id name  weights bytes  decoder, encoder by the published rule, encoder by search, integer form
registry! {
    F32     0 "F32"       1   4  plain::decode_f32, Some(plain::encode_f32), Some(plain::quantize_f32), None;
    F16     1 "F16"       1   2  plain::decode_f16, Some(plain::encode_f16), Some(plain::quantize_f16), None;
    Q4_0    2 "Q4_0"     32  18  legacy::decode_q4_0, Some(legacy::encode_q4_0), Some(legacy::quantize_q4_0), Some(legacy::int_q4_0);
    Q4_1    3 "Q4_1"     32  20  legacy::decode_q4_1, Some(legacy::encode_q4_1), Some(legacy::quantize_q4_1), Some(legacy::int_q4_1);
    Q5_0    6 "Q5_0"     32  22  legacy::decode_q5_0, Some(legacy::encode_q5_0), Some(legacy::quantize_q5_0), Some(legacy::int_q5_0);
    Q5_1    7 "Q5_1"     32  24  legacy::decode_q5_1, Some(legacy::encode_q5_1), Some(legacy::quantize_q5_1), Some(legacy::int_q5_1);
    Q8_0    8 "Q8_0"     32  34  legacy::decode_q8_0, Some(legacy::encode_q8_0), Some(legacy::quantize_q8_0), Some(legacy::int_q8_0);
    Q8_1    9 "Q8_1"     32  36  legacy::decode_q8_1, None, None, None;
    Q2K    10 "Q2_K"    256  84  q2k::decode, None, Some(q2k::quantize), Some(q2k::int);
    Q3K    11 "Q3_K"    256 110  q3k::decode, None, Some(q3k::quantize), Some(q3k::int);
    Q4K    12 "Q4_K"    256 144  q4k::decode, None, Some(q4k::quantize), Some(q4k::int);
    Q5K    13 "Q5_K"    256 176  q5k::decode, None, Some(q5k::quantize), Some(q5k::int);
    Q6K    14 "Q6_K"    256 210  q6k::decode, None, Some(q6k::quantize), Some(q6k::int);
    Q8K    15 "Q8_K"    256 292  q8k::decode, None, None, None;
    IQ2XXS 16 "IQ2_XXS" 256  66  iq2::decode_xxs, None, None, Some(iq2::int_xxs);
    IQ2XS  17 "IQ2_XS"  256  74  iq2::decode_xs, None, None, Some(iq2::int_xs);
    IQ3XXS 18 "IQ3_XXS" 256  98  iq3::decode_xxs, None, None, Some(iq3::int_xxs);
    IQ1S   19 "IQ1_S"   256  50  iq1::decode_s, None, None, Some(iq1::int_s);
    IQ4NL  20 "IQ4_NL"   32  18  iq4::decode_nl, None, Some(iq4::quantize_nl), Some(iq4::int_nl);
    IQ3S   21 "IQ3_S"   256 110  iq3::decode_s, None, None, Some(iq3::int_s);
    IQ2S   22 "IQ2_S"   256  82  iq2::decode_s, None, None, Some(iq2::int_s);
    IQ4XS  23 "IQ4_XS"  256 136  iq4::decode_xs, None, Some(iq4::quantize_xs), Some(iq4::int_xs);
    I8     24 "I8"        1   1  plain::decode_i8, None, None, None;
    I16    25 "I16"       1   2  plain::decode_i16, None, None, None;
    I32    26 "I32"       1   4  plain::decode_i32, None, None, None;
    I64    27 "I64"       1   8  plain::decode_i64, None, None, None;
    F64    28 "F64"       1   8  plain::decode_f64, None, None, None;
    IQ1M   29 "IQ1_M"   256  56  iq1::decode_m, None, None, Some(iq1::int_m);
    BF16   30 "BF16"      1   2  plain::decode_bf16, Some(plain::encode_bf16), Some(plain::quantize_bf16), None;
    TQ1_0  34 "TQ1_0"   256  54  ternary::decode_tq1_0, None, None, Some(ternary::int_tq1_0);
    TQ2_0  35 "TQ2_0"   256  66  ternary::decode_tq2_0, None, None, Some(ternary::int_tq2_0);
    MXFP4  39 "MXFP4"    32  17  fp4::decode_mxfp4, None, Some(fp4::quantize_mxfp4), Some(fp4::int_mxfp4);
    NVFP4  40 "NVFP4"    64  36  fp4::decode_nvfp4, None, None, None;
    Q1_0   41 "Q1_0"    128  18  low_bit::decode_q1_0, None, None, None;
    Q2_0   42 "Q2_0"     64  18  low_bit::decode_q2_0, None, None, None;
}

impl Format {
    /// The format with this ggml type id, or `None` for withdrawn and unknown ids.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.ggml_id() == id)
    }

    /// The ggml type id, as stored in a GGUF tensor table.
    pub const fn ggml_id(self) -> u32 {
        self.spec().id
    }

    /// The ggml name, e.g. `"Q4_K"`.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The format with this ggml name, ignoring ASCII case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// Weights per block (1 for unquantized types).
    pub const fn block_len(self) -> usize {
        self.spec().block_len
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        self.spec().block_bytes
    }

    /// Bytes of a row of `cols` weights; `None` if `cols` is not a whole number of blocks or the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Storage cost in bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Whether [`crate::decode_row`] knows this format: always, since a registry line cannot be written without a
    /// decoder.
    pub const fn can_decode(self) -> bool {
        true
    }

    /// Whether [`crate::int_block`] knows this format.
    pub const fn has_int_blocks(self) -> bool {
        self.spec().int.is_some()
    }

    /// Whether [`crate::encode_row`] knows this format.
    pub const fn can_encode(self) -> bool {
        self.spec().encode.is_some()
    }

    /// Whether [`crate::quantize_row`] knows this format.
    pub const fn can_quantize(self) -> bool {
        self.spec().quantize.is_some()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
