//! Placeholder until the routes of admission are merged.

pub mod server;
