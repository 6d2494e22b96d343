//! What the stand-in knows and counts.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustls::server::ServerConfig;
use serde_json::Value;
use tokio::sync::watch;

use super::account::{Account, Issued};
use super::answer::{Answer, Reply};
use super::render::Saying;
use super::weather::{Outage, Weather};
use super::{Access, Front};

/// A call as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    /// A refresh, not a token call.
    pub refresh: bool,
    /// When it was complete.
    pub at: Instant,
    /// `X-API-Key`.
    pub api_key: Option<String>,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `X-Nexus-Rejected`.
    pub rejected: Option<String>,
    /// The client's certificate, in DER.
    pub client_certificate: Option<Vec<u8>>,
}

pub(super) struct State {
    pub(super) front: Front,
    pub(super) access: Mutex<Access>,
    pub(super) tls: Mutex<Option<Arc<ServerConfig>>>,
    pub(super) weather: Mutex<Option<Weather>>,
    pub(super) outage: watch::Sender<Outage>,
    /// The outage that the listener has taken note of; nothing before the first.
    pub(super) seen_outage: watch::Sender<Option<Outage>>,
    pub(super) observer: Mutex<Option<Box<Observer>>>,
    connections: Mutex<HashMap<String, Connection>>,
    max_in_flight: AtomicUsize,
}

/// Is told the connection and the call.
pub(super) type Observer = dyn Fn(&str, &Call) + Send;

#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) account: Option<Account>,
    pub(super) answer: Option<Answer>,
    pub(super) refresh: Option<Answer>,
    pub(super) token_script: VecDeque<Answer>,
    pub(super) refresh_script: VecDeque<Answer>,
    pub(super) calls: Vec<Call>,
    under_way: Vec<Arc<TcpStream>>,
    pub(super) max_in_flight: usize,
}

impl Connection {
    pub(super) fn count(&self, refresh: bool) -> usize {
        self.calls.iter().filter(|c| c.refresh == refresh).count()
    }

    /// Calls under way. A caller that has hung up is not waiting any more, even if its handler has not noticed yet.
    fn in_flight(&mut self) -> usize {
        self.under_way.retain(|socket| !has_hung_up(socket));
        self.under_way.len()
    }

    fn scripted(&mut self, refresh: bool) -> Option<Answer> {
        if refresh {
            self.refresh_script.pop_front()
        } else {
            self.token_script.pop_front()
        }
    }

    /// What a call gets that nothing else was said of.
    pub(super) fn fixed(&self, refresh: bool) -> Answer {
        let unknown = |message| Saying::refused(404, "connection_not_found", message);
        let answer = match (refresh, &self.answer) {
            (false, Some(answer)) => return answer.clone(),
            (false, None) => unknown("Connection not found"),
            (true, answer) => {
                if let Some(answer) = &self.refresh {
                    return answer.clone();
                }
                match answer.as_ref().map(|answer| &answer.reply) {
                    Some(Reply::Says(Saying::Credential { strategy, .. })) => {
                        not_refreshable(strategy)
                    }
                    _ => unknown("Connection not active or not found"),
                }
            }
        };
        Reply::Says(answer).into()
    }
}

fn not_refreshable(strategy: &Value) -> Saying {
    if strategy["type"] == "oauth2" {
        return Saying::refused(400, "no_refresh_token", "No refresh_token available");
    }
    let message = "This connection uses a static token and cannot be refreshed";
    Saying::refused(400, "static_token", message)
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("front", &self.front)
            .finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(front: Front, access: Access, tls: Option<Arc<ServerConfig>>) -> Self {
        Self {
            front,
            access: Mutex::new(access),
            tls: Mutex::new(tls),
            weather: Mutex::default(),
            outage: watch::Sender::default(),
            seen_outage: watch::Sender::default(),
            observer: Mutex::default(),
            connections: Mutex::default(),
            max_in_flight: AtomicUsize::new(0),
        }
    }

    pub(super) fn with<T>(&self, id: &str, act: impl FnOnce(&mut Connection) -> T) -> T {
        let mut connections = self.connections.lock().unwrap();
        if !connections.contains_key(id) {
            connections.insert(id.to_owned(), Connection::default());
        }
        act(connections.get_mut(id).expect("it was just put there"))
    }

    pub(super) fn max_in_flight(&self) -> usize {
        self.max_in_flight.load(Ordering::SeqCst)
    }

    fn count_in_flight(&self) {
        let mut connections = self.connections.lock().unwrap();
        let now = connections.values_mut().map(Connection::in_flight).sum();
        self.max_in_flight.fetch_max(now, Ordering::SeqCst);
    }

    /// # Panics
    ///
    /// When the connection has no provider behind it.
    pub(super) fn account<T>(&self, id: &str, act: impl FnOnce(&mut Account) -> T) -> T {
        self.with(id, |c| {
            act(c
                .account
                .as_mut()
                .expect("the connection has a provider behind it"))
        })
    }

    /// Waits until the listener acts by this outage.
    pub(super) async fn settled(&self, outage: Outage) {
        let mut seen = self.seen_outage.subscribe();
        seen.wait_for(|seen| *seen == Some(outage))
            .await
            .expect("the sender is in this value");
    }

    /// What this call is to get: its script, else chance, else what the connection itself says.
    pub(super) fn plan(&self, id: &str, refresh: bool) -> Answer {
        if let Some(answer) = self.with(id, |c| c.scripted(refresh)) {
            return answer;
        }
        let mut weather = self.weather.lock().unwrap();
        weather
            .as_mut()
            .and_then(|weather| weather.strike(refresh))
            .unwrap_or_else(Answer::genuine)
    }

    pub(super) fn issued(&self, token: &str) -> Option<Issued> {
        let connections = self.connections.lock().unwrap();
        connections
            .values()
            .filter_map(|c| c.account.as_ref())
            .find_map(|account| account.find(token).cloned())
    }

    /// Notes that a token answer was written to its end.
    pub(super) fn delivered(&self, id: &str, number: usize) {
        self.with(id, |c| {
            let account = c.account.as_mut();
            if let Some(issued) = account.and_then(|account| account.history.get_mut(number)) {
                issued.delivered.get_or_insert_with(Instant::now);
            }
        });
    }
}

/// Counts a call as under way while this lives.
pub(super) struct UnderWay<'a> {
    state: &'a State,
    id: &'a str,
    socket: Arc<TcpStream>,
}

impl<'a> UnderWay<'a> {
    pub(super) fn enter(state: &'a State, id: &'a str, call: Call, socket: Arc<TcpStream>) -> Self {
        if let Some(observer) = &*state.observer.lock().unwrap() {
            observer(id, &call);
        }
        state.with(id, |c| {
            c.calls.push(call);
            c.under_way.push(Arc::clone(&socket));
            c.max_in_flight = c.max_in_flight.max(c.in_flight());
        });
        state.count_in_flight();
        Self { state, id, socket }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.state.with(self.id, |c| {
            c.under_way
                .retain(|other| !Arc::ptr_eq(other, &self.socket));
        });
    }
}

/// True if there is an end of stream, an error, or a farewell of TLS to be read: callers do not send a request
/// before the answer to the last one.
fn has_hung_up(socket: &TcpStream) -> bool {
    !matches!(socket.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_peer_that_closed_or_reset_has_hung_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            server.set_nonblocking(true).unwrap();
            (client, server)
        };
        let (client, server) = pair();
        assert!(!has_hung_up(&server));
        drop(client);
        assert!(has_hung_up(&server));
        let (client, server) = pair();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(has_hung_up(&server));
    }
}
