//! Two replicas on a real control plane: both admit, one leads.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

use std::ops::Deref;
use std::time::{Duration, Instant};

use nexus_tests::admission::{Calls, Creator};
use nexus_tests::apiserver::Call;
use nexus_tests::connection;
use nexus_tests::operator::{NAMESPACE, Operator};
use nexus_tests::turn::Turn;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(1);
/// Short, so that a takeover is soon; with room for a busy machine's API server.
const DURATION: Duration = Duration::from_secs(6);
const LEASE: [&str; 1] = ["--lease-duration=6s"];
/// Long enough to be frozen between what it is told and what it writes.
const SLOW_DEBOUNCE: Duration = Duration::from_secs(4);
const SLOW: [&str; 1] = ["--debounce=4s"];
/// Namespaces whose tables are to be written then.
const FROZEN: u32 = 8;
/// Between two attempts of a replica that does not lead, at most.
const RETRY: Duration = Duration::from_millis(667);
/// For a busy machine: processes and the API server need their turns too.
const SLACK: Duration = Duration::from_millis(1500);

/// The Lease is the cluster's.
struct Scene(Turn);

impl Deref for Scene {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.0
    }
}

impl Scene {
    async fn new() -> Self {
        let values = [("routes.inlineUpstreams", "allow")];
        let scene = Self(Turn::behind_forwarder(&values).await);
        scene.admin.delete(&lease_path(), &Value::Null).await;
        scene
    }

    fn start(&self, identity: &str) -> Replica {
        self.start_with(identity, &[])
    }

    fn start_with(&self, identity: &str, arguments: &[&str]) -> Replica {
        let arguments = [&LEASE, arguments].concat();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        Replica {
            identity: identity.to_owned(),
            port,
            operator: self.installation.start_with(identity, port, &arguments),
        }
    }

    /// The first leads; both admit.
    async fn two(&self) -> [Replica; 2] {
        self.two_with(&[]).await
    }

    async fn two_with(&self, arguments: &[&str]) -> [Replica; 2] {
        let first = self.start_with("operator-0", arguments);
        self.led_by("operator-0", LIMIT).await;
        let second = self.start_with("operator-1", arguments);
        self.forwarder().lead_to(&[first.port, second.port]);
        [first, second]
    }

    /// Waits until the controller of either replica has written nothing for longer than it collects changes.
    async fn settle(&self) {
        let start = Instant::now();
        loop {
            let audit = self.cluster.audit();
            tokio::time::sleep(2 * SLOW_DEBOUNCE).await;
            if !audit.calls().iter().any(is_of_controller) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "it writes on");
        }
    }

    /// Holder and number of transitions.
    async fn lease(&self) -> (String, i64) {
        let lease = self.admin.get(&lease_path()).await.body;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let transitions = lease["spec"]["leaseTransitions"].as_i64();
        (holder.to_owned(), transitions.unwrap_or_default())
    }

    /// Waits until the Lease has this holder; gives how long it took.
    async fn led_by(&self, holder: &str, limit: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let lease = self.lease().await;
            if lease.0 == holder {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < limit,
                "after {limit:?} the Lease is {lease:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Replica {
    identity: String,
    port: u16,
    operator: Operator,
}

/// Whether a call was to write a table or a verdict.
fn is_of_controller(call: &Call) -> bool {
    let ours = ["configmaps", "nexusroutes/status"];
    call.is_write() && ours.contains(&call.resource.as_str())
}

fn lease_path() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/nexus-operator")
}

