//! Every situation, and what is done then.

use std::time::Duration;

use super::*;
use crate::errors::{Budget, Limit};
use crate::oci::{Algorithm, Manifest, MediaType};
use crate::pull::Want;
use crate::records::{Lease, Previous};

const NOW: Timestamp = Timestamp(1_000_000);

fn manifest() -> Arc<WarmManifest> {
    let bytes = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let digest = Digest::of(Algorithm::Sha256, bytes);
    Arc::new(WarmManifest::new(Manifest { digest, media_type: MediaType::OciIndex, bytes: bytes.as_slice().into() }))
}

fn observed() -> Observed {
    Observed::of(&manifest())
}

/// A record that is fresh for so long, with a lease for so long.
fn record(observed: Option<Observed>, fresh: i64, lease: i64) -> TagRecord {
    let at = |seconds: i64| Timestamp(NOW.0.saturating_add_signed(seconds));
    let lease = (lease > 0).then(|| Lease { owner: "other".into(), until: at(lease) });
    let previous = Some(Previous { digest: Digest::of(Algorithm::Sha256, b"before"), checked_at: at(-200) });
    TagRecord { observed, previous, checked_at: at(-100), fresh_until: at(fresh), lease }
}

/// What a pull begins with, of an upstream that keeps deleted tags.
fn facts(reference: &str) -> Facts {
    let new = Facts::new(&reference.parse().unwrap(), &Want::GET);
    Facts { deleted: Deleted::Serve, is_not_hidden: true, breaker_known: true, budget: Allowed::Yes, ..new }
}

/// We hold the lease.
fn leased() -> Turn {
    let limit = Duration::from_secs(9);
    Turn::Leased { end: Instant::now() + limit, limit }
}

/// This process asks for its callers.
fn flight() -> Turn {
    Turn::Flight(Flight { version: None, said: None, end: Instant::now(), attempts: Attempts::new() })
}

fn tag() -> Facts {
    facts("latest")
}

fn digest() -> Facts {
    Facts { stored: Found::No, ..facts(&manifest().digest.to_string()) }
}

fn yes() -> Found {
    Found::Yes(manifest())
}

fn over() -> OverBudget {
    OverBudget { budget: Budget::Pulls, retry_after: Duration::from_secs(9) }
}

fn trouble() -> UpstreamError {
    UpstreamError::Throttled { limit: Limit::Pulls, retry_after: None, detail: String::new() }
}

/// The next step, whatever other callers and other processes do.
fn step(facts: &Facts) -> String {
    said(answer_or_ask(facts, NOW))
}

/// Steps in few words.
fn said(step: Step) -> String {
    match step {
        Step::FindStored(digest) | Step::Ask(Ask::GetByDigest(digest)) if digest != manifest().digest => {
            "another".into()
        }
        Step::FindStored(_) => "find".into(),
        Step::Ask(Ask::GetByDigest(_)) => "get by digest".into(),
        Step::FindLastKnown => "find last".into(),
        Step::AskPermission => "permission".into(),
        Step::AskIfHidden => "hidden?".into(),
        Step::CheckBreaker => "breaker?".into(),
        Step::CheckBudget => "budget?".into(),
        Step::Join => "join".into(),
        Step::TakeTurn => "take turn".into(),
        Step::Ask(Ask::Head) => "head".into(),
        Step::Ask(Ask::GetByTag) => "get by tag".into(),
        Step::Wait => "wait".into(),
        Step::Serve(served) => format!("serve {served:?}"),
        Step::ServeStale => "stale".into(),
        Step::Missing(served) => format!("missing {served:?}"),
        Step::Refuse(PullError::OverBudget(_)) => "refuse: budget".into(),
        Step::Refuse(PullError::NotYet) => "refuse: not yet".into(),
        Step::Refuse(PullError::Upstream(error)) if error.is_trouble() => "refuse: trouble".into(),
        Step::Refuse(PullError::Upstream(error)) if error.is_refusal() => "refuse: refused".into(),
        Step::Refuse(error) => format!("refuse: {error}"),
    }
}

#[test]
fn a_fresh_tag_is_served_without_upstream_whichever_process_holds_its_lease() {
    for lease in [0, 20] {
        let fresh = Facts { record: Some(record(Some(observed()), 10, lease)), ..tag() };
        assert_eq!(step(&fresh), "find");
        assert_eq!(step(&Facts { stored: yes(), ..fresh.clone() }), "serve Hit");
        assert_eq!(step(&Facts { stored: Found::No, ..fresh.clone() }), "get by digest", "HEAD has named it");
        assert_eq!(step(&Facts { head: true, ..fresh.clone() }), "serve Hit");
        for asks in [Facts { check: true, ..fresh.clone() }, Facts { permission_due: true, ..fresh.clone() }] {
            let expected = if lease > 0 { "find last" } else { "head" };
            assert_eq!(step(&asks), expected);
        }
        assert_eq!(step(&Facts { turn: leased(), ..fresh }), "head");
    }
}

