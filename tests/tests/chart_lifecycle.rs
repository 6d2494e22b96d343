//! `helm install`, `upgrade`, `rollback`, `uninstall` and `test` on a real API server: what they leave alone, and what they
//! leave behind. The commands are those of the chart's page.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nexus_tests::apiserver::{Cluster, asset};
use nexus_tests::chart::{self, NAMESPACE};
use nexus_tests::operator::Installation;
use serde_json::json;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);
/// What the operator and an uninstalled release leave; the page names it.
const OPERATORS_OWN: [&str; 4] = [
    "ConfigMap team/nexus-routes",
    "Lease nexus-system/nexus-operator",
    "Secret nexus-system/nexus-operator-ca",
    "Secret nexus-system/nexus-operator-webhook-tls",
];
const KEPT: [&str; 17] = [
    "APIService v1alpha1.nexus.io",
    "CustomResourceDefinition nexusproviders.nexus.io",
    "CustomResourceDefinition nexusroutes.nexus.io",
    "NexusProvider example",
    "NexusRoute team/example",
    "ValidatingAdmissionPolicy nexus-exec",
    "ValidatingAdmissionPolicy nexus-pod-binding",
    "ValidatingAdmissionPolicy nexus-pod-create",
    "ValidatingAdmissionPolicy nexus-pod-update",
    "ValidatingAdmissionPolicy nexus-table",
    "ValidatingAdmissionPolicy nexus-token-audience",
    "ValidatingAdmissionPolicyBinding nexus-exec",
    "ValidatingAdmissionPolicyBinding nexus-pod-binding",
    "ValidatingAdmissionPolicyBinding nexus-pod-create",
    "ValidatingAdmissionPolicyBinding nexus-pod-update",
    "ValidatingAdmissionPolicyBinding nexus-table",
    "ValidatingAdmissionPolicyBinding nexus-token-audience",
];
/// Where `helm test` works, and what its objects are called.
const TEST: &str = "nexus-operator-helm-test";

/// A cluster and what acts on it.
struct Scene<'a> {
    cluster: &'a Cluster,
    /// Folder with the programs that the page's commands name.
    programs: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let programs = cluster.scratch("programs");
        let helm = chart::helm();
        // Otherwise it is on the PATH.
        if Path::new(helm.get_program()).is_absolute() {
            symlink(helm.get_program(), programs.join("helm")).unwrap();
        }
        symlink(asset("kubectl"), programs.join("kubectl")).unwrap();
        Self { cluster, programs }
    }

    /// Runs what the page has under a heading: the shell block of this number.
    fn as_told(&self, heading: &str, block: usize) {
        let page = std::fs::read_to_string(chart::folder().join("README.md")).unwrap();
        let section = page.split(&format!("\n## {heading}\n")).nth(1);
        let section = section.and_then(|rest| rest.split("\n## ").next());
        let blocks = section.expect("the page has the heading").split("```sh\n");
        let script = blocks
            .skip(1)
            .nth(block)
            .and_then(|it| it.split("```").next());
        let path = std::env::var("PATH").unwrap();
        let output = chart::helm_on(self.cluster);
        let mut shell = Command::new("sh");
        for (name, value) in output.get_envs() {
            shell.env(name, value.unwrap());
        }
        let output = shell
            .args(["-euxc", script.expect("the section has the block")])
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .current_dir(chart::folder().join("../.."))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{heading}: {said}");
    }

    /// Runs `helm` for the release, which must succeed.
    fn helm(&self, arguments: &[&str]) -> String {
        let output = chart::helm_on(self.cluster)
            .args(arguments)
            .args(["--namespace", NAMESPACE])
            .current_dir(chart::folder().join("../.."))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every object but events and what each namespace has by itself, as `Kind namespace/name`.
    fn objects(&self) -> BTreeSet<String> {
        let kinds = ["api-resources", "--verbs=list", "--output=name"];
        let kinds = self.cluster.kubectl(&kinds).ok();
        let kinds: Vec<&str> = kinds
            .lines()
            .filter(|kind| !kind.starts_with("events") && *kind != "componentstatuses")
            .collect();
        let line =
            "{{.kind}} {{with .metadata.namespace}}{{.}}/{{end}}{{.metadata.name}}{{\"\\n\"}}";
        let list = self.cluster.kubectl(&[
            "get",
            &kinds.join(","),
            "--all-namespaces",
            &format!("--output=go-template={{{{range .items}}}}{line}{{{{end}}}}"),
        ]);
        let own = [
            format!("Namespace {NAMESPACE}"),
            format!("ServiceAccount {NAMESPACE}/default"),
            format!("ConfigMap {NAMESPACE}/kube-root-ca.crt"),
        ];
        let list = list.ok();
        let objects = list.lines().map(str::to_owned);
        objects.filter(|object| !own.contains(object)).collect()
    }

    /// Waits until there is what was `before` and what is `left`, and nothing else.
    fn until_only(&self, before: &BTreeSet<String>, left: &[&str]) {
        let left = left.iter().map(|&object| object.to_owned());
        let expected: BTreeSet<String> = before.iter().cloned().chain(left).collect();
        until(|| {
            let objects = self.objects();
            let more: Vec<_> = objects.difference(&expected).collect();
            let less: Vec<_> = expected.difference(&objects).collect();
            let same = more.is_empty() && less.is_empty();
            (same, format!("too many: {more:#?}\nmissing: {less:#?}"))
        });
    }

    /// The authorities that the webhooks are called with, of all three.
    fn bundles(&self) -> Vec<String> {
        let path = "{range .items[*].webhooks[*]}{.clientConfig.caBundle}{\"\\n\"}{end}";
        let text = self.cluster.kubectl(&[
            "get",
            "mutatingwebhookconfigurations,validatingwebhookconfigurations",
            &format!("--output=jsonpath={path}"),
        ]);
        text.ok().lines().map(str::to_owned).collect()
    }

    fn operator_image(&self) -> String {
        let deployment = self.cluster.get(NAMESPACE, "deployment", "nexus-operator");
        let containers = &deployment.unwrap()["spec"]["template"]["spec"]["containers"];
        containers[0]["image"].as_str().unwrap().to_owned()
    }

    fn exists(&self, kind: &str, name: &str) -> bool {
        self.cluster.get(TEST, kind, name).is_some()
    }
}

