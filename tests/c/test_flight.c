/* Flights that end as they should: by one thread, and between threads and processes. */
#include "rig.h"

static void a_flight_nobody_waited_for_leaves_nothing_behind(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .value = &flight};
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
        CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
        CHECK(!remains.value_kept && remains.value == NULL);
        CHECK_INT(remains.followers, 0);
    }
    CHECK_INT(totals_of(&rig).leaders, 1000);
    CHECK_INT(totals_of(&rig).followers, 0);
    rig_end(&rig);
    (void)unused;
}

static void different_keys_are_different_flights(void *unused)
{
    static const char *keys[] = {"", "a", "b", "ab", "a\1", "aa"};
    struct rig rig = rig_of(16);
    struct uf_flight flights[6];
    for (int i = 0; i < 6; i++) {
        CHECK_INT(rig_begin(&rig, keys[i], &flights[i]), UF_LEADER);
        for (int j = 0; j < i; j++)
            CHECK(flights[i].slot != flights[j].slot);
    }
    for (int i = 0; i < 6; i++)
        CHECK_INT(uf_abandon(&rig.table, &flights[i], UF_WAIT), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void the_longest_key_is_compared_to_its_last_byte(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight a, b;
    unsigned char bytes[UF_KEY_BYTES + 1] = {0};
    struct uf_key key = {bytes, UF_KEY_BYTES};
    CHECK_INT(uf_begin(&rig.table, &rig.me, &key, &a), UF_LEADER);
    CHECK_INT(uf_begin(&rig.table, &rig.me, &key, &b), UF_SELF_JOIN);
    bytes[UF_KEY_BYTES - 1] = 1;
    CHECK_INT(uf_begin(&rig.table, &rig.me, &key, &b), UF_LEADER);
    key.bytes++;
    struct uf_flight none;
    CHECK_INT(uf_begin(&rig.table, &rig.me, &key, &none), UF_DAMAGED);
    CHECK_INT(uf_abandon(&rig.table, &a, UF_WAIT), UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &b, UF_WAIT), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void keys_that_share_a_hash_are_told_apart(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight a, b, again;
    CHECK_INT(rig_begin(&rig, "b", &b), UF_LEADER);
    uint64_t hash = UF_LOAD(uf_slot(&rig.table, b.slot)->hash);
    CHECK_INT(uf_abandon(&rig.table, &b, UF_WAIT), UF_OK);
    CHECK_INT(rig_begin(&rig, "a", &a), UF_LEADER);
    UF_STORE(uf_slot(&rig.table, a.slot)->hash, hash); /* nobody can find such keys */
    CHECK_INT(rig_begin(&rig, "b", &b), UF_LEADER);
    CHECK(a.slot != b.slot);
    CHECK_INT(rig_begin(&rig, "b", &again), UF_SELF_JOIN);
    CHECK_INT(uf_abandon(&rig.table, &a, UF_WAIT), UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &b, UF_WAIT), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void a_thread_that_leads_a_key_cannot_join_it_but_may_lead_another(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight a, b, none;
    CHECK_INT(rig_begin(&rig, "a", &a), UF_LEADER);
    CHECK_INT(rig_begin(&rig, "a", &none), UF_SELF_JOIN);
    CHECK_INT(rig_begin(&rig, "b", &b), UF_LEADER);
    CHECK_INT(rig_begin(&rig, "b", &none), UF_SELF_JOIN);
    CHECK_INT(uf_abandon(&rig.table, &b, UF_WAIT), UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &a, UF_WAIT), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void a_follower_in_another_process_receives_the_bytes(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct actor waiter = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer joined = ask(&waiter, ACT_BEGIN, "k");
    CHECK_INT(joined.status, UF_FOLLOWER);
    CHECK_INT(joined.flight.leader_pid, getpid());
    CHECK_INT(joined.flight.generation, flight.generation);
    CHECK_INT(poll_now(&rig, &waiter, &joined.flight), UF_PENDING);
    struct uf_result bare = {.kind = UF_PAYLOAD_VALUE};
    CHECK_INT(rig_finish(&rig, &flight, &bare, &remains), UF_NEEDS_PAYLOAD);
    CHECK_INT(poll_now(&rig, &waiter, &joined.flight), UF_PENDING); /* nothing was written */
    struct uf_result result = value_of("the value");
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(remains.followers, 1);
    CHECK(!remains.value_kept);
    CHECK(strcmp(fetch(&waiter), "the value") == 0);
    CHECK_INT(totals_of(&rig).published_bytes, 9);
    CHECK_INT(totals_of(&rig).followers, 1);
    actor_exit(&waiter);
    rig_end(&rig);
    (void)unused;
}

static void followers_of_the_leaders_process_receive_the_very_object(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct actor first = actor_thread(&rig.table), second = actor_thread(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&first, "k"), UF_FOLLOWER);
    CHECK_INT(begin(&second, "k"), UF_FOLLOWER);
    int object;
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .value = &object};
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK(remains.value_kept && remains.value == NULL);
    CHECK_INT(remains.followers, 2);
    CHECK_INT(await(&first), UF_DONE);
    struct answer seen = ask(&first, ACT_VIEW, "");
    CHECK_INT(seen.kind, UF_PAYLOAD_LOCAL);
    CHECK(seen.value == &object);
    CHECK_INT(seen.followers, 2);
    CHECK(leave(&first).remains.value == NULL);
    CHECK(ask(&second, ACT_VIEW, "").value == &object);
    CHECK(leave(&second).remains.value == &object); /* the last one drops it */
    actor_exit(&first);
    actor_exit(&second);
    rig_end(&rig);
    (void)unused;
}

static void a_mixed_audience_is_served_with_both_and_the_object_is_dropped_once(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    int object;
    struct actor near = actor_thread(&rig.table), far = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&near, "k"), UF_FOLLOWER);
    CHECK_INT(begin(&far, "k"), UF_FOLLOWER);
    struct uf_result result = value_of("both");
    result.value = &object;
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK(remains.value_kept);
    CHECK(ask(&near, ACT_VIEW, "").value == &object);
    CHECK(leave(&near).remains.value == &object);
    CHECK(ask(&far, ACT_VIEW, "").value == NULL);
    CHECK(strcmp(fetch(&far), "both") == 0);
    actor_exit(&near);
    actor_exit(&far);
    rig_end(&rig);
    (void)unused;
}

static void an_object_left_by_followers_whose_threads_ended_is_given_back_later(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    int old, young;
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .value = &old};
    for (int round = 0; round < 2; round++) {
        struct actor near = actor_thread(&rig.table);
        result.value = round == 0 ? &old : &young;
        CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
        CHECK_INT(begin(&near, "k"), UF_FOLLOWER);
        CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
        CHECK(remains.value_kept);
        CHECK(remains.value == (round == 0 ? NULL : &old));
        if (round == 1)
            CHECK(leave(&near).remains.value == &young);
        actor_exit(&near);
        reap_all(&rig.table);
    }
    rig_end(&rig);
    (void)unused;
}

