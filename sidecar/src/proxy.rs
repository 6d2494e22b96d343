//! Stands in for the real module: the proxy of one request.

pub mod links;
pub mod scrub;
