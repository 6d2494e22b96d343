//! Expected signatures were computed with botocore 1.43 (`S3SigV4Auth` for s3, `SigV4Auth` elsewhere).

use http::Method;

use super::*;
use crate::credential::{Credential, wire};

struct Case {
    service: &'static str,
    method: Method,
    host: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static [u8],
    token: Option<&'static str>,
}

impl Case {
    fn new(
        service: &'static str,
        method: Method,
        host: &'static str,
        target: &'static str,
    ) -> Self {
        Self {
            service,
            method,
            host,
            target,
            headers: &[],
            body: b"",
            token: None,
        }
    }

    fn credential(&self) -> Credential {
        let payload = serde_json::json!({
            "strategy": {"type": "aws_sigv4", "config": {"service": self.service}},
            "credentials": {
                "access_key": "AKIDLABEXAMPLE",
                "secret_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
                "session_token": self.token,
            },
        });
        Credential::parse(payload.to_string().as_bytes(), None, wire::recorded_at()).unwrap()
    }

    fn headers(&self) -> HeaderMap {
        let pairs = self.headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let mut headers: HeaderMap = pairs.collect();
        headers.insert(HOST, HeaderValue::from_static(self.host));
        headers
    }

    fn sign(&self, body: Option<&[u8]>, hint: Option<&str>) -> Result<HeaderMap, SignError> {
        let credential = self.credential();
        let headers = self.headers();
        let input = SignInput {
            method: &self.method,
            path_and_query: self.target,
            headers: &headers,
            host: self.host,
            tls: true,
            body,
            now: wire::recorded_at(),
            region_hint: hint,
        };
        let instructions = crate::sign::sign(&credential, &input)?;
        Ok(instructions.headers.iter().cloned().collect())
    }

    fn authorization(&self) -> String {
        let headers = self.sign(Some(self.body), None).unwrap();
        assert!(headers.values().all(HeaderValue::is_sensitive));
        headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }
}

const ID_AND_SCOPE: &str = "AWS4-HMAC-SHA256 Credential=AKIDLABEXAMPLE/20261124/";

fn check<const N: usize>(cases: [(Case, &str, &str, &str); N]) {
    for (case, scope, signed, signature) in cases {
        let expected = format!(
            "{ID_AND_SCOPE}{scope}/aws4_request, SignedHeaders={signed}, Signature={signature}"
        );
        assert_eq!(case.authorization(), expected, "{}", case.target);
    }
}

#[test]
fn s3_signatures_equal_those_of_botocore() {
    let bucket = "bucket.s3.eu-west-1.amazonaws.com";
    let s3 = "s3.eu-west-1.amazonaws.com";
    check([
        (
            Case {
                headers: &[("content-type", "text/plain")],
                body: b"hello",
                ..Case::new("s3", Method::PUT, bucket, "/a%20b/%C3%BC%2Bplus%28x%29.txt")
            },
            "eu-west-1/s3",
            "content-type;host;x-amz-content-sha256;x-amz-date",
            "1ae72431f53e2972b806f60e5654053881fd2a3de3dd7cf36e0f8f11bf7a4e21",
        ),
        (
            Case::new("s3", Method::GET, s3, "/bucket//a///b/"),
            "eu-west-1/s3",
            "host;x-amz-content-sha256;x-amz-date",
            "2253bcfd273b2fedd969857612d43722aa20469fb5cf86439204a4015e0ebf58",
        ),
        (
            Case::new("s3", Method::GET, s3, "/bucket/a%2Fb/.hidden/..x"),
            "eu-west-1/s3",
            "host;x-amz-content-sha256;x-amz-date",
            "1ec58af69ac012b0a89b76d01ea70ef3f63ecf5fdee94c10270b86aa5b3167f6",
        ),
        (
            Case::new(
                "s3",
                Method::GET,
                "bucket.s3.amazonaws.com",
                "/?list-type=2&prefix=&delimiter=%2F&x=2&x=1&acl",
            ),
            "us-east-1/s3",
            "host;x-amz-content-sha256;x-amz-date",
            "a581f7d511d0b4648a89bc6ebb869b04cd14af5dc3511909feb08e0365adce7a",
        ),
        (
            Case {
                headers: &[("range", "bytes=0-9")],
                token: Some("FwoGZXIvYXdzEXAMPLETOKEN//=="),
                ..Case::new("s3", Method::GET, s3, "/bucket/key")
            },
            "eu-west-1/s3",
            "host;range;x-amz-content-sha256;x-amz-date;x-amz-security-token",
            "fa18621067ca4fb1ed6646c8c82a5c21f1fc8842c8de2427af5a00f1e0e3beef",
        ),
    ]);
}

