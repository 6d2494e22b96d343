//! What `dev` prints once it listens: lines to try, and what they show.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// A route, for the banner.
#[derive(Clone, Debug)]
pub(crate) struct RouteLine {
    /// Value of `X-Nexus-Provider`.
    pub(crate) provider: String,
    /// A tenant to name in the example, if the route has no connection without one.
    pub(crate) tenant: Option<String>,
    /// A path to try.
    pub(crate) path: String,
}

/// For the built-in routes.
pub(crate) fn built_in(proxy: SocketAddr) -> String {
    format!(
        "
The sidecar is up, with an echo upstream behind it. Try, from any shell:

  # a bearer token, which your request does not have
  curl -s -H 'X-Nexus-Provider: bearer' http://{proxy}/v1/me

  # an AWS signature (SigV4) over the body
  curl -s -X PUT --data-binary 'hello' http://{proxy}/via/aws/my-bucket/my-key

  # an API key in the query
  curl -s 'http://{proxy}/via/query/v1/search?q=rust'

The answers show what the upstream received. The agent (here: curl) can see that a credential was used and how. It
cannot see the credential, which is masked wherever it comes back, and it cannot choose the host it is sent to.
These credentials were made up for this run. An agent that runs as your own user could still read your files and
processes; in a cluster the sidecar is another user.

Your own APIs: nexus-sidecar dev --routes routes.yaml --credentials credentials.yaml
"
    )
}

/// For the user's routes.
pub(crate) fn own(proxy: SocketAddr, routes: &[RouteLine]) -> String {
    let mut text = String::from("\nThe sidecar is up. Call your APIs without their keys:\n\n");
    for route in routes {
        let RouteLine {
            provider,
            tenant,
            path,
        } = route;
        let tenant = tenant
            .as_ref()
            .map_or(String::new(), |tenant| format!("@{tenant}"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  curl -s http://{proxy}/via/{provider}{tenant}{path}"
        );
    }
    let _ = write!(
        text,
        "
or give an SDK the base URL http://{proxy}/via/PROVIDER, with what its usual one has behind the host. The agent sees the
answers, with credentials masked in them, and never a key. Changes to the files are picked up while this runs.
"
    );
    text
}

/// For whoever lets other sidecars ask here.
pub(crate) fn gateway(address: SocketAddr) -> String {
    let at = if address.ip().is_unspecified() {
        format!("THIS_HOST:{}", address.port())
    } else {
        address.to_string()
    };
    let insecure = if address.ip().is_loopback() {
        ""
    } else {
        " --allow-insecure-gateway"
    };
    format!(
        "
Other sidecars may ask here too: --gateway-url http://{at}{insecure} and --api-key-file with the same key.
Whoever has the key gets every credential, in clear text: for tests only.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curl_line_can_be_run_as_it_is() {
        let proxy: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let lines = |text: &str| -> Vec<String> {
            text.lines()
                .map(str::trim)
                .filter(|line| line.starts_with("curl "))
                .map(str::to_owned)
                .collect()
        };
        let built_in = lines(&built_in(proxy));
        assert_eq!(built_in.len(), 3);
        assert!(
            built_in
                .iter()
                .all(|line| line.contains("http://127.0.0.1:8080/"))
        );
        let route = RouteLine {
            provider: "github".into(),
            tenant: Some("t".into()),
            path: "/user".into(),
        };
        assert_eq!(
            lines(&own(proxy, &[route])),
            ["curl -s http://127.0.0.1:8080/via/github@t/user"]
        );
    }
}
