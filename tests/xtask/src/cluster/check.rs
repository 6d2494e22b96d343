//! Proves that the cluster does what tests need of it, and that it leaves nothing behind.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::footprint::{Footprint, namespaces_of, nobody_is_in};
use super::node::Node;
use super::{Cluster, status, up};
use crate::step::{repository, step};

/// How long the machine may take for one thing.
const LIMIT: Duration = Duration::from_mins(2);

/// Starts a cluster, proves all of it and ends it.
pub(super) fn check(node: &Node) -> anyhow::Result<()> {
    node.down()?;
    let before = Footprint::take(node)?;
    let nothing_left = |namespaces: &BTreeSet<PathBuf>| {
        node.down()?;
        nobody_is_in(namespaces)?;
        before.compare(&Footprint::take(node)?)
    };
    let cluster = Cluster::Ours(node.clone());
    let done = step("up", || up::up(node)).and_then(|()| {
        step("up again changes nothing", || unchanged(node))?;
        step("pods run, and a sidecar starts first", || pods(&cluster))?;
        step("a pod finds a Service by its name", || names(&cluster))?;
        step("a token is for its audience only", || tokens(&cluster))
    });
    if done.is_err() {
        node.down()?;
        return done;
    }
    let namespaces = namespaces(node)?;
    let mut visitor = visitor(&cluster)?;
    step("down leaves nothing", || nothing_left(&namespaces))?;
    visitor.wait()?;
    step("down again changes nothing", || nothing_left(&namespaces))?;
    step("a killed start leaves nothing", || {
        killed_start(node, &nothing_left)
    })?;
    step("a killed node leaves nothing", || {
        killed_node(node, &nothing_left)
    })
}

fn unchanged(node: &Node) -> anyhow::Result<()> {
    let process = node.process()?;
    up::up(node)?;
    ensure!(node.process()? == process, "the node was started again");
    Ok(())
}

fn pods(cluster: &Cluster) -> anyhow::Result<()> {
    let manifests = std::fs::read_to_string(repository().join("tests/cluster/check.yaml"))?;
    // The account that pods run as comes after their namespace.
    retry(|| kubectl(cluster, &["apply", "--filename=-"], &manifests))?;
    for pod in ["pod/server", "pod/client"] {
        kubectl(
            cluster,
            &["wait", "--for=condition=Ready", "--timeout=120s", pod],
            "",
        )?;
    }
    let said = kubectl(cluster, &["logs", "server", "--container=main"], "")?;
    ensure!(
        said.trim() == "from the sidecar",
        "the main container saw: {said}"
    );
    Ok(())
}

fn names(cluster: &Cluster) -> anyhow::Result<()> {
    for name in ["server", "server.check.svc.cluster.local"] {
        let url = format!("http://{name}/");
        let fetch = ["exec", "client", "--", "wget", "-q", "-O", "-", &url];
        // The rules for a Service come a moment after the Service.
        let said = retry(|| kubectl(cluster, &fetch, ""))?;
        ensure!(said.trim() == "from the sidecar", "{name} answered: {said}");
    }
    Ok(())
}

fn tokens(cluster: &Cluster) -> anyhow::Result<()> {
    let token = kubectl(
        cluster,
        &["exec", "client", "--", "cat", "/token/token"],
        "",
    )?;
    for (audience, accepted) in [("nexus-check", true), ("another", false)] {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        });
        let create = ["create", "--filename=-", "--output=jsonpath={.status}"];
        let status = kubectl(cluster, &create, &review.to_string())?;
        let status: Value = serde_json::from_str(&status)?;
        let authenticated = status["authenticated"].as_bool().unwrap_or(false);
        ensure!(
            authenticated == accepted,
            "a token for nexus-check, reviewed for {audience}: {status}"
        );
        if accepted {
            let user = &status["user"]["username"];
            ensure!(
                user == "system:serviceaccount:check:default",
                "the token is of {user}"
            );
        }
    }
    Ok(())
}

/// Something that `exec` started and that would go on without the node.
fn visitor(cluster: &Cluster) -> anyhow::Result<Child> {
    Ok(cluster.command("sleep")?.arg("100000").spawn()?)
}

/// Kills `up` when the node has begun to start; the program that runs is gone by then, as after a build.
fn killed_start(
    node: &Node,
    nothing_left: &dyn Fn(&BTreeSet<PathBuf>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let program = place.path().join("xtask");
    std::fs::copy("/proc/self/exe", &program)?;
    let mut starter = Command::new(&program)
        .args(["cluster", "up", "--folder"])
        .arg(node.path(""))
        .stdout(Stdio::null())
        .spawn()?;
    drop(place);
    let start = Instant::now();
    while !node.path("log/kube-apiserver.log").exists() {
        ensure!(start.elapsed() < LIMIT, "the node does not start");
        ensure!(
            starter.try_wait()?.is_none(),
            "up ended before the node started"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    starter.kill()?;
    starter.wait()?;
    nothing_left(&namespaces(node)?)
}

/// Kills what holds the node, as a machine short of memory could.
fn killed_node(
    node: &Node,
    nothing_left: &dyn Fn(&BTreeSet<PathBuf>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    up::up(node)?;
    let namespaces = namespaces(node)?;
    let process = node.process()?;
    let holder = node
        .processes()?
        .into_iter()
        .filter_map(Pid::from_raw)
        .find(|pid| Some(*pid) != process);
    kill_process(holder.context("nothing holds the node")?, Signal::KILL)?;
    let start = Instant::now();
    while status::of_node(node)? != status::Status::Stopped {
        ensure!(
            start.elapsed() < LIMIT,
            "the node goes on without what holds it"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    nothing_left(&namespaces)
}

/// Namespaces that only the node is in.
fn namespaces(node: &Node) -> anyhow::Result<BTreeSet<PathBuf>> {
    let process = node.process()?.context("the node does not run")?;
    let own = namespaces_of(std::process::id().cast_signed());
    let namespaces = namespaces_of(process.as_raw_nonzero().get());
    ensure!(
        namespaces.is_disjoint(&own),
        "the node is in a namespace of the machine"
    );
    Ok(namespaces)
}

/// What kubectl says in the check's namespace.
fn kubectl(cluster: &Cluster, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = cluster
        .command("kubectl")?
        .arg("--namespace=check")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("kubectl {}: {said}", arguments.join(" "));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Does something until it succeeds.
fn retry<T>(mut work: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let done = work();
        if done.is_ok() || start.elapsed() > LIMIT {
            return done;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
