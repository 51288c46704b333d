//! The products of one block of 32 columns, 16 weight rows by 1 to 4 activation rows, written out in assembly: left to
//! itself the compiler reassociates the sums, keeps every broadcast value alive and spills them, which halves the speed.
//!
//! Knows the block of [`super::Block`] and the activation tile; must not know formats or how blocks came to be.
//!
//! Registers: ymm0-7 sums (`2n + g`: activation row n, half g of the weight rows), ymm8, 9 weights of the halves, ymm10, 11
//! products, ymm12 a broadcast activation; ymm13-15 constants or more weights. Accumulators stay in memory, in the
//! L1 cache.

use std::arch::asm;

use super::{Block, HEIGHT};

/// Codes 0..15 less an offset, one scale per 32.
pub const U4_OFFSET: u8 = 0;
/// Codes 0..15, scale and minimum per 32.
pub const U4_MINIMUM: u8 = 1;
/// As `U4_OFFSET`, from packed nibbles.
pub const N4_OFFSET: u8 = 2;
/// As `U4_MINIMUM`, from packed nibbles.
pub const N4_MINIMUM: u8 = 3;
/// Codes 0..31 less an offset.
pub const U5_OFFSET: u8 = 4;
/// Codes 0..31, scale and minimum per 32.
pub const U5_MINIMUM: u8 = 5;
/// Signed codes, one scale per 32.
pub const S8: u8 = 6;
/// As `S8`, with magnitudes beside the codes.
pub const S8_SPLIT: u8 = 7;
/// Codes 0..127 less an offset, integer sub-scales per 16.
pub const U7_SCALED: u8 = 8;
/// Codes 0..63, as `U7_SCALED`.
pub const U6_SCALED: u8 = 9;
/// Codes 0..7, as `U7_SCALED`.
pub const U3_SCALED: u8 = 10;
/// Codes 0..7, integer sub-scales and minima per 16.
pub const U3_MINIMA: u8 = 11;

/// What a block's assembly reads and writes.
#[derive(Clone, Copy)]
pub struct At {
    /// 512 bytes of codes `[8 steps][16 rows][4]`, or 256 of nibbles for the packed form.
    pub codes: *const u8,
    /// Scales and minima of the block.
    pub block: *const Block,
    /// The tile's block: codes, scales, sum pairs, scaled sums.
    pub x: *const u8,
    /// Accumulators are added to, halves overwritten.
    pub frame: *mut Frame,
}

/// What every block of a tile shares. The offsets are known to the assembly.
#[repr(C, align(64))]
pub struct Frame {
    /// Sums of a block's first half.
    half: [i32; 4 * HEIGHT],
    /// The accumulators of the tile, `[N][16]`. Not those of the caller, because stores that straddle cache lines would
    /// be waited for in every block.
    pub acc: [f32; 4 * HEIGHT],
    /// Mask of low nibbles.
    mask: [u8; 32],
    /// The offset of the codes.
    pub offset: [i16; 16],
    ones: [i16; 16],
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Frame, acc) == 256 && offset_of!(Frame, mask) == 512);
    assert!(offset_of!(Frame, offset) == 544 && offset_of!(Frame, ones) == 576);
    assert!(offset_of!(Block, d) == 512 && offset_of!(Block, m) == 576);
    assert!(offset_of!(Block, s) == 640 && offset_of!(Block, o) == 768);
    assert!(offset_of!(Block, magnitudes) == 832);
};

impl Frame {
    pub const NEW: Frame =
        Frame { half: [0; 64], acc: [0.0; 64], mask: [15; 32], offset: [0; 16], ones: [1; 16] };
}

/// Register of the sum of activation row n, half g.
macro_rules! sum {
    (0, 0) => {
        "ymm0"
    };
    (0, 1) => {
        "ymm1"
    };
    (1, 0) => {
        "ymm2"
    };
    (1, 1) => {
        "ymm3"
    };
    (2, 0) => {
        "ymm4"
    };
    (2, 1) => {
        "ymm5"
    };
    (3, 0) => {
        "ymm6"
    };
    (3, 1) => {
        "ymm7"
    };
}

