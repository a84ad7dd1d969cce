//! Lists: tags and referrers (distribution-spec 1.1, "Content Discovery"). A list is kept whole, and pages are cut from
//! it: they are right however upstream treats `n` and `last`, and upstream's cursors never reach a client.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache as MemoryCache;

use super::turn::jittered;
use super::{Pull, Result, Want};
use crate::budget::MissReservation;
use crate::config::Referrers;
use crate::errors::{PullError, StoreError, UpstreamError, beside};
use crate::oci::{Descriptors, Digest, MediaType, Page, Reference, Repository, Selected, Tag, Tags};
use crate::ports::MAX_LISTING_BYTES;
use crate::records::{List, ListKey, Listing};
use crate::upstream::{Evidence, Upstream};
use crate::values::served::Served;

/// A page of tags to answer with.
#[derive(Debug)]
pub struct PulledTags {
    /// The tags.
    pub tags: Tags,
    /// Whether more tags follow.
    pub more: bool,
    /// How the answer was obtained.
    pub served: Served,
}

/// Referrers to answer with.
#[derive(Debug)]
pub struct PulledReferrers {
    /// Their descriptors.
    pub manifests: Selected,
    /// How the answer was obtained.
    pub served: Served,
}

/// The list that callers share one request for. The flag: ask upstream even if the kept list is fresh.
pub(crate) type FlightKey = (Repository, ListKey, bool);

/// A list, and how it was obtained.
#[derive(Clone)]
pub(crate) struct PulledList {
    listing: Arc<Listing>,
    served: Served,
    /// Too large for the ledger: other processes have to read it from upstream too, and this one after an eviction.
    large: bool,
}

impl PulledList {
    fn kept(listing: Arc<Listing>, served: Served) -> Self {
        Self { listing, served, large: false }
    }
}

/// Lists that are too large for the ledger. Each process has its own.
pub(crate) struct LargeLists(MemoryCache<(Repository, ListKey), Arc<Listing>, ListBytes>);

/// The most bytes of such lists kept in memory: room for the largest list that is read at all.
const LARGE_LISTS_BYTES: u64 = 10 * 1024 * 1024;

#[derive(Clone)]
struct ListBytes;

impl Weighter<(Repository, ListKey), Arc<Listing>> for ListBytes {
    fn weight(&self, _: &(Repository, ListKey), listing: &Arc<Listing>) -> u64 {
        listing.list.as_ref().map_or(1, List::json_bytes) as u64
    }
}

impl LargeLists {
    pub(crate) fn new() -> Self {
        // A cache for few entries is not sharded, so that one list may use all of the memory.
        Self(MemoryCache::with_weighter(16, LARGE_LISTS_BYTES, ListBytes))
    }
}

impl Pull {
    /// Answers with a page of the tags of a repository.
    pub async fn tags(self: &Arc<Self>, repository: &Repository, page: &Page, want: Want) -> Result<PulledTags> {
        let PulledList { listing, served, .. } = self.list(repository, ListKey::Tags, want).await?;
        match &listing.list {
            Some(List::Tags(all)) => {
                let (tags, more) = all.page(page);
                Ok(PulledTags { tags, more, served })
            }
            Some(List::Referrers(_)) => Err(mixed_up().into()),
            None => Err(UpstreamError::NoRepository.into()),
        }
    }

    /// Answers with the manifests whose `subject` this is, filtered by artifact type if one is given. An upstream
    /// without the API has them in the index of a tag (the referrers tag schema); if that tag does not exist, there are
    /// none.
    pub async fn referrers(
        self: &Arc<Self>,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
        want: Want,
    ) -> Result<PulledReferrers> {
        // Clients ask this about every image they pull, so it is a miss only if the subject is not stored here.
        let mut expected = self.stored(repository, subject).await?.is_some();
        if expected {
            let evidence = Evidence::Manifest(subject.clone());
            expected = match self.membership.check_permission(repository, evidence, &want.bill).await {
                Err(PullError::ManifestUnknown(_)) => false,
                checked => checked.map(|_| true)?,
            };
        }
        let want = Want { expected, ..want };
        let (listed, head) = match self.core.upstreams.get(repository)?.config().referrers {
            Referrers::Ask => match self.list(repository, ListKey::Referrers(subject.clone()), want.clone()).await {
                // This may also mean that there is no API, because its path is taken for a name. GET of the tag tells,
                // by its body.
                Err(PullError::Upstream(UpstreamError::NoRepository)) => (None, false),
                listed => (Some(listed?), true),
            },
            Referrers::TagOnly => (None, true),
        };
        let list = listed.as_ref().and_then(|pulled| Some((pulled.listing.list.as_ref()?, pulled.served)));
        let (manifests, served) = match list {
            Some((List::Referrers(manifests), served)) => (manifests.clone(), served),
            Some((List::Tags(_), _)) => return Err(mixed_up().into()),
            None => {
                let served = listed.map_or(Served::Miss, |listed| listed.served);
                let none = (Descriptors::default(), served);
                self.referrers_by_tag(repository, subject, Want { head, ..want }).await?.unwrap_or(none)
            }
        };
        let manifests = match artifact_type {
            Some(wanted) => manifests.of_type(wanted),
            None => manifests.all(),
        };
        Ok(PulledReferrers { manifests, served })
    }

