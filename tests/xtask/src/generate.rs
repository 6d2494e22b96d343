//! Files made from the types.

/// Writes the generated files, or with `check` says whether they are up to date.
#[expect(clippy::unnecessary_wraps, reason = "nothing is generated yet")]
pub(crate) fn run(_check: bool) -> anyhow::Result<()> {
    Ok(())
}
