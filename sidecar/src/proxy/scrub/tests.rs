use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::HeaderValue;
use proptest::prelude::*;

use super::{MASK, ScrubStream, Scrubber, is_textual};

const SECRET: &[u8] = b"s3cr+t/\"Token\" <v1>&~";

fn scrubber(secrets: &[&[u8]]) -> Arc<Scrubber> {
    Arc::new(Scrubber::new(secrets.iter().copied(), []).unwrap())
}

fn stream(scrubber: &Arc<Scrubber>, chunks: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut stream = ScrubStream::new(scrubber.clone());
    let mut out: Vec<_> = chunks
        .iter()
        .map(|chunk| {
            let (held, fresh) = stream.push(Bytes::copy_from_slice(chunk));
            [held, fresh].concat()
        })
        .collect();
    out.push(stream.finish().to_vec());
    out
}

fn whole(scrubber: &Arc<Scrubber>, text: &[u8]) -> Vec<u8> {
    stream(scrubber, &[text]).concat()
}

fn base64_at(secret: &[u8], before: usize) -> String {
    let mut text = vec![b'x'; before];
    text.extend(secret);
    text.extend(b"yyy");
    STANDARD.encode(text)
}

#[test]
fn secrets_under_eight_bytes_are_skipped_and_nothing_left_means_no_scrubber() {
    assert!(Scrubber::new([&b"1234567"[..]], [&b"a:b"[..]]).is_none());
    assert!(Scrubber::new([], []).is_none());
    let some = Scrubber::new([&b"1234567"[..], b"12345678"], []).unwrap();
    assert!(!some.contains(b"1234567"));
    assert!(some.contains(b"12345678"));
}

#[test]
fn each_spelling_an_encoder_gives_a_secret_is_found() {
    let text = std::str::from_utf8(SECRET).unwrap();
    let form: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("k", text)
        .finish();
    let percent =
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let spellings = [
        text.to_owned(),
        form,
        percent.replace("%7E", "~"),
        percent.replace("%7E", "~").replace("%2F", "/"),
        r#"s3cr+t/\"Token\" <v1>&~"#.to_owned(),
        r#"s3cr+t\/\"Token\" <v1>&~"#.to_owned(),
        r#"s3cr+t/\"Token\" \u003cv1\u003e\u0026~"#.to_owned(),
        r"s3cr\u002Bt/\u0022Token\u0022 \u003Cv1\u003E\u0026~".to_owned(),
        serde_json::to_string(text).unwrap(),
        base64_at(SECRET, 0),
        base64_at(SECRET, 1),
        base64_at(SECRET, 2),
        base64_at(SECRET, 3),
        base64_at(SECRET, 4).replace('/', "\\/"),
        base64_at(SECRET, 5).replace('/', "%2F").replace('+', "%2B"),
        URL_SAFE_NO_PAD.encode(SECRET),
    ];
    let scrubber = scrubber(&[SECRET]);
    for spelling in spellings {
        let body = format!(r#"{{"a": "{spelling}", "b": 1}}"#);
        assert!(scrubber.contains(body.as_bytes()), "{spelling}");
        let masked = whole(&scrubber, body.as_bytes());
        assert_eq!(masked.len(), body.len());
        assert!(!scrubber.contains(&masked), "{spelling}");
        assert!(masked.ends_with(b"\", \"b\": 1}"), "{spelling}");
    }
}

#[test]
fn lower_case_percent_escapes_and_non_ascii_json_escapes_are_found() {
    let scrubber = scrubber(&["pässwörd/🔑".as_bytes()]);
    for spelling in [
        "p%c3%a4ssw%c3%b6rd%2f%f0%9f%94%91",
        r"p\u00e4ssw\u00f6rd/\ud83d\udd11",
        r"p\u00E4ssw\u00F6rd\/\uD83D\uDD11",
    ] {
        assert!(scrubber.contains(spelling.as_bytes()), "{spelling}");
    }
}

#[test]
fn the_base64_of_a_basic_pair_is_masked() {
    let pair = b"someone:pw";
    let scrubber = Scrubber::new([], [&pair[..]]).unwrap();
    let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).unwrap();
    assert_eq!(scrubber.header(&value).unwrap(), "Basic **************==");
}

#[test]
fn a_header_is_masked_in_place_and_stays_sensitive() {
    let scrubber = scrubber(&[b"0123456789"]);
    let mut value = HeaderValue::from_static("Bearer 0123456789; again=0123456789");
    value.set_sensitive(true);
    let masked = scrubber.header(&value).unwrap();
    assert_eq!(masked, "Bearer **********; again=**********");
    assert!(masked.is_sensitive());
    assert!(
        scrubber
            .header(&HeaderValue::from_static("Bearer 012345678"))
            .is_none()
    );
}

