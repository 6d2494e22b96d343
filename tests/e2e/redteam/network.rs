//! Attacks on what an agent reaches over the network: gateway, node, neighbours.

use serde_json::Value;

use super::Outcome::{Breach, Refused, Relay};
use super::{EDITOR, Outcome, PLAIN, Scene, Table, failed};
use crate::lab::{GATEWAY, KEY_SECRET, KEYED, SYSTEM, lab};

impl Scene {
    pub(super) fn attack_the_gateway(&self, table: &mut Table) {
        for (what, id) in [
            ("ask it for the pod's own connection", &self.own),
            ("ask it for another team's connection", &self.theirs),
        ] {
            let reply = self.team.call(PLAIN, &format!("{GATEWAY}/v1/token/{id}"));
            let outcome = if reply.status == 200 && reply.body.contains(lab().token(id)) {
                Relay(
                    "a gateway without a check of its own answers whoever knows the id".to_owned(),
                )
            } else {
                Breach(format!(
                    "the stand-in is not like the published gateway: {reply:?}"
                ))
            };
            table.row("gateway", PLAIN, what, outcome);
        }
        let key = r#"--output=go-template={{index .data "api-key" | base64decode}}"#;
        let key = self
            .kubectl(EDITOR, &["get", "secret", KEY_SECRET, key])
            .ok();
        let url = format!("{KEYED}/v1/token/{}", self.theirs);
        let shown = format!("X-API-Key: {key}");
        let reply = self.team.call_with(EDITOR, &url, &[&shown]);
        let outcome = if reply.status == 200 && reply.body.contains(lab().token(&self.theirs)) {
            Relay("`edit` may read Secrets, and the key opens every connection".to_owned())
        } else {
            Breach(format!(
                "the stand-in is not like the published gateway: {reply:?}"
            ))
        };
        let what = "read its key from the Secret, ask for another team's connection";
        table.row("gateway", EDITOR, what, outcome);
    }

    pub(super) fn attack_the_node(&self, table: &mut Table) {
        let pod = self.victims.object("pod", "victim");
        let node = pod["status"]["hostIP"].as_str().unwrap();
        let pods = format!("https://{node}:10250/pods");
        let namespace = &self.victims.namespace;
        let sidecar = format!(
            "https://{node}:10250/exec/{namespace}/victim/nexus-sidecar?command=/nexus-sidecar&output=1"
        );
        let what = "list pods at the kubelet without a token";
        table.row(
            "kubelet",
            PLAIN,
            what,
            self.kubelet_says(PLAIN, &pods, false),
        );
        let what = "list pods at the kubelet";
        table.row(
            "kubelet",
            EDITOR,
            what,
            self.kubelet_says(EDITOR, &pods, true),
        );
        let what = "run a command in a sidecar by the kubelet";
        table.row(
            "kubelet",
            EDITOR,
            what,
            self.kubelet_says(EDITOR, &sidecar, true),
        );
        table.row(
            "kubelet",
            PLAIN,
            "its read-only port",
            self.connect(node, "10255"),
        );
        let replies = ["https", "http"].map(|scheme| {
            let url = format!("{scheme}://{node}:2379/v3/kv/range");
            self.team.call(PLAIN, &url)
        });
        // A server that wants TLS says so with 400 to a request without.
        let outcome = match &replies {
            [secure, clear] if secure.status == 0 && matches!(clear.status, 0 | 400) => {
                Refused(clear.body.clone())
            }
            _ => Breach(format!("{replies:?}")),
        };
        table.row("etcd", PLAIN, "ask it without a certificate", outcome);
    }

    pub(super) fn attack_the_neighbours(&self, table: &mut Table) {
        let pod = self.victims.object("pod", "victim");
        let neighbour = pod["status"]["podIP"].as_str().unwrap();
        let what = "use the proxy of another pod";
        table.row("neighbour", PLAIN, what, self.connect(neighbour, "8080"));
        let said = self
            .team
            .call(PLAIN, &format!("http://{neighbour}:9901/metrics"));
        let outcome = match self.leaked(&said.body) {
            None if said.body.contains("nexus_") => {
                Refused("counters and names of routes only".to_owned())
            }
            _ => Breach(format!("{said:?}")),
        };
        table.row(
            "neighbour",
            PLAIN,
            "secrets in the metrics of another pod",
            outcome,
        );
        let reply = self.team.call(
            PLAIN,
            &format!("https://nexus-operator.{SYSTEM}.svc/inject"),
        );
        let outcome = match self.leaked(&reply.body) {
            None if reply.status == 405 => Refused("405, and it knows no credential".to_owned()),
            _ => Breach(format!("{reply:?}")),
        };
        table.row("operator", PLAIN, "ask its webhook", outcome);
    }

    /// A request to the kubelet, with the token of the pod's service account or without.
    fn kubelet_says(&self, who: &str, url: &str, token: bool) -> Outcome {
        let script = r#"header=$(cat /var/run/secrets/kubernetes.io/serviceaccount/token)
            [ "$2" = true ] && set -- "$1" "Authorization: Bearer $header" || set -- "$1"
            exec python3 /tools/call.py GET "$@""#;
        let said = self
            .run(
                who,
                &["sh", "-c", script, "kubelet", url, &token.to_string()],
            )
            .stdout;
        let reply: Value = serde_json::from_str(&said).unwrap();
        // With a token it knows who asks.
        let expected = if token { 403 } else { 401 };
        if reply["status"] == expected {
            Refused(expected.to_string())
        } else {
            Breach(said)
        }
    }

    fn connect(&self, host: &str, port: &str) -> Outcome {
        let connect = ["python3", "/tools/attack.py", "connect", host, port];
        failed(&self.run(PLAIN, &connect), "Connection refused")
    }
}
