//! The index of what is kept of token chains: a trie of nodes of up to 256 tokens, found by chained BLAKE3 keys and
//! compared by tokens. It owns who needs which node, what each is worth, and which goes first when room is needed.
//! It must not know devices; sheets are numbers here.

use std::collections::HashMap;

use hob_compute::PAGE_POSITIONS;

/// Names a chain of full pages.
pub(crate) type Key = [u8; 32];

/// Names a node; valid while a sequence or the index has it.
pub(crate) type NodeId = usize;

/// Before the first token.
pub(crate) const ROOT: NodeId = 0;

/// Uses after which an earlier use counts half.
const HALF_LIFE: f64 = 32.0;

/// What a node has of one group.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Held {
    /// `None` where a window has moved on and nobody wanted to come back.
    pub sheet: Option<u32>,
    /// Sequences whose tables have it.
    pub live: u32,
    /// When an end was last kept or resumed that needs it; 0 for never. Only windows look at it.
    pub stamp: u64,
}

/// Recurrent state after the first `at` tokens of a node.
pub(crate) struct Snapshot {
    pub at: usize,
    pub values: Box<[f32]>,
    /// Whether a turn ended here, or somebody came back here; others were taken on the way, and go first.
    end: bool,
    worth: f64,
}

/// Consecutive tokens of a chain, all on one page.
pub(crate) struct Node {
    /// Of a full node: what its chain is found by.
    key: Key,
    parent: NodeId,
    children: Vec<NodeId>,
    /// Number of its page in a sequence.
    pub page: usize,
    /// 256 of a full node; fewer of an end inside a page, which has no children.
    pub tokens: Vec<u32>,
    /// Sequences that have it in their chain. Only one can have an end inside a page: the one that may go on behind it.
    pub live: u32,
    /// By group.
    pub held: Vec<Held>,
    pub snapshots: Vec<Snapshot>,
    /// See [`heated`].
    worth: f64,
}

impl Node {
    pub fn is_full(&self) -> bool {
        self.tokens.len() == PAGE_POSITIONS
    }

    /// Whether it has a sheet of every group.
    pub fn is_complete(&self) -> bool {
        self.held.iter().all(|h| h.sheet.is_some())
    }

    /// Whether something can be resumed at its end. Without sheets, in a model that keeps no K and V, only a snapshot can.
    fn serves(&self) -> bool {
        if self.held.is_empty() { !self.snapshots.is_empty() } else { self.is_complete() }
    }
}

/// What the index has of some tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// Full nodes from the first token on.
    pub nodes: Vec<NodeId>,
    /// Children of the last of them that begin as the tokens go on, and how many tokens they share.
    pub tails: Vec<(NodeId, usize)>,
}

/// A sheet that nobody needs any more: `(group, page, sheet)`.
pub(crate) type Freed = (usize, usize, u32);

/// See the module.
pub(crate) struct Prefixes {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    by_key: HashMap<Key, NodeId>,
    /// Counts uses.
    pub clock: u64,
    snapshot_bytes: u64,
    snapshot_budget: u64,
}

/// The worth of something whose worth was `worth`, after a use at `clock`: uses count half after [`HALF_LIFE`] others.
/// Kept as a logarithm of the sum of `2^(clock / HALF_LIFE)` over all uses, so that no worth ever needs to be aged
/// (forward decay, Cormode et al. 2009).
fn heated(worth: f64, clock: u64) -> f64 {
    let now = clock as f64 / HALF_LIFE;
    let (more, less) = if worth > now { (worth, now) } else { (now, worth) };
    more + (1.0 + (less - more).exp2()).log2()
}

/// The key of the chain that `tokens` continue.
fn chained(parent: &Key, tokens: &[u32]) -> Key {
    let mut hash = blake3::Hasher::new();
    hash.update(parent);
    let mut bytes = [0u8; 4 * PAGE_POSITIONS];
    let (words, _) = bytes.as_chunks_mut::<4>();
    words.iter_mut().zip(tokens).for_each(|(word, token)| *word = token.to_le_bytes());
    hash.update(&bytes[..4 * tokens.len().min(PAGE_POSITIONS)]);
    *hash.finalize().as_bytes()
}

