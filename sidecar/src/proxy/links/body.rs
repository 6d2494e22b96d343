//! Rewrites links in content while it streams.
//!
//! Only absolute URLs count there, since nothing else in a text is known to be a link: those of the upstream's origin,
//! below its base path as it is written. They may be escaped as JSON writers do (`\/`, `\u0026`) or as HTML wants it
//! (`&amp;`), and the result is escaped alike. A URL inside another URL belongs to that one and stays.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};

use super::{Addressing, Sent, rewrite_link, same_authority};
use crate::proxy::scrub::search::Searcher;

/// What follows the scheme, plain and as JSON writers escape it.
const SEPARATORS: [&[u8]; 2] = [b"://", b":\\/\\/"];

static SEPARATOR: LazyLock<Searcher> = LazyLock::new(|| Searcher::new(&SEPARATORS.map(Box::from)));

/// Longer URLs stay, so that no more than this is ever held back.
const MAX_URL: usize = 8 << 10;

/// `&` in JSON that may stand in HTML.
const JSON_AMPERSAND: &[u8] = b"\\u0026";

/// Punctuation that rather follows a URL than ends it, though it may.
const TRAILING: &[u8] = b"'),;]";

/// Rewrites the links of one body.
///
/// A chunk goes on at once, save for an end that may be the beginning of a URL below the base path. However a body is
/// split into chunks, the result is that of the body in one piece.
pub struct LinkStream {
    site: Site,
    held: Bytes,
    /// The byte before `held`.
    before: Option<u8>,
    /// `held` begins in the middle of a URL that stays.
    inside: bool,
}

/// [`Sent`] and [`Addressing`] for as long as a body takes.
struct Site {
    tls: bool,
    authority: Box<str>,
    base_path: Box<str>,
    injected: Vec<Box<str>>,
    addressing: Caller,
}

enum Caller {
    Prefix(Box<str>),
    Headers,
    Absolute(Box<str>),
}

/// What there is at a separator.
enum Found {
    /// A URL to be replaced, by this.
    Link(usize, String),
    /// The beginning of one.
    Open,
    /// Another URL.
    Foreign,
}

/// Where a URL ends.
enum Extent {
    Complete(usize),
    /// It reaches at least this far, and what comes next decides.
    Open(usize),
}

/// What is known of a text up to its end.
enum Scanned {
    /// From the first position to the second comes this instead. The scan goes on at the second.
    Replace(usize, usize, String),
    /// Everything from this position on has to wait.
    Wait(usize),
    /// Nothing more.
    Clean,
}

impl LinkStream {
    /// For the answer to a request.
    pub fn new(sent: &Sent<'_>, addressing: Addressing<'_>) -> Self {
        let site = Site {
            tls: sent.tls,
            authority: sent.authority.into(),
            base_path: sent.base_path.trim_end_matches('/').into(),
            injected: sent
                .injected_query
                .iter()
                .map(|name| (*name).into())
                .collect(),
            addressing: match addressing {
                Addressing::Prefix(prefix) => Caller::Prefix(prefix.into()),
                Addressing::Headers => Caller::Headers,
                Addressing::Absolute { scheme } => Caller::Absolute(scheme.into()),
            },
        };
        Self {
            site,
            held: Bytes::new(),
            before: None,
            inside: false,
        }
    }

