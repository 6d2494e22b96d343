//! A red team: agents that were taken over, in injected pods, who know every connection id and address.
//!
//! Each attack says who does it, what is done and what must come of it. The table is printed; a breach fails the test.
//! What only a relay between sidecars and gateway can close is not left out but marked.

use libtest_mimic::Trial;
use nexus_tests::apiserver::Answer;
use nexus_tests::tls::Authority;
use serde_json::{Value, json};

use crate::lab::{self, GATEWAY, SERVICES, SYSTEM, apply, get, kubectl, lab, until};
use crate::team::{PROVIDER, Team, agent, container};
use crate::test;

/// The tests of this file.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "a_red_team_gets_what_its_routes_allow",
        a_red_team_gets_what_its_routes_allow,
    ));
}

/// What came of an attack.
enum Outcome {
    /// It failed, and what said so.
    Refused(String),
    /// It got what the pod's own routes allow, and nothing else.
    Own(String),
    /// It succeeds as long as sidecars talk to the gateway themselves.
    Relay(String),
    /// It succeeded.
    Breach(String),
}

use Outcome::{Breach, Own, Refused, Relay};

/// What all attackers know, and their victims.
struct Scene {
    team: Team,
    victims: Team,
    own: String,
    theirs: String,
    sidecar_image: String,
}

struct Row {
    target: &'static str,
    who: &'static str,
    what: &'static str,
    outcome: Outcome,
}

/// The attackers' pods: the service account of each has its name.
const PLAIN: &str = "plain";
const PATCHER: &str = "patcher";
const EDITOR: &str = "editor";
const ROOT: &str = "root";

/// `kubectl` as the service account of its pod. Without being told where, it would ask the sidecar's port.
const KUBECTL: [&str; 4] = [
    "sh",
    "-c",
    r#"cd /var/run/secrets/kubernetes.io/serviceaccount
    exec kubectl --server=https://kubernetes.default.svc --certificate-authority=ca.crt --token="$(cat token)" \
        --namespace="$(cat namespace)" --cache-dir=/tmp/kube --request-timeout=20s "$@""#,
    "kubectl",
];

fn a_red_team_gets_what_its_routes_allow() {
    let scene = Scene::new();
    let mut rows = Vec::new();
    scene.attack_the_sidecar(&mut rows);
    scene.attack_the_pod(&mut rows);
    scene.attack_the_gateway(&mut rows);
    scene.attack_the_api_server(&mut rows);
    scene.attack_as_editor(&mut rows);
    scene.attack_the_node_and_neighbours(&mut rows);
    print(&rows);
    assert!(rows.len() >= 20, "only {} attacks", rows.len());
    let breaches: Vec<_> = rows
        .iter()
        .filter_map(|row| match &row.outcome {
            Breach(how) => Some(format!("{}: {how}", row.what)),
            _ => None,
        })
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
    scene.nothing_happened_to_the_victims();
}

fn print(rows: &[Row]) {
    println!("| target | who | attack | outcome |");
    println!("| --- | --- | --- | --- |");
    for row in rows {
        let (word, detail) = match &row.outcome {
            Refused(why) => ("refused", why),
            Own(what) => ("own routes only", what),
            Relay(what) => ("OPEN until there is a relay", what),
            Breach(how) => ("BREACH", how),
        };
        let detail: String = detail.split_whitespace().collect::<Vec<_>>().join(" ");
        let detail: String = detail.chars().take(110).collect();
        println!(
            "| {} | {} | {} | {word}: {detail} |",
            row.target, row.who, row.what
        );
    }
}

