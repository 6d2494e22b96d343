//! Turns links of an upstream's answer into links that the caller can follow through the sidecar.
//!
//! In go the answer's headers and what was sent; `Location`, `Content-Location`, `Operation-Location`, `Link`,
//! `Refresh` and the route's own names come out rewritten in place. Called by the respond step. References are
//! resolved after RFC 3986 section 5.2 without normalising anything but dot segments, because a path must reach
//! the upstream byte for byte when the link is followed. `body` does the same to URLs in content.

mod body;
mod reference;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use http::header::{CONTENT_LOCATION, LINK, LOCATION, REFRESH};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use body::LinkStream;

use reference::Reference;

const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");

/// How the caller said which provider it means, and so how it writes a URL.
#[derive(Clone, Copy, Debug)]
pub enum Addressing<'a> {
    /// `/via/<provider>[@<tenant>]`, as the caller wrote it: links become that prefix and a path.
    Prefix(&'a str),
    /// `X-Nexus-*` headers: links become a path of the sidecar itself.
    Headers,
    /// Absolute-form target: links stay absolute, with the scheme that the caller used.
    Absolute {
        /// `http` or `https`.
        scheme: &'a str,
    },
}

/// The request as the upstream got it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// Whether the upstream is `https`.
    pub tls: bool,
    /// Its host and, unless it is the default, port.
    pub authority: &'a str,
    /// Path of the route's upstream URL; empty and `/` mean all paths.
    pub base_path: &'a str,
    /// The whole path that was sent; a query may follow.
    pub path: &'a str,
    /// Names, not encoded, of the query parameters that were injected.
    pub injected_query: &'a [&'a str],
}

/// Rewrites every link in `headers`; `extra` names further headers that hold one URL.
///
/// A link to the same scheme, host and port under the base path becomes the caller's own addressing; injected
/// parameters are removed from links to the same origin. A relative link that leads out of the base path becomes
/// absolute, because relative to the caller's URL it would mean something else, even another provider. All
/// other links stay byte for byte.
pub fn rewrite(
    headers: &mut HeaderMap,
    sent: &Sent<'_>,
    addressing: Addressing<'_>,
    extra: &[HeaderName],
) {
    for (name, value) in headers.iter_mut() {
        let next_target = if *name == LINK {
            next_of_link
        } else if *name == REFRESH {
            next_of_refresh
        } else if *name == LOCATION
            || *name == CONTENT_LOCATION
            || *name == OPERATION_LOCATION
            || extra.contains(name)
        {
            next_of_single
        } else {
            continue;
        };
        if let Some(mut rewritten) = rewrite_value(value, sent, addressing, next_target) {
            rewritten.set_sensitive(value.is_sensitive());
            *value = rewritten;
        }
    }
}

/// Where the first URL of a field value is, at a position or later.
type NextTarget = fn(&str, usize) -> Option<Range<usize>>;

/// The value with each of its URLs rewritten, `None` if none changes.
fn rewrite_value(
    value: &HeaderValue,
    sent: &Sent<'_>,
    addressing: Addressing<'_>,
    next_target: NextTarget,
) -> Option<HeaderValue> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let mut out = String::new();
    let (mut from, mut copied) = (0, 0);
    while let Some(target) = next_target(text, from) {
        from = target.end;
        if let Some(link) = rewrite_link(&text[target.clone()], sent, addressing) {
            out.push_str(&text[copied..target.start]);
            out.push_str(&link);
            copied = target.end;
        }
    }
    if out.is_empty() {
        return None;
    }
    out.push_str(&text[copied..]);
    HeaderValue::from_maybe_shared(Bytes::from(out)).ok()
}

