//! The soak, against a release build or a given binary.

use std::path::PathBuf;

use crate::ci;
use crate::images::product;
use crate::step::{cargo, command, run, step, target};

/// Builds the sidecar unless one is given, and runs the soak against it.
pub(crate) fn soak(minutes: u64, seed: u64, binary: Option<PathBuf>) -> anyhow::Result<()> {
    let binary = if let Some(binary) = binary {
        std::path::absolute(binary)?
    } else {
        ci::release(&product::SIDECAR)?
    };
    // As the tests are built: alone, its dependencies would be built once more with other features.
    let build = ["build", "--workspace", "--bin", "soak"];
    step("soak build", || run(&mut cargo(&build)))?;
    let (minutes, seed) = (minutes.to_string(), seed.to_string());
    let arguments = ["--minutes", &minutes, "--seed", &seed];
    step("soak", || {
        run(command(target().join("debug/soak"), &arguments).env("NEXUS_SIDECAR_BIN", &binary))
    })
}
