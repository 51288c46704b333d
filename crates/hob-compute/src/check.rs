//! The checks at the top of every verb, shared by all devices: shapes in, error out, before any memory is touched.
//!
//! It knows the rules that the argument structs document, and nothing of how a device keeps its memory.

pub mod compressed;
pub mod mixture;
pub mod recurrent;

use crate::{
    AppendKv, Attend, Buf, Combine, ComputeError, Embed, Heads, Linear, Norm, PAGE_POSITIONS, PageSpec, Pick,
    Result, Rope, SeqRows, WeightKind, WeightSpec,
};

/// Shape of a buffer or a weight.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub width: usize,
}

fn need(
    ok: bool,
    verb: &'static str,
    expected: impl FnOnce() -> String,
    found: impl FnOnce() -> String,
) -> Result<()> {
    if ok { Ok(()) } else { Err(ComputeError::Shape { verb, expected: expected(), found: found() }) }
}

fn need_rows(verb: &'static str, what: &str, rows: usize, shape: Shape) -> Result<()> {
    need(
        rows <= shape.rows,
        verb,
        || format!("{what} of at least {rows} rows"),
        || format!("{} rows", shape.rows),
    )
}

fn need_width(verb: &'static str, what: &str, width: usize, shape: Shape) -> Result<()> {
    need(
        width == shape.width,
        verb,
        || format!("{what} of width {width}"),
        || format!("width {}", shape.width),
    )
}

/// Floats of a new buffer.
///
/// # Errors
/// A zero side or an overflow.
pub fn alloc(rows: usize, width: usize) -> Result<usize> {
    let found = || format!("{rows} x {width}");
    match rows.checked_mul(width) {
        Some(len) if len > 0 => Ok(len),
        _ => Err(ComputeError::shape(
            "alloc",
            "a buffer of at least one float that fits the address space",
            found(),
        )),
    }
}

/// Range of a buffer's floats that starts at `row` and holds `len`.
///
/// # Errors
/// A range that leaves the buffer.
pub fn span(verb: &'static str, shape: Shape, row: usize, len: usize) -> Result<std::ops::Range<usize>> {
    let total = shape.rows * shape.width;
    let start = row.checked_mul(shape.width).filter(|&s| row <= shape.rows && len <= total - s);
    let Some(start) = start else {
        let found = format!("{len} floats from row {row} of a buffer of {} x {}", shape.rows, shape.width);
        return Err(ComputeError::shape(verb, "a range inside the buffer", found));
    };
    Ok(start..start + len)
}

/// A weight's spec against its source. Gives the bytes of one row.
///
/// # Errors
/// [`ComputeError::Weight`] for an empty or ragged shape, a format without a decoder, or a source of another length.
pub fn load(spec: &WeightSpec, source_bytes: u64) -> Result<usize> {
    let fail = |problem: String| Err(ComputeError::Weight { name: spec.name.clone(), problem });
    if spec.rows == 0 || spec.cols == 0 {
        return fail(format!("expected at least one row and column, found {} x {}", spec.rows, spec.cols));
    }
    if spec.kind == WeightKind::Vector && spec.rows != 1 {
        return fail(format!("expected a vector (1 row), found {} rows", spec.rows));
    }
    if let WeightKind::Experts { count } | WeightKind::Heads { count } = spec.kind
        && (!(1..=mixture::MAX_EXPERTS).contains(&count) || !spec.rows.is_multiple_of(count))
    {
        let parts = format!("expected rows in {count} equal parts, one per expert or head");
        return fail(format!("{parts}, found {}", spec.rows));
    }
    if !spec.format.can_decode() {
        return fail(format!(
            "format {} cannot be computed from; convert the file to another type",
            spec.format
        ));
    }
    let (Some(row), Some(bytes)) = (spec.format.row_bytes(spec.cols), spec.file_bytes()) else {
        let block = spec.format.block_len();
        return fail(format!(
            "expected columns in whole blocks of {block} ({}), found {}",
            spec.format, spec.cols
        ));
    };
    if bytes != source_bytes {
        return fail(format!(
            "expected {bytes} bytes for {} x {}, found {source_bytes}",
            spec.rows, spec.cols
        ));
    }
    Ok(row)
}

