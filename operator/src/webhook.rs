//! Admission.

pub mod inject;
