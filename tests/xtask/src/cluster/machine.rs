//! Whether this machine can run a node, and what it lacks. Everything is tried where it leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::cgroups;
use super::components::Runtime;
use super::node::{Node, path_with};
use crate::step::{command, run, step, succeeds};

/// Programs that the node is made with, and Debian's packages that have them.
const PROGRAMS: [(&str, &str); 11] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("ldd", "libc-bin"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("runc", "runc"),
    ("setsid", "util-linux"),
    ("unshare", "util-linux"),
];
/// Network plugins that the node calls.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
const PLUGINS_PACKAGE: &str = "containernetworking-plugins";
/// Where distributions put them.
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// What the node takes from the machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) runtime: Runtime,
    /// A busybox that needs no library.
    pub(super) busybox: PathBuf,
}

/// Looks at everything, after installing what is missing if that can be done; fails with all that is missing.
pub(super) fn prepare(node: &Node) -> anyhow::Result<Machine> {
    let root = rustix::process::geteuid().is_root();
    if root && succeeds(&mut command("apt-get", &["--version"])) {
        install(&find().missing)?;
    }
    let found = find();
    let mut problems = Vec::new();
    if !root {
        problems.push("this user is not root: run it as root, such as with sudo".to_owned());
    }
    if !found.missing.is_empty() {
        let packages = found.missing.join(" ");
        problems.push(format!(
            "programs are missing: apt-get install --yes --no-install-recommends {packages}"
        ));
    }
    if problems.is_empty() {
        problems = kernel_problems(node)?;
    }
    match found.machine {
        Some(machine) if problems.is_empty() => Ok(machine),
        _ => bail!(
            "this machine cannot run a cluster:\n- {}",
            problems.join("\n- ")
        ),
    }
}

/// Path of a busybox that needs no library, which is installed first if that can be done.
pub(crate) fn busybox() -> anyhow::Result<PathBuf> {
    if let Some(busybox) = static_busybox() {
        return Ok(busybox);
    }
    if rustix::process::geteuid().is_root() {
        install(&[BUSYBOX_PACKAGE])?;
    }
    static_busybox().with_context(|| format!("install by hand: {BUSYBOX_PACKAGE}"))
}

fn static_busybox() -> Option<PathBuf> {
    on_path("busybox").filter(|busybox| is_static(busybox))
}

struct Found {
    /// Debian's packages of what is not there.
    missing: Vec<&'static str>,
    /// If nothing that it names is missing.
    machine: Option<Machine>,
}

fn find() -> Found {
    let mut missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| on_path(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    let plugins = PLUGIN_FOLDERS.into_iter().find(|folder| {
        PLUGINS
            .iter()
            .all(|plugin| Path::new(folder).join(plugin).exists())
    });
    if plugins.is_none() {
        missing.push(PLUGINS_PACKAGE);
    }
    let busybox = static_busybox();
    if busybox.is_none() {
        missing.push(BUSYBOX_PACKAGE);
    }
    missing.sort_unstable();
    missing.dedup();
    let machine = || {
        Some(Machine {
            runtime: Runtime {
                runc: on_path("runc")?.to_str()?.to_owned(),
                plugins: plugins?.to_owned(),
            },
            busybox: busybox?,
        })
    };
    Found {
        machine: machine(),
        missing,
    }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    step("programs the node is made with", || {
        run(&mut command("apt-get", &["update"]))?;
        run(
            command("apt-get", &["install", "--yes", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    })
}

/// What the kernel, or a container around us, does not let us do.
fn kernel_problems(node: &Node) -> anyhow::Result<Vec<String>> {
    let namespaces = [
        "--net",
        "--mount",
        "--pid",
        "--ipc",
        "--uts",
        "--fork",
        "--mount-proc",
        "true",
    ];
    let mut problems = Vec::new();
    let mut try_one = |what: &str, trial: &mut Command| match trial.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            problems.push(format!("{what}: {}", said.trim()));
        }
        Err(error) => problems.push(format!("{what}: {error}")),
    };
    try_one(
        "namespaces cannot be made (in a container, it must be a privileged one)",
        &mut command("unshare", &namespaces),
    );
    let network = |script: &str| command("unshare", &["--net", "sh", "-ec", script]);
    try_one(
        "bridges and pairs of network devices cannot be made",
        &mut network(
            "ip link add name pods type bridge; ip link add name pod type veth peer name pair",
        ),
    );
    try_one(
        "iptables does not do what kube-proxy needs",
        network(
            "iptables --table nat --append OUTPUT --match comment --comment trial \
             --match statistic --mode random --probability 0.5 --jump RETURN",
        )
        .env("PATH", path_with(Path::new("/usr/sbin"))?),
    );
    try_one(
        "bridges do not ask iptables: modprobe br_netfilter",
        &mut network(
            "test -e /proc/sys/net/bridge/bridge-nf-call-iptables || { echo no br_netfilter >&2; exit 1; }",
        ),
    );
    let parent = node.path("");
    let parent = parent.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent)?;
    let trial = tempfile::Builder::new()
        .prefix(".overlay-")
        .tempdir_in(parent)?;
    let overlay = "mkdir lower upper work merged
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged";
    try_one(
        &format!(
            "overlay file systems cannot be on {}: choose another --folder",
            parent.display()
        ),
        command("unshare", &["--mount", "sh", "-ec", overlay]).current_dir(trial.path()),
    );
    if let Err(error) = cgroups::usable(&node.cgroup()) {
        problems.push(format!("cgroups cannot be used: {error:#}"));
    }
    Ok(problems)
}

fn is_static(program: &Path) -> bool {
    let Ok(output) = command("ldd", &[]).arg(program).output() else {
        return false;
    };
    !String::from_utf8_lossy(&output.stdout).contains(".so")
}

fn on_path(program: &str) -> Option<PathBuf> {
    let folders = path_with(Path::new("/usr/sbin")).ok()?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}
