//! Admission.

pub mod inject;
pub mod server;
