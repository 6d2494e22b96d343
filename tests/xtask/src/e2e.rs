//! The end-to-end tests: a cluster with pods, the images, and the tests that run in its network.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::assets;
use crate::cluster::{self, Cluster, Node};
use crate::images::{
    self,
    product::{Build, PRODUCTS, Sources},
};
use crate::older::Older;
use crate::step::{cargo, command, repository, run, step, target};

/// Where the images are said to come from.
const REGISTRY: &str = "localhost";
const TAG: &str = env!("CARGO_PKG_VERSION");

/// Which cluster, and which tests.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Use the cluster of this kubeconfig instead of one of ours. It must have the images of `cargo xtask images --tests`.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Leaves the cluster as the tests left it, in target/cluster-e2e.
    #[arg(long)]
    keep: bool,
    /// Builds this revision of the repository too, and tests nothing but the upgrade from it to what is here.
    #[arg(long, value_name = "REVISION")]
    from: Option<String>,
    /// Passed to the tests: names, or --test-threads N.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    tests: Vec<String>,
}

/// Runs them.
pub(crate) fn e2e(arguments: &Arguments) -> anyhow::Result<()> {
    // Two at once would install the chart over each other's.
    std::fs::create_dir_all(target())?;
    let lock = File::create(folder().with_extension("run.lock"))?;
    lock.lock()
        .context("cannot lock the cluster of the tests")?;
    let cluster = match &arguments.kubeconfig {
        Some(kubeconfig) => Cluster::Given(std::path::absolute(kubeconfig)?),
        None => cluster::started(&folder())?,
    };
    let done = run_in(&cluster, arguments);
    if done.is_err() {
        keep_facts(&cluster);
    }
    match cluster {
        Cluster::Ours(node) if !arguments.keep => {
            step("cluster down", || node.down())?;
            done
        }
        _ => done,
    }
}

/// The same as a part of `cargo xtask test`. Where no cluster can be started they are not run, and this returns why.
#[expect(clippy::print_stdout, reason = "a command line tool's output")]
pub(crate) fn e2e_where_possible() -> anyhow::Result<Option<String>> {
    let obstacles = cluster::obstacles(&folder())?;
    match &obstacles {
        Some(obstacles) => println!("==> end-to-end tests: NOT RUN\n{obstacles}"),
        None => e2e(&Arguments {
            kubeconfig: None,
            keep: false,
            from: None,
            tests: Vec::new(),
        })?,
    }
    Ok(obstacles)
}

/// Saves what tells why a test failed, since the cluster goes.
#[expect(clippy::print_stdout, reason = "a command line tool's output")]
fn keep_facts(cluster: &Cluster) {
    let facts = target().join("e2e-failed");
    let save = || {
        std::fs::create_dir_all(&facts)?;
        for (name, arguments) in [
            ("pods.txt", ["describe", "pods", "--all-namespaces"]),
            ("events.txt", ["get", "events", "--all-namespaces"]),
        ] {
            let file = File::create(facts.join(name))?;
            let limit = "--request-timeout=30s";
            run(cluster
                .command("kubectl")?
                .args(arguments)
                .arg(limit)
                .stdout(file))?;
        }
        if let Cluster::Ours(node) = cluster {
            run(command("cp", &["-r"]).arg(node.path("log")).arg(&facts))?;
        }
        anyhow::Ok(())
    };
    match save() {
        Ok(()) => println!("    what the cluster said is in {}", facts.display()),
        Err(error) => println!("    what the cluster said is lost: {error:#}"),
    }
}

fn folder() -> PathBuf {
    target().join("cluster-e2e")
}

/// Builds what pods run: the product under the tag of this version and that of the next, and what only tests need.
fn images() -> anyhow::Result<Vec<PathBuf>> {
    let folder = target().join("images");
    let mut files = images::tests(&folder)?;
    for (tag, folder) in [
        (TAG.to_owned(), folder.clone()),
        (format!("{TAG}-next"), folder.join("next")),
    ] {
        let build = Build {
            registry: REGISTRY.to_owned(),
            tag,
            profile: "release".to_owned(),
            sources: Sources::Own,
        };
        for product in &PRODUCTS {
            files.push(images::write(product, &build, &folder)?);
        }
    }
    Ok(files)
}

fn run_in(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    let older = arguments.from.as_deref();
    let older = older
        .map(|revision| Older::build(revision, REGISTRY))
        .transpose()?;
    let mut images = images()?;
    images.extend(older.iter().flat_map(|older| older.images.clone()));
    if let Cluster::Ours(node) = cluster {
        step("load the images", || cluster::load(node, &images))?;
    }
    // Before, since there is no network where they run.
    let tests = ["test", "--workspace", "--test", "e2e"];
    run(cargo(&tests).arg("--no-run"))?;
    step("end-to-end tests", || {
        let mut cargo = cluster.command(env!("CARGO"))?;
        cargo
            .args(tests)
            .arg("--")
            .args(&arguments.tests)
            .current_dir(repository())
            .env("NEXUS_E2E_REGISTRY", REGISTRY)
            .env("NEXUS_E2E_TAG", TAG)
            .env("NEXUS_HELM", assets::helm()?);
        if let Some(older) = &older {
            cargo
                .env("NEXUS_E2E_OLDER_CHART", &older.chart)
                .env("NEXUS_E2E_OLDER_TAG", &older.tag);
        }
        match cluster {
            Cluster::Given(kubeconfig) => cargo.env("NEXUS_E2E_KUBECONFIG", kubeconfig),
            Cluster::Ours(node) => cargo
                .env("NEXUS_E2E_KUBECONFIG", node.kubeconfig())
                .env("NEXUS_E2E_RESTART", restart(node)),
        };
        run(&mut cargo)
    })
}

/// A command that restarts the component that is its last argument, for `sh`.
fn restart(node: &Node) -> String {
    format!(
        "'{}' cluster restart --folder '{}'",
        node.program().display(),
        node.path("").display()
    )
}
