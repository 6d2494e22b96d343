//! The checks, in the order in which they are likely to fail fast.

use std::path::PathBuf;

use crate::clients;
use crate::generate;
use crate::step::{cargo, command, run, step, succeeds, target};

const CARGO_DENY: &str = "0.20.2";

/// Everything that must pass before a change lands.
pub(crate) fn run_ci() -> anyhow::Result<()> {
    step("format", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("generated files", || generate::run(true))?;
    step("clippy", || {
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        run(&mut cargo(&clippy))
    })?;
    step("documentation", || {
        let doc = [
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ];
        run(cargo(&doc).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    supply_chain()?;
    test(&[])
}

/// Installs the clients, builds the sidecar for release and runs every test against it.
pub(crate) fn test(arguments: &[String]) -> anyhow::Result<()> {
    clients::install()?;
    step("release build", || {
        run(&mut cargo(&[
            "build",
            "--release",
            "--package",
            "nexus-sidecar",
        ]))
    })?;
    step("tests", || {
        run(cargo(&["test", "--workspace"])
            .args(arguments)
            .env("NEXUS_SIDECAR_BIN", target().join("release/nexus-sidecar")))
    })
}

#[expect(clippy::print_stdout, reason = "a command line tool's output")]
fn supply_chain() -> anyhow::Result<()> {
    let tools = target().join("tools");
    let deny = tools.join("bin/cargo-deny");
    let installed = command(&deny, &["--version"]).output().is_ok_and(|o| {
        String::from_utf8_lossy(&o.stdout)
            .trim()
            .ends_with(CARGO_DENY)
    });
    if !installed {
        step("install cargo-deny", || install_deny(&tools))?;
    }
    step("licences, bans and sources", || {
        run(&mut command(
            &deny,
            &["check", "bans", "licenses", "sources"],
        ))
    })?;
    step("advisories", || {
        if succeeds(&mut command(&deny, &["fetch", "db"])) {
            run(&mut command(&deny, &["check", "advisories"]))
        } else {
            println!("    skipped: the advisory database cannot be reached from here");
            Ok(())
        }
    })
}

fn install_deny(tools: &PathBuf) -> anyhow::Result<()> {
    // Its default features bring a second TLS stack; fetching the advisory database needs git only.
    let install = ["install", "--locked", "cargo-deny", "--version", CARGO_DENY];
    run(cargo(&install)
        .args(["--no-default-features", "--force", "--root"])
        .arg(tools)
        .arg("--target-dir")
        .arg(tools.join("build")))
}
