//! `helm test`, and what is left when the chart is uninstalled while pods with sidecars run.

use libtest_mimic::Trial;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::lab::{
    self, CHART, LIMIT, SYSTEM, UPSTREAM, arrived, helm, kubectl, lab, release, values,
};
use crate::team::{PROVIDER, SECOND, Team, agent};
use crate::test;

/// The tests of this file, which must run alone.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "helm_test_proves_the_whole_way",
        helm_test_proves_the_whole_way,
    ));
    list.push(test(
        "uninstalling_leaves_what_runs",
        uninstalling_leaves_what_runs,
    ));
}

/// `helm upgrade` to the values of the tests, and to these.
fn upgrade(more: &serde_json::Value) {
    // Not by `--set`, which has characters of its own.
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), more.to_string()).unwrap();
    let mut arguments = values();
    arguments.push(format!("--values={}", file.path().display()));
    lab::upgrade(&arguments);
}

fn helm_test_proves_the_whole_way() {
    let team = Team::new("helm-test");
    let timeout = format!("{}s", LIMIT.as_secs());
    let run = || {
        helm(&[
            "test",
            "nexus",
            "--namespace",
            SYSTEM,
            "--timeout",
            &timeout,
        ])
    };
    let id = lab().connection();
    let facts = |connection: &str, path: &str| {
        json!({"test": {
            "namespace": team.namespace,
            "image": {"registry": "localhost", "repository": "agent-python", "tag": "1"},
            "connectionId": connection,
            "path": path,
            "upstream": {
                "url": UPSTREAM,
                "allowPrivateAddresses": true,
                "caBundle": lab().authority(),
            },
        }})
    };
    // Without a connection it goes as far as the gateway.
    upgrade(&facts("", "/"));
    run().ok();
    upgrade(&facts(&id, "/helm-test"));
    run().ok();
    assert!(
        arrived(&[&id, "/helm-test"]),
        "the test's request did not arrive authenticated"
    );
    let pods = team.kubectl(&["get", "pods", "--output=name"]).ok();
    assert_eq!(pods, "", "the test left pods");
    // It must be able to fail.
    upgrade(&facts(&id, "/status/500"));
    let said = run();
    assert!(!said.success && said.stdout.contains("Failed"), "{said:?}");
}

fn uninstalling_leaves_what_runs() {
    let team = Team::new("uninstall");
    let id = team.route(PROVIDER, "");
    team.start(&agent("agent"));
    team.served("agent", "/via/upstream/before");
    helm(&["uninstall", "nexus", "--namespace", SYSTEM, "--wait"]).ok();
    let kinds = "validatingwebhookconfigurations,mutatingwebhookconfigurations,clusterroles,clusterrolebindings";
    let left = kubectl(&[
        "get",
        kinds,
        "--output=name",
        "--selector=app.kubernetes.io/part-of=nexus",
    ]);
    assert_eq!(left.ok(), "");
    assert_eq!(team.served("agent", "/via/upstream/after").connection(), id);
    // What guards it is still there.
    let token = ["create", "token", "default", "--audience=nexus-gateway"];
    assert!(
        team.kubectl(&token)
            .refused()
            .contains("nexus-token-audience")
    );
    let exec = [
        "exec",
        "agent",
        "--container=nexus-sidecar",
        "--",
        "/nexus-sidecar",
        "probe",
    ];
    assert!(team.kubectl(&exec).refused().contains("nexus-exec"));

    // Definitions and routes stayed, and the next release takes them over.
    release("install", CHART, &values());
    assert_eq!(
        team.object("nexusroute", PROVIDER)["spec"]["provider"],
        PROVIDER
    );
    let second = team.route(SECOND, "");
    team.start(&agent("again"));
    assert_eq!(
        team.served("again", "/via/second/again").connection(),
        second
    );
    assert_eq!(team.served("agent", "/via/upstream/again").connection(), id);
}