    /// The referrers tag schema. With `want.head`, HEAD comes first: a missing tag (`None`) then costs no quota. A
    /// registry that answers the tag with the subject itself has no such tag either (registry.gitlab.com, oras-go#1396).
    async fn referrers_by_tag(
        self: &Arc<Self>,
        repository: &Repository,
        subject: &Digest,
        want: Want,
    ) -> Result<Option<(Descriptors, Served)>> {
        let tag = Reference::Tag(Tag::of_referrers(subject));
        let pulled = async {
            let pulled = self.manifest(repository, &tag, want.clone()).await?;
            match pulled.manifest {
                None if pulled.observed.digest != *subject => {
                    self.manifest(repository, &tag, Want { head: false, check: false, ..want }).await
                }
                _ => Ok(pulled),
            }
        };
        let pulled = match pulled.await {
            Err(PullError::ManifestUnknown(_)) => {
                // A missing tag is remembered even where the repository is missing.
                self.core.upstreams.standings.check_absent(repository).await?;
                return Ok(None);
            }
            pulled => pulled?,
        };
        let index = pulled.manifest.filter(|found| found.media_type == MediaType::OciIndex && found.digest != *subject);
        let manifests = index.map_or_else(|| Ok(Descriptors::default()), |index| index.descriptors());
        let manifests = manifests.map_err(|error| UpstreamError::Invalid(error.to_string()))?;
        Ok(Some((manifests, pulled.served)))
    }

    /// A list: the kept one while it is fresh; else what upstream says now; else, while upstream is in trouble, what it
    /// said last. Reading a list may take hundreds of requests to upstream, so a caller that forces it again and again
    /// pays with misses.
    async fn list(self: &Arc<Self>, repository: &Repository, key: ListKey, want: Want) -> Result<PulledList> {
        let of_tags = key == ListKey::Tags;
        let kept = self.kept_list(repository, &key).await?;
        let known = kept.is_some();
        // Even if it is fresh: upstream may not show it to us any more.
        let due = known && self.membership.permission_is_due(repository).await?;
        if let Some(kept) = kept.filter(|kept| !want.check && !due && self.is_fresh(repository, kept)) {
            return Ok(PulledList::kept(kept, Served::Hit));
        }
        if !known && !want.check {
            self.core.upstreams.standings.check_known_absent(repository)?;
        }
        let free = (known && !due) || want.expected;
        let mut reservation = if free && !want.check {
            MissReservation::free()
        } else {
            self.core.budgets.reserve_miss(want.bill.payer).await?
        };
        let (pull, question) = (Arc::clone(self), (repository.clone(), key, want.check || due));
        let asked = question.clone();
        let work = move || async move {
            let pulled = pull.ask_for_list(&asked, &mut reservation).await;
            let miss = match &pulled {
                Ok(PulledList { listing, served, large }) => {
                    let read = *served == Served::Miss && (want.check || *large);
                    read || is_nothing(listing.list.as_ref(), of_tags)
                }
                // For referrers the tag has not been asked for yet.
                Err(error) => {
                    error.is_miss() && (of_tags || !matches!(error, PullError::Upstream(UpstreamError::NoRepository)))
                }
            };
            reservation.settle(miss);
            pulled
        };
        self.lists.flights.join(question, work).await.unwrap_or(Err(PullError::NotYet))
    }

