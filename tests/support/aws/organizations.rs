//! AWS Organizations: the accounts of one, over the AWS JSON 1.1 protocol.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes};
use axum::{Router, extract::State};
use http::{HeaderMap, Response};
use serde_json::{Value, json};

use super::journal::{Journal, Service};
use super::json;
use crate::loopback::Loopback;

/// The organisation that the account of the functions manages; none until a test says so.
#[derive(Clone, Default)]
pub struct Organization(Arc<Mutex<Managed>>);

#[derive(Default)]
struct Managed {
    id: String,
    accounts: Vec<String>,
}

impl Organization {
    /// From now on it has this id and these accounts.
    pub fn is(&self, id: &str, accounts: &[&str]) {
        let accounts = accounts.iter().map(|&account| account.to_owned()).collect();
        *self.managed() = Managed { id: id.to_owned(), accounts };
    }

    pub(super) fn id(&self) -> String {
        self.managed().id.clone()
    }

    fn managed(&self) -> MutexGuard<'_, Managed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An account, or the code and the message that AWS has instead.
    fn describe(&self, account: &str) -> Result<Value, (&'static str, &'static str)> {
        let managed = self.managed();
        let Managed { id, accounts } = &*managed;
        if id.is_empty() {
            return Err(("AccessDeniedException", "You don't have permissions to access this resource."));
        }
        if !accounts.iter().any(|known| known == account) {
            return Err(("AccountNotFoundException", "You specified an account that doesn't exist."));
        }
        Ok(json!({
            "Id": account, "Arn": format!("arn:aws:organizations::000000000000:account/{id}/{account}"),
            "Name": "a name", "Email": "somebody@example.com", "Status": "ACTIVE", "State": "ACTIVE",
            "JoinedMethod": "CREATED", "JoinedTimestamp": 1_700_000_000,
        }))
    }
}

/// Starts the service and returns its endpoint URL and the organisation.
pub(super) fn start(loopback: &Loopback, journal: Arc<Journal>) -> anyhow::Result<(String, Organization)> {
    let (listener, address) = loopback.bind()?;
    let organization = Organization::default();
    loopback.serve(listener, Router::new().fallback(answer).with_state((organization.clone(), journal)));
    Ok((format!("http://{address}"), organization))
}

async fn answer(
    State((organization, journal)): State<(Organization, Arc<Journal>)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let service = (Service::Organizations, "organizations", "AWSOrganizationsV20161128.");
    let operation = match json::accept(&headers, service, &journal) {
        Ok((operation, _)) => operation,
        Err((status, code, message)) => return json::refusal(status, code, message),
    };
    if operation != "DescribeAccount" {
        return json::refusal(400, "UnknownOperationException", "this endpoint only describes accounts");
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    match organization.describe(request["AccountId"].as_str().unwrap_or_default()) {
        Ok(account) => json::respond(200, &json!({ "Account": account })),
        Err((code, message)) => json::refusal(400, code, message),
    }
}
