//! The way to the server: its name, a connection, TLS, and that it is a registry which answers this machine.

use std::io::ErrorKind;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::{Problem, Verdict, chain};
use crate::client::{Client, Endpoint};

/// How long a name may take to resolve, a connection to be made, and `/v2/` to be answered: far beyond what each needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Host and port, as sockets want them.
fn address(server: &Endpoint) -> (String, u16) {
    let host = match server.url().host() {
        Some(url::Host::Domain(domain)) => domain.to_owned(),
        Some(url::Host::Ipv4(address)) => address.to_string(),
        Some(url::Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    };
    (host, server.url().port_or_known_default().unwrap_or_default())
}

pub(super) async fn resolve(server: &Endpoint) -> Verdict {
    let (host, port) = address(server);
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Verdict::Good(format!("{host} is an address"));
    }
    let reason = match timeout(PATIENCE, lookup_host((host.as_str(), port))).await {
        Ok(Ok(addresses)) => {
            let addresses: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
            return Verdict::Good(format!("{host} is {}", addresses.join(", ")));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    Verdict::Bad(Problem::new(
        format!("{host} does not resolve: {reason}"),
        "check the name in --server and this machine's resolver; a private hosted zone has to belong to this network",
    ))
}

pub(super) async fn connect(server: &Endpoint) -> Verdict {
    let (host, port) = address(server);
    let at = format!("{host} port {port}");
    let problem = match timeout(PATIENCE, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(stream)) => {
            let peer = stream.peer_addr().map_or_else(|_| at, |peer| peer.to_string());
            return Verdict::Good(format!("{peer} accepts connections"));
        }
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Problem::new(format!("nothing listens at {at}"), "start the cache there, or correct the port in --server")
        }
        Ok(Err(error)) => Problem::new(format!("{at}: {error}"), "check this machine's routes"),
        Err(_) => Problem::new(
            format!("{at} does not answer within {} s", PATIENCE.as_secs()),
            "something drops the packets: check security groups, network ACLs, firewalls and routes",
        ),
    };
    Verdict::Bad(problem)
}

impl Client {
    pub(super) async fn shake_hands(&self) -> Verdict {
        if self.server.is_plain() {
            return Verdict::Unknown("the endpoint is plain HTTP, which clients have to be told".into());
        }
        // Not HEAD, which not everything answers that may be there.
        match self.http.get(self.greeting()).timeout(PATIENCE).send().await {
            Err(error) if error.is_connect() => Verdict::Bad(certificate_problem(&chain(&error))),
            Err(error) if error.is_timeout() => Verdict::Bad(Problem::new(
                format!("no answer within {} s", PATIENCE.as_secs()),
                "check what terminates TLS there: it accepts the connection, and then says nothing",
            )),
            // Whatever comes after the handshake is of the next step.
            _ => Verdict::Good("its certificate is trusted here".into()),
        }
    }

    fn greeting(&self) -> String {
        format!("{}/v2/", self.server)
    }

    /// Asks for `/v2/`, which a cache answers whatever the state of its upstreams.
    pub(super) async fn greet(&self) -> Verdict {
        let url = self.greeting();
        let answer = match self.http.get(&url).timeout(PATIENCE).send().await {
            Ok(answer) => answer,
            Err(error) => {
                let fix = "check what listens there: it is no HTTP server, or it is overloaded";
                return Verdict::Bad(Problem::new(format!("{url} is not answered: {}", chain(&error)), fix));
            }
        };
        let status = answer.status();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
        let (api, kind) = (header("docker-distribution-api-version"), header(CONTENT_TYPE.as_str()));
        let problem = match status {
            StatusCode::OK if api.starts_with("registry/2") => {
                return Verdict::Good(format!("{url} answers as a registry"));
            }
            StatusCode::UNAUTHORIZED => Problem::new(
                format!("{url} asks for a login"),
                "a Stopover asks for none: this is another registry, or a proxy in front of it",
            ),
            StatusCode::FORBIDDEN => Problem::new(
                format!("{url} refuses this machine"),
                "add the address that it is seen by (of the NAT gateway, if there is one) to the parameter AllowedCidrs",
            ),
            status if status.is_redirection() => Problem::new(
                format!("{url} answers {status} to {}", header(LOCATION.as_str())),
                "give --server, and every client, the URL that it redirects to",
            ),
            status if status.is_server_error() => Problem::new(
                format!("{url} answers {status}"),
                "look into the log of the cache, or of the load balancer or API Gateway in front of it",
            ),
            status => Problem::new(
                format!("{url} is no registry: it answers {status} with {kind}"),
                "check host and port in --server; a proxy that answers in its place has to let it through",
            ),
        };
        Verdict::Bad(problem)
    }
}

/// What a failed handshake says of the certificate. The words are those of rustls, which has two for some of them.
fn certificate_problem(error: &str) -> Problem {
    let kinds = [
        (
            &["unknownissuer"][..],
            "its certificate comes from an authority that this machine does not know",
            "install the authority's certificate here and for each client (update-ca-certificates, then restart them)",
        ),
        (&["expired"], "its certificate has expired", "renew the certificate, or correct this machine's clock"),
        (&["notvalidyet", "not valid yet"], "its certificate is not valid yet", "correct this machine's clock"),
        (
            &["notvalidforname", "not valid for name"],
            "its certificate is for another name",
            "name a host in --server that the certificate has",
        ),
        (&["invalidcontenttype"], "it does not speak TLS", "give --server with http://, or have it speak TLS"),
    ];
    let said = error.to_ascii_lowercase();
    let known = kinds.iter().find(|(words, ..)| words.iter().any(|word| said.contains(word)));
    let (what, fix) =
        known.map_or(("the handshake fails", "check what terminates TLS there"), |(_, what, fix)| (*what, *fix));
    Problem::new(format!("{what} ({error})"), fix)
}