#[test]
fn debug_output_names_no_secret_and_no_fragment_of_one() {
    let scrubber = scrubber(&[b"0123456789abcdefghij"]);
    let mut stream = ScrubStream::new(scrubber.clone());
    let _ = stream.push(Bytes::from_static(b"0123456789"));
    let debug = format!("{scrubber:?} {stream:?}");
    for piece in ["012", "0123456789", "456789ab", "48, 49"] {
        assert!(!debug.contains(piece), "{debug}");
    }
}

#[test]
fn clean_chunks_go_on_uncopied() {
    let mut stream = ScrubStream::new(scrubber(&[SECRET]));
    for text in ["data: {\"a\": 1}\n\n", "s3c and more\n", "x"] {
        let chunk = Bytes::copy_from_slice(text.repeat(100).as_bytes());
        let (held, fresh) = stream.push(chunk.clone());
        assert!(held.is_empty());
        assert_eq!(fresh, chunk);
        assert_eq!(fresh.as_ptr(), chunk.as_ptr());
    }
    assert_eq!(stream.hits(), 0);
}

#[test]
fn an_event_that_ends_with_the_first_byte_of_a_secret_is_not_held_back() {
    let scrubber = scrubber(&[b"\nsecret-value"]);
    let out = stream(&scrubber, &[b"data: 1\n\n", b"data: 2\n\n"]);
    assert_eq!(out, [&b"data: 1\n\n"[..], b"data: 2\n\n", b""]);
}

#[test]
fn four_bytes_of_a_secret_are_held_back_until_it_is_clear_what_follows() {
    let scrubber = scrubber(&[b"secret-value"]);
    let out = stream(
        &scrubber,
        &[b"a secr", b"et", b"-value b", b" secr", b"ecy"],
    );
    assert_eq!(
        out,
        [&b"a "[..], b"", b"************ b", b" ", b"secrecy", b""]
    );
}

#[test]
fn what_follows_the_first_three_bytes_of_a_secret_is_masked() {
    let scrubber = scrubber(&[b"secret-value"]);
    let out = stream(&scrubber, &[b"a sec", b"r", b"et-value b"]);
    assert_eq!(out, [&b"a sec"[..], b"", b"********* b", b""]);
    let bytewise: Vec<_> = b"secret-value".chunks(1).collect();
    assert_eq!(stream(&scrubber, &bytewise).concat(), b"sec*********");
}

#[test]
fn an_unfinished_secret_goes_out_at_the_end() {
    let scrubber = scrubber(&[b"secret-value"]);
    assert_eq!(whole(&scrubber, b"a secret-valu"), b"a secret-valu");
}

#[test]
fn overlapping_secrets_are_masked_as_one_and_only_the_open_part_waits() {
    let scrubber = scrubber(&[b"abcdefgh", b"efghijkl", b"fghi1234"]);
    let out = stream(&scrubber, &[b"<abcdefgh", b"ijkl>"]);
    assert_eq!(out, [&b"<********"[..], b"****>", b""]);
    let out = stream(&scrubber, &[b"<abcdefgh", b"ij>"]);
    assert_eq!(out, [&b"<********"[..], b"ij>", b""]);
}

#[test]
fn a_secret_inside_the_beginning_of_another_is_masked_even_if_the_other_never_ends() {
    let scrubber = scrubber(&[b"01234567", b"xxxx01234567yyyy"]);
    let out = stream(&scrubber, &[b"xxxx01234567yy", b"!", b"xxxx01234567"]);
    assert_eq!(out.concat(), b"xxxx********yy!xxxx********");
}

#[test]
fn hits_count_masked_runs_once_however_they_arrive() {
    let scrubber = scrubber(&[b"secret-value"]);
    let mut stream = ScrubStream::new(scrubber);
    for chunk in ["secret-value and se", "cret-va", "lue and secr", "etly"] {
        let _ = stream.push(Bytes::from_static(chunk.as_bytes()));
    }
    let _ = stream.finish();
    assert_eq!(stream.hits(), 2);
}

