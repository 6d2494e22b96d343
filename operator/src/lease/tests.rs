//! Candidates against an API server in memory, on a clock that moves when nothing else can.

use std::sync::Mutex;

use axum::Router;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

const DURATION: Duration = Duration::from_secs(15);
/// Others wait so long after a renewal.
const GRANTED: Duration = Duration::from_secs(12);
/// Of a candidate between two attempts.
const RETRY: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Server {
    lease: Mutex<(u64, Option<Value>)>,
}

/// What happens to a candidate's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Network {
    #[default]
    Works,
    Refuses,
    Hangs,
    /// Writes are carried out and never answered.
    LosesAnswers,
}

#[derive(Clone, Default)]
struct Link {
    server: Arc<Server>,
    network: Arc<Mutex<Network>>,
}

impl Link {
    fn set(&self, network: Network) {
        *self.network.lock().unwrap() = network;
    }

    async fn pass(&self) -> Option<Response> {
        let network = *self.network.lock().unwrap();
        match network {
            Network::Works | Network::LosesAnswers => None,
            Network::Refuses => Some(StatusCode::SERVICE_UNAVAILABLE.into_response()),
            Network::Hangs => std::future::pending().await,
        }
    }

    async fn answer(&self, answer: Response) -> Response {
        let loses = *self.network.lock().unwrap() == Network::LosesAnswers;
        if loses {
            std::future::pending::<()>().await;
        }
        answer
    }
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": reason,
    });
    (code, Json(body)).into_response()
}

async fn read(State(link): State<Link>) -> Response {
    if let Some(refusal) = link.pass().await {
        return refusal;
    }
    match &link.server.lease.lock().unwrap().1 {
        Some(lease) => Json(lease).into_response(),
        None => status(StatusCode::NOT_FOUND, "NotFound"),
    }
}

async fn write(State(link): State<Link>, Json(mut new): Json<Value>) -> Response {
    if let Some(refusal) = link.pass().await {
        return refusal;
    }
    let answer = {
        let mut lease = link.server.lease.lock().unwrap();
        let stored = lease
            .1
            .as_ref()
            .map(|it| it["metadata"]["resourceVersion"].clone());
        let sent = new["metadata"]["resourceVersion"].clone();
        if stored.unwrap_or(Value::Null) == sent {
            lease.0 += 1;
            new["metadata"]["resourceVersion"] = lease.0.to_string().into();
            lease.1 = Some(new.clone());
            Json(new).into_response()
        } else {
            status(
                StatusCode::CONFLICT,
                if sent.is_null() {
                    "AlreadyExists"
                } else {
                    "Conflict"
                },
            )
        }
    };
    link.answer(answer).await
}