static void an_object_left_behind_is_not_taken_for_the_slots_next_result(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    int object;
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .value = &object};
    struct actor gone = actor_thread(&rig.table), near = actor_thread(&rig.table);
    struct actor far = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&gone, "k"), UF_FOLLOWER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    actor_exit(&gone);
    reap_all(&rig.table);
    CHECK_INT(ask(&far, ACT_BEGIN, "k").flight.slot, flight.slot);
    CHECK_INT(begin(&near, "k"), UF_FOLLOWER);
    CHECK_INT(finish(&far, "far's"), UF_OK);
    struct answer seen = ask(&near, ACT_VIEW, "");
    CHECK(seen.value == NULL && strcmp(seen.text, "far's") == 0);
    CHECK(leave(&near).remains.value == NULL);
    CHECK(rig.table.local[flight.slot].value == &object);
    actor_exit(&near);
    actor_exit(&far);
    rig_end(&rig);
    (void)unused;
}

static void an_error_is_encoded_even_for_followers_of_the_same_process(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct actor near = actor_thread(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&near, "k"), UF_FOLLOWER);
    struct uf_result result = {.kind = UF_PAYLOAD_ERROR};
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_NEEDS_PAYLOAD);
    result.data = "oops", result.bytes = 4;
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(await(&near), UF_DONE);
    struct answer seen = ask(&near, ACT_VIEW, "");
    CHECK_INT(seen.kind, UF_PAYLOAD_ERROR);
    CHECK(strcmp(seen.text, "oops") == 0 && seen.sum_is_right && seen.value == NULL);
    CHECK_INT(leave(&near).status, UF_OK);
    CHECK_INT(totals_of(&rig).failures, 1);
    actor_exit(&near);
    rig_end(&rig);
    (void)unused;
}

