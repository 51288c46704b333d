//! `hob show`: what a model file holds. Works for files whose architecture hob does not run, too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use hob_files::{Array, FileKind, ModelFile, Value};
use hob_model::{KvLayout, KvPair, Layout, ModelInfo};
use hob_plan::units::{show_bytes, show_count};
use hob_quant::KvFormat;
use serde_json::json;

use crate::args::ShowArgs;
use crate::exit;
use crate::house::House;
use crate::term::{self, printable};

/// Characters of a metadata value that are shown without `-v`.
const SHORT: usize = 72;
/// Elements of an array that are shown with `-v`.
const MANY: usize = 64;

pub fn show(house: &House, args: &ShowArgs) -> Result<i32> {
    let opened = house.open(&args.file, false)?;
    let file = &opened.file;
    // Without an architecture we know there is still much to see.
    let info = ModelInfo::read(file).map_err(|e| e.to_string());
    let kind = match file.kind() {
        FileKind::Gguf => "GGUF",
        FileKind::Safetensors => "safetensors",
    };
    let head = Head { name: &opened.name, path: opened.path.display().to_string(), kind };
    let out = if args.json {
        format!("{:#}\n", as_json(&head, file, &info, args.verbose))
    } else {
        as_text(&head, file, &info, args.verbose)
    };
    term::print(&out)?;
    Ok(exit::OK)
}

struct Head<'a> {
    name: &'a str,
    path: String,
    kind: &'static str,
}

/// Tensors of one type.
#[derive(Default)]
struct Kind {
    tensors: u64,
    weights: u64,
    bytes: u64,
}

fn by_type(file: &ModelFile) -> BTreeMap<&'static str, Kind> {
    let mut kinds: BTreeMap<&'static str, Kind> = BTreeMap::new();
    for t in file.tensors() {
        let kind = kinds.entry(t.format.name()).or_default();
        kind.tensors += 1;
        kind.weights += t.shape.iter().product::<usize>() as u64;
        kind.bytes += t.bytes;
    }
    kinds
}

fn as_text(head: &Head, file: &ModelFile, info: &Result<ModelInfo, String>, verbose: bool) -> String {
    let mut out =
        format!("{} ({}, {})\n{}\n", head.name, head.kind, show_bytes(file.total_bytes()), head.path);
    match info {
        Ok(info) => model_text(info, &mut out),
        Err(problem) => {
            let _ = writeln!(out, "hob cannot run it: {problem}");
        }
    }
    let _ = writeln!(out, "tensors by type");
    for (name, kind) in by_type(file) {
        let (tensors, weights) = (show_count(kind.tensors), show_count(kind.weights));
        let _ = writeln!(
            out,
            "  {name:<8} {tensors:>6} tensors {weights:>16} weights {:>10}",
            show_bytes(kind.bytes)
        );
    }
    if verbose {
        let _ = writeln!(out, "tensors");
        for t in file.tensors() {
            let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
            let size = show_bytes(t.bytes);
            let _ = writeln!(
                out,
                "  {:<8} {size:>10}  [{}]  {}",
                t.format.name(),
                shape.join(", "),
                printable(&t.name)
            );
        }
    }
    if !file.metadata().is_empty() {
        let _ = writeln!(out, "metadata");
    }
    for (key, value) in file.metadata().iter() {
        let _ = writeln!(out, "  {} = {}", printable(key), value_text(value, verbose));
    }
    out
}

/// Formats of K and V whose bytes are shown.
const KV_SHOWN: [KvFormat; 3] = [KvFormat::F16, KvFormat::Q8, KvFormat::Q4];

/// Bytes that one token adds when all K and V are kept in `format`.
fn kv_bytes(info: &ModelInfo, format: KvFormat) -> u64 {
    info.kv_bytes_per_token(&KvLayout::uniform(KvPair::both(format)))
}

