//! Filters over lists and maps, metered.

use std::cmp::Ordering;

use minijinja::value::DynObject;
use minijinja::{Error, State, Value};

use super::meter;
use super::ops;
use super::strings;
use super::values::{self, Args, Number, invalid};

pub(super) fn first(args: &[Value]) -> Result<Value, Error> {
    end(&args[0], 0)
}

pub(super) fn last(args: &[Value]) -> Result<Value, Error> {
    end(&args[0], -1)
}

fn end(value: &Value, index: i64) -> Result<Value, Error> {
    if values::elements(value).is_some() || value.as_str().is_some() {
        return ops::item(value, &Value::from(index));
    }
    let items = values::items(value)?;
    Ok(if index == 0 { items.first() } else { items.last() }.cloned().unwrap_or(Value::UNDEFINED))
}

pub(super) fn reverse(args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = args[0].as_str() {
        meter::charge(text.len())?;
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let mut items = values::items(&args[0])?;
    items.reverse();
    values::list(items)
}

/// `dict|items`: pairs; undefined gives none.
pub(super) fn items(args: &[Value]) -> Result<Value, Error> {
    match values::map(&args[0]) {
        Some(object) => pair_list(object),
        None if args[0].is_undefined() => values::list(Vec::new()),
        None => Err(invalid(format!("items needs a map, not a {}", args[0].kind()))),
    }
}

/// Keys and values as a list of tuples.
pub(super) fn pair_list(object: &DynObject) -> Result<Value, Error> {
    values::list_of_tuples(values::pairs(object)?.into_iter().map(|(key, value)| [key, value]).collect())
}

pub(super) fn batch(args: &[Value]) -> Result<Value, Error> {
    let options = Args::new(&args[1..]);
    let size =
        options.int(0, "linecount")?.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
    let size = size.ok_or_else(|| invalid("batch needs a positive size"))?;
    let items = values::items(&args[0])?;
    let mut lines = Vec::new();
    for chunk in items.chunks(size) {
        let mut line = chunk.to_vec();
        if let Some(fill) = options.given(1, "fill_with") {
            meter::charge((size - line.len()).saturating_mul(size_of::<Value>()))?;
            line.resize(size, fill);
        }
        meter::charge_inner(0)?;
        lines.push(line);
    }
    values::list_of_lists(lines)
}

/// `list|slice(n)`: n columns, the first ones longer by one where it does not come out even.
pub(super) fn slice(args: &[Value]) -> Result<Value, Error> {
    let options = Args::new(&args[1..]);
    let columns =
        options.int(0, "slices")?.and_then(|count| usize::try_from(count).ok()).filter(|&count| count > 0);
    let columns = columns.ok_or_else(|| invalid("slice needs a positive number of columns"))?;
    let items = values::items(&args[0])?;
    let (each, longer) = (items.len() / columns, items.len() % columns);
    let mut rest = items.as_slice();
    let mut out = Vec::new();
    for index in 0..columns {
        let (column, after) = rest.split_at(each + usize::from(index < longer));
        rest = after;
        let mut column = column.to_vec();
        if index >= longer && longer > 0 {
            column.extend(options.given(1, "fill_with"));
        }
        meter::charge_inner(0)?;
        out.push(column);
    }
    values::list_of_lists(out)
}

/// Follows a dotted path of names and indices.
fn attribute(value: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return ops::item(value, path) };
    let mut value = value.clone();
    for part in path.split('.') {
        value = match part.parse::<i64>() {
            Ok(index) => ops::item(&value, &Value::from(index))?,
            Err(_) => value.get_attr(part)?,
        };
    }
    Ok(value)
}

/// The values to order by: an attribute, texts without case unless asked.
fn keys(items: &[Value], options: &Args, first: usize) -> Result<Vec<Value>, Error> {
    let path = options.given(first, "attribute");
    let keep_case = options.flag(first.wrapping_sub(1), "case_sensitive");
    let key = |item: &Value| {
        let key = path.as_ref().map_or_else(|| Ok(item.clone()), |path| attribute(item, path))?;
        if keep_case || key.as_str().is_none() { Ok(key) } else { strings::lower(&[key]) }
    };
    meter::charge_list(items.len())?;
    items.iter().map(key).collect()
}

