//! The accounts of the organisation that the functions are deployed in.

use async_trait::async_trait;
use aws_sdk_organizations::Client;
use aws_sdk_organizations::operation::describe_account::DescribeAccountError;
use stopover::access::Organization;
use stopover::errors::{Unreachable, chain};

use crate::failure::store_error;

/// [`Organization`] by the API of AWS Organizations, which answers the management account and delegated administrators.
/// The role of the function needs `organizations:DescribeAccount`.
#[derive(Debug)]
pub struct Organizations(Client);

impl Organizations {
    /// Uses this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

#[async_trait]
impl Organization for Organizations {
    async fn has(&self, id: &str, account: &str) -> Result<bool, Unreachable> {
        let answer = self.0.describe_account().account_id(account).send().await;
        let unknown = DescribeAccountError::is_account_not_found_exception;
        let described = match answer {
            Ok(answer) => answer.account,
            Err(error) if error.as_service_error().is_some_and(unknown) => None,
            Err(error) => {
                // The AWS error names roles and accounts, which are not for clients.
                let error = store_error("organizations:DescribeAccount", error);
                tracing::warn!(account, error = %chain(&error), "AWS does not say which organisation an account belongs to");
                let reason = "AWS does not say now whether your account belongs to the organisation of this cache";
                return Err(Unreachable::because(reason));
            }
        };
        // arn:aws:organizations::<management account>:account/<organisation>/<account>
        let arn = described.as_ref().and_then(|account| account.arn()).unwrap_or_default();
        let organization = arn.split('/').nth(1);
        if let Some(other) = organization.filter(|organization| *organization != id) {
            tracing::warn!(organization = other, "access.iam.organization is not the organisation of this account");
        }
        Ok(organization == Some(id))
    }
}
