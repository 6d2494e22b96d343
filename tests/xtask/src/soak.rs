//! The soak, against a release build or a given binary.

use std::path::PathBuf;

use crate::ci;
use crate::step::{cargo, run, step};

/// Builds the sidecar unless one is given, and runs the soak against it.
pub(crate) fn soak(minutes: u64, seed: u64, binary: Option<PathBuf>) -> anyhow::Result<()> {
    let binary = if let Some(binary) = binary {
        std::path::absolute(binary)?
    } else {
        ci::build_release()?;
        ci::release()
    };
    let (minutes, seed) = (minutes.to_string(), seed.to_string());
    step("soak", || {
        let arguments = [
            "run",
            "--quiet",
            "--package",
            "nexus-tests",
            "--bin",
            "soak",
        ];
        run(cargo(&arguments)
            .args(["--", "--minutes", &minutes, "--seed", &seed])
            .env("NEXUS_SIDECAR_BIN", &binary))
    })
}
