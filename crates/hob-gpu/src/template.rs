//! Kernel text from templates: conditions, values and shared pieces, resolved when a kernel is made. It must not know
//! what kernels compute.
//!
//! A template is WGSL with four additions: a line `//#include NAME` becomes the shared piece of that name, lines
//! between `//#if NAME` (or `//#if !NAME`), `//#else` and `//#endif` stay when the flag is set (or not), lines between
//! `//#for i COUNT` and `//#endfor` come COUNT times (a number or the name of a value) with `$i$` from 0 on, and `$NAME$`
//! is replaced by a value.

use std::collections::BTreeMap;

/// Flags, values and pieces of one kernel.
#[derive(Clone, Debug, Default)]
pub struct Template {
    flags: BTreeMap<&'static str, bool>,
    values: BTreeMap<String, String>,
    pieces: BTreeMap<String, String>,
}

impl Template {
    pub fn new() -> Template {
        Template::default()
    }

    pub fn flag(mut self, name: &'static str, on: bool) -> Self {
        self.flags.insert(name, on);
        self
    }

    pub fn value(mut self, name: &'static str, value: impl ToString) -> Self {
        self.values.insert(name.into(), value.to_string());
        self
    }

    /// A piece for `//#include`; it is a template too.
    pub fn piece(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.pieces.insert(name.into(), text.into());
        self
    }

    /// The kernel's text.
    ///
    /// # Panics
    /// On a template with an unknown name or an open condition: templates are part of the program, and a test renders
    /// all of them.
    pub fn render(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        self.lines(text, &mut out);
        out
    }

    fn lines(&self, text: &str, out: &mut String) {
        // Whether each open condition holds.
        let mut open: Vec<bool> = Vec::new();
        let mut rest = text.lines();
        while let Some(line) = rest.next() {
            let word = line.trim_start();
            if let Some(name) = word.strip_prefix("//#if ") {
                let (name, wanted) = match name.trim().strip_prefix('!') {
                    Some(name) => (name, false),
                    None => (name.trim(), true),
                };
                // What is left out may name what does not exist.
                let holds = !open.iter().all(|on| *on) || self.holds(name) == wanted;
                open.push(holds);
            } else if word.starts_with("//#else") {
                let last = open.last_mut().expect("//#else belongs to an //#if");
                *last = !*last;
            } else if word.starts_with("//#endif") {
                open.pop().expect("//#endif belongs to an //#if");
            } else if let (Some(head), true) = (word.strip_prefix("//#for "), open.iter().all(|on| *on)) {
                self.repeat(head, &body(&mut rest), out);
            } else if open.iter().all(|on| *on) {
                match word.strip_prefix("//#include ") {
                    Some(name) => {
                        let piece = self.pieces.get(name.trim());
                        self.lines(piece.unwrap_or_else(|| panic!("no piece '{name}'")), out);
                    }
                    None => self.line(line, out),
                }
            }
        }
        assert!(open.is_empty(), "an //#if is still open");
    }

    fn holds(&self, name: &str) -> bool {
        let name = self.filled(name);
        *self.flags.get(name.as_str()).unwrap_or_else(|| panic!("no flag '{name}'"))
    }

    fn repeat(&self, head: &str, body: &str, out: &mut String) {
        let (name, count) = head.trim().split_once(' ').expect("//#for has a name and a count");
        let count = self.values.get(count).map_or(count, String::as_str);
        let count: usize = count.parse().unwrap_or_else(|_| panic!("no count '{count}'"));
        let mut inner = self.clone();
        for i in 0..count {
            inner.values.insert(name.into(), i.to_string());
            inner.lines(body, out);
        }
    }

    fn line(&self, line: &str, out: &mut String) {
        out.push_str(&self.filled(line));
        out.push('\n');
    }

    /// Text with its values.
    fn filled(&self, text: &str) -> String {
        let part = |(i, part): (usize, &'_ str)| match i % 2 {
            0 => part.to_string(),
            _ => self.values.get(part).unwrap_or_else(|| panic!("no value '{part}'")).clone(),
        };
        text.split('$').enumerate().map(part).collect()
    }
}

/// The lines up to the `//#endfor` that ends an open `//#for`.
fn body(rest: &mut std::str::Lines) -> String {
    let (mut text, mut depth) = (String::new(), 1);
    for line in rest {
        let word = line.trim_start();
        depth += usize::from(word.starts_with("//#for "));
        depth -= usize::from(word.starts_with("//#endfor"));
        if depth == 0 {
            return text;
        }
        text.push_str(line);
        text.push('\n');
    }
    panic!("an //#for is still open");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_nest_values_stand_inside_words_and_pieces_are_templates() {
        let t = Template::new()
            .flag("A", true)
            .flag("B", false)
            .value("N", 4)
            .piece("p", "//#if !B\nx$N$y\n//#endif");
        let text = "//#if A\na\n//#if B\nb\n//#else\nc\n//#endif\n//#include p\n//#endif\nz";
        assert_eq!(t.render(text), "a\nc\nx4y\nz\n");
    }
    #[test]
    fn lines_repeat_also_within_each_other_and_not_where_a_condition_fails() {
        let t = Template::new().flag("A", false).value("N", 2);
        let text = "//#for i N\n//#for j 2\n$i$$j$\n//#endfor\n//#if A\n//#for k 9\nno\n//#endfor\n//#endif\n//#endfor\nz";
        assert_eq!(t.render(text), "00\n01\n10\n11\nz\n");
    }
}
