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

/// Declares a constant for each kind of request, and one that has all of them in this order, in which they are counted.
macro_rules! counted {
    ($($name:ident: $kind:literal, $calls:expr, $half_reads:literal, $writes:literal;)+) => {
        $(pub(crate) const $name: Counted =
            Counted { kind: $kind, calls: $calls, half_reads: $half_reads, writes: $writes };)+

        pub(crate) const ALL: &[Counted] = &[$($name),+];
    };
}

counted! {
    START: "`/v2/`, by a new instance", &[], 0, 0;
    HEAD_COLD: "HEAD of a tag, cold", &[("BatchGetItem", 2), ("GetItem", 7), ("PutItem", 5)], 19, 5;
    INDEX_COLD: "index by digest, cold", &[("BatchGetItem", 4), ("GetItem", 5), ("PutItem", 4)], 22, 5;
    IMAGE_COLD: "manifest by digest, cold, 2 blobs",
        &[("BatchGetItem", 4), ("BatchWriteItem", 1), ("GetItem", 5), ("PutItem", 5), ("SendMessageBatch", 1)], 22, 7;
    BLOB_COLD: "blob, cold", &[("BatchGetItem", 1), ("GetItem", 1), ("PutItem", 1), ("SendMessageBatch", 1)], 6, 1;
    FILL: "fill of a blob in one request",
        &[("BatchGetItem", 3), ("GetItem", 3), ("HeadObject", 1), ("PutItem", 7), ("PutObject", 1)], 18, 7;
    TAG_COLD: "index by tag, cold", &[("BatchGetItem", 2), ("GetItem", 6), ("PutItem", 7)], 18, 8;
    HEAD_NEW: "HEAD of a tag, new instance", &[("GetItem", 3)], 5, 0;
    HEAD_WARM: "HEAD of a tag", &[("GetItem", 1)], 2, 0;
    TAG_NEW: "index by tag, new instance", &[("BatchGetItem", 1), ("GetItem", 1)], 4, 0;
    TAG_WARM: "index by tag", &[("GetItem", 1)], 2, 0;
    INDEX_NEW: "index by digest, new instance", &[("BatchGetItem", 1)], 2, 0;
    INDEX_WARM: "index by digest", &[], 0, 0;
    IMAGE_NEW: "manifest by digest, new instance", &[("BatchGetItem", 1)], 2, 0;
    IMAGE_WARM: "manifest by digest", &[], 0, 0;
    BLOB_NEW: "blob, new instance", &[("BatchGetItem", 1)], 4, 0;
    BLOB_WARM: "blob", &[], 0, 0;
    BLOB_HEAD_NEW: "HEAD of a blob, new instance", &[("BatchGetItem", 1)], 4, 0;
    BLOB_HEAD_WARM: "HEAD of a blob", &[], 0, 0;
    IMAGE_COLD_11: "manifest by digest, cold, 11 blobs",
        &[("BatchGetItem", 4), ("BatchWriteItem", 1), ("GetItem", 5), ("PutItem", 5), ("SendMessageBatch", 2)],
        22, 17;
    FILL_3_PARTS: "fill of a blob in 3 parts",
        &[("BatchGetItem", 3), ("CompleteMultipartUpload", 1), ("CreateMultipartUpload", 1), ("GetItem", 3),
         ("HeadObject", 1), ("PutItem", 7), ("UploadPart", 3)], 18, 7;
    FILL_5_PARTS: "fill of a blob in 5 parts",
        &[("BatchGetItem", 3), ("CompleteMultipartUpload", 1), ("CreateMultipartUpload", 1), ("GetItem", 3),
         ("HeadObject", 1), ("PutItem", 7), ("UploadPart", 5)], 18, 7;
    TAG_STALE: "stale tag, unchanged", &[("BatchGetItem", 1), ("GetItem", 3), ("PutItem", 4)], 8, 4;
    TAG_MOVED: "stale tag, moved",
        &[("BatchGetItem", 5), ("BatchWriteItem", 1), ("GetItem", 6), ("PutItem", 9), ("SendMessageBatch", 1)],
        26, 11;
    TAG_MISSING: "tag that is not there", &[("GetItem", 4), ("PutItem", 2)], 8, 2;
    TAG_MISSING_AGAIN: "tag that is not there, again", &[("GetItem", 1)], 2, 0;
    REFUSED: "refusal with 401", &[], 0, 0;
    TOKEN_NEW: "token, new instance", &[("GetItem", 1), ("GetSecretValue", 2)], 2, 0;
    TOKEN_WARM: "token", &[("GetItem", 1)], 2, 0;
    HEAD_TOKEN_NEW: "HEAD of a tag with a token, new instance", &[("GetItem", 4), ("GetSecretValue", 2)], 7, 0;
    HEAD_TOKEN_WARM: "HEAD of a tag with a token", &[("GetItem", 1)], 2, 0;
    IMAGE_DAY: "manifest by digest, first use in a day",
        &[("BatchGetItem", 1), ("GetItem", 2), ("UpdateItem", 1)], 5, 1;
    BLOB_DAY: "blob, first use in a day", &[("BatchGetItem", 1), ("PutItem", 2)], 4, 2;
}
