pub(crate) mod credentials;
pub(crate) mod echo;
