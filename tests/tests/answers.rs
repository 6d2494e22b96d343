//! What of an upstream's answer reaches the agent: no credential, links and cookies that lead back through the sidecar,
//! and nothing that would reach beyond the answer.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use http::{HeaderMap, HeaderName};
use nexus_tests::answering::{Fixed, Scripted, TOKEN, answer, audited, next, rest};
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::clients::{output, python};
use nexus_tests::connection;
use nexus_tests::raw::{Outcome, RawAgent, RawUpstream, Reply};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::upstream::Upstream;
use serde_json::{Value, json};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn block_refuses_an_answer_that_repeats_the_credential_in_its_head() {
    let plain = answer("X-Echo: 1\r\n", b"fine");
    let header = answer(&format!("X-Echo: Bearer {TOKEN}\r\n"), b"fine");
    let content = answer("Content-Type: text/plain\r\n", TOKEN.as_bytes());
    let reason = format!("HTTP/1.1 401 Bad {TOKEN}\r\nContent-Length: 4\r\n\r\nfine").into_bytes();
    for (reply, status) in [(plain, 200), (header, 502), (reason, 502), (content, 502)] {
        let fixed = Fixed::new(reply, json!({"scrub": "Block"})).await;
        let got = fixed.get().await;
        assert_eq!(got.status, status, "{}", got.text());
        if status == 502 {
            assert_eq!(got.error(), "upstream_unreachable");
            assert!(got.text().contains("response.scrub is Block"));
            assert_eq!(got.headers.get("x-echo"), None);
            let line = audited(&fixed.sidecar).await;
            assert_eq!(
                (&line["status"], &line["scrubbed"]),
                (&json!(502), &json!(1))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_cuts_where_the_head_is_out_already() {
    for in_trailers in [false, true] {
        let scripted = Scripted::new(json!({"scrub": "Block"})).await;
        let response = scripted
            .begin("Content-Type: text/plain\r\nTrailer: X-Echo\r\n")
            .await;
        let mut body = response.into_body();
        scripted.chunk(b"first");
        assert_eq!(next(&mut body).await, "first");
        if in_trailers {
            scripted.end(&format!("X-Echo: {TOKEN}\r\n"));
        } else {
            scripted.chunk(format!("and {TOKEN}").as_bytes());
            scripted.end("");
        }
        let (bytes, trailers, whole) = rest(body).await;
        assert_eq!(
            (bytes, trailers, whole),
            (Vec::new(), HeaderMap::new(), false)
        );
        assert_eq!(audited(&scripted.sidecar).await["scrubbed"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_holds_on_http2_and_with_several_threads() {
    let authority = Authority::new();
    let upstream = Upstream::builder().tls(&authority, Leaf::Valid, &["h2"]);
    let upstream = upstream.start().await;
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), Answer::oauth2(TOKEN));
    let route = Route::new("p", &upstream.url())
        .connection(&Scene::id())
        .upstream("caBundle", authority.pem())
        .with("response", json!({"scrub": "Block"}));
    let run = Sidecar::run().control(&broker).route(&route);
    let sidecar = run.arg("--threads").arg("4").start().await;
    for _ in 0..50 {
        // The upstream repeats the request, its credential included.
        let response = sidecar.agent().get("/").provider("p").open().await.unwrap();
        let status = response.status().as_u16();
        let (bytes, _, whole) = rest(response.into_body()).await;
        // Its content may come a moment after its head, which has gone out then.
        match status {
            200 => assert!(!whole && bytes.is_empty()),
            other => assert!(other == 502 && whole),
        }
    }
    assert_eq!(upstream.last().version, "HTTP/2.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_on_record_though_the_agent_goes_away() {
    let scripted = Scripted::new(json!({})).await;
    let response = scripted.begin("Content-Type: text/plain\r\n").await;
    let mut body = response.into_body();
    scripted.chunk(TOKEN.as_bytes());
    assert_eq!(next(&mut body).await, "*".repeat(TOKEN.len()));
    drop(body);
    let line = audited(&scripted.sidecar).await;
    assert_eq!(
        (&line["type"], &line["scrubbed"]),
        (&json!("audit"), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_caller_is_refused_in_its_own_words() {
    let fields = format!("Content-Type: application/grpc\r\nX-Echo: {TOKEN}\r\n");
    let fixed = Fixed::new(answer(&fields, b""), json!({"scrub": "Block"})).await;
    let got = fixed.get().await;
    assert_eq!((got.status, got.header("grpc-status")), (200, "14"));
    assert_eq!(got.error(), "upstream_unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vouches_for_masked_content_does_not_arrive() {
    let vouching = "ETag: \"1\"\r\nContent-MD5: x\r\nDigest: x\r\nRepr-Digest: x\r\n\
                    Content-Digest: x\r\nx-amz-checksum-crc32: x\r\n";
    let fields = format!("Content-Type: text/plain\r\n{vouching}");
    for (content, left) in [("nothing", 6), (TOKEN, 0)] {
        let fixed = Fixed::new(answer(&fields, content.as_bytes()), json!({})).await;
        let got = fixed.get().await;
        assert_eq!(got.status, 200);
        let found = [
            "etag",
            "content-md5",
            "digest",
            "repr-digest",
            "content-digest",
            "x-amz-checksum-crc32",
        ]
        .iter()
        .filter(|name| got.headers.contains_key(**name))
        .count();
        assert_eq!(found, left, "{content}: {:?}", got.headers);
        assert_eq!(got.header("content-length"), content.len().to_string());
        let masked = content.replace(TOKEN, &"*".repeat(TOKEN.len()));
        assert_eq!(got.text(), masked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_masked_and_filtered() {
    for (content, vouched) in [("clean", true), (TOKEN, false)] {
        let scripted = Scripted::new(json!({})).await;
        let names = "X-Echo, X-Nexus-Error, Set-Cookie, Content-Digest, X-Last";
        let response = scripted
            .begin(&format!("Content-Type: text/plain\r\nTrailer: {names}\r\n"))
            .await;
        scripted.chunk(content.as_bytes());
        scripted
            .end("X-Nexus-Error: forged\r\nSet-Cookie: a=b\r\nContent-Digest: x\r\nX-Last: 1\r\n");
        let (bytes, trailers, whole) = rest(response.into_body()).await;
        assert!(whole);
        assert_eq!(bytes.len(), content.len());
        let mut names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        if vouched {
            assert_eq!(names, ["content-digest", "x-last"]);
        } else {
            assert_eq!(names, ["x-last"]);
        }
    }
    let scripted = Scripted::new(json!({})).await;
    let response = scripted.begin("Trailer: X-Echo\r\n").await;
    scripted.end(&format!("X-Echo: Bearer {TOKEN}\r\n"));
    let (_, trailers, whole) = rest(response.into_body()).await;
    assert!(whole);
    assert_eq!(
        trailers["x-echo"],
        format!("Bearer {}", "*".repeat(TOKEN.len()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_reaches_beyond_the_answer_and_no_hint_comes_before_it() {
    let reply = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n\
        HTTP/1.1 200 OK\r\nX-Nexus-Error: forged\r\nX-Nexus-Request-Id: forged\r\nAuthorization: x\r\n\
        Alt-Svc: h3=\":443\"\r\nStrict-Transport-Security: max-age=1\r\nClear-Site-Data: \"*\"\r\n\
        Set-Cookie: a=b\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
        WWW-Authenticate: Negotiate\r\nWWW-Authenticate: Basic realm=\"a\"\r\nX-Public: 1\r\n\
        Content-Length: 2\r\n\r\nok";
    let fixed = Fixed::new(reply.to_vec(), json!({})).await;
    let mut agent = RawAgent::connect(fixed.sidecar.proxy_addr()).await;
    agent
        .send("GET /x HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n")
        .await;
    let Outcome::Response(got) = agent.receive().await else {
        panic!("no answer");
    };
    assert_eq!(got.status(), 200, "the first thing to come: {}", got.start);
    let mut names: Vec<_> = got
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "content-length",
            "date",
            "www-authenticate",
            "x-nexus-request-id",
            "x-public"
        ]
    );
    assert_eq!(got.values("www-authenticate"), ["Basic realm=\"a\""]);
    assert_ne!(got.header("x-nexus-request-id"), Some("forged"));
}

/// The credential is a query parameter, which links repeat.
fn key_in_query() -> Answer {
    Answer::credential(
        json!({"type": "query_param", "config": {"param_name": "api_key"}}),
        json!({"api_key": "key-in-the-query"}),
    )
}

/// An upstream whose answers hold links to itself, and a sidecar before it.
async fn linked(response: Value) -> Fixed {
    let reply = |url: &str| {
        let escaped = format!("{url}/v1").replace('/', "\\/");
        let content = format!(
            "{{\"next\":\"{url}/v1/x?page=2&api_key=key-in-the-query\",\"self\":\"{escaped}\",\"other\":\"{url}/v10\"}}"
        );
        let fields = "Content-Type: application/json\r\nETag: \"1\"\r\nAccept-Ranges: bytes\r\n";
        answer(fields, content.as_bytes())
    };
    Fixed::linked(reply, key_in_query(), response).await
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_content_lead_back_through_the_sidecar() {
    for scrub in ["Redact", "Block"] {
        let fixed = linked(json!({"rewriteLinks": "Body", "scrub": scrub})).await;
        let url = fixed.upstream.url();
        let agent = fixed.sidecar.agent();
        let other = format!("{url}/v10");
        let absolute = format!("{url}/v1");
        for (call, own) in [
            (agent.get("/x").provider("p"), ""),
            (agent.get("/via/p/x"), "/via/p"),
            (agent.get(&format!("{absolute}/x")), absolute.as_str()),
        ] {
            let got = call.send().await;
            assert_eq!(got.status, 200, "{}", got.text());
            let root = if own.is_empty() { "/" } else { own };
            assert_eq!(
                got.json(),
                json!({"next": format!("{own}/x?page=2"), "self": root, "other": other})
            );
            for name in ["etag", "content-length", "accept-ranges"] {
                assert_eq!(got.header(name), "", "{name}");
            }
        }
        let next = agent.get("/via/p/x?page=2").send().await;
        assert_eq!(next.status, 200);
        let asked = fixed.upstream.requests();
        let last = asked.last().unwrap().target();
        assert_eq!(last, "/v1/x?page=2&api_key=key-in-the-query");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_content_stay_unless_they_are_asked_for() {
    let fixed = linked(json!({})).await;
    let got = fixed.get().await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.header("content-length"), got.body.len().to_string());
    let next = format!("\"{}/v1/x?page=2&api_key=***", fixed.upstream.url());
    assert!(got.text().contains(&next), "{}", got.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_stay_with_their_provider() {
    let fields = "Set-Cookie: session=of-p; Domain=api.example.com; Path=/v1; Secure; HttpOnly\r\n";
    let p = RawUpstream::start(Reply::Bytes(answer(fields, b"ok"))).await;
    let q = RawUpstream::ok().await;
    let broker = Broker::gateway().await;
    let mut run = Sidecar::run().control(&broker);
    for (number, (name, upstream)) in [(1, ("p", &p)), (2, ("q", &q))] {
        broker.set(&connection(number), Answer::oauth2(TOKEN));
        let route = Route::new(name, &format!("{}/v1", upstream.url()))
            .connection(&connection(number))
            .with("response", json!({"setCookie": "Pass"}));
        run = run.route(&route);
    }
    let sidecar = run.start().await;
    let script = "import requests, sys\n\
        session = requests.Session()\n\
        session.trust_env = False\n\
        for path in ['/via/p/login', '/via/p/x', '/via/q/x', '/via/p']:\n\
        \x20   session.get(sys.argv[1] + path)\n";
    output(Command::new(python()).args(["-c", script, &sidecar.url()])).await;
    let cookies = |upstream: &RawUpstream| -> Vec<(String, Vec<String>)> {
        let requests = upstream.requests();
        requests
            .iter()
            .map(|request| {
                let values = request.values("cookie").into_iter().map(str::to_owned);
                (request.target().to_owned(), values.collect())
            })
            .collect()
    };
    let sent = vec!["session=of-p".to_owned()];
    assert_eq!(
        cookies(&p),
        [
            ("/v1/login".to_owned(), vec![]),
            ("/v1/x".to_owned(), sent.clone()),
            ("/v1/".to_owned(), sent),
        ]
    );
    assert_eq!(cookies(&q), [("/v1/x".to_owned(), vec![])]);
}
