//! The WGSL that stores vectors of K and V in pages, in every format. It must not know where the vectors come from.

use crate::pages::{Kind, Layout, Stored};
use crate::template::Template;

const ENCODE: &str = include_str!("../../wgsl/encode.wgsl");

/// `pack_k` (codes and scales, with barriers), `keep_k` (stores) and the same of V, for workgroups of `lanes` (a multiple of
/// 8) that store up to `rows` positions at once, of one side after the other. See `wgsl/encode.wgsl`.
pub(crate) fn encoders(layout: &Layout, rows: usize, lanes: usize) -> String {
    let mut text = texts(layout, rows, lanes, false);
    for side in ["k", "v"] {
        let packed = |kind: Kind| layout.formats(kind)[usize::from(side == "v")];
        let packs: String = layout
            .kinds()
            .filter(|&kind| packed(kind).is_packed())
            .map(|kind| choice(kind, &quantize(packed(kind), "start", rows * layout.head_dim / 32)))
            .collect();
        text += &format!("fn pack_{side}(block: Block, start: u32, lane: u32) {{\n{packs}}}\n");
    }
    text
}

/// For workgroups of `lanes` that store one position, where `fresh` has K and then V: `pack` makes codes and scales of both,
/// with barriers, `keep_k` and `keep_v` store, and `kept_k` and `kept_v` tell what will be read back. `neighbors`: lanes
/// 8n..8n + 8 are neighbors in a subgroup.
pub(crate) fn encoders_of_one(layout: &Layout, lanes: usize, neighbors: bool) -> String {
    let (dim, mut packs) = (layout.head_dim, String::new());
    for kind in layout.kinds() {
        let [k, v] = layout.formats(kind);
        let sides = match (k.is_packed(), v.is_packed()) {
            (true, true) if k == v => quantize(k, "0u", dim / 16),
            _ => [(k, "0u".to_string()), (v, format!("{dim}u"))]
                .into_iter()
                .filter(|(stored, _)| stored.is_packed())
                .map(|(stored, start)| quantize(stored, &start, dim / 32))
                .collect(),
        };
        packs += &choice(kind, &sides);
    }
    texts(layout, 1, lanes, neighbors) + &format!("fn pack(block: Block, lane: u32) {{\n{packs}}}\n")
}

/// The call that makes codes of `groups` groups.
fn quantize(stored: Stored, start: &str, groups: usize) -> String {
    format!("quantize_{}({start}, {groups}u, lane); ", format!("{stored:?}").to_lowercase())
}

/// What is done for blocks of one kind.
fn choice(kind: Kind, what: &str) -> String {
    format!("    if (block.kind == {}u) {{ {what}}}\n", kind as u32)
}

fn texts(layout: &Layout, rows: usize, lanes: usize, neighbors: bool) -> String {
    let span = 1usize << layout.head_dim.trailing_zeros();
    let values = if rows == 1 { 2 } else { rows } * layout.head_dim;
    let mut text = part(&["COMMON"])
        .flag("NEIGHBORS", neighbors)
        .value("FRESH", values)
        .value("SCALES", (values / 32).max(1))
        .value("PARTS", 2 * lanes)
        .value("LANES", lanes)
        .value("SPAN", span)
        .value("SPAN_FACTOR", format!("{:?}", (1.0 / (span as f64).sqrt()) as f32))
        .render(ENCODE);
    let mut done = Vec::new();
    for stored in [layout.k, layout.v].into_iter().filter(|stored| stored.is_packed()) {
        if !done.contains(&stored) {
            done.push(stored);
            text += &codes(stored, part(&["CODES"]))
                .flag("NEIGHBORS", neighbors)
                .value("LANES", lanes)
                .render(ENCODE);
        }
    }
    for kind in layout.kinds() {
        for (stored, keys) in layout.formats(kind).into_iter().zip([true, false]) {
            text += &store(layout, (stored, keys, kind), rows, lanes);
        }
    }
    for side in ["k", "v"] {
        text += &calls(layout, side, rows);
    }
    text
}

/// The functions that store, and tell what is read back, by the kind of a block.
fn calls(layout: &Layout, side: &str, rows: usize) -> String {
    let (mut keep, mut kept) = (String::new(), String::new());
    for kind in layout.kinds() {
        let n = kind as u32;
        keep += &format!(
            "    if (block.kind == {n}u) {{ keep_{side}_{n}(block.{side}, octet, base, valid, start, lane); }}\n"
        );
        kept += &format!("    if (block.kind == {n}u) {{ return kept_{side}_{n}(start, dim); }}\n");
    }
    let mut text = format!(
        "fn keep_{side}(block: Block, octet: u32, base: u32, valid: u32, start: u32, lane: u32) {{\n{keep}}}\n"
    );
    if rows == 1 {
        text += &format!(
            "fn kept_{side}(block: Block, start: u32, dim: u32) -> f32 {{\n{kept}    return 0.0;\n}}\n"
        );
    }
    text
}

fn part(on: &[&str]) -> Template {
    const FLAGS: [&str; 14] = [
        "COMMON",
        "CODES",
        "STORE",
        "KEPT",
        "Q8",
        "Q4",
        "ASYM",
        "F32",
        "F16",
        "BF16",
        "PACKED",
        "NIBBLES",
        "KEYS",
        "WHOLE_WORDS",
    ];
    FLAGS.into_iter().fold(Template::new(), |t, name| t.flag(name, on.contains(&name)))
}

fn codes(stored: Stored, template: Template) -> Template {
    template
        .flag("Q8", stored == Stored::Q8)
        .flag("Q4", stored == Stored::Q4)
        .flag("ASYM", stored == Stored::Asym4)
        .value("FORMAT", format!("{stored:?}").to_lowercase())
}

fn store(layout: &Layout, (stored, keys, kind): (Stored, bool, Kind), rows: usize, lanes: usize) -> String {
    let nibbles = matches!(stored, Stored::Q4 | Stored::Asym4);
    let dim = layout.head_dim;
    let whole = match stored {
        Stored::F32 => Some(dim),
        Stored::F16 | Stored::Bf16 if !keys => Some(dim / 2),
        _ if nibbles && keys => Some(dim / 8),
        _ => None,
    };
    let per_pair = if stored == Stored::Q8 { dim / 2 } else { dim };
    codes(stored, part(&["STORE"]))
        .flag("F32", stored == Stored::F32)
        .flag("F16", stored == Stored::F16)
        .flag("BF16", stored == Stored::Bf16)
        .flag("PACKED", stored.is_packed())
        .flag("NIBBLES", nibbles)
        .flag("KEYS", keys)
        .flag("WHOLE_WORDS", whole.is_some())
        .flag("KEPT", rows == 1)
        .value("NAME", format!("{}_{}", if keys { "k" } else { "v" }, kind as u32))
        .value("PAGES", kind.pages())
        .value("CODES_AT", stored.scale_words(dim))
        .value("HEAD_DIM", dim)
        .value("GROUPS", dim / 32)
        .value("ROWS", rows)
        .value("LANES", lanes)
        .value("PER_POSITION", whole.unwrap_or(1))
        .value("PER_PAIR", per_pair)
        .render(ENCODE)
}
