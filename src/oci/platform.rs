use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::values::text::serde_as_text;

/// What an image runs on: `os/architecture[/variant]` (image-spec 1.1, "Platform Variants"). Also a pattern: without a
/// variant it means every variant.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A string that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform like linux/amd64 or linux/arm/v7")]
pub struct InvalidPlatform(String);

impl Platform {
    /// A platform in its canonical form.
    pub(super) fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            // Kernels' names for the architectures, and each one's default variant.
            ("x86_64" | "amd64", None | Some("v1")) => ("amd64".to_owned(), None),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64".to_owned(), None),
            _ => (architecture, variant),
        };
        Self { os, architecture, variant }
    }

    /// Linux on the architecture that this program was built for.
    pub fn of_this_machine() -> Self {
        Self::of_machine(std::env::consts::ARCH)
    }

    /// Takes Rust's name of an architecture; images use Go's.
    fn of_machine(architecture: &str) -> Self {
        let architecture = match architecture {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    /// Whether this pattern matches an image for `other`.
    pub fn means(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match &parts[..] {
            [os, architecture] if parts.iter().all(word) => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if parts.iter().all(word) => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(InvalidPlatform(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(formatter, "/{variant}"))
    }
}

serde_as_text!(Platform);

/// Which children of an index are copied ahead of demand.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(
    rename_all = "snake_case",
    expecting = "expected \"requested\", \"all\", or a list like [\"linux/amd64\", \"linux/arm/v7\"]"
)]
pub enum Platforms {
    /// None: only what clients request.
    #[default]
    Requested,
    /// Every one, attestations too.
    All,
    /// Those for these platforms, and those for which the index names no platform.
    #[serde(untagged)]
    Only(Vec<Platform>),
}

impl Platforms {
    /// Whether a child for this platform is copied. `None`: the index names no platform for it.
    pub fn mean(&self, platform: Option<&Platform>) -> bool {
        match self {
            Self::Requested => false,
            Self::All => true,
            Self::Only(patterns) => {
                platform.is_none_or(|platform| patterns.iter().any(|pattern| pattern.means(platform)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_platform_without_a_variant_means_every_variant() {
        for (pattern, other, means) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "linux/amd64/v1", true),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "linux/arm64", false),
            ("linux/arm", "linux/arm/v6", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm/v7", "linux/arm", false),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/aarch64/v8", "linux/arm64", true),
            ("Linux/AMD64", "linux/amd64", true),
        ] {
            assert_eq!(platform(pattern).means(&platform(other)), means, "{pattern} {other}");
        }
    }

    #[test]
    fn the_architectures_of_rust_have_the_names_that_images_use() {
        let powerpc64 = if cfg!(target_endian = "little") { "ppc64le" } else { "ppc64" };
        for (rust, name) in [("x86", "386"), ("powerpc64", powerpc64), ("x86_64", "amd64"), ("aarch64", "arm64")] {
            assert_eq!(Platform::of_machine(rust).to_string(), format!("linux/{name}"));
        }
    }

    #[test]
    fn what_is_no_platform_is_refused_in_a_sentence() {
        for text in ["", "amd64", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux//v7"] {
            let message = text.parse::<Platform>().unwrap_err().to_string();
            assert!(message.contains("linux/amd64"), "{message}");
        }
    }

    #[test]
    fn a_policy_is_a_word_or_a_list() {
        let policies = [
            (r#""requested""#, Platforms::Requested),
            (r#""all""#, Platforms::All),
            (r#"["linux/arm/v7"]"#, Platforms::Only(vec![platform("linux/arm/v7")])),
        ];
        for (text, policy) in policies {
            assert_eq!(serde_json::from_str::<Platforms>(text).unwrap(), policy);
            assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        }
        for text in [r#""some""#, r#"["amd64"]"#, "5"] {
            let message = serde_json::from_str::<Platforms>(text).unwrap_err().to_string();
            assert!(message.contains("linux/arm/v7"), "{message}");
        }
        let (unknown, amd64) = (platform("unknown/unknown"), platform("linux/amd64"));
        let only = Platforms::Only(vec![amd64.clone()]);
        assert!(only.mean(Some(&amd64)) && only.mean(None) && !only.mean(Some(&unknown)));
        assert!(Platforms::All.mean(Some(&unknown)) && !Platforms::Requested.mean(None));
    }
}
