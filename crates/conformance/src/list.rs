//! Every test, for every kind of endpoint it is for: the only list there is.

/// Gives the list to another macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __all_tests {
    ($then:path, $argument:expr) => {
        $then! { $argument;
            Msg as msg {
                sentences {
                    a_receive_of_a_dropped_endpoint_is_never_written,
                    a_buffer_may_be_reused_after_its_completion,
                    each_context_is_reported_exactly_once,
                    work_of_a_dropped_endpoint_is_reported,
                    no_write_lands_after_a_region_was_revoked,
                    words_of_exposed_memory_are_whole,
                    a_flag_written_after_the_data_publishes_the_data,
                    the_end_of_a_write_publishes_its_beginning,
                }
                operations {
                    a_message_arrives_in_the_receive,
                    an_empty_message_arrives,
                    an_immediate_value_arrives_with_a_message,
                    a_write_places_its_bytes_and_no_others,
                    a_write_with_immediate_consumes_a_receive_and_leaves_it_alone,
                    a_read_fetches_its_bytes,
                    one_sided_work_of_no_bytes_succeeds,
                    fetch_and_add_answers_the_old_value,
                    compare_and_swap_swaps_only_what_was_expected,
                    atomics_of_both_sides_lose_nothing,
                    a_gather_list_is_sent_and_a_scatter_list_filled_in_order,
                    a_read_fills_a_scatter_list_and_a_write_gathers,
                    inline_bytes_are_taken_at_post,
                    unsignalled_work_is_done_and_not_reported,
                    unsignalled_work_that_fails_is_reported,
                    fenced_work_sees_what_was_read_before_it,
                    a_key_named_by_a_send_is_revoked_when_it_arrives,
                    a_long_message_is_whole,
                    messages_arrive_in_the_order_they_were_posted,
                    both_sides_talk_at_once,
                    a_mix_of_operations_keeps_its_order,
                }
                memory {
                    a_read_goes_straight_into_exposed_memory,
                    a_file_is_read_into_a_file,
                    a_read_only_file_is_not_registered_for_writing,
                    nothing_is_placed_in_a_read_only_file,
                    a_truncated_file_fails_the_work_and_not_the_process,
                    a_region_becomes_a_buffer_again,
                    a_region_in_use_is_revoked_but_stays_a_region,
                    a_buffer_shows_as_much_as_was_asked,
                    memory_outlives_the_handles_to_it,
                    memory_of_another_domain_is_refused,
                    large_memory_is_reached_at_its_end,
                }
                receives {
                    a_message_waits_for_its_receive,
                    a_write_with_immediate_waits_for_its_receive,
                    work_behind_a_waiting_message_waits_too,
                    a_sender_that_does_not_wait_fails,
                    a_sender_that_waits_a_little_fails_after_that,
                    receives_can_be_reported_to_a_queue_of_their_own,
                    shared_receives_serve_several_endpoints,
                    a_shared_queue_that_runs_low_says_so_once,
                }
                misuse {
                    a_wrong_key_is_refused,
                    a_range_that_leaves_the_region_is_refused_whole,
                    a_long_range_that_leaves_the_region_writes_nothing,
                    a_right_that_was_not_given_is_refused,
                    an_unaligned_atomic_is_refused,
                    a_revoked_region_is_refused,
                    a_dropped_region_is_refused,
                    a_region_of_another_domain_is_refused,
                    a_message_too_long_for_its_receive_fails_on_both_sides,
                    work_before_the_connection_is_refused,
                    receives_may_be_posted_before_the_connection,
                    work_after_a_failure_is_flushed,
                    local_memory_that_was_revoked_is_refused,
                    a_range_outside_local_memory_is_never_made,
                    too_many_segments_are_refused,
                    too_many_inline_bytes_are_refused,
                    a_message_longer_than_any_is_refused,
                    an_atomic_needs_eight_local_bytes,
                    accepted_work_before_refused_work_is_done,
                }
                queues {
                    a_completion_queue_is_never_overrun,
                    an_endpoint_takes_no_more_than_its_depth,
                    unsignalled_work_frees_its_room,
                    endpoints_share_a_queue,
                    a_queue_outlives_its_endpoint,
                }
                connecting {
                    private_data_travels_both_ways,
                    a_rejected_request_says_why,
                    a_request_that_is_dropped_is_rejected,
                    an_endpoint_that_was_rejected_may_try_again,
                    nobody_listening_is_unreachable,
                    an_address_is_listened_to_once,
                    an_address_that_makes_no_sense_is_refused,
                    too_much_private_data_is_refused,
                    as_much_private_data_as_promised_travels,
                    an_endpoint_connects_once,
                    one_listener_serves_many,
                    events_can_go_to_one_queue,
                    a_disconnect_flushes_and_tells_both_sides,
                    a_dropped_endpoint_disconnects_its_peer,
                    work_in_flight_ends_when_the_peer_is_dropped,
                    a_failed_connection_tells_both_sides,
                    a_new_endpoint_connects_after_a_failure,
                    two_endpoints_of_one_domain_connect,
                    a_peer_that_gave_up_cannot_be_accepted_to_work,
                }
                waiting {
                    a_wait_for_nothing_times_out,
                    a_wait_ends_with_a_completion,
                    a_queue_that_is_not_empty_need_not_be_waited_for,
                    the_descriptor_is_readable_after_a_completion,
                    arming_answers_what_is_there_already,
                    only_solicited_completions_wake_those_who_want_no_others,
                    the_descriptor_of_events_shows_them,
                }
            }
            Rdm as rdm {
                sentences {
                    a_receive_of_a_dropped_endpoint_is_never_written,
                    a_buffer_may_be_reused_after_its_completion,
                    each_context_is_reported_exactly_once,
                    work_of_a_dropped_endpoint_is_reported,
                    no_write_lands_after_a_region_was_revoked,
                    words_of_exposed_memory_are_whole,
                    a_flag_written_after_the_data_publishes_the_data,
                    the_end_of_a_write_publishes_its_beginning,
                }
                operations {
                    a_message_arrives_in_the_receive,
                    an_empty_message_arrives,
                    an_immediate_value_arrives_with_a_message,
                    a_write_places_its_bytes_and_no_others,
                    a_write_with_immediate_consumes_a_receive_and_leaves_it_alone,
                    a_read_fetches_its_bytes,
                    one_sided_work_of_no_bytes_succeeds,
                    fetch_and_add_answers_the_old_value,
                    compare_and_swap_swaps_only_what_was_expected,
                    atomics_of_both_sides_lose_nothing,
                    a_gather_list_is_sent_and_a_scatter_list_filled_in_order,
                    a_read_fills_a_scatter_list_and_a_write_gathers,
                    inline_bytes_are_taken_at_post,
                    unsignalled_work_is_done_and_not_reported,
                    unsignalled_work_that_fails_is_reported,
                    fenced_work_sees_what_was_read_before_it,
                    a_key_named_by_a_send_is_revoked_when_it_arrives,
                    a_long_message_is_whole,
                    messages_arrive_in_the_order_they_were_posted,
                    both_sides_talk_at_once,
                    a_mix_of_operations_keeps_its_order,
                }
                memory {
                    a_read_goes_straight_into_exposed_memory,
                    a_file_is_read_into_a_file,
                    a_read_only_file_is_not_registered_for_writing,
                    nothing_is_placed_in_a_read_only_file,
                    a_truncated_file_fails_the_work_and_not_the_process,
                    a_region_becomes_a_buffer_again,
                    a_region_in_use_is_revoked_but_stays_a_region,
                    a_buffer_shows_as_much_as_was_asked,
                    memory_outlives_the_handles_to_it,
                    memory_of_another_domain_is_refused,
                    large_memory_is_reached_at_its_end,
                }
                receives {
                    a_message_waits_for_its_receive,
                    a_write_with_immediate_waits_for_its_receive,
                    work_behind_a_waiting_message_waits_too,
                    a_sender_that_does_not_wait_fails,
                    a_sender_that_waits_a_little_fails_after_that,
                    receives_can_be_reported_to_a_queue_of_their_own,
                    shared_receives_serve_several_endpoints,
                    a_shared_queue_that_runs_low_says_so_once,
                }
                misuse {
                    a_wrong_key_is_refused,
                    a_range_that_leaves_the_region_is_refused_whole,
                    a_long_range_that_leaves_the_region_writes_nothing,
                    a_right_that_was_not_given_is_refused,
                    an_unaligned_atomic_is_refused,
                    a_revoked_region_is_refused,
                    a_dropped_region_is_refused,
                    a_region_of_another_domain_is_refused,
                    a_message_too_long_for_its_receive_fails_on_both_sides,
                    local_memory_that_was_revoked_is_refused,
                    a_range_outside_local_memory_is_never_made,
                    too_many_segments_are_refused,
                    too_many_inline_bytes_are_refused,
                    a_message_longer_than_any_is_refused,
                    an_atomic_needs_eight_local_bytes,
                    accepted_work_before_refused_work_is_done,
                }
                queues {
                    a_completion_queue_is_never_overrun,
                    an_endpoint_takes_no_more_than_its_depth,
                    unsignalled_work_frees_its_room,
                    endpoints_share_a_queue,
                    a_queue_outlives_its_endpoint,
                }
                peers {
                    the_sender_is_named_and_can_be_answered,
                    everybody_talks_to_everybody_at_once,
                    a_slow_peer_delays_no_other,
                    one_sided_work_goes_to_the_peer_that_is_named,
                    a_peer_that_is_not_known_is_refused,
                    work_for_a_peer_that_is_gone_fails_and_other_work_goes_on,
                    a_peer_that_came_back_is_reached_and_reaches,
                    an_endpoint_sends_to_itself,
                    an_address_belongs_to_one_endpoint,
                }
                waiting {
                    a_wait_for_nothing_times_out,
                    a_wait_ends_with_a_completion,
                    a_queue_that_is_not_empty_need_not_be_waited_for,
                    the_descriptor_is_readable_after_a_completion,
                    arming_answers_what_is_there_already,
                    only_solicited_completions_wake_those_who_want_no_others,
                }
            }
            Dgram as dgram {
                datagrams {
                    a_datagram_arrives_with_its_sender,
                    a_datagram_carries_an_immediate_value,
                    a_datagram_without_a_receive_is_dropped,
                    a_datagram_longer_than_any_is_refused,
                    a_datagram_endpoint_has_no_one_sided_work,
                }
                memory {
                    a_buffer_shows_as_much_as_was_asked,
                    memory_of_another_domain_is_refused,
                }
                misuse {
                    too_many_segments_are_refused,
                    too_many_inline_bytes_are_refused,
                }
                peers {
                    a_peer_that_is_not_known_is_refused,
                }
            }
        }
    };
}
