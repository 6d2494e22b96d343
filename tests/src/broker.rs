//! A stand-in for the Nexus control plane on loopback: the REST gateway, the broker behind it or the gRPC
//! gateway's HTTP front.
//!
//! A connection either has a scripted answer ([`Broker::set`]) or an OAuth 2 provider behind it
//! ([`Broker::connect`]), whose tokens expire, rotate and are used up as they are with the running framework. Over
//! that go scripts for single calls, failures at random and outages. Scripted bytes go out as they are, so that a
//! recorded answer is answered as it was recorded.
//!
//! Everything is counted per connection id: calls of each kind, how many were under way at once, and every token
//! that was ever stored, with the times at which it was stored, delivered, superseded and expires.

mod account;
mod answer;
mod render;
mod serve;
mod state;
mod weather;

#[cfg(test)]
mod recordings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use rustls::server::ServerConfig;
use tokio::task::JoinHandle;

pub use account::{Issued, Provider, RefreshToken, Standing, Trouble};
pub use answer::Answer;
pub use state::Call;
pub use weather::{Failure, Outage};

use account::Account;
use serve::Address;
use state::State;
use weather::Weather;

/// A free port of 127.0.0.1.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Which of the framework's services is stood in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// The REST gateway: `/v1/token/{id}`, passes statuses on without a body.
    Gateway,
    /// The broker: `/connections/{id}/token`.
    Broker,
    /// The gRPC gateway's HTTP front: `/v1/token/{id}`, wraps the payload as `{"token": ...}`.
    Grpc,
}

/// What a caller has to show.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Value of `X-API-Key`, refused with the broker's 401 and 403.
    pub api_key: Option<String>,
    /// Bearer token, refused with the 401 of a check that a deployment puts in front.
    pub bearer: Option<String>,
}

