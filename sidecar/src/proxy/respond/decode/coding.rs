//! The content codings that can be taken off as data arrives: each gives at once what its input decodes to.

use std::fmt;
use std::io::Write;

use brotli_decompressor::{
    BrotliDecoderParameter, BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc,
};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{DecodeError, MAX_WINDOW};

/// How much is decoded before it is given on, in bytes.
const PIECE: usize = 16 << 10;

/// The names of RFC 9110 section 8.4.1, RFC 7932 and RFC 8878.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Kind {
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        [
            (&b"gzip"[..], Self::Gzip),
            (b"x-gzip", Self::Gzip),
            (b"deflate", Self::Deflate),
            (b"br", Self::Brotli),
            (b"zstd", Self::Zstd),
        ]
        .into_iter()
        .find_map(|(known, kind)| name.eq_ignore_ascii_case(known).then_some(kind))
    }
}

/// Takes what was decoded.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), DecodeError> + 'a;

/// A decoder in the middle of a body.
pub(super) enum Coding {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Deflate(Deflate),
    Brotli(Box<Brotli>),
    Zstd(Zstd),
}

impl Coding {
    /// `None` when there is no memory for it.
    pub(super) fn new(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Kind::Deflate => Self::Deflate(Deflate::Unread),
            Kind::Brotli => Self::Brotli(Box::new(Brotli::new())),
            Kind::Zstd => Self::Zstd(Zstd::new()?),
        })
    }

    /// Gives `sink` all that can be decoded now, in pieces of a bounded size.
    pub(super) fn decode(
        &mut self,
        encoded: &[u8],
        sink: &mut Sink<'_>,
    ) -> Result<(), DecodeError> {
        if encoded.is_empty() {
            return Ok(());
        }
        match self {
            Self::Gzip(decoder) => inflate(&mut **decoder, encoded, sink),
            Self::Deflate(deflate) => deflate.decode(encoded, sink),
            Self::Brotli(brotli) => brotli.decode(encoded, sink),
            Self::Zstd(zstd) => zstd.decode(encoded, sink),
        }
    }

    /// True while input is kept that decodes to something once more of it is there.
    ///
    /// The others than `zstd` keep less than one symbol.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Gzip(_) | Self::Deflate(_) | Self::Brotli(_) => false,
            Self::Zstd(zstd) => zstd.open,
        }
    }
}

impl fmt::Debug for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was decoded last may be a credential.
        f.write_str(match self {
            Self::Gzip(_) => "Gzip",
            Self::Deflate(_) => "Deflate",
            Self::Brotli(_) => "Brotli",
            Self::Zstd(_) => "Zstd",
        })
    }
}

/// A decoder of `flate2`, which writes into a vector.
trait Inflater: Write {
    fn decoded(&mut self) -> &mut Vec<u8>;
}

