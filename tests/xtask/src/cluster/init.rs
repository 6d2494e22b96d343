//! The first process of the node: mounts, network and components, in namespaces of its own.
//!
//! When it ends, the kernel ends everything that it started.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{WaitOptions, wait};

use super::components::{self, CTR, Component, NODE_ADDRESS, NODE_NAME, SERVICES};
use super::images;
use super::node::{FIXED_FOLDERS, Node, path_with};
use crate::step::{command, repository, run as must};

/// How long one part of the start may take on a busy machine.
const WAIT_LIMIT: Duration = Duration::from_mins(2);
/// Settings of the whole machine that kubelet writes unless it finds these values.
const WANTED_SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/kernel/panic", "10"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
];

/// Sets the node up, then reaps what ends, for as long as the node lives.
pub(super) fn run(node: &Node, programs: &Path) -> anyhow::Result<ExitCode> {
    if std::process::id() != 1 {
        bail!("this is started by `cargo xtask cluster up`");
    }
    // Held until the node ends, so that another node does not remove what this one covers.
    let _covered = mount(node)?;
    network()?;
    let path = path_with(programs)?;
    let mut components = start(node, &path)?;
    std::fs::write(node.path("ready"), "")?;
    loop {
        // Whoever ends here was started by us or lost its parent.
        let Some((pid, status)) = wait(WaitOptions::empty()).context("cannot wait")? else {
            continue;
        };
        if let Some(name) = components.remove(&pid.as_raw_nonzero().get().cast_unsigned()) {
            // Somebody ended it in order to have it started again.
            if std::fs::remove_file(node.path("restart").join(name)).is_ok()
                && let Some(component) = components::named(node, name)
            {
                components.insert(run_component(node, &path, component)?.id(), name);
                continue;
            }
            let how = match status.exit_status() {
                Some(code) => format!("code {code}"),
                None => format!("signal {:?}", status.terminating_signal()),
            };
            std::fs::write(node.path("ended").join(name), how)?;
        }
    }
}

/// Covers what must be the node's own. Returns what tells others that the fixed folders are in use.
fn mount(node: &Node) -> anyhow::Result<Vec<File>> {
    // sysfs shows the devices of one network namespace; the cgroups below it are to stay.
    let cgroups = node.path("cgroups");
    std::fs::create_dir_all(&cgroups)?;
    mount_one(&["--rbind", "/sys/fs/cgroup"], &cgroups)?;
    mount_one(&["--types", "sysfs", "sysfs"], Path::new("/sys"))?;
    must(
        command("mount", &["--rbind"])
            .arg(&cgroups)
            .arg("/sys/fs/cgroup"),
    )?;
    must(command("umount", &["--lazy"]).arg(&cgroups))?;

    let tmpfs = ["--types", "tmpfs", "--options", "mode=755", "tmpfs"];
    mount_one(&tmpfs, Path::new("/run"))?;
    for folder in ["/run/lock", "/run/netns"] {
        std::fs::create_dir_all(folder)?;
    }
    let mut covered = Vec::new();
    for folder in FIXED_FOLDERS {
        std::fs::create_dir_all(folder)?;
        let file = File::open(folder)?;
        file.lock_shared()?;
        covered.push(file);
        mount_one(&tmpfs, Path::new(folder))?;
    }
    let logs = node.path("pod-logs");
    std::fs::create_dir_all(&logs)?;
    must(command("mount", &["--bind"]).arg(&logs).arg("/var/log"))?;

    let settings = node.path("settings");
    std::fs::create_dir_all(&settings)?;
    for (path, value) in WANTED_SETTINGS {
        let file = settings.join(path.replace('/', "_"));
        std::fs::write(&file, value)?;
        must(command("mount", &["--bind"]).arg(&file).arg(path))?;
    }
    // kubelet and containerd share mounts with pods. Not before, since the umount above would reach further.
    must(&mut command("mount", &["--make-rshared", "/"]))?;
    Ok(covered)
}

fn mount_one(arguments: &[&str], place: &Path) -> anyhow::Result<()> {
    must(command("mount", arguments).arg(place))
}

