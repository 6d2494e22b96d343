//! Attacks on what the containers of a pod share, as root too.

use nexus_tests::apiserver::Answer;
use nexus_tests::tls::Authority;
use serde_json::json;

use super::Outcome::{Breach, Own, Refused};
use super::{Outcome, PLAIN, ROOT, Scene, Table, failed, names_a_token};
use crate::team::{PROVIDER, Team, agent};

/// Pods of root whose sidecars have no connection to anything yet.
const FRESH: &str = "fresh";
const SNIFFER: &str = "sniffer";

impl Scene {
    pub(super) fn attack_the_pod(&self, table: &mut Table) {
        let team = root_team();
        let bind = ["python3", "/tools/attack.py", "bind", "8080"];
        let outcome = failed(&team.exec(ROOT, &bind), "Address already in use");
        table.row("sidecar", ROOT, "take its port as root", outcome);
        table.row(
            "sidecar",
            ROOT,
            "find and kill its process as root",
            kill(&team),
        );
        let sniff = [
            "python3",
            "/tools/attack.py",
            "sniff",
            "/via/upstream/sniff",
        ];
        let outcome = failed(&self.run(PLAIN, &sniff), "Operation not permitted");
        table.row("sidecar", PLAIN, "read the pod's network devices", outcome);
        let said = team.exec(SNIFFER, &sniff).stdout;
        let outcome = if said.contains("/via/upstream/sniff") && !names_a_token(&said) {
            Own("its own requests, and what TLS carries".to_owned())
        } else {
            Breach(said)
        };
        table.row("sidecar", ROOT, "the same as root, which may", outcome);

        let what = "lead the upstream's name to the agent, by the file that containers share";
        let said = mislead(&team, ROOT, "upstream.services.svc");
        table.row(
            "/etc/hosts",
            ROOT,
            what,
            no_handshake(&said, "upstream_unreachable"),
        );
        let what = "lead the gateway's name to the agent, to see the sidecar's token";
        let said = mislead(&team, FRESH, "gateway.services.svc");
        table.row(
            "/etc/hosts",
            ROOT,
            what,
            no_handshake(&said, "broker_unavailable"),
        );
    }
}

/// Kills every process in sight that could be the sidecar's.
fn kill(team: &Team) -> Outcome {
    let script = "for p in /proc/[0-9]*; do readlink $p/exe; done; kill -9 $(pidof nexus-sidecar)";
    let said = team.exec(ROOT, &["sh", "-c", script]);
    // It has to have seen something.
    let saw = said
        .stdout
        .lines()
        .filter(|line| line.contains("/bin/"))
        .count();
    if said.success || said.stdout.contains("nexus") || saw == 0 {
        Breach(format!("{said:?}"))
    } else {
        Refused(format!("{saw} processes, none of them the sidecar's"))
    }
}

/// Pods whose agent is root with what a container runtime gives it.
fn root_team() -> Team {
    let team = Team::with("redteam-root", "baseline");
    team.route(PROVIDER, "");
    // Good for everything but for who signed it.
    let names = ["upstream.services.svc", "gateway.services.svc"];
    let (certificate, key) = Authority::new().serving_as(&names);
    let file = json!({"attack.pem": format!("{key}{certificate}")});
    let patch = json!({"data": file}).to_string();
    let patch = [
        "patch",
        "configmap",
        "tools",
        "--type=merge",
        "--patch",
        &patch,
    ];
    team.kubectl(&patch).ok();
    for name in [ROOT, FRESH, SNIFFER] {
        let mut pod = agent(name);
        pod["spec"]["securityContext"] = json!({});
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 0});
        team.create(&pod).ok();
    }
    for name in [ROOT, FRESH, SNIFFER] {
        team.ready(name);
    }
    team
}

/// Listens in the agent under a name that the sidecar connects to, and asks it for something.
fn mislead(team: &Team, pod: &str, name: &str) -> Answer {
    let attack = [
        "python3",
        "/tools/attack.py",
        "hosts",
        name,
        "/via/upstream/hosts",
    ];
    team.exec(pod, &attack)
}

/// The sidecar has to have come, and to have gone again for the certificate.
fn no_handshake(said: &Answer, error: &str) -> Outcome {
    let came = said.stdout.contains("no handshake");
    if came && said.stdout.contains(error) && !names_a_token(&said.stdout) {
        Refused(said.stdout.clone())
    } else {
        Breach(format!("{said:?}"))
    }
}
