//! Cargo's own tools in pinned versions, under `target/tools`.

use std::path::PathBuf;

use crate::step::{cargo, command, run, step, target};

/// Path of a tool, which is installed first if it is missing or of another version. `options` go to `cargo install`.
pub(crate) fn installed(name: &str, version: &str, options: &[&str]) -> anyhow::Result<PathBuf> {
    let tools = target().join("tools");
    let tool = tools.join("bin").join(name);
    let found = command(&tool, &["--version"]).output().is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .ends_with(version)
    });
    if !found {
        step(&format!("install {name}"), || {
            run(cargo(&["install", "--locked", name, "--version", version])
                .args(options)
                .args(["--force", "--root"])
                .arg(&tools)
                .arg("--target-dir")
                .arg(tools.join("build")))
        })?;
    }
    Ok(tool)
}
