//! What AWS is asked for each kind of request: calls, and units of the table.
//!
//! tests/functions/budgets.rs counts them at the functions, and fails where there are more, or fewer: it includes this
//! file, writes the table in docs/explanation/costs.md from it, and names what to write here.

/// A kind of request, and what the functions ask AWS for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) kind: &'static str,
    /// Operations of AWS, and how often.
    pub(crate) calls: &'static [(&'static str, u32)],
    /// Halves of read units.
    pub(crate) half_reads: usize,
    pub(crate) writes: usize,
}

const fn counted(
    kind: &'static str,
    calls: &'static [(&'static str, u32)],
    half_reads: usize,
    writes: usize,
) -> Counted {
    Counted { kind, calls, half_reads, writes }
}

pub(crate) const START: Counted = counted("`/v2/`, by a new instance", &[], 0, 0);
pub(crate) const HEAD_COLD: Counted =
    counted("HEAD of a tag, cold", &[("BatchGetItem", 2), ("GetItem", 7), ("PutItem", 5)], 19, 5);
pub(crate) const INDEX_COLD: Counted =
    counted("index by digest, cold", &[("BatchGetItem", 4), ("GetItem", 5), ("PutItem", 4)], 22, 5);
pub(crate) const IMAGE_COLD: Counted = counted(
    "manifest by digest, cold, 2 blobs",
    &[("BatchGetItem", 4), ("BatchWriteItem", 1), ("GetItem", 5), ("PutItem", 5), ("SendMessageBatch", 1)],
    22,
    7,
);
pub(crate) const BLOB_COLD: Counted =
    counted("blob, cold", &[("BatchGetItem", 1), ("GetItem", 1), ("PutItem", 1), ("SendMessageBatch", 1)], 6, 1);
pub(crate) const FILL: Counted = counted(
    "fill of a blob in one request",
    &[("BatchGetItem", 3), ("GetItem", 3), ("HeadObject", 1), ("PutItem", 7), ("PutObject", 1)],
    18,
    7,
);
pub(crate) const TAG_COLD: Counted =
    counted("index by tag, cold", &[("BatchGetItem", 2), ("GetItem", 6), ("PutItem", 7)], 18, 8);
pub(crate) const HEAD_NEW: Counted = counted("HEAD of a tag, new instance", &[("GetItem", 3)], 5, 0);
pub(crate) const HEAD_WARM: Counted = counted("HEAD of a tag", &[("GetItem", 1)], 2, 0);
pub(crate) const TAG_NEW: Counted = counted("index by tag, new instance", &[("BatchGetItem", 1), ("GetItem", 1)], 4, 0);
pub(crate) const TAG_WARM: Counted = counted("index by tag", &[("GetItem", 1)], 2, 0);
pub(crate) const INDEX_NEW: Counted = counted("index by digest, new instance", &[("BatchGetItem", 1)], 2, 0);
pub(crate) const INDEX_WARM: Counted = counted("index by digest", &[], 0, 0);
pub(crate) const IMAGE_NEW: Counted = counted("manifest by digest, new instance", &[("BatchGetItem", 1)], 2, 0);
pub(crate) const IMAGE_WARM: Counted = counted("manifest by digest", &[], 0, 0);
pub(crate) const BLOB_NEW: Counted = counted("blob, new instance", &[("BatchGetItem", 1)], 4, 0);
pub(crate) const BLOB_WARM: Counted = counted("blob", &[], 0, 0);
pub(crate) const BLOB_HEAD_NEW: Counted = counted("HEAD of a blob, new instance", &[("BatchGetItem", 1)], 4, 0);
pub(crate) const BLOB_HEAD_WARM: Counted = counted("HEAD of a blob", &[], 0, 0);
pub(crate) const IMAGE_COLD_11: Counted = counted(
    "manifest by digest, cold, 11 blobs",
    &[("BatchGetItem", 4), ("BatchWriteItem", 1), ("GetItem", 5), ("PutItem", 5), ("SendMessageBatch", 2)],
    22,
    17,
);
pub(crate) const FILL_3_PARTS: Counted = counted(
    "fill of a blob in 3 parts",
    &[
        ("BatchGetItem", 3),
        ("CompleteMultipartUpload", 1),
        ("CreateMultipartUpload", 1),
        ("GetItem", 3),
        ("HeadObject", 1),
        ("PutItem", 7),
        ("UploadPart", 3),
    ],
    18,
    7,
);
pub(crate) const FILL_5_PARTS: Counted = counted(
    "fill of a blob in 5 parts",
    &[
        ("BatchGetItem", 3),
        ("CompleteMultipartUpload", 1),
        ("CreateMultipartUpload", 1),
        ("GetItem", 3),
        ("HeadObject", 1),
        ("PutItem", 7),
        ("UploadPart", 5),
    ],
    18,
    7,
);
pub(crate) const TAG_STALE: Counted =
    counted("stale tag, unchanged", &[("BatchGetItem", 1), ("GetItem", 3), ("PutItem", 4)], 8, 4);
