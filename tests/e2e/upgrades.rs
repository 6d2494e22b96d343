//! `helm upgrade` while pods are created and agents work.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use libtest_mimic::Trial;
use nexus_tests::apiserver::Answer;
use nexus_tests::caller::Caller;
use nexus_tests::operator::sum;
use tokio::sync::watch;

use crate::lab::{
    self, SYSTEM, helm, kubectl, kubectl_command, release, rolled_out, until, upgrade, values,
    values_of,
};
use crate::lifecycle::kill_sidecar;
use crate::load::Load;
use crate::team::{PROVIDER, SECOND, Team, agent};
use crate::test;

/// Pods per second.
const RATE: u32 = 10;

/// The tests of this file, which must run alone.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "an_upgrade_under_load_fails_no_admission_and_no_request",
        an_upgrade_under_load_fails_no_admission_and_no_request,
    ));
}

/// Admissions by our webhooks that the API server counted.
fn answered() -> f64 {
    let text = kubectl(&["get", "--raw=/metrics"]).ok();
    let requests = "apiserver_admission_webhook_request_total";
    sum(
        &text,
        requests,
        &["name=\"inject.nexus.io\"", "code=\"200\""],
    )
}

/// What the API server counts of webhooks that failed or refused.
#[derive(Debug, PartialEq)]
struct Failures {
    rejections: f64,
    failed_open: f64,
    not_answered: f64,
}

fn failures() -> Failures {
    let text = kubectl(&["get", "--raw=/metrics"]).ok();
    let rejections = "apiserver_admission_webhook_rejection_count";
    Failures {
        rejections: sum(&text, rejections, &["name=\"inject.nexus.io\""]),
        failed_open: sum(
            &text,
            "apiserver_admission_webhook_fail_open_count",
            &["nexus.io"],
        ),
        not_answered: sum(
            &text,
            "apiserver_admission_webhook_request_total",
            &["nexus.io"],
        ) - sum(
            &text,
            "apiserver_admission_webhook_request_total",
            &["nexus.io", "code=\"200\""],
        ),
    }
}

fn an_upgrade_under_load_fails_no_admission_and_no_request() {
    let team = Team::new("upgrade");
    team.route(PROVIDER, "");
    team.start(&agent("older"));
    team.served("older", "/via/upstream/before");
    let load = Load::start(&team, "older", "/via/upstream/load");
    let older = team.object("pod", "older")["spec"]["initContainers"][0]["image"].clone();
    let (before, answered_before) = (failures(), answered());

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (end, ended) = watch::channel(false);
    let pods = runtime.spawn(create_pods(team.namespace.clone(), ended));
    let next = format!("{}-next", lab::tag());
    let start = Instant::now();
    upgrade(&values_of(&next));
    admits(&team, &next);
    std::thread::sleep(Duration::from_secs(5));
    let took = start.elapsed();
    end.send_replace(true);
    let created = runtime.block_on(pods).unwrap();
    load.end();

    println!(
        "{created} pods in {:.0} s of an upgrade",
        took.as_secs_f64()
    );
    assert!(
        f64::from(created) > took.as_secs_f64() * f64::from(RATE) * 0.9,
        "too few pods: {created}"
    );
    assert_eq!(failures(), before);
    let answered = answered() - answered_before;
    assert!(
        answered >= f64::from(created),
        "the API server counts {answered} admissions"
    );

    team.start(&agent("newer"));
    let newer = &team.object("pod", "newer")["spec"]["initContainers"][0]["image"];
    assert_eq!(
        newer.as_str().unwrap(),
        older.as_str().unwrap().replace(&lab::tag(), &next)
    );
    // The older sidecar takes what the newer operator writes.
    let second = team.route(SECOND, "");
    for pod in ["newer", "older"] {
        let reply = team.served(pod, "/via/second/after");
        assert_eq!(reply.connection(), second, "{pod}");
    }
}

