//! The project's own commands: `cargo xtask test`, `cargo xtask ci` and what they are made of.
//!
//! A person and CI run the same ones. Each step says its name and how long it took.

mod assets;
mod cache;
mod ci;
mod clients;
mod cluster;
mod e2e;
mod fuzz;
mod generate;
mod images;
mod older;
mod soak;
mod step;
mod tool;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs the test clients and the Kubernetes control plane, builds the sidecar for release and runs every test.
    Test {
        /// Passed to `cargo test`, after `--workspace`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Only installs the test clients, for running single tests with `cargo test`.
    Clients,
    /// Finds or builds the Kubernetes control plane and the helm that the operator's tests use, and prints the
    /// variables that `cargo test` needs to find them.
    Assets,
    /// Writes the container images of the sidecar and the operator as OCI archives, without a container engine.
    Images(images::Arguments),
    /// A Kubernetes of one node with pods that really run, on this machine and out of its way.
    Cluster(cluster::Arguments),
    /// Installs the chart in a cluster with pods that run, and tests it with agents. Part of `test` where a cluster can
    /// be started.
    E2e(e2e::Arguments),
    /// Everything that must pass before a change lands.
    Ci,
    /// Runs a sidecar for minutes against a control plane that fails, and judges every request that comes out.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Of everything that is left to chance.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The sidecar to run, instead of a release build.
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Runs the fuzz targets on copies of their corpora; what fails stays in `target/fuzz/artifacts`.
    Fuzz {
        /// How long each of them runs.
        #[arg(long, default_value_t = ci::FUZZ_SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
        /// All if none is named.
        targets: Vec<String>,
    },
    /// Writes the files that are made from the types: CRDs and schemas.
    Generate {
        /// Only says whether they are up to date.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let done = match Arguments::parse().command {
        Task::Test { arguments } => ci::test(&arguments),
        Task::Clients => clients::install(),
        Task::Assets => print_assets(),
        Task::E2e(arguments) => e2e::e2e(&arguments),
        Task::Ci => ci::run_ci(),
        Task::Soak {
            minutes,
            seed,
            binary,
        } => soak::soak(minutes, seed, binary),
        Task::Fuzz { seconds, targets } => fuzz::fuzz(seconds, &targets),
        Task::Generate { check } => generate::run(check),
        Task::Images(arguments) => images::run(arguments),
        Task::Cluster(arguments) => return cluster::run(arguments),
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "a command line tool's output")]
fn print_assets() -> anyhow::Result<()> {
    for (name, value) in assets::assets()?.environment() {
        println!("{name}={}", value.display());
    }
    Ok(())
}
