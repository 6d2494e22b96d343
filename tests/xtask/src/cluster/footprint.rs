//! What a node could leave behind on the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::cgroups;
use super::node::{FIXED_FOLDERS, Node, all_processes, path_with};
use crate::step::command;

/// Settings of the machine that components of Kubernetes write.
const SETTINGS: [&str; 5] = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
];
/// Folders that they make where nothing is configured otherwise.
const FOLDERS: [&str; 5] = [
    "/run/containerd",
    "/run/netns",
    "/usr/libexec/kubernetes",
    "/var/log/containers",
    "/var/log/pods",
];

/// The state of the machine at one time, by the name of each part.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Footprint(BTreeMap<String, BTreeSet<String>>);

impl Footprint {
    /// Takes it.
    pub(super) fn take(node: &Node) -> anyhow::Result<Self> {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let names = |paths: Vec<PathBuf>| {
            let names = paths.iter().map(|path| path.display().to_string());
            names.collect::<BTreeSet<_>>()
        };
        let mut parts = BTreeMap::new();
        let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot list mounts")?;
        parts.insert("mounts".to_owned(), lines(&mounts));
        let devices = std::fs::read_dir("/sys/class/net").context("cannot list network devices")?;
        let devices = devices
            .map(|entry| Ok(entry?.path()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        parts.insert("network devices".to_owned(), names(devices));
        parts.insert(
            "cgroups".to_owned(),
            names(cgroups::existing(&node.cgroup())?),
        );
        let folders = FIXED_FOLDERS.iter().chain(&FOLDERS).map(PathBuf::from);
        let folders = folders
            .chain([node.path("")])
            .filter(|folder| folder.exists());
        parts.insert("folders".to_owned(), names(folders.collect()));
        for setting in SETTINGS {
            let value = std::fs::read_to_string(Path::new("/proc/sys").join(setting));
            parts.insert(setting.to_owned(), lines(&value.unwrap_or_default()));
        }
        parts.insert("iptables rules".to_owned(), rules("iptables-save")?);
        if Path::new("/proc/net/if_inet6").exists() {
            parts.insert("ip6tables rules".to_owned(), rules("ip6tables-save")?);
        }
        Ok(Self(parts))
    }

    /// Fails with what is different now.
    pub(super) fn compare(&self, now: &Self) -> anyhow::Result<()> {
        let mut differences = Vec::new();
        for (name, before) in &self.0 {
            let now = now.0.get(name).unwrap_or(before);
            differences.extend(
                now.difference(before)
                    .map(|new| format!("{name}: new: {new}")),
            );
            differences.extend(
                before
                    .difference(now)
                    .map(|old| format!("{name}: gone: {old}")),
            );
        }
        if differences.is_empty() {
            return Ok(());
        }
        bail!(
            "the machine is not as it was:\n- {}",
            differences.join("\n- ")
        )
    }
}

/// The chains and rules of the machine's own network, without how often each of them was used.
fn rules(program: &str) -> anyhow::Result<BTreeSet<String>> {
    let output = command(program, &[])
        .env("PATH", path_with(Path::new("/usr/sbin"))?)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {said}");
    let text = String::from_utf8_lossy(&output.stdout);
    // A chain that somebody made has no policy: `:NAME - [packets:bytes]`. The others come with their table.
    let chains = text.lines().filter_map(|line| line.split_once(" - ["));
    let rules = text.lines().filter(|line| line.starts_with("-A"));
    Ok(chains
        .map(|(name, _)| name)
        .chain(rules)
        .map(str::to_owned)
        .collect())
}

/// Namespaces that a process is in, by their kinds.
pub(super) fn namespaces_of(pid: i32) -> BTreeSet<PathBuf> {
    ["ipc", "mnt", "net", "pid", "uts"]
        .iter()
        .filter_map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok())
        .collect()
}

/// Fails if a process is left in one of these namespaces. One that ended does not count, though its parent may be slow
/// to notice; it has no executable any more.
pub(super) fn nobody_is_in(namespaces: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for pid in all_processes()? {
        let runs = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        if runs && !namespaces_of(pid).is_disjoint(namespaces) {
            bail!("process {pid} is left in a namespace of the node");
        }
    }
    Ok(())
}
