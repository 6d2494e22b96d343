//! Stands in for the real module: the record of one request.

pub mod writer;