    fn is_fresh(&self, repository: &Repository, kept: &Listing) -> bool {
        let config = self.core.upstreams.get(repository).ok().map(Upstream::config);
        let longest = config.map_or(Duration::ZERO, |config| config.tags.fresh.max(config.missing));
        kept.fresh_until.is_ahead(longest.mul_f64(1.1), self.core.clock.now())
    }

    /// The kept list, fresh or not, while it may be served at all.
    async fn kept_list(&self, repository: &Repository, key: &ListKey) -> Result<Option<Arc<Listing>>, StoreError> {
        let now = self.core.clock.now();
        let large = self.lists.large.0.get(&(repository.clone(), key.clone()));
        if large.as_ref().is_some_and(|large| self.is_fresh(repository, large)) {
            return Ok(large);
        }
        let kept = self.core.storage.ledger.listing(repository, key).await?.map(Arc::new);
        let kept = kept.into_iter().chain(large).filter(|kept| now < kept.stale_until);
        Ok(kept.max_by_key(|kept| kept.fresh_until))
    }

    /// Asks upstream for a list, unless another caller has meanwhile, and keeps the answer.
    async fn ask_for_list(
        &self,
        (repository, key, check): &FlightKey,
        reservation: &mut MissReservation,
    ) -> Result<PulledList> {
        let upstream = self.core.upstreams.get(repository)?;
        let of_tags = *key == ListKey::Tags;
        let kept = self.kept_list(repository, key).await?;
        match &kept {
            Some(kept) if !check && self.is_fresh(repository, kept) => {
                return Ok(PulledList::kept(Arc::clone(kept), Served::Hit));
            }
            None if !check => self.core.upstreams.standings.check_absent(repository).await?,
            _ => {}
        }
        reservation.mark_sent();
        let wait = self.core.config.wait;
        let late = || UpstreamError::Unavailable { silent: false, reason: format!("it took longer than {wait:?}") };
        let known = kept.as_ref().is_some_and(|kept| kept.list.is_some());
        let asked = tokio::time::timeout(wait, self.core.upstreams.list(repository, key, known)).await;
        let (list, no_repository) = match asked.unwrap_or_else(|_| Err(late())) {
            Ok(list) => (list, false),
            Err(UpstreamError::NoRepository) if !of_tags => (None, true),
            Err(error) => {
                let stale = !error.is_refusal() && self.membership.may_be_stale(repository).await?;
                let Some(kept) = kept.filter(|_| stale) else { return Err(error.into()) };
                tracing::warn!(%repository, %error, "upstream is in trouble: serving the list it sent last");
                return Ok(PulledList::kept(kept, Served::Stale));
            }
        };
        let (config, now) = (upstream.config(), self.core.clock.now());
        let fresh = jittered(if list.is_some() { config.tags.fresh } else { config.missing });
        let nothing = is_nothing(list.as_ref(), of_tags);
        if *check && list.is_some() && !nothing {
            beside(self.core.upstreams.standings.note_present(repository).await, "that a repository exists");
        }
        // An empty answer is of use only while it is fresh; that the API is missing leads to a tag.
        let stale = if nothing { fresh } else { fresh + config.stale };
        let listing = Arc::new(Listing { list, fresh_until: now.plus(fresh), stale_until: now.plus(stale) });
        let large = listing.list.as_ref().is_some_and(|list| list.json_bytes() > MAX_LISTING_BYTES);
        let place = (repository.clone(), key.clone());
        if !large && beside(self.core.storage.ledger.put_listing(repository, key, &listing).await, "a list").is_some() {
            self.lists.large.0.remove(&place);
        } else {
            self.lists.large.0.insert(place, Arc::clone(&listing));
        }
        if no_repository {
            return Err(UpstreamError::NoRepository.into());
        }
        Ok(PulledList { listing, served: Served::Miss, large })
    }
}

/// Whether upstream has nothing there, as for a name that a caller made up. A missing referrers API says nothing about
/// the referrers.
fn is_nothing(list: Option<&List>, of_tags: bool) -> bool {
    match list {
        None => of_tags,
        Some(List::Tags(_)) => false,
        Some(List::Referrers(manifests)) => manifests.is_empty(),
    }
}

fn mixed_up() -> StoreError {
    StoreError::Corrupt("a list of tags lies where one of referrers should, or the other way round".into())
}
