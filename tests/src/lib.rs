//! What the process-level tests share: the real sidecar as a process, a stand-in control plane that speaks the
//! recorded protocol, upstreams that keep what they received, and clients.
//!
//! A test starts what it needs on port 0, sends requests with [`agent::Agent`] or with bytes of its own, and
//! asserts on what the upstream saw, never only on what came back.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

pub mod admission;
pub mod agent;
pub mod answering;
pub mod apiserver;
pub mod broker;
pub mod caller;
pub mod canary;
pub mod chart;
pub mod clients;
pub mod controlled;
pub mod forwarder;
pub mod guarded;
pub mod mount;
pub mod names;
pub mod operator;
pub mod policies;
pub mod raw;
pub mod route;
pub mod scene;
pub mod script;
pub mod sidecar;
pub mod tinyproxy;
pub mod tls;
pub mod turn;
pub mod upstream;
pub mod wait;
pub mod wire;

/// A connection id that tells its number: `00000000-0000-4000-8000-00000000002a` for 42.
pub fn connection(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// Cargo's target folder: this executable is `<target>/<profile>/deps/<name>` in it.
pub(crate) fn target() -> std::path::PathBuf {
    let executable = std::env::current_exe().unwrap();
    executable.ancestors().nth(3).unwrap().to_owned()
}