/// `$m!(n, ..)` for all n below the number of rows.
macro_rules! rows {
    (1, $m:ident $(, $a:tt)*) => {
        $m!(0 $(, $a)*)
    };
    (2, $m:ident $(, $a:tt)*) => {
        concat!($m!(0 $(, $a)*), $m!(1 $(, $a)*))
    };
    (3, $m:ident $(, $a:tt)*) => {
        concat!($m!(0 $(, $a)*), $m!(1 $(, $a)*), $m!(2 $(, $a)*))
    };
    (4, $m:ident $(, $a:tt)*) => {
        concat!($m!(0 $(, $a)*), $m!(1 $(, $a)*), $m!(2 $(, $a)*), $m!(3 $(, $a)*))
    };
}

/// Broadcasts the four codes of step t of row n.
macro_rules! codes {
    ($n:tt, $t:literal, $to:literal) => {
        concat!("vpbroadcastd ", $to, ", dword ptr [{x} + 32*", $n, " + 4*", $t, "]\n")
    };
}

/// First step of a 16-bit sum.
macro_rules! begin {
    ($n:tt, $t:literal) => {
        concat!(
            codes!($n, $t, "ymm12"),
            concat!("vpmaddubsw ", sum!($n, 0), ", ymm8, ymm12\n"),
            concat!("vpmaddubsw ", sum!($n, 1), ", ymm9, ymm12\n"),
        )
    };
}

/// Further step of a 16-bit sum.
macro_rules! go_on {
    ($n:tt, $t:literal) => {
        concat!(
            codes!($n, $t, "ymm12"),
            "vpmaddubsw ymm10, ymm8, ymm12\n",
            "vpmaddubsw ymm11, ymm9, ymm12\n",
            concat!("vpaddw ", sum!($n, 0), ", ", sum!($n, 0), ", ymm10\n"),
            concat!("vpaddw ", sum!($n, 1), ", ", sum!($n, 1), ", ymm11\n"),
        )
    };
}

/// One step of 4 columns on unpacked codes.
macro_rules! step {
    ($n:tt, $kind:ident, $t:literal) => {
        concat!(
            concat!("vmovdqu ymm8, ymmword ptr [{c} + 64*", $t, "]\n"),
            concat!("vmovdqu ymm9, ymmword ptr [{c} + 64*", $t, " + 32]\n"),
            rows!($n, $kind, $t),
        )
    };
}

/// One step on packed nibbles: the low ones of chunk `$c`.
macro_rules! low {
    ($n:tt, $kind:ident, $c:literal, $t:literal) => {
        concat!(
            concat!("vpand ymm8, ymm13, ymmword ptr [{c} + 64*", $c, "]\n"),
            concat!("vpand ymm9, ymm13, ymmword ptr [{c} + 64*", $c, " + 32]\n"),
            rows!($n, $kind, $t),
        )
    };
}

/// One step on packed nibbles: the high ones of chunk `$c`.
macro_rules! high {
    ($n:tt, $c:literal, $t:literal) => {
        concat!(
            concat!("vmovdqu ymm8, ymmword ptr [{c} + 64*", $c, "]\n"),
            concat!("vmovdqu ymm9, ymmword ptr [{c} + 64*", $c, " + 32]\n"),
            "vpsrlw ymm8, ymm8, 4\n",
            "vpsrlw ymm9, ymm9, 4\n",
            "vpand ymm8, ymm8, ymm13\n",
            "vpand ymm9, ymm9, ymm13\n",
            rows!($n, go_on, $t),
        )
    };
}

/// Sums over all 8 steps in 16 bits: codes to 15 (8 * 2 * 15 * 127 = 30480).
macro_rules! eight {
    ($n:tt) => {
        concat!(
            "vmovdqa ymm15, ymmword ptr [{f} + 512 + 64]\n",
            step!($n, begin, 0),
            step!($n, go_on, 1),
            step!($n, go_on, 2),
            step!($n, go_on, 3),
            step!($n, go_on, 4),
            step!($n, go_on, 5),
            step!($n, go_on, 6),
            step!($n, go_on, 7),
            rows!($n, widen),
        )
    };
}

