//! Values as Python sees them: text and `repr`, numbers, equality and order, items of lists and maps. Everything
//! here charges the meter and stops at a depth, because values may share their parts and be exponentially larger
//! than their memory.

use std::cmp::Ordering;

use minijinja::value::{DynObject, Kwargs, ObjectRepr, Rest, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::meter;

/// What looking at one value costs when values are printed or compared part by part: about the time in which as
/// many bytes are copied, and more.
pub(super) const VISIT_BYTES: usize = 32;
/// The same for an entry of a map.
const ENTRY_BYTES: usize = 96;

/// An error in the template's use of a value.
pub(super) fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// A growing text whose every byte is charged.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn push(&mut self, piece: &str) -> Result<(), Error> {
        meter::charge(piece.len())?;
        self.0.push_str(piece);
        Ok(())
    }

    pub(super) fn push_char(&mut self, c: char) -> Result<(), Error> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    pub(super) fn into_value(self) -> Value {
        Value::from(self.0)
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

/// A Python number; bool is an int.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn of(value: &Value) -> Option<Number> {
        match value.kind() {
            ValueKind::Bool => Some(Number::Int(value.is_true().into())),
            ValueKind::Number if value.is_integer() => match i128::try_from(value.clone()) {
                Ok(int) => Some(Number::Int(int)),
                Err(_) => f64::try_from(value.clone()).ok().map(Number::Float),
            },
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
            _ => None,
        }
    }

    pub(super) fn float(self) -> f64 {
        match self {
            Number::Int(int) => int as f64,
            Number::Float(float) => float,
        }
    }

    pub(super) fn into_value(self) -> Value {
        match self {
            Number::Int(int) => i64::try_from(int).map_or_else(|_| Value::from(int), Value::from),
            Number::Float(float) => Value::from(float),
        }
    }

    fn compare(self, other: Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            (a, b) => a.float().partial_cmp(&b.float()),
        }
    }
}

/// The elements of a list or tuple. All sequences of a rendering are one of the two.
pub(super) fn elements(value: &Value) -> Option<&[Value]> {
    value
        .downcast_object_ref::<Vec<Value>>()
        .map(Vec::as_slice)
        .or_else(|| value.downcast_object_ref::<Tuple>().map(|tuple| &**tuple))
}

/// The object behind a map (also a namespace, keyword arguments, `loop`).
pub(super) fn map(value: &Value) -> Option<&DynObject> {
    value.as_object().filter(|object| object.repr() == ObjectRepr::Map)
}

/// A charged list.
pub(super) fn list(values: Vec<Value>) -> Result<Value, Error> {
    meter::charge_list(values.len())?;
    Ok(Value::from(values))
}

/// A charged tuple.
pub(super) fn tuple(values: Vec<Value>) -> Result<Value, Error> {
    meter::charge_list(values.len())?;
    Ok(Value::from(Tuple::new(values)))
}

/// A list of tuples: one container, however many tuples.
pub(super) fn list_of_tuples(tuples: Vec<[Value; 2]>) -> Result<Value, Error> {
    let tuple = |pair: [Value; 2]| meter::charge_inner(2).map(|()| Value::from(Tuple::from(pair)));
    list(tuples.into_iter().map(tuple).collect::<Result<_, _>>()?)
}

/// A list of lists: one container, however many lists.
pub(super) fn list_of_lists(lists: Vec<Vec<Value>>) -> Result<Value, Error> {
    let inner = |elements: Vec<Value>| meter::charge_inner(elements.len()).map(|()| Value::from(elements));
    list(lists.into_iter().map(inner).collect::<Result<_, _>>()?)
}

/// A charged map. Keys must be plain: hashing a nested one could take for ever.
pub(super) fn dict(pairs: Vec<(Value, Value)>) -> Result<Value, Error> {
    meter::charge_map(pairs.len())?;
    for (key, _) in &pairs {
        check_key(key)?;
    }
    Ok(Value::from_pairs(pairs))
}

/// Accepts text, numbers, booleans and none as keys of a map.
pub(super) fn check_key(key: &Value) -> Result<(), Error> {
    match key.kind() {
        ValueKind::String => meter::charge(key.as_str().unwrap_or_default().len()),
        ValueKind::Number | ValueKind::Bool | ValueKind::None | ValueKind::Undefined => Ok(()),
        kind => Err(invalid(format!("a {kind} cannot be a key of a map"))),
    }
}