/// Values of the pages of a new pool. Four bytes for each fit the address space.
///
/// # Errors
/// A page shape without values, one that overflows, formats that the heads cannot have, or `first` where it means
/// nothing.
pub fn alloc_pages(spec: &PageSpec, count: usize) -> Result<usize> {
    for format in [spec.k, spec.v] {
        need(
            format.fits(spec.head_dim),
            "alloc_pages",
            || format!("head_dim in whole groups of {} for {format}", hob_quant::KV_GROUP),
            || format!("head_dim {}", spec.head_dim),
        )?;
    }
    need(
        !spec.first || spec.has_first(),
        "alloc_pages",
        || "`first` only where K or V is packed".into(),
        || format!("{spec:?}"),
    )?;
    if let Some(dims) = spec.latent {
        need(
            spec.latent_fits(),
            "alloc_pages",
            || {
                format!(
                    "a V in K's format {}, within its {} dimensions and in whole groups",
                    spec.k, spec.head_dim
                )
            },
            || format!("{dims} dimensions in {}", spec.v),
        )?;
    }
    let fits = |v: &usize| *v > 0 && v.checked_mul(4).is_some();
    let values = spec.page_values().and_then(|v| v.checked_mul(count)).filter(fits);
    values.ok_or_else(|| {
        let found = format!("{count} pages of {} KV heads x {}", spec.kv_heads, spec.head_dim);
        ComputeError::shape("alloc_pages", "at least one page with values, within the address space", found)
    })
}

/// # Errors
/// Another width or too few rows.
pub fn embed(args: &Embed, table: Shape, out: Shape) -> Result<()> {
    need_rows("embed", "an output", args.tokens.len(), out)?;
    need_width("embed", "an output", table.width, out)
}

/// The id of a token: its own, or what the last `pick` chose for a row.
///
/// # Errors
/// A row that the last `pick` did not have.
pub fn resolve(token: crate::Token, last: &[u32]) -> Result<u32> {
    match token {
        crate::Token::Host(id) => Ok(id),
        crate::Token::Device(slot) => last.get(slot as usize).copied().ok_or_else(|| {
            ComputeError::shape(
                "embed",
                format!("a device slot below {}", last.len()),
                format!("slot {slot}"),
            )
        }),
    }
}

/// A weight must have been loaded for what a verb does with it.
///
/// # Errors
/// A weight of another kind.
pub fn kind(verb: &'static str, expected: WeightKind, name: &str, found: WeightKind) -> Result<()> {
    need(
        expected == found,
        verb,
        || format!("a weight loaded as {expected:?}"),
        || format!("'{name}', a {found:?}"),
    )
}

/// # Errors
/// A token outside the table.
pub fn token(id: u32, table: Shape) -> Result<usize> {
    let at = id as usize;
    need(at < table.rows, "embed", || format!("a token below {}", table.rows), || format!("token {id}"))?;
    Ok(at)
}

/// # Errors
/// Rows or widths that do not meet.
pub fn norm(args: &Norm, x: Shape, cols: usize, out: Shape) -> Result<()> {
    let width = args.groups.saturating_mul(cols);
    need(args.groups > 0, "norm", || "at least one group".into(), || "0 groups".into())?;
    need_rows("norm", "an input", args.rows, x)?;
    need_rows("norm", "an output", args.rows, out)?;
    need_width("norm", "an input", width, x)?;
    need_width("norm", "an output", width, out)
}