impl Inflater for MultiGzDecoder<Vec<u8>> {
    fn decoded(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl Inflater for ZlibDecoder<Vec<u8>> {
    fn decoded(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl Inflater for DeflateDecoder<Vec<u8>> {
    fn decoded(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

fn inflate(
    inflater: &mut impl Inflater,
    mut encoded: &[u8],
    sink: &mut Sink<'_>,
) -> Result<(), DecodeError> {
    while !encoded.is_empty() {
        let taken = inflater
            .write(encoded)
            .map_err(|_| DecodeError::Malformed)?;
        give(inflater, sink)?;
        if taken == 0 {
            // It has ended and more follows.
            return Err(DecodeError::Malformed);
        }
        encoded = &encoded[taken..];
    }
    inflater.flush().map_err(|_| DecodeError::Malformed)?;
    give(inflater, sink)
}

fn give(inflater: &mut impl Inflater, sink: &mut Sink<'_>) -> Result<(), DecodeError> {
    let decoded = inflater.decoded();
    if decoded.is_empty() {
        return Ok(());
    }
    let taken = sink(decoded);
    decoded.clear();
    taken
}

/// `deflate` is the format of zlib (RFC 1950), and what many servers send instead is the bare format of RFC 1951.
pub(super) enum Deflate {
    Unread,
    /// The first byte alone does not tell.
    First(u8),
    Zlib(Box<ZlibDecoder<Vec<u8>>>),
    Bare(Box<DeflateDecoder<Vec<u8>>>),
}

impl Deflate {
    fn decode(&mut self, encoded: &[u8], sink: &mut Sink<'_>) -> Result<(), DecodeError> {
        match self {
            Self::Zlib(decoder) => inflate(&mut **decoder, encoded, sink),
            Self::Bare(decoder) => inflate(&mut **decoder, encoded, sink),
            Self::Unread => {
                let (first, rest) = encoded.split_first().ok_or(DecodeError::Malformed)?;
                *self = Self::First(*first);
                if rest.is_empty() {
                    return Ok(());
                }
                self.decode(rest, sink)
            }
            Self::First(first) => {
                let first = *first;
                let second = encoded.first().copied().ok_or(DecodeError::Malformed)?;
                *self = if is_zlib(first, second) {
                    Self::Zlib(Box::new(ZlibDecoder::new(Vec::new())))
                } else {
                    Self::Bare(Box::new(DeflateDecoder::new(Vec::new())))
                };
                self.decode(&[first], sink)?;
                self.decode(encoded, sink)
            }
        }
    }
}

/// The header of RFC 1950 section 2.2: method 8, a window of at most 32 KiB, and a check sum.
fn is_zlib(first: u8, second: u8) -> bool {
    let header = u16::from_be_bytes([first, second]);
    first & 0x0f == 8 && first >> 4 <= 7 && header.is_multiple_of(31)
}

/// The only reader of its stream, so that it is known when it has ended.
pub(super) struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    out: Box<[u8]>,
    ended: bool,
}

impl Brotli {
    fn new() -> Self {
        let alloc = StandardAlloc::default;
        let mut state = BrotliState::new(alloc(), alloc(), alloc());
        // Windows beyond RFC 7932 are not part of the coding `br`.
        state.set_parameter(BrotliDecoderParameter::BROTLI_DECODER_PARAM_LARGE_WINDOW, 0);
        Self {
            state,
            out: vec![0; PIECE].into(),
            ended: false,
        }
    }

    fn decode(&mut self, encoded: &[u8], sink: &mut Sink<'_>) -> Result<(), DecodeError> {
        if self.ended {
            return Err(DecodeError::Malformed);
        }
        let (mut left, mut at) = (encoded.len(), 0);
        loop {
            let (mut space, mut written, mut total) = (self.out.len(), 0, 0);
            let result = BrotliDecompressStream(
                &mut left,
                &mut at,
                encoded,
                &mut space,
                &mut written,
                &mut self.out,
                &mut total,
                &mut self.state,
            );
            if self.state.window_bits > MAX_WINDOW.ilog2() {
                return Err(DecodeError::Window);
            }
            sink(&self.out[..written])?;
            match result {
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::ResultSuccess if left == 0 => {
                    self.ended = true;
                    return Ok(());
                }
                BrotliResult::ResultSuccess | BrotliResult::ResultFailure => {
                    return Err(DecodeError::Malformed);
                }
            }
        }
    }
}

/// Decodes whole blocks: what there is of a block decodes to nothing before the rest of it has come.
pub(super) struct Zstd {
    context: DCtx<'static>,
    out: Box<[u8]>,
    open: bool,
}

/// How many bytes precede each block (RFC 8878 section 3.1.1.2).
const BLOCK_HEADER: usize = 3;

/// `ZSTD_error_frameParameter_windowTooLarge` of `zstd_errors.h`, as the library returns it.
const WINDOW_TOO_LARGE: usize = 16_usize.wrapping_neg();

impl Zstd {
    fn new() -> Option<Self> {
        let mut context = DCtx::try_create()?;
        context
            .set_parameter(DParameter::WindowLogMax(MAX_WINDOW.ilog2()))
            .ok()?;
        Some(Self {
            context,
            out: vec![0; PIECE].into(),
            open: false,
        })
    }

    fn decode(&mut self, encoded: &[u8], sink: &mut Sink<'_>) -> Result<(), DecodeError> {
        let mut input = InBuffer::around(encoded);
        loop {
            let mut output = OutBuffer::around(&mut *self.out);
            let wanted = self
                .context
                .decompress_stream(&mut output, &mut input)
                .map_err(|code| match code {
                    WINDOW_TOO_LARGE => DecodeError::Window,
                    _ => DecodeError::Malformed,
                })?;
            let written = output.pos();
            sink(&self.out[..written])?;
            // At the end of a frame another call would begin the next.
            if input.pos() == encoded.len() && (written < self.out.len() || wanted == 0) {
                // Between blocks it asks for the next one's header and no more.
                self.open = wanted > BLOCK_HEADER;
                return Ok(());
            }
        }
    }
}