/// What iterating over the value yields: characters, elements, or keys. Undefined yields nothing, as in Jinja.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    if let Some(elements) = elements(value) {
        meter::charge_list(elements.len())?;
        return Ok(elements.to_vec());
    }
    if let Some(text) = value.as_str() {
        meter::charge_list(text.len())?;
        return Ok(text.chars().map(Value::from).collect());
    }
    if let Some(object) = map(value) {
        meter::charge_list(object.enumerator_len().unwrap_or(0))?;
        return Ok(object.try_iter().into_iter().flatten().collect());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        kind => Err(invalid(format!("a value of type {kind} is not iterable"))),
    }
}

/// Keys and values of a map.
pub(super) fn pairs(object: &DynObject) -> Result<Vec<(Value, Value)>, Error> {
    meter::charge(object.enumerator_len().unwrap_or(0).saturating_mul(ENTRY_BYTES))?;
    Ok(object.try_iter_pairs().into_iter().flatten().collect())
}

/// `str(value)`: text as it is, everything else as Python prints it. Undefined is empty, as in Jinja.
pub(super) fn push_str(out: &mut Text, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.push(text),
        None if value.is_undefined() => Ok(()),
        None => push_repr(out, value, meter::depth()),
    }
}

fn push_repr(out: &mut Text, value: &Value, depth: usize) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or_else(meter::too_deep)?;
    meter::charge(VISIT_BYTES)?;
    if let Some(text) = value.as_str() {
        return push_quoted(out, text);
    }
    if let Some(number) = Number::of(value).filter(|_| value.kind() == ValueKind::Number) {
        return match number {
            Number::Int(int) => out.push(&int.to_string()),
            Number::Float(float) => out.push(&float_text(float)),
        };
    }
    if let Some(elements) = elements(value) {
        let tuple = value.is_tuple();
        out.push(if tuple { "(" } else { "[" })?;
        for (index, element) in elements.iter().enumerate() {
            if index > 0 {
                out.push(", ")?;
            }
            push_repr(out, element, depth)?;
        }
        return out.push(match tuple {
            true if elements.len() == 1 => ",)",
            true => ")",
            false => "]",
        });
    }
    if let Some(object) = map(value) {
        out.push("{")?;
        for (index, (key, value)) in object.try_iter_pairs().into_iter().flatten().enumerate() {
            meter::charge(ENTRY_BYTES)?;
            if index > 0 {
                out.push(", ")?;
            }
            push_repr(out, &key, depth)?;
            out.push(": ")?;
            push_repr(out, &value, depth)?;
        }
        return out.push("}");
    }
    match value.kind() {
        ValueKind::Undefined => out.push("Undefined"),
        ValueKind::None => out.push("None"),
        ValueKind::Bool if value.is_true() => out.push("True"),
        ValueKind::Bool => out.push("False"),
        kind => out.push(&format!("<{kind}>")),
    }
}

/// Python's `repr` of a text: single quotes unless only those occur in it.
fn push_quoted(out: &mut Text, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            c if c == quote => {
                out.push("\\")?;
                out.push_char(c)?;
            }
            c if is_printable(c) => out.push_char(c)?,
            c => out.push(&match c as u32 {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            })?,
        }
    }
    out.push_char(quote)
}

/// Python's `str.isprintable` of one character, but for unassigned ones: no control, format or private characters
/// and no space but the plain one.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c as u32,
        0x7F..=0xA0 | 0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2 | 0x1680 | 0x180E
        | 0x2000..=0x200F | 0x2028..=0x202F | 0x205F..=0x206F | 0x3000 | 0xE000..=0xF8FF | 0xFEFF
        | 0xFFF0..=0xFFFB | 0x110BD | 0x110CD | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0x10_FFFF);
    !hidden && !c.is_control()
}

/// Python's `repr` of a float: shortest digits that read back, exponents below 1e-4 and from 1e16.
pub(super) fn float_text(float: f64) -> String {
    if float.is_nan() {
        return "nan".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.into();
    }
    let magnitude = float.abs();
    if float != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let sign = if exponent.starts_with('-') { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:0>2}", exponent.trim_start_matches('-'));
    }
    let mut text = format!("{float}");
    if !text.contains('.') {
        text.push_str(".0");
    }
    text
}

/// `a == b` as in Python.
pub(super) fn equal(a: &Value, b: &Value) -> Result<bool, Error> {
    equal_at(a, b, meter::depth())
}

