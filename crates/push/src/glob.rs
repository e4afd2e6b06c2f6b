//! Glob patterns, matched in one pass over the text.
//! <https://spec.matrix.org/v1.19/appendices/#glob-style-matching>
//!
//! A pattern becomes a set of states that all advance together, a bit each, so that no text and no pattern makes a match
//! go back: its cost is the length of the text times the pattern's length in machine words.

use std::collections::HashMap;

/// The longest pattern that is looked at, in bytes; a longer one matches nothing.
pub(crate) const PATTERN_BYTES_MAX: usize = 1_024;

const WORD_BITS: usize = u64::BITS as usize;

/// Steps that matching may still take. One step is a machine word looked at for one byte of text.
#[derive(Debug)]
pub struct Work {
    left: u64,
}

impl Work {
    /// So many steps.
    pub fn new(steps: u64) -> Self {
        Self { left: steps }
    }

    /// Whether nothing more may be looked at.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// Takes `steps`; `false`: there are not so many, and now there are none.
    pub(crate) fn spend(&mut self, steps: usize) -> bool {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        let enough = steps <= self.left;
        self.left = self.left.saturating_sub(steps);
        enough
    }
}

/// Where in the text a pattern may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The whole text.
    Whole,
    /// Any part of it that starts and ends at a word boundary.
    Words,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    Any,
    Star,
}

/// A set of states: state `n` says that the first `n` tokens have matched.
type States = Vec<u64>;

/// A pattern, ready to be asked often. Case does not matter.
#[derive(Debug)]
pub(crate) struct Glob {
    /// Number of tokens, and the state in which all have matched.
    accept: usize,
    any: States,
    star: States,
    literals: HashMap<char, States>,
    /// The pattern is too long to be looked at.
    never: bool,
}

impl Glob {
    /// The pattern with its wildcards `*` and `?`.
    pub(crate) fn new(pattern: &str) -> Self {
        let tokens = pattern.chars().map(|char| match char {
            '*' => Token::Star,
            '?' => Token::Any,
            char => Token::Literal(fold(char)),
        });
        Self::of(pattern.len(), tokens.collect())
    }

    /// The text as it stands.
    pub(crate) fn literal(text: &str) -> Self {
        Self::of(text.len(), text.chars().map(|char| Token::Literal(fold(char))).collect())
    }

    fn of(bytes: usize, mut tokens: Vec<Token>) -> Self {
        let never = bytes > PATTERN_BYTES_MAX;
        if never {
            tokens.clear();
        }
        // Many stars in a row say what one says.
        tokens.dedup_by(|a, b| *a == Token::Star && *b == Token::Star);
        let empty = vec![0; tokens.len() / WORD_BITS + 1];
        let mut glob =
            Self { accept: tokens.len(), any: empty.clone(), star: empty.clone(), literals: HashMap::new(), never };
        for (state, token) in tokens.into_iter().enumerate() {
            let states = match token {
                Token::Literal(char) => glob.literals.entry(char).or_insert_with(|| empty.clone()),
                Token::Any => &mut glob.any,
                Token::Star => &mut glob.star,
            };
            states[state / WORD_BITS] |= 1 << (state % WORD_BITS);
        }
        glob
    }

    /// Whether the pattern matches `text`. When `work` is spent nothing does.
    pub(crate) fn matches(&self, text: &str, extent: Extent, work: &mut Work) -> bool {
        if self.never || !work.spend((text.len() + 1) * self.star.len()) {
            return false;
        }
        if self.accept == 0 {
            // The empty pattern would be found between any two words.
            return text.is_empty();
        }
        let mut states = vec![0; self.star.len()];
        let mut before: Option<char> = None;
        for char in text.chars() {
            let boundary = match extent {
                Extent::Whole => before.is_none(),
                Extent::Words => before.is_none_or(|before| !is_word(before)) || !is_word(char),
            };
            if boundary {
                self.begin(&mut states);
                if extent == Extent::Words && self.accepts(&states) {
                    return true;
                }
            }
            self.advance(&mut states, fold(char));
            before = Some(char);
        }
        if extent == Extent::Words || before.is_none() {
            self.begin(&mut states);
        }
        self.accepts(&states)
    }

    fn accepts(&self, states: &[u64]) -> bool {
        states[self.accept / WORD_BITS] >> (self.accept % WORD_BITS) & 1 == 1
    }

    fn begin(&self, states: &mut [u64]) {
        states[0] |= 1 | (self.star[0] & 1) << 1;
    }