/// As `eight`, from packed nibbles.
macro_rules! nibbles {
    ($n:tt) => {
        concat!(
            "vmovdqa ymm13, ymmword ptr [{f} + 512]\n",
            "vmovdqa ymm15, ymmword ptr [{f} + 512 + 64]\n",
            low!($n, begin, 0, 0),
            low!($n, go_on, 1, 1),
            low!($n, go_on, 2, 2),
            low!($n, go_on, 3, 3),
            high!($n, 0, 4),
            high!($n, 1, 5),
            high!($n, 2, 6),
            high!($n, 3, 7),
            rows!($n, widen),
        )
    };
}

/// Sums over 4 steps in 16 bits, codes to 31 (4 * 2 * 31 * 127 = 31496): widened at the half, in the way `$widen` says.
macro_rules! fours {
    ($n:tt, $widen:ident, $add:ident) => {
        concat!(
            "vmovdqa ymm15, ymmword ptr [{f} + 512 + 64]\n",
            step!($n, begin, 0),
            step!($n, go_on, 1),
            step!($n, go_on, 2),
            step!($n, go_on, 3),
            rows!($n, $widen),
            rows!($n, keep),
            step!($n, begin, 4),
            step!($n, go_on, 5),
            step!($n, go_on, 6),
            step!($n, go_on, 7),
            rows!($n, $add),
            rows!($n, join),
        )
    };
}

/// 16-bit pairs to 32 bits.
macro_rules! widen {
    ($n:tt) => {
        concat!(
            concat!("vpmaddwd ", sum!($n, 0), ", ", sum!($n, 0), ", ymm15\n"),
            concat!("vpmaddwd ", sum!($n, 1), ", ", sum!($n, 1), ", ymm15\n"),
        )
    };
}

/// 16-bit pairs times the sub-scale of a half to 32 bits.
macro_rules! widen_by {
    ($n:tt, $s:literal) => {
        concat!(
            concat!("vpmaddwd ", sum!($n, 0), ", ", sum!($n, 0), ", ymmword ptr [{w} + 640 + ", $s, "]\n"),
            concat!(
                "vpmaddwd ",
                sum!($n, 1),
                ", ",
                sum!($n, 1),
                ", ymmword ptr [{w} + 640 + 32 + ",
                $s,
                "]\n"
            ),
        )
    };
}
macro_rules! widen_first {
    ($n:tt) => {
        widen_by!($n, 0)
    };
}
macro_rules! widen_second {
    ($n:tt) => {
        widen_by!($n, 64)
    };
}

/// Puts the sums of the first half away.
macro_rules! keep {
    ($n:tt) => {
        concat!(
            concat!("vmovdqa ymmword ptr [{f} + 64*", $n, "], ", sum!($n, 0), "\n"),
            concat!("vmovdqa ymmword ptr [{f} + 64*", $n, " + 32], ", sum!($n, 1), "\n"),
        )
    };
}

/// Adds the sums of the first half.
macro_rules! join {
    ($n:tt) => {
        concat!(
            concat!("vpaddd ", sum!($n, 0), ", ", sum!($n, 0), ", ymmword ptr [{f} + 64*", $n, "]\n"),
            concat!("vpaddd ", sum!($n, 1), ", ", sum!($n, 1), ", ymmword ptr [{f} + 64*", $n, " + 32]\n"),
        )
    };
}

