//! What the IQ1, IQ2 and IQ3 formats share: expansion of the packed grids (at compile time), the 128 sign patterns and
//! the application of signs. It must not know any block layout.

use super::tables;

/// Expands grid points of eight 2-bit codes into magnitudes.
const fn expand8<const N: usize>(packed: &[u16; N], levels: [u8; 3]) -> [[u8; 8]; N] {
    let mut grid = [[0; 8]; N];
    let mut point = 0;
    while point < N {
        let mut j = 0;
        while j < 8 {
            grid[point][j] = levels[(packed[point] >> (2 * j) & 3) as usize];
            j += 1;
        }
        point += 1;
    }
    grid
}

/// Expands the ternary grid of the IQ1 formats.
const fn ternary<const N: usize>(packed: &[u16; N]) -> [[i8; 8]; N] {
    let codes = expand8(packed, [0, 1, 2]);
    let mut grid = [[0; 8]; N];
    let mut i = 0;
    while i < 8 * N {
        grid[i / 8][i % 8] = codes[i / 8][i % 8] as i8 - 1;
        i += 1;
    }
    grid
}

/// Expands grid points of four 4-bit codes into magnitudes.
const fn expand4<const N: usize>(packed: &[u16; N], levels: [u8; 8]) -> [[u8; 4]; N] {
    let mut grid = [[0; 4]; N];
    let mut point = 0;
    while point < N {
        let mut j = 0;
        while j < 4 {
            grid[point][j] = levels[(packed[point] >> (4 * j) & 7) as usize];
            j += 1;
        }
        point += 1;
    }
    grid
}

const IQ2_LEVELS: [u8; 3] = [8, 25, 43];

/// Magnitudes of the eight weights of each point of IQ2_XXS.
pub static IQ2_XXS: [[u8; 8]; 256] = expand8(&tables::IQ2_XXS, IQ2_LEVELS);
/// The same of IQ2_XS.
pub static IQ2_XS: [[u8; 8]; 512] = expand8(&tables::IQ2_XS, IQ2_LEVELS);
/// The same of IQ2_S.
pub static IQ2_S: [[u8; 8]; 1024] = expand8(&tables::IQ2_S, IQ2_LEVELS);
/// Levels -1, 0, 1 of the eight weights of each point of IQ1_S and IQ1_M.
pub static IQ1: [[i8; 8]; 2048] = ternary(&tables::IQ1);
/// Magnitudes of the four weights of each point of IQ3_XXS.
pub static IQ3_XXS: [[u8; 4]; 256] = expand4(&tables::IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);
/// The same of IQ3_S.
pub static IQ3_S: [[u8; 4]; 512] = expand4(&tables::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

/// The 128 sign patterns: seven stored bits and an eighth that makes the number of minus signs even.
pub static EVEN_SIGNS: [u8; 128] = {
    let mut signs = [0; 128];
    let mut seven = 0u8;
    while seven < 128 {
        signs[seven as usize] = seven | (seven.count_ones() as u8 & 1) << 7;
        seven += 1;
    }
    signs
};

/// The eight signs that the low seven bits of `packed` stand for.
pub(super) fn even_signs(packed: u32) -> u8 {
    EVEN_SIGNS[(packed & 127) as usize]
}

/// `w[j] = scale * magnitudes[j]`, negated where bit `j` of `signs` is set.
#[inline(always)]
pub(super) fn signed_point<const N: usize>(scale: f32, magnitudes: &[u8; N], signs: u8, w: &mut [f32; N]) {
    let signs = u32::from(signs);
    *w = std::array::from_fn(|j| {
        let flip = (signs << (31 - j)) & 0x8000_0000;
        f32::from_bits((scale * f32::from(magnitudes[j])).to_bits() ^ flip)
    });
}
