//! Operators as functions: what `rewrite.rs` puts in their place. Each charges the meter before it makes or
//! looks at anything, and follows Python (and Jinja's undefined) where the engine's own operators differ.

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::meter;
use super::namespace;
use super::strings;
use super::values::{self, Number, Text, invalid};

// Names contain a colon, so that no source can say or shadow them.
pub(super) const ADD: &str = "op:+";
pub(super) const SUB: &str = "op:-";
pub(super) const MUL: &str = "op:*";
pub(super) const DIV: &str = "op:/";
pub(super) const FLOOR_DIV: &str = "op://";
pub(super) const REM: &str = "op:%";
pub(super) const POW: &str = "op:**";
pub(super) const CONCAT: &str = "op:~";
pub(super) const EQ: &str = "op:==";
pub(super) const NE: &str = "op:!=";
pub(super) const LT: &str = "op:<";
pub(super) const LE: &str = "op:<=";
pub(super) const GT: &str = "op:>";
pub(super) const GE: &str = "op:>=";
pub(super) const IN: &str = "op:in";
pub(super) const NOT_IN: &str = "op:not in";
pub(super) const CHAIN: &str = "op:chain";
pub(super) const LIST: &str = "op:list";
pub(super) const TUPLE: &str = "op:tuple";
pub(super) const MAP: &str = "op:map";
pub(super) const ITEM: &str = "op:item";
pub(super) const SLICE: &str = "op:slice";
pub(super) const ITER: &str = "op:iter";
pub(super) const SET_ATTRIBUTE: &str = "op:set";
pub(super) const CHARGE: &str = "op:charge";
/// A variable (not a function) that receives a captured block before it is stored in a namespace.
pub(super) const CAPTURE: &str = "op:capture";

/// Registers every operator.
pub(super) fn register(env: &mut Environment) {
    env.add_function(ADD, add);
    env.add_function(SUB, |a: &Value, b: &Value| arithmetic("-", a, b, i128::checked_sub, |a, b| a - b));
    env.add_function(MUL, multiply);
    env.add_function(DIV, divide);
    env.add_function(FLOOR_DIV, |a: &Value, b: &Value| floor_divide(a, b).map(|(quotient, _)| quotient));
    env.add_function(REM, remainder);
    env.add_function(POW, power);
    env.add_function(CONCAT, concat);
    for name in [EQ, NE, LT, LE, GT, GE, IN, NOT_IN] {
        env.add_function(name, move |a: &Value, b: &Value| compare(name, a, b).map(Value::from));
    }
    env.add_function(CHAIN, |args: Rest<Value>| chain(&args));
    env.add_function(LIST, |args: Rest<Value>| values::list(args.0));
    env.add_function(TUPLE, |args: Rest<Value>| values::tuple(args.0));
    env.add_function(MAP, |args: Rest<Value>| {
        values::dict(args.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    });
    env.add_function(ITEM, item);
    env.add_function(SLICE, slice);
    env.add_function(ITER, iterate);
    env.add_function(SET_ATTRIBUTE, namespace::set_attribute);
    env.add_function(CHARGE, || meter::charge_map(4).map(|()| Value::UNDEFINED));
}

fn unsupported(operator: &str, a: &Value, b: &Value) -> Error {
    if let Some(error) = undefined(a).or_else(|| undefined(b)) {
        return error;
    }
    invalid(format!("{} {operator} {}: no such operation on these types", a.kind(), b.kind()))
}

fn undefined(value: &Value) -> Option<Error> {
    value
        .is_undefined()
        .then(|| Error::new(ErrorKind::UndefinedError, "an undefined value is used in an operation"))
}

fn overflow(operator: &str) -> Error {
    invalid(format!("the result of {operator} is too large"))
}

fn arithmetic(
    operator: &str,
    a: &Value,
    b: &Value,
    int: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            int(a, b).map(|result| Number::Int(result).into_value()).ok_or_else(|| overflow(operator))
        }
        (Some(a), Some(b)) => Ok(Value::from(float(a.float(), b.float()))),
        _ => Err(unsupported(operator, a, b)),
    }
}

fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        meter::charge(a.len() + b.len())?;
        return Ok(Value::from([a, b].concat()));
    }
    if let (Some(left), Some(right)) = (values::elements(a), values::elements(b))
        && a.is_tuple() == b.is_tuple()
    {
        meter::charge((left.len() + right.len()) * size_of::<Value>())?;
        let joined = [left, right].concat();
        return if a.is_tuple() { values::tuple(joined) } else { values::list(joined) };
    }
    arithmetic("+", a, b, i128::checked_add, |a, b| a + b)
}

