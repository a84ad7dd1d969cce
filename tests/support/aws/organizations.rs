//! AWS Organizations: the list of accounts, in pages, over the AWS JSON 1.1 protocol.

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

    fn managed(&self) -> MutexGuard<'_, Managed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One account a page: who stops after the first one knows too few. `None`: there is no organisation.
    fn page(&self, token: usize) -> Option<Value> {
        let managed = self.managed();
        let Managed { id, accounts } = &*managed;
        if id.is_empty() {
            return None;
        }
        let describe = |account: &String| {
            json!({
                "Id": account, "Arn": format!("arn:aws:organizations::000000000000:account/{id}/{account}"),
                "Name": "a name", "Email": "somebody@example.com", "Status": "ACTIVE", "State": "ACTIVE",
                "JoinedMethod": "CREATED", "JoinedTimestamp": 1_700_000_000,
            })
        };
        let page: Vec<Value> = accounts.iter().skip(token).take(1).map(describe).collect();
        let next = (token + 1 < accounts.len()).then(|| (token + 1).to_string());
        Some(json!({ "Accounts": page, "NextToken": next }))
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
    if operation != "ListAccounts" {
        return json::refusal(400, "UnknownOperationException", "this endpoint only lists accounts");
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let token = request["NextToken"].as_str().map_or(Ok(0), str::parse);
    match token.map(|token| organization.page(token)) {
        Ok(Some(page)) => json::respond(200, &page),
        Ok(None) => json::refusal(400, "AccessDeniedException", "You don't have permissions to access this resource."),
        Err(_) => json::refusal(400, "InvalidInputException", "You specified an invalid value."),
    }
}
