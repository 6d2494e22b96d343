//! A whole sidecar in the test's own process, on a paused clock: waits of minutes without waiting.

#![allow(
    clippy::panic,
    clippy::unchecked_time_subtraction,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use nexus_crds::table::RouteTable;
use nexus_sidecar::app::{self, Config, RouteSource};
use nexus_sidecar::args::{Cli, Command};
use nexus_sidecar::credential::cache::CacheSettings;
use nexus_sidecar::credential::client::{ControlPlane, ControlPlaneConfig, Flavour};
use nexus_sidecar::identity::Identity;
use nexus_sidecar::routes::Tenants;
use nexus_sidecar::routes::watch::{RouteWatch, Timing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

const MINUTE: Duration = Duration::from_mins(1);
const SECOND: Duration = Duration::from_secs(1);

/// Takes one request after the other and answers each after a while.
async fn server(silence: Duration, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
                }
                sleep(silence).await;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                // Whoever has given up does not read it.
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

async fn sidecar(upstream: SocketAddr, broker: SocketAddr) -> SocketAddr {
    let table: RouteTable = serde_json::from_value(serde_json::json!({
        "format": 1, "minReader": 1, "revision": 1, "hash": "", "namespace": "test",
        "routes": [{
            "name": "llm", "provider": "llm",
            "upstream": {
                "url": format!("http://{upstream}"),
                "allowInsecure": true, "allowPrivateAddresses": true
            },
            "connections": [{"id": "00000000-0000-4000-8000-000000000001"}]
        }]
    }))
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "nexus-sidecar",
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    let Command::Dev(args) = Cli::parse_from(arguments).command else {
        panic!("not dev");
    };
    let url = format!("http://{broker}").parse().unwrap();
    let bound = app::build(Config {
        serve: args.serve,
        routes: RouteSource {
            load: Arc::new(move || Ok(Some(table.clone()))),
            watch: RouteWatch::start(vec![folder.path().to_owned()], Timing::default()),
        },
        control: ControlPlane::new(ControlPlaneConfig::new(Flavour::Gateway, url)).unwrap(),
        cache: CacheSettings::default(),
        identity: Identity::unknown(),
        tenants: Tenants::NamedByRoutes,
        egress: None,
    })
    .await
    .unwrap();
    let address = bound.proxy_addresses()[0];
    tokio::spawn(async move {
        let _folder = folder;
        bound.run("").await.unwrap();
    });
    address
}

async fn ask(sidecar: SocketAddr) -> String {
    let mut stream = TcpStream::connect(sidecar).await.unwrap();
    let request =
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: llm\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn after(silence: Duration) -> (String, Duration) {
    let payload = r#"{"strategy":{"type":"oauth2"},"credentials":{"access_token":"a-token"}}"#;
    let broker = server(Duration::ZERO, payload).await;
    let upstream = server(silence, r#"{"thought":"for long"}"#).await;
    let sidecar = sidecar(upstream, broker).await;
    // Only now: what is read from disk before takes real time.
    tokio::time::pause();
    let began = Instant::now();
    let answer = ask(sidecar).await;
    (answer, began.elapsed())
}

#[tokio::test]
async fn a_model_may_think_for_eleven_minutes() {
    let (answer, took) = after(11 * MINUTE - SECOND).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"thought":"for long"}"#), "{answer}");
    assert!(took >= 11 * MINUTE - SECOND, "{took:?}");
}

#[tokio::test]
async fn and_no_longer_than_that() {
    let (answer, took) = after(11 * MINUTE + SECOND).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("timeouts.responseHeader"), "{answer}");
    assert!((11 * MINUTE..12 * MINUTE).contains(&took), "{took:?}");
}
