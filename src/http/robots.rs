//! `POST /_stopover/robots`: a [`RobotCommand`], answered with a [`RobotAnswer`](crate::operate::RobotAnswer).

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::operator::{Operator, answer, not_here, refusal};
use crate::cache::Cache;
use crate::operate::RobotCommand;
use crate::records::robot::RobotError;

pub(super) async fn robots(State(cache): State<Arc<Cache>>, Operator(body): Operator) -> Result<Response, Response> {
    let command: RobotCommand = serde_json::from_slice(&body).map_err(|error| {
        let example = r#"{"add": {"name": "ci", "expires": "90d"}}"#;
        refusal(StatusCode::BAD_REQUEST, &format!("{error}; the body must be like {example} or \"list\""))
    })?;
    let told = cache.operate.robots(command).await.map_err(|error| {
        let status = match &error {
            RobotError::Store(error) => return not_here(&cache, error),
            RobotError::Unknown(_) => StatusCode::NOT_FOUND,
            RobotError::Expired | RobotError::TooLong => StatusCode::BAD_REQUEST,
            RobotError::Exists(_)
            | RobotError::HasExpired(_)
            | RobotError::NotLetIn
            | RobotError::TooMany
            | RobotError::Busy => StatusCode::CONFLICT,
            RobotError::NoSecret => StatusCode::SERVICE_UNAVAILABLE,
        };
        refusal(status, &error.to_string())
    })?;
    Ok(answer(&told))
}