/// Stable order of indices by key. A failing comparison fails the whole.
fn sorted(keys: &[Value]) -> Result<Vec<usize>, Error> {
    let mut failed = None;
    let mut indices: Vec<usize> = (0..keys.len()).collect();
    meter::charge(keys.len() * size_of::<usize>())?;
    indices.sort_by(|&a, &b| {
        if failed.is_some() {
            return Ordering::Equal;
        }
        values::order(&keys[a], &keys[b]).unwrap_or_else(|error| {
            failed = Some(error);
            Ordering::Equal
        })
    });
    failed.map_or(Ok(indices), Err)
}

/// `sort(reverse=False, case_sensitive=False, attribute=None)`.
pub(super) fn sort(args: &[Value]) -> Result<Value, Error> {
    let items = values::items(&args[0])?;
    let options = Args::new(&args[1..]);
    let keys = keys(&items, &options, 2)?;
    let mut order = sorted(&keys)?;
    if options.flag(0, "reverse") {
        // Python keeps the order of equal elements when it reverses.
        let mut kept = Vec::with_capacity(order.len());
        order.reverse();
        let mut rest = order.as_slice();
        while let Some(&first) = rest.first() {
            let mut run = 1;
            while run < rest.len() && values::order(&keys[first], &keys[rest[run]])? == Ordering::Equal {
                run += 1;
            }
            kept.extend(rest[..run].iter().rev());
            rest = &rest[run..];
        }
        order = kept;
    }
    values::list(order.into_iter().map(|index| items[index].clone()).collect())
}

/// `dictsort(case_sensitive=False, by='key', reverse=False)`.
pub(super) fn dictsort(args: &[Value]) -> Result<Value, Error> {
    let object = values::map(&args[0]).ok_or_else(|| invalid("dictsort needs a map"))?;
    let options = Args::new(&args[1..]);
    let by_value = match options.text(1, "by")?.as_deref() {
        None | Some("key") => false,
        Some("value") => true,
        Some(_) => return Err(invalid("dictsort sorts by \"key\" or \"value\"")),
    };
    let pairs = values::pairs(object)?;
    let keys: Vec<Value> =
        pairs.iter().map(|(key, value)| if by_value { value } else { key }.clone()).collect();
    let fold = |key: Value| match options.flag(0, "case_sensitive") || key.as_str().is_none() {
        true => Ok(key),
        false => strings::lower(&[key]),
    };
    let mut order = sorted(&keys.into_iter().map(fold).collect::<Result<Vec<_>, Error>>()?)?;
    if options.flag(2, "reverse") {
        order.reverse();
    }
    values::list_of_tuples(
        order.into_iter().map(|index| [pairs[index].0.clone(), pairs[index].1.clone()]).collect(),
    )
}

/// `unique(case_sensitive=False, attribute=None)`: the first of equal elements.
pub(super) fn unique(args: &[Value]) -> Result<Value, Error> {
    let items = values::items(&args[0])?;
    let keys = keys(&items, &Args::new(&args[1..]), 1)?;
    let mut kept: Vec<usize> = Vec::new();
    for index in 0..items.len() {
        let mut seen = false;
        for &other in &kept {
            seen = seen || values::equal(&keys[index], &keys[other])?;
        }
        if !seen {
            kept.push(index);
        }
    }
    values::list(kept.into_iter().map(|index| items[index].clone()).collect())
}

/// `min` and `max(case_sensitive=False, attribute=None)`; undefined for an empty list.
pub(super) fn extreme(args: &[Value], largest: bool) -> Result<Value, Error> {
    let items = values::items(&args[0])?;
    let keys = keys(&items, &Args::new(&args[1..]), 1)?;
    let mut best = 0;
    for index in 1..items.len() {
        let order = values::order(&keys[index], &keys[best])?;
        if if largest { order.is_gt() } else { order.is_lt() } {
            best = index;
        }
    }
    Ok(items.get(best).cloned().unwrap_or(Value::UNDEFINED))
}

