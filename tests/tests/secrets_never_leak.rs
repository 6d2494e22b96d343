//! The canary test: every strategy and every failure runs with recognisable secrets while all crates log at trace
//! level. No secret may come to light in any form, in any log line, answer, metric or file of the process.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;

use nexus_tests::agent;
use nexus_tests::broker::{Answer, Broker, Front};
use nexus_tests::canary::Canary;
use nexus_tests::connection;
use nexus_tests::raw::{RawUpstream, Reply};
use nexus_tests::route::Route;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::upstream::Upstream;
use serde_json::{Value, json};

/// A strategy with the fields it needs; the values of the secret ones are canaries.
struct Case {
    name: &'static str,
    strategy: Value,
    secret: &'static [&'static str],
    public: Value,
}

fn cases() -> Vec<Case> {
    let case = |name, strategy, secret, public| Case {
        name,
        strategy,
        secret,
        public,
    };
    vec![
        case(
            "oauth2",
            json!({"type": "oauth2"}),
            &["access_token", "refresh_token", "id_token"],
            json!({}),
        ),
        case(
            "header",
            json!({"type": "header", "config": {"header_name": "X-Key", "value_prefix": "Key "}}),
            &["api_key"],
            json!({}),
        ),
        case(
            "api-key",
            json!({"type": "api_key"}),
            &["api_key", "unused_field"],
            json!({}),
        ),
        case(
            "query",
            json!({"type": "query_param", "config": {"param_name": "key"}}),
            &["api_key"],
            json!({}),
        ),
        case(
            "basic",
            json!({"type": "basic_auth"}),
            &["password"],
            json!({"username": "a user"}),
        ),
        case(
            "hmac",
            json!({"type": "hmac_payload", "config": {"header_name": "X-Signature"}}),
            &["api_secret"],
            json!({}),
        ),
        case(
            "aws",
            json!({"type": "aws_sigv4", "config": {"service": "execute-api"}}),
            &["secret_key", "session_token"],
            json!({"access_key": "AKIDEXAMPLE000000000"}),
        ),
    ]
}

/// What is done to a credential on its way, or to the request after it.
const FATES: [&str; 9] = [
    "echo",
    "h2",
    "refused",
    "reset",
    "untrusted",
    "expired",
    "malformed",
    "truncated",
    "contradicted",
];

/// Everything that came to light.
#[derive(Default)]
struct Light {
    places: Vec<(String, String)>,
}

impl Light {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.places.push((place.into(), text.into()));
    }

    fn add_answer(&mut self, place: &str, answer: &agent::Answer) {
        let mut text = format!("{:?}\n", answer.headers);
        for value in answer.headers.values() {
            let _ = writeln!(text, "{}", String::from_utf8_lossy(value.as_bytes()));
        }
        self.add(place, text + &answer.text());
    }

    fn assert_holds_none_of(&self, canaries: &[Canary]) {
        let mut found = Vec::new();
        for (place, text) in &self.places {
            for line in text.lines() {
                found.extend(canaries.iter().filter_map(|canary| {
                    let form = canary.find_in(line)?;
                    Some(format!("{form} in {place}: {line}"))
                }));
            }
        }
        assert!(
            found.is_empty(),
            "{} leaks:\n{}",
            found.len(),
            found.join("\n")
        );
    }
}

struct Upstreams {
    echo: Upstream,
    h2: Upstream,
    untrusted: Upstream,
    reset: RawUpstream,
    gone: String,
    authority: Authority,
}

impl Upstreams {
    async fn start() -> Self {
        let authority = Authority::new();
        let h2 = Upstream::builder().tls(&authority, Leaf::Valid, &["h2"]);
        let untrusted = Upstream::builder().tls(&Authority::new(), Leaf::Valid, &["h2"]);
        Self {
            echo: Upstream::start().await,
            h2: h2.start().await,
            untrusted: untrusted.start().await,
            reset: RawUpstream::start(Reply::BytesThenReset(b"HTTP/1.1 ".to_vec())).await,
            gone: Upstream::start().await.url(),
            authority,
        }
    }

    fn route(&self, provider: &str, fate: &str) -> Route {
        let route = |url: &str| Route::new(provider, url);
        match fate {
            "h2" => route(&self.h2.url()).upstream("caBundle", self.authority.pem()),
            "untrusted" => route(&self.untrusted.url()).upstream("caBundle", self.authority.pem()),
            "reset" => route(&self.reset.url()),
            "refused" => route(&self.gone),
            "contradicted" => route(&self.echo.url()).with(
                "strategy",
                json!({"type": "hmac_payload",
                    "config": {"header_name": "X-Other", "secret_field": "other"}}),
            ),
            _ => route(&self.echo.url()),
        }
    }
}

