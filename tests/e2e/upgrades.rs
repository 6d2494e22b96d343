//! `helm upgrade` while pods are created and agents work.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use libtest_mimic::Trial;
use nexus_tests::caller::Caller;
use nexus_tests::operator::sum;
use tokio::sync::watch;

use crate::lab::{self, SYSTEM, helm, kubectl, kubectl_command, rolled_out, run, until, values};
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
    let mut arguments = vec!["upgrade", "nexus", "charts/nexus", "--namespace", SYSTEM];
    let values: Vec<String> = values()
        .iter()
        .map(|value| value.replace(&format!(".tag={}", lab::tag()), &format!(".tag={next}")))
        .collect();
    arguments.extend(values.iter().map(String::as_str));
    let start = Instant::now();
    helm(&arguments).ok();
    rolled_out(SYSTEM, "deployment/nexus-operator");
    // The last of the old replicas serves on through its preStop, by connections that the API server has.
    until("the next operator admits", || {
        let dry = [
            "create",
            "--dry-run=server",
            "--output=json",
            "--filename=-",
        ];
        let pod = agent("dry");
        let namespace = format!("--namespace={}", team.namespace);
        let mut command = kubectl_command(&[&[namespace.as_str()], &dry[..]].concat());
        let said = run(&mut command, &pod.to_string()).ok();
        if said.contains(&format!("nexus-sidecar:{next}\"")) {
            Ok(())
        } else {
            Err("the one before admits".to_owned())
        }
    });
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
        f64::from(created) > took.as_secs_f64() * f64::from(RATE) * 0.7,
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
