/* Operations of the core, so many times: for counting instructions (instructions.py). */
#include "rig.h"

static struct rig rig;
static struct uf_result value;

static void lead(void)
{
    struct uf_flight flight;
    struct uf_remains remains;
    CHECK_INT(rig_begin(&rig, "key", &flight), UF_LEADER);
    CHECK_INT(rig_finish(&rig, &flight, &value, &remains), UF_OK);
}

/* With a doorbell, the calling thread may follow a flight of another one. */
static struct uf_caller follower(void)
{
    static const unsigned char doorbell[UF_DOORBELL_BYTES];
    struct uf_caller caller = rig.me;
    caller.doorbell = doorbell;
    return caller;
}

static void follow(void)
{
    const struct uf_key key = key_of("led");
    const struct uf_caller caller = follower();
    struct uf_flight flight;
    struct uf_remains remains;
    CHECK_INT(uf_begin(&rig.table, &caller, &key, &flight), UF_FOLLOWER);
    CHECK_INT(uf_leave(&rig.table, &flight, caller.owner, UF_LEAVING_EMPTY, UF_TRY, &remains),
              UF_OK);
}

static struct uf_flight followed;

static void look(void)
{
    CHECK_INT(uf_poll(&rig.table, &followed, rig.me.owner, uf_now_ns()), UF_PENDING);
}

static void sweep(void)
{
    CHECK_INT(uf_reap(&rig.table, 0, UF_TRY), UF_OK);
}

static const struct {
    const char *name;
    void (*run)(void);
} operations[] = {{"lead", lead}, {"follow", follow}, {"look", look}, {"sweep", sweep}};

/* operations NAME TIMES */
int main(int count, char **arguments)
{
    const struct uf_key key = key_of("led");
    CHECK(count == 3);
    rig = rig_of(16);
    value = value_of("a value of some bytes");
    struct actor leader = actor_thread(&rig.table);
    CHECK_INT(begin(&leader, "led"), UF_LEADER);
    const struct uf_caller caller = follower();
    CHECK_INT(uf_begin(&rig.table, &caller, &key, &followed), UF_FOLLOWER);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (strcmp(operations[i].name, arguments[1]) == 0)
            for (long n = atol(arguments[2]); n > 0; n--)
                operations[i].run();
    return 0;
}