impl Scene {
    fn new() -> Self {
        let victims = Team::new("victims");
        let theirs = victims.route(PROVIDER, "");
        victims.start(&agent("victim"));
        assert_eq!(
            victims.served("victim", "/via/upstream/first").connection(),
            theirs
        );

        let team = Team::new("redteam");
        let own = lab().connection();
        team.apply_route(&json!({
            "metadata": {"name": PROVIDER},
            "spec": {
                "provider": PROVIDER,
                "connections": [{"tenant": "mine", "connectionId": own}],
                "access": {"deny": [{"paths": ["/keys/**"]}]},
            },
        }));
        apply(&accounts(&team.namespace)).ok();
        for name in [PLAIN, PATCHER, EDITOR] {
            team.create(&attacker(name)).ok();
        }
        for name in [PLAIN, PATCHER, EDITOR] {
            team.ready(name);
        }
        let stored = team.object("pod", PLAIN);
        let sidecar_image = stored["spec"]["initContainers"][0]["image"]
            .as_str()
            .unwrap();
        Self {
            own,
            theirs,
            sidecar_image: sidecar_image.to_owned(),
            team,
            victims,
        }
    }

    /// Runs a command in an attacker's pod.
    fn run(&self, who: &str, command: &[&str]) -> Answer {
        self.team.exec(who, command)
    }

    /// `kubectl` in an attacker's pod, as its service account.
    fn kubectl(&self, who: &str, arguments: &[&str]) -> Answer {
        self.run(who, &[&KUBECTL[..], arguments].concat())
    }

    /// `kubectl` with an object.
    fn send(&self, who: &str, arguments: &[&str], object: &Value) -> Answer {
        let command = [&KUBECTL[..], arguments, &["--filename=-"]].concat();
        self.team
            .exec_in(who, "agent", &command, &object.to_string())
    }

    /// What an answer shows, with every token in it as a breach.
    fn leaked(&self, said: &str) -> Option<String> {
        [&self.own, &self.theirs]
            .into_iter()
            .find(|id| said.contains(lab().token(id)))
            .map(|id| format!("shows the token of {id}"))
    }

    /// A request by the sidecar that has to be answered with this error of it.
    fn sidecar_says(&self, error: &str, url: &str, headers: &[&str]) -> Outcome {
        let reply = self.team.call_with(PLAIN, url, headers);
        if let Some(leak) = self.leaked(&format!("{reply:?}")) {
            return Breach(leak);
        }
        if reply.error() == error {
            Refused(format!("{} {error}", reply.status))
        } else {
            Breach(format!("{reply:?}"))
        }
    }

    fn attack_the_sidecar(&self, rows: &mut Vec<Row>) {
        let mut row = |what, outcome| {
            rows.push(Row {
                target: "sidecar",
                who: PLAIN,
                what,
                outcome,
            });
        };
        let mine = "X-Nexus-Tenant: mine";
        let reply = self.team.served(PLAIN, "/via/upstream@mine/echo");
        let outcome = match self.leaked(&format!("{reply:?}")) {
            Some(leak) => Breach(leak),
            None => Own("the echoed credential is masked".to_owned()),
        };
        row("have the upstream echo the credential", outcome);
        row(
            "name a tenant that is not the pod's",
            self.sidecar_says("tenant_forbidden", "/via/upstream@theirs/v1/me", &[]),
        );
        let header = format!("X-Nexus-Connection-ID: {}", self.theirs);
        row(
            "name another team's connection id",
            self.sidecar_says("connection_unknown", "/v1/me", &[&header]),
        );
        row(
            "an absolute URL of a host without a route, as through a proxy",
            self.raw_sidecar(
                &format!("GET http://other.{SERVICES}.svc/steal HTTP/1.1\\r\\nHost: other.{SERVICES}.svc\\r\\nX-Nexus-Tenant: mine\\r\\nConnection: close\\r\\n\\r\\n"),
                &["provider_unknown", "origin_forbidden", "provider_missing"],
            ),
        );
        row(
            "cloud metadata, as through a proxy",
            self.raw_sidecar(
                "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\nConnection: close\\r\\n\\r\\n",
                &["provider_unknown", "origin_forbidden", "provider_missing"],
            ),
        );
        row(
            "another Host with the provider's name",
            self.host_stays(mine),
        );
        row(
            "a denied path, encoded twice",
            self.sidecar_says("request_denied", "/via/upstream@mine/%256beys/new", &[]),
        );
        row(
            "a denied path by dot segments",
            self.raw_sidecar(
                "GET /via/upstream@mine/a/../keys/new HTTP/1.1\\r\\nHost: localhost:8080\\r\\nConnection: close\\r\\n\\r\\n",
                &["request_denied", "bad_request"],
            ),
        );
        row("smuggle a request by two lengths", self.smuggle());
        row(
            "a tunnel through it (CONNECT)",
            self.raw_sidecar(
                "CONNECT gateway.services.svc:443 HTTP/1.1\\r\\nHost: gateway.services.svc:443\\r\\n\\r\\n",
                &["method_not_allowed"],
            ),
        );
        row(
            "secrets in /metrics, /healthz and /readyz",
            self.admin_port(),
        );
    }

