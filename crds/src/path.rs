//! What a request path can be read as. The path is sent as received; these readings are only judged.

use std::borrow::Cow;

/// Why a path is refused on every route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `.` or `..` as a segment in some reading.
    #[error("the path has a dot segment")]
    DotSegment,
    /// `%00` at some level of decoding.
    #[error("the path has an encoded NUL")]
    Nul,
    /// A control byte.
    #[error("the path has a control character")]
    Control,
    /// `%` that is not followed by two hexadecimal digits.
    #[error("the path has a malformed percent-encoding")]
    Encoding,
    /// A byte above 0x7F that is not percent-encoded.
    #[error("the path has a raw non-ASCII byte; percent-encode it")]
    NonAscii,
    /// Does not begin with `/`.
    #[error("the path does not begin with /")]
    NotAbsolute,
}

/// Judges a raw path by the rules that hold on every route.
pub fn check(_path: &str) -> Result<(), PathError> {
    unimplemented!()
}

/// Every reading of a checked path that a server might have: as sent; `%2F` as `/`; decoded (up to three times); empty
/// segments dropped; `;params` cut. Without duplicates; just the path itself when it has nothing to decode.
pub fn readings(_path: &str) -> Vec<Cow<'_, str>> {
    unimplemented!()
}