/// One step of signed codes: |w| times x with w's sign; a pair (2 * 128 * 127) fits 16 bits.
macro_rules! signed {
    ($n:tt, $kind:ident, $t:literal) => {
        concat!(
            concat!("vmovdqu ymm8, ymmword ptr [{c} + 64*", $t, "]\n"),
            concat!("vmovdqu ymm9, ymmword ptr [{c} + 64*", $t, " + 32]\n"),
            "vpabsb ymm13, ymm8\n",
            "vpabsb ymm14, ymm9\n",
            rows!($n, $kind, $t),
        )
    };
}
macro_rules! signed_products {
    ($n:tt, $t:literal) => {
        concat!(
            codes!($n, $t, "ymm12"),
            "vpsignb ymm10, ymm12, ymm8\n",
            "vpsignb ymm11, ymm12, ymm9\n",
            "vpmaddubsw ymm10, ymm13, ymm10\n",
            "vpmaddubsw ymm11, ymm14, ymm11\n",
        )
    };
}
macro_rules! add_products {
    ($n:tt) => {
        concat!(
            concat!("vpaddd ", sum!($n, 0), ", ", sum!($n, 0), ", ymm10\n"),
            concat!("vpaddd ", sum!($n, 1), ", ", sum!($n, 1), ", ymm11\n"),
        )
    };
}
macro_rules! signed_begin {
    ($n:tt, $t:literal) => {
        concat!(
            signed_products!($n, $t),
            concat!("vpmaddwd ", sum!($n, 0), ", ymm10, ymm15\n"),
            concat!("vpmaddwd ", sum!($n, 1), ", ymm11, ymm15\n"),
        )
    };
}
macro_rules! signed_go_on {
    ($n:tt, $t:literal) => {
        concat!(
            signed_products!($n, $t),
            "vpmaddwd ymm10, ymm10, ymm15\n",
            "vpmaddwd ymm11, ymm11, ymm15\n",
            add_products!($n),
        )
    };
}
macro_rules! signs {
    ($n:tt) => {
        concat!(
            "vmovdqa ymm15, ymmword ptr [{f} + 512 + 64]\n",
            signed!($n, signed_begin, 0),
            signed!($n, signed_go_on, 1),
            signed!($n, signed_go_on, 2),
            signed!($n, signed_go_on, 3),
            signed!($n, signed_go_on, 4),
            signed!($n, signed_go_on, 5),
            signed!($n, signed_go_on, 6),
            signed!($n, signed_go_on, 7),
        )
    };
}

/// The same with the magnitudes from a plane of their own.
macro_rules! split {
    ($n:tt, $kind:ident, $t:literal) => {
        concat!(
            concat!("vmovdqa ymm8, ymmword ptr [{w} + 832 + 64*", $t, "]\n"),
            concat!("vmovdqa ymm9, ymmword ptr [{w} + 832 + 64*", $t, " + 32]\n"),
            rows!($n, $kind, $t),
        )
    };
}
macro_rules! split_products {
    ($n:tt, $t:literal) => {
        concat!(
            codes!($n, $t, "ymm12"),
            concat!("vpsignb ymm10, ymm12, ymmword ptr [{c} + 64*", $t, "]\n"),
            concat!("vpsignb ymm11, ymm12, ymmword ptr [{c} + 64*", $t, " + 32]\n"),
            "vpmaddubsw ymm10, ymm8, ymm10\n",
            "vpmaddubsw ymm11, ymm9, ymm11\n",
        )
    };
}
macro_rules! split_begin {
    ($n:tt, $t:literal) => {
        concat!(
            split_products!($n, $t),
            concat!("vpmaddwd ", sum!($n, 0), ", ymm10, ymm15\n"),
            concat!("vpmaddwd ", sum!($n, 1), ", ymm11, ymm15\n"),
        )
    };
}
macro_rules! split_go_on {
    ($n:tt, $t:literal) => {
        concat!(
            split_products!($n, $t),
            "vpmaddwd ymm10, ymm10, ymm15\n",
            "vpmaddwd ymm11, ymm11, ymm15\n",
            add_products!($n),
        )
    };
}
macro_rules! splits {
    ($n:tt) => {
        concat!(
            "vmovdqa ymm15, ymmword ptr [{f} + 512 + 64]\n",
            split!($n, split_begin, 0),
            split!($n, split_go_on, 1),
            split!($n, split_go_on, 2),
            split!($n, split_go_on, 3),
            split!($n, split_go_on, 4),
            split!($n, split_go_on, 5),
            split!($n, split_go_on, 6),
            split!($n, split_go_on, 7),
        )
    };
}