/// The part of `linear` that does not depend on a product.
///
/// # Errors
/// Too few input rows, no product, or a number of products that `combine` cannot use.
pub fn linear(args: &Linear, x: Shape) -> Result<()> {
    need_rows("linear", "an input", args.first_row.saturating_add(args.rows), x)?;
    let n = args.products.len();
    match args.combine {
        Combine::Gated(_) => need(n == 2, "linear", || "2 products, gate and up".into(), || n.to_string())?,
        Combine::Store | Combine::Add => need(n > 0, "linear", || "a product".into(), || "none".into())?,
    }
    let aliased = args.written().any(|p| p.out == args.x);
    need(!aliased, "linear", || "outputs other than the input".into(), || "the input as an output".into())
}

/// One product of a `linear`. `out` is `None` where the output is not written.
///
/// # Errors
/// Rows or widths that do not meet.
pub fn product(
    args: &Linear,
    x: Shape,
    weight: Shape,
    bias: Option<usize>,
    out: Option<Shape>,
) -> Result<()> {
    need_width("linear", "an input", weight.width, x)?;
    if let Some(bias) = bias {
        need_width("linear", "a bias", weight.rows, Shape { rows: 1, width: bias })?;
    }
    if let Some(out) = out {
        need_rows("linear", "an output", args.rows, out)?;
        need_width("linear", "an output", weight.rows, out)?;
    }
    Ok(())
}

/// Gate and up of a gated `linear` meet in one output.
///
/// # Errors
/// Different output widths.
pub fn gated(gate: Shape, up: Shape) -> Result<()> {
    need(
        gate.rows == up.rows,
        "linear",
        || format!("gate and up of one width, {}", gate.rows),
        || up.rows.to_string(),
    )
}

impl Linear<'_> {
    /// Products whose output is written: all, or only the first of a gated pair.
    pub fn written(&self) -> impl Iterator<Item = &crate::Product> {
        let n = if matches!(self.combine, Combine::Gated(_)) { 1 } else { self.products.len() };
        self.products.iter().take(n)
    }
}

/// Gives the number of heads and the shape of one head's matrix.
///
/// # Errors
/// A weight that was not loaded for heads, rows or widths that do not meet, or an output that is the input.
pub fn heads(args: &Heads, x: Shape, weight: &WeightSpec, out: Shape) -> Result<(usize, Shape)> {
    let WeightKind::Heads { count } = weight.kind else {
        let found = format!("'{}', a {:?}", weight.name, weight.kind);
        return Err(ComputeError::shape("heads", "a weight loaded for heads", found));
    };
    need_rows("heads", "an input", args.rows, x)?;
    need_rows("heads", "an output", args.rows, out)?;
    need_width("heads", "an input", count.saturating_mul(weight.cols), x)?;
    need_width("heads", "an output", weight.rows, out)?;
    need(args.x != args.out, "heads", || "an output other than the input".into(), || "one buffer".into())?;
    Ok((count, Shape { rows: weight.rows / count, width: weight.cols }))
}

/// # Errors
/// Rows or widths that do not meet, or more rotated dimensions than a head has.
pub fn rope(args: &Rope, x: Shape, freqs: Shape) -> Result<()> {
    need_rows("rope", "an input", args.positions.len(), x)?;
    need_width("rope", "an input", args.heads.saturating_mul(args.head_dim), x)?;
    let rotary = freqs.width.saturating_mul(2);
    need(
        rotary.saturating_add(args.first) <= args.head_dim,
        "rope",
        || format!("at most {} rotated dimensions", args.head_dim),
        || format!("{rotary} from dimension {} on", args.first),
    )
}