fn multiply(a: &Value, b: &Value) -> Result<Value, Error> {
    let (sequence, count) = if Number::of(a).is_some() { (b, a) } else { (a, b) };
    if let Some(Number::Int(count)) = Number::of(count) {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        if let Some(text) = sequence.as_str() {
            meter::charge(text.len().saturating_mul(count))?;
            return Ok(Value::from(text.repeat(count)));
        }
        if let Some(elements) = values::elements(sequence) {
            meter::charge(elements.len().saturating_mul(count).saturating_mul(size_of::<Value>()))?;
            // An empty list costs nothing however often it is repeated.
            let times = if elements.is_empty() { 0 } else { count };
            let repeated = std::iter::repeat_n(elements, times).flatten().cloned().collect();
            return if sequence.is_tuple() { values::tuple(repeated) } else { values::list(repeated) };
        }
    }
    arithmetic("*", a, b, i128::checked_mul, |a, b| a * b)
}

fn divide(a: &Value, b: &Value) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(_), Some(b)) if b.float() == 0.0 => Err(invalid("division by zero")),
        (Some(a), Some(b)) => Ok(Value::from(a.float() / b.float())),
        _ => Err(unsupported("/", a, b)),
    }
}

/// Quotient rounded down, and the remainder with the divisor's sign.
fn floor_divide(a: &Value, b: &Value) -> Result<(Value, Value), Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) if b != 0 => {
            let (quotient, remainder) =
                a.checked_div(b).zip(a.checked_rem(b)).ok_or_else(|| overflow("//"))?;
            let down = remainder != 0 && (remainder < 0) != (b < 0);
            let (quotient, remainder) =
                if down { (quotient - 1, remainder + b) } else { (quotient, remainder) };
            Ok((Number::Int(quotient).into_value(), Number::Int(remainder).into_value()))
        }
        (Some(_), Some(b)) if b.float() == 0.0 => Err(invalid("division by zero")),
        (Some(a), Some(b)) => {
            let (a, b) = (a.float(), b.float());
            let quotient = (a / b).floor();
            Ok((Value::from(quotient), Value::from(a - quotient * b)))
        }
        _ => Err(unsupported("//", a, b)),
    }
}

/// `a % b`, which on a text formats.
fn remainder(a: &Value, b: &Value) -> Result<Value, Error> {
    match a.as_str() {
        Some(format) if b.is_tuple() => strings::printf(format, values::elements(b).unwrap_or_default()),
        Some(format) => strings::printf(format, std::slice::from_ref(b)),
        None => floor_divide(a, b).map(|(_, remainder)| remainder),
    }
}

fn power(a: &Value, b: &Value) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(base)), Some(Number::Int(exponent))) if exponent >= 0 => {
            let result = u32::try_from(exponent).ok().and_then(|exponent| base.checked_pow(exponent));
            result.map(|result| Number::Int(result).into_value()).ok_or_else(|| overflow("**"))
        }
        (Some(a), Some(b)) => Ok(Value::from(a.float().powf(b.float()))),
        _ => Err(unsupported("**", a, b)),
    }
}

fn concat(a: &Value, b: &Value) -> Result<Value, Error> {
    let mut text = Text::default();
    values::push_str(&mut text, a)?;
    values::push_str(&mut text, b)?;
    Ok(text.into_value())
}

fn compare(operator: &str, a: &Value, b: &Value) -> Result<bool, Error> {
    let ordered = |accept: fn(Ordering) -> bool| {
        undefined(a).or_else(|| undefined(b)).map_or_else(|| values::order(a, b).map(accept), Err)
    };
    match operator {
        EQ => values::equal(a, b),
        NE => values::equal(a, b).map(|equal| !equal),
        LT => ordered(Ordering::is_lt),
        LE => ordered(Ordering::is_le),
        GT => ordered(Ordering::is_gt),
        GE => ordered(Ordering::is_ge),
        IN => contains(b, a),
        _ => contains(b, a).map(|found| !found),
    }
}

/// A test of the template (`x is eq(y)`): the operator's name is one of the constants above.
pub(super) fn test(operator: &'static str, a: &Value, b: &Value) -> Result<bool, Error> {
    compare(operator, a, b)
}

