//! Text: filters and Python's string methods, metered. Methods that cannot make more than they are given come
//! from `minijinja-contrib`'s Python compatibility; those that can (replace, join, split, format, padding) are
//! written here, because the size of the result must be charged before it is made.

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::filters::plain_text;
use super::lists;
use super::meter;
use super::ops;
use super::values::{self, Args, Text, invalid};

/// Longest run of digits in a format string: widths and precisions stay below 10,000.
const FORMAT_DIGITS: usize = 4;

/// Methods of `minijinja-contrib` whose result is no larger than the text itself (case changes: three times).
const HARMLESS: &[&str] = &[
    "capitalize",
    "endswith",
    "find",
    "isalnum",
    "isalpha",
    "isascii",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "lower",
    "lstrip",
    "rfind",
    "rstrip",
    "startswith",
    "strip",
    "title",
    "upper",
];

/// The engine's callback for methods it does not know.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    if let Some(text) = value.as_str() {
        return text_method(state, value, text, name, args).unwrap_or_else(|| Err(unknown()));
    }
    let options = Args::new(args);
    if let Some(elements) = values::elements(value) {
        let wanted = options.get(0).ok_or_else(unknown)?;
        let (mut count, mut first) = (0, None);
        for (index, element) in elements.iter().enumerate() {
            if values::equal(element, wanted)? {
                count += 1;
                first = first.or(Some(index));
            }
        }
        return match (name, first) {
            ("count", _) => Ok(Value::from(count)),
            ("index", Some(index)) => Ok(Value::from(index)),
            ("index", None) => Err(invalid("the value is not in the list")),
            _ => Err(unknown()),
        };
    }
    let Some(object) = values::map(value) else { return Err(unknown()) };
    match name {
        "items" => lists::pair_list(object),
        "keys" => values::list(values::items(value)?),
        "values" => values::list(values::pairs(object)?.into_iter().map(|(_, value)| value).collect()),
        "copy" => values::dict(values::pairs(object)?),
        "get" => {
            let key = options.get(0).ok_or_else(|| invalid("get needs a key"))?;
            values::check_key(key)?;
            Ok(object
                .get_value(key)
                .or_else(|| options.find(1, "default"))
                .unwrap_or_else(|| Value::from(())))
        }
        _ => Err(unknown()),
    }
}

fn text_method(
    state: &mut State,
    value: &Value,
    text: &str,
    name: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    if HARMLESS.contains(&name) {
        let mut cost = text.len().saturating_mul(3);
        for arg in args {
            for part in values::elements(arg).unwrap_or(std::slice::from_ref(arg)) {
                cost = cost.saturating_add(part.as_str().map_or(8, str::len));
            }
        }
        // Trimming looks for every character of the text among those to strip.
        if name.ends_with("strip") {
            let chars = args.first().and_then(Value::as_str).map_or(0, str::len);
            cost = cost.saturating_add(chars.saturating_mul(4));
        }
        return Some(meter::charge(cost).and_then(|()| unknown_method_callback(state, value, name, args)));
    }
    let with_self = || [std::slice::from_ref(value), args].concat();
    Some(match name {
        "replace" => replace(&with_self()),
        "join" => {
            args.first().map_or_else(|| Err(invalid("join needs a list")), |list| join_with(text, list, None))
        }
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => splitlines(text, args),
        "partition" => partition(text, args, |text, part| text.find(part), [text, "", ""]),
        "rpartition" => partition(text, args, |text, part| text.rfind(part), ["", "", text]),
        "removeprefix" => affix(text, args, |text, part| text.strip_prefix(part)),
        "removesuffix" => affix(text, args, |text, part| text.strip_suffix(part)),
        "count" => part(args).and_then(|part| {
            meter::charge(text.len())?;
            let count = if part.is_empty() { text.chars().count() + 1 } else { text.matches(part).count() };
            Ok(Value::from(count))
        }),
        "index" => part(args).and_then(|part| {
            meter::charge(text.len())?;
            let at = text.find(part).ok_or_else(|| invalid("the text does not contain that part"))?;
            Ok(Value::from(text[..at].chars().count()))
        }),
        "casefold" => lower(std::slice::from_ref(value)),
        "center" => center(&with_self()),
        "ljust" => pad(text, args, |space, _| (0, space)),
        "rjust" => pad(text, args, |space, _| (space, 0)),
        "zfill" => zfill(text, args),
        "format" => formatted(FormatStyle::StrFormat, text, args),
        _ => return None,
    })
}

fn part(args: &[Value]) -> Result<&str, Error> {
    args.first().and_then(Value::as_str).ok_or_else(|| invalid("a text is needed as argument"))
}

