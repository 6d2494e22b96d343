//! The checks, quick ones first.

use std::path::PathBuf;

use crate::assets;
use crate::clients;
use crate::cluster;
use crate::e2e;
use crate::fuzz;
use crate::generate;
use crate::images::{
    self, dockerfiles,
    product::{self, PRODUCTS, Product},
    program,
};
use crate::soak;
use crate::step::{cargo, command, repository, run, step, succeeds, target};
use crate::tool;

const CARGO_DENY: &str = "0.20.2";
/// How long each fuzz target runs.
pub(crate) const FUZZ_SECONDS: u32 = 60;
/// How long the soak runs.
const SOAK_MINUTES: u64 = 1;

/// Everything that must pass before a change lands.
#[expect(clippy::print_stdout, reason = "a command line tool's output")]
pub(crate) fn run_ci() -> anyhow::Result<()> {
    step("format", || {
        run(&mut cargo(&["fmt", "--all", "--check"]))?;
        // A workspace of its own.
        let fuzz = ["fmt", "--manifest-path", "tests/fuzz/Cargo.toml", "--check"];
        run(&mut cargo(&fuzz))
    })?;
    step("generated files", || generate::run(true))?;
    // Each ends with minutes in which it keeps one core busy, so they go beside what does not need them.
    std::thread::scope(|scope| {
        let programs = scope.spawn(|| PRODUCTS.iter().try_for_each(|it| release(it).map(drop)));
        let checked = check_sources().and_then(|()| build_tests());
        if let Err(error) = &checked {
            println!("    failed, and ends with the builds under way: {error:#}");
        }
        programs
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .and(checked)
    })?;
    let not_run = run_tests(&[])?;
    if not_run.is_none() {
        step("cluster", cluster::check)?;
    }
    // Of the program that the tests have just used.
    step("sidecar image", images::check_sidecar)?;
    soak::soak(SOAK_MINUTES, 1, None)?;
    fuzz::fuzz(FUZZ_SECONDS, &[])?;
    // Once more where it is seen: the rest passed without them.
    if let Some(obstacles) = not_run {
        println!("==> end-to-end tests: NOT RUN\n{obstacles}");
    }
    Ok(())
}

/// What can be said without running the product.
fn check_sources() -> anyhow::Result<()> {
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
    step("Dockerfiles", dockerfiles::check)?;
    clients::install()?;
    assets::assets().map(drop)
}

/// Installs the clients and the control plane, builds the sidecar for release and runs every test against it.
pub(crate) fn test(arguments: &[String]) -> anyhow::Result<()> {
    run_tests(arguments).map(drop)
}

/// The same. Returns why the end-to-end tests did not run, if they should have.
fn run_tests(arguments: &[String]) -> anyhow::Result<Option<String>> {
    clients::install()?;
    let assets = assets::assets()?;
    let sidecar = release(&product::SIDECAR)?;
    build_tests()?;
    step("tests", || {
        run(cargo(&["test", "--workspace"])
            .args(arguments)
            .envs(assets.environment())
            .env("NEXUS_SIDECAR_BIN", &sidecar)
            .env("NEXUS_OPERATOR_BIN", target().join("debug/nexus-operator")))
    })?;
    // Arguments are for one of the tests above.
    if arguments.is_empty() {
        e2e::e2e_where_possible()
    } else {
        Ok(None)
    }
}

/// Builds all tests and the operator that they run.
fn build_tests() -> anyhow::Result<()> {
    // With the features that the tests are built with, so that little is built twice.
    let operator = ["build", "--workspace", "--bin", "nexus-operator"];
    step("operator build", || run(&mut cargo(&operator)))?;
    let tests = ["test", "--workspace", "--no-run"];
    step("build of the tests", || run(&mut cargo(&tests)))
}

/// Builds a program as it is shipped. Returns where it is.
pub(crate) fn release(product: &Product) -> anyhow::Result<PathBuf> {
    let name = product.name;
    program::build(repository(), &target(), name, name, "release")
}

#[expect(clippy::print_stdout, reason = "a command line tool's output")]
fn supply_chain() -> anyhow::Result<()> {
    // Its default features bring a second TLS stack; fetching the advisory database needs git only. A debug build takes
    // seconds for its check and minutes less to be made.
    let deny = tool::installed(
        "cargo-deny",
        CARGO_DENY,
        &["--debug", "--no-default-features"],
    )?;
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