/// The stand-in. It ends when it is dropped.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Broker {
    /// Starts a REST gateway.
    pub async fn gateway() -> Self {
        Self::start(Front::Gateway, None).await
    }

    /// Starts one of the services; a broker with a key answers 401 and 403 to who does not send it.
    pub async fn start(front: Front, api_key: Option<&str>) -> Self {
        let access = Access {
            api_key: api_key.map(str::to_owned),
            bearer: None,
        };
        Self::launch(LOOPBACK, front, access, None).await
    }

    /// Starts one of the services behind TLS.
    pub async fn secure(front: Front, tls: Arc<ServerConfig>) -> Self {
        Self::launch(LOOPBACK, front, Access::default(), Some(tls)).await
    }

    /// Starts one of the services behind TLS at an address, for others than tests of this machine.
    pub async fn serve(
        addr: SocketAddr,
        front: Front,
        access: Access,
        tls: Arc<ServerConfig>,
    ) -> Self {
        Self::launch(addr, front, access, Some(tls)).await
    }

    async fn launch(
        addr: SocketAddr,
        front: Front,
        access: Access,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = Address::reserve(addr);
        let addr = address.addr();
        let state = Arc::new(State::new(front, access, tls));
        let task = tokio::spawn(serve::accept(address, Arc::clone(&state)));
        state.settled(Outage::None).await;
        Self {
            addr,
            scheme,
            state,
            task,
        }
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Which service this is.
    pub fn front(&self) -> Front {
        self.state.front
    }

    /// What callers have to show from now on.
    pub fn require(&self, access: Access) {
        *self.state.access.lock().unwrap() = access;
    }

    /// The TLS side of connections that are accepted from now on.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) {
        *self.state.tls.lock().unwrap() = Some(tls);
    }

    /// Scripts the token answer of a connection.
    pub fn set(&self, id: &str, answer: Answer) {
        self.state.with(id, |c| c.answer = Some(answer));
    }

    /// Scripts the refresh answer of a connection.
    pub fn set_refresh(&self, id: &str, answer: Answer) {
        self.state.with(id, |c| c.refresh = Some(answer));
    }

    /// Puts a provider behind a connection, which has just been consented to.
    pub fn connect(&self, id: &str, provider: Provider) {
        self.state
            .with(id, |c| c.account = Some(Account::new(id, provider)));
    }

    /// The next token calls of a connection get these answers, each one once.
    pub fn script(&self, id: &str, answers: impl IntoIterator<Item = Answer>) {
        self.state.with(id, |c| c.token_script.extend(answers));
    }

    /// The next refresh calls of a connection get these answers, each one once.
    pub fn script_refresh(&self, id: &str, answers: impl IntoIterator<Item = Answer>) {
        self.state.with(id, |c| c.refresh_script.extend(answers));
    }

    /// The provider's next refresh without a trouble gets this one.
    pub fn trouble(&self, id: &str, trouble: Trouble) {
        self.account(id, |account| account.add_trouble(trouble));
    }

    /// Replaces the tokens of a connection as another replica's refresh or a new consent does.
    pub fn rotate(&self, id: &str) {
        self.account(id, Account::rotate);
    }

    /// The same, unless a refresh is under way, whose token the rotation would use up. True if it was done.
    pub fn rotate_between_refreshes(&self, id: &str) -> bool {
        self.account(id, |account| {
            let idle = !account.is_refreshing();
            if idle {
                account.rotate();
            }
            idle
        })
    }

    /// Moves a connection to another standing.
    pub fn set_standing(&self, id: &str, standing: Standing) {
        self.account(id, |account| account.standing = standing);
    }

    /// Where a connection stands.
    pub fn standing(&self, id: &str) -> Standing {
        self.account(id, |account| account.standing)
    }

    /// Lets this share of calls fail, in these ways. The same seed gives the same failures.
    pub fn unreliable(&self, seed: u64, rate: f64, kinds: &[Failure]) {
        *self.state.weather.lock().unwrap() = Some(Weather::new(seed, rate, kinds));
    }

    /// Ends the failures at random. What was counted stays.
    pub fn reliable(&self) {
        if let Some(weather) = &mut *self.state.weather.lock().unwrap() {
            weather.calm();
        }
    }

    /// How many calls failed at random, by kind.
    pub fn failures(&self) -> BTreeMap<String, usize> {
        let weather = self.state.weather.lock().unwrap();
        weather
            .as_ref()
            .map(|w| w.counts.clone())
            .unwrap_or_default()
    }

    /// Begins an outage, or ends it with [`Outage::None`]. Returns once it is so.
    pub async fn outage(&self, outage: Outage) {
        self.state.outage.send_replace(outage);
        self.state.settled(outage).await;
    }

    /// Tells `observer` the connection of every call and the call.
    pub fn observe(&self, observer: impl Fn(&str, &Call) + Send + 'static) {
        *self.state.observer.lock().unwrap() = Some(Box::new(observer));
    }

    /// Token calls of a connection so far.
    pub fn calls(&self, id: &str) -> usize {
        self.state.with(id, |c| c.count(false))
    }

    /// Refresh calls of a connection so far.
    pub fn refreshes(&self, id: &str) -> usize {
        self.state.with(id, |c| c.count(true))
    }

    /// Every call of a connection so far.
    pub fn log(&self, id: &str) -> Vec<Call> {
        self.state.with(id, |c| c.calls.clone())
    }

    /// The most calls of a connection, of either kind, that were under way at once.
    pub fn max_in_flight(&self, id: &str) -> usize {
        self.state.with(id, |c| c.max_in_flight)
    }

    /// The most calls of all connections together that were under way at once.
    pub fn max_in_flight_of_all(&self) -> usize {
        self.state.max_in_flight()
    }

    /// Every token that was stored for a connection.
    pub fn history(&self, id: &str) -> Vec<Issued> {
        self.account(id, |account| account.history.clone())
    }

    /// The token of a connection that is stored now.
    ///
    /// # Panics
    ///
    /// When there never was one.
    pub fn current(&self, id: &str) -> Issued {
        self.account(id, |account| account.history.last().cloned())
            .expect("a token was stored")
    }

    /// What is known of a token that somebody received.
    pub fn issued(&self, token: &str) -> Option<Issued> {
        self.state.issued(token)
    }

    /// When a token of the same connection that is newer than this one was first delivered.
    pub fn newer_delivered(&self, token: &str) -> Option<Instant> {
        let issued = self.issued(token)?;
        self.account(&issued.connection, |account| {
            let newer = &account.history[issued.number + 1..];
            newer.iter().filter_map(|issued| issued.delivered).min()
        })
    }

    fn account<T>(&self, id: &str, act: impl FnOnce(&mut Account) -> T) -> T {
        self.state.account(id, act)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}
