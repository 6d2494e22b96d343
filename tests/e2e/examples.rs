//! The README's section on Kubernetes, command by command, the examples that it applies, and the page of those on a
//! gateway for a test cluster.
//!
//! What a reader puts in is put in here too: the gateway, the image of the agent, connections and APIs.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use nexus_tests::apiserver::Answer;
use nexus_tests::clients::repository;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::{
    self, AUTHORITY, DEV_GATEWAY, GATEWAY, OTHER, SYSTEM, UPSTREAM, apply, helm_program, kubectl,
    lab, rolled_out, until, upgrade, values,
};
use crate::lifecycle::completed;
use crate::team::Team;
use crate::test;

/// The namespace that the README makes.
const NAMESPACE: &str = "agents";

/// The tests of this file.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "the_readmes_commands_and_examples_work",
        the_readmes_commands_and_examples_work,
    ));
}

/// Those that must run alone.
pub(crate) fn tests_alone(list: &mut Vec<Trial>) {
    list.push(test(
        "a_test_cluster_has_a_gateway_of_the_sidecars_image",
        a_test_cluster_has_a_gateway_of_the_sidecars_image,
    ));
}

/// Installs the chart with the README's own commands.
pub(crate) fn install() {
    let page = Page::readme();
    for command in page
        .commands
        .iter()
        .take_while(|line| !line.contains("examples/"))
    {
        page.run(command);
        if command.contains("create namespace") {
            kubectl(&["label", "namespace", SYSTEM, "e2e=true"]).ok();
        }
    }
}

/// A section, and a copy of the files that it names.
struct Page {
    commands: Vec<String>,
    folder: TempDir,
}

impl Page {
    fn readme() -> Self {
        Self::section("README.md", "In Kubernetes")
    }

    fn section(page: &str, title: &str) -> Self {
        let text = std::fs::read_to_string(repository().join(page)).unwrap();
        let section = text
            .split("\n## ")
            .find(|section| section.starts_with(title));
        let commands = section
            .unwrap_or_else(|| panic!("{page} has no section {title}"))
            .lines()
            .filter(|line| {
                let commands = ["kubectl ", "helm ", "sleep "];
                commands.iter().any(|start| line.starts_with(start))
            })
            .map(str::to_owned)
            .collect();
        let folder = TempDir::with_prefix("e2e-readme-").unwrap();
        symlink(repository().join("charts"), folder.path().join("charts")).unwrap();
        let examples = folder.path().join("examples/kubernetes");
        std::fs::create_dir_all(&examples).unwrap();
        for entry in std::fs::read_dir(repository().join("examples/kubernetes")).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(examples.join(path.file_name().unwrap()), adapted(&text)).unwrap();
        }
        Self { commands, folder }
    }

    /// Runs a command as a reader's shell does.
    fn run(&self, command: &str) -> String {
        let mut command = command.replace("https://nexus-gateway.example.com", GATEWAY);
        if command.starts_with("helm install ") {
            command = format!("{command} {}", values().join(" "));
        }
        let helm = helm_program();
        let folder = helm.parent().unwrap_or(Path::new(""));
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &command])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", folder.display()))
            .env("KUBECONFIG", lab::kubeconfig());
        let answer = Answer::of(&mut shell, "");
        assert!(answer.success, "{command}: {}", answer.stderr);
        answer.stdout
    }
}

/// A file of the examples with what a reader puts in.
fn adapted(text: &str) -> String {
    let mut text = text
        .replace("registry.example.com/agent:1", &lab::python())
        .replace("https://api.github.com", UPSTREAM)
        .replace("https://api.openai.com", OTHER)
        .replace(
            "ghcr.io/nexus/nexus-sidecar:0.1.0",
            &lab::image("nexus-sidecar"),
        );
    // The services of the tests have an authority and addresses of their own.
    let own = format!(
        "    caBundle: {}\n    allowPrivateAddresses: true\n",
        json!(lab().authority())
    );
    for url in [UPSTREAM, OTHER] {
        let line = format!("    url: {url}\n");
        text = text.replace(&line, &format!("{line}{own}"));
    }
    for ((placeholder, id), credential) in connections().iter().zip(CREDENTIALS) {
        text = text
            .replace(placeholder, id)
            .replace(credential, lab().token(id));
    }
    text
}

/// What `credentials.yaml` has instead of credentials, in the order of [`connections`].
const CREDENTIALS: [&str; 3] = [
    "GitHub token of acme",
    "GitHub token of globex",
    "OpenAI key",
];