    /// Takes a chunk and returns what may go on. Chunks without links are passed on without a copy.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if chunk.is_empty() {
            return chunk;
        }
        self.advance(chunk, false)
    }

    /// What is still held back at the end of the body.
    pub fn finish(&mut self) -> Bytes {
        self.advance(Bytes::new(), true)
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn advance(&mut self, chunk: Bytes, ended: bool) -> Bytes {
        let text = if self.held.is_empty() {
            chunk
        } else {
            Bytes::from([&self.held[..], &chunk].concat())
        };
        let (mut from, mut copied) = (0, 0);
        let mut out = BytesMut::new();
        let end = loop {
            match self.scan(&text, from, ended) {
                Scanned::Replace(start, end, link) => {
                    out.extend_from_slice(&text[copied..start]);
                    out.extend_from_slice(link.as_bytes());
                    (from, copied) = (end, end);
                }
                Scanned::Wait(at) => break at,
                Scanned::Clean => break text.len(),
            }
        };
        if let Some(last) = text[..end].last() {
            self.before = Some(*last);
        }
        self.held = text.slice(end..);
        if copied == 0 && out.is_empty() {
            return text.slice(..end);
        }
        out.extend_from_slice(&text[copied..end]);
        out.freeze()
    }

    /// Looks for the next thing that matters at `from` or later.
    fn scan(&mut self, text: &[u8], mut from: usize, ended: bool) -> Scanned {
        if self.inside {
            match extent(text, from, ended) {
                Extent::Complete(end) => from = end,
                Extent::Open(end) => return Scanned::Wait(end),
            }
            self.inside = false;
        }
        let mut search = from;
        while let Some(colon) = SEPARATOR.find(text, search) {
            search = colon + 1;
            let escaped = text[colon + 1] == b'\\';
            let after = colon + SEPARATORS[usize::from(escaped)].len();
            let scheme = colon.checked_sub(self.site.scheme().len());
            let own = scheme.filter(|start| *start >= from && self.is_scheme(text, *start, colon));
            if own.is_none() && !self.follows_scheme(text, colon) {
                continue;
            }
            if let Some(start) = own {
                match self.site.judge(text, after, ended) {
                    Found::Link(end, link) => return Scanned::Replace(start, end, link),
                    Found::Open => return Scanned::Wait(start),
                    Found::Foreign => {}
                }
            }
            match extent(text, after, ended) {
                Extent::Complete(end) => {
                    from = end;
                    search = end;
                }
                Extent::Open(end) => {
                    self.inside = true;
                    return Scanned::Wait(end);
                }
            }
        }
        if ended {
            return Scanned::Clean;
        }
        self.opening(text, from)
            .map_or(Scanned::Clean, Scanned::Wait)
    }

    /// Where the end of `text` is the beginning of a scheme and a separator: of our scheme, or of the separator after
    /// any.
    fn opening(&self, text: &[u8], from: usize) -> Option<usize> {
        let scheme = self.site.scheme().as_bytes();
        let opens = |start: usize| {
            let tail = &text[start..];
            let (head, rest) = tail.split_at(tail.len().min(scheme.len()));
            let ours = head.eq_ignore_ascii_case(&scheme[..head.len()])
                && opens_separator(rest)
                && !self.continues_scheme(text, start);
            ours || opens_separator(tail) && self.follows_scheme(text, start)
        };
        let longest = scheme.len() + SEPARATORS[1].len() - 1;
        (from.max(text.len().saturating_sub(longest))..text.len()).find(|&start| opens(start))
    }

    fn is_scheme(&self, text: &[u8], start: usize, colon: usize) -> bool {
        text[start..colon].eq_ignore_ascii_case(self.site.scheme().as_bytes())
            && !self.continues_scheme(text, start)
    }

    /// True if what stands before makes the scheme another one, as in `git+https`. Letters do not: they may be the end
    /// of an escape.
    fn continues_scheme(&self, text: &[u8], at: usize) -> bool {
        self.byte_before(text, at)
            .is_some_and(|byte| matches!(byte, b'+' | b'-' | b'.'))
    }

    fn follows_scheme(&self, text: &[u8], colon: usize) -> bool {
        self.byte_before(text, colon)
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
    }

    fn byte_before(&self, text: &[u8], at: usize) -> Option<u8> {
        match at.checked_sub(1) {
            Some(before) => text.get(before).copied(),
            None => self.before,
        }
    }
}

impl Site {
    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// Judges a URL with our scheme, whose authority begins at `after`.
    fn judge(&self, text: &[u8], after: usize, ended: bool) -> Found {
        let (end, open) = match extent(text, after, ended) {
            Extent::Complete(end) => (end, false),
            Extent::Open(end) => (end, true),
        };
        if end - after > MAX_URL {
            return Found::Foreign;
        }
        let raw = untrailed(&text[after..end]);
        let rest = unescaped(raw);
        if open && self.may_be_below(&rest) {
            return Found::Open;
        }
        if open || !self.is_below(&rest) {
            return Found::Foreign;
        }
        let escaped_slash = text[after - 1] == b'/' && text[after - 2] == b'\\';
        let html = rest.contains('&') && all_html_ampersands(&rest);
        let rest = if html {
            rest.replace("&amp;", "&")
        } else {
            rest
        };
        match self.rewritten(&format!("{}://{rest}", self.scheme())) {
            None => Found::Foreign,
            Some(mut link) => {
                if html {
                    link = link.replace('&', "&amp;");
                } else if raw
                    .windows(JSON_AMPERSAND.len())
                    .any(|text| text == JSON_AMPERSAND)
                {
                    link = link.replace('&', "\\u0026");
                }
                if escaped_slash {
                    link = link.replace('/', "\\/");
                }
                Found::Link(after + raw.len(), link)
            }
        }
    }

