//! The accounts of the organisation that the functions are deployed in.

use std::collections::BTreeSet;

use async_trait::async_trait;
use aws_sdk_organizations::Client;
use stopover::access::{Organization, Unreachable};

use crate::failure::store_error;

/// [`Organization`] by the API of AWS Organizations. It answers the management account and those that administration is
/// delegated to; the role of the function needs `organizations:ListAccounts`.
#[derive(Debug)]
pub struct Organizations(Client);

impl Organizations {
    /// Asks with this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

#[async_trait]
impl Organization for Organizations {
    async fn accounts(&self, id: &str) -> Result<BTreeSet<String>, Unreachable> {
        let pages: Result<Vec<_>, _> = self.0.list_accounts().into_paginator().send().try_collect().await;
        let pages = pages.map_err(|error| {
            // AWS names roles and accounts, which are not for clients.
            let error = store_error("organizations:ListAccounts", &error);
            tracing::warn!(%error, "AWS does not list the accounts of the organisation");
            Unreachable::because("AWS does not say now which accounts belong to the organisation of this cache")
        })?;
        // arn:aws:organizations::<management account>:account/<organisation>/<account>
        let of_this = |arn: &str| arn.split('/').nth(1) == Some(id);
        let accounts = pages.into_iter().flat_map(|page| page.accounts.unwrap_or_default());
        let accounts = accounts.filter(|account| account.arn().is_some_and(of_this));
        Ok(accounts.filter_map(|account| account.id).collect())
    }
}
