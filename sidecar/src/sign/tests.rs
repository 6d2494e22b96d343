use std::time::UNIX_EPOCH;

use nexus_crds::strategy::StrategySpec;

use super::*;
use crate::credential::{BodyMode, wire};

/// Signs a POST with a body and gives back what is put on it, as `name: value` and `?name=value` lines.
pub(super) fn applied(payload: &str, route: Option<&str>, body: &[u8]) -> Vec<String> {
    let credential = parse(payload, route).unwrap();
    let headers = HeaderMap::new();
    let input = SignInput {
        method: &Method::POST,
        path_and_query: "/",
        headers: &headers,
        host: "api.example",
        tls: true,
        body: Some(body),
        now: UNIX_EPOCH,
        region_hint: None,
    };
    let instructions = sign(&credential, &input).unwrap();
    assert!(
        instructions
            .headers
            .iter()
            .all(|(_, value)| value.is_sensitive())
    );
    let headers = instructions
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", std::str::from_utf8(value.as_bytes()).unwrap()));
    let query = instructions
        .query
        .iter()
        .map(|pair| format!("?{}", *pair.encoded));
    headers.chain(query).collect()
}

fn parse(payload: &str, route: Option<&str>) -> Result<Credential, PayloadError> {
    let route: Option<StrategySpec> = route.map(|json| serde_json::from_str(json).unwrap());
    Credential::parse(payload.as_bytes(), route.as_ref(), wire::recorded_at())
}

fn recorded(file: &str, title: &str) -> Vec<String> {
    let exchange = wire::named(file, title);
    applied(
        std::str::from_utf8(exchange.body()).unwrap(),
        None,
        b"payload",
    )
}

const FRONTS: [&str; 3] = ["gateway token", "broker token", "grpc-gateway"];

#[test]
fn recorded_credentials_are_applied_alike_from_all_three_fronts() {
    for (file, expected) in [
        (
            "token-oauth-rotate",
            "authorization: Bearer at-oauth-rotate-xTsCheYCRRUj3CRq",
        ),
        ("token-key-plain", "x-api-key: plain-key-1"),
        ("token-key-query", "?api_token=q+key%2F5%2B%3D%26%C3%BC"),
        (
            "token-basic-fields",
            "authorization: Basic Ym9iQGV4YW1wbGUuY29tOnRvay03",
        ),
        // Computed with Python: hmac.new(key, b"payload", digest).
        ("token-hmac-sha1-base64", HMAC_SHA1),
        ("token-hmac-sha256-hex", HMAC_SHA256),
    ] {
        for front in FRONTS {
            assert_eq!(recorded(file, front), [expected], "{file} {front}");
        }
    }
}

const HMAC_SHA1: &str = "x-hub-signature: 89YXhd2aX0O6Rg98PKqLg0bNYBQ=";
const HMAC_SHA256: &str =
    "x-signature: 80f2813008cdcbdeacc5b992813ac9f1b06f7416024c3c601a7ffd771857da8b";

#[test]
fn oauth2_is_bearer_whatever_the_token_type_says() {
    for file in [
        "token-oauth-mac-type",
        "token-oauth-lower-type",
        "token-oauth-no-type",
    ] {
        let applied = recorded(file, "gateway token");
        assert!(
            applied[0].starts_with("authorization: Bearer at-oauth-"),
            "{file}"
        );
    }
}

#[test]
fn the_older_flat_form_is_oauth2() {
    let payload = r#"{"access_token":"t","refresh_token":"r","expires_at":4000000000}"#;
    assert_eq!(applied(payload, None, b""), ["authorization: Bearer t"]);
    let credential = parse(payload, None).unwrap();
    assert!(credential.refreshes().is_some() && credential.expires_at().is_some());
}

#[test]
fn a_route_presents_an_oauth2_token_as_header_or_basic_auth() {
    let payload = r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":"t"}}"#;
    let header = r#"{"type":"header","config":{"header_name":"X-Token","value_prefix":"tok "}}"#;
    assert_eq!(applied(payload, Some(header), b""), ["x-token: tok t"]);
    let basic = r#"{"type":"basic_auth","config":{"username":"x-access-token"}}"#;
    let expected = "authorization: Basic eC1hY2Nlc3MtdG9rZW46dA==";
    assert_eq!(applied(payload, Some(basic), b""), [expected]);
}