/// Leading tokens that two have in common.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Prefixes {
    /// An empty index. `identity` is the key of the empty chain, `snapshot_budget` what snapshots may take, in bytes.
    pub fn new(identity: Key, snapshot_budget: u64) -> Self {
        let root = Node {
            key: identity,
            parent: ROOT,
            children: Vec::new(),
            page: 0,
            tokens: Vec::new(),
            live: 1,
            held: Vec::new(),
            snapshots: Vec::new(),
            worth: 0.0,
        };
        Prefixes {
            nodes: vec![Some(root)],
            vacant: Vec::new(),
            by_key: HashMap::new(),
            clock: 0,
            snapshot_bytes: 0,
            snapshot_budget,
        }
    }

    pub fn identity(&self) -> Key {
        self.node(ROOT).key
    }

    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("nodes are removed only when nobody names them")
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id].as_mut().expect("nodes are removed only when nobody names them")
    }

    /// All nodes but the root, in ascending ids.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().skip(1).filter_map(|(id, node)| Some((id, node.as_ref()?)))
    }

    /// Whether snapshots are kept at all.
    pub fn keeps_snapshots(&self) -> bool {
        self.snapshot_budget > 0
    }

    /// What snapshots take, in bytes.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// The longest chain that `tokens` begin with.
    pub fn find(&self, tokens: &[u32]) -> Chain {
        let mut chain = Chain::default();
        let (pages, _) = tokens.as_chunks::<PAGE_POSITIONS>();
        let mut last = ROOT;
        for page in pages {
            let Some(next) = self.child(last, page) else { break };
            chain.nodes.push(next);
            last = next;
        }
        let rest = &tokens[chain.nodes.len() * PAGE_POSITIONS..];
        let tails = self.node(last).children.iter().map(|&id| (id, common(&self.node(id).tokens, rest)));
        chain.tails = tails.filter(|&(_, shared)| shared > 0).collect();
        chain
    }

    /// The full child of `parent` that has exactly these tokens.
    pub fn child(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        let id = *self.by_key.get(&chained(&self.node(parent).key, tokens))?;
        let node = self.node(id);
        // Equal keys are not taken for equal tokens.
        (node.parent == parent && node.tokens == tokens).then_some(id)
    }

    /// A child of `parent` with a sheet of every group that begins with `tokens`: its rows serve as theirs.
    pub fn covering(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        let covers = |&&id: &&NodeId| {
            let node = self.node(id);
            node.is_complete() && node.tokens.starts_with(tokens)
        };
        self.node(parent).children.iter().find(covers).copied()
    }

    /// Adds a node behind `parent`, held by one sequence with all its sheets.
    pub fn add(&mut self, parent: NodeId, page: usize, tokens: &[u32], sheets: &[Option<u32>]) -> NodeId {
        if sheets.is_empty() {
            self.drop_idle();
        }
        let held = |&sheet: &Option<u32>| Held { sheet, live: sheet.is_some().into(), stamp: 0 };
        let node = Node {
            key: Key::default(),
            parent,
            children: Vec::new(),
            page,
            tokens: tokens.to_vec(),
            live: 1,
            held: sheets.iter().map(held).collect(),
            snapshots: Vec::new(),
            worth: self.clock as f64 / HALF_LIFE,
        };
        let id = self.vacant.pop().unwrap_or(self.nodes.len());
        if id == self.nodes.len() {
            self.nodes.push(None);
        }
        self.nodes[id] = Some(node);
        self.node_mut(parent).children.push(id);
        if tokens.len() == PAGE_POSITIONS {
            self.index(id);
        }
        id
    }

    /// Where there are no sheets, nobody asks for theirs back: what has lost its snapshots goes when something is added.
    fn drop_idle(&mut self) {
        let ids: Vec<NodeId> = self.all().map(|(id, _)| id).collect();
        for id in ids {
            // It may have gone with one before.
            if self.nodes[id].is_some() {
                self.prune(id, &mut Vec::new());
            }
        }
    }

    /// Gives an end inside a page more of its tokens; `tokens` are all of them.
    pub fn extend(&mut self, id: NodeId, tokens: &[u32]) {
        let node = self.node_mut(id);
        let known = node.tokens.len();
        node.tokens.extend_from_slice(&tokens[known..]);
        if node.is_full() {
            self.index(id);
        }
    }

    fn index(&mut self, id: NodeId) {
        let key = chained(&self.node(self.node(id).parent).key, &self.node(id).tokens);
        self.node_mut(id).key = key;
        self.by_key.insert(key, id);
    }

    /// Counts a use of `id`.
    pub fn touch(&mut self, id: NodeId) {
        let clock = self.clock;
        let node = self.node_mut(id);
        node.worth = heated(node.worth, clock);
    }

    /// Keeps the state after `at` tokens of `id`, dropping what is worth least to stay within the budget: first of all what
    /// is no `end`.
    pub fn attach(&mut self, id: NodeId, at: usize, end: bool, values: Box<[f32]>) {
        let bytes = size_of_val(&*values) as u64;
        let clock = self.clock;
        let node = self.node_mut(id);
        if let Some(known) = node.snapshots.iter_mut().find(|s| s.at == at) {
            known.worth = heated(known.worth, clock);
            known.end |= end;
            return;
        }
        if bytes > self.snapshot_budget {
            return;
        }
        while self.snapshot_bytes + bytes > self.snapshot_budget {
            let all = self.all().flat_map(|(id, n)| n.snapshots.iter().map(move |s| (s, id)));
            let least = all.min_by(|(a, _), (b, _)| a.end.cmp(&b.end).then(a.worth.total_cmp(&b.worth)));
            let Some((from, at, ends)) = least.map(|(s, id)| (id, s.at, s.end)) else { return };
            if ends && !end {
                return;
            }
            self.node_mut(from).snapshots.retain(|s| s.at != at);
            self.snapshot_bytes -= bytes;
        }
        self.snapshot_bytes += bytes;
        let worth = clock as f64 / HALF_LIFE;
        self.node_mut(id).snapshots.push(Snapshot { at, values, end, worth });
    }

    /// Counts a use of a snapshot.
    pub fn touch_snapshot(&mut self, id: NodeId, at: usize) {
        let clock = self.clock;
        let found = self.node_mut(id).snapshots.iter_mut().find(|s| s.at == at);
        if let Some(snapshot) = found {
            (snapshot.worth, snapshot.end) = (heated(snapshot.worth, clock), true);
        }
    }

    /// Takes in the ends beside `id` that it repeats and that no sequence needs.
    pub fn absorb(&mut self, id: NodeId, freed: &mut Vec<Freed>) {
        if !self.node(id).is_complete() {
            return;
        }
        loop {
            let node = self.node(id);
            let repeated = |&&other: &&NodeId| {
                let end = self.node(other);
                other != id && !end.is_full() && end.live == 0 && node.tokens.starts_with(&end.tokens)
            };
            let Some(&end) = self.node(node.parent).children.iter().find(repeated) else { return };
            let moved = std::mem::take(&mut self.node_mut(end).snapshots);
            for snapshot in moved {
                if self.node(id).snapshots.iter().all(|s| s.at != snapshot.at) {
                    self.node_mut(id).snapshots.push(snapshot);
                } else {
                    self.snapshot_bytes -= size_of_val(&*snapshot.values) as u64;
                }
            }
            self.remove(end, freed);
        }
    }

    /// A sequence lets go of `id`. What nobody can use any more goes.
    pub fn let_go(&mut self, id: NodeId, freed: &mut Vec<Freed>) {
        let node = self.node_mut(id);
        node.live -= 1;
        if node.live > 0 {
            return;
        }
        let node = self.node(id);
        let covers = |&other: &NodeId| {
            let beside = self.node(other);
            other != id && beside.is_complete() && beside.tokens.starts_with(&node.tokens)
        };
        let by = self.node(node.parent).children.iter().copied().find(covers);
        match by.filter(|_| !node.is_full()) {
            Some(by) => self.absorb(by, freed),
            None => self.prune(id, freed),
        }
    }

    /// Removes `id` if it is the end of a chain where nothing can be resumed; then what is left as such an end.
    fn prune(&mut self, id: NodeId, freed: &mut Vec<Freed>) {
        let mut id = id;
        loop {
            let node = self.node(id);
            if id == ROOT || node.live > 0 || !node.children.is_empty() || node.serves() {
                return;
            }
            let parent = node.parent;
            self.remove(id, freed);
            id = parent;
        }
    }

    /// Removes a node that nobody holds and that has no children.
    fn remove(&mut self, id: NodeId, freed: &mut Vec<Freed>) {
        let node = self.take_out(id);
        let sheets = node.held.iter().enumerate();
        freed.extend(sheets.filter_map(|(group, h)| Some((group, node.page, h.sheet?))));
    }

    /// Removes a node without children and leaves its sheets to the caller.
    pub fn take_out(&mut self, id: NodeId) -> Node {
        let node = self.nodes[id].take().expect("nodes are removed only when nobody names them");
        self.node_mut(node.parent).children.retain(|&c| c != id);
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        self.snapshot_bytes -= node.snapshots.iter().map(|s| size_of_val(&*s.values) as u64).sum::<u64>();
        self.vacant.push(id);
        node
    }

    /// Whether nobody but one sequence has this node, and nothing hangs on it.
    pub fn is_sole(&self, id: NodeId) -> bool {
        let node = self.node(id);
        node.live <= 1 && node.children.is_empty() && node.held.iter().all(|h| h.live <= 1)
    }

    /// Drops the least valuable node that no sequence needs and that has a sheet of the wanted kind: an end of a chain,
    /// so that what is left stays connected. Where only beginnings have such sheets, the whole chain behind one goes.
    /// False when there is none.
    pub fn evict(&mut self, beginning: bool, wanted: impl Fn(usize) -> bool, freed: &mut Vec<Freed>) -> bool {
        let spare = self.all().filter(|(_, n)| n.live == 0 && wanted(n.page));
        let spare = spare.filter(|(_, n)| beginning || n.children.is_empty());
        let Some((id, _)) = spare.min_by(|a, b| a.1.worth.total_cmp(&b.1.worth)) else { return false };
        self.remove_chain(id, freed);
        true
    }

    fn remove_chain(&mut self, id: NodeId, freed: &mut Vec<Freed>) {
        // Children are listed behind their parents, and removed before them.
        let mut order = vec![id];
        let mut at = 0;
        while let Some(&next) = order.get(at) {
            order.extend_from_slice(&self.node(next).children);
            at += 1;
        }
        order.into_iter().rev().for_each(|id| self.remove(id, freed));
    }

    /// Drops one sheet of a windowed group that no sequence needs: the one whose end was kept or resumed longest ago.
    /// False when there is none.
    pub fn evict_sheet(
        &mut self,
        group: usize,
        wanted: impl Fn(usize) -> bool,
        freed: &mut Vec<Freed>,
    ) -> bool {
        let spare = |n: &Node| n.held[group].sheet.is_some() && n.held[group].live == 0 && wanted(n.page);
        let spare = self.all().filter(|(_, n)| spare(n));
        let by = |n: &Node| (n.held[group].stamp, n.worth);
        let oldest = spare.min_by(|a, b| {
            let (a, b) = (by(a.1), by(b.1));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        let Some((id, _)) = oldest else { return false };
        let node = self.node_mut(id);
        let page = node.page;
        freed.extend(node.held[group].sheet.take().map(|sheet| (group, page, sheet)));
        self.prune(id, freed);
        true
    }
}