pub(crate) const TAG_MOVED: Counted = counted(
    "stale tag, moved",
    &[("BatchGetItem", 5), ("BatchWriteItem", 1), ("GetItem", 6), ("PutItem", 9), ("SendMessageBatch", 1)],
    26,
    11,
);
pub(crate) const TAG_MISSING: Counted = counted("tag that is not there", &[("GetItem", 4), ("PutItem", 2)], 8, 2);
pub(crate) const TAG_MISSING_AGAIN: Counted = counted("tag that is not there, again", &[("GetItem", 1)], 2, 0);
pub(crate) const REFUSED: Counted = counted("refusal with 401", &[], 0, 0);
pub(crate) const TOKEN_NEW: Counted = counted("token, new instance", &[("GetItem", 1), ("GetSecretValue", 2)], 2, 0);
pub(crate) const TOKEN_WARM: Counted = counted("token", &[("GetItem", 1)], 2, 0);
pub(crate) const HEAD_TOKEN_NEW: Counted =
    counted("HEAD of a tag with a token, new instance", &[("GetItem", 4), ("GetSecretValue", 2)], 7, 0);
pub(crate) const HEAD_TOKEN_WARM: Counted = counted("HEAD of a tag with a token", &[("GetItem", 1)], 2, 0);
pub(crate) const IMAGE_DAY: Counted =
    counted("manifest by digest, first use in a day", &[("BatchGetItem", 1), ("GetItem", 2), ("UpdateItem", 1)], 5, 1);
pub(crate) const BLOB_DAY: Counted = counted("blob, first use in a day", &[("BatchGetItem", 1), ("PutItem", 2)], 4, 2);

/// All of them, in the order in which they are counted.
pub(crate) const ALL: [Counted; 33] = [
    START,
    HEAD_COLD,
    INDEX_COLD,
    IMAGE_COLD,
    BLOB_COLD,
    FILL,
    TAG_COLD,
    HEAD_NEW,
    HEAD_WARM,
    TAG_NEW,
    TAG_WARM,
    INDEX_NEW,
    INDEX_WARM,
    IMAGE_NEW,
    IMAGE_WARM,
    BLOB_NEW,
    BLOB_WARM,
    BLOB_HEAD_NEW,
    BLOB_HEAD_WARM,
    IMAGE_COLD_11,
    FILL_3_PARTS,
    FILL_5_PARTS,
    TAG_STALE,
    TAG_MOVED,
    TAG_MISSING,
    TAG_MISSING_AGAIN,
    REFUSED,
    TOKEN_NEW,
    TOKEN_WARM,
    HEAD_TOKEN_NEW,
    HEAD_TOKEN_WARM,
    IMAGE_DAY,
    BLOB_DAY,
];
