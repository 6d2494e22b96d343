//! Starts the node.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::node::Node;
use super::{cgroups, components, images, machine, pki, status};
use crate::assets;
use crate::step::step;

/// The first process gives up earlier.
const START_LIMIT: Duration = Duration::from_mins(10);

/// Starts the node and waits until it is ready; only says where it is if it runs and is ready already.
#[expect(clippy::print_stdout, reason = "a command line tool's output")]
pub(super) fn up(node: &Node) -> anyhow::Result<()> {
    let _lock = node.lock()?;
    if node.process()?.is_none() || !status::of_node(node)?.is_ready() {
        // What an earlier one left, or one that is no good.
        node.end()?;
        let machine = machine::prepare(node)?;
        let programs = assets::kubernetes()?;
        let coredns = assets::coredns()?;
        node.make_folder()?;
        step("certificates, configuration and images", || {
            pki::write(&node.path("pki"))?;
            components::configure(node, &machine.runtime)?;
            images::write(&node.path("images"), &machine.busybox, &coredns)?;
            symlink(&programs, node.path("programs"))?;
            cgroups::make(&node.cgroup())
        })?;
        if let Err(error) = step("node", || start(node, &programs)) {
            node.end()?;
            return Err(error);
        }
    }
    println!("The cluster is ready. It is reached from its own network only:");
    println!("    cargo xtask cluster exec -- kubectl get pods --all-namespaces");
    println!("    KUBECONFIG={}", node.kubeconfig().display());
    Ok(())
}

fn start(node: &Node, programs: &Path) -> anyhow::Result<()> {
    let log = node.path("log/node.log");
    let output = File::create(&log)?;
    // A session of its own outlives the terminal; with `--kill-child` nothing outlives `unshare`.
    let namespaces = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--ipc",
        "--uts",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation=private",
    ];
    let mut unshare = Command::new("setsid")
        .args(namespaces)
        .arg(node.program())
        .args(node.words())
        .args([OsStr::new("--programs"), programs.as_os_str()])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start setsid")?;
    let start = Instant::now();
    while !node.path("ready").exists() {
        if unshare.try_wait()?.is_some() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the node ended:\n{}", last(&said));
        }
        if start.elapsed() > START_LIMIT {
            bail!("the node is not ready after {} s", START_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The end of a log.
fn last(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
