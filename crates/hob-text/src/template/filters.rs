//! Jinja's filters and tests, metered. Names, arguments and results follow Jinja 3.1; what no chat template uses
//! (HTML, URLs, random choice) is left out and reported as unknown by the engine.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::json_values::{JsonStyle, push_json};
use super::lists;
use super::meter;
use super::ops;
use super::strings;
use super::values::{self, Args, Number, Text, float_text, invalid, raw_args};

/// A filter; the filtered value comes first.
type Filter = fn(&[Value]) -> Result<Value, Error>;

const FILTERS: &[(&str, Filter)] = &[
    ("abs", abs),
    ("attr", attr),
    ("batch", lists::batch),
    ("capitalize", strings::capitalize),
    ("center", strings::center),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", lists::dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", lists::first),
    ("float", float),
    ("format", strings::format),
    ("groupby", lists::groupby),
    ("indent", strings::indent),
    ("int", int),
    ("items", lists::items),
    ("join", strings::join),
    ("last", lists::last),
    ("length", length),
    ("list", |args| values::list(values::items(&args[0])?)),
    ("lower", strings::lower),
    ("max", |args| lists::extreme(args, true)),
    ("min", |args| lists::extreme(args, false)),
    ("replace", strings::replace),
    ("reverse", lists::reverse),
    ("round", round),
    ("safe", string),
    ("slice", lists::slice),
    ("sort", lists::sort),
    ("string", string),
    ("sum", lists::sum),
    ("title", strings::title),
    ("tojson", tojson),
    ("trim", strings::trim),
    ("unique", lists::unique),
    ("upper", strings::upper),
    ("wordcount", strings::wordcount),
];

/// Registers every filter and test.
pub(super) fn register(env: &mut Environment) {
    for &(name, filter) in FILTERS {
        // The engine always passes the filtered value first.
        env.add_filter(name, move |args: Rest<Value>, named: Kwargs| match args.is_empty() {
            true => Err(Error::from(ErrorKind::MissingArgument)),
            false => filter(&raw_args(args, named)),
        });
    }
    env.add_filter("map", |state: &mut State, args: Rest<Value>, named: Kwargs| {
        lists::map(state, &raw_args(args, named))
    });
    for (name, by_attribute, keep) in [
        ("select", false, true),
        ("reject", false, false),
        ("selectattr", true, true),
        ("rejectattr", true, false),
    ] {
        env.add_filter(name, move |state: &mut State, args: Rest<Value>| {
            lists::select(state, &args, by_attribute, keep)
        });
    }
    register_tests(env);
}

/// A test of a value's kind.
type KindTest = fn(&Value) -> bool;

const KINDS: &[(&str, KindTest)] = &[
    ("defined", |value| !value.is_undefined()),
    ("undefined", Value::is_undefined),
    ("none", Value::is_none),
    ("boolean", |value| value.kind() == ValueKind::Bool),
    ("true", |value| value.kind() == ValueKind::Bool && value.is_true()),
    ("false", |value| value.kind() == ValueKind::Bool && !value.is_true()),
    ("string", |value| value.kind() == ValueKind::String),
    ("number", |value| Number::of(value).is_some()),
    ("integer", |value| value.kind() == ValueKind::Number && value.is_integer()),
    ("float", |value| value.kind() == ValueKind::Number && !value.is_integer()),
    ("mapping", |value| values::map(value).is_some()),
    ("sequence", is_sequence),
    ("iterable", |value| is_sequence(value) || value.is_undefined()),
    ("callable", |value| value.kind() == ValueKind::Plain),
    ("lower", |value| value.as_str().is_some_and(|text| text.chars().all(|c| !c.is_uppercase()))),
    ("upper", |value| value.as_str().is_some_and(|text| text.chars().all(|c| !c.is_lowercase()))),
];

/// Tests that compare with an operator.
const COMPARISONS: &[(&str, &str)] = &[
    ("eq", ops::EQ),
    ("equalto", ops::EQ),
    ("==", ops::EQ),
    ("ne", ops::NE),
    ("!=", ops::NE),
    ("lt", ops::LT),
    ("lessthan", ops::LT),
    ("<", ops::LT),
    ("le", ops::LE),
    ("<=", ops::LE),
    ("gt", ops::GT),
    ("greaterthan", ops::GT),
    (">", ops::GT),
    ("ge", ops::GE),
    (">=", ops::GE),
    ("in", ops::IN),
];

