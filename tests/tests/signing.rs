//! Each strategy authenticates a request so that a party we did not write accepts it: botocore recomputes
//! Signature Version 4, Python's `hmac` the HMAC, and a Python server checks bearer, Basic, header and query.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use nexus_tests::agent::Agent;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::clients::{ask, python_script};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::{Seen, Upstream, hex};
use nexus_tests::wait;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;

const ACCESS_KEY: &str = "AKIDEXAMPLE000000000";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SESSION_TOKEN: &str = "FwoGZXIvYXdzEXAMPLE//session+token==";

fn aws(service: &str, region: Option<&str>, session_token: bool) -> Answer {
    let mut config = json!({"service": service});
    if let Some(region) = region {
        config["region"] = region.into();
    }
    let mut credentials = json!({"access_key": ACCESS_KEY, "secret_key": SECRET_KEY});
    if session_token {
        credentials["session_token"] = SESSION_TOKEN.into();
    }
    Answer::credential(json!({"type": "aws_sigv4", "config": config}), credentials)
}

/// What botocore makes of a request that arrived; the signature it computes must be the one that was sent.
async fn botocore(seen: &Seen, service: &str, session_token: bool) -> Value {
    let question = json!({
        "method": seen.method,
        "url": format!("http://{}{}", seen.authority, seen.target),
        "headers": seen.headers,
        "body_sha256": seen.sha256,
        "service": service,
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "session_token": session_token.then_some(SESSION_TOKEN),
    });
    let mut verifier = python_script("tests/clients/python/verify_sigv4.py");
    let verdict = ask(&mut verifier, &question).await;
    assert_eq!(
        verdict["sent"], verdict["expected"],
        "{seen:#?} {verdict:#}"
    );
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn botocore_computes_the_same_signature_for_paths_and_queries_of_every_kind() {
    let scene = Scene::answering(aws("execute-api", Some("eu-west-3"), false)).await;
    for target in [
        "/",
        "/prod/items",
        "/prod/a%20b/c%2Fd",
        "/prod//double///slashes/",
        "/prod/caf%C3%A9/~tilde/(parens)/star*",
        "/prod/items?b=2&a=1&a=0",
        "/prod/items?flag&empty=&x=~._-&enc=%2F%20",
        "/prod/$batch;v=1/@me:x,y=z",
    ] {
        let answer = scene.get(target).send().await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        let seen = scene.upstream.last();
        assert_eq!(seen.target, target, "sent byte for byte");
        let verdict = botocore(&seen, "execute-api", false).await;
        assert_eq!(verdict["region"], "eu-west-3");
        assert_eq!(verdict["session_token"], Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn botocore_computes_the_same_signature_for_bodies_and_a_session_token() {
    let scene = Scene::answering(aws("dynamodb", None, true)).await;
    for (method, body) in [
        (Method::POST, r#"{"TableName":"T"}"#),
        (Method::POST, ""),
        (Method::PUT, "\0\u{1}binary\r\n"),
        (Method::DELETE, ""),
    ] {
        let call = scene.sidecar.agent().call(method.clone(), "/");
        let mut call = call
            .provider("p")
            .header("Content-Type", "application/x-amz-json-1.0");
        call = call.header("X-Amz-Target", "DynamoDB_20120810.GetItem");
        let answer = call.body(body).send().await;
        assert_eq!(answer.status, 200, "{method}: {}", answer.text());
        let seen = scene.upstream.last();
        assert_eq!(seen.body, body.as_bytes());
        let verdict = botocore(&seen, "dynamodb", true).await;
        assert_eq!(verdict["region"], "us-east-1", "the default");
        assert_eq!(verdict["session_token"], SESSION_TOKEN);
        assert_eq!(verdict["payload_hash_matches"], true);
        let signed = verdict["signed_headers"].as_array().unwrap();
        for name in ["host", "x-amz-date", "x-amz-security-token", "x-amz-target"] {
            assert!(signed.contains(&json!(name)), "{name} in {signed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keys_are_escaped_once_and_arrive_byte_for_byte() {
    let scene = Scene::answering(aws("s3", Some("eu-central-1"), true)).await;
    for target in [
        "/bucket/plain.txt",
        "/bucket//leading//double",
        "/bucket/with%20space%2Bplus",
        "/bucket/%E2%82%AC/euro%2Fslash",
        "/bucket/a=b&c;d@e:f",
        "/bucket/?list-type=2&prefix=a%2Fb&delimiter=%2F",
        "/bucket/key?uploads",
    ] {
        let answer = scene.get(target).send().await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        let seen = scene.upstream.last();
        assert_eq!(seen.target, target);
        let verdict = botocore(&seen, "s3", true).await;
        assert_eq!(verdict["payload_hash_matches"], true, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_hash_that_the_agent_states_is_signed_as_given() {
    let scene = Scene::answering(aws("s3", Some("eu-central-1"), false)).await;
    let stated = hex(&[0xab; 32]);
    let call = scene.post("/bucket/key", "the body is another");
    let answer = call.header("X-Amz-Content-Sha256", &stated).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = scene.upstream.last();
    assert_eq!(seen.header("x-amz-content-sha256"), stated);
    let verdict = botocore(&seen, "s3", false).await;
    assert_eq!(verdict["payload_hash_matches"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn signature_covers_what_is_left_after_stripping() {
    let scene = Scene::answering(aws("execute-api", None, false)).await;
    let answer = scene
        .post("/prod", "{}")
        .header("Authorization", "AWS4-HMAC-SHA256 forged")
        .header("X-Amz-Security-Token", "forged")
        .header("X-Amz-Date", "19700101T000000Z")
        .header("Connection", "X-Private")
        .header("X-Private", "1")
        .header("Cookie", "a=b")
        .header("X-Kept", "kept")
        .send()
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = scene.upstream.last();
    botocore(&seen, "execute-api", false).await;
    assert_eq!(seen.values("authorization").len(), 1);
    assert_eq!(seen.values("x-amz-date").len(), 1);
    assert!(!seen.header("x-amz-date").starts_with("1970"));
    assert_eq!(seen.values("x-amz-security-token"), [""; 0]);
    assert_eq!(seen.header("x-kept"), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_to_be_signed_is_refused_and_nothing_is_sent() {
    let scene = Scene::adapted(aws("execute-api", None, false), |route| {
        route.with("limits", json!({"maxSignedBodyBytes": 1024}))
    })
    .await;
    let at_the_limit = scene.post("/", vec![b'x'; 1024]).send().await;
    assert_eq!(at_the_limit.status, 200, "{}", at_the_limit.text());
    let beyond = scene.post("/", vec![b'x'; 1025]).send().await;
    assert_eq!((beyond.status, beyond.error()), (413, "body_too_large"));
    assert_eq!(scene.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_computes_the_same_hmac() {
    let secret = "hmac secret ü".to_owned();
    for (config, algorithm, encoding) in [
        (json!({}), "sha256", "hex"),
        (
            json!({"algo": "sha1", "encoding": "base64"}),
            "sha1",
            "base64",
        ),
        (json!({"encoding": "base64"}), "sha256", "base64"),
        (json!({"algo": "sha1"}), "sha1", "hex"),
    ] {
        let mut config = config;
        config["header_name"] = "X-Signature".into();
        let strategy = json!({"type": "hmac_payload", "config": config});
        let answer = Answer::credential(strategy, json!({"api_secret": secret}));
        let scene = Scene::answering(answer).await;
        for body in ["", "payload", "\u{0}\r\n{}"] {
            let answer = scene.post("/hook", body).send().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let question = json!({
                "secret": secret,
                "body_base64": STANDARD.encode(body),
                "algorithm": algorithm,
                "encoding": encoding,
            });
            let mut verifier = python_script("tests/clients/python/verify_hmac.py");
            let expected = ask(&mut verifier, &question).await;
            let seen = scene.upstream.last();
            assert_eq!(
                seen.header("x-signature"),
                expected["signature"].as_str().unwrap()
            );
            assert_eq!(seen.body, body.as_bytes());
        }
    }
}

/// The Python server that admits one credential only.
struct Guarded {
    port: u16,
    _process: Child,
}

impl Guarded {
    async fn start(guard: &Value) -> Self {
        let mut process = python_script("tests/clients/python/guarded_upstream.py")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = process.stdin.as_mut().unwrap();
        stdin
            .write_all(format!("{guard}\n").as_bytes())
            .await
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        wait::within("the guarded upstream to start", stdout.read_line(&mut line))
            .await
            .unwrap();
        Self {
            port: line.trim().parse().unwrap(),
            _process: process,
        }
    }
}

struct Case {
    name: &'static str,
    guard: Value,
    strategy: Value,
    credentials: Value,
    /// What the agent sends in the place of the credential.
    forged: (&'static str, &'static str),
}

fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "oauth2",
            guard: json!({"kind": "header", "name": "Authorization", "value": "Bearer at-1"}),
            strategy: json!({"type": "oauth2"}),
            credentials: json!({"access_token": "at-1", "token_type": "mac"}),
            forged: ("Authorization", "Bearer forged"),
        },
        Case {
            name: "header with its defaults",
            guard: json!({"kind": "header", "name": "Authorization", "value": "key-1"}),
            strategy: json!({"type": "header"}),
            credentials: json!({"api_key": "key-1"}),
            forged: ("authorization", "forged"),
        },
        Case {
            name: "header with a prefix",
            guard: json!({"kind": "header", "name": "X-Token", "value": "Token token=key-2"}),
            strategy: json!({"type": "header", "config": {"header_name": "X-Token",
                "credential_field": "token", "value_prefix": "Token token="}}),
            credentials: json!({"token": "key-2"}),
            forged: ("x-TOKEN", "forged"),
        },
        Case {
            name: "api_key",
            guard: json!({"kind": "header", "name": "X-Api-Key", "value": "key-3"}),
            strategy: json!({"type": "api_key", "config": {"header_name": "X-API-Key"}}),
            credentials: json!({"api_key": "key-3"}),
            forged: ("X-Api-Key", "forged"),
        },
        Case {
            name: "basic_auth",
            guard: json!({"kind": "basic", "user": "ü user", "password": "p:ä ss"}),
            strategy: json!({"type": "basic_auth"}),
            credentials: json!({"username": "ü user", "password": "p:ä ss"}),
            forged: ("Authorization", "Basic Zm9yZ2VkOmZvcmdlZA=="),
        },
        Case {
            name: "basic_auth with field names",
            guard: json!({"kind": "basic", "user": "sid", "password": "auth"}),
            strategy: json!({"type": "basic_auth", "config":
                {"username_field": "account_sid", "password_field": "auth_token"}}),
            credentials: json!({"account_sid": "sid", "auth_token": "auth"}),
            forged: ("Authorization", "Basic Zm9yZ2VkOmZvcmdlZA=="),
        },
        Case {
            name: "query_param",
            guard: json!({"kind": "query", "name": "api key", "value": "k&=+ ü/1"}),
            strategy: json!({"type": "query_param", "config": {"param_name": "api key"}}),
            credentials: json!({"api_key": "k&=+ ü/1"}),
            forged: ("Authorization", "Bearer forged"),
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_checks_credentials_admits_every_strategy_and_nothing_forged() {
    for case in cases() {
        let guarded = Guarded::start(&case.guard).await;
        let (name, value) = case.forged;
        let direct = Agent::new(([127, 0, 0, 1], guarded.port).into());
        let refused = direct.get("/").header(name, value).send().await;
        assert_eq!(refused.status, 401, "{}: the guard must hold", case.name);

        let broker = Broker::gateway().await;
        broker.set(
            &Scene::id(),
            Answer::credential(case.strategy, case.credentials),
        );
        let url = format!("http://127.0.0.1:{}", guarded.port);
        let sidecar = Sidecar::with(&broker, &Route::new("p", &url).connection(&Scene::id())).await;
        for target in ["/plain", "/with?q=1&r=2"] {
            let call = sidecar.agent().post(target, "{}").provider("p");
            let admitted = call.header(name, value).send().await;
            assert_eq!(
                (admitted.status, admitted.text()),
                (200, "welcome".to_owned()),
                "{}: {target}",
                case.name
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn set_fills_several_headers_or_parameters() {
    let upstream = Upstream::start().await;
    let set = json!([
        {"name": "DD-API-KEY", "credential_field": "api_key"},
        {"name": "DD-APPLICATION-KEY", "credential_field": "app_key", "value_prefix": "App "},
    ])
    .to_string();
    let credentials = json!({"api_key": "first-key", "app_key": "second-key"});
    let answer = |kind: &str| {
        let strategy = json!({"type": kind, "config": {"set": set}});
        Answer::credential(strategy, credentials.clone())
    };
    let scene = Scene::with_upstream(answer("header"), upstream, |route| route).await;
    let reply = scene.get("/").header("dd-api-key", "forged").send().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(scene.upstream.last().header("dd-api-key"), "first-key");
    assert_eq!(
        scene.upstream.last().header("dd-application-key"),
        "App second-key"
    );

    let scene = Scene::answering(answer("query_param")).await;
    let reply = scene.get("/a?x=1&DD-API-KEY=forged").send().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(
        scene.upstream.last().target,
        "/a?x=1&DD-API-KEY=first-key&DD-APPLICATION-KEY=App+second-key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_presents_an_oauth2_credential_as_header_or_basic() {
    for (strategy, expected) in [
        (
            json!({"type": "header", "config": {"header_name": "X-Shop-Access-Token",
                "credential_field": "access_token"}}),
            ("x-shop-access-token", "at-presented".to_owned()),
        ),
        (
            json!({"type": "basic_auth", "config": {"username": "x-access-token",
                "password_field": "access_token"}}),
            (
                "authorization",
                format!("Basic {}", STANDARD.encode("x-access-token:at-presented")),
            ),
        ),
    ] {
        let scene = Scene::adapted(Answer::oauth2("at-presented"), |route| {
            route.with("strategy", strategy)
        })
        .await;
        let answer = scene.get("/").send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(scene.upstream.last().header(expected.0), expected.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_malformed_or_contradicted_strategy_sends_nothing() {
    let key = json!({"api_key": "key-of-no-use", "password": "p", "username": ""});
    let pinned = json!({"type": "basic_auth"});
    for (strategy, route_strategy) in [
        (json!({"type": "kerberos"}), None),
        (json!({"config": {}}), None),
        (json!({"type": 7}), None),
        (json!({"type": "Header"}), None),
        (
            json!({"type": "header", "config": {"header_name": 7}}),
            None,
        ),
        (
            json!({"type": "header", "config": {"header_name": "a b"}}),
            None,
        ),
        (
            json!({"type": "header", "config": {"credential_field": "absent"}}),
            None,
        ),
        (json!({"type": "query_param"}), None),
        (json!({"type": "hmac_payload"}), None),
        (
            json!({"type": "hmac_payload", "config": {"header_name": "X", "algo": "md5"}}),
            None,
        ),
        (
            json!({"type": "hmac_payload", "config": {"header_name": "X", "encoding": "HEX"}}),
            None,
        ),
        (json!({"type": "aws_sigv4"}), None),
        (json!({"type": "basic_auth"}), None),
        (json!({"type": "header"}), Some(pinned)),
    ] {
        let answer = Answer::credential(strategy.clone(), key.clone());
        let scene = Scene::adapted(answer, |route| match route_strategy {
            Some(pinned) => route.with("strategy", pinned),
            None => route,
        })
        .await;
        let answer = scene.get("/").send().await;
        assert_eq!(
            (answer.status, answer.error()),
            (502, "credential_invalid"),
            "{strategy}"
        );
        assert!(!answer.text().contains("key-of-no-use"), "{strategy}");
        assert_eq!(scene.upstream.seen().len(), 0, "{strategy}");
    }
}
