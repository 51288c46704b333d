//! The byte-level trie: every known chain of tokens, found again by the text it spells.
//!
//! A conversation comes back as text, and its canonical tokens need not be those the model sampled or a caller once
//! sent. Here the longest known chain that spells the same bytes is found and put in front, so that what was sampled
//! is replayed as sampled and its state is found. It must not know where the state of a chain lies, nor whether any
//! of it is left.

/// What a trie asks of a vocabulary.
pub(crate) trait Spelling {
    /// The bytes of a token; structure (special tokens) is matched by its id instead.
    fn bytes(&self, token: u32) -> &[u8];
    fn is_special(&self, token: u32) -> bool;
}

/// Most tokens kept: 16 MiB of ids, some hundred conversations of full length.
const MAX_TOKENS: usize = 4 << 20;

/// A run of tokens that no chain parts within.
#[derive(Default)]
struct Node {
    tokens: Vec<u32>,
    /// What a reader was shown for all of the tokens, where that is not what they spell: special tokens are not shown,
    /// and what is not UTF-8 is shown as U+FFFD.
    shown: Option<Box<str>>,
    children: Vec<usize>,
    parent: usize,
    /// When it was last part of a chain that was inserted or replayed.
    used: u64,
}

/// See the module.
pub(crate) struct Chains {
    /// The first is the root, which has no tokens; unused ones are listed in `free`.
    nodes: Vec<Node>,
    free: Vec<usize>,
    tokens: usize,
    most: usize,
    clock: u64,
}

/// A place inside a node: after its first `count` tokens.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Place {
    node: usize,
    count: usize,
}

impl Chains {
    pub fn new() -> Self {
        Self::with_room(MAX_TOKENS)
    }

    fn with_room(most: usize) -> Self {
        Chains { nodes: vec![Node::default()], free: Vec::new(), tokens: 0, most, clock: 0 }
    }

    /// Takes a chain in whose tokens from `start` on were sampled and came to a reader as `shown`.
    pub fn insert_reply(&mut self, chain: &[u32], start: usize, shown: &str, spelling: &dyn Spelling) {
        let (before, reply) = chain.split_at(start.min(chain.len()));
        // The byte that is never in UTF-8 is equal to nothing that was shown.
        let spelled = reply.iter().flat_map(|&token| plain(token, spelling).unwrap_or(&[0xFF]));
        if spelled.eq(shown.as_bytes()) || shown.is_empty() || before.is_empty() {
            return self.insert(chain);
        }
        self.insert(chain);
        self.end_node_at(before.len(), chain);
        let node = self.end_node_at(chain.len(), chain);
        // Where another chain parts from it within the reply, the reply cannot be told as a whole any more.
        if self.nodes[node].tokens.len() == reply.len() {
            self.nodes[node].shown = Some(shown.into());
        }
    }

    /// Makes a node end after the first `len` tokens of a chain that was inserted, and gives it.
    fn end_node_at(&mut self, len: usize, chain: &[u32]) -> usize {
        let (mut at, mut done) = (0, 0);
        while done < len {
            let Some(child) = self.child(at, chain[done]) else { return at };
            if done + self.nodes[child].tokens.len() > len {
                self.split(child, len - done);
            }
            done += self.nodes[child].tokens.len();
            at = child;
        }
        at
    }

    /// Takes a chain in; those longest unused go when there is no room.
    pub fn insert(&mut self, chain: &[u32]) {
        self.clock += 1;
        let (mut at, mut rest) = (0, chain);
        loop {
            self.nodes[at].used = self.clock;
            let child = rest.first().and_then(|t| self.child(at, *t));
            let Some(child) = child else { break };
            let common = self.nodes[child].tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if common < self.nodes[child].tokens.len() {
                self.split(child, common);
            }
            (at, rest) = (child, &rest[common..]);
        }
        if rest.is_empty() {
            return;
        }
        self.tokens += rest.len();
        if at != 0 && self.nodes[at].children.is_empty() && self.nodes[at].shown.is_none() {
            self.nodes[at].tokens.extend_from_slice(rest);
        } else {
            let leaf = Node { tokens: rest.to_vec(), parent: at, used: self.clock, ..Node::default() };
            let leaf = self.add(leaf);
            self.nodes[at].children.push(leaf);
        }
        if self.tokens > self.most {
            self.make_room();
        }
    }

