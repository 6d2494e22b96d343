//! Programs that are built once, by name and version, and kept in the user's cache for all clones.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::step::step;

/// Where a program is, if it is there.
pub(crate) fn folder(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    Ok(root()?.join(format!("{name}-{version}")))
}

/// The same, filled by `build` if it is not there.
pub(crate) fn filled(
    name: &str,
    version: &str,
    build: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let cache = root()?;
    let folder = folder(name, version)?;
    if folder.exists() {
        return Ok(folder);
    }
    step(&format!("build {name} {version}"), || {
        std::fs::create_dir_all(&cache)?;
        // Beside its place and then renamed, so that a build that was stopped leaves nothing that looks whole.
        let unfinished = tempfile::Builder::new()
            .prefix(".building-")
            .tempdir_in(&cache)?;
        build(unfinished.path())?;
        match std::fs::rename(unfinished.path(), &folder) {
            Ok(()) => drop(unfinished.keep()),
            // Another run was faster.
            Err(_) if folder.exists() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", folder.display()));
            }
        }
        Ok(())
    })?;
    Ok(folder)
}

fn root() -> anyhow::Result<PathBuf> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME says where to keep what is built"),
    };
    Ok(cache.join("nexus-tests"))
}
