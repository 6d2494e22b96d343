//! A URI reference in its parts (RFC 3986 section 4.1), borrowed and unchanged.

use std::borrow::Cow;

/// `scheme://authority/path?query#fragment`, all but the path optional.
pub(super) struct Reference<'a> {
    pub(super) scheme: Option<&'a str>,
    pub(super) authority: Option<&'a str>,
    pub(super) path: &'a str,
    /// Without `?`.
    pub(super) query: Option<&'a str>,
    /// Without `#`.
    pub(super) fragment: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// Never fails: every text is some reference (RFC 3986 appendix B).
    pub(super) fn parse(text: &'a str) -> Self {
        let (rest, fragment) = cut(text, '#');
        let (rest, query) = cut(rest, '?');
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            Some(_) | None => (None, rest),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let end = rest.find('/').unwrap_or(rest.len());
                (Some(&rest[..end]), &rest[end..])
            }
            None => (None, rest),
        };
        Self {
            scheme,
            authority,
            path,
            query,
            fragment,
        }
    }

    /// True for `` and `#fragment`.
    pub(super) fn is_same_document(&self) -> bool {
        self.scheme.is_none()
            && self.authority.is_none()
            && self.path.is_empty()
            && self.query.is_none()
    }

    /// Bytes of the query and fragment with what introduces them.
    pub(super) fn tail_len(&self) -> usize {
        [self.query, self.fragment]
            .into_iter()
            .flatten()
            .map(|part| part.len() + 1)
            .sum()
    }

    /// The path this refers to, seen from `base`; begins with `/` (RFC 3986 section 5.2.2).
    pub(super) fn resolve_path(&self, base: &'a str) -> Cow<'a, str> {
        let base = base.split(['?', '#']).next().unwrap_or_default();
        if self.authority.is_some() || self.path.starts_with('/') {
            return match self.path {
                "" => Cow::Borrowed("/"),
                path => without_dot_segments(Cow::Borrowed(path)),
            };
        }
        if self.path.is_empty() {
            return Cow::Borrowed(if base.is_empty() { "/" } else { base });
        }
        let folder = base.rfind('/').map_or("/", |slash| &base[..=slash]);
        without_dot_segments(Cow::Owned(format!("{folder}{}", self.path)))
    }
}

fn cut(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at)
        .map_or((text, None), |(before, after)| (before, Some(after)))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// RFC 3986 section 5.2.4; encoded dots count as dots, as they do to WHATWG clients.
fn without_dot_segments(path: Cow<'_, str>) -> Cow<'_, str> {
    if !path.split('/').any(|segment| dots(segment).is_some()) {
        return path;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let Some(dots) = dots(segment) else {
            kept.push(segment);
            continue;
        };
        if dots == 2 {
            kept.pop();
        }
        if segments.peek().is_none() {
            kept.push("");
        }
    }
    Cow::Owned(format!("/{}", kept.join("/")))
}

/// 1 for `.` and 2 for `..`, in any spelling.
fn dots(segment: &str) -> Option<usize> {
    let mut rest = segment;
    for count in 0..=2 {
        if rest.is_empty() {
            return (count > 0).then_some(count);
        }
        rest = rest.strip_prefix('.').or_else(|| {
            let encoded = rest.get(..3)?;
            encoded.eq_ignore_ascii_case("%2e").then(|| &rest[3..])
        })?;
    }
    None
}
