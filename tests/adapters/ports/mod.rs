//! The contract of the storage ports: every clause of the doc comments in `src/ports`, on every adapter.
//!
//! What only those of AWS promise is in [`on_s3`], [`on_dynamo`], [`on_sqs`] and [`outages`].

mod blobs;
mod inventory;
mod ledger;
mod on_dynamo;
mod on_s3;
mod on_sqs;
mod outages;
mod storage;
mod tallies;

/// Makes each clause a test on the embedded adapters and one on those of AWS.
macro_rules! on_every_adapter {
    ($($theme:ident: $($clause:ident)+;)+) => {
        mod embedded {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $clause() -> anyhow::Result<()> {
                    super::$theme::$clause(&super::storage::Storage::embedded()?).await
                }
            )+)+
        }
        mod aws_adapters {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $clause() -> anyhow::Result<()> {
                    super::$theme::$clause(&super::storage::Storage::aws().await?).await
                }
            )+)+
        }
    };
}

on_every_adapter! {
    blobs:
        a_blob_that_was_not_stored_is_absent
        a_stored_blob_has_its_length_and_exactly_its_bytes
        a_blob_becomes_visible_whole_and_not_before_its_body_has_ended
        a_body_that_ends_with_an_error_leaves_nothing
        a_store_that_is_given_up_half_way_shows_nothing_and_can_be_done_again
        storing_a_blob_twice_is_a_no_op
        an_upload_is_gone_on_with_from_its_checkpoint
        a_checkpoint_that_fits_no_upload_is_refused
        uploads_that_no_checkpoint_speaks_of_are_abandoned
        fills_of_one_blob_that_race_all_succeed
        every_stored_blob_is_listed_once
        a_removed_blob_is_absent_and_can_be_stored_again;
    inventory:
        what_is_stored_of_a_repository_is_read_as_it_was_written
        repositories_are_listed_by_name_from_page_to_page
        tags_are_listed_by_name_and_digests_are_not_among_them
        manifests_and_blobs_are_read_together;
    ledger:
        what_was_not_written_is_absent
        a_tag_record_is_read_as_it_was_written
        a_blob_record_is_read_as_it_was_written
        a_conditional_write_with_another_version_writes_nothing
        every_write_changes_the_version
        of_racing_conditional_writes_one_wins
        a_standing_is_what_was_said_last
        a_membership_that_is_proven_stays_so
        gauges_are_read_one_by_one_and_many_at_once
        a_list_is_read_as_it_was_put_last
        a_manifest_is_read_byte_for_byte
        a_manifest_can_be_put_twice
        a_manifest_belongs_to_the_repository_it_was_put_in
        once_a_manifest_can_be_read_every_membership_can
        a_membership_belongs_to_its_repository_and_a_blob_record_to_all
        every_item_is_an_entry_once
        the_use_of_a_manifest_is_written_only_where_it_was_used_before_then
        an_entry_is_removed_only_while_it_is_what_was_seen;
    tallies:
        sums_are_those_of_all_that_add_to_them_at_once
        as_many_sums_as_may_be_are_added_at_once
        sums_of_what_is_over_go;
}
