//! What stands between API Gateway and the router: who may call (until clients authenticate, the networks of
//! `STOPOVER_ALLOWED_CIDRS` and nobody else), and the path as it was asked for.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use lambda_http::RequestExt as _;
use lambda_http::request::RequestContext;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use stopover::address::{canonical, is_in};
use stopover::http::{Caller, Https};
use stopover::oci::ErrorCode;

/// What every other caller is told.
const REFUSAL: &str =
    "this cache answers only the networks of its AllowedCidrs parameter, and your address is in none of them";

/// What may not stand in a path as it is; everything else does, so that an escape has one meaning.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'+');

/// The networks whose callers are answered.
#[derive(Debug, Default)]
pub(crate) struct AllowedCallers(Vec<IpNet>);

impl AllowedCallers {
    /// Reads networks divided by commas: `10.0.0.0/8, 2001:db8::/32`, or single addresses. No network: no caller.
    pub(crate) fn parse(list: &str) -> anyhow::Result<Self> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let networks = entries.map(|entry| {
            let network = entry.parse().or_else(|error| entry.parse::<IpAddr>().map(IpNet::from).map_err(|_| error));
            network
                .map(canonical)
                .with_context(|| format!("STOPOVER_ALLOWED_CIDRS: {entry:?} is no network like 10.0.0.0/8"))
        });
        Ok(Self(networks.collect::<Result<_, _>>()?))
    }

    fn contain(&self, address: IpAddr) -> bool {
        is_in(&self.0, address)
    }
}

/// Answers 403 to callers outside of the allowed networks, whatever they ask for. The address is the one that API Gateway
/// saw; headers, which a caller may write, have no say.
pub(crate) async fn only_allowed(
    State(allowed): State<Arc<AllowedCallers>>,
    mut request: Request,
    next: Next,
) -> Response {
    let source = match request.extensions().get::<RequestContext>() {
        Some(RequestContext::ApiGatewayV2(context)) => context.http.source_ip.as_deref(),
        _ => None,
    };
    if let Some(address) = source.and_then(|address| address.parse().ok())
        && allowed.contain(address)
    {
        request.extensions_mut().insert(Caller(address));
        request.extensions_mut().insert(Https);
        return next.run(request).await;
    }
    tracing::info!(source, "refused a caller outside of AllowedCidrs");
    let json = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::FORBIDDEN, json, ErrorCode::Denied.body(REFUSAL)).into_response()
}

/// Puts back the path that API Gateway sent, which it decodes once. `lambda_http` reads it as a browser would: it
/// resolves `..`, turns `\` into `/`, and takes `%` for an escape.
pub(crate) async fn exact_path(mut request: Request, next: Next) -> Response {
    let encoded = utf8_percent_encode(request.raw_http_path(), &ESCAPED);
    let target = match request.uri().query() {
        Some(query) => format!("{encoded}?{query}"),
        None => encoded.to_string(),
    };
    match target.parse::<Uri>() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => tracing::warn!(%error, "a path could not be put back"),
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::{from_fn, from_fn_with_state};
    use lambda_http::IntoResponse as IntoLambdaResponse;
    use lambda_http::tower::ServiceExt as _;

    use super::*;

    /// What API Gateway gets for a request of `source` from a router that answers with the path it sees.
    async fn answer(allowed: &str, source: &str, path: &str, headers: &str) -> (StatusCode, String) {
        let event = format!(
            r#"{{"version":"2.0","routeKey":"$default","rawPath":"{path}","rawQueryString":"ns=docker.io",
            "headers":{{"host":"mirror.test"{headers}}},"isBase64Encoded":false,"requestContext":{{"stage":"$default",
            "http":{{"method":"GET","path":"{path}","protocol":"HTTP/1.1","sourceIp":"{source}"}}}}}}"#
        );
        let allowed = Arc::new(AllowedCallers::parse(allowed).unwrap());
        let router = Router::new()
            .fallback(async |request: Request| request.uri().to_string())
            .layer(from_fn(exact_path))
            .layer(from_fn_with_state(allowed, only_allowed));
        let response = router.oneshot(lambda_http::request::from_str(&event).unwrap()).await.unwrap();
        let response = IntoLambdaResponse::into_response(response).await;
        (response.status(), String::from_utf8(response.body().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_path_is_refused_to_a_caller_outside_in_a_sentence() {
        for path in ["/v2/", "/", "/v2/library/nginx/manifests/latest"] {
            for allowed in ["10.0.0.0/8", ""] {
                let (status, body) = answer(allowed, "192.0.2.1", path, r#","x-forwarded-for":"10.0.0.1""#).await;
                assert_eq!(status, StatusCode::FORBIDDEN);
                assert!(body.contains("\"DENIED\"") && body.contains("AllowedCidrs"), "{body}");
            }
            assert_eq!(answer("10.0.0.0/8", "10.1.2.3", path, "").await.0, StatusCode::OK);
        }
        assert_eq!(answer("0.0.0.0/0,::/0", "unknown", "/v2/", "").await.0, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn the_router_sees_the_path_that_was_asked_for() {
        for (sent, seen) in [
            ("/v2/a/manifests/sha256:00", "/v2/a/manifests/sha256:00"),
            ("/v2/a/../b/manifests/c", "/v2/a/../b/manifests/c"),
            ("/v2/a%2fb/manifests/c", "/v2/a%252fb/manifests/c"),
            ("/v2/a b/manifests/c\\\\d", "/v2/a%20b/manifests/c%5Cd"),
            ("/v2/\u{e9}", "/v2/%C3%A9"),
        ] {
            assert_eq!(
                answer("10.0.0.0/8", "10.0.0.1", sent, "").await,
                (StatusCode::OK, format!("{seen}?ns=docker.io"))
            );
        }
    }

    #[tokio::test]
    async fn the_bytes_of_a_manifest_survive() {
        let bytes = "{ \"a\" : \"\u{e9}\\u00e9\u{2028}\u{1f642}\\/\",\t\"b\":\u{7f}1.0e3 }\r\n\n".as_bytes();
        for media_type in
            ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.v2+json"]
        {
            let headers = [(header::CONTENT_TYPE, media_type)];
            let response = IntoLambdaResponse::into_response((headers, bytes).into_response()).await;
            assert_eq!(response.body().as_ref(), bytes);
            assert_eq!(response.headers()[header::CONTENT_TYPE], media_type);
        }
    }

    fn contain(list: &str, address: &str) -> bool {
        AllowedCallers::parse(list).unwrap().contain(address.parse().unwrap())
    }

    #[test]
    fn a_caller_is_allowed_inside_of_a_network_and_refused_outside() {
        for (list, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "203.0.113.9"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
            (" 10.0.0.0/8 , 192.0.2.0/24,", "192.0.2.1", "192.0.3.1"),
        ] {
            assert!(contain(list, inside), "{list} has {inside}");
            assert!(!contain(list, outside), "{list} does not have {outside}");
        }
    }

    #[test]
    fn without_a_network_nobody_is_allowed() {
        for list in ["", " ", ",,"] {
            assert!(!contain(list, "10.0.0.1") && !contain(list, "::1"));
        }
    }

    #[test]
    fn a_network_that_cannot_be_read_is_named() {
        for entry in ["10.0.0.0/33", "everyone", "10.0.0/8", "::/129"] {
            let error = AllowedCallers::parse(&format!("10.0.0.0/8,{entry}")).unwrap_err().to_string();
            assert!(error.contains("STOPOVER_ALLOWED_CIDRS") && error.contains(entry), "{error}");
        }
    }
}
