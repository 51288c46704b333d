//! Splits text into the pieces that are merged separately, in time linear in the text whatever the text is: every
//! rule runs on a finite automaton. The one thing such an engine lacks, the look-ahead `\s+(?!\S)` that nearly all
//! vocabularies share, is computed from the match ([`Tail`]). Knows no names of vocabularies.

use regex::Regex;

use crate::error::{Result, TextError};

/// Rules applied one after the other: each splits every piece that the one before left.
#[derive(Debug)]
pub(crate) struct Splitter {
    steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) enum Step {
    /// Every match is a piece, and so is what lies between two matches.
    Match { expression: Regex, tail: Tail },
    /// Runs of digits are cut into threes from the right.
    Thousands(Thousands),
}

/// How a match of nothing but white space ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Where the expression ends.
    Whole,
    /// As `\s+(?!\S)|\s+`: in front of a word the last one is left to the word. With `lines`, an earlier
    /// alternative takes white space that ends a line, as a whole.
    Spare { lines: bool },
    /// As `\s{512}(?!\S)|\s{256}(?!\S)|...|\s{1,2}(?!\S)|\s`, behind an alternative for line ends.
    Halving,
}

#[derive(Debug)]
pub(crate) struct Thousands {
    pub(crate) run: Regex,
    /// The run is separated from its surroundings too.
    pub(crate) alone: bool,
    /// Runs that a letter or `_` follows stay as they are: `(?=(\d{3})*\b)`.
    pub(crate) closed: bool,
}

impl Step {
    /// Alternatives in order; a `Spare` or `Halving` tail adds the last one, white space.
    pub(crate) fn new(alternatives: &[&str], tail: Tail) -> Result<Step> {
        let mut source = alternatives.join("|");
        if tail != Tail::Whole {
            source.push_str(r"|\s+");
        }
        Ok(Step::Match { expression: compile(&source)?, tail })
    }

    pub(crate) fn thousands(run: &str, alone: bool, closed: bool) -> Result<Step> {
        Ok(Step::Thousands(Thousands { run: compile(run)?, alone, closed }))
    }

    /// An expression of a tokenizer.json, if it is one that can be run here: no look-around but the usual end.
    pub(crate) fn from_source(source: &str) -> Option<Step> {
        if source == r"\d{1,3}(?=(?:\d{3})*\b)" {
            return Step::thousands(r"\d+", true, true).ok();
        }
        let (head, spare) = match source.strip_suffix(r"|\s+(?!\S)|\s+") {
            Some(head) => (head, true),
            None => (source, false),
        };
        // What the two engines spell or mean differently stays with the other one.
        let foreign =
            ["(?=", "(?!", "(?<", "(?>", "++", "*+", "?+", "}+", r"\b", r"\B", r"\G", r"\h", "&&", "$", "^("];
        if foreign.iter().any(|mark| head.contains(mark)) || head.starts_with('^') {
            return None;
        }
        let tail = match spare {
            true => Tail::Spare { lines: head.contains(r"|\s*[\r\n]") },
            false => Tail::Whole,
        };
        Step::new(&[head], tail).ok()
    }
}

fn compile(source: &str) -> Result<Regex> {
    Regex::new(source)
        .map_err(|error| TextError::Encode(format!("a splitting rule does not compile: {error}")))
}

impl Splitter {
    pub(crate) fn new(steps: Vec<Step>) -> Splitter {
        Splitter { steps }
    }

    /// Hands out the pieces of `text` in order; together they are `text`, none is empty.
    pub(crate) fn split<'t, E>(
        &self,
        text: &'t str,
        out: &mut dyn FnMut(&'t str) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        run(&self.steps, text, out)
    }
}

fn run<'t, E>(
    steps: &[Step],
    text: &'t str,
    out: &mut dyn FnMut(&'t str) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let Some((step, rest)) = steps.split_first() else {
        return if text.is_empty() { Ok(()) } else { out(text) };
    };
    let mut next = |piece: &'t str| if piece.is_empty() { Ok(()) } else { run(rest, piece, out) };
    match step {
        Step::Match { expression, tail } => matches(expression, *tail, text, &mut next),
        Step::Thousands(thousands) => thousands.split(text, &mut next),
    }
}

