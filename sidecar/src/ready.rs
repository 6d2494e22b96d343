//! What `/readyz` says: whether the process serves, and with which routes.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// The state of the route table, as `/readyz` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableState {
    /// The listeners are bound and the routes were read once.
    pub ready: bool,
    /// Revision that serves; absent before the first table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Hash of the table that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Routes that serve.
    pub routes: usize,
    /// Why the newest table could not be used; the one above serves on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Shared between the loader and the admin endpoint.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<TableState>);

impl Readiness {
    /// What to show now.
    pub fn state(&self) -> TableState {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut TableState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
