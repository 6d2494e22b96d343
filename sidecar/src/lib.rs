//! The sidecar as a library, so that its binary, the relay and the tests share one implementation.

pub mod check;
pub mod dev;
pub mod error;
pub mod manifest;
pub mod routes;
