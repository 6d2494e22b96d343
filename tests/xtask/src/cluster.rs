//! A Kubernetes of one node with pods that really run, on this machine and out of its way.
//!
//! The node is a process tree in network, mount, process, IPC and host name namespaces of its own. It has no route out,
//! needs no registry and changes no setting of the machine; the kernel ends all of it with the first of its processes.
//!
//! `up` looks whether the machine can ([`machine`]), writes certificates and images, and starts [`init`], the first
//! process of the node, which sets the node up and runs the components that [`components`] describes. [`node`] knows
//! where everything is and finds and ends what runs.

mod cgroups;
mod check;
mod components;
mod footprint;
mod images;
mod init;
mod load;
mod machine;
mod node;
mod pki;
mod status;
mod up;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

pub(crate) use self::load::load;
pub(crate) use self::machine::busybox;
pub(crate) use self::node::Node;
use crate::assets;
use crate::step::target;

/// Which cluster, and what to do with it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the node keeps its files; each folder is a cluster of its own [default: target/cluster].
    #[arg(long, global = true, conflicts_with = "kubeconfig")]
    folder: Option<PathBuf>,
    /// Use the cluster of this kubeconfig instead of one of ours.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Starts the cluster, unless it runs; returns when it is ready. Needs root.
    Up,
    /// Ends the cluster and everything that was started in it, and removes its files.
    Down,
    /// Says whether the cluster is ready. Exit code: 0 if so, 3 if it does not run, 4 if it runs but is not ready.
    Status,
    /// Kills a component such as kube-apiserver and starts it again.
    Restart {
        /// Its name, as in the node's folder of logs.
        component: String,
    },
    /// Runs a command that reaches the cluster, its pods and its Services, with KUBECONFIG set and kubectl on the PATH.
    Exec {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Imports image archives into the running cluster, so that its pods can name the images.
    Load {
        /// Files that `cargo xtask images`, `docker save` or another tool wrote.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Starts a cluster in a folder of its own, proves that pods, sidecars, Services, DNS and tokens work in it and
    /// that nothing stays behind.
    Check,
    /// The first process of the node.
    #[command(hide = true)]
    Node {
        /// Folder of the Kubernetes programs.
        #[arg(long)]
        programs: PathBuf,
    },
}

/// Where commands for a cluster go.
#[derive(Debug)]
pub(crate) enum Cluster {
    /// The one that `up` starts.
    Ours(Node),
    /// One that is there already: this is its kubeconfig.
    Given(PathBuf),
}

impl Cluster {
    /// A command that reaches the cluster. `kubectl` is one; fails if the cluster does not run.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> anyhow::Result<Command> {
        match self {
            Self::Ours(node) => node.command(program),
            Self::Given(kubeconfig) => {
                let mut command = Command::new(program);
                command.env("KUBECONFIG", kubeconfig);
                Ok(command)
            }
        }
    }
}

/// The cluster in `folder`, started unless it runs.
pub(crate) fn started(folder: &Path) -> anyhow::Result<Cluster> {
    let node = Node::at(folder)?;
    up::up(&node)?;
    Ok(Cluster::Ours(node))
}

/// Why none can be started in `folder`; `None` if one can.
pub(crate) fn obstacles(folder: &Path) -> anyhow::Result<Option<String>> {
    let node = Node::at(folder)?;
    let prepared = machine::prepare(&node).and_then(|_| assets::enough_for_pods());
    Ok(prepared.err().map(|error| format!("{error:#}")))
}

/// Starts a cluster beside all others, proves what tests need of it, and that it leaves nothing.
pub(crate) fn check() -> anyhow::Result<()> {
    check::check(&Node::at(&folder(None, &Task::Check))?)
}

/// Does what the arguments say.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let cluster = match arguments.kubeconfig {
        Some(kubeconfig) => Cluster::Given(std::path::absolute(kubeconfig)?),
        None => Cluster::Ours(Node::at(&folder(arguments.folder, &arguments.task))?),
    };
    match (arguments.task, cluster) {
        (Task::Status, cluster) => status::print(&cluster),
        (Task::Exec { command }, cluster) => exec(&cluster, &command),
        (Task::Up, Cluster::Ours(node)) => up::up(&node).map(|()| ExitCode::SUCCESS),
        (Task::Down, Cluster::Ours(node)) => node.down().map(|()| ExitCode::SUCCESS),
        (Task::Load { files }, Cluster::Ours(node)) => {
            load(&node, &files).map(|()| ExitCode::SUCCESS)
        }
        (Task::Restart { component }, Cluster::Ours(node)) => {
            node.restart(&component).map(|()| ExitCode::SUCCESS)
        }
        (Task::Check, Cluster::Ours(node)) => check::check(&node).map(|()| ExitCode::SUCCESS),
        (Task::Node { programs }, Cluster::Ours(node)) => init::run(&node, &programs),
        (_, Cluster::Given(_)) => {
            bail!("only status and exec work on a cluster that was not started here")
        }
    }
}

/// Where the node is. The check does not touch a cluster that someone works with.
fn folder(given: Option<PathBuf>, task: &Task) -> PathBuf {
    let name = if matches!(task, Task::Check) {
        "cluster-check"
    } else {
        "cluster"
    };
    given.unwrap_or_else(|| target().join(name))
}

fn exec(cluster: &Cluster, words: &[OsString]) -> anyhow::Result<ExitCode> {
    let [program, arguments @ ..] = words else {
        bail!("no command");
    };
    let error = cluster.command(program)?.args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", Path::new(program).display()))
}