/// The rows and pages of every sequence. Pages before number `first` of a sequence are not looked at; `spec_of` looks
/// up a page and gives its spec, which is that of `spec` but for [`PageSpec::first`]: page 0 has it where there is such a
/// thing, no other page does.
///
/// # Errors
/// Rows outside the batch or out of order, too few pages, a page of another shape, other formats or the wrong pool.
pub fn seqs(
    verb: &'static str,
    seqs: &[SeqRows],
    rows: usize,
    spec: &PageSpec,
    first: impl Fn(&SeqRows) -> usize,
    spec_of: impl Fn(crate::Page) -> Result<PageSpec>,
) -> Result<()> {
    let mut next = 0usize;
    for seq in seqs {
        let end = seq.row.saturating_add(seq.rows);
        need(
            seq.row >= next && end <= rows,
            verb,
            || format!("sequences in ascending rows without overlap, between {next} and {rows}"),
            || format!("rows {}..{end}", seq.row),
        )?;
        next = end;
        let positions = seq.position.saturating_add(seq.rows);
        let room = seq.pages.len().saturating_mul(PAGE_POSITIONS);
        need(
            positions <= room,
            verb,
            || format!("pages for {positions} positions"),
            || format!("{} pages, room for {room}", seq.pages.len()),
        )?;
        let pages = seq.pages.iter().enumerate().take(positions.div_ceil(PAGE_POSITIONS));
        for (index, &page) in pages.skip(first(seq)) {
            let (wanted, found) = (spec.of_page(index), spec_of(page)?);
            need(
                found == wanted,
                verb,
                || format!("page {index} of a sequence from a pool of {wanted:?}"),
                || format!("{found:?}"),
            )?;
        }
    }
    Ok(())
}

/// # Errors
/// K or V of another width than the pages, a V apart from the K that it is a part of, or rows that do not meet.
pub fn append_kv(
    args: &AppendKv,
    k: Shape,
    v: Shape,
    spec_of: impl Fn(crate::Page) -> Result<PageSpec>,
) -> Result<()> {
    let rows = k.rows.min(v.rows);
    let first = |seq: &SeqRows| seq.position / PAGE_POSITIONS;
    let Some(spec) = any_spec(args.seqs, first, &spec_of)? else {
        // Nothing to look up: no sequence has rows, or the first that has lacks its page.
        let none = PageSpec::f16(0, 0);
        return seqs("append_kv", args.seqs, rows, &none, first, spec_of);
    };
    need_width("append_kv", "K", spec.kv_heads * spec.head_dim, k)?;
    need_width("append_kv", "V", spec.kv_heads * spec.head_dim, v)?;
    let one = || "one buffer for K and the V within it".into();
    need(spec.latent.is_none() || args.k == args.v, "append_kv", one, || "two".into())?;
    seqs("append_kv", args.seqs, rows, &spec, first, spec_of)
}

/// The spec, without `first`, of the first page that a verb looks at, if any.
fn any_spec(
    seqs: &[SeqRows],
    first: impl Fn(&SeqRows) -> usize,
    spec_of: impl Fn(crate::Page) -> Result<PageSpec>,
) -> Result<Option<PageSpec>> {
    let page = seqs.iter().filter(|s| s.rows > 0).find_map(|s| s.pages.get(first(s)));
    page.map(|&page| Ok(PageSpec { first: false, ..spec_of(page)? })).transpose()
}

/// Gives the spec of the pages, without `first`.
///
/// # Errors
/// Heads that do not divide, widths that do not meet, an output that is the input, a window or cap that cannot be,
/// another number of `sinks` than heads, or what [`seqs`] refuses.
pub fn attend(
    args: &Attend,
    q: Shape,
    out: Shape,
    sinks: Option<usize>,
    spec_of: impl Fn(crate::Page) -> Result<PageSpec>,
) -> Result<PageSpec> {
    let (heads, kv_heads) = (args.heads, args.kv_heads);
    let divides = kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && args.head_dim > 0;
    need(
        divides,
        "attend",
        || "heads in whole groups per KV head".into(),
        || format!("{heads} heads, {kv_heads} KV heads, head_dim {}", args.head_dim),
    )?;
    let width = heads.saturating_mul(args.head_dim);
    need_width("attend", "q", width, q)?;
    need(args.q != args.out, "attend", || "an output other than q".into(), || "one buffer for both".into())?;
    need(args.window != Some(0), "attend", || "a window of at least 1".into(), || "0".into())?;
    if let Some(cap) = args.softcap {
        let usable = cap.is_finite() && cap > 0.0;
        need(usable, "attend", || "a finite softcap above 0".into(), || cap.to_string())?;
    }
    if let Some(sinks) = sinks {
        need(sinks == heads, "attend", || format!("a sink for each of {heads} heads"), || sinks.to_string())?;
    }
    let first = |seq: &SeqRows| seq.first_page(args.window);
    let (shape, found) = (PageSpec::f16(kv_heads, args.head_dim), any_spec(args.seqs, first, &spec_of)?);
    let spec = found.map_or(shape, |f| PageSpec { k: f.k, v: f.v, latent: f.latent, ..shape });
    if found.is_some() || !out.width.is_multiple_of(heads) {
        need_width("attend", "an output", heads.saturating_mul(spec.value_dim()), out)?;
    }
    seqs("attend", args.seqs, q.rows.min(out.rows), &spec, first, spec_of)?;
    Ok(spec)
}

