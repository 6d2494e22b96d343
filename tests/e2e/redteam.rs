//! A red team: agents that were taken over, in injected pods, who know every connection id and address.
//!
//! Each attack says who does it, what is done and what must come of it. The table is printed; a breach fails the test.
//! What only a relay between sidecars and gateway can close is not left out but marked.

mod api;
mod network;
mod pod;
mod sidecar;

use libtest_mimic::Trial;
use nexus_tests::apiserver::Answer;
use serde_json::{Value, json};

use crate::lab::{KEY_SECRET, apply, lab, log_of};
use crate::team::{PROVIDER, Team, agent};
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

/// What was tried.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
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
    let mut table = Table::default();
    scene.attack_the_sidecar(&mut table);
    scene.attack_the_pod(&mut table);
    scene.attack_the_gateway(&mut table);
    scene.attack_as_nobody(&mut table);
    scene.attack_as_patcher(&mut table);
    scene.attack_as_editor(&mut table);
    scene.attack_the_node(&mut table);
    scene.attack_the_neighbours(&mut table);
    table.print();
    assert!(table.rows.len() >= 20, "only {} attacks", table.rows.len());
    let breaches: Vec<_> = table
        .rows
        .iter()
        .filter_map(|row| match &row.outcome {
            Breach(how) => Some(format!("{}: {how}", row.what)),
            _ => None,
        })
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
    scene.nothing_happened_to_the_victims();
}

impl Table {
    fn row(
        &mut self,
        target: &'static str,
        who: &'static str,
        what: &'static str,
        outcome: Outcome,
    ) {
        self.rows.push(Row {
            target,
            who,
            what,
            outcome,
        });
    }

    fn print(&self) {
        println!("| target | who | attack | outcome |");
        println!("| --- | --- | --- | --- |");
        for row in &self.rows {
            let (word, detail) = match &row.outcome {
                Refused(why) => ("refused", why),
                Own(what) => ("own routes only", what),
                Relay(what) => ("OPEN until there is a relay", what),
                Breach(how) => ("BREACH", how),
            };
            let words: Vec<_> = detail.split_whitespace().collect();
            let detail: String = words.join(" ").chars().take(110).collect();
            println!(
                "| {} | {} | {} | {word}: {detail} |",
                row.target, row.who, row.what
            );
        }
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
        apply(&[json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": KEY_SECRET, "namespace": team.namespace},
            "stringData": {"api-key": lab().key()},
        })])
        .ok();
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

    /// The other team's pod works as before, and nobody but it used its connection.
    fn nothing_happened_to_the_victims(&self) {
        let reply = self.victims.served("victim", "/via/upstream/last");
        assert_eq!(reply.connection(), self.theirs);
        let upstream = log_of("upstream");
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
        let other = log_of("other");
        assert!(
            !other.contains(&self.own) && !other.contains(&self.theirs),
            "{other}"
        );
    }
}

/// Whether a text has a token in it that the gateway of the tests gave somebody.
fn names_a_token(said: &str) -> bool {
    said.contains("e2e-")
}

/// A command that has to fail for this reason.
fn failed(said: &Answer, reason: &str) -> Outcome {
    if said.success || !said.stderr.contains(reason) {
        return Breach(format!("{said:?}"));
    }
    Refused(reason.to_owned())
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
