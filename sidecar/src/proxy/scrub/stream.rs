//! Masks a body that arrives in chunks, without waiting for its end.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::{MASK, Scrubber};

/// Ends of chunks shorter than this are not held back though a form begins with them.
///
/// What it gives up: where a chunk ends within the first `MIN_HELD - 1` bytes of a form, those bytes have gone
/// out before the rest arrives. The rest is masked all the same. What it buys: an event whose last byte happens
/// to be the first byte of a secret is not delayed.
pub(super) const MIN_HELD: usize = 4;

/// Scrubs one body.
///
/// Each chunk goes on at once, save for its longest end (of 4 bytes or more) that is the beginning of a form.
/// Whatever way a body is split into chunks, the result is that of the body in one piece, except that up to the
/// first 3 bytes of a form stay visible if a chunk ends right after them.
pub struct ScrubStream {
    scrubber: Arc<Scrubber>,
    /// The end of what was pushed that may be the beginning of a form, as it came.
    open: Zeroizing<Vec<u8>>,
    /// How much of `open` has gone out.
    released: usize,
    /// `open` and the beginning of a chunk.
    seam: Zeroizing<Vec<u8>>,
    hits: u64,
}

impl ScrubStream {
    /// A stream without bytes.
    pub fn new(scrubber: Arc<Scrubber>) -> Self {
        Self {
            scrubber,
            open: Zeroizing::default(),
            released: 0,
            seam: Zeroizing::default(),
            hits: 0,
        }
    }

    /// Takes a chunk and returns what may go on: what was held back before, then as much of the chunk as is sure.
    ///
    /// Either may be empty. Clean chunks are passed on without a copy.
    pub fn push(&mut self, mut chunk: Bytes) -> (Bytes, Bytes) {
        if chunk.is_empty() {
            return (Bytes::new(), chunk);
        }
        let old = self.open.len();
        let spans = self.spans(&chunk);
        self.hits += spans.iter().filter(|span| span.end > old).count() as u64;
        let end = old + chunk.len();
        let open = end - self.open_end(&chunk);
        let released = release_to(open, end, self.released, &spans);
        let held = Bytes::copy_from_slice(&self.open[self.released..old.min(released)]);
        let held = masked(held, self.released, &spans);
        self.remember(open, &chunk);
        self.released = released - open;
        chunk.truncate(released.saturating_sub(old));
        (held, masked(chunk, old, &spans))
    }

    /// What is still held back at the end of the body.
    pub fn finish(&mut self) -> Bytes {
        let spans = merged(self.scrubber.occurrences(&self.open).collect());
        let rest = Bytes::copy_from_slice(&self.open[self.released..]);
        let rest = masked(rest, self.released, &spans);
        self.open = Zeroizing::default();
        self.released = 0;
        rest
    }

    /// True if bytes are held back that [`finish`](Self::finish) will return.
    pub fn holds_bytes(&self) -> bool {
        self.held() > 0
    }

    /// How many bytes are held back that a later [`push`](Self::push) or [`finish`](Self::finish) will return.
    pub fn held(&self) -> usize {
        self.open.len() - self.released
    }

    /// How many runs of bytes were masked.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// What to mask, sorted and disjoint; position 0 is the beginning of `open`, which `chunk` follows.
    fn spans(&mut self, chunk: &[u8]) -> Vec<Range<usize>> {
        let old = self.open.len();
        let mut spans: Vec<_> = self
            .scrubber
            .occurrences(chunk)
            .map(|span| span.start + old..span.end + old)
            .collect();
        self.seam.clear();
        if old > 0 {
            let reach = chunk.len().min(self.scrubber.longest - 1);
            // Grown by hand: growing in place would leave the old copy behind.
            if self.seam.capacity() < old + reach {
                self.seam = Zeroizing::new(Vec::with_capacity(2 * self.scrubber.longest));
            }
            self.seam.extend_from_slice(&self.open);
            self.seam.extend_from_slice(&chunk[..reach]);
            spans.extend(
                self.scrubber
                    .occurrences(&self.seam)
                    .filter(|span| span.start < old),
            );
        }
        merged(spans)
    }

    fn open_end(&self, chunk: &[u8]) -> usize {
        // A chunk shorter than a form is in the seam as a whole.
        if chunk.len() + 1 < self.scrubber.longest && !self.seam.is_empty() {
            self.scrubber.open_end(&self.seam)
        } else {
            self.scrubber.open_end(chunk)
        }
    }

    /// Keeps everything from position `from` on.
    fn remember(&mut self, from: usize, chunk: &[u8]) {
        let old = self.open.len();
        let mut open = Zeroizing::new(Vec::with_capacity(old + chunk.len() - from));
        open.extend_from_slice(self.open.get(from..).unwrap_or_default());
        open.extend_from_slice(&chunk[from.saturating_sub(old)..]);
        self.open = open;
    }
}

impl fmt::Debug for ScrubStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScrubStream")
            .field("held", &self.held())
            .field("hits", &self.hits)
            .finish_non_exhaustive()
    }
}

/// Up to which position bytes go out now, if those from `open` to `end` may be the beginning of a form.
fn release_to(open: usize, end: usize, released: usize, spans: &[Range<usize>]) -> usize {
    if end - open < MIN_HELD {
        return end;
    }
    // What is masked whatever follows need not wait.
    let sure = spans
        .iter()
        .find(|span| span.start <= open && span.end > open)
        .map_or(open, |span| span.end);
    sure.max(released)
}

/// `bytes`, which begin at position `at`, with `spans` masked; itself if none touches them.
fn masked(bytes: Bytes, at: usize, spans: &[Range<usize>]) -> Bytes {
    let end = at + bytes.len();
    let mut touching = spans
        .iter()
        .filter(|span| span.start < end && span.end > at)
        .peekable();
    if touching.peek().is_none() {
        return bytes;
    }
    let mut masked = BytesMut::from(&bytes[..]);
    for span in touching {
        masked[span.start.max(at) - at..span.end.min(end) - at].fill(MASK);
    }
    masked.freeze()
}

fn merged(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_unstable_by_key(|span| span.start);
    spans.dedup_by(|next, kept| {
        let joined = next.start <= kept.end;
        if joined {
            kept.end = kept.end.max(next.end);
        }
        joined
    });
    spans
}