#[test]
fn textual_types_are_told_from_binary_ones() {
    let textual = |text| is_textual(Some(&HeaderValue::from_static(text)));
    for text in [
        "text/event-stream",
        "Text/HTML; charset=utf-8",
        "application/json",
        "image/svg+xml",
        "application/problem+JSON; charset=utf-8",
        "application/x-amz-json-1.1",
        "nonsense",
        "application/x-www-form-urlencoded",
        "application/graphql-response+json",
        "multipart/mixed; boundary=b",
        "application/vnd.github.v3.raw; charset=utf-8",
        "",
    ] {
        assert!(textual(text), "{text}");
    }
    for binary in [
        "application/octet-stream",
        "image/png",
        "application/grpc+proto",
        "application/zip",
        "application/vnd.amazon.eventstream",
        "video/mp4; codecs=\"avc1\"",
    ] {
        assert!(!textual(binary), "{binary}");
    }
    assert!(is_textual(None));
    assert!(is_textual(Some(
        &HeaderValue::from_bytes(b"application/\xff").unwrap()
    )));
}

/// The rule, without cleverness: every byte of every occurrence of every form.
fn covering(scrubber: &Scrubber, text: &[u8]) -> Vec<Vec<usize>> {
    let mut starts = vec![Vec::new(); text.len()];
    for candidate in &scrubber.forms {
        for at in 0..text.len() {
            if text[at..].starts_with(&candidate.form) {
                starts[at..at + candidate.form.len()]
                    .iter_mut()
                    .for_each(|of| of.push(at));
            }
        }
    }
    starts
}

fn split(text: &[u8], cuts: &[prop::sample::Index]) -> Vec<usize> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    ends.push(text.len());
    ends.sort_unstable();
    ends
}

fn chunks<'a>(text: &'a [u8], ends: &[usize]) -> Vec<&'a [u8]> {
    let mut from = 0;
    ends.iter()
        .map(|&end| &text[std::mem::replace(&mut from, end)..end])
        .collect()
}

/// Secrets over a small alphabet, so that they overlap, repeat and begin alike.
fn secrets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let secret = prop_oneof![
        proptest::collection::vec(prop::sample::select(&b"ab/+\""[..]), 8..20),
        proptest::collection::vec(any::<u8>(), 8..40),
        proptest::collection::vec(prop::sample::select(&b"ab"[..]), 8..10),
    ];
    proptest::collection::vec(secret, 1..4)
}

/// A body made of forms, beginnings of forms and other bytes.
fn body(
    scrubber: &Scrubber,
    parts: &[(prop::sample::Index, prop::sample::Index, bool)],
) -> Vec<u8> {
    let mut body = Vec::new();
    for (which, length, noise) in parts {
        let form = &scrubber.forms[which.index(scrubber.forms.len())].form;
        let length = length.index(2 * form.len()).min(form.len());
        body.extend(&form[..length]);
        if *noise {
            body.extend(b"ab .");
        }
    }
    body
}

