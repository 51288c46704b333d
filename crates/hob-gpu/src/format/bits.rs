//! Bits of the file's blocks in the order of the device's planes, four weights at a time. It must not know scales.

/// The little-endian word at byte `at`.
pub(super) fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The little-endian half word at byte `at`.
pub(super) fn half(b: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([b[at], b[at + 1]]))
}

/// Plane `FOUR` from the low nibbles of 32 codes, four in a word.
pub(super) fn four(codes: [u32; 8]) -> [u8; 16] {
    let mut out = [0; 16];
    for j in 0..4 {
        let both = (codes[j] & 0x0F0F_0F0F) | (codes[j + 4] & 0x0F0F_0F0F) << 4;
        out[4 * j..4 * j + 4].copy_from_slice(&both.to_le_bytes());
    }
    out
}

/// Plane `TWO` from the low bit pairs of 32 codes.
pub(super) fn two(codes: [u32; 8]) -> [[u8; 4]; 2] {
    [0, 4].map(|at| (0..4).fold(0, |bits, j| bits | (codes[at + j] & 0x0303_0303) << (2 * j)).to_le_bytes())
}

/// Plane `ONE` from the lowest bits of 32 codes.
pub(super) fn one(codes: [u32; 8]) -> [u8; 4] {
    (0..8).fold(0, |bits, j| bits | (codes[j] & 0x0101_0101) << j).to_le_bytes()
}

/// Plane `ONE` from a word with the bit of weight i in bit i.
pub(super) fn one_of_word(bits: u32) -> [u8; 4] {
    // Bit i of a nibble goes to bit 0 of byte i.
    one(std::array::from_fn(|j| (bits >> (4 * j) & 15).wrapping_mul(0x0020_4081) & 0x0101_0101))
}

/// The words of 32 bytes, each shifted right.
pub(super) fn words(b: &[u8], shift: u32) -> [u32; 8] {
    std::array::from_fn(|j| word(b, 4 * j) >> shift)
}
