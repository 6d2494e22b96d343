//! Every status row of the control plane's protocol, answered as it was recorded, becomes its code of the error
//! table; malformed payloads fail closed; nothing hangs.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use nexus_tests::broker::{Answer, Broker, Front};
use nexus_tests::raw;
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use nexus_tests::wire;
use nexus_tests::{agent, connection};
use serde_json::json;

/// One sidecar whose routes are as many as there are answers to try, so that no answer waits for another's hold.
struct Rows {
    broker: Broker,
    upstream: Upstream,
    sidecar: Sidecar,
}

impl Rows {
    async fn start(front: Front, answers: Vec<Answer>) -> Self {
        let broker = Broker::start(front, None).await;
        let upstream = Upstream::start().await;
        let mut builder = Sidecar::run().control(&broker);
        for (number, answer) in (0..).zip(answers) {
            broker.set(&connection(number), answer);
            let route = Route::new(&format!("row-{number}"), &upstream.url());
            builder = builder.route(&route.connection(&connection(number)));
        }
        Self {
            broker,
            upstream,
            sidecar: builder.start().await,
        }
    }

    async fn ask(&self, row: usize) -> agent::Answer {
        let provider = format!("row-{row}");
        self.sidecar
            .agent()
            .get("/")
            .provider(&provider)
            .send()
            .await
    }
}

