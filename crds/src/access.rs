//! Access rules: which requests a route lets through.

use http::{HeaderMap, Method};

/// The compiled rules of one route. Glob sets are built at first use and shared by equal rule sets.
#[derive(Debug)]
pub struct Access {
    /// Rules only count and log what they would refuse.
    pub warn_only: bool,
}

/// What the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Full upstream path (base path included), as it is sent.
    pub path: &'a str,
    /// Raw query without `?`.
    pub query: Option<&'a str>,
    /// The agent's headers.
    pub headers: &'a HeaderMap,
}

impl Access {
    /// `true` if the request is allowed: some allow rule (if there are any) matches every reading of the
    /// path, and no deny rule matches any reading.
    pub fn allows(&self, _request: &AccessRequest<'_>) -> bool {
        unimplemented!()
    }
}
