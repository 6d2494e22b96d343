//! The operator: NexusRoutes become route tables, and annotated pods get a sidecar.
//!
//! `main` parses [`args`] and runs [`app`]. Watches fill [`stores`]; the controller, which the Lease holder runs, turns
//! them into ConfigMaps and conditions; the webhook, which every replica serves, admits pods and our own objects.

pub mod admin;
pub mod app;
pub mod args;
mod compiler;
pub mod controller;
mod gateway;
pub mod lease;
pub mod metrics;
pub mod ready;
pub mod stores;
pub mod telemetry;
pub mod tls;
pub mod webhook;
