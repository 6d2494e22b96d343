//! The cgroup that holds all pods of a node: in each hierarchy of version 1, or in the one of version 2.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const ROOT: &str = "/sys/fs/cgroup";
/// Exists where all controllers are in the one hierarchy of version 2.
const UNIFIED: &str = "/sys/fs/cgroup/cgroup.controllers";
/// What kubelet counts and limits.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// How long the kernel may take to let go of a cgroup whose processes were killed.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// Makes it, with all that the machine gives to its own.
pub(super) fn make(name: &str) -> anyhow::Result<()> {
    if Path::new(UNIFIED).exists() {
        let enable = CONTROLLERS
            .map(|controller| format!("+{controller}"))
            .join(" ");
        write(&Path::new(ROOT).join("cgroup.subtree_control"), &enable)?;
    }
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(name);
        if let Err(error) = std::fs::create_dir(&folder)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {}", folder.display()));
        }
        // In version 1 these are empty at first, and no process can join before they are not.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let given = hierarchy.join(file);
            if given.exists() {
                let value = std::fs::read_to_string(&given)?;
                write(&folder.join(file), &value)?;
            }
        }
    }
    Ok(())
}

/// Removes it with all that is below it. Its processes must have been killed.
pub(super) fn remove(name: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(name);
        while let Err(error) = remove_tree(&folder) {
            if start.elapsed() > REMOVE_LIMIT {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Cgroups of this name that exist.
pub(super) fn existing(name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let folders = hierarchies()?
        .into_iter()
        .map(|hierarchy| hierarchy.join(name));
    Ok(folders.filter(|folder| folder.exists()).collect())
}

/// Says what is wrong if there is no cgroup to be had.
pub(super) fn usable(name: &str) -> anyhow::Result<()> {
    let hierarchies = hierarchies()?;
    let mut missing = CONTROLLERS.to_vec();
    if let Ok(controllers) = std::fs::read_to_string(UNIFIED) {
        missing.retain(|wanted| !controllers.split_whitespace().any(|given| given == *wanted));
    } else {
        missing.retain(|wanted| !hierarchies.contains(&Path::new(ROOT).join(wanted)));
    }
    if !missing.is_empty() {
        bail!("{ROOT} has no {}", missing.join(", "));
    }
    make(name)?;
    remove(name)
}

/// Roots of the hierarchies.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    if Path::new(UNIFIED).exists() {
        return Ok(vec![ROOT.into()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(ROOT).with_context(|| format!("cannot read {ROOT}"))? {
        // Links lead to hierarchies of several controllers.
        let path = entry?.path();
        if path.join("cgroup.procs").exists() {
            found.push(path);
        }
    }
    Ok(found)
}

fn write(file: &Path, value: &str) -> anyhow::Result<()> {
    std::fs::write(file, value.trim()).with_context(|| format!("cannot write {}", file.display()))
}

/// A cgroup has files that cannot be removed; it goes by its folders.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