    /// `canonical` tokens, of which as many leading ones as possible are replaced by a known chain that spells the
    /// same. The seam is where a special token stands in the text, so that tokenization starts anew there.
    pub fn replay(&mut self, canonical: Vec<u32>, spelling: &dyn Spelling) -> Vec<u32> {
        if self.tokens == 0 {
            return canonical;
        }
        let text = Text::new(&canonical, spelling);
        let Some((place, seam)) = self.find(&text, &canonical, spelling) else { return canonical };
        let mut chain = self.path(place);
        self.touch(place.node);
        chain.extend_from_slice(&canonical[seam..]);
        chain
    }

    /// The place whose chain spells most of the text up to a seam, and the canonical token that follows; `None` where
    /// the canonical tokens themselves are known at least as far.
    fn find(&self, text: &Text, canonical: &[u32], spelling: &dyn Spelling) -> Option<(Place, usize)> {
        let mut best: Option<(usize, Place, usize)> = None;
        let mut canonical_known = 0;
        let mut open = vec![Visit { node: 0, at: 0, equal: Some(0) }];
        while let Some(Visit { node, mut at, mut equal }) = open.pop() {
            let mut whole = true;
            let shown = self.nodes[node].shown.as_deref();
            if let Some(end) = shown.and_then(|shown| text.match_bytes(at, shown.as_bytes())) {
                let place = Place { node, count: self.nodes[node].tokens.len() };
                if let Some(seam) = text.seam(end).filter(|_| best.is_none_or(|(b, ..)| end > b)) {
                    best = Some((end, place, seam));
                }
                let children = self.nodes[node].children.iter();
                open.extend(children.map(|&node| Visit { node, at: end, equal: None }));
            }
            for (index, &token) in self.nodes[node].tokens.iter().enumerate() {
                let Some(end) = text.match_token(at, token, spelling) else {
                    whole = false;
                    break;
                };
                at = end;
                equal = equal.filter(|&i| canonical.get(i) == Some(&token)).map(|i| i + 1);
                if equal.is_some() {
                    canonical_known = canonical_known.max(at);
                } else if let Some(seam) = text.seam(at).filter(|_| best.is_none_or(|(b, ..)| at > b)) {
                    best = Some((at, Place { node, count: index + 1 }, seam));
                }
            }
            if whole {
                let children = self.nodes[node].children.iter();
                open.extend(children.map(|&node| Visit { node, at, equal }));
            }
        }
        best.filter(|&(at, ..)| at > canonical_known).map(|(_, place, seam)| (place, seam))
    }

    fn child(&self, node: usize, token: u32) -> Option<usize> {
        self.nodes[node].children.iter().copied().find(|&c| self.nodes[c].tokens.first() == Some(&token))
    }

    /// Cuts a node after its first `count` tokens; the rest becomes its only child.
    fn split(&mut self, node: usize, count: usize) {
        let tokens = self.nodes[node].tokens.split_off(count);
        let children = std::mem::take(&mut self.nodes[node].children);
        let used = self.nodes[node].used;
        self.nodes[node].shown = None;
        let rest = self.add(Node { tokens, shown: None, children, parent: node, used });
        for i in 0..self.nodes[rest].children.len() {
            let child = self.nodes[rest].children[i];
            self.nodes[child].parent = rest;
        }
        self.nodes[node].children.push(rest);
    }

    fn add(&mut self, node: Node) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.nodes[index] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// The tokens from the root to a place.
    fn path(&self, place: Place) -> Vec<u32> {
        let mut runs = vec![&self.nodes[place.node].tokens[..place.count]];
        let mut node = place.node;
        while node != 0 {
            node = self.nodes[node].parent;
            runs.push(&self.nodes[node].tokens);
        }
        runs.iter().rev().flat_map(|run| run.iter().copied()).collect()
    }

