//! A name server whose answers a test changes between two questions.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;

/// An authoritative name server (RFC 1035) for a few names with IPv4 addresses. It ends when it is dropped.
#[derive(Debug)]
pub struct NameServer {
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Zone {
    addresses: HashMap<String, Vec<Ipv4Addr>>,
    questions: Vec<String>,
}

impl NameServer {
    /// Serves on `addr`, over UDP.
    ///
    /// # Panics
    ///
    /// When the port is taken or not permitted.
    pub async fn start(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind(addr).await.unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let task = tokio::spawn(serve(socket, Arc::clone(&zone)));
        Self { zone, task }
    }

    /// What a name leads to from now on. Nobody may remember it (TTL 0).
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        let mut zone = self.zone.lock().unwrap();
        zone.addresses.insert(name.to_owned(), addresses.to_vec());
    }

    /// How often the IPv4 addresses of a name were asked for.
    pub fn questions(&self, name: &str) -> usize {
        let zone = self.zone.lock().unwrap();
        zone.questions.iter().filter(|asked| *asked == name).count()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let answer = answer(&buffer[..length], &mut zone.lock().unwrap());
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// The answer to a message with one question; `None` for anything else.
fn answer(message: &[u8], zone: &mut Zone) -> Option<Vec<u8>> {
    let (name, end) = question_name(message)?;
    let kind = u16::from_be_bytes(message.get(end..end + 2)?.try_into().ok()?);
    let question = message.get(HEADER..end + 4)?;
    let known = zone.addresses.get(&name);
    let addresses = match (kind, known) {
        (TYPE_A, Some(addresses)) => addresses.as_slice(),
        _ => &[],
    };
    // A response, authoritative, recursion available; `NXDOMAIN` for names that are not served.
    let flags: u16 = 0x8480 | if known.is_some() { 0 } else { 3 };
    let mut answer = message[..2].to_vec();
    let counts = [flags, 1, u16::try_from(addresses.len()).ok()?, 0, 0];
    answer.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    answer.extend_from_slice(question);
    for address in addresses {
        // The question's name, type A, class IN, TTL 0, four bytes.
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    if kind == TYPE_A {
        zone.questions.push(name);
    }
    Some(answer)
}

/// The name of the question, and where it ends.
fn question_name(message: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_with_the_addresses_of_the_moment() {
        let mut zone = Zone::default();
        zone.addresses
            .insert("a.example".to_owned(), vec![Ipv4Addr::new(1, 2, 3, 4)]);
        let ask = |name: &str, kind: u8| {
            let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                message.push(u8::try_from(label.len()).unwrap());
                message.extend_from_slice(label.as_bytes());
            }
            message.extend_from_slice(&[0, 0, kind, 0, 1]);
            message
        };
        let answered = answer(&ask("A.example", 1), &mut zone).unwrap();
        assert_eq!(answered[..8], [7, 7, 0x84, 0x80, 0, 1, 0, 1]);
        assert!(answered.ends_with(&[0, 0, 0, 0, 0, 4, 1, 2, 3, 4]));
        let no_ipv6 = answer(&ask("a.example", 28), &mut zone).unwrap();
        assert_eq!(no_ipv6[2..8], [0x84, 0x80, 0, 1, 0, 0]);
        let unknown = answer(&ask("b.example", 1), &mut zone).unwrap();
        assert_eq!(unknown[2..8], [0x84, 0x83, 0, 1, 0, 0]);
        assert_eq!(zone.questions, ["a.example", "b.example"]);
        assert_eq!(answer(&[0; 20], &mut zone).map(|a| a.len()), Some(17));
        assert_eq!(answer(&[1; 20], &mut zone), None);
    }
}
