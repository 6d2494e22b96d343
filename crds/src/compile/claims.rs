//! Which namespace a connection belongs to: the one whose accepted route named it first.

use std::collections::HashMap;

use crate::compile::merge::Route;
use crate::grants::{ConnectionGrant, Grants};
use crate::names::ConnectionId;
use crate::status::{Problem, Reason};

#[derive(Default)]
pub(super) struct Claims(HashMap<ConnectionId, String>);

impl Claims {
    /// Claims every connection of a route, or none.
    pub(super) fn claim(&mut self, route: &Route, grants: &Grants) -> Result<(), Problem> {
        let Grants::Cluster(cluster) = grants else {
            return Ok(());
        };
        let shared = cluster.connections.get(&route.namespace);
        let ids = || {
            let entries = route.table.connections.iter().enumerate();
            entries.flat_map(|(index, connection)| {
                let first = [(index, "connectionId", connection.id)];
                let key = connection.key_id.map(|id| (index, "keyConnectionId", id));
                first.into_iter().chain(key)
            })
        };
        for (index, field, id) in ids() {
            let owner = self.0.get(&id);
            let taken = owner.is_some_and(|owner| *owner != route.namespace);
            if taken && !shared.is_some_and(|shared| ConnectionGrant::allows(shared, id)) {
                return Err(claimed(index, field, id));
            }
        }
        for (_, _, id) in ids() {
            self.0.entry(id).or_insert_with(|| route.namespace.clone());
        }
        Ok(())
    }
}

/// Does not say which namespace has it: that is nobody's business in this one.
fn claimed(index: usize, field: &str, id: ConnectionId) -> Problem {
    Problem::new(
        Reason::ConnectionClaimed,
        format!("spec.connections[{index}].{field}"),
        format!(
            "connection {id} belongs to another namespace; to share it, an administrator adds it to this \
             Namespace's annotation nexus.io/connections"
        ),
    )
}
