//! The recorded exchanges of the running framework, in `tests/fixtures/wire`.

use std::path::{Path, PathBuf};

/// Folder of the recordings.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire")
}

/// The response bytes recorded in `file` (without `.txt`) under the heading `== <exchange>  [...]`.
///
/// # Panics
///
/// When there is no such recording.
pub fn response(file: &str, exchange: &str) -> Vec<u8> {
    let path = folder().join(format!("{file}.txt"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let heading = format!("== {exchange}  [");
    let section = text
        .split("\n== ")
        .find(|section| format!("== {section}").starts_with(&heading))
        .unwrap_or_else(|| panic!("{} records no {exchange:?}", path.display()));
    let (_, response) = section.split_once("\n<<<\n").unwrap();
    as_sent(response)
}

/// Restores what the recording's text form changed: line ends of the head, and the blank line behind the body.
fn as_sent(recorded: &str) -> Vec<u8> {
    let recorded = recorded.replace("\r\n", "\n");
    let (head, body) = recorded.split_once("\n\n").unwrap();
    let mut bytes = head.replace('\n', "\r\n").into_bytes();
    bytes.extend_from_slice(b"\r\n\r\n");
    if head.contains("Transfer-Encoding: chunked") {
        // Bodies are JSON of one line each.
        let chunks = body.trim_end().replace('\n', "\r\n");
        bytes.extend_from_slice(format!("{chunks}\r\n\r\n").as_bytes());
        return bytes;
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, length)| length.parse().unwrap());
    bytes.extend_from_slice(&body.as_bytes()[..length]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Message;

    #[test]
    fn recording_is_one_complete_response() {
        let bytes = response("auth-broker", "wrong key");
        let messages = Message::all(&bytes).unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].status(), 403);
        assert!(
            messages[0]
                .body
                .starts_with(br#"{"error":"invalid_api_key""#)
        );
    }

    #[test]
    fn chunks_are_restored() {
        let bytes = response("health-providers", "gateway providers");
        let messages = Message::all(&bytes).unwrap();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].body.starts_with(br#"{"api_key":{"#));
        assert!(messages[0].body.ends_with(b"}}}"));
    }
}
