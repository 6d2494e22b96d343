//! The `nexus-operator` command: `run` (controller and webhook) and `relay` come with later versions.

use std::process::ExitCode;

use clap::Parser;

/// Turns NexusRoute objects into route tables and injects the sidecar into annotated pods.
///
/// This version has no commands yet.
#[derive(Debug, Parser)]
#[command(name = "nexus-operator", version, arg_required_else_help = true)]
struct Cli {}

fn main() -> ExitCode {
    let Cli {} = Cli::parse();
    ExitCode::from(2)
}