fn equal_at(a: &Value, b: &Value, depth: usize) -> Result<bool, Error> {
    meter::charge(VISIT_BYTES)?;
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        meter::charge(if a.len() == b.len() { a.len() } else { 0 })?;
        return Ok(a == b);
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(a.compare(b) == Some(Ordering::Equal));
    }
    let depth = depth.checked_sub(1).ok_or_else(meter::too_deep)?;
    if let (Some(left), Some(right)) = (elements(a), elements(b)) {
        if left.len() != right.len() || a.is_tuple() != b.is_tuple() {
            return Ok(false);
        }
        for (a, b) in left.iter().zip(right) {
            if !equal_at(a, b, depth)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if let (Some(left), Some(right)) = (map(a), map(b)) {
        if left.enumerator_len() != right.enumerator_len() {
            return Ok(false);
        }
        for (key, value) in left.try_iter_pairs().into_iter().flatten() {
            meter::charge(ENTRY_BYTES)?;
            check_key(&key)?;
            let Some(other) = right.get_value(&key) else { return Ok(false) };
            if !equal_at(&value, &other, depth)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    Ok(a.kind() == b.kind() && matches!(a.kind(), ValueKind::None | ValueKind::Undefined))
}

/// The order of two numbers, texts or sequences; anything else has none.
pub(super) fn order(a: &Value, b: &Value) -> Result<Ordering, Error> {
    order_at(a, b, meter::depth())
}

fn order_at(a: &Value, b: &Value, depth: usize) -> Result<Ordering, Error> {
    meter::charge(VISIT_BYTES)?;
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        meter::charge(a.len().min(b.len()))?;
        return Ok(a.cmp(b));
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return a.compare(b).ok_or_else(|| invalid("nan has no order"));
    }
    let depth = depth.checked_sub(1).ok_or_else(meter::too_deep)?;
    if let (Some(left), Some(right)) = (elements(a), elements(b)) {
        for (a, b) in left.iter().zip(right) {
            match order_at(a, b, depth)? {
                Ordering::Equal => {}
                other => return Ok(other),
            }
        }
        return Ok(left.len().cmp(&right.len()));
    }
    Err(invalid(format!("values of type {} and {} have no order", a.kind(), b.kind())))
}

/// Joins what the engine passes separately: keyword arguments become the last value, as [`Args`] expects.
pub(super) fn raw_args(positional: Rest<Value>, named: Kwargs) -> Vec<Value> {
    let mut args = positional.0;
    if named.args().next().is_some() {
        args.push(named.into());
    }
    args
}

/// The arguments of a call: positional ones, then keyword ones.
pub(super) struct Args<'a> {
    positional: &'a [Value],
    named: Option<Kwargs>,
}

impl<'a> Args<'a> {
    pub(super) fn new(args: &'a [Value]) -> Args<'a> {
        match args.split_last() {
            Some((last, positional)) if last.is_kwargs() => {
                Args { positional, named: Kwargs::try_from(last.clone()).ok() }
            }
            _ => Args { positional: args, named: None },
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&'a Value> {
        self.positional.get(index)
    }

    /// The argument at `index` or named `name`; none and undefined are values too.
    pub(super) fn find(&self, index: usize, name: &str) -> Option<Value> {
        self.get(index).cloned().or_else(|| self.keyword(name))
    }

    pub(super) fn keyword(&self, name: &str) -> Option<Value> {
        self.named.as_ref().filter(|named| named.has(name)).and_then(|named| named.peek::<Value>(name).ok())
    }

    /// As [`Args::find`], where `None` counts as absent.
    pub(super) fn given(&self, index: usize, name: &str) -> Option<Value> {
        self.find(index, name).filter(|value| !value.is_none() && !value.is_undefined())
    }

    pub(super) fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.given(index, name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => {
                    meter::charge(text.len())?;
                    Ok(Some(text.to_owned()))
                }
                None => Err(invalid(format!("argument {name} must be a text, not {}", value.kind()))),
            },
        }
    }

    pub(super) fn int(&self, index: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.given(index, name) {
            None => Ok(None),
            Some(value) => match Number::of(&value) {
                Some(Number::Int(int)) => {
                    let range = || invalid(format!("argument {name} is out of range"));
                    i64::try_from(int).map(Some).map_err(|_| range())
                }
                _ => Err(invalid(format!("argument {name} must be an integer, not {}", value.kind()))),
            },
        }
    }

    pub(super) fn flag(&self, index: usize, name: &str) -> bool {
        self.find(index, name).is_some_and(|value| value.is_true())
    }

    pub(super) fn named(&self) -> Vec<(String, Value)> {
        let Some(named) = &self.named else { return Vec::new() };
        let value = |name: &str| Some((name.to_owned(), named.peek::<Value>(name).ok()?));
        named.args().filter_map(value).collect()
    }

    /// Refuses more positional arguments than the function knows.
    pub(super) fn at_most(&self, count: usize) -> Result<(), Error> {
        match self.positional.len() > count {
            true => {
                Err(invalid(format!("at most {count} arguments expected, found {}", self.positional.len())))
            }
            false => Ok(()),
        }
    }
}
