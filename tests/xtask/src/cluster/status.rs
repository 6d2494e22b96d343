//! Whether a cluster is ready, and if not, why.

use std::process::ExitCode;

use anyhow::Context;

use super::Cluster;
use super::node::Node;

/// What can be said of a cluster.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Status {
    Ready,
    /// Nothing of it runs.
    Stopped,
    /// It runs, but for a reason it is not ready.
    NotReady(String),
}

impl Status {
    pub(super) fn is_ready(&self) -> bool {
        *self == Self::Ready
    }

    fn code(&self) -> ExitCode {
        match self {
            Self::Ready => ExitCode::SUCCESS,
            Self::Stopped => ExitCode::from(3),
            Self::NotReady(_) => ExitCode::from(4),
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command line tool's output")]
pub(super) fn print(cluster: &Cluster) -> anyhow::Result<ExitCode> {
    let status = match cluster {
        Cluster::Ours(node) => of_node(node)?,
        Cluster::Given(_) => of_cluster(cluster)?,
    };
    match &status {
        Status::Ready => println!("ready"),
        Status::Stopped => println!("not running"),
        Status::NotReady(reason) => println!("running, but not ready: {reason}"),
    }
    Ok(status.code())
}

/// Looks at the processes first, and then as at any other cluster.
pub(super) fn of_node(node: &Node) -> anyhow::Result<Status> {
    if node.process()?.is_none() {
        return Ok(Status::Stopped);
    }
    if !node.path("ready").exists() {
        return Ok(Status::NotReady("it is starting".to_owned()));
    }
    if let Some(entry) = std::fs::read_dir(node.path("ended"))?.next() {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().display();
        let how = std::fs::read_to_string(&path)?;
        let log = node.path("log");
        let reason = format!("{name} ended with {how}; see {}/{name}.log", log.display());
        return Ok(Status::NotReady(reason));
    }
    match of_cluster(&Cluster::Ours(node.clone())) {
        // It ended while it was asked.
        Err(_) if node.process()?.is_none() => Ok(Status::Stopped),
        answer => answer,
    }
}

/// Asks the API server for its nodes.
fn of_cluster(cluster: &Cluster) -> anyhow::Result<Status> {
    let arguments = [
        "get",
        "nodes",
        "--request-timeout=10s",
        r#"--output=jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].message}{"\n"}{end}"#,
    ];
    let output = cluster
        .command("kubectl")?
        .args(arguments)
        .output()
        .context("cannot start kubectl")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Ok(Status::NotReady(said.trim().to_owned()));
    }
    Ok(of_nodes(&String::from_utf8_lossy(&output.stdout)))
}

/// Each line is a name, the status of the condition Ready and why it has it.
fn of_nodes(lines: &str) -> Status {
    let unready = lines.lines().find_map(|line| {
        let mut words = line.splitn(3, ' ');
        let (name, status) = (words.next()?, words.next()?);
        let why = words.next().unwrap_or_default();
        (status != "True").then(|| format!("{name} is not ready: {why}"))
    });
    match unready {
        Some(reason) => Status::NotReady(reason),
        None if lines.trim().is_empty() => Status::NotReady("it has no nodes".to_owned()),
        None => Status::Ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_ready_when_it_has_nodes_and_all_of_them_are() {
        assert_eq!(of_nodes("a True fine\nb True fine\n"), Status::Ready);
        let reason = Status::NotReady("b is not ready: no network plugin".to_owned());
        assert_eq!(of_nodes("a True fine\nb False no network plugin\n"), reason);
        assert!(!of_nodes("\n").is_ready());
    }
}