    /// Bytes to the sidecar, and one of the answers that are fine.
    fn raw_sidecar(&self, request: &str, fine: &[&str]) -> Outcome {
        let said = self.run(
            PLAIN,
            &[
                "python3",
                "/tools/attack.py",
                "raw",
                "127.0.0.1",
                "8080",
                request,
            ],
        );
        if let Some(leak) = self.leaked(&said.stdout) {
            return Breach(leak);
        }
        match fine.iter().find(|text| said.stdout.contains(**text)) {
            Some(text) => Refused((*text).to_owned()),
            None => Breach(format!("{said:?}")),
        }
    }

    /// Content-Length and Transfer-Encoding disagree about where the next request begins.
    fn smuggle(&self) -> Outcome {
        let request = "POST /via/upstream@mine/a HTTP/1.1\\r\\nHost: localhost:8080\\r\\nContent-Length: 40\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /keys/new HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n";
        let command = [
            "python3",
            "/tools/attack.py",
            "raw",
            "127.0.0.1",
            "8080",
            request,
        ];
        let said = self.run(PLAIN, &command).stdout;
        if said.matches("HTTP/1.1 ").count() == 1 && said.contains("connection: close") {
            Own(
                "one request, and the rest of the connection is dropped (RFC 9112 section 6.3)"
                    .to_owned(),
            )
        } else {
            Breach(said)
        }
    }

    fn host_stays(&self, tenant: &str) -> Outcome {
        let reply = self.team.call_with(
            PLAIN,
            "/via/upstream/echo/host",
            &[tenant, "X-Forwarded-Host: evil.example"],
        );
        let evil = self.raw_sidecar(
            "GET /echo HTTP/1.1\\r\\nHost: evil.example\\r\\nX-Nexus-Provider: upstream\\r\\nX-Nexus-Tenant: mine\\r\\nConnection: close\\r\\n\\r\\n",
            &["HTTP/1.1 4", "HTTP/1.1 200"],
        );
        match (reply.status, evil) {
            (200, Breach(how)) => Breach(how),
            (200, _) if !reply.body.contains("evil.example:") => {
                Own("goes to the route's own host".to_owned())
            }
            (status, _) => Breach(format!("{status}: {}", reply.body)),
        }
    }

    fn admin_port(&self) -> Outcome {
        let mut said = String::new();
        for path in ["metrics", "healthz", "readyz"] {
            said += &self
                .team
                .call(PLAIN, &format!("http://127.0.0.1:9901/{path}"))
                .body;
        }
        match self.leaked(&said) {
            Some(leak) => Breach(leak),
            None if said.contains("nexus_") => {
                Refused("counters and names of routes only".to_owned())
            }
            None => Breach(format!("nothing was asked: {said}")),
        }
    }