static void why_a_result_is_not_shared_reaches_the_follower(void *unused)
{
    static const enum uf_payload kinds[] = {UF_PAYLOAD_UNSHAREABLE, UF_PAYLOAD_TOO_LARGE};
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct actor far = actor_process(&rig.table);
    for (int i = 0; i < 2; i++) {
        struct uf_result result = {.kind = kinds[i], .data = "$.owner", .bytes = 7};
        CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
        CHECK_INT(begin(&far, "k"), UF_FOLLOWER);
        CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
        CHECK_INT(await(&far), UF_DONE);
        struct answer seen = ask(&far, ACT_VIEW, "");
        CHECK_INT(seen.status, UF_OK);
        CHECK_INT(seen.kind, kinds[i]);
        CHECK(strcmp(seen.text, "$.owner") == 0);
        CHECK(!leave(&far).remains.extra_segment);
    }
    actor_exit(&far);
    rig_end(&rig);
    (void)unused;
}

static void the_last_one_out_has_to_unlink_the_extra_segment(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_view view;
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    struct uf_result result = {.kind = UF_PAYLOAD_EXTRA, .bytes = 1 << 20, .sum = 77};
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer joined = ask(&one, ACT_BEGIN, "k");
    CHECK_INT(begin(&two, "k"), UF_FOLLOWER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(uf_view(&rig.table, &joined.flight, &view), UF_OK);
    CHECK_INT(view.kind, UF_PAYLOAD_EXTRA);
    CHECK(view.data == NULL && view.bytes == 1 << 20 && view.sum == 77);
    CHECK_INT(view.epoch, flight.epoch); /* with the slot, its name */
    CHECK(!leave(&one).remains.extra_segment);
    CHECK(leave(&two).remains.extra_segment);
    CHECK_INT(UF_LOAD(rig.table.header->leaked), 0);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void the_largest_inline_value_fits_and_one_byte_more_is_refused(void *unused)
{
    static char bytes[257];
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_view view;
    struct actor far = actor_process(&rig.table);
    memset(bytes, 'x', sizeof bytes);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer joined = ask(&far, ACT_BEGIN, "k");
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .data = bytes, .bytes = 257};
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_DAMAGED);
    CHECK(!uf_is_damaged(&rig.table));
    result.bytes = 256;
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(uf_view(&rig.table, &joined.flight, &view), UF_OK);
    CHECK_INT(view.bytes, 256);
    CHECK(memcmp(view.data, bytes, 256) == 0);
    CHECK_INT(leave(&far).status, UF_OK);
    actor_exit(&far);
    rig_end(&rig);
    (void)unused;
}

static void a_call_that_comes_after_the_end_starts_a_fresh_flight(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight, fresh;
    struct uf_remains remains;
    struct uf_result result = value_of("old");
    struct actor far = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&far, "k"), UF_FOLLOWER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(rig_begin(&rig, "k", &fresh), UF_LEADER); /* while the old one is being fetched */
    CHECK(fresh.slot != flight.slot);
    CHECK(strcmp(fetch(&far), "old") == 0);
    CHECK_INT(uf_abandon(&rig.table, &fresh, UF_WAIT), UF_OK);
    actor_exit(&far);
    rig_end(&rig);
    (void)unused;
}

static void a_second_finish_or_abandon_is_fenced(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight, next;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(rig_begin(&rig, "k", &next), UF_LEADER);
    CHECK_INT(next.slot, flight.slot);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_FENCED);
    CHECK_INT(rig_finish(&rig, &next, &result, &remains), UF_OK);
    CHECK_INT(totals_of(&rig).fenced, 2);
    rig_end(&rig);
    (void)unused;
}

int main(void)
{
    RUN(a_flight_nobody_waited_for_leaves_nothing_behind);
    RUN(different_keys_are_different_flights);
    RUN(the_longest_key_is_compared_to_its_last_byte);
    RUN(keys_that_share_a_hash_are_told_apart);
    RUN(a_thread_that_leads_a_key_cannot_join_it_but_may_lead_another);
    RUN(a_follower_in_another_process_receives_the_bytes);
    RUN(followers_of_the_leaders_process_receive_the_very_object);
    RUN(a_mixed_audience_is_served_with_both_and_the_object_is_dropped_once);
    RUN(an_object_left_by_followers_whose_threads_ended_is_given_back_later);
    RUN(an_object_left_behind_is_not_taken_for_the_slots_next_result);
    RUN(an_error_is_encoded_even_for_followers_of_the_same_process);
    RUN(why_a_result_is_not_shared_reaches_the_follower);
    RUN(the_last_one_out_has_to_unlink_the_extra_segment);
    RUN(the_largest_inline_value_fits_and_one_byte_more_is_refused);
    RUN(a_call_that_comes_after_the_end_starts_a_fresh_flight);
    RUN(a_second_finish_or_abandon_is_fenced);
    return report();
}