    fn rewritten(&self, url: &str) -> Option<String> {
        let injected: Vec<&str> = self.injected.iter().map(|name| &**name).collect();
        let sent = Sent {
            tls: self.tls,
            authority: &self.authority,
            base_path: &self.base_path,
            // Only relative links are resolved against it.
            path: "/",
            injected_query: &injected,
        };
        let addressing = match &self.addressing {
            Caller::Prefix(prefix) => Addressing::Prefix(prefix),
            Caller::Headers => Addressing::Headers,
            Caller::Absolute(scheme) => Addressing::Absolute { scheme },
        };
        rewrite_link(url, &sent, addressing)
    }

    /// Whether a URL that goes on after `rest`, authority first, may still be below the base path.
    fn may_be_below(&self, rest: &str) -> bool {
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if path.is_empty() {
            let port = if self.tls { ":443" } else { ":80" };
            let longest = format!("{}{port}", self.authority);
            return [&self.authority[..], &longest].iter().any(|own| {
                own.get(..authority.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(authority))
            });
        }
        same_authority(authority, &self.authority, self.tls)
            && (self.base_path.starts_with(path) || self.is_path_below(path))
    }

    fn is_below(&self, rest: &str) -> bool {
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        same_authority(authority, &self.authority, self.tls) && self.is_path_below(path)
    }

    /// `path` is as it is written, with what follows it: `/api` has `/api?x` below it, but not `/apix`.
    fn is_path_below(&self, path: &str) -> bool {
        path.strip_prefix(&*self.base_path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
    }
}

/// Where the URL ends that goes on at `from`: before the first byte that neither belongs to one (RFC 3986 section 2)
/// nor escapes one that does.
fn extent(text: &[u8], from: usize, ended: bool) -> Extent {
    let mut at = from;
    loop {
        let undecided = match &text[at..] {
            [] => true,
            [b'\\', b'/', ..] => {
                at += 2;
                continue;
            }
            rest @ [b'\\', ..] if rest.starts_with(JSON_AMPERSAND) => {
                at += JSON_AMPERSAND.len();
                continue;
            }
            rest @ [b'\\', ..] => JSON_AMPERSAND.starts_with(rest),
            [byte, ..] if is_url_byte(*byte) => {
                at += 1;
                continue;
            }
            _ => false,
        };
        return if undecided && !ended {
            Extent::Open(at)
        } else {
            Extent::Complete(at)
        };
    }
}

fn opens_separator(rest: &[u8]) -> bool {
    SEPARATORS
        .iter()
        .any(|separator| separator.starts_with(rest))
}

fn is_url_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)
}

/// A dot at the end may as well be part of a dot segment, and then it stays.
fn untrailed(raw: &[u8]) -> &[u8] {
    let raw = match raw {
        [kept @ .., b'.']
            if kept
                .last()
                .is_some_and(|byte| byte.is_ascii_alphanumeric() || TRAILING.contains(byte)) =>
        {
            kept
        }
        _ => raw,
    };
    let kept = raw.iter().rposition(|byte| !TRAILING.contains(byte));
    &raw[..kept.map_or(0, |last| last + 1)]
}

/// All bytes are URL bytes or escapes of some, so all of it is ASCII.
fn unescaped(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    if text.contains('\\') {
        text.replace("\\/", "/").replace("\\u0026", "&")
    } else {
        text.into_owned()
    }
}

fn all_html_ampersands(text: &str) -> bool {
    text.split('&').skip(1).all(|rest| rest.starts_with("amp;"))
}

#[cfg(test)]
mod tests;
