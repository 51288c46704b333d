//! Stop strings over a stream of text pieces. It must not know tokens.
//!
//! The reply ends at the stop string that is *complete* first; if several are complete at the same character, the
//! longest counts. Text that could still become a stop string is held back, everything else is passed on at once, so
//! the result does not depend on how the text was cut into pieces.

/// The state machine: feed pieces with [`StopMatcher::push`], end with [`StopMatcher::finish`].
#[derive(Debug, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text not passed on yet; between pushes, a proper prefix of some stop string.
    held: String,
}

impl StopMatcher {
    /// `stops` are not empty strings.
    pub fn new(stops: &[String]) -> Self {
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        StopMatcher { stops: stops.to_vec(), held: String::with_capacity(longest + 256) }
    }

    /// Takes a piece and appends what is safe to `out`; true when a stop string was found (nothing more is to come).
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(piece);
            return false;
        }
        for c in piece.chars() {
            self.held.push(c);
            let found = self.stops.iter().filter(|s| self.held.ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = found {
                out.push_str(&self.held[..self.held.len() - len]);
                self.held.clear();
                return true;
            }
        }
        let safe = self.held.len() - self.undecided();
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        false
    }

    /// No more text: what was held back is ordinary text after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Length of the longest end of `held` that begins some stop string.
    fn undecided(&self) -> usize {
        let held = self.held.as_bytes();
        let of = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| held.ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: the shortest beginning of `text` that ends with a stop string, cut before the longest such.
    fn oracle(text: &str, stops: &[String]) -> (String, bool) {
        for end in (0..=text.len()).filter(|&i| text.is_char_boundary(i)) {
            let hit = stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = hit {
                return (text[..end - len].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn run(pieces: &[&str], stops: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops);
        let mut out = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut out) {
                return (out, true);
            }
        }
        matcher.finish(&mut out);
        (out, false)
    }

    fn words(alphabet: &[char], longest: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..longest {
            last = last.iter().flat_map(|w| alphabet.iter().map(move |c| format!("{w}{c}"))).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    /// Every text of up to 6 characters, every pair of stop strings of up to 3, every way to cut the text in two, and
    /// character by character.
    #[test]
    fn small_cases_exhaustively_match_the_definition() {
        let alphabet = ['a', 'é'];
        let texts = words(&alphabet, 6);
        let stops: Vec<String> = words(&alphabet, 3).into_iter().filter(|s| !s.is_empty()).collect();
        let mut cases = 0usize;
        for first in &stops {
            for second in &stops {
                let stops = [first.clone(), second.clone()];
                for text in &texts {
                    let expected = oracle(text, &stops);
                    for cut in (0..=text.len()).filter(|&i| text.is_char_boundary(i)) {
                        assert_eq!(
                            run(&[&text[..cut], &text[cut..]], &stops),
                            expected,
                            "{text} {stops:?} {cut}"
                        );
                    }
                    let singles: Vec<String> = text.chars().map(String::from).collect();
                    let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
                    assert_eq!(run(&singles, &stops), expected, "{text} {stops:?}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 14 * 14 * 127);
    }

    /// Nothing that cannot become a stop string is ever held back, and never more than needed.
    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = StopMatcher::new(&["</end>".to_owned(), "\n\n".to_owned()]);
        let mut out = String::new();
        for (piece, passed) in
            [("Hi", "Hi"), ("<", "Hi"), ("/e", "Hi"), ("x", "Hi</ex"), ("\n", "Hi</ex"), ("y<", "Hi</ex\ny")]
        {
            assert!(!matcher.push(piece, &mut out));
            assert_eq!(out, passed, "after {piece:?}");
        }
        matcher.finish(&mut out);
        assert_eq!(out, "Hi</ex\ny<");
    }

    #[test]
    fn without_stop_strings_text_passes_through() {
        assert_eq!(run(&["a", "", "b"], &[]), ("ab".to_owned(), false));
    }
}
