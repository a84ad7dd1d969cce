//! What the first format has stored: records of each kind, in each of their forms, and an image that can be pulled.

use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use stopover::errors::Limit;
use stopover::oci::{Algorithm, Descriptor, Digest, Manifest, MediaType, Observed, Reference, Repository};
use stopover::ports::Ledger;
use stopover::records::gauge::{Break, Cause, Gauge, Quota, Reading};
use stopover::records::robot::Robots;
use stopover::records::{
    BlobRecord, BlobState, Checkpoint, Entry, GaugeKey, Lease, List, ListKey, Listing, Member, Previous, ReferenceKey,
    RobotsKey, Standing, TagRecord,
};
use stopover::values::time::Timestamp;

/// When it was stored.
pub(super) const NOW: Timestamp = Timestamp(1_800_000_000);
/// When the image was stored, and used again `NOW`.
const BEFORE: Timestamp = Timestamp(NOW.0 - 1_000_000);
const SOON: Timestamp = Timestamp(NOW.0 + 300);
const LATER: Timestamp = Timestamp(NOW.0 + 1_000_000);

/// The blobs of the image.
pub(super) const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux"}"#;
pub(super) const LAYER: &[u8] = b"a layer";

/// The secret of the robot `ci`, and its hash.
pub(super) const ROBOT_SECRET: &str = concat!("stopover", "_5O7bGHOdqwtJ3lRXvPuaXbaS8Vbq4SGLT0gs0zhbonI");
const PHC: &str = "$argon2id$v=19$m=19456,t=2,p=1$gMLqqiOX+HO5RmaYVpW+Sg$r7eD2Bzd0h5ovYT9M42AlX5bgqRnkctDagTohXEg7mw";

pub(super) fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

pub(super) fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
}

fn manifest(media_type: MediaType, body: &Value) -> Manifest {
    let bytes = body.to_string().into_bytes();
    Manifest { digest: digest(&bytes), media_type, bytes: bytes.into() }
}

/// The image `a:1`.
pub(super) fn image() -> Manifest {
    let described = |bytes: &[u8]| json!({ "digest": digest(bytes), "size": bytes.len() });
    let body = json!({ "schemaVersion": 2, "config": described(CONFIG), "layers": [described(LAYER)] });
    manifest(MediaType::OciManifest, &body)
}

/// A manifest that an item of DynamoDB has no room for.
pub(super) fn large() -> Manifest {
    manifest(MediaType::OciIndex, &json!({ "manifests": [], "annotations": { "padding": "x".repeat(350_000) } }))
}

fn references() -> Vec<(Reference, TagRecord)> {
    let observed = Some(Observed::of(&image()));
    let lease = Some(Lease { owner: "a process".into(), until: SOON });
    let fresh = TagRecord { observed, previous: None, checked_at: NOW, fresh_until: SOON, lease: None };
    let previous = Some(Previous { digest: digest(b"previous"), checked_at: BEFORE });
    let asked = TagRecord { previous, lease: lease.clone(), ..fresh.clone() };
    let missing = TagRecord { observed: None, ..fresh.clone() };
    vec![
        ("1".parse().unwrap(), fresh),
        ("asked".parse().unwrap(), asked),
        ("missing".parse().unwrap(), missing.clone()),
        (Reference::Digest(digest(b"fetched")), TagRecord { lease, ..missing }),
    ]
}

fn blobs() -> Vec<(Digest, BlobRecord)> {
    let stored = |bytes: &[u8], open| {
        let state = BlobState::Stored { size: bytes.len() as u64 };
        (digest(bytes), BlobRecord { attempts: 1, used_at: Some(NOW), open, ..BlobRecord::new(state) })
    };
    let upstream = Some(repository("a").upstream);
    let checkpoint = Checkpoint { offset: 1 << 20, hash: "00ff".into(), upload: "an upload".into(), upstream };
    let claimed = BlobState::Claimed { owner: "a fill".into(), until: SOON };
    let claimed =
        BlobRecord { attempts: 2, checkpoint: Some(checkpoint), used_at: Some(NOW), ..BlobRecord::new(claimed) };
    let failed = BlobRecord { failure: Some("it \u{e9}nded".into()), ..BlobRecord::new(BlobState::Absent) };
    vec![
        stored(CONFIG, true),
        stored(LAYER, false),
        (digest(b"claimed"), claimed),
        (digest(b"removing"), BlobRecord::new(BlobState::Removing { until: SOON })),
        (digest(b"failed"), failed),
    ]
}

