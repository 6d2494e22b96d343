//! The image of an agent that may turn hostile: Python with `requests`, a shell, and kubectl.
//!
//! What agents are made of is here, and so is what an attacker would bring along. It works as any user and with a
//! read-only root.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Image, Layer, libraries, shell};
use crate::cluster::busybox;
use crate::step::{command, repository, run, target};
use crate::{assets, clients};

/// What pods call it.
const NAME: &str = "localhost/agent-python:1";
/// Number of the user and group of images that only tests run, unless the pod says another.
pub(super) const USER: u32 = 1000;

/// Makes it, after installing the clients' Python and busybox if they are missing.
pub(super) fn image() -> anyhow::Result<Image> {
    clients::install_python()?;
    let mut kubectl = Layer::default();
    kubectl.copy("bin/kubectl", &assets::kubernetes()?.join("kubectl"))?;
    // What changes least is lowest.
    Ok(Image::new(NAME)
        .layer(shell(&busybox()?)?)
        .layer(kubectl)
        .layer(python()?)
        .entrypoint(["/usr/bin/python3"])
        .user(USER))
}

fn python() -> anyhow::Result<Layer> {
    let staging = tempfile::Builder::new()
        .prefix("agent-python-")
        .tempdir_in(target())?;
    let interpreter = target().join("clients/venv/bin/python");
    run(command(&interpreter, &["-I"])
        .arg(repository().join("tests/images/agent.py"))
        .arg(staging.path()))?;
    let mut layer = Layer::default();
    layer.tree("usr", staging.path())?;
    // Scripts begin with its path.
    layer.link("usr/bin/env", "/bin/busybox");
    libraries::add(&mut layer, &programs(staging.path())?)?;
    Ok(layer)
}

/// All programs and shared libraries below a folder.
fn programs(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            found.extend(programs(&path)?);
        } else if kind.is_file() && is_program(&path)? {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_program(path: &Path) -> anyhow::Result<bool> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(content.starts_with(b"\x7fELF"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("lib/more");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("a.so"), b"\x7fELF...").unwrap();
        std::fs::write(folder.path().join("script.so"), "GROUP ( libc.so.6 )").unwrap();
        std::os::unix::fs::symlink("a.so", below.join("link.so")).unwrap();
        assert_eq!(programs(folder.path()).unwrap(), [below.join("a.so")]);
    }
}