/// Waits for a condition, which comes with what to say where it never holds.
fn until(condition: impl Fn() -> (bool, String)) {
    let start = Instant::now();
    loop {
        let (holds, otherwise) = condition();
        if holds {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{otherwise}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The chart as another version, in a folder of its own.
fn older(folder: &Path) -> PathBuf {
    let copy = folder.join("nexus");
    let copied = Command::new("cp")
        .arg("-R")
        .arg(chart::folder())
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    let path = copy.join("Chart.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let current = env!("CARGO_PKG_VERSION");
    let older = text.replace(&format!("ersion: {current}\n"), "ersion: 0.0.9\n");
    assert_eq!(older.matches("0.0.9").count(), 2, "version and appVersion");
    std::fs::write(path, older).unwrap();
    copy
}

/// Sidecars' gateway, for installations that are not the page's.
const GATEWAY: &str = "--set=sidecar.gatewayUrl=https://gateway.example.com";

#[test]
fn an_upgrade_leaves_alone_what_is_the_operators_and_an_uninstall_leaves_what_the_page_says() {
    let cluster = Cluster::shared();
    let scene = Scene::new(cluster);
    cluster.kubectl(&["create", "namespace", "team"]).ok();
    until(|| {
        let made = cluster.get("team", "configmap", "kube-root-ca.crt");
        let account = cluster.get("team", "serviceaccount", "default");
        let is_ready = made.is_some() && account.is_some();
        (is_ready, "the namespace is not ready".to_owned())
    });
    let before = scene.objects();
    definitions_go_unless_they_are_kept(&scene, &before);

    let old = older(&cluster.scratch("older"));
    scene.helm(&["install", "nexus", old.to_str().unwrap(), GATEWAY]);
    operator_at_work(cluster, &scene);
    upgrades(&scene);

    let operator = Installation::of_helm(cluster).start();
    let left: Vec<&str> = OPERATORS_OWN.iter().chain(&KEPT).copied().collect();
    scene.as_told("Uninstall", 0);
    scene.until_only(&before, &left);
    drop(operator);
    // A release of the same name goes on where the last one ended.
    scene.helm(&["install", "nexus", "charts/nexus", GATEWAY]);
    scene.as_told("Uninstall", 0);
    scene.until_only(&before, &left);
    scene.as_told("Uninstall", 1);
    scene.as_told("Uninstall", 2);
    scene.until_only(&before, &[]);
}

fn definitions_go_unless_they_are_kept(scene: &Scene<'_>, before: &BTreeSet<String>) {
    scene.as_told("Install", 0);
    let same = ["upgrade", "nexus", "charts/nexus"];
    let values = [
        "--reset-then-reuse-values",
        "--set=crds.keep=false,policies.keep=false",
    ];
    scene.helm(&[&same[..], &values[..]].concat());
    assert!(scene.objects().contains(KEPT[1]));
    scene.as_told("Uninstall", 0);
    scene.until_only(before, &[]);
}

/// Runs the operator until it has made what it makes, for a route. It is not there any more to repair what breaks.
fn operator_at_work(cluster: &'static Cluster, scene: &Scene<'_>) {
    let operator = Installation::of_helm(cluster).start();
    let provider = json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusProvider", "metadata": {"name": "example"},
        "spec": {"upstream": {"url": "https://api.example.com"}},
    });
    let route = json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute", "metadata": {"name": "example", "namespace": "team"},
        "spec": {"connections": [{"connectionId": nexus_tests::connection(1)}]},
    });
    cluster.apply(&provider.to_string()).ok();
    cluster.apply(&route.to_string()).ok();
    until(|| {
        let objects = scene.objects();
        let made = OPERATORS_OWN.iter().all(|object| objects.contains(*object));
        let known = scene.bundles().iter().all(|bundle| !bundle.is_empty());
        (made && known, format!("{objects:#?}{}", operator.log()))
    });
}

