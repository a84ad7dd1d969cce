//! The end of a process. Lambda tells only those that have registered an extension, and gives them half a second
//! ("Understanding the Lambda execution environment lifecycle", shutdown phase).

use std::future::pending;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// The extension of this process. It asks for no events: that it is there is all.
pub struct Extension(Option<Registered>);

struct Registered {
    client: reqwest::Client,
    api: String,
    id: String,
}

impl Extension {
    /// Registers it, which has to be done before the first invocation. A process without one is not told of its end.
    pub async fn register() -> Self {
        let Ok(address) = std::env::var("AWS_LAMBDA_RUNTIME_API") else { return Self(None) };
        let registered = Registered::at(&format!("http://{address}/2020-01-01/extension")).await;
        Self(registered.inspect_err(|error| tracing::warn!("this process is not told of its end: {error:#}")).ok())
    }

    /// Returns when this process is to end.
    pub async fn ended(self) {
        let Self(Some(registered)) = self else { return pending().await };
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            () = registered.wait() => {}
        }
    }
}

impl Registered {
    async fn at(api: &str) -> anyhow::Result<Self> {
        // No certificates, which take time to read: it is another process of this machine.
        let client = stopover::values::crypto::http_client().no_proxy().tls_certs_only([]).build()?;
        let request = client.post(format!("{api}/register")).header("lambda-extension-name", "stopover");
        let answer = request.body("{\"events\":[]}").send().await?.error_for_status()?;
        let id = answer.headers().get("lambda-extension-identifier").context("no identifier")?.to_str()?.to_owned();
        Ok(Self { client, api: api.to_owned(), id })
    }

    /// Asks for the next event, without which Lambda would wait for this extension to start. There is none.
    async fn wait(self) {
        let request = self.client.get(format!("{}/event/next", self.api));
        let answer = request.header("lambda-extension-identifier", self.id).send().await;
        tracing::debug!(answered = answer.is_ok(), "an event that was not asked for");
        pending::<()>().await;
    }
}