fn parts() -> impl Strategy<Value = Vec<(prop::sample::Index, prop::sample::Index, bool)>> {
    proptest::collection::vec(
        any::<(prop::sample::Index, prop::sample::Index, bool)>(),
        0..8,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn in_one_piece_exactly_the_bytes_of_forms_are_masked(secrets in secrets(), parts in parts()) {
        let scrubber = Arc::new(Scrubber::new(secrets.iter().map(Vec::as_slice), []).unwrap());
        let text = body(&scrubber, &parts);
        let expected: Vec<u8> = covering(&scrubber, &text)
            .iter()
            .zip(&text)
            .map(|(starts, &byte)| if starts.is_empty() { byte } else { b'*' })
            .collect();
        prop_assert_eq!(whole(&scrubber, &text), expected);
    }

    #[test]
    fn a_split_changes_nothing_but_up_to_three_bytes_before_a_cut_in_the_beginning_of_a_form(
        secrets in secrets(),
        parts in parts(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let scrubber = Arc::new(Scrubber::new(secrets.iter().map(Vec::as_slice), []).unwrap());
        let text = body(&scrubber, &parts);
        let ends = split(&text, &cuts);
        let out = stream(&scrubber, &chunks(&text, &ends)).concat();
        prop_assert_eq!(out.len(), text.len());
        let one = whole(&scrubber, &text);
        for (at, starts) in covering(&scrubber, &text).iter().enumerate() {
            let cut = |start: usize| ends.iter().any(|&end| at < end && end <= start + 3);
            if starts.is_empty() || !starts.iter().all(|&start| cut(start)) {
                prop_assert_eq!(out[at], one[at], "at {}", at);
            } else {
                prop_assert!(out[at] == text[at] || out[at] == b'*', "at {}", at);
            }
        }
    }

    #[test]
    fn what_is_held_back_is_the_beginning_of_a_form_of_four_bytes_or_more(
        secrets in secrets(),
        parts in parts(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let scrubber = Arc::new(Scrubber::new(secrets.iter().map(Vec::as_slice), []).unwrap());
        let text = body(&scrubber, &parts);
        let ends = split(&text, &cuts);
        let mut stream = ScrubStream::new(scrubber.clone());
        let mut sent = 0;
        for (chunk, end) in chunks(&text, &ends).into_iter().zip(ends) {
            let (held, fresh) = stream.push(Bytes::copy_from_slice(chunk));
            sent += held.len() + fresh.len();
            let open = (sent.saturating_sub(scrubber.longest)..=sent)
                .any(|from| end - from >= 4 && scrubber.opens(&text[from..end]));
            prop_assert!(sent == end || open);
        }
    }

    #[test]
    fn a_form_of_a_secret_never_survives_in_one_piece(
        secret in proptest::collection::vec(any::<u8>(), 8..80),
        before in proptest::collection::vec(any::<u8>(), 0..40),
        after in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let scrubber = scrubber(&[&secret]);
        let encoded = STANDARD.encode([&before[..], &secret, &after].concat());
        for text in [&[&before[..], &secret, &after].concat()[..], encoded.as_bytes()] {
            prop_assert!(scrubber.contains(text));
            let out = whole(&scrubber, text);
            prop_assert_eq!(out.len(), text.len());
            prop_assert!(!scrubber.contains(&out));
        }
    }

    /// Masks would spell what a secret of asterisks ends with.
    #[test]
    fn however_it_is_split_no_form_of_a_secret_survives(
        secrets in secrets(),
        parts in parts(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        prop_assume!(!secrets.concat().contains(&MASK));
        let scrubber = Arc::new(Scrubber::new(secrets.iter().map(Vec::as_slice), []).unwrap());
        let text = body(&scrubber, &parts);
        let ends = split(&text, &cuts);
        let out = stream(&scrubber, &chunks(&text, &ends)).concat();
        prop_assert_eq!(out.len(), text.len());
        prop_assert!(!scrubber.contains(&out));
    }

    /// A credential that fits into a header has no line ends, and an event ends with two.
    #[test]
    fn an_event_is_never_held_back(
        secret in "[ -~]{8,60}",
        events in proptest::collection::vec(("[ -~]{0,30}", any::<prop::sample::Index>()), 1..6),
    ) {
        let scrubber = scrubber(&[secret.as_bytes()]);
        let mut stream = ScrubStream::new(Arc::clone(&scrubber));
        for (noise, of) in events {
            let open = &secret[..of.index(secret.len())];
            let event = format!("data: {noise}{open}\n\n");
            let (held, fresh) = stream.push(Bytes::from(event.clone()));
            prop_assert_eq!(held.len(), 0);
            prop_assert_eq!(fresh.len(), event.len());
            prop_assert_eq!(stream.held(), 0);
        }
    }

    #[test]
    fn whatever_ends_with_the_first_bytes_of_a_form_is_not_held_back(
        secrets in secrets(),
        which in any::<prop::sample::Index>(),
        length in 1..4_usize,
    ) {
        let scrubber = Arc::new(Scrubber::new(secrets.iter().map(Vec::as_slice), []).unwrap());
        let form = &scrubber.forms[which.index(scrubber.forms.len())].form;
        let event = [b"data: ", &form[..length]].concat();
        // Unless more than its last bytes begins a form by chance.
        prop_assume!(!(0..event.len() - 3).any(|at| scrubber.opens(&event[at..])));
        let mut stream = ScrubStream::new(Arc::clone(&scrubber));
        let (_, fresh) = stream.push(Bytes::from(event.clone()));
        prop_assert_eq!(fresh, event);
    }

    #[test]
    fn bytes_without_a_secret_pass_unchanged(
        text in "[ -~]{0,400}",
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let scrubber = scrubber(&[b"\x01 never in printable text"]);
        let ends = split(text.as_bytes(), &cuts);
        prop_assert_eq!(stream(&scrubber, &chunks(text.as_bytes(), &ends)).concat(), text.as_bytes());
    }
}

#[test]
fn a_stream_holds_bytes_exactly_when_its_end_would_return_some() {
    let scrubber = scrubber(&[b"ghp_0123456789"]);
    for (text, held) in [
        (&b"hello ghp_012"[..], true),
        (b"hello ghp", false),
        (b"hello ghp_0123456789", false),
        (b"hello", false),
        (b"", false),
    ] {
        let mut stream = ScrubStream::new(Arc::clone(&scrubber));
        stream.push(Bytes::from_static(text));
        assert_eq!(stream.holds_bytes(), held, "{text:?}");
        assert_eq!(!stream.finish().is_empty(), held, "{text:?}");
        assert!(!stream.holds_bytes());
    }
}