#[test]
fn signatures_for_other_services_equal_those_of_botocore() {
    let api = "abc123.execute-api.eu-central-1.amazonaws.com";
    check([
        (
            Case {
                headers: &[
                    ("content-type", "application/json"),
                    ("x-custom", "  two   spaces "),
                ],
                body: br#"{"a":1}"#,
                ..Case::new(
                    "execute-api",
                    Method::POST,
                    api,
                    "/prod/items/a%20b%2Fc:d?q=x%20y&q=%C3%A4",
                )
            },
            "eu-central-1/execute-api",
            "content-type;host;x-amz-content-sha256;x-amz-date;x-custom",
            "5d364bdfb035bc82b6d38c8ef05fc9c724d2ae0343384bda24535694763c9e79",
        ),
        (
            Case::new("execute-api", Method::GET, api, "/prod//items/"),
            "eu-central-1/execute-api",
            "host;x-amz-content-sha256;x-amz-date",
            "6ea75f57f3cc4bdf5519eca135b4a1b4b7e31cffd8b3d1ffb7b616173fe66600",
        ),
        (
            Case {
                headers: &[
                    ("x-amz-target", "DynamoDB_20120810.ListTables"),
                    ("content-type", "application/x-amz-json-1.0"),
                ],
                body: b"{}",
                ..Case::new("dynamodb", Method::POST, "localhost:8000", "/")
            },
            "us-east-1/dynamodb",
            "content-type;host;x-amz-content-sha256;x-amz-date;x-amz-target",
            "c88ea1193bb26c6effa1da3916b78fc357dcbf69333de833974c90fc48f971b9",
        ),
    ]);
}

#[test]
fn headers_that_change_on_the_way_are_not_signed() {
    let plain = Case::new("s3", Method::GET, "s3.amazonaws.com", "/b/k");
    let noisy = Case {
        headers: &[
            ("accept-encoding", "identity"),
            ("connection", "keep-alive"),
            ("content-length", "0"),
            ("expect", "100-continue"),
            ("transfer-encoding", "chunked"),
            ("user-agent", "agent"),
            ("x-amzn-trace-id", "1"),
        ],
        ..Case::new("s3", Method::GET, "s3.amazonaws.com", "/b/k")
    };
    assert_eq!(plain.authorization(), noisy.authorization());
    assert!(UNSIGNED_HEADERS.is_sorted());
}

#[test]
fn a_hash_of_the_agent_is_signed_as_given_and_the_body_streams() {
    const HASH: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let given = Case {
        headers: &[("x-amz-content-sha256", HASH)],
        ..Case::new("s3", Method::PUT, "s3.amazonaws.com", "/b/k")
    };
    let hashed_here = Case::new("s3", Method::PUT, "s3.amazonaws.com", "/b/k");
    assert_eq!(
        given.credential().body_mode(&given.headers()),
        BodyMode::Stream
    );
    assert_eq!(
        hashed_here.credential().body_mode(&hashed_here.headers()),
        BodyMode::Buffer
    );
    let streamed = given.sign(None, None).unwrap();
    assert_eq!(streamed[X_AMZ_CONTENT_SHA256], HASH);
    assert_eq!(streamed, hashed_here.sign(Some(b"hello"), None).unwrap());
    assert_eq!(
        hashed_here.sign(None, None),
        Err(SignError::BodyNotBuffered)
    );
}

#[test]
fn unhashed_payloads_are_for_s3_only_and_chunks_signed_by_the_agent_are_refused() {
    let with = |service, value: &'static [(&'static str, &'static str)]| Case {
        headers: value,
        ..Case::new(service, Method::PUT, "s3.amazonaws.com", "/b/k")
    };
    for value in [
        &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")],
        &[("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")],
    ] {
        let case = with("s3", value);
        assert_eq!(
            case.credential().body_mode(&case.headers()),
            BodyMode::Stream
        );
        assert_eq!(
            case.sign(None, None).unwrap()[X_AMZ_CONTENT_SHA256],
            value[0].1
        );
    }
    let elsewhere = with("lambda", &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")]);
    assert_eq!(
        elsewhere.credential().body_mode(&elsewhere.headers()),
        BodyMode::Buffer
    );
    let chunks = with(
        "s3",
        &[("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")],
    );
    assert_eq!(chunks.sign(None, None), Err(SignError::SignedChunks));
}

#[test]
fn the_region_comes_from_the_strategy_then_the_route_then_the_host() {
    let region = |host, hint| {
        let case = Case::new("s3", Method::GET, host, "/");
        let headers = case.sign(Some(b""), hint).unwrap();
        let authorization = headers[AUTHORIZATION].to_str().unwrap().to_owned();
        authorization.split('/').nth(2).unwrap().to_owned()
    };
    assert_eq!(
        region("s3.eu-west-1.amazonaws.com", Some("eu-north-1")),
        "eu-north-1"
    );
    assert_eq!(region("s3.eu-west-1.amazonaws.com", None), "eu-west-1");
    assert_eq!(region("minio.internal:9000", None), "us-east-1");
}

#[test]
fn the_signing_crate_logs_no_secret_at_trace_level() {
    // A process of its own: whoever reaches a log statement first decides for all threads whether it is enabled.
    const ALONE: &str = "NEXUS_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", std::thread::current().name().unwrap()])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shown}");
        assert!(shown.contains("1 passed"), "{shown}");
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(std::sync::Arc::new(file.reopen().unwrap()))
        .finish();
    let case = Case {
        token: Some("session-token-5551212"),
        ..Case::new("s3", Method::GET, "s3.amazonaws.com", "/b/k")
    };
    tracing::subscriber::with_default(subscriber, || case.authorization());
    let log = std::fs::read_to_string(file.path()).unwrap();
    assert!(log.contains("canonical_request"), "nothing was logged");
    assert!(
        !log.contains("wJalrXUtnFEMI") && !log.contains("5551212"),
        "{log}"
    );
}
