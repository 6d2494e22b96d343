//! What to leave out of a table that is too large to be published.
//!
//! The controller calls it with a namespace's table before it writes the ConfigMap. What is left out stays accepted: the
//! object is sound, its namespace has no room for it (`Programmed=False`, `TableTooLarge`).

use std::borrow::Borrow;
use std::collections::BTreeMap;

use kube::ResourceExt;

use crate::compile::merge::{self, Route};
use crate::compile::{Accepted, by_age, provider_name};
use crate::grants::Grants;
use crate::provider::NexusProvider;
use crate::route::NexusRoute;
use crate::table::{RouteTable, TableError, TableRoute};

/// Largest wire form, in bytes, to put into a ConfigMap. The API server counts the values of `data` and `binaryData`
/// together, unencoded and without keys and metadata, and takes 1 MiB; the rest is left for a second, small value and
/// for a revision and a hash that compress a little worse than those that were tried.
pub const CONFIG_MAP_LIMIT: usize = 1024 * 1024 - 16 * 1024;

/// A table that can be published.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The table, with the hash of what is left. Its revision is that of the table given: the caller sets the next.
    pub table: RouteTable,
    /// Places, in the list of routes given, of those that are left out; ascending. Empty if all of them fit.
    pub left_out: Vec<usize>,
}

/// Leaves out the newest routes until a namespace's table has at most `limit` bytes in this format.
///
/// `table` is the table of the namespace as [`compile`](crate::compile()) made it, with everything set that is to be
/// published; `routes` are the routes of the namespace that were accepted, in any order but with [`Grants::Local`], and
/// `providers` and `grants` those that were compiled with. Routes that were merged are left out one by one. A route that
/// is too large by itself is left out, however old it is, and does not take the others with it.
///
/// The result depends on the objects only. Costs nothing beside one encoding as long as everything fits.
pub fn fit<R: Borrow<NexusRoute>, P: Borrow<NexusProvider>>(
    table: RouteTable,
    routes: &[R],
    providers: &[P],
    grants: &Grants,
    format: u32,
    limit: usize,
) -> Result<Fitted, TableError> {
    if table.fits(format, limit)? {
        return Ok(Fitted {
            table,
            left_out: Vec::new(),
        });
    }
    let merged = merge_all(routes, providers);
    let mut attempt = Attempt {
        table,
        format,
        limit,
    };
    let mut oldest = by_age(routes, grants);
    let mut too_large = Vec::new();
    let together = |oldest: &[usize]| assemble(oldest.iter().map(|index| &merged[*index]));
    let mut fitting = 0;
    loop {
        // The first `fitting` fit, and no more than `most` do.
        let mut most = oldest.len();
        while fitting < most {
            let count = fitting + (most - fitting).div_ceil(2);
            if attempt.fits(together(&oldest[..count]))? {
                fitting = count;
            } else {
                most = count - 1;
            }
        }
        let Some(next) = oldest.get(fitting).copied() else {
            break;
        };
        if attempt.fits(together(&[next]))? {
            break;
        }
        too_large.push(oldest.remove(fitting));
    }
    let mut left_out = [&too_large, &oldest[fitting..]].concat();
    left_out.sort_unstable();
    let mut table = attempt.table;
    table.routes = together(&oldest[..fitting]);
    table.hash = table.content_hash();
    Ok(Fitted { table, left_out })
}

fn merge_all<R: Borrow<NexusRoute>, P: Borrow<NexusProvider>>(
    routes: &[R],
    providers: &[P],
) -> Vec<Route> {
    let mut known = BTreeMap::new();
    for provider in providers.iter().map(Borrow::borrow) {
        known.entry(provider.name_any()).or_insert(provider);
    }
    let routes = routes.iter().map(Borrow::borrow);
    routes
        .map(|route| merge::route(route, known.get(provider_name(route)).copied()))
        .collect()
}

/// The routes of a table, from accepted ones, oldest first. Neither grants nor the routes of other namespaces matter any
/// more, and without newer routes or those of other selectors the older ones stay what they are.
fn assemble<'a>(routes: impl Iterator<Item = &'a Route>) -> Vec<TableRoute> {
    let mut accepted = Accepted::default();
    for route in routes {
        let added = accepted.add(route, &Grants::Local);
        debug_assert!(added.is_ok(), "the routes given were accepted");
    }
    accepted
        .routes
        .into_iter()
        .map(|(_, route)| route)
        .collect()
}

/// The table with other routes, to see whether it fits.
struct Attempt {
    table: RouteTable,
    format: u32,
    limit: usize,
}

impl Attempt {
    fn fits(&mut self, routes: Vec<TableRoute>) -> Result<bool, TableError> {
        self.table.routes = routes;
        self.table.fits(self.format, self.limit)
    }
}

#[cfg(test)]
mod tests;
