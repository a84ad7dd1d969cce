//! Manifests, from top to bottom: one loop that [decides](decide) from facts what comes next, and carries that out. The numbers
//! are those of README's data path; [who asks](super::turn) and [what upstream is asked](super::ask) are files of their own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::decide::{Allowed, Facts, Heard, Step, Turn, decide};
use super::{Pull, PulledManifest, Result};
use crate::budget::Bill;
use crate::errors::{PullError, UpstreamError};
use crate::oci::{Reference, Repository};
use crate::ports::Priority;

/// What a caller wants of a manifest.
#[derive(Clone, Debug)]
pub struct Want {
    /// Only what HEAD answers.
    pub head: bool,
    /// Ask upstream even if the record of the tag is fresh.
    pub check: bool,
    /// Who waits for it. Unless that is a client, the reserve of the quota is left alone.
    pub priority: Priority,
    /// Who pays for it.
    pub bill: Bill,
    /// A missing manifest is not a miss: clients ask about it with every image that they pull.
    pub expected: bool,
}

impl Want {
    /// The manifest, as fresh as the configuration says.
    pub const GET: Self = Self::plain(false);
    /// What HEAD answers, as fresh as the configuration says.
    pub const HEAD: Self = Self::plain(true);

    const fn plain(head: bool) -> Self {
        Self { head, check: false, priority: Priority::Interactive, bill: Bill::FREE, expected: false }
    }
}

impl Pull {
    /// Answers a pull of a manifest. A client's HEAD never causes a GET to upstream that HEAD could replace.
    pub async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
    ) -> Result<PulledManifest> {
        let asked_at = Instant::now();
        let mut facts = self.known_facts(repository, reference, &want).await?;
        let pulled = self.run(repository, &mut facts, &want).await?;
        if let Some(manifest) = pulled.manifest.as_ref().filter(|_| !want.head) {
            self.check_room(repository, manifest, &want).await?;
            self.wait_for_blobs(repository, &pulled, manifest, &want, asked_at).await?;
        }
        self.note_manifest(repository, &pulled, &want).await;
        Ok(pulled)
    }

    /// Goes from step to step until there is an answer.
    pub(super) async fn run(
        self: &Arc<Self>,
        repository: &Repository,
        facts: &mut Facts,
        want: &Want,
    ) -> Result<PulledManifest> {
        loop {
            let step = decide(facts, self.core.clock.now());
            if let Some(answer) = self.carry_out(repository, facts, step, want).await? {
                return Ok(answer);
            }
        }
    }

    /// Carries a step out: it answers, or there are new facts.
    async fn carry_out(
        self: &Arc<Self>,
        repository: &Repository,
        facts: &mut Facts,
        step: Step,
        want: &Want,
    ) -> Result<Option<PulledManifest>> {
        match step {
            Step::Serve(served) => return self.pulled(repository, facts, served).map(Some),
            Step::ServeStale => return facts.stale(repository).map(Some),
            Step::Missing(served) => return Err(PullError::ManifestUnknown(served)),
            Step::Refuse(error) => return Err(error),
            Step::FindStored(digest) => facts.stored = self.stored(repository, &digest).await?.into(),
            Step::FindLastKnown => facts.last_known = self.last_known(repository, facts).await?.into(),
            Step::AskPermission => facts.hear(self.ask_permission(repository, facts, want).await?),
            Step::AskIfHidden => self.ask_if_hidden(repository, facts, want).await?,
            Step::CheckBreaker => {
                facts.breaker_known = true;
                if let Err(open) = self.core.upstreams.check_breaker(repository, &facts.reference).await {
                    // A check reads it with its turn, which does not come then.
                    if facts.check {
                        self.read_record(repository, facts).await?;
                    }
                    facts.hear(Heard::Trouble(open));
                }
            }
            Step::CheckBudget => {
                facts.budget =
                    self.core.budgets.check_pull(want.bill.payer).map_or_else(Allowed::No, |()| Allowed::Yes);
            }
            Step::Join => return self.join(repository, facts, want).await,
            Step::TakeTurn => return self.take_turn(repository, facts, want).await,
            Step::Wait => {
                // The other's answer will be in the ledger, which does not notify: so this polls.
                tokio::time::sleep(Duration::from_millis(fastrand::u64(50..150))).await;
                self.look_again(repository, facts, want).await?;
            }
            Step::Ask(ask) => {
                let asked = self.ask(repository, &facts.reference, ask, facts.observed().is_some(), want);
                let heard = match facts.turn {
                    Turn::Leased { end, limit } => timeout_at(end, asked).await.unwrap_or_else(|_| {
                        let reason = format!("no answer within {limit:?}");
                        Heard::Trouble(UpstreamError::Unavailable { silent: false, reason })
                    }),
                    _ => asked.await,
                };
                facts.hear(heard);
            }
        }
        Ok(None)
    }
}
