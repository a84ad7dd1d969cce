//! Which hosts requests may go to. Upstreams choose redirect targets; they must not choose hosts in the operator's
//! network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::Result;
use crate::config::UpstreamConfig;
use crate::errors::UpstreamError;
use crate::values::crypto::http_client;
use crate::values::text::excerpt;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// HTTP clients: some for origins that the operator named, some that connect to public addresses only.
pub(super) struct Clients {
    named: Made,
    public: Made,
    /// The hosts of the proxies that the environment names.
    proxies: Vec<String>,
}

/// Where a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Named,
    Public,
}

/// Clients that are made with the first request of each: one reads the certificates of the system, which takes longer than
/// all else that a function does as it starts.
#[derive(Default)]
struct Made {
    kept: OnceLock<reqwest::Client>,
    /// Without kept connections.
    anew: OnceLock<reqwest::Client>,
}

impl Clients {
    pub(super) fn new() -> Self {
        let proxies = proxies(|variable| std::env::var(variable).ok());
        Self { named: Made::default(), public: Made::default(), proxies }
    }

    fn client(&self, reach: Reach, keeps: bool) -> Result<&reqwest::Client> {
        let made = if reach == Reach::Named { &self.named } else { &self.public };
        let made = if keeps { &made.kept } else { &made.anew };
        if let Some(client) = made.get() {
            return Ok(client);
        }
        let mut builder = http_client()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http1_only()
            .user_agent(concat!("stopover/", env!("CARGO_PKG_VERSION")));
        if reach == Reach::Public {
            builder = builder.dns_resolver(PublicOnly { look_up, proxies: self.proxies.clone() });
        }
        if !keeps {
            builder = builder.pool_max_idle_per_host(0);
        }
        let client = builder.build();
        let client = client.map_err(|error| UpstreamError::Invalid(format!("no HTTP client: {error:?}")))?;
        Ok(made.get_or_init(|| client))
    }

    /// Sends a GET or a HEAD, where [`Self::reach_of`] allows it. A connection that was kept may be closed as the
    /// request goes out on it: then it is sent once more, on a new one (RFC 9110, section 9.2.2).
    pub(super) async fn send(&self, request: reqwest::Request, upstream: &UpstreamConfig) -> Result<reqwest::Response> {
        let reach = self.reach_of(request.url(), upstream)?;
        let again = request.try_clone();
        match (self.client(reach, true)?.execute(request).await, again) {
            (Err(error), Some(again)) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                Ok(self.client(reach, false)?.execute(again).await?)
            }
            (sent, _) => Ok(sent?),
        }
    }

    /// What the client reaches that may fetch `url` on behalf of an upstream, or why none may.
    pub(super) fn reach_of(&self, url: &Url, upstream: &UpstreamConfig) -> Result<Reach> {
        let refused = |why: &str| UpstreamError::Invalid(format!("it led to {}, {why}", origin(url)));
        let host = url.host().ok_or_else(|| refused("which has no host"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("with credentials in the URL"));
        }
        // Another port or scheme of the same host is another server, which the operator has not named.
        let named = is_named(url, upstream) || upstream.trusted_hosts.iter().any(|trusted| is_host(url, trusted));
        match url.scheme() {
            "http" | "https" if named => return Ok(Reach::Named),
            "https" => {}
            _ => return Err(refused("which is not https; name its host in trusted_hosts if it is meant")),
        }
        if self.proxies.iter().any(|proxy| Some(proxy.as_str()) == url.host_str()) {
            return Err(refused("which is our proxy"));
        }
        // A literal address never reaches the resolver.
        let literal = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        match literal {
            Some(address) if !is_public(address) => {
                Err(refused("which is not a public address; name it in trusted_hosts if it is meant"))
            }
            _ => Ok(Reach::Public),
        }
    }

    /// Whether a client may be sent to `url`, which is judged as if we went there. Where a proxy connects for us, its
    /// names may be unknown here.
    pub(super) async fn may_send_to(&self, url: &Url, upstream: &UpstreamConfig) -> Result<()> {
        let public = self.reach_of(url, upstream)? == Reach::Public;
        if let Some(Host::Domain(host)) = url.host()
            && public
            && self.proxies.is_empty()
            && let Ok(name) = host.parse()
        {
            let resolved = PublicOnly { look_up, proxies: Vec::new() }.resolve(name);
            let resolved = resolved.await.map_err(|error| error.to_string());
            resolved.map(drop).map_err(|reason| UpstreamError::Elsewhere { silent: true, reason })?;
        }
        Ok(())
    }
}

/// The hosts of the proxies that the environment names, as [`reqwest`] reads it.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let named = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let named = named.into_iter().filter_map(variable).filter_map(|text| {
        let url = if text.contains("://") { Url::parse(&text) } else { Url::parse(&format!("http://{text}")) };
        url.ok()?.host_str().map(str::to_ascii_lowercase)
    });
    named.collect()
}