type Row = (&'static str, &'static str, u16, &'static str);

async fn assert_rows(front: Front, rows: &[Row]) {
    let answers = rows
        .iter()
        .map(|(file, exchange, ..)| Answer::raw(wire::response(file, exchange)))
        .collect();
    let scene = Rows::start(front, answers).await;
    for (number, (file, exchange, status, code)) in rows.iter().enumerate() {
        let answer = scene.ask(number).await;
        assert_eq!(
            (answer.status, answer.error()),
            (*status, *code),
            "{file}: {exchange}: {}",
            answer.text()
        );
        if *code == "broker_unavailable" {
            let after: u64 = answer.header("retry-after").parse().unwrap();
            assert!(after >= 1, "{file}: {exchange}");
        }
        let id = connection(u32::try_from(number).unwrap());
        assert!(
            !answer.text().contains(&id),
            "the connection id is not for the agent"
        );
        assert!(
            !answer.text().contains("127.0.0.1"),
            "nor is the control plane's address"
        );
    }
    assert_eq!(
        scene.upstream.seen().len(),
        0,
        "nothing was sent without a credential"
    );
}

const GATEWAY_ROWS: &[Row] = &[
    ("ids", "gateway malformed", 404, "connection_unknown"),
    (
        "auth-gateway",
        "gateway with no BROKER_API_KEY",
        502,
        "broker_rejected",
    ),
    (
        "auth-gateway",
        "gateway with a wrong BROKER_API_KEY",
        403,
        "connection_inactive",
    ),
    (
        "token-oauth-rotate-pending",
        "gateway token",
        403,
        "connection_inactive",
    ),
    (
        "token-oauth-rotate-revoked",
        "gateway token",
        403,
        "connection_inactive",
    ),
    (
        "token-oauth-rotate-failed",
        "gateway token",
        403,
        "connection_inactive",
    ),
    (
        "token-oauth-rotate-expired",
        "gateway token",
        403,
        "connection_inactive",
    ),
    ("token-unknown", "gateway token", 404, "connection_unknown"),
    ("database-down", "gateway token", 404, "connection_unknown"),
    ("ids", "gateway unknown path", 404, "connection_unknown"),
    ("ids", "gateway POST token", 503, "broker_unavailable"),
    (
        "token-oauth-rotate-attention",
        "gateway token",
        403,
        "attention_required",
    ),
    ("broker-500", "gateway token", 503, "broker_unavailable"),
    (
        "broker-down",
        "gateway token, broker port closed",
        503,
        "broker_unavailable",
    ),
    ("broker-hang", "gateway token", 503, "broker_unavailable"),
    (
        "broker-garbage",
        "gateway token, broker says 200 html",
        503,
        "broker_unavailable",
    ),
    (
        "broker-garbage",
        "gateway token, broker says 200 json null",
        503,
        "broker_unavailable",
    ),
    (
        "broker-garbage",
        "gateway token, broker says 204",
        503,
        "broker_unavailable",
    ),
    (
        "broker-garbage",
        "gateway token, broker says 302",
        503,
        "broker_unavailable",
    ),
    (
        "broker-garbage",
        "gateway token, broker says 429",
        503,
        "broker_unavailable",
    ),
    (
        "broker-garbage",
        "gateway token, broker says 503 html",
        503,
        "broker_unavailable",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_refusal_of_the_gateway_becomes_its_code() {
    assert_rows(Front::Gateway, GATEWAY_ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_refusal_of_the_broker_becomes_its_code() {
    assert_rows(
        Front::Broker,
        &[
            ("auth-broker", "no key", 502, "broker_rejected"),
            ("auth-broker", "wrong key", 502, "broker_rejected"),
            (
                "auth-broker",
                "source outside ALLOWED_CIDRS",
                502,
                "broker_rejected",
            ),
            ("ids", "broker  malformed", 404, "connection_unknown"),
            (
                "token-oauth-rotate-pending",
                "broker token",
                403,
                "connection_inactive",
            ),
            ("token-unknown", "broker token", 404, "connection_unknown"),
            ("database-down", "broker token", 404, "connection_unknown"),
            (
                "token-oauth-rotate-attention",
                "broker token",
                403,
                "attention_required",
            ),
            ("broker-500", "broker token", 503, "broker_unavailable"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_refusal_of_the_grpc_front_becomes_its_code() {
    assert_rows(
        Front::Grpc,
        &[
            (
                "token-unknown",
                "grpc-gateway HTTP front",
                503,
                "broker_unavailable",
            ),
            (
                "token-oauth-rotate-attention",
                "grpc-gateway HTTP front",
                503,
                "broker_unavailable",
            ),
            ("grpc-front-broker-down", "token", 503, "broker_unavailable"),
            ("ids", "grpc front unknown path", 404, "connection_unknown"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_only_later_versions_answer_become_their_code() {
    let rows = [
        (
            400,
            r#"{"error":"connection_not_active","message":"m"}"#,
            403,
            "connection_inactive",
        ),
        (
            409,
            r#"{"error":"token_expired","detail":"d"}"#,
            503,
            "broker_unavailable",
        ),
        (
            410,
            r#"{"error":"connection_revoked","message":"m"}"#,
            403,
            "connection_inactive",
        ),
        (
            500,
            r#"{"error":"decrypt_failed","message":"m"}"#,
            503,
            "broker_unavailable",
        ),
        (
            500,
            r#"{"error":"invalid_token_format","message":"m"}"#,
            503,
            "broker_unavailable",
        ),
        (504, "", 503, "broker_unavailable"),
        (404, "connection not found\n", 404, "connection_unknown"),
    ];
    let answers = rows
        .iter()
        .map(|(status, body, ..)| Answer::raw(raw::response(*status, "application/json", body)))
        .collect();
    let scene = Rows::start(Front::Broker, answers).await;
    for (number, (_, body, status, code)) in rows.iter().enumerate() {
        let answer = scene.ask(number).await;
        assert_eq!((answer.status, answer.error()), (*status, *code), "{body}");
    }
    let text = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    let limited = Rows::start(Front::Gateway, vec![Answer::raw(text)]).await;
    let answer = limited.ask(0).await;
    assert_eq!((answer.status, answer.error()), (503, "broker_unavailable"));
    assert_eq!(
        answer.header("retry-after"),
        "1",
        "zero would be a busy loop"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_credentials_of_every_front_are_used() {
    let key = ("x-api-key", "hdr-key-3");
    for (front, exchange) in [
        (Front::Gateway, "gateway token"),
        (Front::Broker, "broker token"),
        (Front::Grpc, "grpc-gateway HTTP front"),
    ] {
        let rows = [
            "token-key-plain",
            "token-key-authorization",
            "token-key-query",
            "token-basic-plain",
            "token-hmac-sha256-hex",
            "token-aws-s3",
        ];
        let answers = rows
            .iter()
            .map(|file| Answer::raw(wire::response(file, exchange)))
            .collect();
        let scene = Rows::start(front, answers).await;
        for (number, file) in rows.iter().enumerate() {
            let answer = scene.ask(number).await;
            assert_eq!(answer.status, 200, "{front:?} {file}: {}", answer.text());
        }
        assert_eq!(scene.upstream.seen().len(), rows.len());
        assert_eq!(scene.upstream.seen()[0].header(key.0), "plain-key-1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_past_its_expiry_is_never_sent() {
    let past = json!({"access_token": "token-of-yesterday", "expires_at": "2020-01-01T00:00:00Z"});
    let marked = json!({"access_token": "token-of-yesterday", "expired": true});
    let number = json!({"access_token": "token-of-yesterday", "expires_at": 1_577_836_800});
    let oauth2 = json!({"type": "oauth2"});
    let mut answers: Vec<Answer> = [past, marked, number]
        .into_iter()
        .map(|credentials| Answer::credential(oauth2.clone(), credentials))
        .collect();
    answers.push(Answer::raw(wire::response(
        "expired",
        "gateway token 3 s later",
    )));
    let count = answers.len();
    let scene = Rows::start(Front::Gateway, answers).await;
    // The last one brought a refresh token, which would help.
    let denied = Answer::status(400, "no_refresh_token");
    scene.broker.set_refresh(&connection(3), denied);
    for row in 0..count {
        let answer = scene.ask(row).await;
        assert_eq!(
            (answer.status, answer.error()),
            (502, "credential_invalid"),
            "row {row}"
        );
        assert!(!answer.text().contains("token-of-yesterday"));
    }
    assert_eq!(scene.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_used_until_it_expires_and_then_fetched_anew() {
    let answer = |token: &str, expires_at: u64| {
        Answer::credential(
            json!({"type": "oauth2"}),
            json!({"access_token": token, "expires_at": expires_at}),
        )
    };
    let scene = Scene::answering(Answer::status(404, "not yet asked for")).await;
    let soon = nexus_tests::upstream::now_micros() / 1_000_000 + 6;
    scene
        .broker
        .set(&Scene::id(), answer("first-of-two-tokens", soon));
    assert_eq!(scene.get("/").send().await.status, 200);
    scene
        .broker
        .set(&Scene::id(), answer("second-of-two-tokens", soon + 3600));
    let mut switched = false;
    nexus_tests::wait::within("the second token", async {
        while !switched {
            let before = nexus_tests::upstream::now_micros() / 1_000_000;
            let answer = scene.get("/").send().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let authorization = scene.upstream.last().header("authorization").to_owned();
            switched = authorization == "Bearer second-of-two-tokens";
            assert!(
                switched || before < soon,
                "{authorization} was used after its expiry"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routes_time_for_a_request_covers_the_wait_for_its_credential() {
    let slow = Answer::oauth2("a-token-that-is-late").after(Duration::from_secs(3));
    let limited = |route: Route| route.with("timeouts", json!({"request": "200ms"}));
    let scene = Scene::adapted(slow, limited).await;
    let answer = scene.get("/").send().await;
    assert_eq!((answer.status, answer.error()), (503, "broker_unavailable"));
    assert!(
        answer.text().contains("timeouts.request"),
        "{}",
        answer.text()
    );
    assert_eq!(scene.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_payloads_fail_closed() {
    let closed = [(502, "credential_invalid"), (503, "broker_unavailable")];
    let bodies = [
        "",
        "{",
        "null",
        "[]",
        "7",
        "\"text\"",
        "{}",
        "<html>login</html>",
        r#"{"strategy":{"type":"oauth2"},"credentials":null}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{}}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":""}}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":7}}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":null}}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":{"a":"b"}}}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":"line\nbreak"}}"#,
        r#"{"strategy":"oauth2","credentials":{"access_token":"abcdefgh"}}"#,
        r#"{"strategy":{"type":"header","config":[]},"credentials":{"api_key":"abcdefgh"}}"#,
        r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":"abcdefgh","expires_at":"soon"}}"#,
        r#"{"error":"broker_unavailable","message":"broker request failed"}"#,
        r#"{"token":{}}"#,
        r#"{"token":null}"#,
    ];
    let mut answers: Vec<Answer> = bodies.iter().map(|body| Answer::body(body)).collect();
    answers.push(Answer::close());
    answers.push(Answer::raw("not http at all\r\n\r\n"));
    answers.push(Answer::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"cut\"",
    ));
    answers.push(Answer::body(&format!(
        r#"{{"padding":"{}"}}"#,
        "x".repeat(4 << 20)
    )));
    let odd = [
        "gateway: credentials null",
        "gateway: credentials empty object",
        "gateway: auth_strategy without type",
        "gateway: config with a number",
        "gateway: unknown strategy type",
    ];
    answers.extend(
        odd.iter()
            .map(|odd| Answer::raw(wire::response("odd-data", odd))),
    );
    // A body that is cut short is followed by nothing; the stand-in closes after the one that hangs.
    let count = answers.len();
    let scene = Rows::start(Front::Gateway, answers).await;
    for row in 0..count {
        let answer = scene.ask(row).await;
        let got = (answer.status, answer.error());
        assert!(
            closed.contains(&got),
            "row {row} {:?}: {got:?}",
            bodies.get(row)
        );
        assert!(
            !answer.text().contains("abcdefgh"),
            "row {row}: {}",
            answer.text()
        );
    }
    assert_eq!(scene.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_hangs_or_is_gone_is_given_up_on_in_time() {
    let scene = Scene::answering(Answer::hang()).await;
    let start = Instant::now();
    let answer = scene.get("/").send().await;
    assert_eq!((answer.status, answer.error()), (503, "broker_unavailable"));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );

    let upstream = Upstream::start().await;
    let gone = Broker::gateway().await.url();
    let route = Route::new("p", &upstream.url()).connection(&Scene::id());
    let sidecar = Sidecar::run()
        .route(&route)
        .gateway_url(&gone)
        .start()
        .await;
    let answer = sidecar.agent().get("/").provider("p").send().await;
    assert_eq!((answer.status, answer.error()), (503, "broker_unavailable"));
    assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_survived_by_asking_again() {
    let scene = Scene::answering(Answer::status(502, "broker_unavailable")).await;
    assert_eq!(scene.get("/").send().await.error(), "broker_unavailable");
    scene
        .broker
        .set(&Scene::id(), Answer::oauth2("token-after-the-outage"));
    nexus_tests::wait::within("the end of the outage", async {
        while scene.get("/").send().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // Requests during the hold did not each ask: backoff bounds the calls.
    assert!(
        scene.broker.calls(&Scene::id()) <= 12,
        "{}",
        scene.broker.calls(&Scene::id())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_gets_the_key_of_the_file_and_the_gateways_id_is_canonical() {
    let broker = Broker::start(Front::Broker, Some("key-of-the-file")).await;
    let id = "5c1756ea-770e-4ca5-8310-398ec1aa0be5";
    broker.set(id, Answer::oauth2("token-behind-the-key"));
    let upstream = Upstream::start().await;
    let spelled = id.replace('-', "").to_uppercase();
    let route = Route::new("p", &upstream.url()).connection(&spelled);
    let builder = Sidecar::run().route(&route).control(&broker);
    // A file written by hand ends with a line break.
    let sidecar = builder.api_key("key-of-the-file\n").start().await;
    let answer = sidecar.agent().get("/").provider("p").send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(broker.calls(id), 1);
    let wrong = Sidecar::run()
        .route(&route)
        .control(&broker)
        .api_key("wrong")
        .start()
        .await;
    let answer = wrong.agent().get("/").provider("p").send().await;
    assert_eq!((answer.status, answer.error()), (502, "broker_rejected"));
}