/// The ids of the examples, and connections that the gateway of the tests has.
fn connections() -> [(&'static str, String); 3] {
    use std::sync::OnceLock;
    static IDS: OnceLock<[String; 3]> = OnceLock::new();
    let ids = IDS.get_or_init(|| std::array::from_fn(|_| lab().connection()));
    let placeholder = [
        "7d4c1f6e-0d0a-4f0e-9a53-0c6a3f2b1e01",
        "7d4c1f6e-0d0a-4f0e-9a53-0c6a3f2b1e02",
        "7d4c1f6e-0d0a-4f0e-9a53-0c6a3f2b1e03",
    ];
    std::array::from_fn(|index| (placeholder[index], ids[index].clone()))
}

fn the_readmes_commands_and_examples_work() {
    let page = Page::readme();
    let mut said = String::new();
    for command in page
        .commands
        .iter()
        .skip_while(|line| !line.contains("examples/"))
    {
        said = page.run(command);
        if command.contains("create namespace") {
            prepare_namespace();
        }
    }
    let [(_, acme), (_, globex), (_, openai)] = connections();
    assert!(said.is_empty() || said.contains(&acme), "{said}");
    let team = Team {
        namespace: NAMESPACE.to_owned(),
    };
    log_shows(&team, "deployment/agent", &[&acme]);

    for file in ["job", "cronjob", "statefulset"] {
        page.run(&format!(
            "kubectl apply --namespace agents --filename examples/kubernetes/{file}.yaml"
        ));
    }
    completed(&team, "agent-once");
    log_shows(&team, "job/agent-once", &[&globex]);
    page.run("kubectl create job now --namespace agents --from=cronjob/agent-hourly");
    completed(&team, "now");
    log_shows(&team, "job/now", &[&acme, &globex]);
    rolled_out(NAMESPACE, "statefulset/agent-sdk");
    log_shows(&team, "statefulset/agent-sdk", &[&acme, &openai]);
    let bound: Value = team.object("nexusroute", "github");
    println!("bound pods of github: {}", bound["status"]["boundPods"]);
}

fn a_test_cluster_has_a_gateway_of_the_sidecars_image() {
    let team = Team::new("without-nexus");
    let here = |command: &str| {
        let namespace = format!("--namespace {}", team.namespace);
        command.replace("--namespace agents", &namespace)
    };
    // What the other page made before.
    let readme = Page::readme();
    for command in &readme.commands {
        if command.contains("examples/") {
            readme.run(&here(command));
        }
    }
    let page = Page::section(
        "examples/kubernetes/README.md",
        "A test cluster that has no Nexus",
    );
    assert!(page.commands.len() > 5, "{:?}", page.commands);
    for command in &page.commands {
        page.run(&here(command));
        if command.contains("create namespace") {
            let strict = "pod-security.kubernetes.io/enforce=restricted";
            kubectl(&["label", "namespace", DEV_GATEWAY, "e2e=true", strict]).ok();
        }
    }
    let url = format!("--gateway-url=http://gateway.{DEV_GATEWAY}.svc:7070");
    let asks_it = |pod: &&Value| pod["spec"]["initContainers"].to_string().contains(&url);
    let pods = team.kubectl(&["get", "pods", "--selector=app=agent", "--output=json"]);
    let pods: Value = serde_json::from_str(&pods.ok()).unwrap();
    let pod = pods["items"].as_array().unwrap().iter().find(asks_it);
    let pod = pod.unwrap_or_else(|| panic!("no pod has {url}"));
    let name = pod["metadata"]["name"].as_str().unwrap();
    let [(_, acme), ..] = connections();
    log_shows(&team, name, &[&acme]);
    upgrade(&values());
    // Others after this one rely on it.
    team.start_with("again", GATEWAY);
}

/// What the tests' own gateway needs in a namespace, and what finds it at the end.
fn prepare_namespace() {
    kubectl(&["label", "namespace", NAMESPACE, "e2e=true"]).ok();
    apply(&[json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": AUTHORITY, "namespace": NAMESPACE},
        "data": {"ca.crt": lab().authority()},
    })])
    .ok();
}

/// Waits until the agents of a workload or pod have shown these connections.
fn log_shows(team: &Team, workload: &str, connections: &[&String]) {
    // Of those too that a Job made because the one before failed.
    let all: &[&str] = if workload.contains('/') {
        &["--all-pods"]
    } else {
        &[]
    };
    until("the log", || {
        let log = team
            .kubectl(&[&["logs", workload, "--all-containers", "--tail=-1"], all].concat())
            .stdout;
        let shown = connections.iter().all(|id| {
            log.lines()
                .any(|line| line.contains("200") && line.contains(id.as_str()))
        });
        if shown { Ok(()) } else { Err(log) }
    });
}