    fn touch(&mut self, mut node: usize) {
        self.clock += 1;
        while node != 0 {
            self.nodes[node].used = self.clock;
            node = self.nodes[node].parent;
        }
    }

    /// Drops leaves, the longest unused first, until an eighth of the room is free again.
    fn make_room(&mut self) {
        while self.tokens > self.most - self.most / 8 {
            let live = (1..self.nodes.len()).filter(|&n| !self.nodes[n].tokens.is_empty());
            let leaves = live.filter(|&n| self.nodes[n].children.is_empty());
            let Some(leaf) = leaves.min_by_key(|&n| self.nodes[n].used) else { return };
            let gone = std::mem::take(&mut self.nodes[leaf]);
            self.tokens -= gone.tokens.len();
            self.nodes[gone.parent].children.retain(|&c| c != leaf);
            self.free.push(leaf);
        }
    }
}

/// A node still to be looked at: it begins at symbol `at`; `equal` counts the tokens so far while all are canonical.
struct Visit {
    node: usize,
    at: usize,
    equal: Option<usize>,
}

/// What canonical tokens spell: a symbol per byte of plain text and one per special token, and where tokens end.
struct Text {
    symbols: Vec<u32>,
    /// By symbol offset: the canonical token that begins there, or [`INSIDE`] a token.
    begins: Vec<u32>,
}

/// Symbols from here on are special tokens; below are bytes.
const STRUCTURE: u32 = 256;
const INSIDE: u32 = u32::MAX;

impl Text {
    fn new(canonical: &[u32], spelling: &dyn Spelling) -> Text {
        let mut text = Text { symbols: Vec::new(), begins: Vec::new() };
        for (index, &token) in canonical.iter().enumerate() {
            text.begins.resize(text.symbols.len(), INSIDE);
            text.begins.push(index as u32);
            match plain(token, spelling) {
                Some(bytes) => text.symbols.extend(bytes.iter().map(|&b| u32::from(b))),
                None => text.symbols.push(STRUCTURE.saturating_add(token)),
            }
        }
        text.begins.resize(text.symbols.len(), INSIDE);
        text.begins.push(canonical.len() as u32);
        text
    }

    /// Where a token that begins at `at` ends, if it spells what stands there.
    fn match_token(&self, at: usize, token: u32, spelling: &dyn Spelling) -> Option<usize> {
        match plain(token, spelling) {
            Some(bytes) => self.match_bytes(at, bytes),
            None => (self.symbols.get(at) == Some(&STRUCTURE.saturating_add(token))).then_some(at + 1),
        }
    }

    /// Where `bytes` of plain text end, if they stand at `at`.
    fn match_bytes(&self, at: usize, bytes: &[u8]) -> Option<usize> {
        let rest = &self.symbols[at..];
        let same = rest.len() >= bytes.len() && bytes.iter().zip(rest).all(|(&b, &s)| u32::from(b) == s);
        same.then_some(at + bytes.len())
    }

    /// The canonical token that goes on at `at`, if tokenization starts anew there: a canonical token begins, and a
    /// special token stands before or behind, or nothing.
    fn seam(&self, at: usize) -> Option<usize> {
        let index = self.begins[at];
        let special = |i: usize| self.symbols.get(i).is_none_or(|&s| s >= STRUCTURE);
        (index != INSIDE && (special(at) || special(at - 1))).then_some(index as usize)
    }
}

/// The bytes of a token of plain text. A token without bytes would match anywhere, so it is taken as structure.
fn plain(token: u32, spelling: &dyn Spelling) -> Option<&[u8]> {
    let bytes = spelling.bytes(token);
    (!bytes.is_empty() && !spelling.is_special(token)).then_some(bytes)
}

#[cfg(test)]
mod tests;
