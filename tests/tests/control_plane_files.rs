//! The files by which the sidecar shows itself to the control plane, and by which it knows it, change while it runs:
//! the next call uses the new ones.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use nexus_tests::agent;
use nexus_tests::broker::{Access, Answer, Broker, Call, Front, Outage};
use nexus_tests::connection;
use nexus_tests::mount::Mount;
use nexus_tests::route::Route;
use nexus_tests::sidecar::{Builder, Sidecar};
use nexus_tests::tls::{self, Authority, Leaf};
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;

/// A control plane with more connections than a test needs, so that each of its calls is a first one.
struct World {
    broker: Broker,
    sidecar: Sidecar,
    _upstream: Upstream,
}

impl World {
    async fn start(broker: Broker, adapt: impl FnOnce(Builder) -> Builder) -> Self {
        const TENANTS: u32 = 8;
        let upstream = Upstream::start().await;
        let mut route = Route::new("p", &upstream.url());
        for number in 0..TENANTS {
            broker.set(&connection(number), Answer::oauth2("token-of-the-files"));
            route = route.tenant(&format!("t{number}"), &connection(number));
        }
        let builder = Sidecar::run().route(&route).control(&broker);
        Self {
            sidecar: adapt(builder).start().await,
            broker,
            _upstream: upstream,
        }
    }

    async fn ask(&self, number: u32) -> agent::Answer {
        let call = self.sidecar.agent().get("/").provider("p");
        call.tenant(&format!("t{number}")).send().await
    }

    /// The only call about a connection.
    fn call(&self, number: u32) -> Call {
        let log = self.broker.log(&connection(number));
        assert_eq!(log.len(), 1, "{log:?}");
        log.into_iter().next().unwrap()
    }

