pub(crate) mod broker;
pub(crate) mod credentials;
pub(crate) mod echo;
pub(crate) mod vault;