fn register_tests(env: &mut Environment) {
    for &(name, test) in KINDS {
        env.add_test(name, move |value: &Value| -> Result<bool, Error> {
            meter::charge(value.as_str().map_or(0, str::len))?;
            Ok(test(value))
        });
    }
    for (name, remainder) in [("even", 0), ("odd", 1)] {
        env.add_test(name, move |value: &Value| match Number::of(value) {
            Some(Number::Int(int)) => Ok(int.rem_euclid(2) == remainder),
            _ => Err(invalid(format!("an integer is expected, not a {}", value.kind()))),
        });
    }
    env.add_test("divisibleby", |value: &Value, by: &Value| match (Number::of(value), Number::of(by)) {
        (Some(Number::Int(int)), Some(Number::Int(by))) if by != 0 => Ok(int.checked_rem(by) == Some(0)),
        _ => Err(invalid("divisibleby needs two integers, the second not 0")),
    });
    for &(name, operator) in COMPARISONS {
        env.add_test(name, move |value: &Value, other: &Value| ops::test(operator, value, other));
    }
    env.add_test("sameas", |value: &Value, other: &Value| -> Result<bool, Error> {
        Ok(value.kind() == other.kind() && values::equal(value, other)?)
    });
}

/// As in Jinja: whatever has a length and items.
fn is_sequence(value: &Value) -> bool {
    value.as_str().is_some() || values::elements(value).is_some() || values::map(value).is_some()
}

fn length(args: &[Value]) -> Result<Value, Error> {
    let value = &args[0];
    if let Some(text) = value.as_str() {
        meter::charge(text.len())?;
        return Ok(Value::from(text.chars().count()));
    }
    if let Some(elements) = values::elements(value) {
        return Ok(Value::from(elements.len()));
    }
    if let Some(object) = values::map(value) {
        return Ok(Value::from(object.enumerator_len().unwrap_or(0)));
    }
    match value.is_undefined() {
        true => Ok(Value::from(0)),
        false => Err(invalid(format!("a value of type {} has no length", value.kind()))),
    }
}

fn string(args: &[Value]) -> Result<Value, Error> {
    if args[0].as_str().is_some() {
        return Ok(args[0].clone());
    }
    let mut text = Text::default();
    values::push_str(&mut text, &args[0])?;
    Ok(text.into_value())
}

fn escape(args: &[Value]) -> Result<Value, Error> {
    let mut plain = Text::default();
    values::push_str(&mut plain, &args[0])?;
    let mut text = Text::default();
    for c in plain.into_string().chars() {
        match c {
            '&' => text.push("&amp;")?,
            '<' => text.push("&lt;")?,
            '>' => text.push("&gt;")?,
            '"' => text.push("&#34;")?,
            '\'' => text.push("&#39;")?,
            c => text.push_char(c)?,
        }
    }
    Ok(text.into_value())
}

fn default(args: &[Value]) -> Result<Value, Error> {
    let value = args[0].clone();
    let args = Args::new(&args[1..]);
    let replace = value.is_undefined() || (args.flag(1, "boolean") && !value.is_true());
    Ok(if replace { args.find(0, "default_value").unwrap_or_else(|| Value::from("")) } else { value })
}

fn attr(args: &[Value]) -> Result<Value, Error> {
    let name =
        args.get(1).and_then(Value::as_str).ok_or_else(|| invalid("attr needs the name of an attribute"))?;
    args[0].get_attr(name)
}

fn abs(args: &[Value]) -> Result<Value, Error> {
    match Number::of(&args[0]) {
        Some(Number::Int(int)) => Ok(Number::Int(int.saturating_abs()).into_value()),
        Some(Number::Float(float)) => Ok(Value::from(float.abs())),
        None => Err(invalid(format!("abs needs a number, not a {}", args[0].kind()))),
    }
}

