//! Where the node's files and processes are, and how to end it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use super::cgroups;
use crate::step::run;

/// Paths outside of the node's folder that kubelet and the network plugins insist on. The node covers them; on the
/// machine they stay empty.
pub(super) const FIXED_FOLDERS: [&str; 2] = ["/var/lib/kubelet", "/var/lib/cni"];
/// File by which a folder is known to be a node's.
const MARKER: &str = "nexus-cluster";
/// How long killed processes may take to go.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A cluster of ours, whether it runs or not.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    folder: PathBuf,
}

impl Node {
    /// The one that lives in `folder`, which need not exist.
    pub(crate) fn at(folder: &Path) -> anyhow::Result<Self> {
        // One spelling, since it tells one cluster from another.
        let folder: PathBuf = std::path::absolute(folder)?.components().collect();
        if folder
            .to_str()
            .is_none_or(|path| path.contains(['"', '\n', ':', ',']))
        {
            bail!(
                "{} cannot be written into configuration files",
                folder.display()
            );
        }
        Ok(Self { folder })
    }

    /// A file or folder of the node.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The kubeconfig of an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("pki/admin.kubeconfig")
    }

    /// The program that started the node, kept with it: a build meanwhile replaces the one that runs.
    pub(crate) fn program(&self) -> PathBuf {
        self.path("xtask")
    }

    /// The node's cgroup in every hierarchy: one for each folder.
    pub(super) fn cgroup(&self) -> String {
        let digest = Sha256::digest(self.folder.as_os_str().as_bytes());
        format!(
            "nexus-cluster-{:02x}{:02x}{:02x}",
            digest[0], digest[1], digest[2]
        )
    }

    /// Keeps others from starting and ending the node for as long as the file lives.
    pub(super) fn lock(&self) -> anyhow::Result<File> {
        let path = self.folder.with_extension("lock");
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let open = || {
            let file = File::create(&path)?;
            file.lock()?;
            Ok::<_, std::io::Error>(file)
        };
        open().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// What starts the node's first process, after `unshare`. Nothing else has these words in this order, so that they
    /// also find it, even after whoever started it was killed before it could write a number down.
    pub(super) fn words(&self) -> [&OsStr; 4] {
        let [task, subtask, option] = ["cluster", "node", "--folder"].map(OsStr::new);
        [task, subtask, option, self.folder.as_os_str()]
    }

    /// The node's first process, by its number on this machine.
    pub(crate) fn process(&self) -> anyhow::Result<Option<Pid>> {
        for pid in self.processes()? {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let inside = numbers.and_then(|numbers| numbers.split_whitespace().nth(1));
            if inside == Some("1") {
                return Ok(Pid::from_raw(pid));
            }
        }
        Ok(None)
    }

    /// Processes that were started with our words: `unshare` and what it started.
    pub(super) fn processes(&self) -> anyhow::Result<Vec<i32>> {
        let mut wanted = Vec::new();
        for word in self.words() {
            wanted.extend_from_slice(word.as_bytes());
            wanted.push(0);
        }
        Ok(all_processes()?
            .into_iter()
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.windows(wanted.len()).any(|words| words == wanted)
            })
            .collect())
    }

    /// A command in the node's network, with KUBECONFIG and the programs of Kubernetes; it keeps the files and processes
    /// of this machine.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        self.entering(|pid| vec![format!("--net=/proc/{pid}/ns/net")], program)
    }

    /// The same, with the files and processes of the node.
    pub(super) fn inside(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        let all = |pid| vec!["--all".to_owned(), format!("--target={pid}")];
        self.entering(all, program)
    }

    /// `options` says for the number of the node's first process what to enter.
    fn entering(
        &self,
        options: impl FnOnce(i32) -> Vec<String>,
        program: impl AsRef<OsStr>,
    ) -> anyhow::Result<Command> {
        let Some(pid) = self.process()? else {
            bail!("the cluster does not run: start it with `cargo xtask cluster up`");
        };
        let programs = std::fs::read_link(self.path("programs"))
            .context("the cluster is about to start or to end")?;
        let mut command = Command::new("nsenter");
        command
            .args(options(pid.as_raw_nonzero().get()))
            .arg("--")
            .arg(program)
            .env("KUBECONFIG", self.kubeconfig())
            .env("PATH", path_with(&programs)?);
        Ok(command)
    }

    /// Kills a component, which the node then starts again.
    pub(super) fn restart(&self, component: &str) -> anyhow::Result<()> {
        let number = std::fs::read_to_string(self.path("running").join(component))
            .with_context(|| format!("the node has no component {component}"))?;
        std::fs::write(self.path("restart").join(component), "")?;
        let kill = format!("kill -KILL {}", number.trim());
        run(self.inside("sh")?.args(["-c", &kill]))
    }

    /// Ends the node, if it runs, and removes its files.
    pub(crate) fn down(&self) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        self.end()
    }

    /// The same for who holds the lock.
    pub(super) fn end(&self) -> anyhow::Result<()> {
        let mut network = None;
        if let Some(pid) = self.process()? {
            network = network_of(pid.as_raw_nonzero().get());
            // First and alone: `unshare` waits for it and then ends by itself, so that no ended process stays listed.
            kill(pid)?;
            self.wait_for_end(pid)?;
        }
        end_all(|| self.processes())?;
        // What `exec` started keeps the machine's processes namespace but would keep the node's network alive.
        if let Some(network) = network {
            end_all(|| {
                Ok(all_processes()?
                    .into_iter()
                    .filter(|pid| network_of(*pid).as_ref() == Some(&network))
                    .collect())
            })?;
        }
        cgroups::remove(&self.cgroup())?;
        for folder in FIXED_FOLDERS {
            remove_unused(Path::new(folder))?;
        }
        if self.folder.exists() {
            self.judge_folder()?;
            std::fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        Ok(())
    }

    /// Makes the node's folder.
    pub(super) fn make_folder(&self) -> anyhow::Result<()> {
        self.judge_folder()?;
        std::fs::create_dir_all(&self.folder)?;
        std::fs::write(self.path(MARKER), "")
            .with_context(|| format!("cannot write into {}", self.folder.display()))?;
        std::fs::copy("/proc/self/exe", self.program()).context("cannot copy this program")?;
        Ok(())
    }

    /// Fails if the folder has something in it and is no node's: everything in it goes with the node.
    fn judge_folder(&self) -> anyhow::Result<()> {
        let is_empty = match std::fs::read_dir(&self.folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if !is_empty && !self.path(MARKER).exists() {
            bail!(
                "{} is not a folder of a cluster: name one with --folder that is empty or does not exist",
                self.folder.display()
            );
        }
        Ok(())
    }

    /// Waits until a killed process is no longer listed, or there is no `unshare` that could wait for it.
    fn wait_for_end(&self, pid: Pid) -> anyhow::Result<()> {
        let listed = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let start = Instant::now();
        while listed.exists() && !self.processes()?.is_empty() {
            if start.elapsed() > END_LIMIT {
                bail!("process {} does not end", pid.as_raw_nonzero());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// The search path with `first` before everything else, and with the folders that only root's has.
pub(super) fn path_with(first: &Path) -> anyhow::Result<std::ffi::OsString> {
    let given = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = std::iter::once(first.to_owned())
        .chain(std::env::split_paths(&given))
        .chain(system);
    Ok(std::env::join_paths(folders)?)
}

/// Kills what `find` finds until it finds nothing more.
fn end_all(find: impl Fn() -> anyhow::Result<Vec<i32>>) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let found = find()?;
        if found.is_empty() {
            return Ok(());
        }
        if start.elapsed() > END_LIMIT {
            bail!("processes {found:?} do not end");
        }
        for pid in found.into_iter().filter_map(Pid::from_raw) {
            kill(pid)?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: Pid) -> anyhow::Result<()> {
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => bail!("cannot end process {}: {error}", pid.as_raw_nonzero()),
    }
}

/// The network namespace of a process, if it has not ended.
pub(super) fn network_of(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// Numbers of all processes.
pub(super) fn all_processes() -> anyhow::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("cannot list processes")? {
        if let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Removes a folder that the node had to make, unless there is something in it or another node covers it: each holds
/// the lock of what it covers.
fn remove_unused(folder: &Path) -> anyhow::Result<()> {
    let Ok(file) = File::open(folder) else {
        return Ok(());
    };
    if file.try_lock().is_ok() && std::fs::read_dir(folder)?.next().is_none() {
        std::fs::remove_dir(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_own_folder_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let node = |name: &str| Node::at(&place.path().join(name)).unwrap();
        let precious = place.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("work"), "").unwrap();
        let error = node("precious").down().unwrap_err().to_string();
        assert!(error.contains("is not a folder of a cluster"), "{error}");
        assert!(node("precious").make_folder().is_err());
        assert!(precious.join("work").exists());

        let own = node("own");
        own.make_folder().unwrap();
        let program = std::fs::read(own.program()).unwrap();
        assert!(program == std::fs::read("/proc/self/exe").unwrap());
        own.down().unwrap();
        assert!(!place.path().join("own").exists());
        own.down().unwrap();
    }
}
