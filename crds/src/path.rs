//! What a request path can be read as. The path is sent as received; these readings are only judged.

use std::borrow::Cow;

use percent_encoding::percent_decode;

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

/// How often a path is decoded to see what it says: services and the proxies before them decode once each.
const LEVELS: usize = 3;

/// Judges a raw path by the rules that hold on every route.
///
/// A dot segment is looked for in the path as sent and decoded up to three times, with `\` as a separator and
/// `;params` cut. Ordinary paths are judged in one pass without allocation.
pub fn check(path: &str) -> Result<(), PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    if scan(bytes)? {
        return Ok(());
    }
    let mut decoded = Cow::Borrowed(bytes);
    for level in 0..=LEVELS {
        if has_dot_segment(&decoded) {
            return Err(PathError::DotSegment);
        }
        if level == LEVELS || !decoded.contains(&b'%') {
            break;
        }
        decoded = Cow::Owned(percent_decode(&decoded).collect());
        if decoded.contains(&0) {
            return Err(PathError::Nul);
        }
    }
    Ok(())
}

/// Every reading of a checked path that a server might have: as sent; `%2F` as `/`; decoded (up to three times); `\` as
/// `/`; empty segments dropped; `;params` cut. Without duplicates; just the path itself when it has nothing to decode.
///
/// A trailing `/` stays, since it names another resource. Bytes that are not UTF-8 once decoded become U+FFFD.
pub fn readings(path: &str) -> Vec<Cow<'_, str>> {
    let mut readings = vec![Cow::Borrowed(path)];
    if is_plain(path) {
        return readings;
    }
    let mut decoded = path.as_bytes().to_vec();
    add_forms(&mut readings, path);
    add_forms(&mut readings, &path.replace("%2F", "/").replace("%2f", "/"));
    for _ in 0..LEVELS {
        if !decoded.contains(&b'%') {
            break;
        }
        decoded = percent_decode(&decoded).collect();
        add_forms(&mut readings, &String::from_utf8_lossy(&decoded));
    }
    readings
}

/// `true` if the path has one reading: itself.
pub(crate) fn is_plain(path: &str) -> bool {
    let mut previous = 0;
    path.bytes().all(|byte| {
        let doubled = byte == b'/' && previous == b'/';
        previous = byte;
        !doubled && !matches!(byte, b'%' | b'\\' | b';')
    })
}

/// Judges single bytes; `true` if nothing in the path could hide a dot segment.
fn scan(bytes: &[u8]) -> Result<bool, PathError> {
    let mut plain = true;
    let mut previous = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            0..0x20 | 0x7F => return Err(PathError::Control),
            0x80.. => return Err(PathError::NonAscii),
            b'%' => {
                plain = false;
                let digits = bytes.get(index + 1..index + 3);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(PathError::Encoding);
                }
            }
            b'\\' => plain = false,
            b'.' if previous == b'/' => plain = false,
            _ => {}
        }
        previous = byte;
    }
    Ok(plain)
}

fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|b| matches!(b, b'/' | b'\\'))
        .filter_map(|segment| segment.split(|b| *b == b';').next())
        .any(|segment| segment == b"." || segment == b"..")
}

/// Adds a text and what it becomes with `\` as a separator, without parameters and without empty segments.
fn add_forms(readings: &mut Vec<Cow<'_, str>>, text: &str) {
    let mut add = |form: String| {
        if !readings.iter().any(|known| *known == form) {
            readings.push(Cow::Owned(form));
        }
    };
    let mut separated = vec![text.to_owned()];
    if text.contains('\\') {
        separated.push(text.replace('\\', "/"));
    }
    for form in separated {
        let cut = cut_params(&form);
        add(drop_empty(&form));
        add(drop_empty(&cut));
        add(cut);
        add(form);
    }
}

fn cut_params(path: &str) -> String {
    let mut cut = String::with_capacity(path.len());
    for segment in path.split_inclusive('/') {
        let (text, slash) = match segment.strip_suffix('/') {
            Some(text) => (text, "/"),
            None => (segment, ""),
        };
        cut.push_str(text.split(';').next().unwrap_or_default());
        cut.push_str(slash);
    }
    cut
}

fn drop_empty(path: &str) -> String {
    let mut kept = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !kept.ends_with('/') {
            kept.push(char);
        }
    }
    kept
}

#[cfg(test)]
mod tests;
