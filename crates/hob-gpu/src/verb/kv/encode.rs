//! The WGSL that stores vectors of K and V in pages, in every format. It must not know where the vectors come from.

use crate::pages::{Kind, Layout, Stored};
use crate::template::Template;

const ENCODE: &str = include_str!("../../wgsl/encode.wgsl");

/// `pack_k` (codes and scales, with barriers), `keep_k` (stores) and the same of V, for workgroups of `lanes` (a multiple of
/// 8) that store up to `rows` positions at once: 8, where `fresh` has one side after the other, or 1, where it has K and
/// then V, and `kept_k` and `kept_v` tell what will be read back. See `wgsl/encode.wgsl`.
pub(crate) fn encoders(layout: &Layout, rows: usize, lanes: usize) -> String {
    let span = 1usize << layout.head_dim.trailing_zeros();
    let values = if rows == 1 { 2 } else { rows } * layout.head_dim;
    let mut text = part(&["COMMON"])
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
                .value("ROWS", rows)
                .value("GROUPS", layout.head_dim / 32)
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

/// The functions that choose by the kind of a block.
fn calls(layout: &Layout, side: &str, rows: usize) -> String {
    let (mut pack, mut keep, mut kept) = (String::new(), String::new(), String::new());
    for kind in layout.kinds() {
        let n = kind as u32;
        let stored = layout.formats(kind)[usize::from(side == "v")];
        if stored.is_packed() {
            let format = format!("{stored:?}").to_lowercase();
            pack += &format!("    if (block.kind == {n}u) {{ quantize_{format}(start, lane); }}\n");
        }
        keep += &format!(
            "    if (block.kind == {n}u) {{ keep_{side}_{n}(block.{side}, octet, base, valid, start, lane); }}\n"
        );
        kept += &format!("    if (block.kind == {n}u) {{ return kept_{side}_{n}(start, dim); }}\n");
    }
    let mut text = format!(
        "fn pack_{side}(block: Block, start: u32, lane: u32) {{\n{pack}}}\n\
         fn keep_{side}(block: Block, octet: u32, base: u32, valid: u32, start: u32, lane: u32) {{\n{keep}}}\n"
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
