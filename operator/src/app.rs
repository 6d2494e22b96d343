//! From the command line to a serving process: bind, start what runs beside each other, end when one of them does.

use crate::args::RunArgs;
use crate::telemetry;

/// Serves until the process is told to stop.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    telemetry::start(&args.log_level)?;
    anyhow::bail!("not wired yet")
}