fn lists() -> Vec<(ListKey, Listing)> {
    let list = |text: &str| serde_json::from_str(text).unwrap();
    let tags = List::Tags(list(r#"["1","asked"]"#));
    let referrer = json!({ "mediaType": MediaType::OciManifest.as_str(), "digest": digest(b"referrer"), "size": 7 });
    let referrers = List::Referrers(serde_json::from_str(&format!("[{referrer}]")).unwrap());
    let listing = |list| Listing { list, fresh_until: SOON, stale_until: LATER };
    vec![
        (ListKey::Tags, listing(Some(tags))),
        (ListKey::Referrers(image().digest), listing(Some(referrers))),
        (ListKey::Referrers(digest(b"none")), listing(None)),
    ]
}

fn standings() -> [(Repository, Standing); 2] {
    let shown = Standing::Shown { at: NOW, until: LATER };
    [(repository("a"), shown), (repository("absent"), Standing::Absent { until: LATER })]
}

/// Of an upstream that is in all kinds of trouble.
fn gauge() -> (GaugeKey, Gauge) {
    let broken = |cause| Break { since: BEFORE, until: SOON, failures: 3, cause };
    let reading = |remaining, at| Reading { remaining, at };
    let quota =
        Quota { limit: 100, reading: reading(3, NOW), window_seconds: 21600, source: Some("an address".into()) };
    let gauge = Gauge {
        quota: Some(quota),
        earlier: Some(reading(50, BEFORE)),
        manifests: Some(broken(Cause::Limited(Limit::Pulls))),
        requests: Some(broken(Cause::Failing("it is down".into()))),
    };
    (GaugeKey { upstream: "other.test".parse().unwrap(), credential: "a user".into() }, gauge)
}

/// The robot `ci` with [`ROBOT_SECRET`], and one that has expired and whose secret was replaced.
fn robots() -> Robots {
    let hash = json!({ "phc": PHC, "check": 2_056_341_815 });
    serde_json::from_value(json!({ "robots": {
        "ci": { "created_at": BEFORE, "expires_at": null, "hash": hash, "replaced": null },
        "old": { "created_at": BEFORE, "expires_at": BEFORE, "hash": hash, "replaced": [hash, BEFORE] },
    }}))
    .unwrap()
}

/// The layer was shown by upstream; only a manifest names the configuration.
fn layer() -> Member {
    Member { size: LAYER.len() as u64, used_at: NOW, proven: true }
}

/// Stores all of it. `large`: [`large`], too.
pub(super) async fn put(ledger: &dyn Ledger, with_large: bool) {
    let a = repository("a");
    for (reference, record) in references() {
        ledger.swap(&ReferenceKey(&a, &reference), None, &record).await.unwrap().unwrap();
    }
    for (digest, record) in blobs() {
        ledger.swap(&digest, None, &record).await.unwrap().unwrap();
    }
    for (key, listing) in lists() {
        ledger.put_listing(&a, &key, &listing).await.unwrap();
    }
    for (repository, standing) in standings() {
        ledger.put_standing(&repository, standing).await.unwrap();
    }
    let (key, gauge) = gauge();
    ledger.swap(&key, None, &gauge).await.unwrap().unwrap();
    ledger.swap(&RobotsKey, None, &robots()).await.unwrap().unwrap();
    let members =
        [CONFIG, LAYER].map(|bytes| Descriptor { digest: digest(bytes), size: bytes.len() as u64, foreign: false });
    ledger.put_manifest(&a, &image(), &members, true, BEFORE).await.unwrap();
    ledger.touch_manifest(&a, &image().digest, NOW, NOW).await.unwrap();
    ledger.put_membership(&a, &digest(LAYER), layer()).await.unwrap();
    if with_large {
        ledger.put_manifest(&a, &large(), &[], true, BEFORE).await.unwrap();
    }
}

/// Reads all of it as it was stored.
pub(super) async fn check(ledger: &dyn Ledger, with_large: bool) {
    let a = repository("a");
    for (reference, record) in references() {
        let read = ledger.get(&ReferenceKey(&a, &reference)).await.unwrap();
        assert_eq!(read.map(|read| read.value), Some(record), "{reference}");
    }
    for (digest, record) in blobs() {
        assert_eq!(ledger.blob(&a, &digest).await.unwrap().record.map(|read| read.value), Some(record), "{digest}");
    }
    for (key, listing) in lists() {
        assert_eq!(ledger.listing(&a, &key).await.unwrap(), Some(listing), "{key:?}");
    }
    for (repository, standing) in standings() {
        assert_eq!(ledger.standing(&repository).await.unwrap(), Some(standing), "{repository}");
    }
    let (key, gauge) = gauge();
    assert_eq!(ledger.get(&key).await.unwrap().map(|read| read.value), Some(gauge));
    assert_eq!(ledger.get(&RobotsKey).await.unwrap().map(|read| read.value), Some(robots()));
    assert_eq!(ledger.manifest(&a, &image().digest).await.unwrap(), Some((image(), NOW)));
    let config = Member { size: CONFIG.len() as u64, used_at: BEFORE, proven: false };
    for (bytes, member) in [(CONFIG, config), (LAYER, layer())] {
        assert_eq!(ledger.blob(&a, &digest(bytes)).await.unwrap().member, Some(member));
    }
    if with_large {
        assert!(ledger.manifest(&a, &large().digest).await.unwrap() == Some((large(), BEFORE)));
    }
    let entries: Vec<Entry> = ledger.entries().try_collect().await.unwrap();
    let manifests_and_members = 3 + usize::from(with_large);
    let known = references().len() + blobs().len() + lists().len() + standings().len() + manifests_and_members;
    // Beside these there are those of what was requested.
    let is_known = |entry: &&Entry| match entry {
        Entry::Blob { digest, .. } => blobs().iter().any(|(known, _)| known == digest),
        Entry::Reference { reference, .. } => references().iter().any(|(known, _)| known == reference),
        _ => true,
    };
    assert_eq!(entries.iter().filter(is_known).count(), known);
}