#[test]
fn set_makes_several_headers_or_parameters() {
    let credentials = r#""credentials":{"a":"1","b":"x y"}"#;
    let headers = r#"[{\"name\":\"X-A\",\"credential_field\":\"a\"},{\"name\":\"X-B\",\"credential_field\":\"b\",\"value_prefix\":\"p\"}]"#;
    let payload = format!(
        r#"{{"strategy":{{"type":"header","config":{{"set":"{headers}"}}}},{credentials}}}"#
    );
    assert_eq!(applied(&payload, None, b""), ["x-a: 1", "x-b: px y"]);
    let names: Vec<_> = parse(&payload, None)
        .unwrap()
        .sets_headers()
        .cloned()
        .collect();
    assert_eq!(names, ["x-a", "x-b"]);
    let payload = payload.replace(r#""type":"header""#, r#""type":"query_param""#);
    let payload = payload.replace(r#",\"value_prefix\":\"p\""#, "");
    assert_eq!(applied(&payload, None, b""), ["?X-A=1", "?X-B=x+y"]);
}

#[test]
fn an_empty_body_is_signed_too_and_a_streaming_one_refused() {
    let payload = r#"{"strategy":{"type":"hmac_payload","config":{"header_name":"X-S"}},"credentials":{"api_secret":"k"}}"#;
    // hmac.new(b"k", b"", "sha256").hexdigest()
    assert_eq!(
        applied(payload, None, b""),
        ["x-s: 8bb990c40a7d61cb97597a942125025be50ac8beb74436e3735b98893a7f6620"]
    );
    let credential = parse(payload, None).unwrap();
    assert_eq!(credential.body_mode(&HeaderMap::new()), BodyMode::Buffer);
    let input = SignInput {
        method: &Method::POST,
        path_and_query: "/",
        headers: &HeaderMap::new(),
        host: "api.example",
        tls: true,
        body: None,
        now: UNIX_EPOCH,
        region_hint: None,
    };
    assert_eq!(
        sign(&credential, &input).err(),
        Some(SignError::BodyNotBuffered)
    );
}

#[test]
fn what_cannot_be_applied_is_refused_by_name_and_never_by_value() {
    for (strategy, credentials, field) in [
        (
            r#"{"type":"oauth2"}"#,
            r#"{"access_token":""}"#,
            "access_token",
        ),
        (
            r#"{"type":"oauth2"}"#,
            r#"{"access_token":5551212}"#,
            "access_token",
        ),
        (
            r#"{"type":"oauth2"}"#,
            r#"{"access_token":"5551212\r\nX: y"}"#,
            "access_token",
        ),
        (
            r#"{"type":"oauth2"}"#,
            r#"{"access_token":"5551212\u0000"}"#,
            "access_token",
        ),
        (
            r#"{"type":"basic_auth"}"#,
            r#"{"username":"","password":"5551212"}"#,
            "username",
        ),
        (
            r#"{"type":"basic_auth"}"#,
            r#"{"username":"5551212","password":""}"#,
            "password",
        ),
        (
            r#"{"type":"basic_auth"}"#,
            r#"{"username":"5551212:","password":"p"}"#,
            "username",
        ),
        (
            r#"{"type":"basic_auth"}"#,
            r#"{"username":"u","password":"5551212\n"}"#,
            "password",
        ),
        (r#"{"type":"header"}"#, r#"{"other":"5551212"}"#, "api_key"),
        (
            r#"{"type":"header"}"#,
            r#"{"api_key":"5551212","api_key":"5551212"}"#,
            "twice",
        ),
        (
            r#"{"type":"oauth2"}"#,
            r#"{"access_token":"5551212","expires_at":"soon 5551212"}"#,
            "expires_at",
        ),
        (
            r#"{"type":"oauth2"}"#,
            r#"{"access_token":"5551212","expired":"5551212"}"#,
            "expired",
        ),
        (r#"{"type":"oauth2"}"#, r#""5551212""#, "credentials"),
        ("null", r#"{"access_token":"5551212"}"#, "strategy"),
        (
            r#"{"type":"aws_sigv4","config":{"service":"s3"}}"#,
            r#"{"access_key":"a b","secret_key":"5551212"}"#,
            "access_key",
        ),
        (
            r#"{"type":"aws_sigv4","config":{"service":"s3"}}"#,
            r#"{"access_key":"a","secret_key":"5551212","session_token":5551212}"#,
            "session_token",
        ),
    ] {
        let payload = format!(r#"{{"strategy":{strategy},"credentials":{credentials}}}"#);
        let error = parse(&payload, None).map(|_| ()).unwrap_err();
        assert_ne!(error, PayloadError::NotACredential, "{payload}");
        let (shown, debugged) = (error.to_string(), format!("{error:?}"));
        assert!(shown.contains(field), "{payload}: {shown}");
        assert!(
            !shown.contains("5551212") && !debugged.contains("5551212"),
            "{shown}"
        );
    }
}

#[test]
fn nothing_shows_a_secret_in_debug_output() {
    let secret = "canary-5551212";
    for payload in [
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":"S","refresh_token":"S"}}"#,
        r#"{"strategy":{"type":"header"},"credentials":{"api_key":"S"}}"#,
        r#"{"strategy":{"type":"query_param","config":{"param_name":"k"}},"credentials":{"api_key":"S"}}"#,
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"u","password":"S"}}"#,
        r#"{"strategy":{"type":"hmac_payload","config":{"header_name":"X-S"}},"credentials":{"api_secret":"S"}}"#,
        r#"{"strategy":{"type":"aws_sigv4","config":{"service":"s3"}},"credentials":{"access_key":"A","secret_key":"S","session_token":"S"}}"#,
    ] {
        let credential = parse(&payload.replace("\"S\"", &format!("\"{secret}\"")), None).unwrap();
        let shown = format!(
            "{credential:?} {:?} {:#?}",
            credential.application(),
            credential.sets_query()
        );
        assert!(!shown.contains(secret), "{shown}");
        assert!(
            credential.secrets().any(|value| value == secret.as_bytes()),
            "{payload}"
        );
        assert!(!shown.contains("Y2FuYXJ5"), "{shown}");
    }
}

/// Panics for real, in a process of its own, with everything in hand that a request has when it is signed.
#[test]
fn a_panic_prints_nothing_of_a_credential() {
    const ROLE: &str = "NEXUS_TEST_PANIC_WITH_A_CREDENTIAL";
    let secret = "canary-7771212-with-some-length";
    if std::env::var_os(ROLE).is_some() {
        let payload = format!(
            r#"{{"strategy":{{"type":"oauth2"}},"credentials":{{"access_token":"{secret}"}}}}"#
        );
        let credential = parse(&payload, None).unwrap();
        let Application::Headers(set) = credential.application() else {
            panic!("a bearer token is a header")
        };
        let headers: HeaderMap = set.iter().cloned().collect();
        let scrubber = credential.scrubber();
        panic!("in hand: {credential:?} {headers:?} {scrubber:?}");
    }
    let name = "sign::tests::a_panic_prints_nothing_of_a_credential";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ROLE, "1")
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(
        printed.contains("in hand: ") && printed.contains("Sensitive"),
        "{printed}"
    );
    assert!(
        !printed.contains(secret) && !printed.contains("Y2FuYXJ5"),
        "{printed}"
    );
}

#[test]
fn user_names_access_keys_and_prefixes_are_not_secrets() {
    let basic =
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"user","password":"pass"}}"#;
    let credential = parse(basic, None).unwrap();
    let secrets: Vec<_> = credential.secrets().collect();
    assert_eq!(secrets, [b"pass".as_slice(), b"user:pass"]);
    let aws = r#"{"strategy":{"type":"aws_sigv4","config":{"service":"s3"}},"credentials":{"access_key":"AK","secret_key":"sk"}}"#;
    let credential = parse(aws, None).unwrap();
    assert_eq!(credential.secrets().collect::<Vec<_>>(), [b"sk".as_slice()]);
}

#[test]
fn ready_made_headers_are_borrowed() {
    let credential = parse(r#"{"access_token":"t"}"#, None).unwrap();
    let input = SignInput {
        method: &Method::GET,
        path_and_query: "/",
        headers: &HeaderMap::new(),
        host: "api.example",
        tls: true,
        body: None,
        now: UNIX_EPOCH,
        region_hint: None,
    };
    let instructions = sign(&credential, &input).unwrap();
    assert!(matches!(instructions.headers, Cow::Borrowed(_)));
    assert_eq!(credential.body_mode(&HeaderMap::new()), BodyMode::Stream);
}