fn upgrades(scene: &Scene<'_>) {
    let bundles = scene.bundles();
    assert_eq!(bundles.len(), 3);
    assert!(bundles.iter().all(|bundle| !bundle.is_empty()));
    assert!(scene.operator_image().ends_with(":0.0.9"));

    scene.as_told("Upgrade", 0);
    let current = concat!(":", env!("CARGO_PKG_VERSION"));
    assert!(scene.operator_image().ends_with(current));
    assert_eq!(scene.bundles(), bundles);
    // Now with a change of the webhooks themselves.
    let same = ["upgrade", "nexus", "charts/nexus"];
    let values = [
        "--reset-then-reuse-values",
        "--set=webhook.timeoutSeconds=7",
    ];
    scene.helm(&[&same[..], &values[..]].concat());
    assert_eq!(scene.bundles(), bundles);
    scene.helm(&["rollback", "nexus", "1"]);
    assert!(scene.operator_image().ends_with(":0.0.9"));
    assert_eq!(scene.bundles(), bundles);
    // As Argo CD and others do.
    let rendered = chart::render(&[]);
    let configurations: Vec<_> = rendered
        .iter()
        .filter(|object| {
            object["kind"]
                .as_str()
                .unwrap()
                .ends_with("WebhookConfiguration")
        })
        .collect();
    assert_eq!(configurations.len(), 2);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": configurations}).to_string();
    for manner in [&["--server-side", "--force-conflicts"][..], &[]] {
        let apply = [&["apply", "--filename=-"][..], manner].concat();
        scene.cluster.kubectl_with(&apply, &list).ok();
        assert_eq!(scene.bundles(), bundles);
    }
}

/// `helm test` under way.
struct Testing<'a> {
    scene: &'a Scene<'a>,
    child: Child,
}

impl<'a> Testing<'a> {
    fn start(scene: &'a Scene<'a>) -> Self {
        let child = chart::helm_on(scene.cluster)
            .args(["test", "nexus", "--namespace", NAMESPACE, "--timeout=60s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { scene, child }
    }

    /// Says how the pod ended, as kubelet would.
    fn pod_is(self, phase: &str) -> (bool, String) {
        let scene = self.scene;
        // Not the one of the test before, which may still be there.
        until(|| {
            let pod = scene.cluster.get(TEST, "pod", TEST).unwrap_or_default();
            let is_new = pod["status"]["phase"] == "Pending";
            (is_new, "there is no new pod".to_owned())
        });
        let pod = scene.cluster.get(TEST, "pod", TEST).unwrap();
        assert_eq!(pod["metadata"]["annotations"]["nexus.io/inject"], "true");
        assert!(scene.exists("nexusroute", TEST) && scene.exists("nexusprovider", TEST));
        let status = json!({"status": {"phase": phase}}).to_string();
        let patch = [
            "patch",
            "pod",
            TEST,
            "--subresource=status",
            "--type=merge",
            "--patch",
        ];
        let patch = [&["--namespace", TEST][..], &patch[..], &[&status]].concat();
        scene.cluster.kubectl(&patch).ok();
        self.end()
    }

    /// Whether it passed, and what it said.
    fn end(self) -> (bool, String) {
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    }
}

#[test]
fn a_test_that_passed_leaves_nothing_and_one_that_failed_is_followed_by_another() {
    let cluster = Cluster::start();
    let scene = Scene::new(&cluster);
    scene.as_told("Install", 0);
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ])
        .ok();
    let whole = ["Pod", "EndpointSlice"];
    until(|| {
        let objects = scene.objects();
        let count = |kind| {
            let start = format!("{kind} {NAMESPACE}/");
            objects.iter().filter(|it| it.starts_with(&start)).count()
        };
        (whole.map(count) == [2, 1], format!("{objects:#?}"))
    });
    let before = scene.objects();
    // The operator is not there.
    let (passed, said) = Testing::start(&scene).end();
    assert!(
        !passed && said.contains("failed calling webhook \"inject.nexus.io\""),
        "{said}"
    );
    let webhook = ["delete", "mutatingwebhookconfiguration", "nexus-operator"];
    cluster.kubectl(&webhook).ok();

    let (passed, said) = Testing::start(&scene).pod_is("Failed");
    assert!(!passed, "{said}");
    assert!(scene.exists("pod", TEST), "it is there to be looked at");
    let (passed, said) = Testing::start(&scene).pod_is("Succeeded");
    assert!(passed, "{said}");
    let without: BTreeSet<String> = before
        .iter()
        .filter(|object| *object != "MutatingWebhookConfiguration nexus-operator")
        .cloned()
        .collect();
    scene.until_only(&without, &[]);

    let (passed, _) = Testing::start(&scene).pod_is("Failed");
    assert!(!passed);
    scene.as_told("Uninstall", 0);
    scene.as_told("Uninstall", 1);
    scene.as_told("Uninstall", 2);
    until(|| {
        let mut objects = scene.objects();
        objects.retain(|object| object.contains("nexus"));
        (objects.is_empty(), format!("{objects:#?}"))
    });
}
