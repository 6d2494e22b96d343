//! Logs: one JSON object a line on standard error.

use anyhow::Context;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `filter` is a level, or a list such as `info,nexus_operator=debug`.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let filter: Targets = filter.parse().with_context(|| {
        format!(
            "--log-level {filter:?}: give off, error, warn, info, debug, trace or target=level,..."
        )
    })?;
    tracing_subscriber::registry()
        .with(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr),
        )
        .with(filter)
        .try_init()
        .context("logging was started twice")
}
