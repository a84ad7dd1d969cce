//! What stands between this machine and the cache: gateways rename headers, and count the bytes of a body that an answer to
//! HEAD has not. containerd and the Docker Engine begin a pull by tag with HEAD.

use http::StatusCode;
use http::header::{ACCEPT, CONTENT_LENGTH, HeaderMap, USER_AGENT};
use stopover::oci::{MAX_MANIFEST_BYTES, MediaType};

use super::sample::{broken, read};
use super::{Problem, Sample};
use crate::client::Client;

/// What API Gateway's REST APIs, and function URLs, put before the names of headers that they take away.
const RENAMED: &str = "x-amzn-remapped-";

/// The fronts on AWS that leave headers alone.
const FRONTS: &str = "on AWS the cache needs the HTTP API or the internal load balancer of its template in front of it, never a \
                      REST API or a function URL";

/// The Docker Engine fails on an answer that names a digest and no length. The cache on AWS knows it by this name.
const ENGINE: &str = "docker/0 (stopover doctor)";

/// What is wrong with an answer that has been on its way through something that renames headers.
pub(super) fn renamed(headers: &HeaderMap) -> Option<Problem> {
    let names = headers.keys().filter_map(|name| name.as_str().strip_prefix(RENAMED));
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return None;
    }
    let what = format!("what stands in front of the cache renames headers that clients need ({})", names.join(", "));
    Some(Problem::new(what, FRONTS))
}

impl Client {
    /// Compares the length that HEAD tells with the length that GET sends.
    pub(super) async fn compare_head(&self, sample: &Sample) -> Result<String, Problem> {
        let url = self.manifest_url(sample, &sample.reference);
        let ask = |request: reqwest::RequestBuilder| {
            self.authorized(request).header(ACCEPT, MediaType::ACCEPT).header(USER_AGENT, ENGINE).send()
        };
        let head = ask(self.http.head(&url)).await.map_err(broken)?;
        let get = ask(self.http.get(&url)).await.map_err(broken)?;
        if let Some(problem) = renamed(head.headers()).or_else(|| renamed(get.headers())) {
            return Err(problem);
        }
        let fix = format!("have what is in front of the cache pass HEAD and its Content-Length on; {FRONTS}");
        let (status, digest) = (head.status(), head.headers().contains_key("docker-content-digest"));
        let told =
            head.headers().get(CONTENT_LENGTH).map(|length| String::from_utf8_lossy(length.as_bytes()).into_owned());
        let sent = read(get, MAX_MANIFEST_BYTES).await.map_err(broken)?.map_or(MAX_MANIFEST_BYTES, |bytes| bytes.len());
        match told {
            _ if status != StatusCode::OK => {
                Err(Problem::new(format!("HEAD of {} is answered {status}, and GET is not", sample.text), fix))
            }
            Some(told) if told == sent.to_string() => Ok(format!("HEAD tells the {sent} bytes that GET sends")),
            Some(told) => {
                let what = format!(
                    "HEAD of {} tells {told} bytes, but GET sends {sent}: containerd and Docker fail",
                    sample.text
                );
                Err(Problem::new(what, fix))
            }
            None if digest => {
                Err(Problem::new(format!("HEAD of {} tells no length, on which Docker fails", sample.text), fix))
            }
            None => Ok(format!("HEAD tells no length: clients ask with GET, which sends {sent} bytes")),
        }
    }
}