struct Replica {
    link: Link,
    leads: watch::Receiver<bool>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

fn replica(server: &Arc<Server>, identity: &str) -> Replica {
    let link = Link {
        server: server.clone(),
        ..Link::default()
    };
    let leases = "/apis/coordination.k8s.io/v1/namespaces/n/leases";
    let router: Router = Router::new()
        .route(leases, axum::routing::post(write))
        .route(&format!("{leases}/l"), get(read).put(write))
        .with_state(link.clone());
    let (sender, leads) = watch::channel(false);
    let (shutdown, ending) = watch::channel(false);
    let candidate = Candidate {
        leases: Api::namespaced(Client::new(router, "n"), "n"),
        name: "l".into(),
        identity: identity.into(),
        timing: Timing::of(DURATION),
        observed: None,
        leading: sender,
        metrics: Arc::default(),
    };
    let task = tokio::spawn(candidate.run(ending));
    Replica {
        link,
        leads,
        shutdown,
        task,
    }
}

impl Replica {
    fn leads(&self) -> bool {
        *self.leads.borrow()
    }
}

fn spec(server: &Server) -> Value {
    server.lease.lock().unwrap().1.as_ref().unwrap()["spec"].clone()
}

/// Two replicas; the first leads.
async fn two() -> (Arc<Server>, Replica, Replica) {
    let server = Arc::new(Server::default());
    let first = replica(&server, "first");
    sleep(TICK).await;
    assert!(first.leads());
    let second = replica(&server, "second");
    (server, first, second)
}

/// Lets time pass, tick by tick; never do both lead. Ends early once `until` holds; returns the time that passed.
async fn pass(span: Duration, replicas: [&Replica; 2], until: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while begun.elapsed() < span && !until() {
        sleep(TICK).await;
        assert!(!(replicas[0].leads() && replicas[1].leads()), "both lead");
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_and_goes_on_leading() {
    let (server, first, second) = two().await;
    for _ in 0..20 {
        pass(DURATION, [&first, &second], || false).await;
        assert!(first.leads() && !second.leads());
    }
    let spec = spec(&server);
    assert_eq!(spec["holderIdentity"], "first");
    assert_eq!(spec["leaseTransitions"], 0);
    assert_eq!(spec["leaseDurationSeconds"], 12);
}

#[tokio::test(start_paused = true)]
async fn another_takes_over_within_the_duration_when_the_leader_is_killed() {
    // At different times since the last renewal, and since the other one looked.
    for phase in 0..20 {
        let (server, first, second) = two().await;
        let lived = DURATION * 3 + RETRY * phase / 10;
        pass(lived, [&first, &second], || false).await;
        first.task.abort();
        let begun = Instant::now();
        while !second.leads() {
            sleep(TICK).await;
        }
        let passed = begun.elapsed();
        assert!(passed < DURATION, "{phase}: {passed:?}");
        assert!(
            passed >= GRANTED.checked_sub(RETRY + TICK).unwrap(),
            "{phase}: {passed:?}"
        );
        assert_eq!(spec(&server)["leaseTransitions"], 1);
    }
}

#[test]
fn the_holder_has_given_up_before_others_may_take_over_and_those_do_within_the_duration() {
    for milliseconds in (2_000..60_000).step_by(100) {
        let duration = Duration::from_millis(milliseconds);
        let Timing {
            granted,
            deadline,
            retry,
        } = Timing::of(duration);
        assert!(deadline + retry <= granted, "{duration:?}");
        // A renewal is seen up to a retry late.
        assert!(granted + retry < duration, "{duration:?}");
        assert!(retry * 5 <= deadline, "{duration:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_shutdown_the_lease_is_free_at_once() {
    let (server, first, second) = two().await;
    pass(DURATION, [&first, &second], || false).await;
    first.shutdown.send_replace(true);
    let passed = pass(DURATION, [&first, &second], || second.leads()).await;
    assert!(passed <= RETRY + TICK, "{passed:?}");
    assert!(first.task.is_finished() && !first.leads());
    assert_eq!(spec(&server)["leaseTransitions"], 1);
    assert_eq!(spec(&server)["holderIdentity"], "second");
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_gives_up_before_another_may_lead() {
    for network in [Network::Refuses, Network::Hangs, Network::LosesAnswers] {
        let (_server, first, second) = two().await;
        pass(DURATION, [&first, &second], || false).await;
        first.link.set(network);
        let passed = pass(DURATION * 2, [&first, &second], || !first.leads()).await;
        assert!(passed <= DURATION / 3 * 2 + TICK, "{network:?} {passed:?}");
        // One whose writes arrive keeps the others out, as it must.
        if network != Network::LosesAnswers {
            pass(DURATION * 2, [&first, &second], || second.leads()).await;
            assert!(second.leads(), "{network:?}");
        }
        first.link.set(Network::Works);
        pass(DURATION * 4, [&first, &second], || false).await;
        assert!(first.leads() != second.leads(), "{network:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_for_a_moment_changes_nothing() {
    let (server, first, second) = two().await;
    for network in [Network::Refuses, Network::Hangs] {
        pass(DURATION, [&first, &second], || false).await;
        for replica in [&first, &second] {
            replica.link.set(network);
        }
        pass(DURATION / 3, [&first, &second], || !first.leads()).await;
        for replica in [&first, &second] {
            replica.link.set(Network::Works);
        }
        pass(DURATION * 2, [&first, &second], || !first.leads()).await;
        assert!(first.leads(), "{network:?}");
    }
    assert_eq!(spec(&server)["leaseTransitions"], 0);
}

#[tokio::test(start_paused = true)]
async fn clocks_of_others_mean_nothing() {
    for renewed in ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
        let server = Arc::new(Server::default());
        let second = replica(&server, "second");
        let renew = |n: u64| {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "l", "resourceVersion": n.to_string()},
                "spec": {
                    "holderIdentity": "other", "leaseDurationSeconds": 15,
                    "renewTime": renewed.replace("00Z", &format!("{n:02}Z")),
                },
            });
            *server.lease.lock().unwrap() = (n, Some(lease));
        };
        for n in 1..20 {
            renew(n);
            pass(DURATION / 2, [&second, &second], || second.leads()).await;
            assert!(!second.leads(), "{renewed}");
        }
        let passed = sleep_until_leads(&second).await;
        assert!(passed <= DURATION + RETRY, "{renewed} {passed:?}");
    }
}

async fn sleep_until_leads(replica: &Replica) -> Duration {
    let begun = Instant::now();
    while !replica.leads() {
        sleep(TICK).await;
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_stays_with_its_leader() {
    let (server, first, second) = two().await;
    pass(DURATION, [&first, &second], || false).await;
    for _ in 0..3 {
        server.lease.lock().unwrap().1 = None;
        pass(DURATION * 2, [&first, &second], || false).await;
        assert!(first.leads());
    }
}

#[test]
fn a_replica_without_a_given_name_is_like_no_other() {
    assert_ne!(identity(None).unwrap(), identity(None).unwrap());
    assert_eq!(identity(Some("a")).unwrap(), "a");
    assert!(identity(Some("")).is_err());
}