fn network() -> anyhow::Result<()> {
    std::fs::write("/proc/sys/kernel/hostname", NODE_NAME)?;
    let address = format!("{NODE_ADDRESS}/32");
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["address", "add", &address, "dev", "lo"],
        // There is no default route, and without any route a process of the node gets an error before kube-proxy's rules
        // could lead it to a Service.
        &["route", "add", SERVICES, "dev", "lo", "src", NODE_ADDRESS],
    ] {
        must(&mut command("ip", arguments))?;
    }
    for setting in [
        "ipv4/ip_forward",
        "ipv4/conf/all/route_localnet",
        "bridge/bridge-nf-call-iptables",
    ] {
        let path = Path::new("/proc/sys/net").join(setting);
        std::fs::write(&path, "1").with_context(|| format!("cannot set {}", path.display()))?;
    }
    Ok(())
}

/// What runs, for as long as the start lasts.
struct Starting<'a> {
    node: &'a Node,
    path: &'a OsStr,
    running: Vec<(&'static str, Child)>,
}

/// Starts all components in the order in which they need each other. Returns their names by their process numbers.
fn start(node: &Node, path: &OsStr) -> anyhow::Result<BTreeMap<u32, &'static str>> {
    for folder in ["ended", "restart", "running"] {
        std::fs::create_dir_all(node.path(folder))?;
    }
    let mut starting = Starting {
        node,
        path,
        running: Vec::new(),
    };
    starting.run(components::containerd(node))?;
    starting.run(components::etcd(node))?;
    starting.run(components::apiserver(node))?;
    starting.until("containerd", "ctr", &[&CTR[..], &["version"]].concat())?;
    for file in images::files(&node.path("images"))? {
        must(
            starting
                .command("ctr")
                .args(CTR)
                .args(["images", "import"])
                .arg(file),
        )?;
    }
    starting.until("the API server", "kubectl", &["get", "--raw=/readyz"])?;
    starting.run(components::controllers(node))?;
    starting.run(components::scheduler(node))?;
    starting.run(components::kubelet(node))?;
    // Without its node kube-proxy would wait for half a minute.
    starting.until("the node", "kubectl", &["get", "node", NODE_NAME])?;
    starting.run(components::proxy(node))?;
    let account = ["get", "serviceaccount", "default"];
    starting.until("a service account", "kubectl", &account)?;
    must(
        starting
            .command("kubectl")
            .args(["apply", "--filename"])
            .arg(repository().join("tests/cluster/coredns.yaml")),
    )?;
    let ready = format!("node/{NODE_NAME}");
    let ready = ["wait", "--for=condition=Ready", "--timeout=1s", &ready];
    starting.until("the node to be ready", "kubectl", &ready)?;
    let names = [
        "--namespace=kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        "--timeout=1s",
    ];
    starting.until("names of Services", "kubectl", &names)?;
    let children = starting.running.into_iter();
    Ok(children.map(|(name, child)| (child.id(), name)).collect())
}

impl Starting<'_> {
    fn run(&mut self, component: Component) -> anyhow::Result<()> {
        let name = component.name;
        let child = run_component(self.node, self.path, component)?;
        self.running.push((name, child));
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        node_command(self.node, self.path, program)
    }

    /// Runs a command again and again until it succeeds.
    fn until(&mut self, what: &str, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let output = self.command(program).args(arguments).output();
            let output = output.with_context(|| format!("cannot start {program}"))?;
            if output.status.success() {
                return Ok(());
            }
            for (name, child) in &mut self.running {
                if let Some(status) = child.try_wait()? {
                    bail!("{name} ended with {status}");
                }
            }
            if start.elapsed() > WAIT_LIMIT {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!("waited in vain for {what}: {said}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Starts a component, and writes down its number in the node.
fn run_component(node: &Node, path: &OsStr, component: Component) -> anyhow::Result<Child> {
    let Component { name, arguments } = component;
    let log = node.path("log").join(format!("{name}.log"));
    let open = || File::options().create(true).append(true).open(&log);
    let log = open().with_context(|| format!("cannot write {}", log.display()))?;
    let child = node_command(node, path, name)
        .args(arguments)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    std::fs::write(node.path("running").join(name), child.id().to_string())?;
    Ok(child)
}

fn node_command(node: &Node, path: &OsStr, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("PATH", path)
        .env("KUBECONFIG", node.kubeconfig())
        .current_dir(node.path(""))
        .stdin(Stdio::null());
    command
}
