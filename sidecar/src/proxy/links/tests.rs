use http::header::ETAG;

use super::*;

const SENT: Sent<'_> = Sent {
    tls: true,
    authority: "api.example.com",
    base_path: "/v1",
    path: "/v1/users/7",
    injected_query: &["api_key"],
};

fn one(sent: &Sent<'_>, addressing: Addressing<'_>, name: HeaderName, value: &str) -> String {
    let mut headers = HeaderMap::new();
    headers.insert(name.clone(), HeaderValue::from_str(value).unwrap());
    rewrite(&mut headers, sent, addressing, &[]);
    String::from_utf8(headers[name].as_bytes().to_vec()).unwrap()
}

fn location(sent: &Sent<'_>, addressing: Addressing<'_>, value: &str) -> String {
    one(sent, addressing, LOCATION, value)
}

/// Upstream's link; what becomes of it by prefix, by headers, in absolute form.
const BELOW_BASE: [(&str, &str, &str, &str); 20] = [
    (
        "https://api.example.com/v1/x",
        "/via/p@t/x",
        "/x",
        "http://api.example.com/v1/x",
    ),
    (
        "https://API.example.com:443/v1/x",
        "/via/p@t/x",
        "/x",
        "http://api.example.com/v1/x",
    ),
    (
        "HTTPS://api.example.com/v1/x?a=1#f",
        "/via/p@t/x?a=1#f",
        "/x?a=1#f",
        "http://api.example.com/v1/x?a=1#f",
    ),
    (
        "https://api.example.com/v1",
        "/via/p@t",
        "/",
        "http://api.example.com/v1",
    ),
    (
        "https://api.example.com/v1?a",
        "/via/p@t?a",
        "/?a",
        "http://api.example.com/v1?a",
    ),
    (
        "//api.example.com/v1/x",
        "/via/p@t/x",
        "/x",
        "http://api.example.com/v1/x",
    ),
    ("/v1/x", "/via/p@t/x", "/x", "http://api.example.com/v1/x"),
    (
        "x",
        "/via/p@t/users/x",
        "/users/x",
        "http://api.example.com/v1/users/x",
    ),
    (
        "./x/",
        "/via/p@t/users/x/",
        "/users/x/",
        "http://api.example.com/v1/users/x/",
    ),
    ("../x", "/via/p@t/x", "/x", "http://api.example.com/v1/x"),
    ("..", "/via/p@t/", "/", "http://api.example.com/v1/"),
    (
        "%2e%2E/x",
        "/via/p@t/x",
        "/x",
        "http://api.example.com/v1/x",
    ),
    (
        "?page=2",
        "/via/p@t/users/7?page=2",
        "/users/7?page=2",
        "http://api.example.com/v1/users/7?page=2",
    ),
    (
        "/v1/a%2Fb//c;d",
        "/via/p@t/a%2Fb//c;d",
        "/a%2Fb//c;d",
        "http://api.example.com/v1/a%2Fb//c;d",
    ),
    (
        "/v1//evil.com/x",
        "/via/p@t//evil.com/x",
        "/.//evil.com/x",
        "http://api.example.com/v1//evil.com/x",
    ),
    (
        "/v1/\\evil.com/x",
        "/via/p@t/\\evil.com/x",
        "/./\\evil.com/x",
        "http://api.example.com/v1/\\evil.com/x",
    ),
    (
        "/v1/x?api_key=S",
        "/via/p@t/x",
        "/x",
        "http://api.example.com/v1/x",
    ),
    (
        "/v1/x?a=1&api%5Fkey=S&b",
        "/via/p@t/x?a=1&b",
        "/x?a=1&b",
        "http://api.example.com/v1/x?a=1&b",
    ),
    (
        "/v1/x?&a=%20+&api_keys=1",
        "/via/p@t/x?&a=%20+&api_keys=1",
        "/x?&a=%20+&api_keys=1",
        "http://api.example.com/v1/x?&a=%20+&api_keys=1",
    ),
    (
        "/v1/x?",
        "/via/p@t/x?",
        "/x?",
        "http://api.example.com/v1/x?",
    ),
];

#[test]
fn links_below_the_base_path_become_the_callers_own_addressing() {
    for (link, prefix, headers, absolute) in BELOW_BASE {
        assert_eq!(
            location(&SENT, Addressing::Prefix("/via/p@t"), link),
            prefix,
            "{link}"
        );
        assert_eq!(
            location(&SENT, Addressing::Headers, link),
            headers,
            "{link}"
        );
        let http = Addressing::Absolute { scheme: "http" };
        assert_eq!(location(&SENT, http, link), absolute, "{link}");
    }
}

#[test]
fn links_elsewhere_stay_byte_for_byte() {
    for link in [
        "https://other.example.com/v1/x?api_key=1",
        "https://api.example.com.evil.com/v1/x",
        "https://user@api.example.com/v1/x",
        "https://api.example.com:8443/v1/x",
        "http://api.example.com/v1/x",
        "//other.example.com/v1/x",
        "https://api.example.com/v2/x",
        "https://api.example.com/v10",
        "https://api.example.com/v1/../admin",
        "https://api.example.com",
        "https:/v1/x",
        "mailto:someone@example.com",
        "urn:api.example.com:/v1/x",
        "#part",
        "",
    ] {
        for addressing in [
            Addressing::Prefix("/via/p@t"),
            Addressing::Headers,
            Addressing::Absolute { scheme: "http" },
        ] {
            assert_eq!(location(&SENT, addressing, link), link);
        }
    }
}

