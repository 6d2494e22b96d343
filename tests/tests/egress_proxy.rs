//! Through Debian's tinyproxy, which wants a password: what arrives at the upstream, what is told when it does not, and
//! what goes past the proxy.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

use nexus_tests::agent::Answer;
use nexus_tests::broker::{self, Broker};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::{Builder, Sidecar};
use nexus_tests::tinyproxy::{OUTGOING, Tinyproxy};
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::upstream::Upstream;
use tempfile::TempDir;

const USER: &str = "egress-user";
const PASSWORD: &str = "egress-password";
/// `egress-user:egress-password` in base64.
const PAIR: &str = "ZWdyZXNzLXVzZXI6ZWdyZXNzLXBhc3N3b3Jk";

/// A proxy, a file with its credentials and a control plane.
struct Office {
    proxy: Tinyproxy,
    broker: Broker,
    folder: TempDir,
}

impl Office {
    async fn open() -> Self {
        let broker = Broker::gateway().await;
        broker.set(&Scene::id(), broker::Answer::oauth2("token-of-the-office"));
        let office = Self {
            proxy: Tinyproxy::start(USER, PASSWORD).await,
            broker,
            folder: tempfile::tempdir().unwrap(),
        };
        office.write_credentials(PASSWORD);
        office
    }

    fn credentials(&self) -> PathBuf {
        self.folder.path().join("proxy-credentials")
    }

    fn write_credentials(&self, password: &str) {
        std::fs::write(self.credentials(), format!("{USER}:{password}\n")).unwrap();
    }

    /// A sidecar behind the proxy, but for its credentials.
    fn anonymous(&self, route: &Route) -> Builder {
        Sidecar::run()
            .route(&route.clone().connection(&Scene::id()))
            .control(&self.broker)
            .arg("--egress-proxy")
            .arg(self.proxy.url())
    }

    fn sidecar(&self, route: &Route) -> Builder {
        self.anonymous(route)
            .arg("--egress-proxy-credentials")
            .arg(self.credentials())
    }
}

async fn get(sidecar: &Sidecar) -> Answer {
    sidecar.agent().get("/through").provider("p").send().await
}

fn connect_to(upstream: &Upstream) -> String {
    format!("CONNECT {} HTTP/1.1", upstream.addr())
}

/// Every connection the upstream saw came from the proxy.
fn assert_only_the_proxy_came(upstream: &Upstream) {
    let peers: Vec<IpAddr> = upstream.peers().iter().map(SocketAddr::ip).collect();
    assert!(!peers.is_empty());
    assert!(peers.iter().all(|ip| *ip == OUTGOING), "{peers:?}");
}