/// Whether `url` leads to an upstream itself, or to what may issue tokens for it.
pub(super) fn is_named(url: &Url, upstream: &UpstreamConfig) -> bool {
    let mut named = std::iter::once(&upstream.url).chain(&upstream.token_realms);
    named.any(|known| known.origin() == url.origin())
}

/// Whether `text`, a host or `host:port`, is where `url` leads.
pub(super) fn is_host(url: &Url, text: &str) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    text == host || url.port_or_known_default().is_some_and(|port| text == format!("{host}:{port}"))
}

/// Scheme, host and port: the only part of a URL that may be logged, because paths and queries can carry signatures.
pub(super) fn origin(url: &Url) -> String {
    excerpt(&url.origin().ascii_serialization())
}

/// Resolves names to public addresses only. The check is in the resolver of the HTTP client, so the checked address is
/// the one that is connected to, and a name that is rebound is checked again.
#[derive(Clone)]
struct PublicOnly<L> {
    look_up: L,
    /// These may have any address: they connect for us.
    proxies: Vec<String>,
}

async fn look_up(name: Name) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect())
}

impl<L, F> Resolve for PublicOnly<L>
where
    L: Fn(Name) -> F + Send + Sync,
    F: Future<Output = std::io::Result<Vec<SocketAddr>>> + Send + 'static,
{
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let trusted = self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(&host));
        let looked_up = (self.look_up)(name);
        Box::pin(async move {
            let mut addresses = looked_up.await?;
            addresses.retain(|address| trusted || is_public(address.ip()));
            if addresses.is_empty() {
                return Err(format!("{host} has no public address").into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Neither loopback, private, link-local (169.254.169.254 serves cloud credentials), shared, multicast nor otherwise
/// reserved (IANA special-purpose registries). An IPv4 address embedded in an IPv6 one is checked as IPv4.
fn is_public(address: IpAddr) -> bool {
    let v4 = |address: Ipv4Addr| {
        let [first, second, third, _] = address.octets();
        !(address.is_private()
            || address.is_loopback()
            || address.is_link_local()
            || address.is_multicast()
            || address.is_documentation()
            || first == 0
            || first >= 240
            || (first == 100 && (64..128).contains(&second))
            || (first == 192 && second == 0 && third == 0)
            || (first == 198 && (18..20).contains(&second)))
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => {
            let segments = address.segments();
            let embedded = || {
                let [.., high, low] = segments;
                Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
            };
            match segments {
                // IPv4-mapped, IPv4-compatible (with :: and ::1) and NAT64 addresses.
                [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => v4(embedded()),
                // 6to4 embeds the IPv4 address right after the prefix.
                [0x2002, high, low, ..] => v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
                // Otherwise only 2000::/3 is global, except protocol (Teredo embeds IPv4 addresses) and documentation
                // ranges.
                [0x2001, second, ..] => second >= 0x0200 && second != 0x0db8,
                [first, ..] => first & 0xe000 == 0x2000 && first != 0x3fff,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cold, Config};

    fn hub() -> UpstreamConfig {
        let config = Config::load(None, Cold::Redirect, |secret| secret.read(|_| None)).unwrap();
        UpstreamConfig::clone(&config.upstreams["docker.io"])
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn only_public_addresses_are_public() {
        for text in ["1.1.1.1", "52.216.1.1", "2600:1f18::1", "::ffff:1.1.1.1", "2001:4860:4860::8888"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::a9fe:a9fe",
            "3fff::1",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b:1::a9fe:a9fe",
            "fec0::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    /// The answers to successive lookups of a name.
    fn answers(lists: &[&[&str]]) -> impl Fn(Name) -> std::future::Ready<std::io::Result<Vec<SocketAddr>>> + use<> {
        let lists = lists.iter().rev().map(|list| list.iter().map(|text| text.parse().unwrap()).collect());
        let lists = std::sync::Mutex::new(lists.collect::<Vec<_>>());
        move |_| std::future::ready(Ok(lists.lock().unwrap().pop().expect("it is looked up once for each connection")))
    }

    #[tokio::test]
    async fn a_name_that_is_bound_anew_to_a_private_address_is_refused() {
        let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let private = inside.local_addr().unwrap().to_string();
        let look_up = answers(&[&["1.1.1.1:0"], &[&private, "1.1.1.1:0", "[fd00:ec2::254]:0"], &[&private]]);
        let resolver = PublicOnly { look_up, proxies: vec!["proxy.test".into()] };
        for _ in 0..2 {
            let found: Vec<SocketAddr> = resolver.resolve("rebound.test".parse().unwrap()).await.unwrap().collect();
            assert_eq!(found, ["1.1.1.1:0".parse().unwrap()]);
        }
        let client = http_client().no_proxy().dns_resolver(resolver).build().unwrap();
        let url = format!("http://rebound.test:{}/", inside.local_addr().unwrap().port());
        let error = client.get(url).send().await.unwrap_err();
        assert!(format!("{error:?}").contains("rebound.test has no public address"), "{error:?}");
        let connection = tokio::time::timeout(Duration::ZERO, inside.accept()).await;
        assert!(connection.is_err(), "somebody has connected");
    }

    /// Reported of pelagos (#202): a load balancer closes a kept connection as the next request goes out on it.
    #[tokio::test]
    async fn a_request_on_a_kept_connection_that_is_closed_is_sent_again() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url(&format!("http://{}", listener.local_addr().unwrap()));
        let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&connections);
        let balancer = tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    _ = connection.read(&mut head).await.unwrap();
                    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    // The next request is read, and not answered.
                    _ = connection.read(&mut head).await;
                });
            }
        });
        let (clients, upstream) = (Clients::new(), UpstreamConfig { url: url.clone(), ..hub() });
        for _ in 0..8 {
            let answer = clients.send(reqwest::Request::new(http::Method::GET, url.clone()), &upstream).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.bytes().await.unwrap();
        }
        balancer.abort();
        assert!(connections.load(std::sync::atomic::Ordering::Relaxed) > 1);
    }

    #[tokio::test]
    async fn a_proxy_is_known_by_name_and_is_no_target() {
        let variable = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://user:secret@Proxy.Test:3128/".to_owned()),
            "all_proxy" => Some("other.test:1080".to_owned()),
            _ => None,
        };
        let named = proxies(variable);
        assert_eq!(named, ["proxy.test", "other.test"]);
        let resolver = PublicOnly { look_up: answers(&[&["10.0.0.1:0"], &["10.0.0.1:0"]]), proxies: named.clone() };
        assert_eq!(resolver.resolve("proxy.test".parse().unwrap()).await.unwrap().count(), 1);
        assert!(resolver.resolve("target.test".parse().unwrap()).await.is_err());
        let clients = Clients { proxies: named, ..Clients::new() };
        assert!(clients.reach_of(&url("https://proxy.test/"), &hub()).is_err());
        assert!(clients.reach_of(&url("https://cdn.test/"), &hub()).is_ok());
    }

    #[tokio::test]
    async fn clients_are_sent_to_public_addresses_only() {
        let clients = Clients { proxies: Vec::new(), ..Clients::new() };
        for text in ["https://localhost/", "https://127.0.0.1/", "https://user:pw@1.1.1.1/", "http://1.1.1.1/"] {
            assert!(clients.may_send_to(&url(text), &hub()).await.is_err(), "{text}");
        }
        assert_eq!(clients.may_send_to(&url("https://1.1.1.1/blob"), &hub()).await, Ok(()));
        let trusting = UpstreamConfig { trusted_hosts: vec!["localhost".into()], ..hub() };
        assert_eq!(clients.may_send_to(&url("https://localhost/"), &trusting).await, Ok(()));
    }

    #[test]
    fn redirects_stay_out_of_the_operators_network() {
        let (clients, hub) = (Clients::new(), hub());
        let allowed = |text: &str, upstream: &UpstreamConfig| clients.reach_of(&url(text), upstream).is_ok();
        assert!(allowed("https://production.cloudflare.docker.com/blob?verify=1", &hub));
        for text in [
            "http://production.cloudflare.docker.com/blob",
            "https://127.0.0.1/",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://user:secret@cdn.example/",
            "file:///etc/passwd",
            "https://2130706433/",
        ] {
            assert!(!allowed(text, &hub), "{text}");
        }
        let named = UpstreamConfig { url: url("https://reg.test"), ..hub.clone() };
        assert!(allowed("https://reg.test:443/blob", &named));
        assert!(!allowed("http://reg.test/blob", &named), "the scheme is another one");
        let public = |text: &str| clients.reach_of(&url(text), &named).unwrap() == Reach::Public;
        assert!(!public("https://reg.test/blob"));
        assert!(public("https://reg.test:8443/blob"), "another port may be another machine");
        let mut local = UpstreamConfig { url: url("http://127.0.0.1:5001"), ..hub };
        assert!(allowed("http://127.0.0.1:5001/cdn", &local));
        assert!(!allowed("http://127.0.0.1:9000/cdn", &local));
        assert!(!allowed("https://127.0.0.1:5001/cdn", &local));
        assert!(!allowed("http://cdn.example/blob", &local), "only the upstream itself may be plain");
        assert!(!allowed("http://127.0.0.2:9000/cdn", &local));
        local.trusted_hosts = vec!["127.0.0.2:9000".into()];
        assert!(allowed("http://127.0.0.2:9000/cdn", &local));
        assert!(!allowed("http://127.0.0.2:9001/cdn", &local));
    }
}