    /// Every state takes one character, or ends. A star takes it and stays, and lets the next token begin.
    fn advance(&self, states: &mut [u64], char: char) {
        let literal = self.literals.get(&char);
        let (mut carry, mut star_carry) = (0, 0);
        for (index, word) in states.iter_mut().enumerate() {
            let taking = *word & (self.any[index] | literal.map_or(0, |literal| literal[index]));
            let staying = *word & self.star[index];
            let next = staying | taking << 1 | carry;
            carry = taking >> (WORD_BITS - 1);
            let past_star = next & self.star[index];
            *word = next | past_star << 1 | star_carry;
            star_carry = past_star >> (WORD_BITS - 1);
        }
    }
}

/// The lower case of a character, where that is one character.
fn fold(char: char) -> char {
    let mut lower = char.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(lower), None) => lower,
        _ => char,
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#conditions-1>
fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).matches(text, Extent::Whole, &mut Work::new(u64::MAX))
    }

    fn words(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).matches(text, Extent::Words, &mut Work::new(u64::MAX))
    }

    /// The meaning of a glob, said as shortly as it can be.
    fn obvious(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, rest) => rest.is_none(),
            (Some(('*', after)), rest) => obvious(after, text) || rest.is_some_and(|(_, text)| obvious(pattern, text)),
            (Some((token, pattern)), Some((char, text))) => (*token == '?' || token == char) && obvious(pattern, text),
            (Some(_), None) => false,
        }
    }

    fn strings(alphabet: &[char], length_max: usize) -> Vec<Vec<char>> {
        let mut all = vec![vec![]];
        let mut from = 0;
        for _ in 0..length_max {
            let until = all.len();
            for index in from..until {
                let longer = alphabet.iter().map(|char| [&all[index][..], &[*char]].concat());
                let longer: Vec<_> = longer.collect();
                all.extend(longer);
            }
            from = until;
        }
        all
    }

    #[test]
    fn every_short_pattern_matches_what_its_definition_says() {
        let texts = strings(&['a', 'b', '-'], 4);
        for pattern in strings(&['a', 'b', '*', '?'], 4).iter().filter(|pattern| !pattern.is_empty()) {
            let glob = Glob::new(&pattern.iter().collect::<String>());
            for text in &texts {
                let string: String = text.iter().collect();
                let mut work = Work::new(u64::MAX);
                let found = glob.matches(&string, Extent::Whole, &mut work);
                assert_eq!(found, obvious(pattern, text), "{pattern:?} in {string}");
                let boundary = |at: usize| {
                    let word = |at: usize| is_word(text[at]);
                    at == 0 || at == text.len() || !word(at - 1) || !word(at)
                };
                let ranges = (0..=text.len()).flat_map(|from| (from..=text.len()).map(move |to| (from, to)));
                let mut ranges = ranges.filter(|(from, to)| boundary(*from) && boundary(*to));
                let expected = ranges.any(|(from, to)| obvious(pattern, &text[from..to]));
                assert_eq!(glob.matches(&string, Extent::Words, &mut work), expected, "{pattern:?} among {string}");
            }
        }
    }

    #[test]
    fn the_examples_of_the_specification_hold() {
        assert!(whole("lunc?*", "Lunch plans") && whole("lunc?*", "LUNCH"));
        assert!(!whole("lunc?*", " lunch") && !whole("lunc?*", "lunc"));
        for body in ["An example event.", "exple", "An exciting triple-whammy"] {
            assert!(words("ex*ple", body), "{body}");
        }
        assert!(!words("cake", "pancakes") && words("cake", "a cake!") && words("@room", "hey@room"));
        assert!(!words("", "anything") && words("ÄPFEL", "äpfel"));
    }

    #[test]
    fn a_pattern_longer_than_a_machine_word_matches_across_its_words() {
        let long = "ab".repeat(200);
        assert!(whole(&long, &long.to_uppercase()) && !whole(&long, &long[1..]));
        let starred = format!("{}*{}", "a".repeat(63), "b".repeat(64));
        assert!(whole(&starred, &format!("{}xyz{}", "a".repeat(63), "b".repeat(64))));
        assert!(whole(&starred, &format!("{}{}", "a".repeat(63), "b".repeat(64))));
        assert!(!whole(&starred, &format!("{}{}", "a".repeat(62), "b".repeat(64))));
    }

    #[test]
    fn the_work_of_a_match_is_the_text_times_the_words_of_the_pattern() {
        let text = "a".repeat(65_536);
        let patterns = ["a*".repeat(512), "?*a".repeat(341), "*a*b".repeat(256), "a".repeat(1_024)];
        for pattern in patterns {
            let glob = Glob::new(&pattern);
            let steps = (text.len() + 1) * glob.star.len();
            assert!(steps <= text.len() * 18);
            let mut work = Work::new(steps as u64);
            glob.matches(&text, Extent::Words, &mut work);
            assert!(work.is_spent());
            assert!(!glob.matches("a", Extent::Words, &mut work), "nothing matches without work");
        }
        assert!(!whole(&"a".repeat(65_536), &text), "too long a pattern matches nothing");
    }
}