/// # Errors
/// Positions beyond a page, or pages of two shapes.
pub fn copy_page(positions: usize, from: PageSpec, to: PageSpec) -> Result<()> {
    need(
        positions <= PAGE_POSITIONS,
        "copy_page",
        || format!("at most {PAGE_POSITIONS} positions"),
        || positions.to_string(),
    )?;
    need(from == to, "copy_page", || format!("two pages of {from:?}"), || format!("{to:?}"))
}

/// `rows` of equal width in every operand of `map`.
///
/// # Errors
/// Rows or widths that do not meet.
pub fn map(rows: usize, operands: &[Shape]) -> Result<()> {
    let Some(first) = operands.first() else { return Ok(()) };
    for shape in operands {
        need_rows("map", "an operand", rows, *shape)?;
        need_width("map", "an operand", first.width, *shape)?;
    }
    Ok(())
}

/// The gate of a `map`, in order: what is gated, the gate, the output; buffers and their shapes.
///
/// # Errors
/// A gate of a width that does not divide the rows', a gate that is an operand too, a sum onto what is gated, or what
/// [`map`] refuses.
pub fn sigmoid_gate(rows: usize, [a, gate, out]: [(Buf, Shape); 3], add: bool) -> Result<()> {
    need_rows("map", "a gate", rows, gate.1)?;
    need(
        gate.1.width > 0 && a.1.width.is_multiple_of(gate.1.width),
        "map",
        || format!("a gate whose width divides {}", a.1.width),
        || gate.1.width.to_string(),
    )?;
    let apart = gate.0 != a.0 && gate.0 != out.0 && !(add && a.0 == out.0);
    need(
        apart,
        "map",
        || "a gate, what it gates and a sum in different buffers".into(),
        || "one in two roles".into(),
    )?;
    map(rows, &[a.1, out.1])
}

/// # Errors
/// A cap that is no finite positive number, or what [`map`] refuses.
pub fn softcap(rows: usize, cap: f32, a: Shape, out: Shape) -> Result<()> {
    let good = cap.is_finite() && cap > 0.0;
    need(good, "map", || "a finite, positive cap".into(), || cap.to_string())?;
    map(rows, &[a, out])
}

/// # Errors
/// A stretch that the wider rows do not have, or what [`map`] refuses.
pub fn gate(rows: usize, [a, b, out]: [Shape; 3], first: usize) -> Result<()> {
    let end = first.saturating_add(a.width);
    need(end <= b.width, "map", || format!("a stretch within {}", b.width), || format!("{first}..{end}"))?;
    need_rows("map", "an operand", rows, b)?;
    map(rows, &[a, out])
}

