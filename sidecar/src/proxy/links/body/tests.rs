use proptest::prelude::*;

use super::*;

const SENT: Sent<'_> = Sent {
    tls: true,
    authority: "api.example.com",
    base_path: "/v1",
    path: "/v1/users/7",
    injected_query: &["api_key"],
};
const VIA: Addressing<'_> = Addressing::Prefix("/via/p@t");

fn chunked(sent: &Sent<'_>, addressing: Addressing<'_>, chunks: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut stream = LinkStream::new(sent, addressing);
    let mut out: Vec<_> = chunks
        .iter()
        .map(|chunk| stream.push(Bytes::copy_from_slice(chunk)).to_vec())
        .collect();
    out.push(stream.finish().to_vec());
    assert_eq!(stream.held(), 0);
    out
}

fn body(sent: &Sent<'_>, addressing: Addressing<'_>, text: &str) -> String {
    let out = chunked(sent, addressing, &[text.as_bytes()]).concat();
    String::from_utf8(out).unwrap()
}

#[test]
fn urls_below_the_base_path_become_the_callers_own_addressing() {
    let http = Addressing::Absolute { scheme: "http" };
    for (url, via, headers, absolute) in [
        (
            "https://api.example.com/v1/x",
            "/via/p@t/x",
            "/x",
            "http://api.example.com/v1/x",
        ),
        (
            "https://api.example.com/v1",
            "/via/p@t",
            "/",
            "http://api.example.com/v1",
        ),
        (
            "https://api.example.com:443/v1?a",
            "/via/p@t?a",
            "/?a",
            "http://api.example.com/v1?a",
        ),
        (
            "HTTPS://API.example.com/v1/x#f",
            "/via/p@t/x#f",
            "/x#f",
            "http://api.example.com/v1/x#f",
        ),
        (
            "https://api.example.com/v1/x?api_key=S&a=1",
            "/via/p@t/x?a=1",
            "/x?a=1",
            "http://api.example.com/v1/x?a=1",
        ),
        (
            "https://api.example.com/v1//evil.example/x",
            "/via/p@t//evil.example/x",
            "/.//evil.example/x",
            "http://api.example.com/v1//evil.example/x",
        ),
        (
            "https://api.example.com/v1/a/../b",
            "/via/p@t/b",
            "/b",
            "http://api.example.com/v1/b",
        ),
    ] {
        for (before, after) in [
            ("", ""),
            ("{\"next\": \"", "\"}"),
            ("<a href='", "'>more</a>"),
            ("[more](", ")."),
            ("See <", "> for more"),
            ("See ", "."),
            ("a,b=", " c"),
            ("\\n", "\\n"),
            ("url=", ";"),
        ] {
            let text = format!("{before}{url}{after}");
            for (addressing, link) in [(VIA, via), (Addressing::Headers, headers), (http, absolute)]
            {
                assert_eq!(
                    body(&SENT, addressing, &text),
                    format!("{before}{link}{after}"),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn everything_else_stays() {
    for text in [
        "",
        "no link, but a colon: and // slashes",
        "https://api.example.com",
        "https://api.example.com/v10/x",
        "https://api.example.com/v",
        "https://api.example.com/V1/x",
        "https://api.example.com/v2/x?api_key=1",
        "https://api.example.com.evil.example/v1/x",
        "https://user@api.example.com/v1/x",
        "https://api.example.com:8443/v1/x",
        "https://xapi.example.com/v1/x",
        "http://api.example.com/v1/x",
        "git+https://api.example.com/v1/x.git",
        "//api.example.com/v1/x",
        "/v1/x",
        "https%3A%2F%2Fapi.example.com%2Fv1%2Fx",
        "https://login.example/?next=https://api.example.com/v1/x",
        "https:\\/\\/login.example\\/?a=1\\u0026next=https:\\/\\/api.example.com\\/v1\\/x",
        "https://api.example.com/v1/../admin",
        "https://api.example.com/v1/..",
        "https://api.example.com/v1/..).",
        "https://api.example.com/v1/%2e%2E/via/other/delete",
        "https://",
        "https:/",
        "://api.example.com/v1/x",
    ] {
        for addressing in [
            VIA,
            Addressing::Headers,
            Addressing::Absolute { scheme: "http" },
        ] {
            assert_eq!(body(&SENT, addressing, text), text);
            let quoted = format!("\"{text}\" ");
            assert_eq!(body(&SENT, addressing, &quoted), quoted);
        }
    }
}

#[test]
fn what_was_escaped_is_escaped_again() {
    for (text, expected) in [
        (
            r#"{"next":"https:\/\/api.example.com\/v1\/x?a=1\u0026api_key=S\u0026b=\/"}"#,
            r#"{"next":"\/via\/p@t\/x?a=1\u0026b=\/"}"#,
        ),
        (
            r#"<a href="https://api.example.com/v1/x?api_key=S&amp;a=1&amp;b=2">"#,
            r#"<a href="/via/p@t/x?a=1&amp;b=2">"#,
        ),
        (
            r#""\u003chttps://api.example.com/v1/x?a=1\u0026b=2\u003e""#,
            r#""\u003c/via/p@t/x?a=1\u0026b=2\u003e""#,
        ),
        (
            r#""{\"u\":\"https:\/\/api.example.com\/v1\"}""#,
            r#""{\"u\":\"\/via\/p@t\"}""#,
        ),
        (
            "https://api.example.com/v1/repos{/owner}{?page}",
            "/via/p@t/repos{/owner}{?page}",
        ),
        (
            "https://api.example.com/v1/users('a b')/x",
            "/via/p@t/users('a b')/x",
        ),
    ] {
        assert_eq!(body(&SENT, VIA, text), expected);
    }
}

#[test]
fn without_a_base_path_the_whole_origin_is_below_it() {
    for base_path in ["", "/"] {
        let sent = Sent {
            base_path,
            tls: false,
            authority: "localhost:3000",
            ..SENT
        };
        for (text, expected) in [
            ("'http://localhost:3000'", "'/via/p@t/'"),
            ("\"http://LOCALHOST:3000/x?y\"", "\"/via/p@t/x?y\""),
            ("http://localhost:30000/x", "http://localhost:30000/x"),
            ("https://localhost:3000/x", "https://localhost:3000/x"),
        ] {
            assert_eq!(body(&sent, VIA, text), expected, "{base_path:?}");
        }
    }
}

#[test]
fn a_chunk_waits_only_for_what_may_become_such_a_url() {
    let out = chunked(
        &SENT,
        VIA,
        &[
            b"data: 1\n\n",
            b"see https",
            b" or http",
            b"s://api.exam",
            b"ple.org/v1 or https://api.example.com/",
            b"v2/ or https://api.example.com/v1/x",
            b"/y\n\n",
            b"https://other.example/https://api.example.com/v1/x",
        ],
    );
    let expected: [&[u8]; 9] = [
        b"data: 1\n\n",
        b"see ",
        b"https or ",
        b"",
        b"https://api.example.org/v1 or ",
        b"https://api.example.com/v2/ or ",
        b"/via/p@t/x/y\n\n",
        b"https://other.example/https://api.example.com/v1/x",
        b"",
    ];
    let shown: Vec<_> = out
        .iter()
        .map(|chunk| String::from_utf8_lossy(chunk))
        .collect();
    assert_eq!(out, expected, "{shown:?}");
}

#[test]
fn chunks_without_links_go_on_uncopied() {
    let mut stream = LinkStream::new(&SENT, VIA);
    for text in ["{\"url\": \"https://other.example/v1/x\"}", "plain ", "\n"] {
        let chunk = Bytes::copy_from_slice(text.as_bytes());
        assert_eq!(
            stream.push(chunk.clone()).as_ptr(),
            chunk.as_ptr(),
            "{text}"
        );
    }
}

#[test]
fn an_endless_url_is_not_held_back_for_ever() {
    let start = format!("https://api.example.com/v1/{}", "x".repeat(MAX_URL - 100));
    let mut stream = LinkStream::new(&SENT, VIA);
    assert!(stream.push(start.clone().into()).is_empty());
    let rest = Bytes::from("x".repeat(200));
    assert_eq!(
        stream.push(rest.clone()),
        format!("{start}{}", "x".repeat(200))
    );
    assert_eq!(stream.push(rest.clone()), rest);
    // The next one counts again.
    let next = Bytes::from_static(b" https://api.example.com/v1/x ");
    assert_eq!(stream.push(next), &b" /via/p@t/x "[..]);
}

/// Texts that are rich in URLs, parts of URLs and what looks like them.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "https",
        "http",
        "://",
        ":\\/\\/",
        ":",
        "\\",
        "/",
        "\\/",
        "api.example.com",
        "API.example.com:443",
        "api.example.org",
        "/v1",
        "\\/v1",
        "/v10",
        "/x",
        "/..",
        "?",
        "a=1",
        "api_key=S",
        "&",
        "&amp;",
        "\\u0026",
        "\\u003e",
        "#f",
        "\"",
        " ",
        ")",
        "'",
        ".",
        "+",
        "é",
        "https://api.example.com/v1/x",
        "https:\\/\\/api.example.com\\/v1\\/x",
    ]);
    proptest::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn a_split_changes_nothing(
        text in texts(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        via in any::<bool>(),
    ) {
        let addressing = if via { VIA } else { Addressing::Headers };
        let bytes = text.as_bytes();
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut from = 0;
        let chunks: Vec<_> = ends
            .iter()
            .map(|&end| &bytes[std::mem::replace(&mut from, end)..end])
            .collect();
        let out = chunked(&SENT, addressing, &chunks).concat();
        prop_assert_eq!(String::from_utf8(out).unwrap(), body(&SENT, addressing, &text));
        let bytewise: Vec<_> = bytes.chunks(1).collect();
        let out = chunked(&SENT, addressing, &bytewise).concat();
        prop_assert_eq!(String::from_utf8(out).unwrap(), body(&SENT, addressing, &text));
    }

    #[test]
    fn any_bytes_without_the_upstreams_host_pass_unchanged(
        text in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert_eq!(chunked(&SENT, VIA, &[&text]).concat(), text);
    }
}