/// What one link becomes, `None` if it stays.
fn rewrite_link(text: &str, sent: &Sent<'_>, addressing: Addressing<'_>) -> Option<String> {
    let link = Reference::parse(text);
    let scheme = if sent.tls { "https" } else { "http" };
    let same_scheme = link
        .scheme
        .is_none_or(|own| own.eq_ignore_ascii_case(scheme));
    let same_host = link
        .authority
        .is_none_or(|own| same_authority(own, sent.authority, sent.tls));
    // `scheme:path` without authority is not a link to a host; an empty path and query is this very document.
    let names_host = link.authority.is_some() || link.scheme.is_none();
    if !same_scheme || !same_host || !names_host || link.is_same_document() {
        return None;
    }
    let path = link.resolve_path(sent.path);
    let query = link.query.map(|query| without(query, sent.injected_query));
    let under_base = below(&path, sent.base_path);
    let absolute = |scheme: &str| format!("{scheme}://{}{path}", sent.authority);
    let mut out = match (under_base, addressing) {
        (Some(rest), Addressing::Prefix(prefix)) => {
            format!("{}{rest}", prefix.trim_end_matches('/'))
        }
        (Some(rest), Addressing::Headers) => own_path(rest),
        (Some(_), Addressing::Absolute { scheme }) => absolute(scheme),
        (None, _) if link.authority.is_none() => absolute(scheme),
        // Another part of the same host: only what was injected goes.
        (None, _) => text[..text.len() - link.tail_len()].to_owned(),
    };
    if let Some(query) = query.filter(|query| !query.is_empty() || link.query == Some("")) {
        out.push('?');
        out.push_str(&query);
    }
    if let Some(fragment) = link.fragment {
        out.push('#');
        out.push_str(fragment);
    }
    (out != text).then_some(out)
}

/// What `path` is below the base path: empty or beginning with `/`.
pub(super) fn below<'a>(path: &'a str, base_path: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(base_path.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// A path of the sidecar that no client takes for the name of a host.
fn own_path(rest: &str) -> String {
    match rest.as_bytes() {
        [] => "/".to_owned(),
        // RFC 3986 section 4.2: `//x` would be a host; WHATWG clients read `/\x` alike.
        [_, b'/' | b'\\', ..] => format!("/.{rest}"),
        _ => rest.to_owned(),
    }
}

fn same_authority(left: &str, right: &str, tls: bool) -> bool {
    without_default_port(left, tls).eq_ignore_ascii_case(without_default_port(right, tls))
}

fn without_default_port(authority: &str, tls: bool) -> &str {
    let port = if tls { ":443" } else { ":80" };
    authority
        .strip_suffix(port)
        .or_else(|| authority.strip_suffix(':'))
        .unwrap_or(authority)
}

/// The query without the parameters of these names, the rest byte for byte.
fn without<'a>(query: &'a str, names: &[&str]) -> Cow<'a, str> {
    let injected = |parameter: &&str| {
        let name = parameter.split('=').next().unwrap_or_default().as_bytes();
        names.iter().any(|injected| {
            url::form_urlencoded::parse(name)
                .next()
                .is_some_and(|(name, _)| name == *injected)
        })
    };
    if names.is_empty() || !query.split('&').any(|parameter| injected(&parameter)) {
        return Cow::Borrowed(query);
    }
    let kept: Vec<_> = query
        .split('&')
        .filter(|parameter| !injected(parameter))
        .collect();
    Cow::Owned(kept.join("&"))
}

fn next_of_single(text: &str, from: usize) -> Option<Range<usize>> {
    (from == 0 && !text.is_empty()).then_some(0..text.len())
}

/// A target between `<` and `>` of a `Link` field (RFC 8288 section 3), not one inside a quoted parameter.
fn next_of_link(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_quoted(bytes, at),
            b'<' => {
                let start = at + 1;
                return text[start..].find('>').map(|length| start..start + length);
            }
            _ => at += 1,
        }
    }
    None
}

/// Position after the quoted string (RFC 9110 section 5.6.4) that begins at `start`.
fn end_of_quoted(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The URL in `5; url=...`, quoted or not (WHATWG HTML, "shared declarative refresh steps").
fn next_of_refresh(text: &str, from: usize) -> Option<Range<usize>> {
    if from > 0 {
        return None;
    }
    let start = text.find([';', ','])? + 1;
    let mut rest = text[start..].trim_start();
    if let Some(value) = rest
        .get(..3)
        .filter(|name| name.eq_ignore_ascii_case("url"))
        .and_then(|_| rest[3..].trim_start().strip_prefix('='))
    {
        rest = value.trim_start();
    }
    let quote = rest.starts_with(['"', '\'']).then(|| &rest[..1]);
    let rest = quote.map_or(rest, |_| &rest[1..]);
    let length = quote.map_or(rest.trim_end().len(), |quote| {
        rest.find(quote).unwrap_or(rest.len())
    });
    let from = text.len() - rest.len();
    Some(from..from + length)
}

#[cfg(test)]
mod tests;
