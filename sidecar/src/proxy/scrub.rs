//! Masks the secrets of a credential in what an upstream answers.
//!
//! In go the secrets of one credential (once) and headers and chunks of bodies (per answer); out come the same
//! bytes with every form of a secret replaced by asterisks. Called by the response step. Defence in depth: an
//! encoding that is not listed in `forms` passes.

mod forms;
pub(super) mod search;
mod stream;

use std::fmt;
use std::ops::Range;

use http::HeaderValue;

pub use stream::ScrubStream;

use forms::Form;
use search::Searcher;

/// Secrets below this many bytes are not looked for: they occur by chance.
pub const MIN_SECRET: usize = 8;

const MASK: u8 = b'*';

/// Finds and masks the forms of one credential's secrets.
///
/// The forms are zeroized on drop. Pieces of at most 12 bytes of them stay in the search tables, which cannot be.
pub struct Scrubber {
    forms: Vec<Candidate>,
    longest: usize,
    shortest: usize,
    fragments: Searcher,
    /// Finds the first bytes of forms, to tell which end of a chunk may go on in the next.
    openings: Searcher,
}

struct Candidate {
    form: Form,
    /// Where the fragment is that `fragments` finds.
    offset: usize,
}

impl Scrubber {
    /// A scrubber for `secrets` (raw bytes) and for the base64 of `basic_pairs` (`user:pass`).
    ///
    /// Those under [`MIN_SECRET`] bytes are skipped. `None` when nothing is left.
    pub fn new<'a>(
        secrets: impl IntoIterator<Item = &'a [u8]>,
        basic_pairs: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<Self> {
        let forms = forms::of(secrets, basic_pairs);
        let longest = forms.iter().map(|form| form.len()).max()?;
        let shortest = forms.iter().map(|form| form.len()).min()?;
        let openings = distinct(forms.iter().map(|form| &form[..stream::MIN_HELD]));
        let mut fragments: Vec<Box<[u8]>> = Vec::new();
        let forms = forms
            .into_iter()
            .map(|form| {
                let offset = shared_fragment(&fragments, &form).unwrap_or_else(|| {
                    let own = search::fragment(&form);
                    fragments.push(form[own.clone()].into());
                    own.start
                });
                Candidate { form, offset }
            })
            .collect();
        Some(Self {
            forms,
            longest,
            shortest,
            fragments: Searcher::new(&fragments),
            openings: Searcher::new(&openings),
        })
    }

    /// The masked value if a form occurs in `value`, else `None`.
    pub fn header(&self, value: &HeaderValue) -> Option<HeaderValue> {
        if value.len() < self.shortest {
            return None;
        }
        let mut hits = self.occurrences(value.as_bytes()).peekable();
        hits.peek()?;
        let mut masked = value.as_bytes().to_vec();
        for hit in hits {
            masked[hit].fill(MASK);
        }
        // A mask cannot make a valid value invalid; should it ever, the whole value goes.
        let mut masked = HeaderValue::from_maybe_shared(bytes::Bytes::from(masked))
            .unwrap_or_else(|_| HeaderValue::from_static("*"));
        masked.set_sensitive(value.is_sensitive());
        Some(masked)
    }

    /// True if a form occurs in `bytes`.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.occurrences(bytes).next().is_some()
    }

    /// Every occurrence of every form in `text`, overlapping ones too.
    fn occurrences(&self, text: &[u8]) -> impl Iterator<Item = Range<usize>> {
        self.hits(text).flat_map(move |at| {
            self.forms.iter().filter_map(move |candidate| {
                let start = at.checked_sub(candidate.offset)?;
                let end = start + candidate.form.len();
                (text.get(start..end)? == candidate.form.as_slice()).then_some(start..end)
            })
        })
    }

    /// Where fragments of forms are.
    fn hits(&self, text: &[u8]) -> impl Iterator<Item = usize> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let at = self.fragments.find(text, from)?;
            from = at + 1;
            Some(at)
        })
    }

    /// Length of the longest end of `text` that is the beginning, but not the whole, of a form.
    fn open_end(&self, text: &[u8]) -> usize {
        let first = text.len().saturating_sub(self.longest - 1);
        let mut from = first;
        while let Some(at) = self.openings.find(text, from) {
            if self.opens(&text[at..]) {
                return text.len() - at;
            }
            from = at + 1;
        }
        let short = first.max(text.len().saturating_sub(stream::MIN_HELD - 1));
        (short..text.len())
            .find(|&at| self.opens(&text[at..]))
            .map_or(0, |at| text.len() - at)
    }

    fn opens(&self, end: &[u8]) -> bool {
        self.forms
            .iter()
            .any(|candidate| candidate.form.len() > end.len() && candidate.form.starts_with(end))
    }
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber")
            .field("forms", &self.forms.len())
            .field("fragments", &self.fragments)
            .finish_non_exhaustive()
    }
}

/// Offset in `form` of a fragment that another form brought along already.
fn shared_fragment(fragments: &[Box<[u8]>], form: &[u8]) -> Option<usize> {
    fragments.iter().find_map(|fragment| {
        form.windows(fragment.len())
            .position(|window| window == &**fragment)
    })
}

fn distinct<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Vec<Box<[u8]>> {
    let mut kept: Vec<Box<[u8]>> = Vec::new();
    for text in texts {
        if !kept.iter().any(|other| **other == *text) {
            kept.push(text.into());
        }
    }
    kept
}

/// True for bodies that are text, where secrets are looked for.
///
/// No content type, one that cannot be read and one with a `charset` count as text.
pub fn is_textual(content_type: Option<&HeaderValue>) -> bool {
    let Some(Ok(value)) = content_type.map(HeaderValue::to_str) else {
        return true;
    };
    let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
    let Some((kind, subtype)) = essence.trim().split_once('/') else {
        return true;
    };
    let charset = parameters
        .split(';')
        .any(|parameter| starts_with_ignore_case(parameter.trim(), "charset="));
    if charset
        || TEXT_TYPES
            .iter()
            .any(|text| kind.eq_ignore_ascii_case(text))
    {
        return true;
    }
    let suffix = subtype.rsplit('+').next().unwrap_or_default();
    TEXT_SUBTYPES
        .iter()
        .any(|text| subtype.eq_ignore_ascii_case(text) || suffix.eq_ignore_ascii_case(text))
        || starts_with_ignore_case(subtype, "x-amz-json")
}

fn starts_with_ignore_case(text: &str, start: &str) -> bool {
    text.get(..start.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(start))
}

const TEXT_TYPES: [&str; 3] = ["text", "message", "multipart"];

/// Subtypes, and structured syntax suffixes (RFC 6838 section 4.2.8).
const TEXT_SUBTYPES: [&str; 28] = [
    "ecmascript",
    "event-stream",
    "graphql",
    "http",
    "javascript",
    "jose",
    "json",
    "json-seq",
    "jsonl",
    "jsonlines",
    "jwt",
    "ndjson",
    "openmetrics-text",
    "pem-certificate-chain",
    "rtf",
    "sql",
    "toml",
    "x-httpd-php",
    "x-javascript",
    "x-json",
    "x-jsonlines",
    "x-ndjson",
    "x-pem-file",
    "x-sh",
    "x-www-form-urlencoded",
    "x-yaml",
    "xml",
    "yaml",
];

#[cfg(test)]
mod tests;
