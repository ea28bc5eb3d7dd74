#include "crash.h"

#ifdef UNIFLIGHT_CRASH_POINTS
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static _Atomic int armed_point = -1;
static _Atomic int armed_action = UF_CRASH_NOTHING;

void uf_crash_arm(enum uf_crash_point point, enum uf_crash_action action)
{
    atomic_store(&armed_action, (int)action);
    atomic_store(&armed_point, action == UF_CRASH_NOTHING ? -1 : (int)point);
}

void uf_crash_reach(enum uf_crash_point point)
{
    int expected = (int)point;
    /* Once only: a process that was stopped here and continued has to get past. */
    if (!atomic_compare_exchange_strong(&armed_point, &expected, -1))
        return;
    kill(getpid(), atomic_load(&armed_action) == UF_CRASH_KILL ? SIGKILL : SIGSTOP);
}
#else
/* ISO C wants something in every translation unit. */
typedef int uf_no_crash_points;
#endif
