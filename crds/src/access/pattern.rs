//! Path patterns: `*` within a segment, `**` for whole segments, `{a,b}` for either.

use std::sync::OnceLock;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::access::rule::Effect;

/// Alternatives of one pattern once `{a,b}` is written out.
const MAX_ALTERNATIVES: usize = 256;
const MAX_LENGTH: usize = 1024;
/// Stands for a written `**` while braces are written out, so that `{*,a}*` cannot turn into one.
const ANY_DEPTH: char = '\u{1}';

/// One reading of a path, made ready for every rule's patterns.
#[derive(Debug)]
pub(super) struct PathReading<'a> {
    whole: Candidate<'a>,
    /// Many servers answer `/a/` with `/a`, so what denies the one denies the other.
    without_slash: Option<Candidate<'a>>,
}

impl<'a> PathReading<'a> {
    pub(super) fn new(path: &'a str) -> Self {
        let without_slash = path.strip_suffix('/').filter(|path| !path.is_empty());
        Self {
            whole: Candidate::from_bytes(path),
            without_slash: without_slash.map(Candidate::from_bytes),
        }
    }
}

/// The patterns of one rule; checked at once, made into an automaton when first used.
#[derive(Debug)]
pub(super) struct Patterns {
    written: Box<[Box<str>]>,
    effect: Effect,
    ignore_case: bool,
    /// `None` inside once building failed.
    set: OnceLock<Option<GlobSet>>,
}

impl Patterns {
    /// Checks the patterns; an error names the offending one by index.
    pub(super) fn parse(
        written: &[String],
        effect: Effect,
        ignore_case: bool,
    ) -> Result<Self, (usize, String)> {
        for (index, pattern) in written.iter().enumerate() {
            alternatives(pattern).map_err(|reason| (index, reason))?;
        }
        Ok(Self {
            written: written.iter().map(|p| p.as_str().into()).collect(),
            effect,
            ignore_case,
            set: OnceLock::new(),
        })
    }

    /// `true` if the automaton can be built.
    pub(super) fn build(&self) -> bool {
        self.set().is_some()
    }

    /// `true` if some pattern matches the path. A set that cannot be built denies.
    pub(super) fn matches(&self, path: &PathReading<'_>) -> bool {
        let Some(set) = self.set() else {
            return self.effect == Effect::Deny;
        };
        let matches = |path: &Candidate<'_>| set.is_match_candidate(path);
        matches(&path.whole)
            || self.effect == Effect::Deny && path.without_slash.as_ref().is_some_and(matches)
    }

    fn set(&self) -> Option<&GlobSet> {
        self.set.get_or_init(|| self.automaton().ok()).as_ref()
    }

    fn automaton(&self) -> Result<GlobSet, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for written in &self.written {
            // Checked by `parse`; an empty list would only match less, and the length is never zero.
            for alternative in alternatives(written).unwrap_or_default() {
                for glob in globs(&alternative, self.effect) {
                    let mut builder = GlobBuilder::new(&glob);
                    builder
                        .literal_separator(true)
                        .case_insensitive(self.ignore_case);
                    set.add(builder.build()?);
                }
            }
        }
        set.build()
    }
}

