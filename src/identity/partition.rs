//! The partitions of AWS, their regions and accounts.

use serde::Deserialize;

/// A partition of AWS: it has accounts, identities and host names of its own.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
pub enum Partition {
    /// All regions that are in no other partition.
    #[default]
    #[serde(rename = "aws")]
    Commercial,
    /// The regions in China.
    #[serde(rename = "aws-cn")]
    China,
    /// AWS `GovCloud` (US).
    #[serde(rename = "aws-us-gov")]
    Government,
}

impl Partition {
    /// All partitions that the public internet reaches.
    pub(crate) const ALL: [Self; 3] = [Self::Commercial, Self::China, Self::Government];

    /// The partition of a region: `eu-west-1`, `cn-north-1`, `us-gov-west-1`. `None`: that is no region, or one of a
    /// partition that the public internet does not reach. Strict, because a region becomes part of a host name, where
    /// `s3` would be another service.
    pub fn of(region: &str) -> Option<Self> {
        let letters = |text: &str, count: std::ops::RangeInclusive<usize>| {
            count.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())
        };
        let parts: Vec<&str> = region.split('-').collect();
        let (partition, area, number) = match parts.as_slice() {
            ["cn", area, number] => (Self::China, area, number),
            ["us", "gov", area, number] => (Self::Government, area, number),
            [continent, area, number] if letters(continent, 2..=2) => (Self::Commercial, area, number),
            _ => return None,
        };
        let valid = letters(area, 4..=12) && matches!(number.as_bytes(), [b'1'..=b'9']);
        valid.then_some(partition)
    }

    /// The partition that an ARN names.
    pub(crate) fn of_arn(arn: &str) -> Option<Self> {
        let name = arn.strip_prefix("arn:")?.split(':').next()?;
        Self::ALL.into_iter().find(|partition| partition.as_str() == name)
    }

    /// The name of the partition in ARNs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commercial => "aws",
            Self::China => "aws-cn",
            Self::Government => "aws-us-gov",
        }
    }

    /// What the hosts of its services end with.
    pub fn host_end(self) -> &'static str {
        match self {
            Self::Commercial | Self::Government => "amazonaws.com",
            Self::China => "amazonaws.com.cn",
        }
    }
}

/// The public host of a region's STS. `None`: that is no region.
pub fn sts_host(region: &str) -> Option<String> {
    Some(format!("sts.{region}.{}", Partition::of(region)?.host_end()))
}

/// Whether this is the id of an account: twelve digits.
pub(crate) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_one_of_a_known_partition_and_nothing_else_of_a_host_name() {
        for (region, host) in [
            ("eu-west-1", "sts.eu-west-1.amazonaws.com"),
            ("ap-southeast-7", "sts.ap-southeast-7.amazonaws.com"),
            ("cn-northwest-1", "sts.cn-northwest-1.amazonaws.com.cn"),
            ("us-gov-east-1", "sts.us-gov-east-1.amazonaws.com"),
        ] {
            assert_eq!(sts_host(region).as_deref(), Some(host));
        }
        for none in [
            "s3",
            "",
            "eu",
            "eu-west",
            "eu-west-",
            "eu-west-0",
            "eu-west-12",
            "eu-west-1a",
            "EU-WEST-1",
            "eu--1",
            "eu-west-1-",
            "-eu-west-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eu-isoe-west-1",
            "eusc-de-east-1",
            "us-gov-1",
            "eu-west-1.evil",
        ] {
            assert_eq!(sts_host(none), None, "{none}");
        }
    }
}