#[test]
fn a_relative_link_out_of_the_base_path_cannot_lead_to_another_provider() {
    for (link, absolute) in [
        (
            "/via/other/delete",
            "https://api.example.com/via/other/delete",
        ),
        ("../../other/x?a#b", "https://api.example.com/other/x?a#b"),
        ("/", "https://api.example.com/"),
    ] {
        for addressing in [Addressing::Prefix("/via/p"), Addressing::Headers] {
            assert_eq!(location(&SENT, addressing, link), absolute);
        }
    }
}

#[test]
fn an_injected_parameter_is_removed_from_the_rest_of_the_host_too() {
    assert_eq!(
        location(
            &SENT,
            Addressing::Headers,
            "https://API.example.com/v2/../x?a&api_key=S#f"
        ),
        "https://API.example.com/v2/../x?a#f"
    );
}

#[test]
fn without_a_base_path_every_path_is_below_it() {
    for base_path in ["", "/"] {
        let sent = Sent {
            base_path,
            tls: false,
            authority: "localhost:3000",
            path: "/",
            ..SENT
        };
        for (link, prefix, headers) in [
            ("/via/other/x", "/via/p/via/other/x", "/via/other/x"),
            ("http://localhost:3000", "/via/p/", "/"),
            ("http://LOCALHOST:3000/x", "/via/p/x", "/x"),
            ("x/y", "/via/p/x/y", "/x/y"),
            ("../../x", "/via/p/x", "/x"),
        ] {
            assert_eq!(location(&sent, Addressing::Prefix("/via/p/"), link), prefix);
            assert_eq!(location(&sent, Addressing::Headers, link), headers);
        }
    }
}

#[test]
fn each_target_of_a_link_field_is_rewritten_and_the_rest_kept() {
    let value = r#"<https://api.example.com/v1/u?page=2&api_key=S>; rel="next"; title="a <b>, \"<c>\"",  <https://o.example/x>;rel=o,</v1/z>; rel=self"#;
    assert_eq!(
        one(&SENT, Addressing::Prefix("/via/p"), LINK, value),
        r#"</via/p/u?page=2>; rel="next"; title="a <b>, \"<c>\"",  <https://o.example/x>;rel=o,</via/p/z>; rel=self"#
    );
    for odd in [
        "<https://api.example.com/v1/x",
        "no target",
        r#"<>; title="open \"#,
    ] {
        assert_eq!(one(&SENT, Addressing::Headers, LINK, odd), odd);
    }
}

#[test]
fn the_url_of_a_refresh_field_is_rewritten() {
    for (value, expected) in [
        ("5; url=/v1/x", "5; url=/x"),
        ("0;URL='https://api.example.com/v1/x'", "0;URL='/x'"),
        ("5, url = \"/v1/x\" ", "5, url = \"/x\""),
        ("5; /v1/x", "5; /x"),
        (
            "5;url=https://other.example/v1/x",
            "5;url=https://other.example/v1/x",
        ),
        ("5", "5"),
        ("5;", "5;"),
    ] {
        assert_eq!(
            one(&SENT, Addressing::Headers, REFRESH, value).trim_end(),
            expected
        );
    }
}

#[test]
fn the_listed_names_and_the_routes_own_are_rewritten_in_every_value_and_no_others() {
    let upload = HeaderName::from_static("x-goog-upload-url");
    let names = [
        LOCATION,
        CONTENT_LOCATION,
        OPERATION_LOCATION,
        upload.clone(),
    ];
    let mut headers = HeaderMap::new();
    for name in names.iter().chain([&ETAG]) {
        headers.append(name.clone(), HeaderValue::from_static("/v1/a"));
        headers.append(name.clone(), HeaderValue::from_static("/v1/b"));
    }
    rewrite(&mut headers, &SENT, Addressing::Headers, &[upload]);
    for name in names {
        assert_eq!(
            headers.get_all(name).iter().collect::<Vec<_>>(),
            ["/a", "/b"]
        );
    }
    assert_eq!(
        headers.get_all(ETAG).iter().collect::<Vec<_>>(),
        ["/v1/a", "/v1/b"]
    );
}

#[test]
fn a_rewritten_value_stays_sensitive_and_odd_bytes_are_left_alone() {
    let mut sensitive = HeaderValue::from_static("/v1/x");
    sensitive.set_sensitive(true);
    let odd = HeaderValue::from_bytes(b"/v1/\xff").unwrap();
    let mut headers = HeaderMap::new();
    headers.append(LOCATION, sensitive);
    headers.append(LOCATION, odd.clone());
    headers.append(
        LOCATION,
        HeaderValue::from_bytes("/v1/ä".as_bytes()).unwrap(),
    );
    rewrite(&mut headers, &SENT, Addressing::Headers, &[]);
    let values: Vec<_> = headers.get_all(LOCATION).iter().collect();
    assert!(values[0].is_sensitive());
    assert_eq!(values[1], odd);
    assert_eq!(values[2].as_bytes(), "/ä".as_bytes());
}