#[test]
fn what_is_remembered_as_missing_is_missing() {
    for reference in [tag(), digest()] {
        let missing = Facts { record: Some(record(None, 10, 0)), ..reference.clone() };
        assert_eq!(step(&missing), "missing Hit");
        assert_ne!(step(&Facts { check: true, ..missing }), "missing Hit");
        assert_eq!(step(&Facts { absent: true, ..reference }), "refuse: refused");
    }
    let stored = Facts { record: Some(record(None, 10, 0)), absent: true, stored: yes(), ..digest() };
    assert_eq!(step(&stored), "serve Hit", "content that is stored stays");
}

#[test]
fn while_upstream_is_in_trouble_what_it_said_last_is_served() {
    for heard in [
        Heard::Trouble(trouble()),
        Heard::Trouble(trouble().left_alone()),
        Heard::Trouble(UpstreamError::Invalid("no manifest".into())),
        Heard::Absent(UpstreamError::Missing),
        Heard::Absent(UpstreamError::NoRepository),
        Heard::Failed(over().into()),
    ] {
        for reference in [tag(), digest()] {
            let asked = Facts { record: Some(record(Some(observed()), -10, 0)), heard: heard.clone(), ..reference };
            assert_eq!(step(&asked), "find last", "{heard:?}");
            assert_eq!(step(&Facts { last_known: yes(), ..asked.clone() }), "stale");
            let nothing = step(&Facts { last_known: Found::No, ..asked });
            let invalid = format!("refuse: {}", UpstreamError::Invalid("no manifest".into()));
            let expected = match heard {
                Heard::Absent(UpstreamError::Missing) => "missing Miss",
                Heard::Absent(_) => "refuse: refused",
                Heard::Failed(_) => "refuse: budget",
                Heard::Trouble(UpstreamError::Invalid(_)) => &invalid,
                _ => "refuse: trouble",
            };
            assert_eq!(nothing, expected);
        }
    }
    let refused = Heard::from(PullError::Upstream(UpstreamError::Denied(String::new())));
    assert_eq!(step(&Facts { heard: refused, last_known: yes(), ..tag() }), "refuse: refused", "it may be revoked");
}

#[test]
fn while_another_process_asks_what_is_known_is_served_or_waited_for() {
    for reference in [tag(), digest()] {
        let held = Facts { record: Some(record(Some(observed()), -10, 20)), ..reference };
        let (some, none) =
            (Facts { last_known: yes(), ..held.clone() }, Facts { last_known: Found::No, ..held.clone() });
        assert_eq!(step(&held), "find last");
        assert_eq!((step(&some), step(&none)), ("stale".into(), "wait".into()));
        assert_eq!(step(&Facts { check: true, ..some.clone() }), "wait", "a check is about what is so now");
        assert_eq!(step(&Facts { permission_due: true, ..some.clone() }), "wait");
        assert_eq!(step(&Facts { check: true, late: true, ..some }), "stale");
        assert_eq!(step(&Facts { late: true, ..none }), "refuse: not yet");
    }
    let dead = Facts { record: Some(record(Some(observed()), -10, 0)), ..tag() };
    assert_eq!(step(&dead), "head", "its lease is over");
}

#[test]
fn a_stale_tag_is_asked_about_with_head_and_fetched_by_digest_if_it_moved() {
    let stale = Facts { record: Some(record(Some(observed()), -10, 0)), ..tag() };
    for mine in [
        stale.clone(),
        Facts { turn: leased(), ..stale.clone() },
        Facts { budget: Allowed::No(over()), ..stale.clone() },
    ] {
        assert_eq!(step(&mine), "head");
    }
    let named = Facts { heard: Heard::Named(observed()), turn: leased(), ..stale };
    assert_eq!(step(&named), "find");
    assert_eq!(step(&Facts { stored: yes(), ..named.clone() }), "serve Revalidated");
    let moved = Facts { stored: Found::No, ..named };
    assert_eq!(step(&moved), "get by digest");
    assert_eq!(step(&Facts { head: true, ..moved.clone() }), "serve Miss", "a HEAD spends nothing");
    assert_eq!(step(&Facts { budget: Allowed::No(over()), ..moved.clone() }), "find last");
    assert_eq!(step(&Facts { budget: Allowed::No(over()), last_known: Found::No, ..moved.clone() }), "refuse: budget");
    assert_eq!(step(&Facts { heard: Heard::Sent(manifest(), Served::Miss), ..moved.clone() }), "serve Miss");
    assert_eq!(step(&Facts { heard: Heard::Unnamed, ..moved }), "get by tag", "it does not answer HEAD");
}

