//! Where a route may not lead, however its upstream is written and whatever its name resolves to at the moment.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nexus_tests::agent::Answer;
use nexus_tests::broker::{self, Broker};
use nexus_tests::names::NameServer;
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::{self, Sidecar};
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use serde_json::json;

async fn control_plane() -> Broker {
    let broker = Broker::gateway().await;
    broker.set(
        &Scene::id(),
        broker::Answer::oauth2("token-of-the-addresses"),
    );
    broker
}

async fn get(sidecar: &Sidecar, provider: &str) -> Answer {
    sidecar.agent().get("/").provider(provider).send().await
}

/// A sidecar with a route for each upstream, `p0`, `p1` and so on.
async fn sidecar_for(broker: &Broker, urls: &[String], allow_private: bool) -> Sidecar {
    let mut builder = Sidecar::run().control(broker);
    for route in routes("p", urls) {
        builder = builder.route(&route.upstream("allowPrivateAddresses", allow_private));
    }
    builder.start().await
}

fn routes(prefix: &str, urls: &[String]) -> Vec<Route> {
    urls.iter()
        .enumerate()
        .map(|(index, url)| Route::new(&format!("{prefix}{index}"), url).connection(&Scene::id()))
        .collect()
}

/// Adds routes to a sidecar that runs, and waits until it has them.
async fn add_routes(sidecar: &Sidecar, prefix: &str, urls: &[String]) {
    let routes = routes(prefix, urls);
    for route in &routes {
        let file = sidecar.routes_folder().join(route.file_name());
        std::fs::write(file, route.yaml()).unwrap();
    }
    for index in 0..routes.len() {
        let provider = format!("{prefix}{index}");
        wait::within(&format!("the route {provider}"), async {
            while get(sidecar, &provider).await.error() == "provider_unknown" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

fn assert_refused(answer: &Answer, status: u16, code: &str, what: &str) {
    let text = answer.text();
    assert_eq!(
        (answer.status, answer.error()),
        (status, code),
        "{what}: {text}"
    );
    assert!(!text.contains("token-of-the-addresses"));
}

#[tokio::test(flavor = "multi_thread")]
async fn private_upstreams_are_refused_in_every_notation() {
    let broker = control_plane().await;
    let upstream = Upstream::start().await;
    let port = upstream.addr().port();
    let urls: Vec<String> = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "0x7F.0.0.0x1",
        "127.255.255.254",
        "0.0.0.0",
        "0",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::1]",
        "10.0.0.1",
        "0xa000001",
        "172.16.0.1",
        "192.168.0.1",
        "3232235521",
        "100.64.0.1",
        "198.18.0.1",
        "240.0.0.1",
        "[fc00::1]",
        "[fd12:3456::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[::ffff:10.0.0.1]",
        "[2002:c0a8:1::1]",
    ]
    .iter()
    .map(|host| format!("http://{host}:{port}"))
    .collect();
    let sidecar = sidecar_for(&broker, &urls, false).await;
    for (index, url) in urls.iter().enumerate() {
        let answer = get(&sidecar, &format!("p{index}")).await;
        assert_refused(&answer, 502, "upstream_refused_address", url);
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_services_are_refused_in_every_notation_although_private_addresses_are_allowed() {
    let broker = control_plane().await;
    let urls: Vec<String> = [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169.254.170.2",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
    ]
    .iter()
    .map(|host| format!("http://{host}"))
    .collect();
    let sidecar = sidecar_for(&broker, &urls, true).await;
    for (index, url) in urls.iter().enumerate() {
        let answer = get(&sidecar, &format!("p{index}")).await;
        assert_refused(&answer, 502, "upstream_refused_address", url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecars_own_listeners_are_loops_under_every_address_of_theirs() {
    let broker = control_plane().await;
    let upstream = Upstream::start().await;
    let sidecar = Sidecar::run()
        .route(&Route::new("p", &upstream.url()).connection(&Scene::id()))
        .control(&broker)
        .arg("--listen")
        .arg("0.0.0.0:0")
        .start()
        .await;
    let first = &sidecar.stdout()[0];
    let (_, everywhere) = first.split_once(",0.0.0.0:").unwrap();
    let (everywhere, _) = everywhere.split_once(' ').unwrap();
    let loopback = [
        "127.0.0.1",
        "127.1",
        "localhost",
        "[::1]",
        "0.0.0.0",
        "[::]",
        "[::ffff:7f00:1]",
    ];
    let mut urls = Vec::new();
    for port in [sidecar.proxy_addr().port(), sidecar.admin_addr().port()] {
        urls.extend(loopback.map(|host| format!("http://{host}:{port}")));
    }
    urls.extend(loopback.map(|host| format!("http://{host}:{everywhere}")));
    match own_address() {
        Some(ip) => urls.push(format!("http://{ip}:{everywhere}")),
        None => not_run("a listener at the host's own address: the host has no network"),
    }
    add_routes(&sidecar, "own", &urls).await;
    for (index, url) in urls.iter().enumerate() {
        let answer = get(&sidecar, &format!("own{index}")).await;
        assert_refused(&answer, 508, "loop_detected", url);
    }
    assert_eq!(get(&sidecar, "p").await.status, 200);
}

/// The address this host would use towards others. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().unwrap().ip())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_is_no_upstream() {
    let broker = control_plane().await;
    let port = broker.url().rsplit_once(':').unwrap().1.to_owned();
    let urls = ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]"];
    let urls = urls.map(|host| format!("http://{host}:{port}"));
    let sidecar = sidecar_for(&broker, &urls, true).await;
    for (index, url) in urls.iter().enumerate() {
        let answer = get(&sidecar, &format!("p{index}")).await;
        assert_refused(&answer, 502, "upstream_refused_address", url);
    }
}

/// Set where the test is already in a network of its own.
const IN_NAMESPACE: &str = "NEXUS_TESTS_IN_NAMESPACE";
/// A public address, which only exists in that network.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const NAME: &str = "rebinding.test";

/// True if this runs in a network of its own, whose resolver is the test's to serve. Else runs the test of this name
/// in such a network, and is false.
async fn in_own_network(test: &str) -> bool {
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return true;
    }
    let mut unshare = vec!["--mount", "--net"];
    if !rustix::process::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    let possible = Command::new("unshare").args(&unshare).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        not_run(&format!(
            "{test}: no network namespace can be made, try it as root"
        ));
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content);
    write("resolv.conf", "nameserver 127.0.0.1\n").unwrap();
    write("nsswitch.conf", "hosts: dns\n").unwrap();
    let prepare = format!(
        r#"set -e
        ip link set lo up
        ip address add {PUBLIC}/32 dev lo
        ip address add {METADATA}/32 dev lo
        mount --bind "$1/resolv.conf" /etc/resolv.conf
        if [ -e /etc/nsswitch.conf ]; then mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf; fi
        exec "$2" --exact {test} --nocapture"#
    );
    let mut command = Command::new("unshare");
    command
        .args(&unshare)
        .args(["sh", "-c", &prepare, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .env(IN_NAMESPACE, "1")
        .env("NEXUS_SIDECAR_BIN", sidecar::binary());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = wait::within(test, output).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_is_silent_runs_into_the_connect_timeout() {
    if !in_own_network("a_resolver_that_is_silent_runs_into_the_connect_timeout").await {
        return;
    }
    let _silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
    let broker = control_plane().await;
    let route = Route::new("p", &format!("http://{NAME}"))
        .with("timeouts", json!({"connect": "1s"}))
        .connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route).await;
    // The system's resolver would give up later, and the upstream be called unreachable.
    let answer = get(&sidecar, "p").await;
    assert_refused(&answer, 504, "upstream_timeout", NAME);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_rebound_is_refused_at_the_next_connection() {
    if !in_own_network("a_name_that_is_rebound_is_refused_at_the_next_connection").await {
        return;
    }
    let names = NameServer::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 53))).await;
    let broker = control_plane().await;
    let public = Upstream::builder().at((PUBLIC, 0).into()).start().await;
    let port = public.addr().port();
    let at = |ip: Ipv4Addr| Upstream::builder().at((ip, port).into()).start();
    let (loopback, metadata) = (at(Ipv4Addr::LOCALHOST).await, at(METADATA).await);
    let url = format!("http://{NAME}:{port}");
    let sidecar = Sidecar::run()
        .route(
            &Route::new("public", &url)
                .upstream("allowPrivateAddresses", false)
                .connection(&Scene::id()),
        )
        .route(&Route::new("private", &url).connection(&Scene::id()))
        .control(&broker)
        .start()
        .await;

    names.set(NAME, &[PUBLIC]);
    assert_eq!(get(&sidecar, "public").await.status, 200);
    let asked = names.questions(NAME);
    assert!(asked > 0, "the system resolver asks the test");

    // The connection that was judged serves on; the name alone cannot move it.
    names.set(NAME, &[Ipv4Addr::LOCALHOST]);
    assert_eq!(get(&sidecar, "public").await.status, 200);
    assert_eq!(public.seen().len(), 2);
    drop(public);
    refused_from_now_on(&sidecar, "public").await;
    assert!(names.questions(NAME) > asked);
    names.set(NAME, &[METADATA, Ipv4Addr::LOCALHOST]);
    refused_from_now_on(&sidecar, "public").await;
    assert_eq!(loopback.connections(), 0);

    // A good address among bad ones is the only one that is connected to.
    let public = at(PUBLIC).await;
    names.set(NAME, &[Ipv4Addr::LOCALHOST, METADATA, PUBLIC]);
    assert_eq!(get(&sidecar, "public").await.status, 200);
    assert_eq!(public.connections(), 1);
    assert_eq!(loopback.connections(), 0);

    // Where private addresses are allowed, metadata services still are not.
    names.set(NAME, &[Ipv4Addr::LOCALHOST]);
    assert_eq!(get(&sidecar, "private").await.status, 200);
    assert_eq!(loopback.connections(), 1);
    names.set(NAME, &[METADATA]);
    drop(loopback);
    refused_from_now_on(&sidecar, "private").await;
    assert_eq!(metadata.connections(), 0);
}

/// The sidecar may need a moment to see that the connection it kept is gone.
async fn refused_from_now_on(sidecar: &Sidecar, provider: &str) {
    wait::within("the refusal", async {
        while get(sidecar, provider).await.error() == "upstream_unreachable" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let answer = get(sidecar, provider).await;
    assert_refused(&answer, 502, "upstream_refused_address", provider);
}

/// Says what was not tested, past the capture of the output of tests that pass.
fn not_run(what: &str) {
    let _ = writeln!(std::io::stderr(), "NOT RUN: {what}");
}
