//! `DynamoDB`: the table is there, conditions hold, outages can be made.

use aws_sdk_dynamodb::{Client, error::ProvideErrorMetadata, types::AttributeValue};
use futures_util::future::join_all;
use support::aws::{Endpoints, Service};

async fn claim(client: Client, table: &str, owner: usize) -> Result<(), Option<String>> {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let put = client.put_item().table_name(table).item("pk", text("blob#1")).item("sk", text("blob"));
    let put = put.item("owner", text(&owner.to_string())).condition_expression("attribute_not_exists(pk)");
    put.send().await.map(|_| ()).map_err(|error| error.code().map(str::to_owned))
}

#[tokio::test]
async fn one_of_many_racing_conditional_puts_wins() {
    let endpoints = Endpoints::start().await.unwrap();
    let client = endpoints.dynamodb();
    let claims = join_all((0..20).map(|owner| claim(client.clone(), endpoints.table(), owner))).await;
    assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
    assert!(
        claims
            .iter()
            .filter_map(|claim| claim.as_ref().err())
            .all(|code| { code.as_deref() == Some("ConditionalCheckFailedException") })
    );
}

#[tokio::test]
async fn an_injected_outage_lasts_as_many_calls_as_asked() {
    let endpoints = Endpoints::start().await.unwrap();
    let client = endpoints.dynamodb();
    let attempts = 3;
    endpoints.fail_next(Service::DynamoDb, "PutItem", attempts);
    let refused = claim(client.clone(), endpoints.table(), 1).await;
    assert_eq!(refused, Err(Some("InternalServerError".to_owned())));
    endpoints.throttle_next(Service::DynamoDb, "PutItem", attempts);
    let throttled = claim(client.clone(), endpoints.table(), 1).await;
    assert_eq!(throttled, Err(Some("ProvisionedThroughputExceededException".to_owned())));
    assert_eq!(claim(client, endpoints.table(), 1).await, Ok(()));
    assert_eq!(endpoints.calls(Service::DynamoDb, "PutItem"), 2 * attempts + 1);
}

#[tokio::test]
async fn a_dropped_endpoint_refuses_connections() {
    let endpoints = Endpoints::start().await.unwrap();
    let client = endpoints.dynamodb();
    let table = endpoints.table().to_owned();
    claim(client.clone(), &table, 1).await.unwrap();
    drop(endpoints);
    // No service answers: an error of the connection has no code.
    assert_eq!(claim(client, &table, 2).await, Err(None));
}
