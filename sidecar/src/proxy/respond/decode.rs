//! Looks for credentials in a compressed body, which is passed on as it came or not at all.
//!
//! In go the pieces of a body with a `Content-Encoding`; out come the same bytes, each once a decoded copy of it was
//! looked through. A compressed byte cannot be masked, so a hit is an error, and so is whatever keeps the copy from
//! being made: data that is not what the field says, a window or an expansion beyond the bounds. Nothing of the
//! piece that brings the error goes on, nor of those before that may hold the beginning of a credential.

mod coding;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::proxy::scrub::ScrubStream;

use coding::Coding;

/// The largest decoding window, in bytes. It bounds the memory for one answer; `zstd` and `br` allow more, and
/// RFC 9659 allows no more to `zstd` in HTTP.
const MAX_WINDOW: u64 = 8 << 20;

/// What a body may expand to whatever its size, in bytes.
const FREE_EXPANSION: u64 = 1 << 20;

/// How many times its size a body may expand to beyond that.
const MAX_EXPANSION: u64 = 100;

/// How much is held back, in bytes, for data that decodes to nothing or to the beginning of a credential. A block of
/// `zstd`, the most that an encoder makes a decoder wait for, is at most 128 KiB.
const MAX_HELD: usize = 1 << 20;

/// How many codings may be applied to one body.
const MAX_CODINGS: usize = 3;

/// Why a compressed body cannot be passed on. Carries no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It holds a credential.
    #[error("a credential was found in the compressed body, where it cannot be masked")]
    Credential,
    /// It cannot be decoded.
    #[error("the body is not what its Content-Encoding says")]
    Malformed,
    /// It is a bomb, or as good as one.
    #[error("the compressed body expands to more than {MAX_EXPANSION} times its size")]
    Expansion,
    /// It would take too much memory to decode.
    #[error("the compressed body needs a decoding window of more than 8 MiB")]
    Window,
    /// There is no memory for a decoder.
    #[error("there is no memory to decode the body")]
    Memory,
    /// It goes on without decoding to anything.
    #[error("the compressed body holds back what it decodes to for more than 1 MiB")]
    Stalled,
    /// `Content-Encoding` lists too many codings.
    #[error("the body has more than {MAX_CODINGS} content codings")]
    Nested,
}

/// What `Content-Encoding` says of a body (RFC 9110 section 8.4).
#[derive(Debug)]
pub(super) enum Encoding {
    /// Nothing, or `identity`.
    Identity,
    /// Codings that can be taken off.
    Known(Codings),
    /// At least one that is not known here.
    Unknown,
}

/// Codings in the order in which they are taken off.
#[derive(Debug)]
pub(super) struct Codings(Vec<coding::Kind>);

impl Encoding {
    /// Reads the field, all of its lines.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut kinds = Vec::new();
        for line in headers.get_all(CONTENT_ENCODING) {
            for name in line.as_bytes().split(|byte| *byte == b',') {
                let name = name.trim_ascii();
                if name.is_empty() || name.eq_ignore_ascii_case(b"identity") {
                    continue;
                }
                match coding::Kind::named(name) {
                    Some(kind) => kinds.push(kind),
                    None => return Self::Unknown,
                }
            }
        }
        if kinds.is_empty() {
            return Self::Identity;
        }
        kinds.reverse();
        Self::Known(Codings(kinds))
    }
}

/// Looks through one compressed body.
pub(super) struct DecodedScan {
    stages: Vec<Stage>,
    scan: ScrubStream,
    /// Bytes of the body so far.
    taken: u64,
    /// What may not go on yet.
    held: BytesMut,
}

/// One coding, and how much it has decoded to.
struct Stage {
    coding: Coding,
    decoded: u64,
}

impl DecodedScan {
    /// A scan for what `scan` looks for. Fails for more codings than anybody applies.
    pub(super) fn new(codings: &Codings, scan: ScrubStream) -> Result<Self, DecodeError> {
        if codings.0.len() > MAX_CODINGS {
            return Err(DecodeError::Nested);
        }
        let stages = codings
            .0
            .iter()
            .map(|kind| {
                Coding::new(*kind)
                    .map(|coding| Stage { coding, decoded: 0 })
                    .ok_or(DecodeError::Memory)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            stages,
            scan,
            taken: 0,
            held: BytesMut::new(),
        })
    }

    /// Takes a piece and returns what may go on: all of it and what was held back before, or nothing.
    ///
    /// A piece that ends where the encoder flushed goes on at once, unless it decodes to the beginning of a credential.
    pub(super) fn push(&mut self, piece: Bytes) -> Result<Bytes, DecodeError> {
        self.taken += piece.len() as u64;
        let limit = FREE_EXPANSION.max(self.taken.saturating_mul(MAX_EXPANSION));
        feed(&mut self.stages, &piece, limit, &mut self.scan)?;
        let waits =
            self.scan.holds_bytes() || self.stages.iter().any(|stage| stage.coding.is_open());
        if !waits && self.held.is_empty() {
            return Ok(piece);
        }
        if self.held.len() + piece.len() > MAX_HELD && waits {
            return Err(DecodeError::Stalled);
        }
        self.held.extend_from_slice(&piece);
        Ok(if waits {
            Bytes::new()
        } else {
            self.held.split().freeze()
        })
    }

    /// What is still held back at the end of the body.
    ///
    /// A body that ends early goes on, as it would without a scan, as long as all of it was decoded.
    pub(super) fn finish(&mut self) -> Result<Bytes, DecodeError> {
        if self.stages.iter().any(|stage| stage.coding.is_open()) {
            return Err(DecodeError::Malformed);
        }
        Ok(self.held.split().freeze())
    }

    /// How many bytes wait.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }
}

/// Decodes with the first of `stages`, feeds the next with the result, and the scan with that of the last.
fn feed(
    stages: &mut [Stage],
    encoded: &[u8],
    limit: u64,
    scan: &mut ScrubStream,
) -> Result<(), DecodeError> {
    let Some((stage, rest)) = stages.split_first_mut() else {
        let _masked = scan.push(Bytes::copy_from_slice(encoded));
        return if scan.hits() > 0 {
            Err(DecodeError::Credential)
        } else {
            Ok(())
        };
    };
    let Stage { coding, decoded } = stage;
    coding.decode(encoded, &mut |piece| {
        *decoded += piece.len() as u64;
        if *decoded > limit {
            return Err(DecodeError::Expansion);
        }
        feed(rest, piece, limit, scan)
    })
}

#[cfg(test)]
mod tests;