fn model_text(info: &ModelInfo, out: &mut String) {
    let config = &info.config;
    // Layers without attention have no KV heads.
    let attention = config.layers.iter().find(|l| l.kv_heads > 0);
    let heads = attention.map_or((0, 0, 0), |l| (l.heads, l.kv_heads, l.head_dim));
    let _ = writeln!(
        out,
        "{}: {} parameters, {} layers of {}, heads {}/{} of {}, vocabulary {}, trained for {} tokens",
        config.arch,
        show_count(info.parameters()),
        config.layers.len(),
        config.dim,
        heads.0,
        heads.1,
        heads.2,
        show_count(config.vocab as u64),
        show_count(config.ctx_train as u64),
    );
    let full = config.ctx_train.saturating_sub(1);
    let _ = writeln!(
        out,
        "read per token: {} at the start, {} after {} tokens with f16 KV; weights in memory {}",
        show_bytes(info.bytes_per_token(0, &KvLayout::default())),
        show_bytes(info.bytes_per_token(full, &KvLayout::default())),
        show_count(config.ctx_train as u64),
        show_bytes(info.footprint(&Layout::new(1)).weights),
    );
    let kv = KV_SHOWN.map(|format| format!("{format} {}", show_bytes(kv_bytes(info, format))));
    let _ = writeln!(out, "KV a token: {}", kv.join(", "));
    if !info.unexpected.is_empty() {
        let names: Vec<String> = info.unexpected.iter().take(5).map(|n| printable(n)).collect();
        let _ = writeln!(out, "{} tensors are not used: {}", info.unexpected.len(), names.join(", "));
    }
}

fn as_json(
    head: &Head,
    file: &ModelFile,
    info: &Result<ModelInfo, String>,
    verbose: bool,
) -> serde_json::Value {
    let types: BTreeMap<_, _> = by_type(file)
        .into_iter()
        .map(|(name, k)| (name, json!({ "tensors": k.tensors, "weights": k.weights, "bytes": k.bytes })))
        .collect();
    let model = match info {
        Ok(info) => json!({
            "arch": info.config.arch, "parameters": info.parameters(), "layers": info.config.layers.len(),
            "dim": info.config.dim, "vocab": info.config.vocab, "ctx_train": info.config.ctx_train,
            "bytes_per_token": info.bytes_per_token(0, &KvLayout::default()),
            "kv_bytes_per_token":
                KV_SHOWN.map(|f| (f.name(), kv_bytes(info, f))).into_iter().collect::<BTreeMap<_, _>>(),
        }),
        Err(problem) => json!({ "problem": problem }),
    };
    let mut all = json!({
        "name": head.name, "path": head.path, "kind": head.kind, "bytes": file.total_bytes(), "model": model,
        "types": types,
        "metadata": file.metadata().iter().map(|(k, v)| (k.to_string(), value_text(v, verbose).into()))
            .collect::<serde_json::Map<_, _>>(),
    });
    if verbose {
        all["tensors"] = file
            .tensors()
            .iter()
            .map(|t| json!({ "name": t.name, "type": t.format.name(), "shape": t.shape, "bytes": t.bytes }))
            .collect();
    }
    all
}

/// A value on one line; long ones are cut unless `full`.
fn value_text(value: &Value, full: bool) -> String {
    let text = match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::Str(v) => printable(v),
        Value::Array(a) => return array_text(a, full),
    };
    if full { text } else { cut(&text) }
}

fn array_text(array: &Array, full: bool) -> String {
    let head = format!("{} x {}", array.len(), array.type_name());
    if !full {
        return head;
    }
    let shown = |items: Vec<String>| {
        let more = if array.len() > items.len() { ", ..." } else { "" };
        format!("{head}: {}{more}", items.join(", "))
    };
    match array {
        Array::Str(v) => shown(v.iter().take(MANY).map(printable).collect()),
        Array::U32(v) => shown(v.iter().take(MANY).map(u32::to_string).collect()),
        Array::I32(v) => shown(v.iter().take(MANY).map(i32::to_string).collect()),
        Array::F32(v) => shown(v.iter().take(MANY).map(f32::to_string).collect()),
        Array::Bool(v) => shown(v.iter().take(MANY).map(bool::to_string).collect()),
        _ => head,
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((at, _)) => format!("{}... ({} bytes; -v shows all)", &text[..at], text.len()),
        None => text.to_string(),
    }
}