#[test]
fn an_unknown_tag_is_one_get_and_a_head_is_a_head() {
    assert_eq!(step(&tag()), "get by tag");
    assert_eq!(step(&Facts { turn: leased(), ..tag() }), "get by tag");
    assert_eq!(step(&Facts { head: true, ..tag() }), "head");
    assert_eq!(step(&Facts { budget: Allowed::No(over()), ..tag() }), "head");
    assert_eq!(step(&Facts { record: Some(record(None, -10, 0)), ..tag() }), "get by tag", "it was missing once");
}

#[test]
fn a_stored_digest_is_served_for_ever_and_another_one_is_fetched() {
    let stored = Facts { stored: yes(), ..digest() };
    for known in [
        stored.clone(),
        Facts { check: true, ..stored.clone() },
        Facts { budget: Allowed::No(over()), ..stored.clone() },
    ] {
        assert_eq!(step(&known), "serve Hit");
    }
    assert_eq!(step(&Facts { permission_due: true, ..stored.clone() }), "permission");
    let shown = Heard::Sent(manifest(), Served::Revalidated);
    assert_eq!(step(&Facts { permission_due: true, heard: shown, ..stored }), "serve Revalidated");
    assert_eq!(step(&digest()), "get by digest");
    assert_eq!(step(&Facts { budget: Allowed::No(over()), ..digest() }), "refuse: budget");
    assert_eq!(step(&Facts { head: true, ..digest() }), "head");
    assert_eq!(step(&Facts { heard: Heard::Unnamed, ..digest() }), "get by digest");
}

#[test]
fn a_deleted_tag_is_served_on_where_the_configuration_says_so_and_upstream_does_not_hide_it() {
    let record = Some(record(Some(observed()), -10, 0));
    let deleted = Facts { record, heard: Heard::Absent(UpstreamError::Missing), last_known: yes(), ..tag() };
    assert_eq!(step(&deleted), "stale");
    assert_eq!(step(&Facts { is_not_hidden: false, ..deleted.clone() }), "hidden?");
    for last_known in [Found::Unknown, yes()] {
        let gone = Facts { deleted: Deleted::Missing, is_not_hidden: false, last_known, ..deleted.clone() };
        assert_eq!(step(&gone), "missing Miss", "nothing has to be looked for");
    }
    let trouble =
        Facts { heard: Heard::Trouble(trouble()), deleted: Deleted::Missing, is_not_hidden: false, ..deleted };
    assert_eq!(step(&trouble), "stale", "an outage deletes nothing");
}

#[test]
fn of_all_that_want_the_same_one_asks_and_answers_wait_for_no_turn() {
    let moved = Facts { heard: Heard::Named(observed()), stored: Found::No, ..tag() };
    let wait = Facts { record: Some(record(Some(observed()), -10, 20)), last_known: Found::No, ..tag() };
    for (facts, in_process, with_lease) in [
        (tag(), "take turn", "get by tag"),
        (Facts { head: true, ..tag() }, "take turn", "head"),
        (digest(), "take turn", "get by digest"),
        // It is asked for by its digest, in a turn of its own.
        (moved, "get by digest", "get by digest"),
        (wait, "wait", "head"),
    ] {
        let next = |turn| said(decide(&Facts { turn, ..facts.clone() }, NOW));
        assert_eq!(
            (next(Turn::Caller), next(flight()), next(leased())),
            ("join".into(), in_process.into(), with_lease.into())
        );
        let unknown = Facts { budget: Allowed::Unknown, ..facts.clone() };
        let expected = if facts.head { "join" } else { "budget?" };
        assert_eq!(said(decide(&unknown, NOW)), expected, "HEAD spends nothing");
    }
    let over = Facts { budget: Allowed::No(over()), ..tag() };
    assert_eq!(said(decide(&over, NOW)), "join", "it asks with HEAD");
    for asked in [tag(), Facts { head: true, ..tag() }, digest(), Facts { budget: Allowed::Unknown, ..tag() }] {
        let first = |turn| said(decide(&Facts { breaker_known: false, turn, ..asked.clone() }, NOW));
        assert_eq!(first(Turn::Caller), "breaker?", "before anything is written or charged");
        assert_eq!(first(flight()), "take turn", "its caller has looked");
    }
    for budget in [Allowed::Unknown, Allowed::Yes, Allowed::No(self::over())] {
        for turn in [Turn::Caller, flight()] {
            let stored = Facts { stored: yes(), budget: budget.clone(), turn, ..digest() };
            assert_eq!(said(decide(&stored, NOW)), "serve Hit");
        }
    }
}
