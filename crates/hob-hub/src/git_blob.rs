//! The id that git gives a file: SHA-1 of `blob LENGTH NUL CONTENT`. The hub announces no other hash for the small
//! files of a repository (config.json and the like). SHA-1 (FIPS 180-4) finds damage, not forgery; against that
//! there is the encrypted connection, as for the announcement itself.

/// 40 lower-case hex digits.
pub(crate) fn id(content: &[u8]) -> String {
    let mut message = format!("blob {}\0", content.len()).into_bytes();
    message.extend_from_slice(content);
    sha1(message).iter().map(|word| format!("{word:08x}")).collect()
}

fn sha1(mut message: Vec<u8>) -> [u32; 5] {
    let bits = message.len() as u64 * 8;
    message.push(0x80);
    message.resize((message.len() + 8).next_multiple_of(64) - 8, 0);
    message.extend(bits.to_be_bytes());
    let mut state = [0x6745_2301u32, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];
    for block in message.chunks_exact(64) {
        let mut w = [0u32; 80];
        for (word, bytes) in w.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for t in 16..80 {
            w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (t, word) in w.iter().enumerate() {
            let (f, k) = match t {
                0..20 => (b & c | !b & d, 0x5A82_7999),
                20..40 => (b ^ c ^ d, 0x6ED9_EBA1),
                40..60 => (b & c | b & d | c & d, 0x8F1B_BCDC),
                _ => (b ^ c ^ d, 0xCA62_C1D6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::id;

    /// As `git hash-object --stdin` prints them.
    #[test]
    fn ids_are_git_s() {
        assert_eq!(id(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(id(b"hello world\n"), "3b18e512dba79e4c8300dd08aeb37f8e728b8dad");
        for bytes in [55, 56, 63, 64, 65, 200] {
            assert_eq!(id(&vec![b'x'; bytes]).len(), 40, "any length");
        }
    }
}
