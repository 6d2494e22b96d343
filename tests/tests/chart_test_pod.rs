//! What the pod of `helm test` runs, against the real sidecar: it passes where an agent would be served, and else says
//! what an administrator has to know.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

use nexus_tests::broker::{Answer, Broker};
use nexus_tests::chart;
use nexus_tests::connection;
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::{Refusal, Upstream};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

/// The programs of a pod: `sh`, `sleep`, `printf` and one of the kinds of `wget`.
struct Image(TempDir);

/// Every kind of `wget` that there is here.
fn images() -> Vec<Image> {
    let path = std::env::var_os("PATH").unwrap();
    let find = |name: &str| -> Option<PathBuf> {
        let mut folders = std::env::split_paths(&path);
        folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.exists()))
    };
    let images: Vec<Image> = ["busybox", "wget"]
        .iter()
        .filter_map(|kind| {
            let folder = tempfile::tempdir().unwrap();
            symlink(find(kind)?, folder.path().join("wget")).unwrap();
            for name in ["sh", "sleep", "printf"] {
                symlink(find(name).unwrap(), folder.path().join(name)).unwrap();
            }
            Some(Image(folder))
        })
        .collect();
    assert!(
        !images.is_empty(),
        "neither busybox nor wget is on the PATH"
    );
    images
}

/// The environment of the pod's agent.
#[derive(Clone, Default)]
struct Agent {
    sidecar: String,
    obstacle: &'static str,
    connection: String,
    tenant: &'static str,
    path: &'static str,
}

impl Agent {
    fn of(sidecar: &Sidecar) -> Self {
        Self {
            sidecar: sidecar.url(),
            path: "/v1/me?q=a%20b",
            ..Self::default()
        }
    }

    /// Runs the script with each kind of `wget`; whether it passed, and what it said.
    async fn run(&self) -> Vec<(bool, String)> {
        let agent = self.clone();
        let ran = spawn_blocking(move || images().iter().map(|it| agent.run_in(it)).collect());
        let outputs: Vec<Output> = ran.await.unwrap();
        outputs
            .into_iter()
            .map(|output| {
                assert!(output.stderr.is_empty(), "{output:?}");
                let said = String::from_utf8(output.stdout).unwrap();
                (output.status.success(), said)
            })
            .collect()
    }

    fn run_in(&self, image: &Image) -> Output {
        let script = std::fs::read_to_string(chart::folder().join("files/test.sh")).unwrap();
        Command::new(image.0.path().join("sh"))
            .args(["-c", &script])
            .env_clear()
            .env("PATH", image.0.path())
            .env("NEXUS_SIDECAR_URL", &self.sidecar)
            .env("TEST_OBSTACLE", self.obstacle)
            .env("TEST_CONNECTION", &self.connection)
            .env("TEST_PROVIDER", "p")
            .env("TEST_TENANT", self.tenant)
            .env("TEST_PATH", self.path)
            .env("TEST_TRIES", "1")
            .output()
            .unwrap()
    }

    async fn passes(&self, with: &str) {
        for (passed, said) in self.run().await {
            assert!(passed && said.contains(with), "{said}");
            assert!(said.contains("\nPASSED"), "{said}");
        }
    }

    async fn fails(&self, with: &str) {
        for (passed, said) in self.run().await {
            assert!(!passed && said.contains(with), "{said}");
            assert!(
                said.contains("FAILED: ") && !said.contains("PASSED"),
                "{said}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_the_control_planes_answer_is_enough() {
    let broker = Broker::gateway().await;
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url()).connection(&connection(7));
    let sidecar = Sidecar::with(&broker, &route).await;
    let agent = Agent::of(&sidecar);
    agent
        .passes("without an authenticated request: set test.connectionId")
        .await;
    assert!(upstream.seen().is_empty());
    broker.set(&connection(7), Answer::status(401, "missing_api_key"));
    let sidecar = Sidecar::with(&broker, &route).await;
    let agent = Agent::of(&sidecar);
    agent.fails("the sidecar answered broker_rejected: ").await;
    broker.set(&connection(7), Answer::close());
    let sidecar = Sidecar::with(&broker, &route).await;
    let agent = Agent::of(&sidecar);
    agent
        .fails("the sidecar answered broker_unavailable: ")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_connection_the_upstream_must_answer_an_authenticated_request_with_success() {
    let broker = Broker::gateway().await;
    let upstream = Upstream::start().await;
    broker.set(&connection(1), Answer::oauth2("token-of-the-test"));
    let route = Route::new("p", &upstream.url()).tenant("t_1", &connection(1));
    let sidecar = Sidecar::run()
        .route(&route)
        .control(&broker)
        .arg("--tenants=t_1")
        .start()
        .await;
    let agent = Agent {
        connection: connection(1),
        tenant: "t_1",
        ..Agent::of(&sidecar)
    };
    agent
        .passes("The upstream answered the authenticated request with 200.")
        .await;
    let seen = upstream.last();
    assert_eq!(seen.header("authorization"), "Bearer token-of-the-test");
    assert_eq!(seen.target, "/v1/me?q=a%20b");
    let stranger = Agent {
        tenant: "t_2",
        ..agent.clone()
    };
    stranger
        .fails("the sidecar answered tenant_forbidden: ")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_refuses_or_sends_elsewhere_is_no_success() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-of-the-test"));
    let elsewhere = Upstream::start().await;
    let login = format!("{}/login", elsewhere.url());
    for status in [302, 403, 500] {
        let login = login.clone();
        let refuse = move |_: &_| Some(Refusal::new(status, "no").header("location", &login));
        let upstream = Upstream::builder().gate(refuse).start().await;
        let route = Route::new("p", &upstream.url()).connection(&connection(1));
        let sidecar = Sidecar::with(&broker, &route).await;
        let agent = Agent {
            connection: connection(1),
            ..Agent::of(&sidecar)
        };
        let said = format!("the upstream answered it with {status}; see test.path");
        agent.fails(&said).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_has_no_sidecar_or_cannot_have_one_says_so() {
    let missing = Agent::default();
    missing.fails("MutatingWebhookConfiguration").await;
    let obstacle = Agent {
        obstacle: "sidecars need the Secret nexus-key",
        ..Agent::default()
    };
    obstacle
        .fails("FAILED: sidecars need the Secret nexus-key")
        .await;
    let scene = Scene::bearer().await;
    let unrouted = Agent {
        connection: connection(1),
        tenant: "unheard-of",
        ..Agent::of(&scene.sidecar)
    };
    unrouted.fails("the sidecar answered ").await;
    let gone = Agent::of(&scene.sidecar);
    drop(scene);
    gone.fails("the sidecar does not answer: ").await;
}
