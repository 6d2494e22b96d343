//! The `nexus-operator` command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use nexus_operator::app;
use nexus_operator::args::{Cli, Command};

/// Wrong usage or configuration, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let Command::Run(args) = Cli::parse().command;
    match app::run(*args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit status says it all the same.
            writeln!(io::stderr(), "error: {error:#}").ok();
            ExitCode::from(USAGE)
        }
    }
}
