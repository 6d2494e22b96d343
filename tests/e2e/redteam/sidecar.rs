//! Attacks on the sidecar from beside it, by what can be sent to it.

use super::Outcome::{Breach, Own, Refused};
use super::{Outcome, PLAIN, Scene, Table};
use crate::lab::SERVICES;

impl Scene {
    pub(super) fn attack_the_sidecar(&self, table: &mut Table) {
        let mut row = |what, outcome| table.row("sidecar", PLAIN, what, outcome);
        let reply = self.team.served(PLAIN, "/via/upstream@mine/echo");
        let outcome = match self.leaked(&format!("{reply:?}")) {
            Some(leak) => Breach(leak),
            None => Own("the echoed credential is masked".to_owned()),
        };
        row("have the upstream echo the credential", outcome);
        row(
            "name a tenant that is not the pod's",
            self.sidecar_says("tenant_forbidden", "/via/upstream@theirs/v1/me", &[]),
        );
        let header = format!("X-Nexus-Connection-ID: {}", self.theirs);
        row(
            "name another team's connection id",
            self.sidecar_says("connection_unknown", "/v1/me", &[&header]),
        );
        row(
            "an absolute URL of a host without a route, as through a proxy",
            self.raw_sidecar(
                &format!("GET http://other.{SERVICES}.svc/steal HTTP/1.1\\r\\nHost: other.{SERVICES}.svc\\r\\nX-Nexus-Tenant: mine\\r\\nConnection: close\\r\\n\\r\\n"),
                &["provider_unknown", "origin_forbidden", "provider_missing"],
            ),
        );
        row(
            "cloud metadata, as through a proxy",
            self.raw_sidecar(
                "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\nConnection: close\\r\\n\\r\\n",
                &["provider_unknown", "origin_forbidden", "provider_missing"],
            ),
        );
        row("another Host with the provider's name", self.host_stays());
        row(
            "a denied path, encoded twice",
            self.sidecar_says("request_denied", "/via/upstream@mine/%256beys/new", &[]),
        );
        row(
            "a denied path by dot segments",
            self.raw_sidecar(
                "GET /via/upstream@mine/a/../keys/new HTTP/1.1\\r\\nHost: localhost:8080\\r\\nConnection: close\\r\\n\\r\\n",
                &["request_denied", "bad_request"],
            ),
        );
        row("smuggle a request by two lengths", self.smuggle());
        row(
            "a tunnel through it (CONNECT)",
            self.raw_sidecar(
                "CONNECT gateway.services.svc:443 HTTP/1.1\\r\\nHost: gateway.services.svc:443\\r\\n\\r\\n",
                &["method_not_allowed"],
            ),
        );
        row(
            "secrets in /metrics, /healthz and /readyz",
            self.admin_port(),
        );
    }

    /// A request by the sidecar that has to be answered with this error of it.
    fn sidecar_says(&self, error: &str, url: &str, headers: &[&str]) -> Outcome {
        let reply = self.team.call_with(PLAIN, url, headers);
        if let Some(leak) = self.leaked(&format!("{reply:?}")) {
            return Breach(leak);
        }
        if reply.error() == error {
            Refused(format!("{} {error}", reply.status))
        } else {
            Breach(format!("{reply:?}"))
        }
    }

    /// What the sidecar answers to these bytes.
    fn raw(&self, request: &str) -> String {
        let attack = [
            "python3",
            "/tools/attack.py",
            "raw",
            "127.0.0.1",
            "8080",
            request,
        ];
        self.run(PLAIN, &attack).ok()
    }

    /// Bytes to the sidecar, and one of the answers that are fine.
    fn raw_sidecar(&self, request: &str, fine: &[&str]) -> Outcome {
        let said = self.raw(request);
        if let Some(leak) = self.leaked(&said) {
            return Breach(leak);
        }
        match fine.iter().find(|text| said.contains(**text)) {
            Some(text) => Refused((*text).to_owned()),
            None => Breach(said),
        }
    }

    /// Content-Length and Transfer-Encoding disagree about where the next request begins.
    fn smuggle(&self) -> Outcome {
        let request = "POST /via/upstream@mine/a HTTP/1.1\\r\\nHost: localhost:8080\\r\\nContent-Length: 40\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /keys/new HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n";
        let said = self.raw(request);
        if said.matches("HTTP/1.1 ").count() == 1 && said.contains("connection: close") {
            Own(
                "one request, and the rest of the connection is dropped (RFC 9112 section 6.3)"
                    .to_owned(),
            )
        } else {
            Breach(said)
        }
    }

    /// Whatever host the agent names, the request goes to the route's.
    fn host_stays(&self) -> Outcome {
        let request = "GET /v1/host HTTP/1.1\\r\\nHost: evil.example\\r\\nX-Forwarded-Host: evil.example\\r\\nX-Nexus-Provider: upstream\\r\\nX-Nexus-Tenant: mine\\r\\nConnection: close\\r\\n\\r\\n";
        let said = self.raw(request);
        if said.contains(r#""host":"upstream.services.svc""#) {
            Own("it goes to the route's own host".to_owned())
        } else if said.starts_with("HTTP/1.1 4") && said.contains("x-nexus-error: ") {
            Refused(said)
        } else {
            Breach(said)
        }
    }

    fn admin_port(&self) -> Outcome {
        let mut said = String::new();
        for path in ["metrics", "healthz", "readyz"] {
            let url = format!("http://127.0.0.1:9901/{path}");
            said += &self.team.call(PLAIN, &url).body;
        }
        match self.leaked(&said) {
            None if said.contains("nexus_") => {
                Refused("counters and names of routes only".to_owned())
            }
            _ => Breach(said),
        }
    }
}