/// Writes out `{a,b}` and checks what is left: the plain patterns a pattern stands for.
fn alternatives(pattern: &str) -> Result<Vec<String>, String> {
    if pattern.len() > MAX_LENGTH {
        return Err(format!("is longer than {MAX_LENGTH} bytes"));
    }
    if pattern.contains(|c: char| c.is_control()) {
        return Err("has a control character".to_owned());
    }
    let marked = pattern.replace("**", ANY_DEPTH.encode_utf8(&mut [0; 4]));
    let segments = |plain: &str| {
        plain
            .split('/')
            .map(|segment| match segment {
                "\u{1}" => Ok("**"),
                _ if segment.contains(ANY_DEPTH) || segment.contains("**") => {
                    Err("has `**` as a part of a segment; it stands for whole ones".to_owned())
                }
                _ => Ok(segment),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(|segments| segments.join("/"))
    };
    let expanded = expand(&marked)?;
    expanded.iter().try_for_each(|plain| check_plain(plain))?;
    expanded.iter().map(|plain| segments(plain)).collect()
}

fn check_plain(pattern: &str) -> Result<(), String> {
    if !pattern.starts_with('/') {
        return Err("must begin with /".to_owned());
    }
    if let Some(odd) = pattern
        .chars()
        .find(|c| matches!(c, '?' | '[' | ']' | '!' | '\\'))
    {
        return Err(format!(
            "has {odd:?}; a pattern knows `*`, `**` and `{{a,b}}` only"
        ));
    }
    Ok(())
}

/// Replaces the first `{a,b}` by each of its branches until none is left.
fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let mut waiting = vec![pattern.to_owned()];
    let mut plain = Vec::new();
    while let Some(pattern) = waiting.pop() {
        let Some((before, branches, after)) = first_braces(&pattern)? else {
            plain.push(pattern);
            continue;
        };
        waiting.extend(
            branches
                .iter()
                .rev()
                .map(|branch| format!("{before}{branch}{after}")),
        );
        if waiting.len() + plain.len() > MAX_ALTERNATIVES {
            return Err(format!(
                "stands for more than {MAX_ALTERNATIVES} alternatives; split it"
            ));
        }
    }
    Ok(plain)
}

type Braces<'a> = (&'a str, Vec<&'a str>, &'a str);

/// The outermost first `{...}`, its branches, and what is around it.
fn first_braces(pattern: &str) -> Result<Option<Braces<'_>>, String> {
    let unbalanced = || "has unbalanced braces".to_owned();
    let Some(open) = pattern.find(['{', '}']) else {
        return Ok(None);
    };
    let (mut depth, mut start, mut branches) = (0_usize, open + 1, Vec::new());
    for (offset, byte) in pattern.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1).ok_or_else(unbalanced)?;
                if depth == 0 {
                    branches.push(&pattern[start..offset]);
                    return Ok(Some((&pattern[..open], branches, &pattern[offset + 1..])));
                }
            }
            b',' if depth == 1 => {
                branches.push(&pattern[start..offset]);
                start = offset + 1;
            }
            _ => {}
        }
    }
    Err(unbalanced())
}