    fn attack_the_pod(&self, rows: &mut Vec<Row>) {
        let root = self.root_pod();
        let fails = |command: &[&str], who: &'static str, target, what, rows: &mut Vec<Row>| {
            let said = root.exec(who, command);
            let outcome = failed(&said);
            rows.push(Row {
                target,
                who,
                what,
                outcome,
            });
        };
        fails(
            &["python3", "/tools/attack.py", "bind", "8080"],
            ROOT,
            "sidecar",
            "take its port as root",
            rows,
        );
        fails(
            &[
                "sh",
                "-c",
                "for p in /proc/[0-9]*; do readlink $p/exe; done | grep nexus && kill -9 $(pidof nexus-sidecar)",
            ],
            ROOT,
            "sidecar",
            "find and kill its process as root",
            rows,
        );
        rows.push(Row {
            target: "sidecar",
            who: PLAIN,
            what: "read the pod's network devices",
            outcome: failed(&self.run(PLAIN, &["python3", "/tools/attack.py", "sniff"])),
        });
        let name = "upstream.services.svc";
        let said = root.exec(
            ROOT,
            &[
                "python3",
                "/tools/attack.py",
                "hosts",
                name,
                "/via/upstream/hosts",
            ],
        );
        let outcome = if self.any_token(&said.stdout) || said.stdout.starts_with("200") {
            Breach(said.stdout)
        } else if said.stdout.contains("upstream_unreachable")
            && said.stdout.contains("no handshake")
        {
            Refused(said.stdout)
        } else {
            Breach(format!("{said:?}"))
        };
        rows.push(Row {
            target: "/etc/hosts",
            who: ROOT,
            what: "lead the upstream's name to the agent, by the file that containers share",
            outcome,
        });
        let name = "gateway.services.svc";
        let said = root.exec(
            "fresh",
            &[
                "python3",
                "/tools/attack.py",
                "hosts",
                name,
                "/via/upstream/hosts",
            ],
        );
        let outcome =
            if said.stdout.contains("broker_unavailable") && said.stdout.contains("no handshake") {
                Refused(said.stdout)
            } else {
                Breach(format!("{said:?}"))
            };
        rows.push(Row {
            target: "/etc/hosts",
            who: ROOT,
            what: "lead the gateway's name to the agent, to see the sidecar's token",
            outcome,
        });
    }

    /// Pods whose agent is root with what a container runtime gives it.
    fn root_pod(&self) -> Team {
        let team = Team::with("redteam-root", "baseline");
        team.route(PROVIDER, "");
        let (certificate, key) = Authority::new().serving_as(&["upstream.services.svc"]);
        let file = json!({"attack.pem": format!("{key}{certificate}")});
        let patch = json!({"data": file}).to_string();
        team.kubectl(&[
            "patch",
            "configmap",
            "tools",
            "--type=merge",
            "--patch",
            &patch,
        ])
        .ok();
        for name in [ROOT, "fresh"] {
            let mut pod = agent(name);
            pod["spec"]["securityContext"] = json!({});
            pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 0});
            team.create(&pod).ok();
        }
        for name in [ROOT, "fresh"] {
            team.ready(name);
        }
        team
    }

    fn any_token(&self, said: &str) -> bool {
        said.contains("e2e-") || self.leaked(said).is_some()
    }

    fn attack_the_gateway(&self, rows: &mut Vec<Row>) {
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
            rows.push(Row {
                target: "gateway",
                who: PLAIN,
                what,
                outcome,
            });
        }
    }

    fn attack_the_api_server(&self, rows: &mut Vec<Row>) {
        let pod = format!("pod/{PLAIN}");
        let audience = ["create", "token", PLAIN, "--audience=nexus-gateway"];
        let image = json!({"spec": {"initContainers": [{"name": "nexus-sidecar", "image": lab::python()}]}}).to_string();
        let tenants = json!({"metadata": {"annotations": {"nexus.io/admitted": "{\"version\":1,\"tenants\":[\"theirs\"]}"}}}).to_string();
        let label = json!({"metadata": {"labels": {"nexus.io/sidecar": null}}}).to_string();
        let attacks: [(&str, &str, Vec<&str>); 10] = [
            (
                PLAIN,
                "mint a token of the sidecars' audience",
                audience.to_vec(),
            ),
            (
                PLAIN,
                "read the route table of the namespace",
                vec!["get", "configmap", "nexus-routes"],
            ),
            (
                PLAIN,
                "read the other team's routes",
                vec!["get", "nexusroutes", "--namespace", &self.victims.namespace],
            ),
            (
                PLAIN,
                "be a node by impersonation",
                vec![
                    "--as=system:node:node",
                    "--as-group=system:nodes",
                    "get",
                    "secrets",
                ],
            ),
            (
                PATCHER,
                "run another image as the sidecar",
                vec!["patch", &pod, "--patch", &image],
            ),
            (
                PATCHER,
                "name more tenants in nexus.io/admitted",
                vec!["patch", &pod, "--patch", &tenants],
            ),
            (
                PATCHER,
                "the same by the status subresource",
                vec!["patch", &pod, "--subresource=status", "--patch", &tenants],
            ),
            (
                PATCHER,
                "take the sidecar's label away",
                vec!["patch", &pod, "--patch", &label],
            ),
            (
                PATCHER,
                "a debug container in the sidecar's process namespace",
                vec![
                    "debug",
                    &pod,
                    "--image=localhost/busybox:1",
                    "--target=nexus-sidecar",
                    "--container=look",
                    "--attach=false",
                    "--profile=restricted",
                ],
            ),
            (
                EDITOR,
                "mint a token of the sidecars' audience",
                audience.to_vec(),
            ),
        ];
        for (who, what, arguments) in attacks {
            let outcome = forbidden(&self.kubectl(who, &arguments));
            rows.push(Row {
                target: "API server",
                who,
                what,
                outcome,
            });
        }
        let mount = self.debug_with_token();
        let ephemeral = ["replace", "--raw"];
        let path = format!(
            "/api/v1/namespaces/{}/pods/{PLAIN}/ephemeralcontainers",
            self.team.namespace
        );
        let said = self.send(PATCHER, &[&ephemeral[..], &[&path]].concat(), &mount);
        rows.push(Row {
            target: "API server",
            who: PATCHER,
            what: "a debug container that mounts the sidecar's token",
            outcome: forbidden(&said),
        });
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

    fn attack_as_editor(&self, rows: &mut Vec<Row>) {
        let mut row = |what, outcome| {
            rows.push(Row {
                target: "API server",
                who: EDITOR,
                what,
                outcome,
            });
        };
        let exec = [
            "exec",
            PLAIN,
            "--container=nexus-sidecar",
            "--",
            "/nexus-sidecar",
            "probe",
        ];
        row(
            "run a command in the sidecar's container",
            forbidden(&self.kubectl(EDITOR, &exec)),
        );
        let attach = ["attach", PLAIN, "--container=nexus-sidecar"];
        row(
            "attach to the sidecar",
            forbidden(&self.kubectl(EDITOR, &attach)),
        );
        let table = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "nexus-routes", "namespace": self.team.namespace},
            "data": {"routes.json": "{}"},
        });
        row(
            "overwrite the route table",
            forbidden(&self.send(
                EDITOR,
                &["apply", "--force-conflicts", "--server-side"],
                &table,
            )),
        );
        let route = json!({
            "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
            "metadata": {"name": "stolen", "namespace": self.team.namespace},
            "spec": {"provider": PROVIDER, "connections": [{"tenant": "stolen", "connectionId": self.theirs}]},
        });
        row(
            "write a NexusRoute with the other team's connection",
            forbidden(&self.send(EDITOR, &["create"], &route)),
        );
        row(
            "a pod of one's own with the sidecars' token",
            forbidden(&self.send(EDITOR, &["create"], &token_thief(&self.team.namespace))),
        );
        row("a pod with a forged sidecar", self.forged_sidecar());
        let mut shared = agent("shared");
        shared["spec"]["shareProcessNamespace"] = true.into();
        row(
            "a pod that shares processes with its sidecar",
            forbidden(&self.send(EDITOR, &["create"], &shared)),
        );
        let mut host = agent("host");
        host["metadata"]["annotations"] = json!({});
        host["spec"]["volumes"][0] =
            json!({"name": "tools", "hostPath": {"path": "/var/lib/kubelet"}});
        row(
            "a pod that reads the node's files",
            forbidden(&self.send(EDITOR, &["create"], &host)),
        );
        row("delete the route table", self.deleted_table());
        row(
            "connections of others by a role that writes routes",
            self.route_writer(&route),
        );
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
        let reason = until("a verdict", || {
            let route = get(&self.team.namespace, "nexusroute", "stolen").ok_or("it is gone")?;
            let conditions = route["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let accepted = conditions
                .iter()
                .find(|condition| condition["type"] == "Accepted");
            accepted.cloned().ok_or_else(|| route.to_string())
        });
        kubectl(&[
            "--namespace",
            &self.team.namespace,
            "delete",
            "nexusroute",
            "stolen",
        ])
        .ok();
        if reason["status"] == "False" {
            Refused(format!("Accepted=False, {}", reason["reason"]))
        } else {
            Breach(reason.to_string())
        }
    }

    fn attack_the_node_and_neighbours(&self, rows: &mut Vec<Row>) {
        let pod = self.victims.object("pod", "victim");
        let (node, neighbour) = (
            pod["status"]["hostIP"].as_str().unwrap(),
            pod["status"]["podIP"].as_str().unwrap(),
        );
        let token = "$(cat /var/run/secrets/kubernetes.io/serviceaccount/token)";
        let kubelet = |path: &str| {
            format!(
                "python3 /tools/call.py GET https://{node}:10250/{path} \"Authorization: Bearer {token}\""
            )
        };
        let victim = format!(
            "exec/{}/victim/nexus-sidecar?command=/nexus-sidecar&output=1",
            self.victims.namespace
        );
        for (who, what, command) in [
            (
                PLAIN,
                "list pods at the kubelet without a token",
                format!("python3 /tools/call.py GET https://{node}:10250/pods"),
            ),
            (EDITOR, "list pods at the kubelet", kubelet("pods")),
            (
                EDITOR,
                "run a command in a sidecar by the kubelet",
                kubelet(&victim),
            ),
        ] {
            let said = self.run(who, &["sh", "-c", &command]).stdout;
            let reply: Value = serde_json::from_str(&said).unwrap();
            let outcome = match reply["status"].as_u64() {
                Some(status @ (401 | 403)) => Refused(status.to_string()),
                _ => Breach(said),
            };
            rows.push(Row {
                target: "kubelet",
                who,
                what,
                outcome,
            });
        }
        for (target, what, host, port) in [
            ("kubelet", "its read-only port", node, "10255"),
            ("etcd", "connect to it", node, "2379"),
            (
                "neighbour",
                "use the proxy of another pod",
                neighbour,
                "8080",
            ),
        ] {
            let said = self.run(
                PLAIN,
                &["python3", "/tools/attack.py", "connect", host, port],
            );
            rows.push(Row {
                target,
                who: PLAIN,
                what,
                outcome: failed(&said),
            });
        }
        let said = self
            .team
            .call(PLAIN, &format!("http://{neighbour}:9901/metrics"))
            .body;
        let outcome = match self.leaked(&said) {
            Some(leak) => Breach(leak),
            None => Refused("counters and names of routes only".to_owned()),
        };
        rows.push(Row {
            target: "neighbour",
            who: PLAIN,
            what: "secrets in the metrics of another pod",
            outcome,
        });
        let review = format!("https://nexus-operator.{SYSTEM}.svc/inject");
        let reply = self.team.call(PLAIN, &review);
        let outcome = match self.leaked(&reply.body) {
            None if reply.status != 200 => {
                Refused(format!("{}, and it knows no credential", reply.status))
            }
            _ => Breach(format!("{reply:?}")),
        };
        rows.push(Row {
            target: "operator",
            who: PLAIN,
            what: "ask its webhook",
            outcome,
        });
    }

    /// The other team's pod works as before, and nobody but it used its connection.
    fn nothing_happened_to_the_victims(&self) {
        let reply = self.victims.served("victim", "/via/upstream/last");
        assert_eq!(reply.connection(), self.theirs);
        let log = |name: &str| {
            kubectl(&[
                "--namespace",
                SERVICES,
                "logs",
                &format!("deployment/{name}"),
                "--tail=-1",
            ])
            .ok()
        };
        let upstream = log("upstream");
        let theirs: Vec<_> = upstream
            .lines()
            .filter(|line| line.contains(&self.theirs))
            .collect();
        assert!(
            theirs
                .iter()
                .all(|line| line.contains("/first") || line.contains("/last")),
            "{theirs:#?}"
        );
        let denied = upstream
            .lines()
            .find(|line| line.contains(&self.own) && line.contains("keys"));
        assert_eq!(denied, None, "a denied path arrived");
        let other = log("other");
        assert!(
            !other.contains(&self.own) && !other.contains(&self.theirs),
            "{other}"
        );
    }
}

