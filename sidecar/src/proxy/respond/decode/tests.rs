use std::io::Write;
use std::sync::Arc;

use http::HeaderValue;
use proptest::prelude::*;
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::coding::Kind;
use super::*;
use crate::proxy::scrub::Scrubber;

const SECRET: &str = "s3cr+t/\"Token\" of the test";
const KINDS: [Kind; 4] = [Kind::Gzip, Kind::Deflate, Kind::Brotli, Kind::Zstd];

/// What an encoder writes for each of `parts`, which it flushes after every one and ends after the last.
fn encode(kind: Kind, parts: &[&[u8]]) -> Vec<Vec<u8>> {
    match kind {
        Kind::Gzip => {
            let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            written(
                encoder,
                parts,
                |encoder| encoder.get_mut(),
                |encoder| {
                    encoder.try_finish().unwrap();
                },
            )
        }
        Kind::Deflate => {
            let encoder =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            written(
                encoder,
                parts,
                |encoder| encoder.get_mut(),
                |encoder| {
                    encoder.try_finish().unwrap();
                },
            )
        }
        Kind::Brotli => brotli(parts, 22),
        Kind::Zstd => zstd(parts, 21),
    }
}

fn written<E: Write>(
    mut encoder: E,
    parts: &[&[u8]],
    out: impl Fn(&mut E) -> &mut Vec<u8>,
    finish: impl Fn(&mut E),
) -> Vec<Vec<u8>> {
    let mut pieces: Vec<_> = parts
        .iter()
        .map(|part| {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
            std::mem::take(out(&mut encoder))
        })
        .collect();
    finish(&mut encoder);
    pieces.push(std::mem::take(out(&mut encoder)));
    pieces
}

fn brotli(parts: &[&[u8]], window: u32) -> Vec<Vec<u8>> {
    let encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, window);
    let mut pieces = Vec::new();
    let mut encoder = Some(encoder);
    for part in parts {
        let encoder = encoder.as_mut().unwrap();
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
        pieces.push(std::mem::take(encoder.get_mut()));
    }
    pieces.push(encoder.take().unwrap().into_inner());
    pieces
}

fn zstd(parts: &[&[u8]], window: u32) -> Vec<Vec<u8>> {
    let mut context = CCtx::create();
    context
        .set_parameter(CParameter::WindowLog(window))
        .unwrap();
    context
        .set_parameter(CParameter::ChecksumFlag(true))
        .unwrap();
    let mut step = |part: &[u8], end| {
        let mut piece = Vec::new();
        let mut input = InBuffer::around(part);
        loop {
            let mut buffer = vec![0; 1 << 16];
            let mut output = OutBuffer::around(&mut buffer[..]);
            let left = context
                .compress_stream2(&mut output, &mut input, end)
                .unwrap();
            let written = output.pos();
            piece.extend_from_slice(&buffer[..written]);
            if left == 0 {
                return piece;
            }
        }
    };
    let mut pieces: Vec<_> = parts
        .iter()
        .map(|part| step(part, ZSTD_EndDirective::ZSTD_e_flush))
        .collect();
    pieces.push(step(b"", ZSTD_EndDirective::ZSTD_e_end));
    pieces
}

fn scan_of(kinds: &[Kind]) -> DecodedScan {
    let scrubber = Scrubber::new([SECRET.as_bytes()], []).unwrap();
    let codings = Codings(kinds.to_vec());
    DecodedScan::new(&codings, ScrubStream::new(Arc::new(scrubber))).unwrap()
}

/// What goes on after each piece and at the end, up to the error.
fn passed(kinds: &[Kind], pieces: &[impl AsRef<[u8]>]) -> (Vec<Bytes>, Result<(), DecodeError>) {
    let mut scan = scan_of(kinds);
    let mut out = Vec::new();
    for piece in pieces {
        match scan.push(Bytes::copy_from_slice(piece.as_ref())) {
            Ok(passed) => out.push(passed),
            Err(error) => return (out, Err(error)),
        }
    }
    match scan.finish() {
        Ok(rest) => out.push(rest),
        Err(error) => return (out, Err(error)),
    }
    (out, Ok(()))
}

