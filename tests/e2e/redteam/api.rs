//! Attacks by the API server, with what the agents' service accounts may do.

use nexus_tests::tls::Authority;
use serde_json::{Value, json};

use super::Outcome::{Breach, Refused};
use super::{EDITOR, Outcome, PATCHER, PLAIN, Scene, Table, forbidden};
use crate::lab::{self, AUTHORITY, apply, get, kubectl, until};
use crate::team::{SECOND, agent, container};

const TARGET: &str = "API server";
const MINT: [&str; 4] = ["create", "token", PLAIN, "--audience=nexus-gateway"];

impl Scene {
    pub(super) fn attack_as_nobody(&self, table: &mut Table) {
        let theirs = format!("--namespace={}", self.victims.namespace);
        let node = [
            "--as=system:node:node",
            "--as-group=system:nodes",
            "get",
            "secrets",
        ];
        for (what, arguments) in [
            ("mint a token of the sidecars' audience", &MINT[..]),
            (
                "read the route table of the namespace",
                &["get", "configmap", "nexus-routes"],
            ),
            (
                "read the other team's routes",
                &["get", "nexusroutes", &theirs],
            ),
            ("be a node by impersonation", &node),
        ] {
            table.row(
                TARGET,
                PLAIN,
                what,
                forbidden(&self.kubectl(PLAIN, arguments)),
            );
        }
    }

    pub(super) fn attack_as_patcher(&self, table: &mut Table) {
        let pod = format!("pod/{PLAIN}");
        let sidecar = json!([{"name": "nexus-sidecar", "image": lab::python()}]);
        let image = json!({"spec": {"initContainers": sidecar}}).to_string();
        let admitted = json!({"version": 1, "tenants": ["theirs"]}).to_string();
        let tenants =
            json!({"metadata": {"annotations": {"nexus.io/admitted": admitted}}}).to_string();
        let label = json!({"metadata": {"labels": {"nexus.io/sidecar": null}}}).to_string();
        let debug = [
            "debug",
            &pod,
            "--image=localhost/busybox:1",
            "--target=nexus-sidecar",
            "--container=look",
            "--attach=false",
            "--profile=restricted",
        ];
        let status = ["patch", &pod, "--subresource=status", "--patch", &tenants];
        for (what, arguments) in [
            (
                "run another image as the sidecar",
                &["patch", &pod, "--patch", &image][..],
            ),
            (
                "name more tenants in nexus.io/admitted",
                &["patch", &pod, "--patch", &tenants],
            ),
            ("the same by the status subresource", &status),
            (
                "take the sidecar's label away",
                &["patch", &pod, "--patch", &label],
            ),
            (
                "a debug container in the sidecar's process namespace",
                &debug,
            ),
        ] {
            table.row(
                TARGET,
                PATCHER,
                what,
                forbidden(&self.kubectl(PATCHER, arguments)),
            );
        }
        let namespace = &self.team.namespace;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{PLAIN}/ephemeralcontainers");
        let said = self.send(
            PATCHER,
            &["replace", "--raw", &path],
            &self.debug_with_token(),
        );
        let what = "a debug container that mounts the sidecar's token";
        table.row(TARGET, PATCHER, what, forbidden(&said));
    }

    fn debug_with_token(&self) -> Value {
        let mut pod = self.team.object("pod", PLAIN);
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let token = volumes
            .iter()
            .find(|volume| volume.to_string().contains("nexus-gateway"))
            .expect("the pod has a volume with the sidecar's token");
        let mut look = container("look", "cat /token/*");
        look["volumeMounts"] = json!([{"name": token["name"], "mountPath": "/token"}]);
        pod["spec"]["ephemeralContainers"] = json!([look]);
        pod
    }

