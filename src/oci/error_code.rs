use serde::Serialize;

/// The error codes of the distribution-spec 1.1 ("Error codes") that a read-only registry needs, and two of Docker's
/// registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// `BLOB_UNKNOWN`
    BlobUnknown,
    /// `DENIED`
    Denied,
    /// `DIGEST_INVALID`
    DigestInvalid,
    /// `MANIFEST_INVALID`
    ManifestInvalid,
    /// `MANIFEST_UNKNOWN`
    ManifestUnknown,
    /// `NAME_INVALID`
    NameInvalid,
    /// `NAME_UNKNOWN`
    NameUnknown,
    /// `PAGINATION_NUMBER_INVALID`: not in the specification, which has no code for it; Docker's registry uses this
    /// one.
    #[serde(rename = "PAGINATION_NUMBER_INVALID")]
    PageInvalid,
    /// `SIZE_INVALID`
    SizeInvalid,
    /// `TOOMANYREQUESTS`
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// `UNAUTHORIZED`
    Unauthorized,
    /// `UNSUPPORTED`
    Unsupported,
    /// `UNAVAILABLE`: not in the specification, which has no code for "ask again later"; Docker's registry uses this
    /// one.
    Unavailable,
}

impl ErrorCode {
    /// The error body of the distribution-spec 1.1, "Error codes".
    pub fn body(self, message: &str) -> String {
        serde_json::json!({ "errors": [{ "code": self, "message": message }] }).to_string()
    }
}
