//! The operator or the API server is away: what runs goes on, and everything recovers.

use std::process::Command;

use libtest_mimic::Trial;
use nexus_tests::apiserver::Answer;
use serde_json::{Value, json};

use crate::lab::{LIMIT, SYSTEM, kubectl, rolled_out, until};
use crate::lifecycle::{completed, job};
use crate::load::Load;
use crate::team::{PROVIDER, SECOND, Team, agent};
use crate::test;

/// The tests of this file, which must run alone.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "without_the_operator_what_runs_goes_on",
        without_the_operator_what_runs_goes_on,
    ));
    let restart = test(
        "after_a_restart_of_the_api_server_everything_recovers",
        after_a_restart_of_the_api_server,
    );
    // Only a cluster of ours can be told to.
    let can = std::env::var_os("NEXUS_E2E_RESTART").is_some();
    list.push(restart.with_ignored_flag(!can));
}

fn scale(replicas: u32) {
    let replicas = format!("--replicas={replicas}");
    kubectl(&[
        "--namespace",
        SYSTEM,
        "scale",
        "deployment/nexus-operator",
        &replicas,
    ])
    .ok();
}

fn without_the_operator_what_runs_goes_on() {
    let team = Team::new("headless");
    team.route(PROVIDER, "");
    team.start(&agent("agent"));
    team.served("agent", "/via/upstream/before");
    let request = "python3 /tools/call.py GET /via/upstream/job | grep -q '\"status\": 200'";
    let slow = format!("{request} && while ! test -e /tmp/go; do sleep 0.2; done && {request}");
    team.create(&job("running", &slow)).ok();
    let pod = until("the job runs", || {
        let running = team.kubectl(&[
            "get",
            "pods",
            "--selector=job-name=running",
            "--output=json",
        ]);
        let pods: Value = serde_json::from_str(&running.stdout).unwrap();
        let pod = &pods["items"][0];
        if pod["status"]["containerStatuses"][0]["ready"] == true {
            Ok(pod["metadata"]["name"].as_str().unwrap().to_owned())
        } else {
            Err(pod["status"].to_string())
        }
    });
    let load = Load::start(&team, "agent", "/via/upstream/load");

    scale(0);
    let timeout = format!("--timeout={}s", LIMIT.as_secs());
    let gone = [
        "wait",
        "--for=delete",
        "pod",
        "--selector=app.kubernetes.io/component=operator",
        &timeout,
    ];
    kubectl(&[&["--namespace", SYSTEM][..], &gone].concat()).ok();
    // Endpoints go a moment after the pods.
    let said = until("annotated pods are refused", || {
        let answer = team.create(&agent("refused"));
        if answer.success {
            team.kubectl(&["delete", "pod", "refused", "--wait=false"])
                .ok();
            Err("it was admitted".to_owned())
        } else {
            Ok(answer.stderr)
        }
    });
    println!("an annotated pod without the operator: {}", said.trim());
    assert!(
        said.contains("nexus-operator") && said.contains("failed calling webhook"),
        "{said}"
    );
    let mut plain = agent("plain");
    plain["metadata"]["annotations"] = json!({});
    team.start(&plain);
    team.exec(&pod, &["touch", "/tmp/go"]).ok();
    completed(&team, "running");
    // A Job whose pod is refused waits for the operator.
    team.create(&job("waiting", request)).ok();
    until("the job's pod is refused", || {
        let events = team.kubectl(&[
            "get",
            "events",
            "--field-selector=involvedObject.name=waiting",
            "--output=json",
        ]);
        if events.stdout.contains("failed calling webhook") {
            Ok(())
        } else {
            Err(events.stdout)
        }
    });
    assert_eq!(team.call("agent", "/via/upstream/during").status, 200);

    scale(2);
    rolled_out(SYSTEM, "deployment/nexus-operator");
    completed(&team, "waiting");
    let second = team.route(SECOND, "");
    team.start(&agent("after"));
    assert_eq!(
        team.served("after", "/via/second/after").connection(),
        second
    );
    load.end();
}

/// When the API server's process started, as it says itself.
fn started() -> String {
    let text = kubectl(&["get", "--raw=/metrics"]).ok();
    let metric = "process_start_time_seconds ";
    let value = text.lines().find_map(|line| line.strip_prefix(metric));
    value.expect("the API server's start time").to_owned()
}

fn after_a_restart_of_the_api_server() {
    let team = Team::new("restart");
    team.route(PROVIDER, "");
    team.start(&agent("agent"));
    team.served("agent", "/via/upstream/before");
    let script = format!(
        "{} kube-apiserver",
        std::env::var("NEXUS_E2E_RESTART").unwrap()
    );
    let before = started();
    // The load is not told what to do by way of the API server while that is away.
    let load = Load::start(&team, "agent", "/via/upstream/load");
    Answer::of(Command::new("sh").args(["-c", &script]), "").ok();
    until("the API server is back", || {
        let answer = kubectl(&["get", "--raw=/readyz"]);
        if answer.success {
            Ok(())
        } else {
            Err(answer.stderr)
        }
    });
    assert_ne!(started(), before, "nothing was restarted");
    let second = team.route(SECOND, "");
    until("pods are admitted", || {
        let answer = team.create(&agent("after"));
        if answer.success {
            Ok(())
        } else {
            Err(answer.stderr)
        }
    });
    team.ready("after");
    assert_eq!(
        team.served("after", "/via/second/after").connection(),
        second
    );
    assert_eq!(team.served("after", "/via/upstream/after").status, 200);
    load.end();
    rolled_out(SYSTEM, "deployment/nexus-operator");
}