fn encoding(lines: &[&'static str]) -> Encoding {
    let headers = lines
        .iter()
        .map(|line| (CONTENT_ENCODING, HeaderValue::from_static(line)))
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
    Encoding::of(&headers)
}

#[test]
fn the_field_lists_codings_in_the_order_they_were_applied() {
    for none in [&[][..], &[""], &["identity"], &["Identity, ", ","]] {
        assert!(matches!(encoding(none), Encoding::Identity), "{none:?}");
    }
    for (lines, kinds) in [
        (&["gzip"][..], &[Kind::Gzip][..]),
        (&["X-GZIP"], &[Kind::Gzip]),
        (&["deflate, br"], &[Kind::Brotli, Kind::Deflate]),
        (&["identity,zstd", "gzip"], &[Kind::Gzip, Kind::Zstd]),
    ] {
        let Encoding::Known(codings) = encoding(lines) else {
            panic!("{lines:?}");
        };
        assert_eq!(codings.0, kinds);
    }
    for unknown in [&["compress"][..], &["gzip, dcb"], &["gzip", "aws-chunked"]] {
        assert!(
            matches!(encoding(unknown), Encoding::Unknown),
            "{unknown:?}"
        );
    }
}

#[test]
fn more_codings_than_anybody_applies_are_refused() {
    let scrubber = Arc::new(Scrubber::new([SECRET.as_bytes()], []).unwrap());
    let new = |count| {
        let codings = Codings(vec![Kind::Gzip; count]);
        DecodedScan::new(&codings, ScrubStream::new(Arc::clone(&scrubber))).err()
    };
    assert_eq!(new(MAX_CODINGS), None);
    assert_eq!(new(MAX_CODINGS + 1), Some(DecodeError::Nested));
}

#[test]
fn each_flushed_event_goes_on_at_once_and_as_it_came() {
    let events: Vec<String> = (0..50)
        .map(|n| format!("data: {{\"n\":{n}}}\n\n"))
        .collect();
    let events: Vec<&[u8]> = events.iter().map(String::as_bytes).collect();
    for kind in KINDS {
        let pieces = encode(kind, &events);
        let (out, result) = passed(&[kind], &pieces);
        assert_eq!(result, Ok(()), "{kind:?}");
        assert_eq!(out[..pieces.len()], pieces, "{kind:?}");
    }
}

#[test]
fn an_event_that_ends_with_the_first_bytes_of_a_credential_is_not_delayed() {
    for kind in KINDS {
        let pieces = encode(kind, &[b"data: s3c", b"an event\n\n"]);
        let (out, result) = passed(&[kind], &pieces);
        assert_eq!(result, Ok(()));
        assert_eq!(out[..pieces.len()], pieces, "{kind:?}");
    }
}

#[test]
fn the_pieces_that_a_credential_begins_and_ends_in_do_not_go_on() {
    for kind in KINDS {
        let (first, second) = SECRET.split_at(SECRET.len() / 2);
        let middle = format!("and then {first}");
        let pieces = encode(
            kind,
            &[b"before", middle.as_bytes(), second.as_bytes(), b"after"],
        );
        let (out, result) = passed(&[kind], &pieces);
        assert_eq!(result, Err(DecodeError::Credential), "{kind:?}");
        assert_eq!(out, [&pieces[0][..], b""], "{kind:?}");
    }
}

#[test]
fn the_beginning_of_a_credential_that_does_not_go_on_is_held_and_then_passed() {
    for kind in KINDS {
        let start = &SECRET.as_bytes()[..12];
        let pieces = encode(kind, &[start, start, b" nothing"]);
        let (out, result) = passed(&[kind], &pieces);
        assert_eq!(result, Ok(()));
        assert!(out[0].is_empty() && out[1].is_empty());
        assert_eq!(out.concat(), pieces.concat(), "{kind:?}");
    }
}

#[test]
fn several_codings_are_taken_off_in_turn() {
    for outer in KINDS {
        for inner in KINDS {
            for (text, expected) in [
                ("nothing to see", Ok(())),
                (SECRET, Err(DecodeError::Credential)),
            ] {
                let once = encode(inner, &[text.as_bytes()]).concat();
                let twice = encode(outer, &[&once]).concat();
                assert_eq!(
                    passed(&[outer, inner], &[twice]).1,
                    expected,
                    "{outer:?} {inner:?}"
                );
            }
        }
    }
}

#[test]
fn bare_deflate_is_told_from_zlib() {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder
        .write_all(format!("before {SECRET}").as_bytes())
        .unwrap();
    let bare = encoder.finish().unwrap();
    for size in [1, 2, bare.len()] {
        let pieces: Vec<_> = bare.chunks(size).collect();
        let result = passed(&[Kind::Deflate], &pieces).1;
        assert_eq!(result, Err(DecodeError::Credential), "{size}");
    }
}

#[test]
fn every_member_and_every_frame_counts() {
    for kind in [Kind::Gzip, Kind::Zstd] {
        let first = encode(kind, &[b"clean"]).concat();
        let second = encode(kind, &[SECRET.as_bytes()]).concat();
        assert_eq!(
            passed(&[kind], &[[&first[..], &first].concat()]).1,
            Ok(()),
            "{kind:?}"
        );
        assert_eq!(
            passed(&[kind], &[[first, second].concat()]).1,
            Err(DecodeError::Credential),
            "{kind:?}"
        );
    }
}

#[test]
fn what_follows_the_end_is_not_passed_unseen() {
    for kind in KINDS {
        let whole = encode(kind, &[b"clean"]).concat();
        for pieces in [
            vec![[&whole[..], SECRET.as_bytes()].concat()],
            vec![whole.clone(), SECRET.into()],
        ] {
            assert_eq!(
                passed(&[kind], &pieces).1,
                Err(DecodeError::Malformed),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn what_is_not_what_the_field_says_does_not_go_on() {
    for kind in KINDS {
        let mut scan = scan_of(&[kind]);
        let result = scan.push(Bytes::from_static(b"<html>plain text all along</html>"));
        assert_eq!(result, Err(DecodeError::Malformed), "{kind:?}");
    }
}

#[test]
fn a_body_that_ends_early_goes_on_as_far_as_it_was_decoded() {
    let text: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
    for kind in KINDS {
        let whole = encode(kind, &[&text]).concat();
        let half = &whole[..whole.len() / 2];
        let (out, result) = passed(&[kind], &[half]);
        if kind == Kind::Zstd {
            // What there is of the last block cannot be looked at.
            assert_eq!(result, Err(DecodeError::Malformed));
            assert!(out.concat().is_empty());
        } else {
            assert_eq!((out.concat(), result), (half.to_vec(), Ok(())), "{kind:?}");
        }
    }
}

#[test]
fn a_body_that_expands_too_far_is_cut_and_a_small_one_may() {
    for kind in KINDS {
        let small = vec![b' '; 1 << 20];
        assert_eq!(
            passed(&[kind], &[encode(kind, &[&small]).concat()]).1,
            Ok(()),
            "{kind:?}"
        );
        let bomb = vec![b' '; 8 << 20];
        let bomb = encode(kind, &[&bomb]).concat();
        assert_eq!(
            passed(&[kind], &[&bomb]).1,
            Err(DecodeError::Expansion),
            "{kind:?}"
        );
        // The inner one is a bomb too, though the outer one looks harmless.
        let wrapped = encode(Kind::Gzip, &[&bomb]).concat();
        let result = passed(&[Kind::Gzip, kind], &[wrapped]).1;
        assert_eq!(result, Err(DecodeError::Expansion), "{kind:?}");
    }
}

#[test]
fn a_window_over_eight_mebibytes_is_refused() {
    let text = b"x".repeat(100);
    for (kind, fits, exceeds) in [
        (Kind::Brotli, brotli(&[&text], 23), brotli(&[&text], 24)),
        (Kind::Zstd, zstd(&[&text], 23), zstd(&[&text], 24)),
    ] {
        assert_eq!(passed(&[kind], &fits).1, Ok(()), "{kind:?}");
        assert_eq!(
            passed(&[kind], &exceeds).1,
            Err(DecodeError::Window),
            "{kind:?}"
        );
    }
}

#[test]
fn data_that_decodes_to_nothing_is_not_held_without_end() {
    // Empty stored blocks (RFC 1951 section 3.2.4) after the beginning of a credential.
    let mut scan = scan_of(&[Kind::Deflate]);
    let start = &encode(Kind::Deflate, &[&SECRET.as_bytes()[..12]])[0];
    assert!(scan.push(Bytes::copy_from_slice(start)).unwrap().is_empty());
    let nothing = Bytes::from([0, 0, 0, 0xff, 0xff].repeat(10_000));
    let mut pushed = start.len();
    let error = loop {
        match scan.push(nothing.clone()) {
            Ok(passed) => assert!(passed.is_empty()),
            Err(error) => break error,
        }
        pushed += nothing.len();
        assert!(pushed <= MAX_HELD);
    };
    assert_eq!(error, DecodeError::Stalled);
}

#[test]
fn debug_output_of_a_coding_shows_nothing_of_what_it_decodes() {
    for kind in KINDS {
        let mut coding = Coding::new(kind).unwrap();
        let encoded = encode(kind, &[SECRET.as_bytes()]).concat();
        coding.decode(&encoded, &mut |_| Ok(())).unwrap();
        let shown = format!("{coding:?}");
        assert!(shown.len() < 10, "{shown}");
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(&KINDS[..])
}

fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut from = 0;
    ends.iter()
        .map(|&end| &bytes[std::mem::replace(&mut from, end)..end])
        .collect()
}

/// Parts of a body, flushed one by one: noise, and beginnings of the credential up to all of it.
fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let part = prop_oneof![
        "[ -~]{0,40}".prop_map(String::into_bytes),
        (0..SECRET.len() + 1).prop_map(|length| SECRET.as_bytes()[..length].to_vec()),
        proptest::collection::vec(any::<u8>(), 0..2000),
    ];
    proptest::collection::vec(part, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn however_it_is_split_a_body_passes_whole_or_without_its_credential(
        kind in kinds(),
        parts in parts(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let scrubber = Scrubber::new([SECRET.as_bytes()], []).unwrap();
        let encoded = encode(kind, &parts).concat();
        let leaks = scrubber.contains(&parts.concat());
        let bytewise = encoded.chunks(1).collect();
        for pieces in [cut(&encoded, &cuts), bytewise] {
        let (out, result) = passed(&[kind], &pieces);
        if leaks {
            prop_assert_eq!(result, Err(DecodeError::Credential));
            // Nothing of it has gone out but what a chunk of a plain body may end with.
            let mut seen = Vec::new();
            let mut coding = Coding::new(kind).unwrap();
            coding.decode(&out.concat(), &mut |piece| {
                seen.extend_from_slice(piece);
                Ok(())
            }).unwrap();
            let before = parts.concat();
            let first = before.windows(SECRET.len()).position(|text| text == SECRET.as_bytes());
            prop_assert!(first.is_none_or(|first| seen.len() <= first + 3));
        } else {
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(out.concat(), &encoded[..]);
        }
        }
    }
}