    /// The connection is asked about until its backoff has ended.
    async fn recovers(&self, number: u32) {
        wait::within("the end of the backoff", async {
            while self.ask(number).await.status != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

fn refused(answer: &agent::Answer) -> (u16, &str) {
    (answer.status, answer.error())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_api_key_is_used_by_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "key-of-monday\n").unwrap();
    let broker = Broker::start(Front::Broker, Some("key-of-monday")).await;
    let world = World::start(broker, |builder| builder.arg("--api-key-file").arg(&file)).await;
    assert_eq!(world.ask(0).await.status, 200);
    world.broker.require(Access {
        api_key: Some("key-of-tuesday".to_owned()),
        bearer: None,
    });
    assert_eq!(world.ask(0).await.status, 200, "it has that one already");
    assert_eq!(refused(&world.ask(1).await), (502, "broker_rejected"));
    std::fs::write(&file, "key-of-tuesday\n").unwrap();
    assert_eq!(world.ask(2).await.status, 200);
    assert_eq!(world.call(2).api_key.as_deref(), Some("key-of-tuesday"));
    world.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projected_token_that_rotates_is_used_by_the_next_call() {
    let mut mount = Mount::new(&[("token", "token-of-this-hour")]);
    let broker = Broker::start(Front::Gateway, None).await;
    let bearer = |token: &str| Access {
        api_key: None,
        bearer: Some(token.to_owned()),
    };
    broker.require(bearer("token-of-this-hour"));
    let file = mount.path("token");
    let world = World::start(broker, |builder| builder.arg("--token-file").arg(file)).await;
    assert_eq!(world.ask(0).await.status, 200);
    let sent = world.call(0).authorization;
    assert_eq!(sent.as_deref(), Some("Bearer token-of-this-hour"));
    world.broker.require(bearer("token-of-the-next"));
    assert_eq!(refused(&world.ask(1).await), (502, "broker_rejected"));
    mount.replace(&[("token", "token-of-the-next")]);
    assert_eq!(world.ask(2).await.status, 200);
    let sent = world.call(2).authorization;
    assert_eq!(sent.as_deref(), Some("Bearer token-of-the-next"));
    world.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_is_gone_fails_closed_and_is_read_again_once_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "token-of-the-pod").unwrap();
    let broker = Broker::start(Front::Gateway, None).await;
    broker.require(Access {
        api_key: None,
        bearer: Some("token-of-the-pod".to_owned()),
    });
    let world = World::start(broker, |builder| builder.arg("--token-file").arg(&file)).await;
    assert_eq!(world.ask(0).await.status, 200);
    std::fs::remove_file(&file).unwrap();
    let answer = world.ask(1).await;
    assert_eq!(refused(&answer), (502, "broker_rejected"));
    let path = file.to_str().unwrap();
    assert!(!answer.text().contains(path), "{}", answer.text());
    world.sidecar.logged(path).await;
    assert_eq!(
        world.broker.log(&connection(1)).len(),
        0,
        "without its token it asks nothing"
    );
    std::fs::write(&file, "token-of-the-pod").unwrap();
    world.recovers(1).await;
}

/// Files of a client certificate and its key.
fn identity(pair: &(String, String)) -> [(&'static str, &str); 2] {
    [("tls.crt", &pair.0), ("tls.key", &pair.1)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_client_certificate_is_used_by_the_next_call() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (first, second) = (clients.client("first"), clients.client("second"));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, authority.pem()).unwrap();
    let mut mount = Mount::new(&identity(&first));
    let tls = authority.server_for_clients_of(Leaf::Valid, &clients);
    let broker = Broker::secure(Front::Gateway, tls).await;
    let world = World::start(broker, |builder| {
        let builder = builder.arg("--gateway-ca").arg(ca);
        let builder = builder.arg("--client-cert").arg(mount.path("tls.crt"));
        builder.arg("--client-key").arg(mount.path("tls.key"))
    })
    .await;
    assert_eq!(world.ask(0).await.status, 200);
    assert_eq!(world.call(0).client_certificate, Some(tls::der(&first.0)));
    mount.replace(&identity(&second));
    assert_eq!(world.ask(1).await.status, 200);
    assert_eq!(world.call(1).client_certificate, Some(tls::der(&second.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_accepted_is_replaced_without_a_restart() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (stranger, member) = (Authority::new().client("s"), clients.client("member"));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, authority.pem()).unwrap();
    let mut mount = Mount::new(&identity(&stranger));
    let tls = authority.server_for_clients_of(Leaf::Valid, &clients);
    let broker = Broker::secure(Front::Broker, tls).await;
    let world = World::start(broker, |builder| {
        let builder = builder.arg("--gateway-ca").arg(ca);
        let builder = builder.arg("--client-cert").arg(mount.path("tls.crt"));
        builder.arg("--client-key").arg(mount.path("tls.key"))
    })
    .await;
    let answer = world.ask(0).await;
    assert_eq!(refused(&answer), (503, "broker_unavailable"));
    assert_eq!(world.broker.calls(&connection(0)), 0);
    mount.replace(&identity(&member));
    assert_eq!(world.ask(1).await.status, 200);
    world.recovers(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_of_the_control_plane_is_trusted_once_its_file_says_so() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut mount = Mount::new(&[("ca.crt", &old.pem())]);
    let broker = Broker::secure(Front::Gateway, old.server(Leaf::Valid, &[])).await;
    let file = mount.path("ca.crt");
    let world = World::start(broker, |builder| builder.arg("--gateway-ca").arg(file)).await;
    assert_eq!(world.ask(0).await.status, 200);
    world.broker.set_tls(new.server(Leaf::Valid, &[]));
    // Connections of before would go on.
    world.broker.outage(Outage::Refused).await;
    world.broker.outage(Outage::None).await;
    assert_eq!(refused(&world.ask(1).await), (503, "broker_unavailable"));
    assert_eq!(
        world.broker.calls(&connection(1)),
        0,
        "nothing was asked of a stranger"
    );
    mount.replace(&[("ca.crt", &new.pem())]);
    assert_eq!(world.ask(2).await.status, 200);
    world.recovers(1).await;
}
