pub(crate) mod files;
pub mod problem;
pub(crate) mod yaml;
