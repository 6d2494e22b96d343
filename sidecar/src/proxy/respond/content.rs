//! What is done to the content of an answer on its way to the agent.
//!
//! Text is searched and its links are rewritten; compressed text is searched in a decoded copy. What passes unsearched:
//! content of other types (gRPC messages and images among them), what an unknown coding makes of a text (its bytes
//! are searched as they are), and with `scrub: Redact` a range of a compressed text, which cannot be decoded by itself.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::response::Parts;
use http::{HeaderMap, StatusCode};
use nexus_crds::matcher::{ResponseRules, RewriteLinks, Scrub};

use super::decode::{DecodeError, DecodedScan, Encoding};
use super::head::remove_validators;
use crate::proxy::body::BodyError;
use crate::proxy::links::LinkStream;
use crate::proxy::scrub::{ScrubStream, Scrubber, is_textual};

/// The way of one body, piece by piece.
pub(super) enum Content {
    /// Not text, or nothing to look for.
    Untouched,
    /// Text as it is read.
    Text(Text),
    /// Compressed text.
    Encoded(Box<DecodedScan>),
}

/// Links first: an injected parameter that is removed from one is no credential in the answer any more.
pub(super) struct Text {
    links: Option<Box<LinkStream>>,
    scrub: Option<ScrubStream>,
    block: bool,
}

impl Content {
    /// What has to be done to the content under `parts`, whose fields are made to fit.
    ///
    /// `empty` says that there is none, for whatever reason. `links` is called only where links in it are to be
    /// rewritten.
    pub(super) fn of(
        parts: &mut Parts,
        empty: bool,
        rules: &ResponseRules,
        scrubber: Option<&Arc<Scrubber>>,
        links: impl FnOnce() -> LinkStream,
    ) -> Result<Self, DecodeError> {
        let rewrites = rules.rewrite_links == RewriteLinks::Body;
        if (scrubber.is_none() && !rewrites) || !is_textual(parts.headers.get(CONTENT_TYPE)) {
            return Ok(Self::Untouched);
        }
        let partial = parts.status == StatusCode::PARTIAL_CONTENT
            || parts.headers.contains_key(CONTENT_RANGE);
        let encoding = Encoding::of(&parts.headers);
        // The numbers of a range are those of the content before it was rewritten.
        let rewrites = rewrites && !partial && matches!(encoding, Encoding::Identity);
        if rewrites {
            forget_length(&mut parts.headers);
        }
        if empty {
            return Ok(Self::Untouched);
        }
        let scrub = scrubber.map(|scrubber| ScrubStream::new(Arc::clone(scrubber)));
        match (encoding, scrub) {
            (Encoding::Known(_), None) => Ok(Self::Untouched),
            // A part of a compressed body cannot be decoded by itself.
            (Encoding::Known(_), Some(_)) if partial && rules.scrub != Scrub::Block => {
                Ok(Self::Untouched)
            }
            (Encoding::Known(codings), Some(scrub)) => {
                DecodedScan::new(&codings, scrub).map(|scan| Self::Encoded(Box::new(scan)))
            }
            (Encoding::Identity | Encoding::Unknown, scrub) => Ok(Self::Text(Text {
                links: rewrites.then(|| Box::new(links())),
                scrub,
                block: rules.scrub == Scrub::Block,
            })),
        }
    }

    /// Takes a piece and returns what goes on: what was held back before, then as much of the piece as is sure.
    pub(super) fn push(&mut self, piece: Bytes) -> Result<(Bytes, Bytes), BodyError> {
        match self {
            Self::Untouched => Ok((Bytes::new(), piece)),
            Self::Text(text) => text.push(piece),
            Self::Encoded(scan) => Ok((Bytes::new(), scan.push(piece)?)),
        }
    }

    /// What is still held back at the end.
    pub(super) fn finish(&mut self) -> Result<Bytes, BodyError> {
        match self {
            Self::Untouched => Ok(Bytes::new()),
            Self::Text(text) => text.finish(),
            Self::Encoded(scan) => Ok(scan.finish()?),
        }
    }

    /// Credentials that were masked so far.
    pub(super) fn hits(&self) -> u64 {
        match self {
            Self::Text(text) => text.scrub.as_ref().map_or(0, ScrubStream::hits),
            Self::Untouched | Self::Encoded(_) => 0,
        }
    }

    /// How many bytes are held back that go out later; `None` if what goes out later has another length than what
    /// comes in.
    pub(super) fn held(&self) -> Option<usize> {
        match self {
            Self::Untouched => Some(0),
            Self::Text(Text { links: Some(_), .. }) => None,
            Self::Text(text) => Some(text.scrub.as_ref().map_or(0, ScrubStream::held)),
            Self::Encoded(scan) => Some(scan.held()),
        }
    }

    /// True if nothing is held back, so that the end of the body is the end of what goes out.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Untouched => true,
            Self::Text(text) => {
                text.links.as_ref().is_none_or(|links| links.held() == 0)
                    && !text.scrub.as_ref().is_some_and(ScrubStream::holds_bytes)
            }
            // Where its end is missing, what there is of it is held back.
            Self::Encoded(scan) => scan.held() == 0,
        }
    }

    /// True if what goes out differs from what the upstream sent so far.
    pub(super) fn is_altered(&self) -> bool {
        match self {
            Self::Text(text) => text.links.is_some() || self.hits() > 0,
            Self::Untouched | Self::Encoded(_) => false,
        }
    }

    /// How the first piece bears on the head of the answer.
    pub(super) fn judges(&self) -> Judges {
        match self {
            Self::Text(Text { scrub: None, .. }) | Self::Untouched => Judges::Nothing,
            Self::Text(Text { block: false, .. }) => Judges::Validators,
            Self::Text(Text { block: true, .. }) | Self::Encoded(_) => Judges::Answer,
        }
    }
}

/// What a credential in the content decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judges {
    Nothing,
    /// Whether fields computed over the content still hold.
    Validators,
    /// Whether there is an answer.
    Answer,
}

impl Text {
    fn push(&mut self, piece: Bytes) -> Result<(Bytes, Bytes), BodyError> {
        let piece = match &mut self.links {
            Some(links) => links.push(piece),
            None => piece,
        };
        self.scrubbed(piece)
    }

    fn finish(&mut self) -> Result<Bytes, BodyError> {
        let rest = match &mut self.links {
            Some(links) => links.finish(),
            None => Bytes::new(),
        };
        let (held, fresh) = self.scrubbed(rest)?;
        let last = match &mut self.scrub {
            Some(scrub) => scrub.finish(),
            None => Bytes::new(),
        };
        Ok(match (held.is_empty(), fresh.is_empty()) {
            (true, true) => last,
            _ => [held, fresh, last].concat().into(),
        })
    }

    fn scrubbed(&mut self, piece: Bytes) -> Result<(Bytes, Bytes), BodyError> {
        let Some(scrub) = &mut self.scrub else {
            return Ok((Bytes::new(), piece));
        };
        let pieces = scrub.push(piece);
        if self.block && scrub.hits() > 0 {
            return Err(BodyError::Blocked);
        }
        Ok(pieces)
    }
}

/// Rewriting changes the length, and with it what the upstream says of the content.
fn forget_length(headers: &mut HeaderMap) {
    remove_validators(headers);
    headers.remove(ACCEPT_RANGES);
    // An answer without content keeps saying so.
    if headers
        .get(CONTENT_LENGTH)
        .is_some_and(|length| length != "0")
    {
        headers.remove(CONTENT_LENGTH);
    }
}