/// The text of a filter's subject: other values as `str` gives them.
fn subject(value: &Value) -> Result<String, Error> {
    let mut text = Text::default();
    values::push_str(&mut text, value)?;
    Ok(text.into_string())
}

pub(super) fn lower(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    meter::charge(text.len().saturating_mul(3))?;
    Ok(Value::from(text.to_lowercase()))
}

pub(super) fn upper(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    meter::charge(text.len().saturating_mul(3))?;
    Ok(Value::from(text.to_uppercase()))
}

pub(super) fn capitalize(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    meter::charge(text.len().saturating_mul(3))?;
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    Ok(Value::from(first + &chars.as_str().to_lowercase()))
}

/// Jinja's `title`: a capital after every space, hyphen or opening bracket.
pub(super) fn title(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    meter::charge(text.len().saturating_mul(3))?;
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        match start {
            true => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        start = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    Ok(Value::from(out))
}

pub(super) fn trim(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    let Some(chars) = Args::new(&args[1..]).text(0, "chars")? else { return Ok(Value::from(text.trim())) };
    meter::charge(text.len())?;
    Ok(Value::from(text.trim_matches(|c| chars.contains(c))))
}

pub(super) fn wordcount(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    Ok(Value::from(words.count()))
}

/// `replace(old, new, count=None)`.
pub(super) fn replace(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    let options = Args::new(&args[1..]);
    let missing = || invalid("replace needs the old and the new text");
    let old = options.text(0, "old")?.ok_or_else(missing)?;
    let new = options.text(1, "new")?.ok_or_else(missing)?;
    let count = options.int(2, "count")?.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(&old).count() };
    let inserted = found.min(count).saturating_mul(new.len());
    meter::charge(text.len().saturating_add(inserted))?;
    Ok(Value::from(text.replacen(&old, &new, count)))
}

/// `join(d="", attribute=None)`.
pub(super) fn join(args: &[Value]) -> Result<Value, Error> {
    let options = Args::new(&args[1..]);
    let separator = options.text(0, "d")?.unwrap_or_default();
    join_with(&separator, &args[0], options.given(1, "attribute"))
}

fn join_with(separator: &str, list: &Value, attribute: Option<Value>) -> Result<Value, Error> {
    let mut text = Text::default();
    for (index, item) in values::items(list)?.into_iter().enumerate() {
        if index > 0 {
            text.push(separator)?;
        }
        let item = attribute.as_ref().map_or(Ok(item.clone()), |name| ops::item(&item, name))?;
        values::push_str(&mut text, &item)?;
    }
    Ok(text.into_value())
}

fn text_list<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Value, Error> {
    let mut list = Vec::new();
    for part in parts {
        meter::charge(part.len() + 2 * size_of::<Value>())?;
        list.push(Value::from(part));
    }
    values::list(list)
}

/// `split(sep=None, maxsplit=-1)`, from either end.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let options = Args::new(args);
    let separator = options.text(0, "sep")?;
    let limit = options.int(1, "maxsplit")?.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    meter::charge(text.len())?;
    match separator.as_deref() {
        Some("") => Err(invalid("split needs a separator that is not empty")),
        Some(separator) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(limit, separator).collect();
            parts.reverse();
            text_list(parts.into_iter())
        }
        Some(separator) => text_list(text.splitn(limit, separator)),
        None if limit == usize::MAX => text_list(text.split_whitespace()),
        None => text_list(split_spaces(text, limit, from_right).into_iter()),
    }
}

