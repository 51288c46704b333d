//! The terminal: stdout that may be a closed pipe, notes on stderr, color only where it is wanted, progress bars on
//! long work. It must not know what is printed.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether stderr takes color: a terminal, and `NO_COLOR` (<https://no-color.org>) not set.
pub fn color() -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    wanted && io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

fn dim(text: &str) -> String {
    if color() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_string() }
}

/// A line for people on stderr. Whether it can be written does not matter.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", dim(text));
}

/// An error for people on stderr.
pub fn error(text: &str) {
    let head = if color() { "\x1b[31;1merror:\x1b[0m" } else { "error:" };
    let _ = writeln!(io::stderr().lock(), "{head} {text}");
}

/// Stdout whose reader may go away. After that everything written is dropped, and [`Answer::is_closed`] says so.
#[derive(Default)]
pub struct Answer {
    closed: bool,
    /// Last character written, to end with exactly one newline.
    last: Option<char>,
    failure: Option<io::Error>,
}

impl Answer {
    /// Writes and flushes: a token is seen when it is there.
    pub fn write(&mut self, text: &str) {
        if self.closed || self.failure.is_some() || text.is_empty() {
            return;
        }
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => self.last = text.chars().last(),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.closed = true,
            Err(e) => self.failure = Some(e),
        }
    }

    /// A newline, unless the text just ended in one or nothing was written.
    pub fn end_line(&mut self) {
        if self.last.is_some_and(|c| c != '\n') {
            self.write("\n");
        }
    }

    /// The reader went away, or writing failed: nothing more will be seen.
    pub fn is_closed(&self) -> bool {
        self.closed || self.failure.is_some()
    }

    /// # Errors
    /// Writing failed for another reason than a closed pipe (a full disk).
    pub fn finish(self) -> io::Result<()> {
        self.failure.map_or(Ok(()), Err)
    }
}

/// Prints a whole text to stdout; a closed pipe is success.
///
/// # Errors
/// Writing failed for another reason (a full disk).
pub fn print(text: &str) -> io::Result<()> {
    let mut answer = Answer::default();
    answer.write(text);
    answer.finish()
}

/// Text from elsewhere, fit for a terminal: control characters are written out.
pub fn printable(text: &str) -> String {
    escape(text, |_| false)
}

/// As [`printable`], but lines stay lines.
pub fn printable_lines(text: &str) -> String {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let shown = |c: char| match c.is_control() && !keep(c) {
        true => c.escape_debug().collect::<Vec<_>>(),
        false => vec![c],
    };
    text.chars().flat_map(shown).collect()
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Tokens,
    Tensors,
}

/// A bar on stderr; invisible where stderr is not a terminal.
pub fn bar(what: &str, unit: Unit) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(style(unit, false));
    bar.set_message(what.to_string());
    bar
}

/// The bar's look with or without a known total.
fn style(unit: Unit, total: bool) -> ProgressStyle {
    let template = match (unit, total) {
        (Unit::Bytes, true) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        (Unit::Bytes, false) => "{msg} {spinner} {bytes} {bytes_per_sec}",
        (Unit::Tokens, true) => "{msg} {bar:30} {pos}/{len} tokens {eta}",
        (Unit::Tokens, false) => "{msg} {spinner} {pos} tokens",
        (Unit::Tensors, true) => "{msg} {bar:30} {pos}/{len} tensors {eta}",
        (Unit::Tensors, false) => "{msg} {spinner} {pos} tensors",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Moves a bar; the total may become known later.
pub fn move_bar(bar: &ProgressBar, unit: Unit, done: u64, total: Option<u64>) {
    if bar.length() != total {
        bar.set_style(style(unit, total.is_some()));
        match total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
    }
    bar.set_position(done);
}

/// A bar that shows up only when the work turns out to be long.
pub struct LateBar {
    what: &'static str,
    unit: Unit,
    since: Instant,
    bar: Option<ProgressBar>,
}

impl LateBar {
    /// Work shorter than this needs no bar.
    const PATIENCE: Duration = Duration::from_millis(600);

    pub fn new(what: &'static str, unit: Unit) -> Self {
        Self { what, unit, since: Instant::now(), bar: None }
    }

    pub fn set(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.since.elapsed() >= Self::PATIENCE {
            self.bar = Some(bar(self.what, self.unit));
        }
        if let Some(bar) = &self.bar {
            move_bar(bar, self.unit, done, Some(total));
        }
    }

    /// Takes the bar away; it does not come back.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for LateBar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A spinner for work without a measure.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = bar(what, Unit::Bytes);
    bar.set_style(
        ProgressStyle::with_template("{msg} {spinner}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