fn matches<'t, E>(
    expression: &Regex,
    tail: Tail,
    text: &'t str,
    out: &mut dyn FnMut(&'t str) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let (mut at, mut gap) = (0, 0);
    while at < text.len() {
        let Some(found) = expression.find_at(text, at) else { break };
        if found.is_empty() {
            at = found.end() + text[found.end()..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        out(&text[gap..found.start()])?;
        let end = match tail {
            Tail::Whole => found.end(),
            Tail::Spare { lines } => found.end() - spare(text, found.as_str(), found.end(), lines),
            Tail::Halving => found.end() - spare(text, found.as_str(), found.end(), true),
        };
        let piece = &text[found.start()..end];
        match tail == Tail::Halving
            && !piece.ends_with(['\r', '\n'])
            && piece.chars().all(char::is_whitespace)
        {
            true => halve(piece, out)?,
            false => out(piece)?,
        }
        (at, gap) = (end, end);
    }
    out(&text[gap..])
}

/// Bytes at the end of a match that are left to the word behind it: the last character of two or more of white
/// space.
fn spare(text: &str, found: &str, end: usize, lines: bool) -> usize {
    let mut backwards = found.chars().rev();
    let (Some(last), Some(_)) = (backwards.next(), backwards.next()) else { return 0 };
    let ends_line = lines && matches!(last, '\r' | '\n');
    let before_word = text[end..].chars().next().is_some_and(|c| !c.is_whitespace());
    match before_word && !ends_line && found.chars().all(char::is_whitespace) {
        true => last.len_utf8(),
        false => 0,
    }
}

/// Hands out white space in ever smaller powers of two.
fn halve<'t, E>(
    mut spaces: &'t str,
    out: &mut dyn FnMut(&'t str) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut left = spaces.chars().count();
    for power in [512, 256, 128, 64, 32, 16, 8, 4, 2, 1] {
        while left >= power {
            let bytes = spaces.chars().take(power).map(char::len_utf8).sum::<usize>();
            let (piece, rest) = spaces.split_at(bytes);
            out(piece)?;
            (spaces, left) = (rest, left - power);
        }
    }
    Ok(())
}

impl Thousands {
    fn split<'t, E>(
        &self,
        text: &'t str,
        out: &mut dyn FnMut(&'t str) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut from = 0;
        for found in self.run.find_iter(text) {
            let follows = text[found.end()..].chars().next();
            // `\b` behind a digit: what follows is no part of a word.
            if self.closed && follows.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let digits = found.as_str().chars().count();
            for (index, (at, _)) in found.as_str().char_indices().enumerate() {
                let cut = found.start() + at;
                let here = (digits - index).is_multiple_of(3) || (index == 0 && self.alone);
                if here && cut > from {
                    out(&text[from..cut])?;
                    from = cut;
                }
            }
            if self.alone {
                out(&text[from..found.end()])?;
                from = found.end();
            }
        }
        out(&text[from..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(steps: Vec<Step>, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let splitter = Splitter::new(steps);
        let done: std::result::Result<(), ()> = splitter.split(text, &mut |piece| {
            found.push(piece.to_owned());
            Ok(())
        });
        assert!(done.is_ok());
        assert_eq!(found.concat(), text, "nothing is lost");
        found
    }

    fn words(tail: Tail) -> Vec<Step> {
        vec![
            Step::new(
                &[r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+"],
                tail,
            )
            .unwrap(),
        ]
    }

    #[test]
    fn white_space_leaves_its_last_to_the_word_behind_it() {
        let tail = Tail::Spare { lines: true };
        assert_eq!(pieces(words(tail), "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces(words(tail), "a  1"), ["a", " ", " ", "1"]);
        assert_eq!(pieces(words(tail), "a \n  b  "), ["a", " \n", " ", " b", "  "]);
        assert_eq!(pieces(words(tail), "\n\nx"), ["\n\n", "x"]);
        let plain =
            || vec![Step::new(&[r" ?\p{L}+", r" ?[^\s\p{L}]+"], Tail::Spare { lines: false }).unwrap()];
        assert_eq!(pieces(plain(), "\n\nx"), ["\n", "\n", "x"]);
        assert_eq!(pieces(plain(), "x \u{3000} y"), ["x", " \u{3000}", " y"]);
    }

    #[test]
    fn white_space_in_powers_of_two() {
        let lengths =
            |text: &str| pieces(words(Tail::Halving), text).iter().map(String::len).collect::<Vec<_>>();
        assert_eq!(lengths(&format!("{}x", " ".repeat(8))), [4, 2, 1, 2]);
        assert_eq!(lengths(&" ".repeat(1027)), [512, 512, 2, 1]);
        assert_eq!(lengths("  \n 1"), [3, 1, 1]);
    }

    #[test]
    fn digits_in_threes_from_the_right() {
        let split =
            |alone, closed, text: &str| pieces(vec![Step::thousands(r"\d+", alone, closed).unwrap()], text);
        assert_eq!(split(true, false, "a1234567b"), ["a", "1", "234", "567", "b"]);
        assert_eq!(split(true, true, "a1234567b 12345"), ["a1234567b ", "12", "345"]);
        assert_eq!(split(false, false, "½123456 1234"), ["½", "123", "456 1", "234"]);
        assert_eq!(split(true, false, "123"), ["123"]);
    }

    #[test]
    fn sources_that_are_run_here_and_those_that_are_not() {
        for good in [r"\p{N}{1,3}", r"[^\s]+|\s+(?!\S)|\s+", r"\d{1,3}(?=(?:\d{3})*\b)", "[a&]+"] {
            assert!(Step::from_source(good).is_some(), "{good}");
        }
        for other in [r"(?=(\d{3})+(?!\d))", r"\p{L}++", r"\s+$", r"(?<=a)b", "("] {
            assert!(Step::from_source(other).is_none(), "{other}");
        }
    }
}
