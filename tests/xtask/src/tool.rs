//! Cargo's own tools in pinned versions.

use std::path::PathBuf;

use crate::cache;
use crate::step::{cargo, run};

/// Path of a tool, which is installed first if it is missing. `options` go to `cargo install`.
pub(crate) fn installed(name: &str, version: &str, options: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = cache::filled(name, version, |folder| {
        run(cargo(&["install", "--locked", name, "--version", version])
            .args(options)
            .arg("--root")
            .arg(folder)
            .arg("--target-dir")
            .arg(folder.join("build")))?;
        Ok(std::fs::remove_dir_all(folder.join("build"))?)
    })?;
    Ok(folder.join("bin").join(name))
}
