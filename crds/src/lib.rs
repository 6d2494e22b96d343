//! The contract that every Nexus process shares: objects -> `compile` -> table -> `Matcher`.
//!
//! Nothing here does I/O, reads a clock or needs an async runtime.

#![warn(missing_docs)]

pub mod access;
pub mod admitted;
pub mod compile;
pub mod grants;
pub mod header;
pub mod matcher;
pub mod names;
pub mod path;
pub mod provider;
pub mod route;
mod schema;
pub mod selector;
pub mod spec;
pub mod status;
pub mod strategy;
pub mod table;

pub use self::compile::{Compiled, compile};
pub use self::schema::custom_resource_definitions;
