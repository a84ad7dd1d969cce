//! Whether this process can answer clients: for probes, which have no login. Storage is asked, upstreams never are.

use std::convert::Infallible;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Operate;
use crate::errors::{StoreError, chain};
use crate::ports::in_time;
use crate::records::GaugeKey;

/// How long storage may take: probes of Kubernetes wait for a second, where nothing else is said.
const PATIENCE: Duration = Duration::from_millis(800);

/// How long what was found out is good for: callers without a login ask, and have storage asked no more often.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// The body of `GET /_stopover/health/ready`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Health {
    /// Whether clients are answered.
    pub ready: bool,
    /// What is wrong, in sentences that say nothing secret. A cache can be ready and still need its operator.
    pub reasons: Vec<String>,
}

impl Operate {
    /// Whether clients are answered. With a full disk they are: what is stored is served, and the rest is passed on.
    pub async fn health(&self) -> Health {
        let examined = self.health.get(|_| false, async { Ok::<_, Infallible>(self.examine().await) });
        let Ok(health) = examined.await;
        health
    }

    async fn examine(&self) -> Health {
        let core = &self.core;
        let read = async {
            let Some(upstream) = core.config.upstreams.keys().next().cloned() else { return Ok(()) };
            // One small item, which no adapter remembers; it need not exist.
            let key = GaugeKey { upstream, credential: GaugeKey::ANONYMOUS.into() };
            core.storage.ledger.get(&key).await.map(drop)
        };
        let (read, room) = tokio::join!(in_time(PATIENCE, read), in_time(PATIENCE, core.storage.blobs.check_room()));
        let told = |found: Result<(), StoreError>, reason: &str| {
            let error = found.err()?;
            tracing::warn!(error = %chain(&error), "{reason}");
            Some(reason.to_owned())
        };
        let ledger = told(read, "the ledger cannot be read");
        let disk = told(room, "the disk is full: new blobs are not stored");
        let wrong =
            core.journal.is_misconfigured().then(|| "the configuration has a mistake: the one before is used".into());
        Health { ready: ledger.is_none(), reasons: ledger.into_iter().chain(disk).chain(wrong).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::ports::troubled::Troubled;
    use crate::values::time::{Clock, Timestamp};

    #[tokio::test]
    async fn probes_do_not_wait_for_a_ledger_that_does_not_answer() {
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::manual(Timestamp(1000)));
        let (cache, ledger) = Troubled::cache(data.path(), &clock);
        ledger.silent.store(true, Ordering::SeqCst);
        let health = tokio::time::timeout(FRESH, cache.operate.health()).await.expect("in time for a probe");
        let reasons = vec!["the ledger cannot be read".to_owned()];
        assert_eq!(health, Health { ready: false, reasons });
        ledger.silent.store(false, Ordering::SeqCst);
        assert!(!cache.operate.health().await.ready, "it is not asked again within a second");
        clock.advance(FRESH);
        assert_eq!(cache.operate.health().await, Health { ready: true, reasons: Vec::new() });
    }
}
