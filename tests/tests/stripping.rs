//! What an agent may not do: authenticate by itself, double what a strategy sets, move a credential to another
//! host, or leave the base path. What must arrive arrives byte for byte.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use http::Method;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::raw::{Outcome, RawAgent, RawUpstream};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use serde_json::json;

fn key_in_header() -> Answer {
    Answer::header("X-Strategy-Key", "key-that-is-injected")
}

fn key_in_query() -> Answer {
    Answer::credential(
        json!({"type": "query_param", "config": {"param_name": "api_key"}}),
        json!({"api_key": "key-in-the-query"}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_of_the_agent_reaches_the_upstream() {
    let scene = Scene::answering(key_in_header()).await;
    let names = [
        "Authorization",
        "Cookie",
        "Proxy-Authorization",
        "X-Api-Key",
        "Api-Key",
        "X-Goog-Api-Key",
        "Private-Token",
        "X-Auth-Token",
        "Ocp-Apim-Subscription-Key",
        "X-Amz-Security-Token",
        "DPoP",
        "X-SFDC-Session",
        "X-Figma-Token",
        "X-Shopify-Access-Token",
        "X-Shopify-Storefront-Access-Token",
        "Shopify-Storefront-Private-Token",
        "DD-API-KEY",
        "DD-APPLICATION-KEY",
        "X-Auth-Key",
        "X-Auth-Email",
        "X-Auth-User-Service-Key",
        "X-Subscription-Token",
        "Job-Token",
        "Deploy-Token",
        "apikey",
        "BoxApi",
        "X-Nexus-Anything",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "Forwarded",
        "X-Real-IP",
        "X-HTTP-Method-Override",
        "X-Method-Override",
        "X-HTTP-Method",
        "X-Original-URL",
        "X-Rewrite-URL",
    ];
    let mut call = scene.get("/").header("X-Of-The-Agent", "kept");
    for name in names {
        // Twice, since taking away one of two would be the easy mistake.
        call = call
            .header(name, "of-the-agent")
            .header(name, "of-the-agent-too");
    }
    let answer = call.send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = scene.upstream.only();
    for name in names {
        assert_eq!(seen.values(name), [""; 0], "{name}");
    }
    assert_eq!(seen.header("x-of-the-agent"), "kept");
    assert_eq!(seen.header("x-strategy-key"), "key-that-is-injected");
    assert!(
        seen.headers
            .iter()
            .all(|(name, _)| !name.starts_with("x-nexus"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_fields_end_here_with_those_that_connection_names() {
    let scene = Scene::answering(key_in_header()).await;
    let answer = scene
        .get("/")
        .header("Connection", "keep-alive, X-Private ,te")
        .header("Connection", "x-second-private, X-Strategy-Key")
        .header("X-Private", "1")
        .header("X-Second-Private", "1")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("TE", "trailers, deflate")
        .header("X-Public", "1")
        .send()
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = scene.upstream.only();
    for name in [
        "connection",
        "x-private",
        "x-second-private",
        "keep-alive",
        "proxy-connection",
    ] {
        assert_eq!(seen.values(name), [""; 0], "{name}");
    }
    assert!(seen.values("te").iter().all(|value| *value == "trailers"));
    assert_eq!(seen.header("x-public"), "1");
    assert_eq!(seen.header("x-strategy-key"), "key-that-is-injected");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_keep_restores_one_that_is_stripped_by_default() {
    let scene = Scene::adapted(key_in_header(), |route| {
        route.with(
            "headers",
            json!({"keep": ["X-Api-Key"], "remove": ["X-Foo"], "set": {"X-Set": "1"}}),
        )
    })
    .await;
    let call = scene
        .get("/")
        .header("X-Api-Key", "publishable")
        .header("X-Foo", "1");
    let answer = call.header("X-Set", "of the agent").send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = scene.upstream.only();
    assert_eq!(seen.header("x-api-key"), "publishable");
    assert_eq!(seen.values("x-foo"), [""; 0]);
    assert_eq!(seen.header("x-set"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_strategys_header_cannot_be_doubled_in_any_spelling() {
    // On a raw upstream, so that no library between hides a second field.
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), key_in_header());
    let upstream = RawUpstream::ok().await;
    let route = Route::new("p", &upstream.url()).connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route).await;
    for spelling in [
        "X-Strategy-Key",
        "x-strategy-key",
        "X-STRATEGY-KEY",
        "x-Strategy-kEY",
    ] {
        let mut agent = RawAgent::connect(sidecar.proxy_addr()).await;
        agent
            .send(format!(
                "GET /{spelling} HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\
                 {spelling}: forged\r\n{spelling}:forged again\r\nX-Strategy_Key: other\r\n\r\n"
            ))
            .await;
        assert!(matches!(agent.receive().await, Outcome::Response(r) if r.status() == 200));
    }
    for request in upstream.requests() {
        assert_eq!(request.values("x-strategy-key"), ["key-that-is-injected"]);
    }
    assert_eq!(upstream.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_strategys_parameter_cannot_be_doubled_in_any_spelling() {
    let scene = Scene::answering(key_in_query()).await;
    for (sent, arrives) in [
        ("/a", "/a?api_key=key-in-the-query"),
        ("/a?", "/a?api_key=key-in-the-query"),
        ("/a?api_key=forged", "/a?api_key=key-in-the-query"),
        (
            "/a?api_key=1&api_key=2&x=3&api_key",
            "/a?x=3&api_key=key-in-the-query",
        ),
        (
            "/a?api%5Fkey=1&%61pi_key=2&x=3",
            "/a?x=3&api_key=key-in-the-query",
        ),
        ("/a?%61%70%69%5f%6b%65%79=1", "/a?api_key=key-in-the-query"),
        // Everything else stays as it was sent, in its order and its spelling.
        (
            "/a?z=1&a=%2f&plus=a+b&flag&=v&x=1&x=2",
            "/a?z=1&a=%2f&plus=a+b&flag&=v&x=1&x=2&api_key=key-in-the-query",
        ),
        // Servers that ignore the case of names would see it twice.
        ("/a?API_KEY=other", "/a?api_key=key-in-the-query"),
        ("/a?xapi_key=1", "/a?xapi_key=1&api_key=key-in-the-query"),
    ] {
        let answer = scene.get(sent).send().await;
        assert_eq!(answer.status, 200, "{sent}: {}", answer.text());
        assert_eq!(scene.upstream.last().target, arrives, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_host_nor_absolute_form_moves_a_credential_to_another_host() {
    let scene = Scene::answering(key_in_header()).await;
    let other = Upstream::start().await;
    let elsewhere = other.addr();
    let own = scene.upstream.addr();
    for (target, host, status) in [
        // A foreign Host with a plain path is what a rebound browser sends.
        ("/x".to_owned(), elsewhere.to_string(), None),
        ("/x".to_owned(), "evil.example".to_owned(), Some(403)),
        // The provider is named, so the path is literal and the absolute form's host decides nothing.
        (format!("http://{elsewhere}/x"), elsewhere.to_string(), None),
        (format!("http://{own}/x"), elsewhere.to_string(), None),
        (format!("http://{elsewhere}/x"), own.to_string(), None),
    ] {
        let call = scene.get(&target).header("Host", &host);
        let answer = call.send().await;
        if let Some(status) = status {
            assert_eq!(answer.status, status, "{target} for {host}");
        }
        assert_eq!(other.seen().len(), 0, "{target} for {host}");
        for seen in scene.upstream.seen() {
            assert_eq!(
                seen.authority,
                own.to_string(),
                "Host is the upstream's own"
            );
        }
    }
    // Without a provider the host must be a routed one.
    for target in [
        format!("http://{elsewhere}/x"),
        format!("http://user@{elsewhere}/x"),
        format!("http://{own}@{elsewhere}/x"),
        "http://127.0.0.1:1/x".to_owned(),
    ] {
        let agent = scene.sidecar.agent();
        let answer = agent
            .get(&target)
            .header("Host", &own.to_string())
            .send()
            .await;
        assert!(
            matches!(answer.status, 400 | 404),
            "{target}: {}",
            answer.status
        );
        assert!(!answer.error().is_empty());
    }
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_the_base_path() {
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), key_in_header());
    let upstream = RawUpstream::ok().await;
    let url = format!("{}/base/v1", upstream.url());
    let sidecar = Sidecar::with(&broker, &Route::new("p", &url).connection(&Scene::id())).await;
    let escapes = [
        "/../admin",
        "/..",
        "/.",
        "/a/../../../admin",
        "/a/./b",
        "/%2e%2e/admin",
        "/%2E%2E/admin",
        "/.%2e/admin",
        "/%2e./admin",
        "/a/%2e%2e%2f%2e%2e/admin",
        "/..%2fadmin",
        "/..%5cadmin",
        "/..\\admin",
        "/a\\..\\..\\admin",
        "/%5c..%5cadmin",
        "/..;/admin",
        "/..;x=1/admin",
        "/%2e%2e;a/admin",
        "/%252e%252e/admin",
        "/%25252e%25252e/admin",
        "/..%252fadmin",
        "/a%00b",
        "/a%",
        "/a%2",
        "/a%zz",
    ];
    for path in escapes {
        for prefix in ["", "/via/p"] {
            let mut agent = RawAgent::connect(sidecar.proxy_addr()).await;
            let named = if prefix.is_empty() {
                "X-Nexus-Provider: p\r\n"
            } else {
                ""
            };
            agent
                .send(format!(
                    "GET {prefix}{path} HTTP/1.1\r\nHost: localhost\r\n{named}\r\n"
                ))
                .await;
            match agent.receive().await {
                Outcome::Response(answer) => assert_eq!(answer.status(), 400, "{prefix}{path}"),
                Outcome::Closed => panic!("no answer to {prefix}{path}"),
            }
        }
    }
    for raw in [&b"/a\x01b"[..], b"/a\x7fb", b"/caf\xc3\xa9", b"*"] {
        let mut agent = RawAgent::connect(sidecar.proxy_addr()).await;
        agent.send(b"GET ").await;
        agent.send(raw).await;
        agent
            .send(b" HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n")
            .await;
        match agent.receive().await {
            Outcome::Response(answer) => assert_eq!(answer.status(), 400, "{raw:?}"),
            Outcome::Closed => panic!("no answer to {raw:?}"),
        }
    }
    assert_eq!(upstream.requests(), [], "nothing went out");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_queries_arrive_byte_for_byte() {
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), key_in_header());
    let upstream = RawUpstream::ok().await;
    let url = format!("{}/base", upstream.url());
    let sidecar = Sidecar::with(&broker, &Route::new("p", &url).connection(&Scene::id())).await;
    let targets = [
        "/",
        "/bucket//key///with/slashes",
        "//leading",
        "/api/v4/projects/group%2Fproject/repository",
        "/@scope%2Fpkg/-/pkg-1.0.0.tgz",
        "/a%2fb%2Fc",
        "/users('id')/sendMail",
        "/a;b=c/d,e!$&*+=:@",
        "/%7Euser/~user",
        "/trailing/",
        "/...",
        "/..a/b..",
        "/a?b/../c",
        "/q?x=%2e%2e/%00",
        "/q?a=1&&b=2&",
        "/q??",
        "/q?",
        "/%E2%82%AC?%E2%82%AC",
    ];
    for target in targets {
        for prefix in ["", "/via/p"] {
            let mut agent = RawAgent::connect(sidecar.proxy_addr()).await;
            let named = if prefix.is_empty() {
                "X-Nexus-Provider: p\r\n"
            } else {
                ""
            };
            agent
                .send(format!(
                    "GET {prefix}{target} HTTP/1.1\r\nHost: localhost\r\n{named}\r\n"
                ))
                .await;
            match agent.receive().await {
                Outcome::Response(answer) => assert_eq!(answer.status(), 200, "{prefix}{target}"),
                Outcome::Closed => panic!("no answer to {prefix}{target}"),
            }
            let requests = upstream.requests();
            let arrived = requests.last().unwrap();
            assert_eq!(arrived.target(), format!("/base{target}"), "{prefix}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn order_and_values_within_a_name_arrive_as_sent() {
    let scene = Scene::answering(key_in_header()).await;
    let answer = scene
        .get("/")
        .header("X-Many", "one, two")
        .header("X-Many", "three")
        .header("X-Many", "")
        .header("Accept", "a/b;q=0.5 ,  c/d")
        .send()
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = scene.upstream.only();
    assert_eq!(seen.values("x-many"), ["one, two", "three", ""]);
    assert_eq!(seen.header("accept"), "a/b;q=0.5 ,  c/d");
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_and_traces_are_refused_with_a_reason() {
    let scene = Scene::answering(key_in_header()).await;
    for method in ["TRACE", "TRACK"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = scene
            .sidecar
            .agent()
            .call(method, "/")
            .provider("p")
            .send()
            .await;
        assert_eq!((answer.status, answer.error()), (405, "method_not_allowed"));
    }
    let mut agent = RawAgent::connect(scene.sidecar.proxy_addr()).await;
    let target = scene.upstream.addr();
    agent
        .send(format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        ))
        .await;
    match agent.receive().await {
        Outcome::Response(answer) => assert_eq!(answer.status(), 405),
        Outcome::Closed => panic!("CONNECT was not answered"),
    }
    assert_eq!(scene.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_refused() {
    let scene = Scene::answering(key_in_header()).await;
    for (name, value) in [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Host", "rebound.example"),
        ("Host", "localhost.evil.example"),
    ] {
        let answer = scene.get("/").header(name, value).send().await;
        assert_eq!(
            (answer.status, answer.error()),
            (403, "origin_forbidden"),
            "{name}: {value}"
        );
    }
    for (name, value) in [
        ("Sec-Fetch-Mode", "cors"),
        ("Host", "localhost"),
        ("Host", "LOCALHOST:8080"),
        ("Host", "nexus.localhost:1"),
        ("Host", "127.0.0.1"),
        ("Host", "[::1]:8080"),
    ] {
        let answer = scene.get("/").header(name, value).send().await;
        assert_eq!(answer.status, 200, "{name}: {value}: {}", answer.text());
    }
}
