//! A sidecar's life: ready line, endpoints, hot reload as the kubelet does it, `check`, `probe`, and a SIGTERM that
//! loses nothing.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::connection;
use nexus_tests::raw::RawAgent;
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::{Sidecar, command};
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use tokio::net::TcpStream;

async fn output(mut command: Command) -> Output {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    wait::within("a command", run).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn status_of(sidecar: &Sidecar, provider: &str) -> u16 {
    sidecar
        .agent()
        .get("/")
        .provider(provider)
        .send()
        .await
        .status
}

async fn eventually_served(sidecar: &Sidecar, provider: &str) {
    wait::within(&format!("provider {provider}"), async {
        while status_of(sidecar, provider).await != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_says_where_it_listens_and_the_endpoints_answer() {
    let scene = Scene::bearer().await;
    let first = &scene.sidecar.stdout()[0];
    assert!(first.starts_with("listening proxy=127.0.0.1:"), "{first}");
    assert!(!first.contains(":0 ") && !first.ends_with(":0"), "{first}");
    let admin = scene.sidecar.admin();
    assert_eq!(admin.get("/healthz").send().await.status, 200);
    let ready = admin.get("/readyz").send().await;
    assert_eq!(
        (ready.status, ready.json()["routes"].as_u64()),
        (200, Some(1))
    );
    assert_eq!(scene.get("/").send().await.status, 200);
    let metrics = admin.get("/metrics").send().await;
    assert!(metrics.header("content-type").contains("openmetrics"));
    assert!(
        metrics.text().contains("provider=\"p\""),
        "{}",
        metrics.text()
    );
    assert!(metrics.text().trim_end().ends_with("# EOF"));
    let fetches = "nexus_control_plane_calls_total{";
    assert!(metrics.text().contains(fetches), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_one_access_line_without_its_query() {
    let scene = Scene::bearer().await;
    let answer = scene.get("/logged?api_key=of-the-agent").send().await;
    let id = answer.header("x-nexus-request-id").to_owned();
    assert!(!id.is_empty(), "{:?}", answer.headers);
    let line = wait::until("the access line", || {
        let lines = scene.sidecar.stdout();
        lines.into_iter().find(|line| line.contains(&id))
    })
    .await;
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["status"], 200, "{line}");
    assert!(
        line.contains("/logged") && !line.contains("of-the-agent"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_come_from_the_environment_too() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-by-environment"));
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url()).connection(&connection(1));
    let builder = Sidecar::run()
        .route(&route)
        .env("NEXUS_GATEWAY_URL", &broker.url());
    let sidecar = builder.env("NEXUS_ACCESS_LOG", "off").start().await;
    assert_eq!(status_of(&sidecar, "p").await, 200);
    let started = sidecar.logged("starting").await;
    assert!(
        started.contains(&broker.url()),
        "the effective configuration is logged: {started}"
    );
    assert_eq!(sidecar.stdout().len(), 1, "the ready line only");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let mut scene = Scene::bearer().await;
    let response = scene.get("/sse/20/50").open().await.unwrap();
    let mut idle = RawAgent::connect(scene.sidecar.proxy_addr()).await;
    idle.send("GET /idle HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n")
        .await;
    idle.receive().await;
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    scene.sidecar.terminate();

    let addr = scene.sidecar.proxy_addr();
    wait::within("the listener to close", async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let rest = wait::within("the stream to end by itself", body.collect())
        .await
        .unwrap();
    let mut events = text(first.data_ref().unwrap());
    events += &text(&rest.to_bytes());
    assert_eq!(events.matches("data: ").count(), 20, "{events}");
    assert_eq!(scene.sidecar.ended().await.code(), Some(0));
    let lines = scene.sidecar.stdout();
    assert!(
        lines.iter().any(|line| line.contains("/sse/20/50")),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_waits_no_longer_than_the_drain_timeout() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-in-the-drain"));
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url()).connection(&connection(1));
    let builder = Sidecar::run()
        .route(&route)
        .control(&broker)
        .arg("--drain-timeout");
    let mut sidecar = builder.arg("1s").start().await;
    let stuck = sidecar
        .agent()
        .get("/silent")
        .provider("p")
        .open()
        .await
        .unwrap();
    let start = Instant::now();
    sidecar.terminate();
    assert_eq!(sidecar.ended().await.code(), Some(0));
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(
        stuck.into_body().collect().await.is_err(),
        "cut, and seen to be cut"
    );
    assert!(
        sidecar
            .stderr()
            .iter()
            .any(|line| line.contains("drain-timeout"))
    );
}

/// One generation of a ConfigMap volume, as the kubelet writes it: a folder of files behind the link `..data`, which
/// is replaced by a rename.
fn publish(volume: &Path, generation: u32, content: &str) {
    let folder = format!("..2026_{generation}");
    std::fs::create_dir(volume.join(&folder)).unwrap();
    std::fs::write(volume.join(&folder).join("routes.yaml"), content).unwrap();
    let before = std::fs::read_link(volume.join("..data")).ok();
    symlink(&folder, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if !volume.join("routes.yaml").exists() {
        symlink("..data/routes.yaml", volume.join("routes.yaml")).unwrap();
    }
    if let Some(before) = before {
        std::fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_swap_of_a_mounted_volume_is_taken_up_and_only_streams_of_routes_that_left_end() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-across-swaps"));
    let upstream = Upstream::start().await;
    let stays = Route::new("stays", &upstream.url())
        .connection(&connection(1))
        .yaml();
    let routes = |provider: &str| {
        let other = Route::new(provider, &upstream.url()).connection(&connection(1));
        format!("{stays}---\n{}", other.yaml())
    };
    let builder = Sidecar::run().control(&broker);
    publish(&builder.routes_folder(), 0, &routes("generation-0"));
    let sidecar = builder.start().await;
    assert_eq!(status_of(&sidecar, "generation-0").await, 200);
    let open = async |provider: &str| {
        let call = sidecar.agent().get("/silent").provider(provider);
        call.open().await.unwrap()
    };
    let mut stream = open("stays").await;
    for generation in 1..=3 {
        let mut leaves = open(&format!("generation-{}", generation - 1)).await;
        let provider = format!("generation-{generation}");
        publish(&sidecar.routes_folder(), generation, &routes(&provider));
        eventually_served(&sidecar, &provider).await;
        let before = format!("generation-{}", generation - 1);
        assert_eq!(status_of(&sidecar, &before).await, 404, "{before} is gone");
        let end = wait::within(
            "the stream of a route that is gone",
            leaves.body_mut().frame(),
        );
        assert!(
            matches!(end.await, Some(Err(_))),
            "it breaks off, so that nobody takes it for a whole answer"
        );
    }
    assert_eq!(
        broker.calls(&connection(1)),
        1,
        "credentials of routes that stay are kept"
    );
    let silence = tokio::time::timeout(Duration::from_millis(10), stream.body_mut().frame()).await;
    assert!(silence.is_err(), "the stream of a route that stays is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_may_come_later_and_a_file_that_goes_changes_nothing() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-of-the-late"));
    let upstream = Upstream::start().await;
    let route = Route::new("late", &upstream.url()).connection(&connection(1));
    let sidecar = Sidecar::run().control(&broker).start().await;
    let early = sidecar.agent().get("/").provider("late").send().await;
    assert!(
        matches!(early.error(), "not_ready" | "provider_unknown"),
        "{}",
        early.text()
    );
    let file = sidecar.routes_folder().join(route.file_name());
    std::fs::write(&file, route.yaml()).unwrap();
    eventually_served(&sidecar, "late").await;
    assert_eq!(
        sidecar.admin().get("/readyz").send().await.json()["routes"],
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_tells_a_ready_sidecar_from_none() {
    let scene = Scene::bearer().await;
    let admin = scene.sidecar.admin_addr().to_string();
    let ready = output(command(["probe", "--admin", &admin])).await;
    assert_eq!(ready.status.code(), Some(0), "{}", text(&ready.stderr));
    drop(scene);
    let gone = output(command(["probe", "--admin", &admin])).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(!gone.stderr.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_exits_0_1_or_2_and_names_file_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let route = Route::new("github", "https://api.github.com").connection(&connection(1));
    let good = write("good.yaml", &route.yaml());
    let warned = write(
        "warned.yaml",
        &route.clone().tenant("*", &connection(2)).yaml(),
    );
    let bad = write("bad.yaml", &route.clone().upstream("url", "ftp://x").yaml());
    let typo = write("typo.yaml", &route.yaml().replace("upstream:", "upsteam:"));
    let missing = folder.path().join("missing.yaml");
    for (paths, code, mentions) in [
        (vec![&good], 0, &[][..]),
        (vec![&warned], 0, &["warned.yaml", "connections[1].tenant"]),
        (vec![&bad], 1, &["bad.yaml", "upstream", "url"]),
        (vec![&typo], 1, &["typo.yaml", "upsteam"]),
        (vec![&missing], 2, &["missing.yaml"]),
    ] {
        let check = command(
            ["check".into()]
                .into_iter()
                .chain(paths.iter().map(|path| path.as_os_str().to_owned())),
        );
        let output = output(check).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{paths:?}: {said}");
        for mention in mentions {
            assert!(said.contains(mention), "{mention} of {paths:?}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn help_documents_every_command_and_flag() {
    let help = output(command(["run", "--help"])).await;
    assert_eq!(help.status.code(), Some(0));
    let help = text(&help.stdout);
    for flag in [
        "--routes",
        "--gateway-url",
        "--broker-url",
        "--api-key-file",
        "--token-file",
        "--client-cert",
        "--client-key",
        "--gateway-ca",
        "--listen",
        "--admin",
        "--tenants",
        "--allowed-host",
        "--access-log",
        "--log-level",
        "--threads",
    ] {
        let variable = format!("NEXUS_{}", flag[2..].to_uppercase().replace('-', "_"));
        assert!(help.contains(flag), "{flag}");
        assert!(help.contains(&variable), "{variable}");
    }
    let unknown = output(command(["run", "--no-such-flag"])).await;
    assert_eq!(unknown.status.code(), Some(2));
}