fn answer(case: &Case, fate: &str, canaries: &mut Vec<Canary>) -> Answer {
    let mut credentials = case.public.clone();
    for field in case.secret {
        let canary = Canary::new(&format!("{}-{fate}-{field}", case.name));
        credentials[*field] = canary.value().into();
        canaries.push(canary);
    }
    let payload = json!({"strategy": case.strategy, "credentials": credentials}).to_string();
    match fate {
        "expired" => {
            credentials["expires_at"] = "2020-01-01T00:00:00Z".into();
            Answer::credential(case.strategy.clone(), credentials)
        }
        // Each parser that gives up quotes something; it must not be this.
        "malformed" => Answer::body(&payload.replace("\"credentials\":{", "\"credentials\":[{")),
        "truncated" => Answer::body(&payload[..payload.len() - 2]),
        _ => Answer::credential(case.strategy.clone(), credentials),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_comes_to_light_in_any_form_anywhere() {
    let upstreams = Upstreams::start().await;
    let broker_key = Canary::new("broker-key");
    let broker = Broker::start(Front::Broker, Some(broker_key.value())).await;
    let mut canaries = vec![broker_key.clone()];
    let mut builder = Sidecar::run().control(&broker).api_key(broker_key.value());
    let mut providers = Vec::new();
    for (case, fate) in cases()
        .iter()
        .flat_map(|case| FATES.map(|fate| (case, fate)))
    {
        let id = connection(u32::try_from(providers.len()).unwrap());
        broker.set(&id, answer(case, fate, &mut canaries));
        let provider = format!("{}-{fate}", case.name);
        builder = builder.route(&upstreams.route(&provider, fate).connection(&id));
        providers.push((provider, fate));
    }
    let sidecar = builder.arg("--log-level").arg("trace").start().await;

    let mut light = Light::default();
    for (provider, fate) in &providers {
        for target in ["/path?q=1", "/other"] {
            let call = sidecar.agent().post(target, "{}").provider(provider);
            let answer = call.header("Content-Type", "application/json").send().await;
            let fine = matches!(*fate, "echo" | "h2");
            assert_eq!(answer.status == 200, fine, "{provider}: {}", answer.text());
            light.add_answer(&format!("the answer to {provider}"), &answer);
        }
    }
    // Two requests each: the credential did arrive where it should, so there was something to leak.
    assert!(upstreams.echo.seen().len() >= 2 * cases().len());
    assert_eq!(upstreams.h2.seen().len(), 2 * cases().len());

    for path in ["/metrics", "/readyz", "/healthz", "/nothing"] {
        let answer = sidecar.admin().get(path).send().await;
        light.add_answer(path, &answer);
    }
    for file in ["environ", "cmdline"] {
        // Of a process that is not dumpable they are root's alone, which is as good.
        if let Ok(bytes) = std::fs::read(format!("/proc/{}/{file}", sidecar.pid())) {
            light.add(format!("/proc/PID/{file}"), String::from_utf8_lossy(&bytes));
        }
    }
    let mut sidecar = sidecar;
    sidecar.terminate();
    assert_eq!(sidecar.ended().await.code(), Some(0));
    let (log, access) = (sidecar.stderr(), sidecar.stdout());
    assert!(
        log.iter().any(|line| line.contains("TRACE")),
        "the log is at trace level"
    );
    assert!(
        access.len() > 2 * providers.len(),
        "every request has its line"
    );
    light.add("the log", log.join("\n"));
    light.add("the access log", access.join("\n"));
    light.assert_holds_none_of(&canaries);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scan_finds_a_secret_where_there_is_one() {
    let upstream = Upstream::start().await;
    let canary = Canary::new("positive-control");
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::header("X-Key", canary.value()));
    let route = Route::new("p", &upstream.url()).connection(&connection(1));
    let shown = route.with("response", json!({"scrub": "None"}));
    let sidecar = Sidecar::with(&broker, &shown).await;
    let answer = sidecar.agent().get("/").provider("p").send().await;
    let mut light = Light::default();
    light.add_answer("an echo that is not scrubbed", &answer);
    let scan = std::panic::AssertUnwindSafe(|| light.assert_holds_none_of(&[canary]));
    assert!(std::panic::catch_unwind(scan).is_err(), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_echoes_is_masked_at_the_same_length() {
    let upstream = Upstream::start().await;
    let broker = Broker::gateway().await;
    let token = "token-that-is-echoed-by-the-upstream";
    broker.set(&connection(1), Answer::oauth2(token));
    let route = Route::new("p", &upstream.url()).connection(&connection(1));
    let sidecar = Sidecar::with(&broker, &route).await;
    let answer = sidecar.agent().get("/").provider("p").send().await;
    let echoed = answer.json()["headers"].as_array().unwrap().clone();
    let authorization = echoed.iter().find(|header| header[0] == "authorization");
    let shown = authorization.unwrap()[1].as_str().unwrap().to_owned();
    assert_eq!(shown.len(), "Bearer ".len() + token.len());
    assert!(
        shown.starts_with("Bearer ") && !shown.contains("echoed"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_control_plane_url_is_not_logged() {
    let broker = Broker::gateway().await;
    let password = "password-of-the-url";
    let url = broker
        .url()
        .replace("http://", &format!("http://user:{password}@"));
    let builder = Sidecar::run()
        .gateway_url(&url)
        .arg("--log-level")
        .arg("trace");
    // Whether such a URL is taken or refused, what it holds stays unsaid.
    let output = builder.ends_or_serves().await;
    assert!(!output.contains(password), "{output}");
}
