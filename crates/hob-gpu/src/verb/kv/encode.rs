//! The WGSL that stores vectors of K and V in pages, in every format. It must not know where the vectors come from.

use crate::pages::{Kind, Layout, Stored};
use crate::template::Template;

const ENCODE: &str = include_str!("../../wgsl/encode.wgsl");

/// `encode_k` and `encode_v`, for workgroups of `lanes` (a multiple of 8) that store up to `rows` (1 or 8) positions at
/// once, and what they need: see `wgsl/encode.wgsl`.
pub(crate) fn encoders(layout: &Layout, rows: usize, lanes: usize) -> String {
    let span = 1usize << layout.head_dim.trailing_zeros();
    let mut text = part(&["COMMON"])
        .value("FRESH", rows * layout.head_dim)
        .value("SCALES", (rows * layout.head_dim / 32).max(1))
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
        text += &format!("fn encode_{side}(block: Block, octet: u32, base: u32, valid: u32, lane: u32) {{\n");
        for kind in layout.kinds() {
            let n = kind as u32;
            text += &format!(
                "    if (block.kind == {n}u) {{ encode_{side}_{n}(block.{side}, octet, base, valid, lane); }}\n"
            );
        }
        text += "}\n";
    }
    text
}

fn part(on: &[&str]) -> Template {
    const FLAGS: [&str; 13] = [
        "COMMON",
        "CODES",
        "STORE",
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