    pub(super) fn attack_as_editor(&self, table: &mut Table) {
        let mut row = |what, outcome| table.row(TARGET, EDITOR, what, outcome);
        let as_told = |arguments: &[&str]| forbidden(&self.kubectl(EDITOR, arguments));
        let created = |object: &Value| forbidden(&self.send(EDITOR, &["create"], object));
        row("mint a token of the sidecars' audience", as_told(&MINT));
        let exec = [
            "exec",
            PLAIN,
            "--container=nexus-sidecar",
            "--",
            "/nexus-sidecar",
            "probe",
        ];
        row("run a command in the sidecar's container", as_told(&exec));
        let attach = ["attach", PLAIN, "--container=nexus-sidecar"];
        row("attach to the sidecar", as_told(&attach));
        let apply = ["apply", "--force-conflicts", "--server-side"];
        let said = self.send(EDITOR, &apply, &self.forged_table());
        row("overwrite the route table", forbidden(&said));
        row("delete the route table", self.deleted_table());
        let authority = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": AUTHORITY, "namespace": self.team.namespace},
            "data": {"ca.crt": Authority::new().pem()},
        });
        let said = self.send(EDITOR, &apply, &authority);
        row(
            "an authority of one's own for the gateway",
            forbidden(&said),
        );
        let route = self.stolen_route();
        row(
            "write a NexusRoute with the other team's connection",
            created(&route),
        );
        row("the same by a role that may", self.route_writer(&route));
        row(
            "a pod of one's own with the sidecars' token",
            created(&token_thief()),
        );
        row("a pod with a forged sidecar", self.forged_sidecar());
        let mut shared = agent("shared");
        shared["spec"]["shareProcessNamespace"] = true.into();
        row(
            "a pod that shares processes with its sidecar",
            created(&shared),
        );
        let mut host = agent("host");
        host["metadata"]["annotations"] = json!({});
        let folder = json!({"name": "tools", "hostPath": {"path": "/var/lib/kubelet"}});
        host["spec"]["volumes"][0] = folder;
        row("a pod that reads the node's files", created(&host));
    }

    fn forged_table(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "nexus-routes", "namespace": self.team.namespace},
            "data": {"routes.json": "{}"},
        })
    }

    fn stolen_route(&self) -> Value {
        json!({
            "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
            "metadata": {"name": "stolen", "namespace": self.team.namespace},
            "spec": {
                "provider": SECOND,
                "connections": [{"tenant": "stolen", "connectionId": self.theirs}],
            },
        })
    }

    fn forged_sidecar(&self) -> Outcome {
        let mut pod = agent("forged");
        let mut forged = container("nexus-sidecar", "sleep 1000");
        forged["restartPolicy"] = "Always".into();
        pod["spec"]["initContainers"] = json!([forged]);
        let said = self.send(EDITOR, &["create"], &pod);
        if !said.success {
            return forbidden(&said);
        }
        let stored = self.team.object("pod", "forged");
        let sidecars = stored["spec"]["initContainers"].as_array().unwrap();
        if sidecars.len() == 1 && sidecars[0]["image"] == self.sidecar_image {
            Refused("the webhook put the real one in its place".to_owned())
        } else {
            Breach(stored["spec"]["initContainers"].to_string())
        }
    }

    fn deleted_table(&self) -> Outcome {
        let uid = |table: &Value| table["metadata"]["uid"].clone();
        let before = uid(&self.team.object("configmap", "nexus-routes"));
        let said = self.kubectl(EDITOR, &["delete", "configmap", "nexus-routes"]);
        if !said.success {
            return forbidden(&said);
        }
        until("the table is put back", || {
            let table = get(&self.team.namespace, "configmap", "nexus-routes");
            let table = table.ok_or("it is not there")?;
            if uid(&table) == before {
                return Err("it is still there".to_owned());
            }
            Ok(())
        });
        Refused("the operator put it back".to_owned())
    }

    /// Even who may write routes cannot take a connection that another namespace's older route has.
    fn route_writer(&self, route: &Value) -> Outcome {
        apply(std::slice::from_ref(route)).ok();
        let accepted = until("a verdict", || {
            let route = self.team.object("nexusroute", "stolen");
            let conditions = route["status"]["conditions"].as_array().cloned();
            let accepted = conditions
                .unwrap_or_default()
                .into_iter()
                .find(|condition| condition["type"] == "Accepted");
            accepted.ok_or_else(|| route.to_string())
        });
        let namespace = &self.team.namespace;
        kubectl(&["--namespace", namespace, "delete", "nexusroute", "stolen"]).ok();
        if accepted["status"] == "False" && accepted["reason"] == "ConnectionClaimed" {
            Refused("Accepted=False, ConnectionClaimed".to_owned())
        } else {
            Breach(accepted.to_string())
        }
    }
}

/// A pod that projects a token of the sidecars' audience for itself.
fn token_thief() -> Value {
    let mut pod = agent("thief");
    let token = json!({"audience": "nexus-gateway", "path": "token", "expirationSeconds": 600});
    let sources = json!([{"serviceAccountToken": token}]);
    pod["spec"]["volumes"] = json!([{"name": "tools", "projected": {"sources": sources}}]);
    pod["metadata"]["annotations"] = json!({});
    pod
}