/// `a < b <= c`: operands and the names of operators alternate.
fn chain(args: &[Value]) -> Result<Value, Error> {
    for window in args.windows(3).step_by(2) {
        if !compare(window[1].as_str().unwrap_or_default(), &window[0], &window[2])? {
            return Ok(Value::from(false));
        }
    }
    Ok(Value::from(true))
}

/// `value in container`.
pub(super) fn contains(container: &Value, value: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        let part = value.as_str().ok_or_else(|| unsupported("in", value, container))?;
        meter::charge(text.len())?;
        return Ok(text.contains(part));
    }
    if let Some(elements) = values::elements(container) {
        for element in elements {
            if values::equal(element, value)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if let Some(object) = values::map(container) {
        values::check_key(value)?;
        return Ok(object.get_value(value).is_some());
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        _ => Err(unsupported("in", value, container)),
    }
}

/// `value[key]`; what is not there is undefined.
pub(super) fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    let index = |len: usize| {
        let Some(Number::Int(index)) = Number::of(key) else { return None };
        let index = if index < 0 { index.checked_add(len as i128)? } else { index };
        usize::try_from(index).ok().filter(|&index| index < len)
    };
    if let Some(elements) = values::elements(value) {
        return Ok(index(elements.len()).map_or(Value::UNDEFINED, |index| elements[index].clone()));
    }
    if let Some(text) = value.as_str() {
        meter::charge(text.len())?;
        let char = index(text.chars().count()).and_then(|index| text.chars().nth(index));
        return Ok(char.map_or(Value::UNDEFINED, Value::from));
    }
    if let Some(object) = values::map(value) {
        values::check_key(key)?;
        return Ok(object.get_value(key).unwrap_or(Value::UNDEFINED));
    }
    match undefined(value) {
        Some(error) => Err(error),
        None => Ok(Value::UNDEFINED),
    }
}

/// `value[start:stop:step]` with Python's rules; absent parts are none.
fn slice(value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let bound = |value: &Value, name| -> Result<Option<i128>, Error> {
        match Number::of(value) {
            Some(Number::Int(int)) => Ok(Some(int)),
            None if value.is_none() || value.is_undefined() => Ok(None),
            _ => Err(invalid(format!("the {name} of a slice must be an integer"))),
        }
    };
    let (start, stop) = (bound(start, "start")?, bound(stop, "stop")?);
    let step = bound(step, "step")?.unwrap_or(1);
    if step == 0 {
        return Err(invalid("the step of a slice must not be 0"));
    }
    if let Some(elements) = values::elements(value) {
        meter::charge(elements.len() * size_of::<usize>())?;
        let indices = slice_indices(elements.len(), start, stop, step);
        meter::charge(indices.len() * size_of::<Value>())?;
        let picked = indices.into_iter().map(|index| elements[index].clone()).collect();
        return if value.is_tuple() { values::tuple(picked) } else { values::list(picked) };
    }
    if let Some(text) = value.as_str() {
        meter::charge(text.len().saturating_mul(8))?;
        let chars: Vec<char> = text.chars().collect();
        let picked = slice_indices(chars.len(), start, stop, step).into_iter().map(|index| chars[index]);
        return Ok(Value::from(picked.collect::<String>()));
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::new(ErrorKind::UndefinedError, "an undefined value is sliced")),
        kind => Err(invalid(format!("a value of type {kind} cannot be sliced"))),
    }
}

fn slice_indices(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> Vec<usize> {
    let len = len as i128;
    let forward = step > 0;
    let (low, high) = if forward { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(bound) if bound < 0 => bound.saturating_add(len).clamp(low, high),
        Some(bound) => bound.clamp(low, high),
    };
    let (mut at, end) =
        if forward { (clamp(start, low), clamp(stop, high)) } else { (clamp(start, high), clamp(stop, low)) };
    let mut indices = Vec::new();
    while if forward { at < end } else { at > end } {
        indices.push(at as usize);
        at = at.saturating_add(step);
    }
    indices
}

/// What a `for` runs over. Lists stay as they are; texts and maps are charged for the walk.
fn iterate(value: &Value) -> Result<Value, Error> {
    match values::elements(value) {
        Some(elements) => meter::charge(elements.len()).map(|()| value.clone()),
        None => values::items(value).map(Value::from),
    }
}
