//! `POST /_stopover/robots`: a [`RobotCommand`], answered with a [`RobotAnswer`](crate::operate::RobotAnswer).

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::operator::{Operator, answer, not_here, refusal};
use crate::cache::Cache;
use crate::operate::RobotCommand;
use crate::records::robot::RobotError;

pub(super) async fn robots(State(cache): State<Arc<Cache>>, Operator(body): Operator) -> Response {
    let command: RobotCommand = match serde_json::from_slice(&body) {
        Ok(command) => command,
        Err(error) => {
            let example = r#"{"add": {"name": "ci", "expires": "90d"}}"#;
            return refusal(StatusCode::BAD_REQUEST, &format!("{error}; the body must be like {example} or \"list\""));
        }
    };
    match cache.operate.robots(command).await {
        Ok(told) => answer(&told),
        Err(RobotError::Store(error)) => not_here(&cache, &error),
        Err(error) => {
            let status = match error {
                RobotError::Unknown(_) => StatusCode::NOT_FOUND,
                RobotError::Expired | RobotError::TooLong => StatusCode::BAD_REQUEST,
                RobotError::Exists(_)
                | RobotError::HasExpired(_)
                | RobotError::NotLetIn
                | RobotError::TooMany
                | RobotError::Busy => StatusCode::CONFLICT,
                RobotError::NoSecret | RobotError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refusal(status, &error.to_string())
        }
    }
}
