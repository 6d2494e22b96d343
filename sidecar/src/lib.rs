//! The sidecar as a library, so that its binary, the relay and the tests share one implementation.

pub mod admin;
pub mod app;
pub mod args;
pub mod check;
pub mod credential;
pub mod dev;
pub mod drain;
pub mod error;
pub mod hardening;
pub mod identity;
pub mod limiter;
pub mod manifest;
pub mod metrics;
pub mod probe;
pub mod proxy;
pub mod ready;
pub mod record;
pub mod routes;
pub mod run;
pub mod server;
pub mod sign;
pub mod telemetry;
pub mod upstream;