fn assert_unseen(sidecar: &Sidecar) {
    let said = sidecar.said();
    for secret in [PASSWORD, PAIR] {
        assert!(!said.contains(secret), "{said}");
    }
    for file in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{file}", sidecar.pid());
        let shown = match std::fs::read(path) {
            // Where only root may look, nobody else sees it.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
            shown => String::from_utf8_lossy(&shown.unwrap()).into_owned(),
        };
        assert!(!shown.contains(PASSWORD), "{file}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_upstream_is_reached_through_the_proxy_and_sees_only_it() {
    let office = Office::open().await;
    let authority = Authority::new();
    for (alpn, version) in [
        (None, "HTTP/1.1"),
        (Some("http/1.1"), "HTTP/1.1"),
        (Some("h2"), "HTTP/2.0"),
    ] {
        let upstream = match alpn {
            None => Upstream::start().await,
            Some(alpn) => {
                let tls = Upstream::builder().tls(&authority, Leaf::Valid, &[alpn]);
                tls.start().await
            }
        };
        // The name is ours to resolve; the certificate and the authority are about it all the same.
        let url = upstream.url().replace("127.0.0.1", "localhost");
        let route = Route::new("p", &url).upstream("caBundle", authority.pem());
        let sidecar = office
            .sidecar(&route)
            .arg("--log-level")
            .arg("debug")
            .start()
            .await;
        for _ in 0..3 {
            let answer = get(&sidecar).await;
            assert_eq!(answer.status, 200, "{alpn:?}: {}", answer.text());
        }
        for seen in upstream.seen() {
            assert_eq!(seen.version, version);
            assert_eq!(
                seen.authority,
                format!("localhost:{}", upstream.addr().port())
            );
            assert_eq!(seen.header("authorization"), "Bearer token-of-the-office");
            assert!(seen.values("proxy-authorization").is_empty(), "{seen:?}");
        }
        assert_eq!(upstream.seen().len(), 3);
        assert_only_the_proxy_came(&upstream);
        let asked = office.proxy.requests();
        assert_eq!(asked.last(), Some(&connect_to(&upstream)), "{asked:?}");
        assert_unseen(&sidecar);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_without_tls_is_reached_through_the_proxy() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url()).upstream("protocol", "H2C");
    let sidecar = office.sidecar(&route).start().await;
    assert_eq!(get(&sidecar).await.status, 200);
    assert_eq!(upstream.only().version, "HTTP/2.0");
    assert_only_the_proxy_came(&upstream);
    assert_eq!(office.proxy.requests(), [connect_to(&upstream)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_password_is_told_with_the_flag_that_mends_it() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url());
    let anonymous = office.anonymous(&route).start().await;
    let answer = get(&anonymous).await;
    assert_eq!(
        (answer.status, answer.error()),
        (502, "upstream_unreachable")
    );
    let told = "the egress proxy demands a user name and password (407): the sidecar needs --egress-proxy-credentials";
    assert!(answer.text().contains(told), "{}", answer.text());

    office.write_credentials("not-the-password");
    let sidecar = office.sidecar(&route).start().await;
    let answer = get(&sidecar).await;
    assert_eq!(
        (answer.status, answer.error()),
        (502, "upstream_unreachable")
    );
    let told = "does not accept the user name and password of --egress-proxy-credentials";
    assert!(answer.text().contains(told), "{}", answer.text());
    assert!(!(answer.text() + &sidecar.said()).contains("not-the-password"));

    assert_eq!(upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_rotated_while_it_runs() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    office.write_credentials("not-yet-the-password");
    let sidecar = office
        .sidecar(&Route::new("p", &upstream.url()))
        .start()
        .await;
    assert_eq!(get(&sidecar).await.error(), "upstream_unreachable");
    office.write_credentials(PASSWORD);
    assert_eq!(get(&sidecar).await.status, 200);
    // What is connected stays so; only a new connection needs the credentials.
    office.write_credentials("no-longer-the-password");
    assert_eq!(get(&sidecar).await.status, 200);
    assert_eq!(upstream.connections(), 1);
    std::fs::remove_file(office.credentials()).unwrap();
    assert_eq!(get(&sidecar).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_went_missing_are_told_without_their_path() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    let sidecar = office
        .sidecar(&Route::new("p", &upstream.url()))
        .start()
        .await;
    std::fs::remove_file(office.credentials()).unwrap();
    let answer = get(&sidecar).await;
    assert_eq!(answer.error(), "upstream_unreachable");
    assert!(
        answer.text().contains("--egress-proxy-credentials"),
        "{}",
        answer.text()
    );
    assert!(!answer.text().contains("proxy-credentials\"") && !answer.text().contains("/tmp"));
    sidecar
        .logged(&office.credentials().display().to_string())
        .await;
    assert!(office.proxy.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_upstreams_are_connected_to_directly() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    let url = upstream.url().replace("127.0.0.1", "localhost");
    let port = upstream.addr().port();
    for (index, list) in [
        "localhost".to_owned(),
        format!("other.example,localhost:{port}"),
        "127.0.0.0/8, ::1".to_owned(),
        "*".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let builder = office.sidecar(&Route::new("p", &url));
        let sidecar = builder.arg("--no-egress-proxy").arg(list).start().await;
        assert_eq!(get(&sidecar).await.status, 200, "{list}");
        assert_eq!(upstream.seen().len(), index + 1);
    }
    assert!(upstream.peers().iter().all(|peer| peer.ip() != OUTGOING));
    assert!(office.proxy.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_upstream_is_refused_before_the_proxy_is_asked() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    for url in [
        upstream.url(),
        upstream.url().replace("127.0.0.1", "localhost"),
        "https://169.254.169.254".to_owned(),
        "https://10.0.0.1".to_owned(),
    ] {
        let route = Route::new("p", &url).upstream("allowPrivateAddresses", false);
        let sidecar = office.sidecar(&route).start().await;
        let answer = get(&sidecar).await;
        assert_eq!(
            (answer.status, answer.error()),
            (502, "upstream_refused_address"),
            "{url}: {}",
            answer.text()
        );
    }
    assert_eq!(upstream.connections(), 0);
    assert!(office.proxy.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_the_proxy_cannot_reach_is_told_with_the_proxys_status() {
    let office = Office::open().await;
    let gone = Upstream::start().await.url();
    let sidecar = office.sidecar(&Route::new("p", &gone)).start().await;
    let answer = get(&sidecar).await;
    assert_eq!(
        (answer.status, answer.error()),
        (502, "upstream_unreachable")
    );
    let told = "the egress proxy answered CONNECT with 500 Internal Server Error";
    assert!(answer.text().contains(told), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_uses_the_proxy_for_the_users_routes_and_not_for_its_own_upstream() {
    let office = Office::open().await;
    let upstream = Upstream::start().await;
    let behind = |builder: Builder| {
        builder
            .arg("--egress-proxy")
            .arg(office.proxy.url())
            .arg("--egress-proxy-credentials")
            .arg(office.credentials())
    };
    let sidecar = behind(Sidecar::dev()).start().await;
    let answer = sidecar.agent().get("/v1/me").provider("bearer").send();
    assert_eq!(answer.await.status, 200);
    assert!(office.proxy.requests().is_empty());

    let credentials = office.folder.path().join("credentials.yaml");
    std::fs::write(
        &credentials,
        "credentials:\n  p: {access_token: dev-token-of-the-office}\n",
    )
    .unwrap();
    let route = Route::new("p", &upstream.url());
    let sidecar = behind(Sidecar::dev_with_routes().route(&route))
        .arg("--credentials")
        .arg(&credentials)
        .start()
        .await;
    assert_eq!(get(&sidecar).await.status, 200);
    assert_eq!(office.proxy.requests(), [connect_to(&upstream)]);
    assert_only_the_proxy_came(&upstream);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_variables_of_the_environment_have_no_effect() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let url = format!("http://{}", elsewhere.local_addr().unwrap());
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), broker::Answer::oauth2("token-of-the-office"));
    let upstream = Upstream::start().await;
    let mut builder = Sidecar::run()
        .route(&Route::new("p", &upstream.url()).connection(&Scene::id()))
        .control(&broker);
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        builder = builder.env(name, &url).env(&name.to_uppercase(), &url);
    }
    let sidecar = builder.start().await;
    assert_eq!(get(&sidecar).await.status, 200);
    assert_eq!(upstream.peers()[0].ip().to_string(), "127.0.0.1");
    let nobody = elsewhere.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_cannot_work_end_the_start_and_show_no_password() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    let url = "http://127.0.0.1:1";
    for (options, told) in [
        (
            vec!["--egress-proxy", "http://user:hunter2@127.0.0.1:1"],
            "give a file with --egress-proxy-credentials",
        ),
        (
            vec!["--egress-proxy", "http://user:hunter2@:1"],
            "http://HOST:PORT",
        ),
        (
            vec!["--egress-proxy", "socks5://127.0.0.1:1"],
            "http://HOST:PORT",
        ),
        (
            vec!["--egress-proxy", url, "--egress-proxy-credentials", empty],
            "one line of the form user:password",
        ),
        (
            vec!["--egress-proxy", url, "--egress-proxy-ca", empty],
            "https://",
        ),
        (
            vec![
                "--egress-proxy",
                "https://127.0.0.1:1",
                "--egress-proxy-ca",
                empty,
            ],
            "holds no CERTIFICATE section",
        ),
        (
            vec!["--egress-proxy", url, "--no-egress-proxy", "10.0.0.0/40"],
            "\"10.0.0.0/40\" is neither",
        ),
        (
            vec!["--no-egress-proxy", "a.example"],
            "--egress-proxy <URL>",
        ),
        (
            vec!["--egress-proxy-credentials", empty],
            "--egress-proxy <URL>",
        ),
    ] {
        for builder in [
            Sidecar::run().gateway_url("http://127.0.0.1:1"),
            Sidecar::dev(),
        ] {
            let builder = options.iter().fold(builder, Builder::arg);
            let output = builder.fails().await;
            assert_eq!(output.status.code(), Some(2), "{options:?}");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(said.contains(told), "{options:?}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