/// `sum(attribute=None, start=0)`.
pub(super) fn sum(args: &[Value]) -> Result<Value, Error> {
    let options = Args::new(&args[1..]);
    let path = options.given(0, "attribute");
    let start = options.find(1, "start").unwrap_or_else(|| Value::from(0));
    let mut total = Number::of(&start).ok_or_else(|| invalid("sum adds numbers only"))?;
    for item in values::items(&args[0])? {
        let item = path.as_ref().map_or(Ok(item.clone()), |path| attribute(&item, path))?;
        let next = Number::of(&item).ok_or_else(|| invalid("sum adds numbers only"))?;
        total = match (total, next) {
            (Number::Int(a), Number::Int(b)) => Number::Int(a.saturating_add(b)),
            (a, b) => Number::Float(a.float() + b.float()),
        };
    }
    Ok(total.into_value())
}

/// `groupby(attribute)`: tuples of a value and the elements that have it, in the order of the values.
pub(super) fn groupby(args: &[Value]) -> Result<Value, Error> {
    let items = values::items(&args[0])?;
    let options = Args::new(&args[1..]);
    let path = options.given(0, "attribute").ok_or_else(|| invalid("groupby needs an attribute"))?;
    let keys = items.iter().map(|item| attribute(item, &path)).collect::<Result<Vec<_>, _>>()?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for index in sorted(&keys)? {
        match groups.last_mut() {
            Some((key, group)) if values::equal(key, &keys[index])? => group.push(items[index].clone()),
            _ => groups.push((keys[index].clone(), vec![items[index].clone()])),
        }
    }
    let inner = |(key, group): (Value, Vec<Value>)| {
        meter::charge_inner(group.len()).map(|()| [key, Value::from(group)])
    };
    values::list_of_tuples(groups.into_iter().map(inner).collect::<Result<_, _>>()?)
}

/// What `map`, `select` and their kin walk over: as in Jinja, whatever is false (`none`, say) holds nothing.
fn sequence(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_true() { values::items(value) } else { Ok(Vec::new()) }
}

/// `map(attribute="name", default=..)` or `map("filter", arguments..)`.
pub(super) fn map(state: &mut State, args: &[Value]) -> Result<Value, Error> {
    let (value, rest) = args.split_first().ok_or_else(|| invalid("map needs a list"))?;
    let options = Args::new(rest);
    let items = sequence(value)?;
    if let Some(path) = options.keyword("attribute") {
        let otherwise = options.keyword("default");
        let pick = |item: &Value| {
            let found = attribute(item, &path)?;
            Ok(if found.is_undefined() { otherwise.clone().unwrap_or(found) } else { found })
        };
        return values::list(items.iter().map(pick).collect::<Result<_, Error>>()?);
    }
    let name = options
        .get(0)
        .and_then(Value::as_str)
        .ok_or_else(|| invalid("map needs an attribute or a filter"))?;
    let mut out = Vec::with_capacity(items.len());
    let mut call = rest.to_vec();
    for item in items {
        call[0] = item;
        meter::charge(64)?;
        out.push(state.apply_filter(name, &call)?);
    }
    values::list(out)
}

/// `select`, `reject`, `selectattr` and `rejectattr`: elements for which a test holds (or not); without a test,
/// those that are true.
pub(super) fn select(
    state: &mut State,
    args: &[Value],
    by_attribute: bool,
    keep: bool,
) -> Result<Value, Error> {
    let (value, mut rest) = args.split_first().ok_or_else(|| invalid("a list is needed"))?;
    let mut path = None;
    if by_attribute {
        let (first, after) = rest.split_first().ok_or_else(|| invalid("an attribute is needed"))?;
        (path, rest) = (Some(first), after);
    }
    let test = rest.first().map(|name| name.as_str().ok_or_else(|| invalid("a test is given by its name")));
    let test = test.transpose()?;
    let mut call = rest.to_vec();
    let mut out = Vec::new();
    for item in sequence(value)? {
        let subject = path.map_or(Ok(item.clone()), |path| attribute(&item, path))?;
        meter::charge(64)?;
        let holds = match test {
            None => subject.is_true(),
            Some(name) => {
                call[0] = subject;
                state.perform_test(name, &call)?
            }
        };
        if holds == keep {
            out.push(item);
        }
    }
    values::list(out)
}