fn int(args: &[Value]) -> Result<Value, Error> {
    let options = Args::new(&args[1..]);
    let otherwise = || options.find(0, "default").unwrap_or_else(|| Value::from(0));
    let base =
        u32::try_from(options.int(1, "base")?.unwrap_or(10)).ok().filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| invalid("the base of int must be from 2 to 36"))?;
    if let Some(text) = args[0].as_str() {
        meter::charge(text.len())?;
        let text = text.trim();
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let digits =
            text.get(..2).filter(|start| start.eq_ignore_ascii_case(prefix)).map_or(text, |_| &text[2..]);
        let whole = i128::from_str_radix(digits, base).ok();
        let float = || text.parse::<f64>().ok().filter(|_| base == 10).map(|float| float.trunc() as i128);
        return Ok(whole.or_else(float).map_or_else(otherwise, |int| Number::Int(int).into_value()));
    }
    Ok(match Number::of(&args[0]) {
        Some(Number::Int(int)) => Number::Int(int).into_value(),
        Some(Number::Float(float)) if float.is_finite() => Number::Int(float.trunc() as i128).into_value(),
        _ => otherwise(),
    })
}

fn float(args: &[Value]) -> Result<Value, Error> {
    let otherwise = || Args::new(&args[1..]).find(0, "default").unwrap_or_else(|| Value::from(0.0));
    if let Some(text) = args[0].as_str() {
        meter::charge(text.len())?;
        return Ok(text.trim().parse::<f64>().map_or_else(|_| otherwise(), Value::from));
    }
    Ok(Number::of(&args[0]).map_or_else(otherwise, |number| Value::from(number.float())))
}

/// Rounds half to even, as Python's `round`; `ceil` and `floor` as named. The result is a float, as in Jinja.
fn round(args: &[Value]) -> Result<Value, Error> {
    let number = Number::of(&args[0]).ok_or_else(|| invalid("round needs a number"))?.float();
    let options = Args::new(&args[1..]);
    let precision = options.int(0, "precision")?.unwrap_or(0).clamp(-300, 300) as i32;
    let method = options.text(1, "method")?.unwrap_or_else(|| "common".into());
    let scale = 10f64.powi(precision);
    let scaled = number * scale;
    let rounded = match method.as_str() {
        // Formatting rounds the exact binary value, as Python does; scaling would round twice.
        "common" if (0..=17).contains(&precision) => {
            return Ok(Value::from(
                format!("{number:.*}", precision as usize).parse::<f64>().unwrap_or(number),
            ));
        }
        "common" => scaled.round_ties_even(),
        "ceil" => scaled.ceil(),
        "floor" => scaled.floor(),
        _ => return Err(invalid("the method of round is common, ceil or floor")),
    };
    Ok(Value::from(rounded / scale))
}

/// Hugging Face's `tojson`: `json.dumps` without HTML escapes, keeping letters as they are.
fn tojson(args: &[Value]) -> Result<Value, Error> {
    let options = Args::new(&args[1..]);
    // The signature is tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False).
    let indent = match options.given(1, "indent") {
        None => None,
        Some(value) => Some(match (value.as_str(), Number::of(&value)) {
            (Some(text), _) if text.len() <= 64 => text.to_owned(),
            (_, Some(Number::Int(count @ ..=64))) => " ".repeat(count.max(0) as usize),
            _ => return Err(invalid("the indent of tojson is a text or a number of at most 64")),
        }),
    };
    let separators = options.given(2, "separators");
    let part = |index: usize, otherwise: &str| -> Result<String, Error> {
        let Some(separators) = &separators else { return Ok(otherwise.to_owned()) };
        let text = values::elements(separators).and_then(|parts| parts.get(index)?.as_str());
        let text = text.filter(|text| text.len() <= 64);
        text.map(str::to_owned).ok_or_else(|| invalid("the separators of tojson are two short texts"))
    };
    let style = JsonStyle {
        item_separator: part(0, if indent.is_some() { "," } else { ", " })?,
        key_separator: part(1, ": ")?,
        indent,
        sort_keys: options.flag(3, "sort_keys"),
        ensure_ascii: options.flag(0, "ensure_ascii"),
    };
    let mut text = Text::default();
    push_json(&mut text, &args[0], &style, 0)?;
    Ok(text.into_value())
}

/// The text of a number for `format`; other values as `str` gives them.
pub(super) fn plain_text(value: &Value) -> Result<String, Error> {
    match Number::of(value) {
        Some(Number::Float(float)) => Ok(float_text(float)),
        _ => {
            let mut text = Text::default();
            values::push_str(&mut text, value)?;
            Ok(text.into_string())
        }
    }
}
