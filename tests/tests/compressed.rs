//! Compressed answers, which nobody asked for or the route lets pass: as they came if they are clean, and never with a
//! credential inside.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::io::Write;

use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder, ZlibEncoder};
use http::HeaderMap;
use nexus_tests::answering::{Fixed, Scripted, TOKEN, answer, audited, next, rest};
use nexus_tests::broker::Answer;
use nexus_tests::wait;
use serde_json::json;
use tokio::process::Command;

const CODINGS: [&str; 4] = ["gzip", "deflate", "br", "zstd"];

fn gzip(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut pieces: Vec<_> = parts
        .iter()
        .map(|part| {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
            std::mem::take(encoder.get_mut())
        })
        .collect();
    pieces.push(encoder.finish().unwrap());
    pieces
}

fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => gzip(&[text]).concat(),
        "deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(text).unwrap();
            encoder.into_inner()
        }
        "zstd" => {
            let mut out = vec![0; zstd_safe::compress_bound(text.len())];
            let length = zstd_safe::compress(&mut out[..], text, 3).unwrap();
            out.truncate(length);
            out
        }
        other => panic!("no coding {other}"),
    }
}
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_compressed_answer_arrives_byte_for_byte() {
    let lines: Vec<_> = (0..5_000).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    let text = lines.concat();
    for scrub in ["Redact", "Block"] {
        for coding in CODINGS {
            let content = encoded(coding, text.as_bytes());
            let fields = format!(
                "Content-Type: application/json\r\nContent-Encoding: {coding}\r\nETag: \"1\"\r\n"
            );
            let fixed = Fixed::new(answer(&fields, &content), json!({"scrub": scrub})).await;
            let got = fixed.get().await;
            assert_eq!(got.status, 200, "{coding}: {}", got.text());
            assert!(got.body == content, "{coding}: changed on the way");
            assert_eq!(got.header("content-encoding"), coding);
            assert_eq!(got.header("content-length"), content.len().to_string());
            assert_eq!(got.header("etag"), "\"1\"");
            let asked = fixed.upstream.requests();
            assert_eq!(asked[0].header("accept-encoding"), Some("identity"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_with_a_credential_is_refused() {
    let text = format!("{{\"you\": \"Bearer {TOKEN}\"}}");
    for scrub in ["Redact", "Block"] {
        for codings in [
            &["gzip"][..],
            &["deflate"],
            &["br"],
            &["zstd"],
            &["br", "gzip"],
        ] {
            let content = codings
                .iter()
                .fold(text.clone().into_bytes(), |bytes, coding| {
                    encoded(coding, &bytes)
                });
            let fields = format!(
                "Content-Type: application/json\r\nContent-Encoding: {}\r\n",
                codings.join(", ")
            );
            let fixed = Fixed::new(answer(&fields, &content), json!({"scrub": scrub})).await;
            let got = fixed.get().await;
            assert_eq!(
                (got.status, got.error()),
                (502, "upstream_unreachable"),
                "{codings:?}"
            );
            assert!(got.text().contains("compressed body"), "{}", got.text());
            let line = audited(&fixed.sidecar).await;
            assert_eq!(
                (&line["type"], &line["scrubbed"]),
                (&json!("audit"), &json!(1))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_comes_later_cuts_a_compressed_answer_before_it() {
    let (first, second) = TOKEN.split_at(TOKEN.len() / 2);
    let begins = format!("data: {first}");
    let pieces = gzip(&[b"data: clean\n\n", begins.as_bytes(), second.as_bytes()]);
    let scripted = Scripted::new(json!({})).await;
    let response = scripted
        .begin("Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n")
        .await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    scripted.chunk(&pieces[0]);
    assert_eq!(
        next(&mut body).await,
        pieces[0],
        "a flushed event is not delayed"
    );
    scripted.chunk(&pieces[1]);
    scripted.chunk(&pieces[2]);
    scripted.end("");
    assert_eq!(rest(body).await, (Vec::new(), HeaderMap::new(), false));
    let line = audited(&scripted.sidecar).await;
    assert_eq!(line["error"], "upstream_unreachable");
    assert!(line["reason"].as_str().unwrap().contains("credential"));
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_takes_a_cut_answer_for_broken() {
    let content = format!("{}{TOKEN}", "clean ".repeat(50_000));
    // Stored, so that the credential comes long after the head.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(content.as_bytes()).unwrap();
    let content = encoder.finish().unwrap();
    let fields = "Content-Type: text/plain\r\nContent-Encoding: gzip\r\n";
    let fixed = Fixed::new(answer(fields, &content), json!({})).await;
    let url = format!("{}/via/p/x", fixed.sidecar.url());
    let mut curl = Command::new("curl");
    let done = curl
        .args([
            "--silent",
            "--compressed",
            "--noproxy",
            "*",
            "--max-time",
            "30",
            &url,
        ])
        .output();
    let done = wait::within("curl", done).await.unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(text.starts_with("clean clean"), "{text}");
    assert!(!text.contains(&TOKEN[..4]));
    // CURLE_PARTIAL_FILE, or CURLE_RECV_ERROR where the end of the connection is seen first.
    assert!(
        matches!(done.status.code(), Some(18 | 56)),
        "{:?}",
        done.status
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_events_arrive_one_by_one() {
    let events: Vec<String> = (0..20).map(|n| format!("data: {n}\n\n")).collect();
    let events: Vec<&[u8]> = events.iter().map(String::as_bytes).collect();
    let scripted = Scripted::new(json!({"compression": "Pass"})).await;
    let response = scripted
        .begin("Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n")
        .await;
    let mut body = response.into_body();
    for piece in gzip(&events) {
        // The next one is not sent before this one has arrived.
        scripted.chunk(&piece);
        assert_eq!(next(&mut body).await, piece);
    }
    scripted.end("");
    assert_eq!(rest(body).await, (Vec::new(), HeaderMap::new(), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_or_a_false_coding_is_refused() {
    let bomb = encoded("gzip", &vec![b' '; 8 << 20]);
    for (content, reason) in [
        (&bomb[..], "100 times"),
        (b"plain text", "not what its Content-Encoding says"),
    ] {
        let fields = "Content-Type: text/plain\r\nContent-Encoding: gzip\r\n";
        let fixed = Fixed::new(answer(fields, content), json!({})).await;
        let got = fixed.get().await;
        assert_eq!((got.status, got.error()), (502, "upstream_unreachable"));
        assert!(got.text().contains(reason), "{}", got.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_text_not_whole_or_not_known_passes() {
    let secret = encoded("gzip", TOKEN.as_bytes());
    for fields in [
        "Content-Type: image/png\r\nContent-Encoding: gzip\r\n",
        "Content-Type: text/plain\r\nContent-Encoding: compress\r\n",
        "Content-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Range: bytes 5-9/80\r\n",
    ] {
        let fixed = Fixed::new(answer(fields, &secret), json!({})).await;
        let got = fixed.get().await;
        assert_eq!(got.status, 200, "{fields}: {}", got.text());
        assert!(got.body == secret, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_passes_no_part_of_a_compressed_answer() {
    let part = &encoded("gzip", b"a part that nobody can look into")[5..20];
    let fields =
        "Content-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Range: bytes 5-19/80\r\n";
    for (scrub, status) in [("Redact", 200), ("Block", 502)] {
        let fixed = Fixed::new(answer(fields, part), json!({"scrub": scrub})).await;
        assert_eq!(fixed.get().await.status, status, "{scrub}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_compressed_content_stay() {
    let reply = |url: &str| {
        let content = format!("{{\"next\": \"{url}/v1/x\"}}");
        let fields = "Content-Type: application/json\r\nContent-Encoding: gzip\r\nETag: \"1\"\r\n";
        answer(fields, &encoded("gzip", content.as_bytes()))
    };
    let rules = json!({"rewriteLinks": "Body"});
    let fixed = Fixed::linked(reply, Answer::oauth2(TOKEN), rules).await;
    let got = fixed.get().await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.header("etag"), "\"1\"");
    let mut decoder = GzDecoder::new(Vec::new());
    decoder.write_all(&got.body).unwrap();
    let text = String::from_utf8(decoder.finish().unwrap()).unwrap();
    assert!(
        text.contains(&format!("\"{}/v1/x\"", fixed.upstream.url())),
        "{text}"
    );
}