/// Waits until sidecars of this tag are injected: the last of the operators before serves on through its preStop, by
/// connections that the API server has.
fn admits(team: &Team, tag: &str) {
    until("the operator after it admits", || {
        let dry = [
            "create",
            "--dry-run=server",
            "--output=json",
            "--filename=-",
        ];
        let namespace = format!("--namespace={}", team.namespace);
        let mut command = kubectl_command(&[&[namespace.as_str()], &dry[..]].concat());
        let said = Answer::of(&mut command, &agent("dry").to_string()).ok();
        if said.contains(&format!("nexus-sidecar:{tag}\"")) {
            Ok(())
        } else {
            Err("the one before admits".to_owned())
        }
    });
}

/// What `cargo xtask e2e --from` asks for.
pub(crate) fn tests_of_older(list: &mut Vec<Trial>) {
    list.push(test(
        "an_older_release_goes_on_under_this_one_and_back",
        an_older_release_goes_on_under_this_one_and_back,
    ));
}

/// Installs the earlier revision's chart and images, as its users did.
pub(crate) fn install_older() {
    let (chart, tag) = lab::older().unwrap();
    kubectl(&["create", "namespace", SYSTEM]).ok();
    kubectl(&["label", "namespace", SYSTEM, "e2e=true"]).ok();
    release("install", &chart, &values_of(&tag));
}

fn an_older_release_goes_on_under_this_one_and_back() {
    let (_, older) = lab::older().unwrap();
    let tag = |team: &Team, pod: &str| {
        let image = &team.object("pod", pod)["spec"]["initContainers"][0]["image"];
        image
            .as_str()
            .unwrap()
            .rsplit(':')
            .next()
            .unwrap()
            .to_owned()
    };
    let team = Team::new("older");
    let first = team.route(PROVIDER, "");
    team.start(&agent("older"));
    assert_eq!(tag(&team, "older"), older);
    let reply = team.served("older", "/via/upstream/before");
    assert_eq!(reply.connection(), first);
    let load = Load::start(&team, "older", "/via/upstream/load");

    upgrade(&values());
    admits(&team, &lab::tag());
    team.start(&agent("newer"));
    assert_eq!(tag(&team, "newer"), lab::tag());
    // A route that only the newer operator has written reaches both.
    let second = team.route(SECOND, "");
    let both = ["older", "newer"];
    for pod in both {
        let reply = team.served(pod, "/via/second/upgraded");
        assert_eq!(reply.connection(), second, "{pod}");
    }
    load.end();
    // What the newer one wrote is all that a sidecar has which starts again.
    kill_sidecar(&team.object("pod", "older"));
    until("the older sidecar is started again", || {
        let status = team.object("pod", "older")["status"].take();
        let sidecar = &status["initContainerStatuses"][0];
        if sidecar["restartCount"] == 1 && sidecar["ready"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    for pod in both {
        let reply = team.served(pod, "/via/second/restarted");
        assert_eq!(reply.connection(), second, "{pod}");
    }

    helm(&["rollback", "nexus", "--namespace", SYSTEM]).ok();
    rolled_out(SYSTEM, "deployment/nexus-operator");
    admits(&team, &older);
    team.start(&agent("again"));
    let third = team.route(SECOND, "");
    for pod in ["older", "newer", "again"] {
        until("the route that the older operator wrote", || {
            let reply = team.call(pod, "/via/second/back");
            if reply.status == 200 && reply.connection() == third {
                Ok(())
            } else {
                Err(format!("{pod}: {reply:?}"))
            }
        });
    }
}

/// Creates pods that nothing schedules until told to end; each must be admitted with a sidecar. Returns how many.
async fn create_pods(namespace: String, mut ended: watch::Receiver<bool>) -> u32 {
    let caller = administrator().await;
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut created = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = ended.wait_for(|ended| *ended) => return created,
        }
        let mut pod = agent(&format!("burst-{created}"));
        pod["spec"]["schedulerName"] = "nobody".into();
        let answer = caller.post(&path, &pod).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        let first = &answer.body["spec"]["initContainers"][0]["name"];
        assert_eq!(first, "nexus-sidecar");
        created += 1;
    }
}

async fn administrator() -> Caller {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let path = PathBuf::from(std::env::var_os("NEXUS_E2E_KUBECONFIG").unwrap());
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    Caller::new(Client::try_from(config).unwrap())
}