/// # Errors
/// Parts that are not equal, an output of another width than the two together, a buffer in two roles, or too few rows.
pub fn join(rows: usize, [a, b, out]: [(Buf, Shape); 3], groups: usize) -> Result<()> {
    for (_, shape) in [a, b, out] {
        need_rows("map", "an operand", rows, shape)?;
        let equal = groups > 0 && shape.width.is_multiple_of(groups);
        need(equal, "map", || format!("rows in {groups} equal parts"), || format!("width {}", shape.width))?;
    }
    need_width("map", "an output", a.1.width + b.1.width, out.1)?;
    let apart = a.0 != out.0 && b.0 != out.0;
    need(apart, "map", || "an output other than the parts".into(), || "one in two roles".into())
}

/// # Errors
/// A row outside its buffer, or rows of different widths.
pub fn copy_row(a: Shape, from: usize, out: Shape, to: usize) -> Result<()> {
    need(from < a.rows, "map", || format!("a source row below {}", a.rows), || from.to_string())?;
    need(to < out.rows, "map", || format!("a target row below {}", out.rows), || to.to_string())?;
    need_width("map", "a target", a.width, out)
}

/// # Errors
/// Too few rows, or a `k` that the row or the verb cannot give.
pub fn pick(args: &Pick, logits: Shape) -> Result<()> {
    need_rows("pick", "logits", args.rows, logits)?;
    let most = Pick::MAX_K.min(logits.width);
    need(args.k >= 1 && args.k <= most, "pick", || format!("k of 1..={most}"), || args.k.to_string())?;
    let (rows, draws) = (args.rows, args.draws);
    need(
        draws.is_empty() || draws.len() == rows,
        "pick",
        || format!("{rows} draws or none"),
        || draws.len().to_string(),
    )?;
    for draw in draws {
        // Written so that NaN fails.
        let share = |p: f32| (0.0..=1.0).contains(&p);
        let good = (draw.temperature >= 0.0 && draw.temperature.is_finite())
            && (1..=args.k).contains(&draw.top_k)
            && [draw.typical_p, draw.top_p, draw.min_p].into_iter().all(share)
            && (0.0..1.0).contains(&draw.u);
        let expected =
            || format!("a temperature from 0, top_k of 1..={}, shares within 0..=1, u within 0..1", args.k);
        need(good, "pick", expected, || format!("{draw:?}"))?;
    }
    need(u32::try_from(logits.width).is_ok(), "pick", || "ids of 32 bits".into(), || logits.width.to_string())
}

/// Positions within a page.
///
/// # Errors
/// Positions beyond a page.
pub fn positions(verb: &'static str, range: &std::ops::Range<usize>) -> Result<()> {
    let good = range.start <= range.end && range.end <= PAGE_POSITIONS;
    need(good, verb, || format!("positions within 0..{PAGE_POSITIONS}"), || format!("{range:?}"))
}

/// An image of some positions.
///
/// # Errors
/// Another length than the positions take.
pub fn image(verb: &'static str, wanted: usize, found: usize) -> Result<()> {
    need(wanted == found, verb, || format!("an image of {wanted} bytes"), || format!("{found} bytes"))
}

/// The scales in an image of positions `range` of a page of `spec`: what no device writes would reach other sequences
/// through weights of 0. Nothing to find on an exact device.
///
/// # Errors
/// A scale that is negative or not finite, or a minimum that is not finite.
pub fn scales(
    verb: &'static str,
    spec: &PageSpec,
    range: std::ops::Range<usize>,
    image: &[u8],
    exact: bool,
) -> Result<()> {
    if exact {
        return Ok(());
    }
    let mut rest = image;
    for at in range {
        let block = at / crate::BLOCK_POSITIONS;
        for _ in 0..spec.kv_heads {
            for format in [spec.k_format(block), spec.v_format(block)].into_iter().take(spec.stored_vectors())
            {
                let Some((vector, next)) = rest.split_at_checked(format.vector_bytes(spec.head_dim)) else {
                    return Ok(());
                };
                rest = next;
                let found = || format!("position {at}: a {format} vector with other scales");
                let expected = || "scales that are finite and not negative".into();
                need(hob_quant::scales_are_sound(format, vector), verb, expected, found)?;
            }
        }
    }
    Ok(())
}
