//! The `nexus-sidecar` command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use nexus_sidecar::args::{Cli, Command};
use nexus_sidecar::{check, probe, run};

/// Wrong usage or configuration, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Dev(args) => run::dev(args),
        Command::Check(args) => match check::run(&args.paths, &mut io::stdout().lock()) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error.into()),
        },
        Command::Probe(args) => {
            return report(probe::run(args.admin), 1);
        }
    };
    report(outcome, USAGE)
}

fn report(outcome: anyhow::Result<()>, failure: u8) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit status says it all the same.
            writeln!(io::stderr(), "error: {error:#}").ok();
            ExitCode::from(failure)
        }
    }
}
