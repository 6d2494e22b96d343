//! Bodies that hold spellings of secrets, in pieces, as the scrubber masks them.
//!
//! The input is secrets with 0xFC between them, 0xFD, and a body. In the body 0xFF is the end of a piece, and 0xFE takes
//! the next byte for a spelling of a secret, of which that byte tells how much is there.

#![no_main]

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use nexus_sidecar::proxy::scrub::{MIN_SECRET, ScrubStream, Scrubber};

const NEXT_SECRET: u8 = 0xFC;
const BODY: u8 = 0xFD;
const SPELLING: u8 = 0xFE;
const CUT: u8 = 0xFF;
const MASK: u8 = b'*';
/// Up to so many bytes of a form stay visible if a piece ends right after them.
const VISIBLE: usize = 3;
const MAX_SECRETS: usize = 3;
const MAX_BODY: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let (secrets, body) = match data.iter().position(|byte| *byte == BODY) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => return,
    };
    // One that looks like a mask would be found in every mask.
    let secrets: Vec<&[u8]> = secrets
        .split(|byte| *byte == NEXT_SECRET)
        .filter(|secret| secret.len() >= MIN_SECRET && !secret.contains(&MASK))
        .take(MAX_SECRETS)
        .collect();
    let Some(scrubber) = Scrubber::new(secrets.iter().copied(), []).map(Arc::new) else {
        assert!(secrets.is_empty(), "a secret is not looked for");
        return;
    };
    let spellings: Vec<Vec<u8>> = secrets
        .iter()
        .flat_map(|secret| spellings(secret))
        .collect();
    let (text, cuts) = write(body, &spellings);
    judge(&scrubber, &spellings, &text, &cuts);
});

/// What common encoders make of a secret, by libraries that the scrubber does not use for it.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut spellings = vec![secret.to_vec()];
    spellings.push(
        url::form_urlencoded::byte_serialize(secret)
            .collect::<String>()
            .into_bytes(),
    );
    if let Ok(text) = std::str::from_utf8(secret) {
        let json = serde_json::to_vec(text).expect("a text");
        spellings.push(json[1..json.len() - 1].to_vec());
    }
    for before in 0..3 {
        // Only whole groups of three bytes and whole characters depend on the secret alone.
        let shifted = [&vec![b'x'; before], secret].concat();
        let first = (before * 8).div_ceil(6);
        let last = shifted.len() * 8 / 6;
        spellings.push(STANDARD.encode(&shifted).as_bytes()[first..last].to_vec());
        spellings.push(URL_SAFE_NO_PAD.encode(&shifted).as_bytes()[first..last].to_vec());
    }
    spellings
}

/// The body, and where its pieces end.
fn write(script: &[u8], spellings: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
    let (mut text, mut cuts) = (Vec::new(), Vec::new());
    let mut script = script.iter().copied();
    while let Some(byte) = script.next() {
        match byte {
            CUT => cuts.push(text.len()),
            SPELLING => {
                let chosen = usize::from(script.next().unwrap_or_default());
                let spelling = &spellings[chosen % spellings.len()];
                // Most of the time all of it.
                let missing = (chosen / spellings.len()).saturating_sub(2);
                text.extend(&spelling[..spelling.len().saturating_sub(missing)]);
            }
            other => text.push(other),
        }
        if text.len() > MAX_BODY {
            break;
        }
    }
    (text, cuts)
}

fn judge(scrubber: &Arc<Scrubber>, spellings: &[Vec<u8>], text: &[u8], cuts: &[usize]) {
    let (whole, hits) = stream(scrubber, text, &[]);
    assert_eq!(whole.len(), text.len(), "the length changes");
    assert!(changed_by_masks_only(text, &whole));
    assert!(!scrubber.contains(&whole), "a form is left");
    assert_eq!(
        scrubber.contains(text),
        whole != text,
        "found and not masked"
    );
    assert_eq!(hits > 0, whole != text);
    for spelling in spellings {
        assert!(find(&whole, spelling).is_none(), "a spelling is left");
        assert!(
            find(text, spelling).is_none() || whole != text,
            "a spelling was not seen"
        );
    }

    let (pieces, _) = stream(scrubber, text, cuts);
    assert_eq!(pieces.len(), text.len(), "the length changes");
    assert!(changed_by_masks_only(text, &pieces));
    let mut visible = 0;
    for at in 0..text.len() {
        if pieces[at] == whole[at] {
            visible = 0;
            continue;
        }
        visible += 1;
        let cut = cuts.iter().any(|cut| (at + 1..=at + VISIBLE).contains(cut));
        assert!(
            whole[at] == MASK && cut && visible <= VISIBLE,
            "the pieces matter at {at}"
        );
    }

    if let Ok(value) = HeaderValue::from_bytes(text) {
        let masked = scrubber.header(&value).unwrap_or(value);
        assert_eq!(masked.as_bytes(), whole, "headers are masked otherwise");
    }
}

/// The body in pieces, and how many runs were masked.
fn stream(scrubber: &Arc<Scrubber>, text: &[u8], cuts: &[usize]) -> (Vec<u8>, u64) {
    let mut stream = ScrubStream::new(Arc::clone(scrubber));
    let mut out = Vec::new();
    let mut from = 0;
    for end in cuts.iter().copied().chain([text.len()]) {
        let (held, fresh) = stream.push(Bytes::copy_from_slice(&text[from..end]));
        out.extend_from_slice(&held);
        out.extend_from_slice(&fresh);
        from = end;
        assert_eq!(stream.holds_bytes(), out.len() < end);
    }
    let rest = stream.finish();
    out.extend_from_slice(&rest);
    (out, stream.hits())
}

fn changed_by_masks_only(text: &[u8], out: &[u8]) -> bool {
    text.iter()
        .zip(out)
        .all(|(before, after)| before == after || *after == MASK)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