/// The globs for one plain pattern.
///
/// A final `/**` also stands for no segment at all, which globset's does not. Where a rule allows, a `*` that
/// is a whole segment wants one that is there: `/user/*` does not allow `/user/`.
fn globs(pattern: &str, effect: Effect) -> Vec<String> {
    let mut segments: Vec<&str> = pattern.split('/').collect();
    segments.dedup_by(|a, b| *a == "**" && *b == "**");
    if effect == Effect::Allow {
        for segment in &mut segments {
            if *segment == "*" {
                *segment = "?*";
            }
        }
    }
    let mut globs = vec![segments.join("/")];
    if segments.last() == Some(&"**") {
        segments.pop();
        let parent = segments.join("/");
        globs.push(if parent.is_empty() {
            "/".to_owned()
        } else {
            parent
        });
    }
    globs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let patterns = Patterns::parse(&[pattern.to_owned()], Effect::Allow, false).unwrap();
        assert!(patterns.build());
        patterns.matches(&PathReading::new(path))
    }

    #[test]
    fn patterns_match_as_documented() {
        let table = [
            ("/user", "/user", true),
            ("/user", "/user/", false),
            ("/user", "/users", false),
            ("/user", "/User", false),
            ("/repos/*", "/repos/a", true),
            ("/repos/*", "/repos/a/b", false),
            ("/repos/*", "/repos/", false),
            ("/repos/**", "/repos", true),
            ("/repos/**", "/repos/", true),
            ("/repos/**", "/repos/a/b", true),
            ("/repos/**", "/repositories", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/**/keys", "/keys", true),
            ("/**/keys", "/a/b/keys", true),
            ("/**/keys", "/a/b/keys/c", false),
            ("/**/keys/**", "/a/keys", true),
            ("/a/**/**/b", "/a/b", true),
            ("/a/**/b", "/a/b", true),
            ("/a/**/b", "/a/x/y/b", true),
            ("/a/**/b", "/axb", false),
            ("/m/*:generate", "/m/gemini:generate", true),
            ("/m/*:generate", "/m/a/b:generate", false),
            ("/x/*.json", "/x/.json", true),
            ("/{a,b}/c", "/b/c", true),
            ("/{a,b}/c", "/d/c", false),
            (
                "/{repos/*/*,repositories/*}/keys/**",
                "/repos/o/r/keys",
                true,
            ),
            (
                "/{repos/*/*,repositories/*}/keys/**",
                "/repositories/1/keys/2",
                true,
            ),
            (
                "/{repos/*/*,repositories/*}/keys/**",
                "/repos/o/keys",
                false,
            ),
            ("/{a,{b,c}/**}", "/c/d", true),
            ("/a{,/b}", "/a", true),
            ("/a{,/b}", "/a/b", true),
            ("/$batch", "/$batch", true),
            ("/a.b+(c)", "/a.b+(c)", true),
            ("/a.b+(c)", "/aXb+(c)", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_deny_pattern_also_meets_the_path_with_a_trailing_slash() {
        let patterns = Patterns::parse(&["/user".to_owned()], Effect::Deny, false).unwrap();
        assert!(patterns.matches(&PathReading::new("/user/")));
        let patterns = Patterns::parse(&["/user/*".to_owned()], Effect::Deny, false).unwrap();
        assert!(patterns.matches(&PathReading::new("/user/")));
    }

    #[test]
    fn case_is_ignored_where_asked() {
        let patterns = Patterns::parse(&["/Sites/*/X".to_owned()], Effect::Allow, true).unwrap();
        assert!(patterns.matches(&PathReading::new("/sITES/a/x")));
    }

    #[test]
    fn every_other_metacharacter_is_refused() {
        for pattern in [
            "",
            "user",
            "{/a,b}",
            "/a?",
            "/[ab]",
            "/a]",
            "/!a",
            "/a\\b",
            "/a**",
            "/**a",
            "/a/b**c/d",
            "/{a,b",
            "/a}",
            "/{a}}",
            "/{*,a}*",
            "/a\n",
        ] {
            let parsed = Patterns::parse(&[pattern.to_owned()], Effect::Allow, false);
            assert!(parsed.is_err(), "{pattern}");
        }
    }

    #[test]
    fn alternatives_and_length_are_bounded() {
        let many = format!("/{}", "{a,b}".repeat(9));
        assert!(Patterns::parse(&[many], Effect::Allow, false).is_err());
        let most = format!("/{}", "{a,b}".repeat(8));
        assert!(Patterns::parse(&[most], Effect::Allow, false).is_ok());
        let long = format!("/{}", "a".repeat(MAX_LENGTH));
        assert!(Patterns::parse(&[long], Effect::Allow, false).is_err());
    }

    /// The documented meaning, written down in the plainest way.
    fn reference(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), _) => {
                (0..=path.len()).any(|skipped| reference(rest, &path[skipped..]))
            }
            (Some((&"*", rest)), Some((segment, others))) => {
                !segment.is_empty() && reference(rest, others)
            }
            (Some((literal, rest)), Some((segment, others))) => {
                literal == segment && reference(rest, others)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_the_documented_meaning(
            pattern in "(/(a|b|\\*|\\*\\*)){1,4}",
            path in "(/(a|b|c)){1,4}",
        ) {
            let segments = |text: &'static str| text.split('/').skip(1).collect::<Vec<_>>();
            let (pattern_text, path_text) = (pattern.clone(), path.clone());
            let pattern: &'static str = pattern.leak();
            let path: &'static str = path.leak();
            prop_assert_eq!(
                matches(&pattern_text, &path_text),
                reference(&segments(pattern), &segments(path)),
                "{} {}", pattern_text, path_text
            );
        }

        #[test]
        fn parsing_never_panics(pattern in ".{0,40}") {
            drop(Patterns::parse(&[pattern], Effect::Allow, false));
        }
    }
}