/// Splits at runs of white space into at most `limit` parts; the unsplit rest keeps its inner space.
fn split_spaces(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    // Only the end that is split at loses its space.
    let mut rest = if from_right { text.trim_end() } else { text.trim_start() };
    while !rest.is_empty() {
        let cut = match from_right {
            _ if parts.len() + 1 == limit => None,
            true => rest.rfind(char::is_whitespace).map(|at| {
                let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                (rest[..at].trim_end(), &rest[at + width..])
            }),
            false => rest.find(char::is_whitespace).map(|at| (rest[at..].trim_start(), &rest[..at])),
        };
        let Some((after, part)) = cut else { break };
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let keep = Args::new(args).flag(0, "keepends");
    meter::charge(text.len())?;
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        let width = if rest[end..].starts_with("\r\n") { 2 } else { usize::from(end < rest.len()) };
        parts.push(&rest[..if keep { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    text_list(parts.into_iter())
}

fn partition<'a>(
    text: &'a str,
    args: &'a [Value],
    find: fn(&str, &str) -> Option<usize>,
    otherwise: [&'a str; 3],
) -> Result<Value, Error> {
    let separator = part(args)?;
    if separator.is_empty() {
        return Err(invalid("partition needs a separator that is not empty"));
    }
    meter::charge(text.len().saturating_mul(2))?;
    let parts = match find(text, separator) {
        Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
        None => otherwise,
    };
    values::tuple(parts.into_iter().map(Value::from).collect())
}

fn affix(
    text: &str,
    args: &[Value],
    strip: for<'a> fn(&'a str, &str) -> Option<&'a str>,
) -> Result<Value, Error> {
    meter::charge(text.len())?;
    Ok(Value::from(strip(text, part(args)?).unwrap_or(text)))
}

pub(super) fn center(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    let rest = &args[1..];
    // The filter's width may be left out.
    let default = [Value::from(80)];
    pad(&text, if rest.is_empty() { &default } else { rest }, |space, width| {
        // Python puts the odd space to the left only if the width is odd too.
        let left = space / 2 + (space & width & 1);
        (left, space - left)
    })
}

fn pad(text: &str, args: &[Value], sides: fn(usize, usize) -> (usize, usize)) -> Result<Value, Error> {
    let options = Args::new(args);
    let width = options.int(0, "width")?.ok_or_else(|| invalid("a width is needed"))?;
    let fill = options.text(1, "fillchar")?.unwrap_or_else(|| " ".into());
    if fill.chars().count() != 1 {
        return Err(invalid("the fill must be one character"));
    }
    let width = usize::try_from(width).unwrap_or(0);
    let space = width.saturating_sub(text.chars().count());
    meter::charge(space.saturating_mul(fill.len()).saturating_add(text.len()))?;
    let (left, right) = sides(space, width);
    Ok(Value::from([&fill.repeat(left), text, &fill.repeat(right)].concat()))
}

fn zfill(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    let width = Args::new(args).int(0, "width")?.ok_or_else(|| invalid("a width is needed"))?;
    let space = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    meter::charge(space.saturating_add(text.len()))?;
    Ok(Value::from([sign, &"0".repeat(space), digits].concat()))
}

/// `indent(width=4, first=False, blank=False)`.
pub(super) fn indent(args: &[Value]) -> Result<Value, Error> {
    let text = subject(&args[0])?;
    let options = Args::new(&args[1..]);
    let prefix = match options.given(0, "width") {
        None => "    ".to_owned(),
        Some(value) => match value.as_str() {
            Some(prefix) => prefix.to_owned(),
            None => {
                let width =
                    options.int(0, "width")?.and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
                meter::charge(width)?;
                " ".repeat(width)
            }
        },
    };
    let (first, blank) = (options.flag(1, "first"), options.flag(2, "blank"));
    let mut out = Text::default();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push("\n")?;
        }
        if (index > 0 || first) && (blank || !line.is_empty()) {
            out.push(&prefix)?;
        }
        out.push(line)?;
    }
    Ok(out.into_value())
}

/// The filter `"..."|format(..)`, printf style.
pub(super) fn format(args: &[Value]) -> Result<Value, Error> {
    printf(&subject(&args[0])?, &args[1..])
}

/// `text % arguments`.
pub(super) fn printf(text: &str, args: &[Value]) -> Result<Value, Error> {
    formatted(FormatStyle::Printf, text, args)
}

/// Formats plain values only, after charging more than the result can have.
fn formatted(style: FormatStyle, text: &str, args: &[Value]) -> Result<Value, Error> {
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if digits > FORMAT_DIGITS || text.contains('*') {
        return Err(invalid(format!(
            "a format may have widths of at most {FORMAT_DIGITS} digits, stated in the text"
        )));
    }
    let wide = text.bytes().any(|byte| byte.is_ascii_digit());
    let fields = text.bytes().filter(|byte| matches!(byte, b'%' | b'{')).count();
    let mut longest = 0;
    let mut plain = Vec::with_capacity(args.len());
    for arg in args {
        let arg = match arg.kind() {
            ValueKind::Number | ValueKind::String => arg.clone(),
            _ if arg.is_kwargs() => return Err(invalid("named arguments are not supported in format")),
            _ => Value::from(plain_text(arg)?),
        };
        longest = longest.max(arg.as_str().map_or(400, str::len));
        plain.push(arg);
    }
    let field = longest.saturating_add(if wide { 10_000 } else { 0 });
    meter::charge(text.len().saturating_add(fields.saturating_mul(field)))?;
    formatting::format(style, text, &plain).map(Value::from)
}
