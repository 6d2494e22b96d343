//! Finds where forms may be, at the speed of SIMD, by looking for short fragments of them.

use std::fmt;

use aho_corasick::{AhoCorasick, Input, MatchKind, packed};

/// Finds the leftmost occurrence of any of a few short patterns.
pub(in crate::proxy) enum Searcher {
    /// Teddy: about ten times as fast as an automaton.
    Packed(packed::Searcher),
    /// Where the processor has no suitable instructions, or for more patterns than Teddy takes.
    Automaton(AhoCorasick),
    /// Where no automaton can be built.
    Naive(Vec<Box<[u8]>>),
}

impl Searcher {
    /// `patterns` are not empty, and neither is any of them.
    pub(in crate::proxy) fn new(patterns: &[Box<[u8]>]) -> Self {
        packed::Config::new()
            .match_kind(packed::MatchKind::LeftmostFirst)
            .builder()
            .extend(patterns)
            .build()
            .map_or_else(|| Self::portable(patterns), Self::Packed)
    }

    fn portable(patterns: &[Box<[u8]>]) -> Self {
        AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(patterns)
            .map_or_else(|_| Self::Naive(patterns.to_vec()), Self::Automaton)
    }

    /// Position of the leftmost occurrence that starts at `from` or later.
    pub(in crate::proxy) fn find(&self, text: &[u8], from: usize) -> Option<usize> {
        if from >= text.len() {
            return None;
        }
        match self {
            Self::Packed(searcher) => {
                let span = aho_corasick::Span::from(from..text.len());
                searcher.find_in(text, span).map(|found| found.start())
            }
            Self::Automaton(automaton) => automaton
                .find(Input::new(text).range(from..))
                .map(|found| found.start()),
            Self::Naive(patterns) => (from..text.len()).find(|&at| {
                patterns
                    .iter()
                    .any(|pattern| text[at..].starts_with(pattern))
            }),
        }
    }
}

impl fmt::Debug for Searcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packed(_) => "Packed",
            Self::Automaton(_) => "Automaton",
            Self::Naive(_) => "Naive",
        })
    }
}

/// The longest piece of a form that is searched for.
const FRAGMENT: usize = 12;

/// Where in `form` the fragment is that stands for it.
///
/// From the middle, since tokens of one kind begin alike; of letters and digits alone where possible, since
/// encoders leave those as they are and so several forms share one fragment.
pub(super) fn fragment(form: &[u8]) -> std::ops::Range<usize> {
    let length = form.len().min(FRAGMENT);
    let last = form.len() - length;
    let middle = last / 2;
    let plain = (0..=last)
        .filter(|&at| form[at..at + length].iter().all(u8::is_ascii_alphanumeric))
        .min_by_key(|at| at.abs_diff(middle));
    let at = plain.unwrap_or(middle);
    at..at + length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Box<[u8]>> {
        texts.iter().map(|text| text.as_bytes().into()).collect()
    }

    #[test]
    fn every_kind_of_searcher_finds_the_same_places() {
        let patterns = patterns(&["abcd", "bcde1234", "zz"]);
        let text = b"..abcde1234....zzz....abc...............................................abcd";
        let places = |searcher: &Searcher| {
            let mut places = Vec::new();
            let mut from = 0;
            while let Some(at) = searcher.find(text, from) {
                places.push(at);
                from = at + 1;
            }
            places
        };
        let expected = vec![2, 3, 15, 16, 72];
        assert_eq!(places(&Searcher::Naive(patterns.clone())), expected);
        assert_eq!(places(&Searcher::portable(&patterns)), expected);
        assert_eq!(places(&Searcher::new(&patterns)), expected);
    }

    #[test]
    fn a_fragment_avoids_what_encoders_change() {
        let form = b"ghp_0123456789abcdef/+/+/+/+/+/+/+/+/+";
        assert_eq!(fragment(form), 8..20);
        assert_eq!(fragment(b"a/b/c/d/"), 0..8);
    }
}
