//! Pods on their way through a real API server with its default admission plugins: what is asserted is the pod that is
//! stored, since plugins and other webhooks change it after ours.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forged;
mod namespaces;
mod refusals;
mod reinvocation;
mod scene;
mod workloads;
