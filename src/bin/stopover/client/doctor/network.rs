//! The way to the server: its name resolves, it accepts connections, TLS works, and it is a registry that answers this
//! machine.

use std::io::ErrorKind;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::head::renamed;
use super::{Problem, Verdict, chain};
use crate::client::session::asks_for_login;
use crate::client::{Client, Endpoint};

/// How long a name may take to resolve, a connection to open, and `/v2/` to answer: far longer than each needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to correct the proxies that the environment names.
const VARIABLES: &str = "https_proxy, http_proxy or all_proxy, or add the server to no_proxy";

/// The end of a connection: the server, or a proxy that the environment names for it.
pub(super) struct Way {
    host: String,
    port: u16,
    /// The server behind the proxy. `None`: there is no proxy.
    behind: Option<String>,
}

impl Way {
    pub(super) fn to(server: &Endpoint) -> anyhow::Result<Self> {
        let uri = server.to_string().parse()?;
        let proxy = Matcher::from_system().intercept(&uri).filter(|_| !server.is_here());
        let Some(proxy) = proxy else {
            let port = server.url().port_or_known_default().unwrap_or_default();
            return Ok(Self { host: socket_host(server.url().host_str()), port, behind: None });
        };
        let known = match proxy.uri().scheme_str() {
            Some("https") => 443,
            Some("http") => 80,
            _ => 1080,
        };
        let port = proxy.uri().port_u16().unwrap_or(known);
        Ok(Self { host: socket_host(proxy.uri().host()), port, behind: Some(server.to_string()) })
    }

    /// Says that the connection is to a proxy, if it is.
    fn note(&self) -> String {
        let note = |server| format!("; it is the proxy that this environment names for {server}");
        self.behind.as_ref().map(note).unwrap_or_default()
    }

    /// What is wrong with a connection to this host.
    fn unreachable(&self, what: &str, fix: &str) -> Verdict {
        let fix = if self.behind.is_some() { format!("correct {VARIABLES}") } else { fix.to_owned() };
        Verdict::Bad(Problem::new(format!("{what}{}", self.note()), fix))
    }

    /// What is wrong with an answer, which a proxy may have caused.
    fn answered(&self, Problem { what, fix }: Problem) -> Verdict {
        let or = self.behind.as_ref().map(|_| format!("; if the proxy answers in its place, correct {VARIABLES}"));
        Verdict::Bad(Problem::new(format!("{what}{}", self.note()), fix + &or.unwrap_or_default()))
    }
}

/// A host in the form for sockets: an IPv6 address without brackets.
fn socket_host(host: Option<&str>) -> String {
    host.unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned()
}

pub(super) async fn resolve(way: &Way) -> Verdict {
    let Way { host, port, .. } = way;
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Verdict::Good(format!("{host} is an address{}", way.note()));
    }
    let reason = match timeout(PATIENCE, lookup_host((host.as_str(), *port))).await {
        Ok(Ok(addresses)) => {
            let addresses: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
            return Verdict::Good(format!("{host} is {}{}", addresses.join(", "), way.note()));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    way.unreachable(
        &format!("{host} does not resolve: {reason}"),
        "check the name in --server and this machine's resolver; a private hosted zone has to belong to this network",
    )
}

pub(super) async fn connect(way: &Way) -> Verdict {
    let Way { host, port, .. } = way;
    let at = format!("{host} port {port}");
    match timeout(PATIENCE, TcpStream::connect((host.as_str(), *port))).await {
        Ok(Ok(stream)) => {
            let peer = stream.peer_addr().map_or_else(|_| at, |peer| peer.to_string());
            Verdict::Good(format!("{peer} accepts connections{}", way.note()))
        }
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => way
            .unreachable(&format!("nothing listens at {at}"), "start the cache there, or correct the port in --server"),
        Ok(Err(error)) => way.unreachable(&format!("{at}: {error}"), "check this machine's routes"),
        Err(_) => way.unreachable(
            &format!("{at} does not answer within {} s", PATIENCE.as_secs()),
            "something drops the packets: check security groups, network ACLs, firewalls and routes",
        ),
    }
}

impl Client {
    pub(super) async fn shake_hands(&self, way: &Way) -> Verdict {
        if self.server.is_plain() {
            return Verdict::Unknown("the endpoint is plain HTTP, which clients have to be told".into());
        }
        // GET, because not every server answers HEAD.
        match self.http.get(self.greeting()).timeout(PATIENCE).send().await {
            Err(error) if error.is_connect() => way.answered(certificate_problem(&chain(&error))),
            Err(error) if error.is_timeout() => way.answered(Problem::new(
                format!("no answer within {} s", PATIENCE.as_secs()),
                "check what terminates TLS there: it accepts the connection, and then says nothing",
            )),
            // What fails after the handshake belongs to the next step.
            _ => Verdict::Good("its certificate is trusted here".into()),
        }
    }

    fn greeting(&self) -> String {
        format!("{}/v2/", self.server)
    }

    /// Asks for `/v2/`, which a cache answers whatever the state of its upstreams.
    pub(super) async fn greet(&self, way: &Way) -> Verdict {
        let url = self.greeting();
        let mut answer = self.http.get(&url).timeout(PATIENCE).send().await;
        if let Some(problem) = answer.as_ref().ok().and_then(|answer| renamed(answer.headers())) {
            return way.answered(problem);
        }
        if let Ok(challenged) = &answer
            && asks_for_login(challenged)
        {
            if let Err(error) = self.log_in(challenged).await {
                let fix = "give this command a login that [access] of the cache lets in; clients get theirs with `docker \
                           login` and the like, `stopover login`, or a credential helper";
                return way.answered(Problem::new(format!("{error:#}"), fix));
            }
            answer = self.authorized(self.http.get(&url)).timeout(PATIENCE).send().await;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let fix = "check what listens there: it is no HTTP server, or it is overloaded";
                return way.answered(Problem::new(format!("{url} is not answered: {}", chain(&error)), fix));
            }
        };
        let status = answer.status();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
        let (api, kind) = (header("docker-distribution-api-version"), header(CONTENT_TYPE.as_str()));
        let (what, fix) = match status {
            StatusCode::OK if answer.headers().contains_key("x-stopover") => {
                return Verdict::Good(format!("{url} answers as a Stopover{}", way.note()));
            }
            StatusCode::OK if api.starts_with("registry/2") => (
                format!("{url} is a registry, but no Stopover: it has no X-Stopover"),
                "check --server: it has to be the cache itself, and what is in front of it has to pass that header on",
            ),
            StatusCode::UNAUTHORIZED => (
                format!("{url} asks for a login that is none of a Stopover"),
                "check --server: this is another registry, or a proxy in front of it",
            ),
            StatusCode::FORBIDDEN => (
                format!("{url} refuses this machine"),
                "have `anonymous` in [access] of its stopover.toml name the address that it is seen by, or have it log in",
            ),
            status if status.is_redirection() => (
                format!("{url} answers {status} to {}", header(LOCATION.as_str())),
                "give --server, and every client, the URL that it redirects to",
            ),
            status if status.is_server_error() => (
                format!("{url} answers {status}"),
                "look into the log of the cache, or of the load balancer or API Gateway in front of it",
            ),
            status => (
                format!("{url} is no registry: it answers {status} with {kind}"),
                "check host and port in --server; a proxy that answers in its place has to let it through",
            ),
        };
        way.answered(Problem::new(what, fix))
    }
}

/// What a failed handshake says of the certificate. The words are those of rustls, which has two for some causes.
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
