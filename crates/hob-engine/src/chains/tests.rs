//! Chains over a vocabulary of single letters, pairs of them, and two special tokens.

use super::*;

/// Below 100 special; 100.. one letter each; 1000 + 26 * a + b a pair of letters; 5000 spells nothing.
struct Letters;

impl Spelling for Letters {
    fn bytes(&self, token: u32) -> &[u8] {
        const PAIRS: [[u8; 2]; 676] = {
            let mut pairs = [[0; 2]; 676];
            let mut i = 0;
            while i < 676 {
                pairs[i] = [b'a' + (i / 26) as u8, b'a' + (i % 26) as u8];
                i += 1;
            }
            pairs
        };
        match token {
            0..100 => b"<special>",
            100..126 => &PAIRS[(token - 100) as usize][1..],
            1000..1676 => &PAIRS[(token - 1000) as usize],
            _ => b"",
        }
    }

    fn is_special(&self, token: u32) -> bool {
        token < 100
    }
}

/// Tokens of a text: `|` is special token 7, `(ab)` one token for a pair, other letters one by one.
fn tokens(text: &str) -> Vec<u32> {
    let letter = |b: u8| u32::from(b - b'a');
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'|' => 7,
            b'(' => {
                let pair = 1000 + 26 * letter(bytes.next().unwrap()) + letter(bytes.next().unwrap());
                assert_eq!(bytes.next(), Some(b')'));
                pair
            }
            _ => 100 + letter(b),
        });
    }
    out
}

fn replayed(chains: &mut Chains, canonical: &str, want: &str) {
    assert_eq!(chains.replay(tokens(canonical), &Letters), tokens(want), "{canonical}");
}

#[test]
fn a_chain_that_spells_the_same_is_put_in_front() {
    let mut chains = Chains::new();
    replayed(&mut chains, "|(ab)c|", "|(ab)c|");
    chains.insert(&tokens("|abc|x"));
    replayed(&mut chains, "|(ab)c|(xy)", "|abc|(xy)");
    replayed(&mut chains, "|(ab)c", "|abc");
    replayed(&mut chains, "|(ab)c|x", "|abc|x");
}

#[test]
fn a_seam_within_plain_text_is_no_seam() {
    let mut chains = Chains::new();
    chains.insert(&tokens("|abc"));
    // The text goes on without a break: what follows might have been joined differently.
    replayed(&mut chains, "|(ab)cd", "|(ab)cd");
    replayed(&mut chains, "|(ab)(cd)|", "|(ab)(cd)|");
    // The chain ends within the text's next stretch; the seam is at the last special token before.
    chains.insert(&tokens("|xyz|abc"));
    replayed(&mut chains, "|(xy)z|(ab)cd", "|xyz|(ab)cd");
}

#[test]
fn canonical_tokens_are_kept_where_they_are_known_as_far() {
    let mut chains = Chains::new();
    chains.insert(&tokens("|abc|"));
    chains.insert(&tokens("|(ab)c|"));
    replayed(&mut chains, "|(ab)c|dd", "|(ab)c|dd");
    chains.insert(&tokens("|abc|dd|"));
    replayed(&mut chains, "|(ab)c|(dd)|e", "|abc|dd|e");
}

#[test]
fn chains_that_part_are_all_found() {
    let mut chains = Chains::new();
    for chain in ["|abcd|e", "|abcd|ff|", "|abxx|", "|ab|", "|abcd"] {
        chains.insert(&tokens(chain));
    }
    replayed(&mut chains, "|(ab)(cd)|e", "|abcd|e");
    replayed(&mut chains, "|(ab)(cd)|(ff)|g", "|abcd|ff|g");
    replayed(&mut chains, "|(ab)(xx)|", "|abxx|");
    replayed(&mut chains, "|(ab)|(gg)", "|ab|(gg)");
    let all: usize = chains.nodes.iter().map(|n| n.tokens.len()).sum();
    assert_eq!(all, chains.tokens, "every token is counted once");
}

#[test]
fn structure_is_never_matched_by_text_that_looks_like_it() {
    let mut chains = Chains::new();
    // Special token 8 is spelled like 7, and 5000 spells nothing at all.
    chains.insert(&[8, 100, 101, 7]);
    chains.insert(&[7, 5000, 100, 101, 7]);
    replayed(&mut chains, "|(ab)|", "|(ab)|");
}

#[test]
fn the_longest_unused_go_first_and_shared_beginnings_last() {
    let mut chains = Chains::with_room(64);
    let long = |c: &str| format!("|abc|{}|", c.repeat(10));
    for c in ["d", "e", "f", "g"] {
        chains.insert(&tokens(&long(c)));
    }
    // Keeps the oldest alive.
    replayed(&mut chains, "|(ab)c|(dd)(dd)(dd)(dd)(dd)|", &long("d"));
    for c in ["h", "i"] {
        chains.insert(&tokens(&long(c)));
    }
    assert!(chains.tokens <= 64, "{}", chains.tokens);
    replayed(&mut chains, "|(ab)c|(dd)(dd)(dd)(dd)(dd)|", &long("d"));
    replayed(&mut chains, "|(ab)c|(ii)(ii)(ii)(ii)(ii)|", &long("i"));
    replayed(&mut chains, "|(ab)c|(ee)(ee)(ee)(ee)(ee)|", "|abc|(ee)(ee)(ee)(ee)(ee)|");
    let live: usize = chains.nodes.iter().map(|n| n.tokens.len()).sum();
    assert_eq!(live, chains.tokens);
    for node in 1..chains.nodes.len() {
        let parent = chains.nodes[node].parent;
        if !chains.nodes[node].tokens.is_empty() {
            assert!(chains.nodes[parent].children.contains(&node), "node {node} hangs on its parent");
        }
    }
}

#[test]
fn a_reply_is_found_as_it_was_shown() {
    let mut chains = Chains::new();
    // Sampled with a special token inside, which nobody is shown.
    chains.insert_reply(&tokens("|ab|x|y"), 4, "xy", &Letters);
    replayed(&mut chains, "|(ab)|(xy)|cc", "|ab|x|y|cc");
    // And on from there, though the trie has grown meanwhile.
    chains.insert_reply(&tokens("|ab|x|y|cc|z"), 11, "z", &Letters);
    chains.insert(&tokens("|ab|dd|"));
    replayed(&mut chains, "|(ab)|(xy)|(cc)|z|w", "|ab|x|y|cc|z|w");
    // Text of a caller is never taken for less than it says: only what was sampled may hide structure.
    replayed(&mut chains, "|(ab)(xy)|cc", "|(ab)(xy)|cc");
    // Where another chain parts within the reply, its whole is not known any more; nothing wrong is found.
    chains.insert(&tokens("|ab|x|q|"));
    replayed(&mut chains, "|(ab)|(xy)|cc", "|ab|(xy)|cc");
    let live: usize = chains.nodes.iter().map(|n| n.tokens.len()).sum();
    assert_eq!(live, chains.tokens);
}
