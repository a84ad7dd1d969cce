//! What stands between API Gateway and the router: the peer of a request, and the path as the client sent it.

use axum::extract::Request;
use axum::http::Uri;
use axum::middleware::Next;
use axum::response::Response;
use lambda_http::RequestExt as _;
use lambda_http::request::RequestContext;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use stopover::http::Https;
use stopover::identity::Peer;

/// The characters to escape in a path. All others stay as they are, so that an escape has one meaning.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'+');

/// Sets the peer of a request, as API Gateway saw it; headers do not count, because a caller can write them. An address
/// that cannot be parsed counts as none.
pub(crate) async fn with_source(mut request: Request, next: Next) -> Response {
    let (address, endpoint) = match request.extensions().get::<RequestContext>() {
        Some(RequestContext::ApiGatewayV2(context)) => (context.http.source_ip.as_deref(), None),
        // A private REST API also names the VPC endpoint.
        Some(RequestContext::ApiGatewayV1(context)) => {
            let endpoint = context.identity.other.get("vpceId").and_then(|id| id.as_str());
            (context.identity.source_ip.as_deref(), endpoint)
        }
        _ => (None, None),
    };
    let source = Peer {
        address: address.and_then(|address| address.parse().ok()),
        vpc_endpoint: endpoint.and_then(|id| id.parse().ok()),
    };
    request.extensions_mut().insert(source);
    request.extensions_mut().insert(Https);
    next.run(request).await
}

/// Restores the path that API Gateway sent, which is decoded once. `lambda_http` reads it as a browser would: it
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
    use axum::http::{StatusCode, header};
    use axum::middleware::from_fn;
    use axum::response::IntoResponse as _;
    use lambda_http::IntoResponse as IntoLambdaResponse;
    use lambda_http::tower::ServiceExt as _;

    use super::*;

    /// An event of an HTTP API.
    fn event(source: &str, path: &str, headers: &str) -> String {
        format!(
            r#"{{"version":"2.0","routeKey":"$default","rawPath":"{path}","rawQueryString":"ns=docker.io",
            "headers":{{"host":"mirror.test"{headers}}},"isBase64Encoded":false,"requestContext":{{"stage":"$default",
            "http":{{"method":"GET","path":"{path}","protocol":"HTTP/1.1","sourceIp":"{source}"}}}}}}"#
        )
    }

    /// An event of a private REST API behind a domain name of its own.
    fn rest_event(source: &str, endpoint: &str, headers: &str) -> String {
        format!(
            r#"{{"resource":"/{{proxy+}}","path":"/v2/","httpMethod":"GET","headers":{{"host":"mirror.test"{headers}}},
            "multiValueHeaders":{{}},"queryStringParameters":null,"multiValueQueryStringParameters":null,"body":null,
            "pathParameters":{{"proxy":"v2/"}},"stageVariables":null,"isBase64Encoded":false,"requestContext":{{
            "stage":"prod","path":"/v2/","httpMethod":"GET","protocol":"HTTP/1.1","identity":{{"sourceIp":"{source}",
            "vpceId":{endpoint},"vpcId":"vpc-0123456789abcdef0","userAgent":null}}}}}}"#
        )
    }

    /// What API Gateway gets for an event from a router that answers with what it sees.
    async fn answer(event: &str, seen: fn(&Request) -> String) -> String {
        let router = Router::new()
            .fallback(async move |request: Request| seen(&request))
            .layer(from_fn(exact_path))
            .layer(from_fn(with_source));
        let response = router.oneshot(lambda_http::request::from_str(event).unwrap()).await.unwrap();
        let response = IntoLambdaResponse::into_response(response).await;
        assert_eq!(response.status(), StatusCode::OK);
        String::from_utf8(response.body().to_vec()).unwrap()
    }

    async fn source(event: &str) -> String {
        answer(event, |request| {
            let extensions = request.extensions();
            let source = extensions.get::<Peer>().unwrap();
            let address = source.address.map(|address| address.to_string());
            let endpoint = source.vpc_endpoint.map(|endpoint| endpoint.to_string());
            let https = extensions.get::<Https>().is_some();
            format!("{} {} {https}", address.unwrap_or("-".into()), endpoint.unwrap_or("-".into()))
        })
        .await
    }

    #[tokio::test]
    async fn a_request_comes_from_where_api_gateway_says_and_not_where_its_headers_say() {
        let headers = r#","x-forwarded-for":"10.0.0.1","forwarded":"for=10.0.0.1","x-amzn-vpce-id":"vpce-01234567""#;
        let endpoint = r#""vpce-0123456789abcdef0""#;
        for (event, expected) in [
            (event("192.0.2.1", "/v2/", headers), "192.0.2.1 - true"),
            (event("2001:db8::1", "/v2/", ""), "2001:db8::1 - true"),
            (event("unknown", "/v2/", headers), "- - true"),
            (rest_event("10.1.2.3", endpoint, headers), "10.1.2.3 vpce-0123456789abcdef0 true"),
            (rest_event("10.1.2.3", "null", headers), "10.1.2.3 - true"),
            (rest_event("unknown", r#""vpce-evil""#, headers), "- - true"),
        ] {
            assert_eq!(source(&event).await, expected, "{event}");
        }
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
            let answer = answer(&event("10.0.0.1", sent, ""), |request| request.uri().to_string()).await;
            assert_eq!(answer, format!("{seen}?ns=docker.io"));
        }
        // Without the stage, which is no part of the path that clients ask for.
        let rest = rest_event("10.0.0.1", "null", "");
        assert_eq!(answer(&rest, |request| request.uri().to_string()).await, "/v2/");
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
}