fn route(name: &str, number: u32) -> Value {
    json!({
        "apiVersion": "nexus.io/v1alpha1",
        "kind": "NexusRoute",
        "metadata": {"name": name},
        "spec": {
            "provider": name,
            "upstream": {"url": "https://api.example.com"},
            "connections": [{"connectionId": connection(number)}],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_within_the_lease_time_and_once() {
    let scene = Scene::new().await;
    let [mut first, second] = scene.two().await;
    let (_, transitions) = scene.lease().await;
    // Long enough for several renewals: nobody takes over from a leader that lives.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(scene.lease().await, (first.identity.clone(), transitions));

    scene.forwarder().lead_to(&[second.port]);
    first.operator.kill();
    let killed = Instant::now();
    let namespace = scene.cluster.namespace("takeover");
    let routes = format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes");
    let answer = scene.admin.post(&routes, &route("orders", 1)).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let limit = DURATION.saturating_sub(killed.elapsed());
    scene.led_by(&second.identity, limit).await;
    eprintln!("taken over after {:?}", killed.elapsed());

    // What was applied while nobody led is there.
    let accepted = |route: &Value| {
        let conditions = route["status"]["conditions"].as_array().cloned();
        conditions
            .unwrap_or_default()
            .iter()
            .any(|it| it["type"] == "Programmed" && it["status"] == "True")
    };
    let start = Instant::now();
    loop {
        let route = scene.admin.get(&format!("{routes}/orders")).await.body;
        if accepted(&route) {
            break;
        }
        assert!(
            start.elapsed() < LIMIT,
            "{route}\n{}",
            second.operator.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        scene
            .cluster
            .get(&namespace, "configmap", "nexus-routes")
            .is_some()
    );

    // A third one, which starts now, does not unseat it.
    let third = scene.start("operator-2");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(
        scene.lease().await,
        (second.identity.clone(), transitions + 1)
    );
    assert!((third.operator.metric("nexus_operator_leader", &[])).abs() < 0.5);
    assert!((second.operator.metric("nexus_operator_leader", &[])) > 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_hands_over_at_once() {
    let scene = Scene::new().await;
    let [mut first, second] = scene.two().await;
    let (_, transitions) = scene.lease().await;
    scene.forwarder().lead_to(&[second.port]);
    first.operator.terminate();
    let taken = scene.led_by(&second.identity, LIMIT).await;
    assert!(taken < RETRY + SLACK, "{taken:?}");
    assert_eq!(scene.lease().await, (second.identity, transitions + 1));
    let (status, log) = first.operator.wait();
    assert_eq!(status, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_gives_way_when_it_runs_on() {
    let scene = Scene::new().await;
    let [first, second] = scene.two_with(&SLOW).await;
    let (_, transitions) = scene.lease().await;
    let namespaces: Vec<String> = (0..FROZEN)
        .map(|_| scene.cluster.namespace("frozen"))
        .collect();
    let routes =
        |namespace: &str| format!("/apis/nexus.io/v1alpha1/namespaces/{namespace}/nexusroutes");
    let table = |namespace: &String| scene.cluster.get(namespace, "configmap", "nexus-routes");

    // Frozen with tables to write.
    for (namespace, number) in namespaces.iter().zip(100..) {
        let route = route(namespace, number);
        scene.admin.post(&routes(namespace), &route).await.ok();
    }
    first.operator.freeze();
    let last = namespaces.last().unwrap();
    assert!(table(last).is_none(), "it wrote before it was frozen");
    scene.forwarder().lead_to(&[second.port]);
    scene.led_by(&second.identity, LIMIT).await;
    // Other tables than those that it would write.
    for (namespace, number) in namespaces.iter().zip(200..) {
        let other = json!({"spec": {"connections": [{"connectionId": connection(number)}]}});
        let path = format!("{}/{namespace}", routes(namespace));
        scene.admin.merge(&path, &other).await.ok();
    }
    for (namespace, number) in namespaces.iter().zip(200..) {
        let id = connection(number);
        let tells = || table(namespace).is_some_and(|it| it["data"].to_string().contains(&id));
        let start = Instant::now();
        while !tells() {
            assert!(start.elapsed() < LIMIT, "{}", second.operator.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    scene.settle().await;
    let before: Vec<_> = namespaces.iter().map(table).collect();

    // Nobody else has anything to write any more.
    let audit = scene.cluster.audit();
    first.operator.thaw();
    let leads = |replica: &Replica| replica.operator.metric("nexus_operator_leader", &[]) > 0.5;
    let start = Instant::now();
    while leads(&first) || !first.operator.log().contains("the Lease is lost") {
        assert!(start.elapsed() < LIMIT, "{}", first.operator.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Long enough for several attempts of either.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(leads(&second) && !leads(&first));
    assert_eq!(scene.lease().await, (second.identity, transitions + 1));
    let written: Vec<_> = audit.calls().into_iter().filter(is_of_controller).collect();
    let succeeded: Vec<_> = written.iter().filter(|call| call.code < 300).collect();
    assert!(succeeded.is_empty(), "the old leader wrote: {succeeded:?}");
    let after: Vec<_> = namespaces.iter().map(table).collect();
    assert_eq!(after, before, "it wrote what it had decided before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_both_replicas_refuses_no_pod() {
    let scene = Scene::new().await;
    let namespace = scene.cluster.namespace("restart");
    let mut replicas = scene.two().await;
    let before = Calls::of(scene.cluster);
    let creators: Vec<_> = (0..4)
        .map(|number| Creator::start(&scene.admin, &namespace, &format!("pod{number}")))
        .collect();
    // Both are asked.
    let start = Instant::now();
    while replicas
        .iter()
        .any(|it| scene.forwarder().connections(it.port) == 0)
    {
        assert!(start.elapsed() < LIMIT, "one replica is never asked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for round in 0..2 {
        let new = scene.start(&format!("operator-{}", 2 + round));
        let mut old = std::mem::replace(&mut replicas[round], new);
        let ports = replicas.each_ref().map(|it| it.port);
        // As a Service does it: no new connections any more, then SIGTERM (after preStop); old ones go on.
        scene.forwarder().lead_to(&ports);
        tokio::time::sleep(Duration::from_millis(500)).await;
        old.operator.terminate();
        let (status, log) = old.operator.wait();
        assert_eq!(status, Some(0), "{log}");
    }
    // The new ones are asked now.
    let asked = |replica: &Replica| {
        let labels = ["kind=\"Pod\"", "outcome=\"Injected\""];
        replica
            .operator
            .metric("nexus_operator_admissions_total", &labels)
            > 0.0
    };
    let start = Instant::now();
    while !replicas.iter().any(asked) {
        let metrics = replicas[0].operator.metrics();
        assert!(start.elapsed() < LIMIT, "no pod was admitted: {metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut created = 0;
    for creator in creators {
        created += creator.finish().await;
    }
    assert_eq!(Calls::of(scene.cluster).failed, before.failed);
    assert!(created > 50, "{created} pods");
}
