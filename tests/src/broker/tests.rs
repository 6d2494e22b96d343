//! The stand-in's own behaviour, asked over its own wire.

mod faults;
mod fronts;
mod providers;

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::agent::{self, Agent};
use crate::connection;
use crate::raw;
use crate::tls::{Authority, Leaf};
use crate::wait;

const ID: &str = "00000000-0000-4000-8000-000000000001";
const FRONTS: [Front; 3] = [Front::Gateway, Front::Broker, Front::Grpc];

/// Asks as a sidecar does.
struct Caller {
    agent: Agent,
    front: Front,
}

impl Caller {
    fn of(broker: &Broker) -> Self {
        Self {
            agent: Agent::new(broker.addr),
            front: broker.front(),
        }
    }

    fn token_call(&self, id: &str) -> agent::Call {
        self.agent.get(&match self.front {
            Front::Broker => format!("/connections/{id}/token"),
            Front::Gateway | Front::Grpc => format!("/v1/token/{id}"),
        })
    }

    fn refresh_call(&self, id: &str) -> agent::Call {
        let path = match self.front {
            Front::Broker => format!("/connections/{id}/refresh"),
            Front::Gateway | Front::Grpc => format!("/v1/refresh/{id}"),
        };
        self.agent.post(&path, "")
    }

    async fn token(&self) -> agent::Answer {
        self.token_call(ID).send().await
    }

    async fn refresh(&self) -> agent::Answer {
        self.refresh_call(ID).send().await
    }

    /// The access token of a token call, which must succeed.
    async fn access_token(&self) -> String {
        let answer = self.token().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let payload = answer.json();
        let payload = payload.get("token").unwrap_or(&payload);
        payload["credentials"]["access_token"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

async fn broker_with(provider: Provider) -> (Broker, Caller) {
    let broker = Broker::start(Front::Broker, None).await;
    broker.connect(ID, provider);
    let caller = Caller::of(&broker);
    (broker, caller)
}

fn code(answer: &agent::Answer) -> (u16, String) {
    let code = answer.json()["error"].as_str().unwrap_or("").to_owned();
    (answer.status, code)
}

fn says(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}