/// One step of codes to 127 in 16 bits (2 * 127 * 127 = 32258), then times the sub-scale to 32.
macro_rules! one_products {
    ($n:tt, $t:literal) => {
        concat!(
            codes!($n, $t, "ymm12"),
            "vpmaddubsw ymm10, ymm8, ymm12\n",
            "vpmaddubsw ymm11, ymm9, ymm12\n",
        )
    };
}
macro_rules! one_begin {
    ($n:tt, $t:literal, $s:literal) => {
        concat!(
            one_products!($n, $t),
            concat!("vpmaddwd ", sum!($n, 0), ", ymm10, ymmword ptr [{w} + 640 + ", $s, "]\n"),
            concat!("vpmaddwd ", sum!($n, 1), ", ymm11, ymmword ptr [{w} + 640 + 32 + ", $s, "]\n"),
        )
    };
}
macro_rules! one_go_on {
    ($n:tt, $t:literal, $s:literal) => {
        concat!(
            one_products!($n, $t),
            concat!("vpmaddwd ymm10, ymm10, ymmword ptr [{w} + 640 + ", $s, "]\n"),
            concat!("vpmaddwd ymm11, ymm11, ymmword ptr [{w} + 640 + 32 + ", $s, "]\n"),
            add_products!($n),
        )
    };
}
macro_rules! one {
    ($n:tt, $kind:ident, $t:literal, $s:literal) => {
        concat!(
            concat!("vmovdqu ymm8, ymmword ptr [{c} + 64*", $t, "]\n"),
            concat!("vmovdqu ymm9, ymmword ptr [{c} + 64*", $t, " + 32]\n"),
            rows!($n, $kind, $t, $s),
        )
    };
}
macro_rules! one_by_one {
    ($n:tt) => {
        concat!(
            one!($n, one_begin, 0, 0),
            one!($n, one_go_on, 1, 0),
            one!($n, one_go_on, 2, 0),
            one!($n, one_go_on, 3, 0),
            one!($n, one_go_on, 4, 64),
            one!($n, one_go_on, 5, 64),
            one!($n, one_go_on, 6, 64),
            one!($n, one_go_on, 7, 64),
        )
    };
}

/// Two steps of codes to 63 in 16 bits (2 * 2 * 63 * 127 = 32004), then times the sub-scale to 32.
macro_rules! two {
    ($n:tt, $kind:ident, $t:literal, $u:literal, $s:literal) => {
        concat!(
            concat!("vmovdqu ymm8, ymmword ptr [{c} + 64*", $t, "]\n"),
            concat!("vmovdqu ymm9, ymmword ptr [{c} + 64*", $t, " + 32]\n"),
            concat!("vmovdqu ymm13, ymmword ptr [{c} + 64*", $u, "]\n"),
            concat!("vmovdqu ymm14, ymmword ptr [{c} + 64*", $u, " + 32]\n"),
            rows!($n, $kind, $t, $u, $s),
        )
    };
}
macro_rules! two_products {
    ($n:tt, $t:literal, $u:literal) => {
        concat!(
            codes!($n, $t, "ymm12"),
            codes!($n, $u, "ymm15"),
            "vpmaddubsw ymm10, ymm8, ymm12\n",
            "vpmaddubsw ymm11, ymm9, ymm12\n",
            "vpmaddubsw ymm12, ymm13, ymm15\n",
            "vpmaddubsw ymm15, ymm14, ymm15\n",
            "vpaddw ymm10, ymm10, ymm12\n",
            "vpaddw ymm11, ymm11, ymm15\n",
        )
    };
}
macro_rules! two_begin {
    ($n:tt, $t:literal, $u:literal, $s:literal) => {
        concat!(
            two_products!($n, $t, $u),
            concat!("vpmaddwd ", sum!($n, 0), ", ymm10, ymmword ptr [{w} + 640 + ", $s, "]\n"),
            concat!("vpmaddwd ", sum!($n, 1), ", ymm11, ymmword ptr [{w} + 640 + 32 + ", $s, "]\n"),
        )
    };
}
macro_rules! two_go_on {
    ($n:tt, $t:literal, $u:literal, $s:literal) => {
        concat!(
            two_products!($n, $t, $u),
            concat!("vpmaddwd ymm10, ymm10, ymmword ptr [{w} + 640 + ", $s, "]\n"),
            concat!("vpmaddwd ymm11, ymm11, ymmword ptr [{w} + 640 + 32 + ", $s, "]\n"),
            add_products!($n),
        )
    };
}
macro_rules! twos {
    ($n:tt) => {
        concat!(
            two!($n, two_begin, 0, 1, 0),
            two!($n, two_go_on, 2, 3, 0),
            two!($n, two_go_on, 4, 5, 64),
            two!($n, two_go_on, 6, 7, 64),
        )
    };
}