/// A command that has to fail.
fn failed(said: &Answer) -> Outcome {
    if said.success {
        return Breach(said.stdout.clone());
    }
    let last = said
        .stderr
        .lines()
        .rfind(|line| !line.starts_with("command terminated"));
    Refused(last.unwrap_or("nothing was found").to_owned())
}

/// A call that the API server has to forbid, not one that is merely wrong.
fn forbidden(said: &Answer) -> Outcome {
    let why = said.stderr.trim();
    let meant = [
        "forbidden",
        "Forbidden",
        "denied the request",
        "violates PodSecurity",
    ];
    if !said.success && meant.iter().any(|word| why.contains(word)) {
        Refused(why.replace("command terminated with exit code 1", ""))
    } else {
        Breach(format!("{said:?}"))
    }
}

/// An attacker's pod, with the API token of its service account.
fn attacker(name: &str) -> Value {
    let mut pod = agent(name);
    pod["metadata"]["annotations"]["nexus.io/tenants"] = "mine".into();
    pod["spec"]["serviceAccountName"] = name.into();
    pod["spec"]["automountServiceAccountToken"] = true.into();
    pod
}

/// A pod that projects a token of the sidecars' audience for itself.
fn token_thief(namespace: &str) -> Value {
    let mut pod = agent("thief");
    pod["metadata"]["namespace"] = namespace.into();
    pod["spec"]["volumes"] = json!([{"name": "tools", "projected": {"sources": [
        {"serviceAccountToken": {"audience": "nexus-gateway", "path": "token", "expirationSeconds": 600}},
    ]}}]);
    pod["metadata"]["annotations"] = json!({});
    pod
}

/// Service accounts of the attackers and what they may do.
fn accounts(namespace: &str) -> Vec<Value> {
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
    let bind = |name: &str, kind: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        })
    };
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": PATCHER, "namespace": namespace},
        "rules": [{
            "apiGroups": [""],
            "resources": ["pods", "pods/status", "pods/ephemeralcontainers"],
            "verbs": ["get", "list", "watch", "patch", "update"],
        }],
    });
    vec![
        account(PLAIN),
        account(PATCHER),
        account(EDITOR),
        role,
        bind(PATCHER, "Role", PATCHER),
        bind(EDITOR, "ClusterRole", "edit"),
    ]
}