/// Takes the constant offset times the row's sum away.
macro_rules! offset {
    ($n:tt, $rows:tt) => {
        concat!(
            concat!("vpbroadcastd ymm12, dword ptr [{x} + 36*", $rows, " + 4*", $n, "]\n"),
            "vpmaddwd ymm12, ymm12, ymmword ptr [{f} + 512 + 32]\n",
            concat!("vpsubd ", sum!($n, 0), ", ", sum!($n, 0), ", ymm12\n"),
            concat!("vpsubd ", sum!($n, 1), ", ", sum!($n, 1), ", ymm12\n"),
        )
    };
}

/// Takes offset times sub-scale times half sum away.
macro_rules! offset_by {
    ($n:tt, $rows:tt) => {
        concat!(
            concat!("vpbroadcastd ymm12, dword ptr [{x} + 36*", $rows, " + 4*", $n, "]\n"),
            "vpmaddwd ymm10, ymm12, ymmword ptr [{w} + 768]\n",
            "vpmaddwd ymm11, ymm12, ymmword ptr [{w} + 768 + 32]\n",
            concat!("vpsubd ", sum!($n, 0), ", ", sum!($n, 0), ", ymm10\n"),
            concat!("vpsubd ", sum!($n, 1), ", ", sum!($n, 1), ", ymm11\n"),
        )
    };
}

/// `y += i * (d * d_x)`; the sum stays in its register.
macro_rules! scale {
    ($n:tt, $rows:tt) => {
        concat!(
            concat!("vbroadcastss ymm12, dword ptr [{x} + 32*", $rows, " + 4*", $n, "]\n"),
            concat!("vcvtdq2ps ", sum!($n, 0), ", ", sum!($n, 0), "\n"),
            concat!("vcvtdq2ps ", sum!($n, 1), ", ", sum!($n, 1), "\n"),
            "vmulps ymm10, ymm12, ymmword ptr [{w} + 512]\n",
            "vmulps ymm11, ymm12, ymmword ptr [{w} + 512 + 32]\n",
            concat!("vfmadd213ps ", sum!($n, 0), ", ymm10, ymmword ptr [{f} + 256 + 64*", $n, "]\n"),
            concat!("vfmadd213ps ", sum!($n, 1), ", ymm11, ymmword ptr [{f} + 256 + 64*", $n, " + 32]\n"),
        )
    };
}
macro_rules! store {
    ($n:tt) => {
        concat!(
            concat!("vmovups ymmword ptr [{f} + 256 + 64*", $n, "], ", sum!($n, 0), "\n"),
            concat!("vmovups ymmword ptr [{f} + 256 + 64*", $n, " + 32], ", sum!($n, 1), "\n"),
        )
    };
}

/// Without minima.
macro_rules! plain {
    ($n:tt, $rows:tt) => {
        concat!(scale!($n, $rows), store!($n))
    };
}
/// A minimum per 32 columns: `y += m * (d_x * sum)`.
macro_rules! minimum {
    ($n:tt, $rows:tt) => {
        concat!(
            scale!($n, $rows),
            concat!("vbroadcastss ymm12, dword ptr [{x} + 40*", $rows, " + 4*", $n, "]\n"),
            concat!("vfmadd231ps ", sum!($n, 0), ", ymm12, ymmword ptr [{w} + 576]\n"),
            concat!("vfmadd231ps ", sum!($n, 1), ", ymm12, ymmword ptr [{w} + 576 + 32]\n"),
            store!($n),
        )
    };
}
/// Integer minima per 16 columns: `y += j * (m * d_x)`.
macro_rules! minima {
    ($n:tt, $rows:tt) => {
        concat!(
            scale!($n, $rows),
            concat!("vpbroadcastd ymm13, dword ptr [{x} + 36*", $rows, " + 4*", $n, "]\n"),
            "vpmaddwd ymm10, ymm13, ymmword ptr [{w} + 768]\n",
            "vpmaddwd ymm11, ymm13, ymmword ptr [{w} + 768 + 32]\n",
            "vcvtdq2ps ymm10, ymm10\n",
            "vcvtdq2ps ymm11, ymm11\n",
            "vmulps ymm13, ymm12, ymmword ptr [{w} + 576]\n",
            "vmulps ymm12, ymm12, ymmword ptr [{w} + 576 + 32]\n",
            concat!("vfmadd231ps ", sum!($n, 0), ", ymm10, ymm13\n"),
            concat!("vfmadd231ps ", sum!($n, 1), ", ymm11, ymm12\n"),
            store!($n),
        )
    };
}

/// Integer sums, offset, tail.
macro_rules! u4_offset {
    ($n:tt) => {
        concat!(eight!($n), rows!($n, offset, $n), rows!($n, plain, $n))
    };
}
macro_rules! u4_minimum {
    ($n:tt) => {
        concat!(eight!($n), rows!($n, minimum, $n))
    };
}
macro_rules! n4_offset {
    ($n:tt) => {
        concat!(nibbles!($n), rows!($n, offset, $n), rows!($n, plain, $n))
    };
}
macro_rules! n4_minimum {
    ($n:tt) => {
        concat!(nibbles!($n), rows!($n, minimum, $n))
    };
}
macro_rules! u5_offset {
    ($n:tt) => {
        concat!(fours!($n, widen, widen), rows!($n, offset, $n), rows!($n, plain, $n))
    };
}
macro_rules! u5_minimum {
    ($n:tt) => {
        concat!(fours!($n, widen, widen), rows!($n, minimum, $n))
    };
}
macro_rules! s8 {
    ($n:tt) => {
        concat!(signs!($n), rows!($n, plain, $n))
    };
}
macro_rules! s8_split {
    ($n:tt) => {
        concat!(splits!($n), rows!($n, plain, $n))
    };
}
macro_rules! u7_scaled {
    ($n:tt) => {
        concat!(one_by_one!($n), rows!($n, offset_by, $n), rows!($n, plain, $n))
    };
}
macro_rules! u6_scaled {
    ($n:tt) => {
        concat!(twos!($n), rows!($n, offset_by, $n), rows!($n, plain, $n))
    };
}
macro_rules! u3_scaled {
    ($n:tt) => {
        concat!(fours!($n, widen_first, widen_second), rows!($n, offset_by, $n), rows!($n, plain, $n))
    };
}
macro_rules! u3_minima {
    ($n:tt) => {
        concat!(fours!($n, widen_first, widen_second), rows!($n, minima, $n))
    };
}

macro_rules! run {
    ($body:ident, $n:tt, $at:ident) => {
        asm!(
            concat!("/* {c} {w} {x} {f} */\n", $body!($n)),
            c = in(reg) $at.codes,
            w = in(reg) $at.block,
            x = in(reg) $at.x,
            f = in(reg) $at.frame,
            out("ymm0") _,
            out("ymm1") _,
            out("ymm2") _,
            out("ymm3") _,
            out("ymm4") _,
            out("ymm5") _,
            out("ymm6") _,
            out("ymm7") _,
            out("ymm8") _,
            out("ymm9") _,
            out("ymm10") _,
            out("ymm11") _,
            out("ymm12") _,
            out("ymm13") _,
            out("ymm14") _,
            out("ymm15") _,
            options(nostack, preserves_flags),
        )
    };
}

/// The block function of each class.
macro_rules! classes {
    ($($class:ident $body:ident,)*) => {
        /// One block of class `C` for N <= 4 activation rows.
        ///
        /// # Safety
        /// Needs AVX2 and FMA; `at` points at what [`At`] says.
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub unsafe fn block<const C: u8, const N: usize>(at: At) {
            const { assert!(N >= 1 && N <= 4) };
            // SAFETY: the assembly reads and writes what `at` describes, and registers.
            unsafe {
                match (C, N) {
                    $(
                        ($class, 1) => run!($body, 1, at),
                        ($class, 2) => run!($body, 2, at),
                        ($class, 3) => run!($body, 3, at),
                        ($class, _) => run!($body, 4, at),
                    )*
                    _ => unreachable!("no such class"),
                }
            }
        }
    };
}

classes! {
    U4_OFFSET u4_offset,
    U4_MINIMUM u4_minimum,
    N4_OFFSET n4_offset,
    N4_MINIMUM n4_minimum,
    U5_OFFSET u5_offset,
    U5_MINIMUM u5_minimum,
    S8 s8,
    S8_SPLIT s8_split,
    U7_SCALED u7_scaled,
    U6_SCALED u6_scaled,
    U3_SCALED u3_scaled,
    U3_MINIMA u3_minima,
}
